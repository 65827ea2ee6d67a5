//! `token`: a token for other tools, such as grpcurl.

use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::Value;

use super::connection::{ConfigFlag, duration};
use super::output::{Output, OutputFlags};
use super::{CommandError, Environment};
use crate::grpc::auth::token_for;

/// Flags of `token`.
#[derive(Args, Debug)]
pub struct TokenFlags {
    /// How long it is good for. Nobody can take it back before, but by changing the secret
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    expires: Duration,
    #[command(flatten)]
    config: ConfigFlag,
    #[command(flatten)]
    output: OutputFlags,
}

impl TokenFlags {
    /// Prints a token.
    ///
    /// # Errors
    ///
    /// There is no secret.
    pub fn run(self, environment: &Environment) -> Result<(), CommandError> {
        let secret = self.config.secret(environment)?;
        let expiry = SystemTime::now() + self.expires;
        let token = token_for(&secret, self.expires).map_err(anyhow::Error::from)?;
        let mut output = Output::new(self.output);
        if output.is_json() {
            let expiry = humantime::format_rfc3339_seconds(expiry).to_string();
            output.fields(&[
                ("", "token", Value::from(token)),
                ("", "expiresAt", Value::from(expiry)),
            ])?;
        } else {
            output.line(&token)?;
        }
        Ok(())
    }
}
