//! `types` and `server-info`: what there is, and where the databroker stands.

use clap::Args;
use serde_json::Value;

use super::connection::SecretFlags;
use super::output::{Output, OutputFlags};
use super::{CommandError, Environment};

/// Flags of both.
#[derive(Args, Debug)]
pub struct ServerFlags {
    #[command(flatten)]
    connection: SecretFlags,
    #[command(flatten)]
    output: OutputFlags,
}

impl ServerFlags {
    /// Prints the types that have records.
    ///
    /// # Errors
    ///
    /// Why there is no answer.
    pub async fn types(self, environment: &Environment) -> Result<(), CommandError> {
        let (client, mut databroker) = self.connection.connect(environment).await?;
        let answer = client.answer(databroker.list_types(())).await?;
        Ok(Output::new(self.output).list("types", &answer.types)?)
    }

    /// Prints where the databroker stands.
    ///
    /// # Errors
    ///
    /// Why there is no answer.
    pub async fn info(self, environment: &Environment) -> Result<(), CommandError> {
        let (client, mut databroker) = self.connection.connect(environment).await?;
        let info = client.answer(databroker.server_info(())).await?;
        let version = |version: u64| Value::from(version.to_string());
        Output::new(self.output).fields(&[
            ("server version", "serverVersion", version(info.server_version)),
            (
                "earliest record version",
                "earliestRecordVersion",
                version(info.earliest_record_version),
            ),
            (
                "latest record version",
                "latestRecordVersion",
                version(info.latest_record_version),
            ),
        ])?;
        Ok(())
    }
}
