//! `record watch`: changes as they happen.
//!
//! A stream of changes ends for many reasons, and only one of them is an end: the databroker restarts, a proxy between
//! closes the connection, or the changes to go on with are gone. The first two are overcome by going on from the last
//! version that was shown, so that nothing is missed; the last is said, in both forms of the output, since whoever
//! keeps something from the changes must read it anew.

use std::time::Duration;

use clap::Args;
use databroker_proto::databroker::sync_response::Response as Change;
use databroker_proto::databroker::{Record, SyncRequest, TypedOptions};
use serde_json::json;
use tonic::Code;

use super::options::brief as options_text;
use super::output::{Output, note};
use super::record::RecordFlags;
use super::shown::{Shown, Types, time};
use super::{CommandError, Environment};
use crate::grpc::client::{Client, ClientError, DataBroker, Target};
use crate::settings::SharedSecret;

/// How long to wait before connecting again: at first, and at most. It doubles with each time that nothing came.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Flags of `record watch`.
#[derive(Args, Debug)]
pub struct WatchFlags {
    /// Only changes of this type
    #[arg(value_name = "TYPE")]
    record_type: Option<String>,
    /// Begin with the changes after this version; 0 for all that the change log still has [default: those from now on]
    #[arg(long, value_name = "VERSION")]
    from_version: Option<u64>,
    /// The server version that the version belongs to, as server-info and record list say it [default: the current one]
    #[arg(long, value_name = "VERSION", requires = "from_version")]
    server_version: Option<u64>,
    /// Show the changes that there are and end
    #[arg(long, requires = "from_version")]
    no_wait: bool,
    #[command(flatten)]
    flags: RecordFlags,
}

impl WatchFlags {
    /// Watches until it is interrupted.
    ///
    /// # Errors
    ///
    /// The databroker is not reached the first time, or does not let us in.
    pub async fn run(self, environment: &Environment) -> Result<(), CommandError> {
        let types = Types::load(&self.flags.types)?;
        let (target, secret) = self.flags.connection.target(environment)?;
        let mut output = Output::new(self.flags.output);
        let mut connection = Connection::open(&target, &secret).await?;
        let mut position = match (self.from_version, self.server_version) {
            (Some(version), Some(server_version)) => Position {
                server_version,
                version,
            },
            (from, _) => {
                let now = connection.now().await?;
                Position {
                    version: from.unwrap_or(now.version),
                    ..now
                }
            }
        };
        let watch = Watch {
            record_type: self
                .record_type
                .as_deref()
                .map(|name| types.resolve(name))
                .unwrap_or_default(),
            wait: !self.no_wait,
            shown: self.flags.shown(&types),
        };
        let mut wait = FIRST_WAIT;
        loop {
            let before = position;
            let outcome = watch.follow(&mut connection, &mut position, &mut output).await;
            if position.version != before.version {
                wait = FIRST_WAIT;
            }
            match outcome {
                Ok(()) if self.no_wait => return Ok(()),
                Ok(()) => {}
                Err(CommandError::Client(error)) if error.code() == Some(Code::Aborted) && !self.no_wait => {
                    position = connection.now().await?;
                    watch.restarted(&mut output, &error, position)?;
                }
                Err(CommandError::Client(error)) if error.is_unavailable() && !self.no_wait => {
                    note(&format!("{error}; connecting again"));
                }
                Err(error) => return Err(error),
            }
            // The first wait costs nothing, and keeps a server that ends every stream at once from being run down.
            loop {
                tokio::time::sleep(wait).await;
                wait = wait.saturating_mul(2).min(LONGEST_WAIT);
                match Connection::open(&target, &secret).await {
                    Ok(opened) => {
                        connection = opened;
                        break;
                    }
                    Err(error) if error.is_unavailable() => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}

/// A connection, and the calls on it.
struct Connection {
    client: Client,
    databroker: DataBroker,
}

impl Connection {
    async fn open(target: &Target, secret: &SharedSecret) -> Result<Self, ClientError> {
        let client = Client::connect(target).await?;
        let databroker = client.databroker(secret);
        Ok(Self { client, databroker })
    }

    /// Where the databroker stands.
    async fn now(&mut self) -> Result<Position, ClientError> {
        let info = self.client.answer(self.databroker.server_info(())).await?;
        Ok(Position {
            server_version: info.server_version,
            version: info.latest_record_version,
        })
    }
}

/// How far the changes were shown.
#[derive(Clone, Copy, Debug)]
struct Position {
    server_version: u64,
    version: u64,
}

/// What is watched, and how it is shown.
struct Watch<'a> {
    /// Empty for all types.
    record_type: String,
    wait: bool,
    shown: Shown<'a>,
}

impl Watch<'_> {
    /// Shows changes until the stream ends.
    async fn follow(
        &self,
        connection: &mut Connection,
        position: &mut Position,
        output: &mut Output,
    ) -> Result<(), CommandError> {
        let request = SyncRequest {
            server_version: position.server_version,
            record_version: position.version,
            r#type: self.record_type.clone(),
            wait: Some(self.wait),
        };
        let Connection { client, databroker } = connection;
        // A stream without changes may be silent from the beginning, headers included.
        let opened = databroker.sync(request).await;
        let mut stream = opened.map_err(|status| client.failed(&status))?.into_inner();
        while let Some(message) = stream.message().await.map_err(|status| client.failed(&status))? {
            match message.response {
                Some(Change::Record(record)) => {
                    self.record(output, &record)?;
                    position.version = record.version;
                }
                Some(Change::Options(options)) => self.options(output, &options)?,
                None => {}
            }
        }
        Ok(())
    }

    fn record(&self, output: &mut Output, record: &Record) -> std::io::Result<()> {
        let event = if record.deleted_at.is_some() { "delete" } else { "put" };
        if output.is_json() {
            return output.item(&json!({"event": event, "record": self.shown.types.json(record)}));
        }
        let at = record.deleted_at.as_ref().or(record.modified_at.as_ref());
        output.line(&format!(
            "{} {} {event} {} {} {}",
            at.map(time).unwrap_or_default(),
            record.version,
            record.r#type,
            record.id,
            self.shown.brief(record)
        ))
    }

    fn options(&self, output: &mut Output, options: &TypedOptions) -> std::io::Result<()> {
        let value = options.options.clone().unwrap_or_default();
        if output.is_json() {
            let options = super::options::json(&options.type_url, &value);
            return output.item(&json!({"event": "options", "options": options}));
        }
        output.line(&format!("options {} {}", options.type_url, options_text(&value)))
    }

    fn restarted(&self, output: &mut Output, error: &ClientError, position: Position) -> std::io::Result<()> {
        let Position {
            server_version,
            version,
        } = position;
        note(&format!(
            "{error}: the changes to go on with are gone. Going on from version {version} under server version \
             {server_version}; read the records with `record list` for what changed in between"
        ));
        if output.is_json() {
            output.item(&json!({
                "event": "restarted",
                "serverVersion": server_version.to_string(),
                "recordVersion": version.to_string(),
            }))?;
        }
        Ok(())
    }
}
