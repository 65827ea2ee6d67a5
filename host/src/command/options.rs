//! `options`: how the records of a type are kept.

use std::time::Duration;

use clap::{Args, Subcommand};
use databroker_proto::databroker::{GetOptionsRequest, Options, SetOptionsRequest};
use serde_json::{Value, json};

use super::connection::{SecretFlags, duration};
use super::output::{Output, OutputFlags};
use super::shown::{TypeFlags, Types};
use super::{CommandError, Environment};
use crate::grpc::convert::proto_duration;

/// What to do with options.
#[derive(Subcommand, Debug)]
pub enum OptionsCommand {
    /// Show a type's options
    Get {
        /// The record type
        #[arg(value_name = "TYPE")]
        record_type: String,
        #[command(flatten)]
        flags: OptionsFlags,
    },
    /// Replace a type's options
    ///
    /// What is not given is unset, so say all that is to hold. What Pomerium needs is added again by the databroker.
    #[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["capacity", "ttl", "index", "none"])))]
    Set {
        /// The record type
        #[arg(value_name = "TYPE")]
        record_type: String,
        /// Keep this many records, those changed last
        #[arg(long, value_name = "COUNT")]
        capacity: Option<u64>,
        /// Remove records that have not been changed for so long, such as 24h
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        ttl: Option<Duration>,
        /// A field by which queries find records without reading all: its name in the .proto file, or names joined by
        /// dots. May be given several times
        #[arg(long, value_name = "FIELD")]
        index: Vec<String>,
        /// Unset all options
        #[arg(long, conflicts_with_all = ["capacity", "ttl", "index"])]
        none: bool,
        #[command(flatten)]
        flags: OptionsFlags,
    },
}

/// Flags of both.
#[derive(Args, Debug)]
pub struct OptionsFlags {
    #[command(flatten)]
    connection: SecretFlags,
    #[command(flatten)]
    types: TypeFlags,
    #[command(flatten)]
    output: OutputFlags,
}

impl OptionsCommand {
    /// Does it.
    ///
    /// # Errors
    ///
    /// Why it is not done.
    pub async fn run(self, environment: &Environment) -> Result<(), CommandError> {
        match self {
            Self::Get { record_type, flags } => {
                let record_type = Types::load(&flags.types)?.resolve(&record_type);
                let (client, mut databroker) = flags.connection.connect(environment).await?;
                let request = GetOptionsRequest {
                    r#type: record_type.clone(),
                };
                let answer = client.answer(databroker.get_options(request)).await;
                let missing = format!("there are no options for the type {record_type:?}");
                let options = super::found(answer, &missing)?.options;
                flags.show(&record_type, &options.unwrap_or_default())
            }
            Self::Set {
                record_type,
                capacity,
                ttl,
                index,
                none: _,
                flags,
            } => {
                let record_type = Types::load(&flags.types)?.resolve(&record_type);
                let (client, mut databroker) = flags.connection.connect(environment).await?;
                let request = SetOptionsRequest {
                    r#type: record_type.clone(),
                    options: Some(Options {
                        capacity,
                        indexable_fields: index,
                        ttl: ttl.map(proto_duration),
                    }),
                };
                let answer = client.answer(databroker.set_options(request)).await?;
                flags.show(&record_type, &answer.options.unwrap_or_default())
            }
        }
    }
}

impl OptionsFlags {
    fn show(&self, record_type: &str, options: &Options) -> Result<(), CommandError> {
        let mut output = Output::new(self.output);
        if output.is_json() {
            output.document(&json(record_type, options))?;
            return Ok(());
        }
        let or_none = |value: Option<String>| Value::from(value.unwrap_or_else(|| "none".to_owned()));
        output.fields(&[
            ("type", "", Value::from(record_type)),
            (
                "capacity",
                "",
                or_none(options.capacity.map(|capacity| capacity.to_string())),
            ),
            ("time to live", "", or_none(options.ttl.as_ref().map(ttl))),
            ("indexes", "", Value::from(options.indexable_fields.clone())),
        ])?;
        Ok(())
    }
}

/// Options as JSON; what is unset is left out.
pub fn json(record_type: &str, options: &Options) -> Value {
    let mut value = json!({"type": record_type, "indexableFields": options.indexable_fields});
    if let Some(object) = value.as_object_mut() {
        if let Some(capacity) = options.capacity {
            object.insert("capacity".to_owned(), Value::from(capacity.to_string()));
        }
        if let Some(duration) = &options.ttl {
            object.insert("ttl".to_owned(), Value::from(ttl(duration)));
        }
    }
    value
}

/// Options in one line.
pub fn brief(options: &Options) -> String {
    let mut parts = Vec::new();
    parts.extend(options.capacity.map(|capacity| format!("capacity {capacity}")));
    parts.extend(
        options
            .ttl
            .as_ref()
            .map(|duration| format!("time to live {}", ttl(duration))),
    );
    if !options.indexable_fields.is_empty() {
        parts.push(format!("indexes {}", options.indexable_fields.join(", ")));
    }
    if parts.is_empty() {
        return "none".to_owned();
    }
    parts.join("; ")
}

/// A time to live such as `1h 30m`; what is no duration as the number of its seconds.
fn ttl(duration: &prost_types::Duration) -> String {
    match Duration::try_from(*duration) {
        Ok(duration) => humantime::format_duration(duration).to_string(),
        Err(_) => format!("{}s", duration.seconds),
    }
}
