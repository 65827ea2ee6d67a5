//! `health`: is it well? For the probes of containers, which know nothing but an exit code.
//!
//! It needs no secret, and ends soon whatever happens.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;

use super::connection::{ConfigFlag, ConnectionFlags, duration};
use super::output::{Output, OutputFlags};
use super::{CommandError, Environment};
use crate::grpc::client::Client;

/// The most that is read of an answer by HTTP, in bytes.
const MAX_BODY: usize = 64 << 10;

/// Flags of `health`.
#[derive(Args, Debug)]
pub struct HealthFlags {
    /// The service to ask for, such as databroker.DataBrokerService; without it, the databroker as a whole
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    service: String,
    /// Ask this http:// address instead, such as http://127.0.0.1:28080/readyz; any answer of 200 is well
    #[arg(long, value_name = "URL", conflicts_with_all = ["service", "address"])]
    http: Option<String>,
    /// How long all of it may take
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    connection: ConnectionFlags,
    #[command(flatten)]
    config: ConfigFlag,
    #[command(flatten)]
    output: OutputFlags,
}

impl HealthFlags {
    /// Asks, and prints the answer.
    ///
    /// # Errors
    ///
    /// It is not well, or does not answer.
    pub async fn run(self, environment: &Environment) -> Result<(), CommandError> {
        let asked = async {
            match &self.http {
                Some(url) => by_http(url).await,
                None => self.by_grpc(environment).await,
            }
        };
        let (status, well) = tokio::time::timeout(self.timeout, asked).await.unwrap_or_else(|_| {
            let limit = humantime::format_duration(self.timeout);
            Err(CommandError::Failed(anyhow::anyhow!(
                "no answer within {limit}: it hangs, or needs more --timeout"
            )))
        })?;
        let mut output = Output::new(self.output);
        if output.is_json() {
            output.fields(&[("", "status", Value::from(status.as_str()))])?;
        } else {
            output.text(status.trim_end())?;
        }
        if well {
            return Ok(());
        }
        Err(CommandError::Failed(anyhow::anyhow!("it is not well")))
    }

    async fn by_grpc(&self, environment: &Environment) -> Result<(String, bool), CommandError> {
        let target = self.connection.target(environment, &self.config, self.timeout)?;
        let client = Client::connect(&target).await?;
        let request = HealthCheckRequest {
            service: self.service.clone(),
        };
        let answer = match client.answer(client.health().check(request)).await {
            Err(error) if error.code() == Some(Code::NotFound) => {
                return Err(CommandError::Failed(anyhow::anyhow!(
                    "{} has no service {:?}: check --service",
                    target.address(),
                    self.service
                )));
            }
            answer => answer?,
        };
        let status = ServingStatus::try_from(answer.status).unwrap_or(ServingStatus::Unknown);
        Ok((status.as_str_name().to_owned(), status == ServingStatus::Serving))
    }
}

/// The body of an answer by HTTP, and whether it was 200.
async fn by_http(url: &str) -> Result<(String, bool), CommandError> {
    let usage = || {
        CommandError::Usage(format!(
            "--http: {url:?} is not an address: write http://HOST:PORT/PATH"
        ))
    };
    let uri: http::Uri = url.parse().map_err(|_| usage())?;
    let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(usage());
    };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let answer = get(&uri, host, authority.port_u16().unwrap_or(80)).await;
    Ok(answer.with_context(|| format!("cannot ask {url}"))?)
}

async fn get(uri: &http::Uri, host: &str, port: u16) -> anyhow::Result<(String, bool)> {
    let stream = TcpStream::connect((host, port)).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = http::Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(
            http::header::HOST,
            uri.authority().map_or("", |authority| authority.as_str()),
        )
        .header(http::header::CONNECTION, "close")
        .body(Empty::<bytes::Bytes>::new())?;
    let answer = async move {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let Ok(body) = Limited::new(answer.into_body(), MAX_BODY).collect().await else {
            bail!("it answers {status} with more than {MAX_BODY} bytes, or breaks off: is this its health address?");
        };
        let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        let text = if body.trim().is_empty() {
            status.to_string()
        } else {
            body
        };
        Ok((text, status == http::StatusCode::OK))
    };
    // The connection must be driven for the answer to come; how it ends does not matter then.
    let (answer, _) = tokio::join!(answer, connection);
    answer
}
