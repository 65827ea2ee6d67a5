//! `record`: reading and writing records.

use std::io::Read as _;
use std::path::Path;

use clap::{Args, Subcommand};
use databroker_proto::databroker::sync_latest_response::Response as Latest;
use databroker_proto::databroker::{GetRequest, PatchRequest, PutRequest, QueryRequest, Record, SyncLatestRequest};
use serde_json::{Value, json};

use super::connection::SecretFlags;
use super::output::{Output, OutputFlags, Progress, note};
use super::shown::{Shown, TypeFlags, Types};
use super::watch::WatchFlags;
use super::{CommandError, Environment};

/// The longest JSON that is read from a file or from standard input, in bytes; far more than one message can carry.
const MAX_INPUT: u64 = 16 << 20;

/// Flags of all commands on records.
#[derive(Args, Debug)]
pub struct RecordFlags {
    #[command(flatten)]
    pub connection: SecretFlags,
    #[command(flatten)]
    pub types: TypeFlags,
    #[command(flatten)]
    pub output: OutputFlags,
    /// Show people the secrets in records too, such as the tokens in sessions. JSON has them always, so that it can be
    /// put again
    #[arg(long)]
    pub show_secrets: bool,
}

/// What to do with records.
#[derive(Subcommand, Debug)]
pub enum RecordCommand {
    /// Show one record
    Get {
        /// The record's type
        #[arg(value_name = "TYPE")]
        record_type: String,
        /// The record's id
        id: String,
        #[command(flatten)]
        flags: RecordFlags,
    },
    /// List all records, or those of one type
    ///
    /// They come as one consistent stream, in no particular order, however many there are.
    List {
        /// Only records of this type
        #[arg(value_name = "TYPE")]
        record_type: Option<String>,
        #[command(flatten)]
        flags: RecordFlags,
    },
    /// Find records by filter and text
    Query {
        /// The records' type; "" for all types
        #[arg(value_name = "TYPE")]
        record_type: String,
        /// Only records that match this filter, in the databroker's filter language, such as '{"user_id": "u1"}'
        #[arg(long, value_name = "JSON")]
        filter: Option<String>,
        /// Only records with this text in any of their strings, whatever its case
        #[arg(long, value_name = "TEXT")]
        text: Option<String>,
        /// Show so many records at most. An answer of more than 4 MiB is refused, which large records may need less for
        #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(i64).range(0..))]
        limit: i64,
        /// Pass over so many records first
        #[arg(long, value_name = "COUNT", default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..))]
        offset: i64,
        #[command(flatten)]
        flags: RecordFlags,
    },
    /// Write a record, whether or not it exists
    Put {
        /// The record's type
        #[arg(value_name = "TYPE")]
        record_type: String,
        /// The record's id
        id: String,
        /// The record's data: JSON, @FILE to read it from a file, or - from standard input
        #[arg(value_name = "JSON")]
        data: String,
        #[command(flatten)]
        flags: RecordFlags,
    },
    /// Change some fields of a record
    Patch {
        /// The record's type
        #[arg(value_name = "TYPE")]
        record_type: String,
        /// The record's id
        id: String,
        /// Data with the new values: JSON, @FILE to read it from a file, or - from standard input
        #[arg(value_name = "JSON")]
        data: String,
        /// The fields to change, joined by commas, with their names in the .proto files, such as name,claims. A field
        /// that the data lacks is emptied
        #[arg(long, value_name = "FIELDS", required = true, value_delimiter = ',')]
        mask: Vec<String>,
        #[command(flatten)]
        flags: RecordFlags,
    },
    /// Delete a record
    Delete {
        /// The record's type
        #[arg(value_name = "TYPE")]
        record_type: String,
        /// The record's id
        id: String,
        #[command(flatten)]
        flags: RecordFlags,
    },
    /// Show changes as they happen
    ///
    /// It goes on until it is interrupted: where the databroker goes away it connects again and misses nothing. Where
    /// the changes since are gone, because the databroker was cleared or for too long away, it says so and goes on from
    /// now.
    Watch(WatchFlags),
}

impl RecordCommand {
    /// Does it.
    ///
    /// # Errors
    ///
    /// Why it is not done.
    pub async fn run(self, environment: &Environment) -> Result<(), CommandError> {
        match self {
            Self::Get { record_type, id, flags } => get(&flags, environment, record_type, id).await,
            Self::List { record_type, flags } => list(&flags, environment, record_type.as_deref()).await,
            Self::Query {
                record_type,
                filter,
                text,
                limit,
                offset,
                flags,
            } => {
                let types = Types::load(&flags.types)?;
                let request = QueryRequest {
                    r#type: types.resolve(&record_type),
                    query: text.unwrap_or_default(),
                    offset,
                    limit,
                    filter: filter.map(|filter| types.filter(&filter)).transpose()?,
                    minimum_record_version_hint: None,
                };
                query(&flags, environment, &types, request).await
            }
            Self::Put {
                record_type,
                id,
                data,
                flags,
            } => put(&flags, environment, &record_type, id, &data).await,
            Self::Patch {
                record_type,
                id,
                data,
                mask,
                flags,
            } => patch(&flags, environment, &record_type, id, &data, mask).await,
            Self::Delete { record_type, id, flags } => delete(&flags, environment, &record_type, id).await,
            Self::Watch(flags) => flags.run(environment).await,
        }
    }
}

async fn get(
    flags: &RecordFlags,
    environment: &Environment,
    record_type: String,
    id: String,
) -> Result<(), CommandError> {
    let types = Types::load(&flags.types)?;
    let (client, mut databroker) = flags.connection.connect(environment).await?;
    let request = GetRequest {
        r#type: types.resolve(&record_type),
        id,
    };
    let missing = missing(&request.r#type, &request.id);
    let answer = client.answer(databroker.get(request)).await;
    let record = super::found(answer, &missing)?
        .record
        .ok_or(CommandError::Missing(missing))?;
    Ok(flags.shown(&types).record(&mut Output::new(flags.output), &record)?)
}

async fn list(flags: &RecordFlags, environment: &Environment, record_type: Option<&str>) -> Result<(), CommandError> {
    let types = Types::load(&flags.types)?;
    let shown = flags.shown(&types);
    let (client, mut databroker) = flags.connection.connect(environment).await?;
    let request = SyncLatestRequest {
        r#type: record_type.map(|name| types.resolve(name)).unwrap_or_default(),
    };
    let mut stream = client.answer(databroker.sync_latest(request)).await?;
    let mut output = Output::new(flags.output);
    let is_json = output.is_json();
    let progress = Progress::start("records");
    let mut count = 0_u64;
    let mut versions = None;
    let mut table = output.table(Shown::HEADING);
    while let Some(message) = stream.message().await.map_err(|status| client.failed(&status))? {
        match message.response {
            Some(Latest::Record(record)) => {
                count = count.saturating_add(1);
                progress.one_more();
                table.add(|| shown.row(&record), || types.json(&record))?;
            }
            Some(Latest::Versions(found)) => versions = Some(found),
            Some(Latest::Options(_)) | None => {}
        }
    }
    drop(progress);
    table.finish()?;
    let Some(versions) = versions else {
        return Err(CommandError::Failed(anyhow::anyhow!(
            "the list broke off after {count} records: run the command again"
        )));
    };
    if !is_json {
        note(&format!(
            "{count} records, as of version {} under server version {}",
            versions.latest_record_version, versions.server_version
        ));
    }
    Ok(())
}

async fn query(
    flags: &RecordFlags,
    environment: &Environment,
    types: &Types,
    request: QueryRequest,
) -> Result<(), CommandError> {
    let (client, mut databroker) = flags.connection.connect(environment).await?;
    let answer = client.answer(databroker.query(request)).await?;
    let mut output = Output::new(flags.output);
    if output.is_json() {
        let records: Vec<Value> = answer.records.iter().map(|record| types.json(record)).collect();
        output.document(&json!({
            "records": records,
            "totalCount": answer.total_count.to_string(),
            "serverVersion": answer.server_version.to_string(),
            "recordVersion": answer.record_version.to_string(),
        }))?;
        return Ok(());
    }
    let shown = flags.shown(types);
    let mut table = output.table(Shown::HEADING);
    for record in &answer.records {
        table.push(shown.row(record))?;
    }
    table.finish()?;
    note(&format!("{} of {} records", answer.records.len(), answer.total_count));
    Ok(())
}

async fn put(
    flags: &RecordFlags,
    environment: &Environment,
    record_type: &str,
    id: String,
    data: &str,
) -> Result<(), CommandError> {
    let types = Types::load(&flags.types)?;
    let record = record(&types, record_type, id, data)?;
    let (client, mut databroker) = flags.connection.connect(environment).await?;
    let request = PutRequest { records: vec![record] };
    let answer = client.answer(databroker.put(request)).await?;
    flags.show_written(&types, answer.records)
}

async fn patch(
    flags: &RecordFlags,
    environment: &Environment,
    record_type: &str,
    id: String,
    data: &str,
    mask: Vec<String>,
) -> Result<(), CommandError> {
    let types = Types::load(&flags.types)?;
    let record = record(&types, record_type, id, data)?;
    let missing = missing(&record.r#type, &record.id);
    let (client, mut databroker) = flags.connection.connect(environment).await?;
    let request = PatchRequest {
        records: vec![record],
        field_mask: Some(prost_types::FieldMask { paths: mask }),
    };
    let answer = client.answer(databroker.patch(request)).await?;
    if answer.records.is_empty() {
        return Err(CommandError::Missing(missing));
    }
    flags.show_written(&types, answer.records)
}

async fn delete(
    flags: &RecordFlags,
    environment: &Environment,
    record_type: &str,
    id: String,
) -> Result<(), CommandError> {
    let types = Types::load(&flags.types)?;
    let record = Record {
        r#type: types.resolve(record_type),
        id,
        // Any time says: delete.
        deleted_at: Some(prost_types::Timestamp::default()),
        ..Record::default()
    };
    let missing = missing(&record.r#type, &record.id);
    let (client, mut databroker) = flags.connection.connect(environment).await?;
    let request = PutRequest { records: vec![record] };
    let answer = client.answer(databroker.put(request)).await?;
    // What was not there to delete has no version.
    if answer.records.iter().all(|record| record.version == 0) {
        return Err(CommandError::Missing(missing));
    }
    flags.show_written(&types, answer.records)
}

impl RecordFlags {
    /// Shows records as the flags say.
    pub fn shown<'a>(&self, types: &'a Types) -> Shown<'a> {
        Shown {
            types,
            secrets: self.show_secrets,
        }
    }

    fn show_written(&self, types: &Types, records: Vec<Record>) -> Result<(), CommandError> {
        let mut output = Output::new(self.output);
        for record in records {
            self.shown(types).record(&mut output, &record)?;
        }
        Ok(())
    }
}

fn missing(record_type: &str, id: &str) -> String {
    format!("there is no record {id:?} of type {record_type:?}")
}

fn record(types: &Types, record_type: &str, id: String, data: &str) -> Result<Record, CommandError> {
    let json = match (data, data.strip_prefix('@')) {
        ("-", _) => input(std::io::stdin().lock(), "standard input")?,
        (_, Some(path)) => {
            let path = Path::new(path);
            let name = format!("{path:?}");
            let file = std::fs::File::open(path).map_err(|error| unreadable(&name, &error))?;
            input(file, &name)?
        }
        (json, None) => json.to_owned(),
    };
    let record_type = types.resolve(record_type);
    let data = types.data(&record_type, &json)?;
    Ok(Record {
        r#type: record_type,
        id,
        data: Some(data.into()),
        ..Record::default()
    })
}

fn input(from: impl std::io::Read, name: &str) -> Result<String, CommandError> {
    let mut text = String::new();
    let length = from
        .take(MAX_INPUT.saturating_add(1))
        .read_to_string(&mut text)
        .map_err(|error| unreadable(name, &error))?;
    if u64::try_from(length).is_ok_and(|length| length > MAX_INPUT) {
        return Err(CommandError::Usage(format!(
            "{name} holds more than {MAX_INPUT} bytes, and a record must fit into a message of 4 MiB"
        )));
    }
    Ok(text)
}

fn unreadable(name: &str, error: &std::io::Error) -> CommandError {
    CommandError::Usage(format!("cannot read the record's JSON from {name}: {error}"))
}
