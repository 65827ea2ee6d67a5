//! The flags of every command that calls a databroker.
//!
//! Their defaults are the settings of the server itself: where its environment is set, in its container or its unit, no
//! flag is needed at all.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::{CommandError, Environment};
use crate::grpc::client::{Client, DataBroker, Identity, Target, Trust, certificates};
use crate::settings::{self, SharedSecret, client_secret};
use crate::tls;

/// Flags of a connection.
#[derive(Args, Clone, Debug)]
pub struct ConnectionFlags {
    /// The databroker, http://HOST:PORT, or https://HOST:PORT where it has TLS [default: the address that GRPC_ADDRESS
    /// says, with TLS as GRPC_INSECURE and the certificates' settings say, else http://127.0.0.1:5443]
    #[arg(long, value_name = "URL")]
    address: Option<String>,
    /// Trust certificates by the authorities in this PEM file [default: CERTIFICATE_AUTHORITY_FILE, else the system's]
    #[arg(long, value_name = "FILE")]
    certificate_authority_file: Option<PathBuf>,
    /// Trust certificates by the authority that is derived from the shared secret, as a databroker with tls_derive has
    /// them. The domain is the one that the settings say; it makes no difference here [default: TLS_DERIVE]
    #[arg(
        long,
        value_name = "DOMAIN",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = ""
    )]
    tls_derive: Option<String>,
    /// The name that the databroker's certificate is made out to, where that is not the host in its address
    /// [default: OVERRIDE_CERTIFICATE_NAME]
    #[arg(long, value_name = "NAME")]
    override_certificate_name: Option<String>,
    /// A PEM file with the certificate to show to a databroker that asks for one
    #[arg(long, value_name = "FILE", requires = "client_key_file")]
    client_certificate_file: Option<PathBuf>,
    /// A PEM file with that certificate's key
    #[arg(long, value_name = "FILE", requires = "client_certificate_file")]
    client_key_file: Option<PathBuf>,
}

/// How long to wait.
#[derive(Args, Clone, Copy, Debug)]
pub struct TimeoutFlags {
    /// How long connecting may take, and then each answer, such as 500ms or 1m. What streams is not cut off
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    timeout: Duration,
}

/// Flags of a connection that proves itself with the shared secret.
#[derive(Args, Clone, Debug)]
pub struct SecretFlags {
    #[command(flatten)]
    connection: ConnectionFlags,
    #[command(flatten)]
    timeout: TimeoutFlags,
    #[command(flatten)]
    config: ConfigFlag,
}

/// The configuration file.
#[derive(Args, Clone, Debug)]
pub struct ConfigFlag {
    /// The databroker's configuration file, to take the shared secret from, and where to call it; the environment goes
    /// before it. The secret has no flag, since other users of a machine can read flags
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFlag {
    /// The shared secret.
    ///
    /// # Errors
    ///
    /// It is set nowhere, or is none.
    pub fn secret(&self, environment: &Environment) -> Result<SharedSecret, CommandError> {
        Ok(client_secret(&environment.source(self.config.clone()))?)
    }
}

impl SecretFlags {
    /// Whom to call, and the secret to prove oneself with.
    ///
    /// # Errors
    ///
    /// What is wrong with the flags or the environment.
    pub fn target(&self, environment: &Environment) -> Result<(Target, SharedSecret), CommandError> {
        let secret = self.config.secret(environment)?;
        let target = self
            .connection
            .target(environment, &self.config, self.timeout.timeout)?;
        Ok((target, secret))
    }

    /// Connects.
    ///
    /// # Errors
    ///
    /// What is wrong with the flags or the environment, or why nobody is reached.
    pub async fn connect(&self, environment: &Environment) -> Result<(Client, DataBroker), CommandError> {
        let (target, secret) = self.target(environment)?;
        let client = Client::connect(&target).await?;
        let databroker = client.databroker(&secret);
        Ok((client, databroker))
    }
}

impl ConnectionFlags {
    /// Whom to call. The secret is asked for only where the authority is derived from it.
    ///
    /// # Errors
    ///
    /// What is wrong with the flags or the environment.
    pub fn target(
        &self,
        environment: &Environment,
        config: &ConfigFlag,
        timeout: Duration,
    ) -> Result<Target, CommandError> {
        let mut source = environment.source(config.config.clone());
        let flags = [
            (
                "CERTIFICATE_AUTHORITY_FILE",
                self.certificate_authority_file.as_deref().map(Path::as_os_str),
            ),
            (
                "OVERRIDE_CERTIFICATE_NAME",
                self.override_certificate_name.as_deref().map(OsStr::new),
            ),
        ];
        source.flags = flags
            .into_iter()
            .filter_map(|(variable, value)| Some((variable, value?.to_owned())))
            .collect();
        let configured = settings::client(&source, self.address.as_deref())?;
        let address = &configured.address;
        let derived = if address.starts_with("https:") && (configured.derived || self.tls_derive.is_some()) {
            vec![derived_authority(&client_secret(&source)?)?]
        } else {
            Vec::new()
        };
        let trust = || {
            let authorities = match &configured.authority {
                Some(path) => certificates(path)?,
                None => Vec::new(),
            };
            let identity = match (&self.client_certificate_file, &self.client_key_file) {
                (Some(certificate), Some(key)) => Some(Identity {
                    certificate: certificate.clone(),
                    key: key.clone(),
                }),
                _ => None,
            };
            Trust::new(
                authorities,
                derived,
                identity.as_ref(),
                configured.certificate_name.clone(),
            )
        };
        Ok(Target::new(address, timeout, trust)?)
    }
}

/// The certificate authority that is derived from the shared secret.
fn derived_authority(secret: &SharedSecret) -> Result<rustls::pki_types::CertificateDer<'static>, CommandError> {
    let authority = tls::derive::authority(secret).map_err(anyhow::Error::from)?;
    Ok(authority.into())
}

/// Reads a duration of more than zero and no more than a year.
pub fn duration(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    let duration = humantime::parse_duration(text).map_err(|_| "write a duration such as 10s or 1h30m".to_owned())?;
    if duration.is_zero() || duration > LONGEST {
        return Err("it must be more than 0 and no more than 365 days".to_owned());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn durations_have_bounds() {
        for text in ["0s", "", "10", "-1s", "400days", "99999999999999999999s"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
    }
}
