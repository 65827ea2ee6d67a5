//! `lease`: names that one holder at a time has.
//!
//! The protocol has no call that lists leases or says who holds one, so there is no such command; taking a lease and
//! giving it back tells whether it was free.

use std::time::Duration;

use clap::{Args, Subcommand};
use databroker_proto::databroker::{AcquireLeaseRequest, ReleaseLeaseRequest, RenewLeaseRequest};
use serde_json::Value;
use tonic::Code;

use super::connection::{SecretFlags, duration};
use super::output::{Output, OutputFlags};
use super::{CommandError, Environment};
use crate::grpc::client::ClientError;
use crate::grpc::convert::proto_duration;

/// What to do with a lease.
#[derive(Subcommand, Debug)]
pub enum LeaseCommand {
    /// Take a lease, and print the id to renew and release it with
    Acquire {
        /// The lease's name
        name: String,
        /// For how long; Pomerium's services take theirs for 30s
        #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
        duration: Duration,
        #[command(flatten)]
        flags: LeaseFlags,
    },
    /// Keep a lease for longer
    Renew {
        /// The lease's name
        name: String,
        /// The id that acquire has printed
        id: String,
        /// For how long from now
        #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
        duration: Duration,
        #[command(flatten)]
        flags: LeaseFlags,
    },
    /// Give a lease back. It is no failure if another holds it by now: it is left alone
    Release {
        /// The lease's name
        name: String,
        /// The id that acquire has printed
        id: String,
        #[command(flatten)]
        flags: LeaseFlags,
    },
}

/// Flags of all of them.
#[derive(Args, Debug)]
pub struct LeaseFlags {
    #[command(flatten)]
    connection: SecretFlags,
    #[command(flatten)]
    output: OutputFlags,
}

impl LeaseCommand {
    /// Does it.
    ///
    /// # Errors
    ///
    /// Why it is not done; also where another holds the lease.
    pub async fn run(self, environment: &Environment) -> Result<(), CommandError> {
        match self {
            Self::Acquire { name, duration, flags } => {
                let (client, mut databroker) = flags.connection.connect(environment).await?;
                let request = AcquireLeaseRequest {
                    name: name.clone(),
                    duration: Some(proto_duration(duration)),
                };
                let answer = client.answer(databroker.acquire_lease(request)).await;
                let id = held(answer, &name)?.id;
                let mut output = Output::new(flags.output);
                if output.is_json() {
                    output.fields(&[("", "name", Value::from(name)), ("", "id", Value::from(id))])?;
                } else {
                    output.line(&id)?;
                }
            }
            Self::Renew {
                name,
                id,
                duration,
                flags,
            } => {
                let (client, mut databroker) = flags.connection.connect(environment).await?;
                let request = RenewLeaseRequest {
                    name: name.clone(),
                    id: id.clone(),
                    duration: Some(proto_duration(duration)),
                };
                held(client.answer(databroker.renew_lease(request)).await, &name)?;
                flags.done("renewed", name, id)?;
            }
            Self::Release { name, id, flags } => {
                let (client, mut databroker) = flags.connection.connect(environment).await?;
                let request = ReleaseLeaseRequest {
                    name: name.clone(),
                    id: id.clone(),
                };
                client.answer(databroker.release_lease(request)).await?;
                flags.done("released", name, id)?;
            }
        }
        Ok(())
    }
}

impl LeaseFlags {
    fn done(&self, what: &str, name: String, id: String) -> std::io::Result<()> {
        let mut output = Output::new(self.output);
        if output.is_json() {
            return output.fields(&[("", "name", Value::from(name)), ("", "id", Value::from(id))]);
        }
        output.line(&format!("{what} {name}"))
    }
}

fn held<T>(answer: Result<T, ClientError>, name: &str) -> Result<T, CommandError> {
    answer.map_err(|error| match error.code() {
        Some(Code::AlreadyExists) => CommandError::Failed(anyhow::anyhow!(
            "another holds the lease {name:?}: try again when it is released or has run out"
        )),
        _ => error.into(),
    })
}
