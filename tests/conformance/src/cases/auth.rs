//! Who is let in: a token is a JWT that is signed with the shared secret by HS256 and claims `exp` and nothing else.

use anyhow::{Context, ensure};
use databroker_proto::databroker::checkpoint_service_client::CheckpointServiceClient;
use databroker_proto::databroker::data_broker_service_client::DataBrokerServiceClient;
use databroker_proto::databroker::{
    AcquireLeaseRequest, GetCheckpointRequest, GetOptionsRequest, GetRequest, PatchRequest, PutRequest, QueryRequest,
    ReleaseLeaseRequest, RenewLeaseRequest, ServerInfoResponse, SetCheckpointRequest, SetOptionsRequest,
    SyncLatestRequest, SyncRequest,
};
use databroker_proto::registry::registry_client::RegistryClient;
use databroker_proto::registry::{ListRequest, RegisterRequest};
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::broker::{Broker, refused_with};
use crate::case::{Case, CheckResult, case};
use crate::stream::Event;
use crate::token;

pub(super) const CASES: &[Case] = &[
    case!(
        "auth.no_token",
        "auth.required",
        "Every method of the data broker, checkpoint and registry services, streams and ServerInfo included, refuses a call without a token: UNAUTHENTICATED `unauthenticated`.",
        no_token
    ),
    case!(
        "auth.wrong_key",
        "auth.signature",
        "Every method refuses a token that was signed with another key: UNAUTHENTICATED `invalid JWT`.",
        wrong_key
    ),
    case!(
        "auth.valid",
        "auth.required",
        "A token with the right signature and only `exp` is let in.",
        valid
    ),
    case!(
        "auth.expired",
        "auth.expiry",
        "A token whose `exp` is past, even by two seconds, is refused.",
        expired
    ),
    case!(
        "auth.far_expiry",
        "auth.expiry",
        "There is no longest lifetime: an `exp` in a hundred years is let in.",
        far_expiry
    ),
    case!(
        "auth.extra_claim",
        "auth.claims",
        "A token with any claim beside `exp` (iat, nbf, iss, aud, sub) is refused.",
        extra_claim
    ),
    case!(
        "auth.no_claims",
        "auth.claims",
        "A token without `exp` is refused.",
        no_claims
    ),
    case!(
        "auth.malformed_expiry",
        "auth.claims",
        "An `exp` that is a text, null, a flag, a list or an object is refused.",
        malformed_expiry
    ),
    case!(
        "auth.other_algorithms",
        "auth.algorithm",
        "A token signed with the right key by HS384 or HS512, or not signed at all, is refused.",
        other_algorithms
    ),
    case!(
        "auth.malformed_token",
        "auth.signature",
        "What is no JWT (empty, one or two parts, no base64, a tampered claim, a cut signature) is refused.",
        malformed_token
    ),
    case!(
        "auth.first_token_counts",
        "auth.required",
        "Of several `jwt` values only the first is looked at.",
        first_token_counts
    ),
    case!(
        "auth.authorization_header_ignored",
        "auth.required",
        "A token in the Authorization header does not count.",
        authorization_header_ignored
    ),
    case!(
        "auth.stream_outlives_token",
        "auth.call_start",
        "A token is checked once, at the start: a stream goes on when its token has expired.",
        stream_outlives_token
    ),
];

async fn no_token(broker: Broker) -> CheckResult {
    for (method, result) in every_method(&broker, None).await {
        refused_with(result, Code::Unauthenticated, "unauthenticated").context(method)?;
    }
    Ok(())
}

async fn wrong_key(broker: Broker) -> CheckResult {
    let token = token::valid(&[7; 32])?;
    for (method, result) in every_method(&broker, Some(&token)).await {
        refused_with(result, Code::Unauthenticated, "invalid JWT").context(method)?;
    }
    Ok(())
}

async fn valid(broker: Broker) -> CheckResult {
    let token = token::valid(broker.secret())?;
    with_token(&broker, &token).await?;
    Ok(())
}

async fn expired(broker: Broker) -> CheckResult {
    for age in [2, 3600, 1_000_000_000] {
        claims_refused(&broker, &json!({ "exp": token::now() - age })).await?;
    }
    claims_refused(&broker, &json!({ "exp": 0 })).await?;
    claims_refused(&broker, &json!({ "exp": -1 })).await
}

async fn far_expiry(broker: Broker) -> CheckResult {
    let claims = json!({ "exp": token::now() + 100 * 365 * 86_400 });
    let token = token::signed(broker.secret(), Algorithm::HS256, &claims)?;
    with_token(&broker, &token).await?;
    Ok(())
}

async fn extra_claim(broker: Broker) -> CheckResult {
    let exp = token::now() + 3600;
    for claims in [
        json!({ "exp": exp, "iat": exp - 7200 }),
        json!({ "exp": exp, "nbf": exp - 7200 }),
        json!({ "exp": exp, "iss": "pomerium" }),
        json!({ "exp": exp, "aud": ["databroker"] }),
        json!({ "exp": exp, "sub": "" }),
        json!({ "exp": exp, "number": 1 }),
    ] {
        claims_refused(&broker, &claims).await?;
    }
    Ok(())
}

async fn no_claims(broker: Broker) -> CheckResult {
    claims_refused(&broker, &json!({})).await?;
    claims_refused(&broker, &json!({ "iat": token::now() })).await
}

async fn malformed_expiry(broker: Broker) -> CheckResult {
    let exp = token::now() + 3600;
    for claims in [
        json!({ "exp": exp.to_string() }),
        json!({ "exp": true }),
        json!({ "exp": [exp] }),
        json!({ "exp": { "seconds": exp } }),
        json!({ "exp": null }),
        json!([exp]),
        json!(exp),
    ] {
        claims_refused(&broker, &claims).await?;
    }
    Ok(())
}

async fn other_algorithms(broker: Broker) -> CheckResult {
    let claims = json!({ "exp": token::now() + 3600 });
    for algorithm in [Algorithm::HS384, Algorithm::HS512] {
        let token = token::signed(broker.secret(), algorithm, &claims)?;
        token_refused(&broker, &token)
            .await
            .with_context(|| format!("{algorithm:?}"))?;
    }
    token_refused(&broker, &token::unsigned(&claims)).await.context("none")
}

async fn malformed_token(broker: Broker) -> CheckResult {
    let good = token::valid(broker.secret())?;
    let parts: Vec<&str> = good.split('.').collect();
    let &[header, claims, signature] = parts.as_slice() else {
        anyhow::bail!("the suite's own token has {} parts", parts.len());
    };
    let later = token::unsigned(&json!({ "exp": token::now() + 7200 }));
    let tampered = later.split('.').nth(1).unwrap_or_default();
    let cut = signature.get(..20).unwrap_or_default();
    for token in [
        String::new(),
        "token".to_owned(),
        "..".to_owned(),
        format!("{header}.{claims}"),
        format!("{header}.{claims}."),
        format!("{header}.{claims}.{cut}"),
        format!("{header}.{tampered}.{signature}"),
        format!("{good}.{signature}"),
        format!("{header}.{claims}.!!!!"),
        "a".repeat(4000),
    ] {
        token_refused(&broker, &token)
            .await
            .with_context(|| format!("token {token:?}"))?;
    }
    Ok(())
}

async fn first_token_counts(broker: Broker) -> CheckResult {
    let good = token::valid(broker.secret())?;
    let bad = token::valid(&[7; 32])?;
    let call = async |tokens: [&str; 2]| -> anyhow::Result<Result<(), Status>> {
        let mut request = Request::new(());
        for token in tokens {
            request.metadata_mut().append("jwt", token.parse()?);
        }
        let mut client = DataBrokerServiceClient::new(broker.channel());
        Ok(client.server_info(request).await.map(drop))
    };
    call([&good, &bad]).await??;
    refused_with(call([&bad, &good]).await?, Code::Unauthenticated, "invalid JWT")
}

async fn authorization_header_ignored(broker: Broker) -> CheckResult {
    let token = token::valid(broker.secret())?;
    for value in [format!("Bearer {token}"), format!("Pomerium {token}")] {
        let mut request = Request::new(());
        request.metadata_mut().insert("authorization", value.parse()?);
        let result = DataBrokerServiceClient::new(broker.channel())
            .server_info(request)
            .await;
        refused_with(result, Code::Unauthenticated, "unauthenticated")?;
    }
    Ok(())
}

async fn stream_outlives_token(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let info = broker.server_info().await?;
    let claims = json!({ "exp": token::now() + 2 });
    let token = token::signed(broker.secret(), Algorithm::HS256, &claims)?;
    let request = SyncRequest {
        server_version: info.server_version,
        record_version: info.latest_record_version,
        r#type: record_type.clone(),
        wait: None,
    };
    let mut client = DataBrokerServiceClient::with_interceptor(broker.channel(), FixedToken(Some(token.parse()?)));
    let opening = tokio::spawn(async move { Ok(client.sync(request).await?.into_inner()) });
    let mut stream = crate::stream::Stream::new(opening, record_type.clone(), "".into());
    let put = async |id: &str| {
        broker
            .put_one(crate::records::session_record(&record_type, id, "user"))
            .await
    };
    let first = put("first").await?;
    ensure!(
        stream.record().await?.version == first.version,
        "the first change did not come"
    );
    crate::broker::eventually(std::time::Duration::from_secs(10), async || {
        token_refused(&broker, &token).await
    })
    .await
    .context("waiting for the token to expire")?;
    let second = put("second").await?;
    match stream.event().await? {
        Event::Record(record) if record.version == second.version => Ok(()),
        other => anyhow::bail!("after the token had expired, the stream gave {other:?}"),
    }
}

/// Calls ServerInfo with a token.
async fn with_token(broker: &Broker, token: &str) -> anyhow::Result<ServerInfoResponse> {
    Ok(try_token(broker, token).await??)
}

async fn try_token(broker: &Broker, token: &str) -> anyhow::Result<Result<ServerInfoResponse, Status>> {
    let token = FixedToken(Some(token.parse().context("the token is no header value")?));
    let mut client = DataBrokerServiceClient::with_interceptor(broker.channel(), token);
    Ok(client.server_info(()).await.map(Response::into_inner))
}

async fn token_refused(broker: &Broker, token: &str) -> CheckResult {
    refused_with(try_token(broker, token).await?, Code::Unauthenticated, "invalid JWT")
}

async fn claims_refused(broker: &Broker, claims: &Value) -> CheckResult {
    let token = token::signed(broker.secret(), Algorithm::HS256, claims)?;
    token_refused(broker, &token)
        .await
        .with_context(|| format!("claims {claims}"))
}

/// Puts one and the same token, or none, on every call.
#[derive(Clone)]
struct FixedToken(Option<MetadataValue<Ascii>>);

impl tonic::service::Interceptor for FixedToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("jwt", token.clone());
        }
        Ok(request)
    }
}

/// Calls every method that needs a token, all with requests that change nothing of anybody else.
async fn every_method(broker: &Broker, token: Option<&str>) -> Vec<(&'static str, Result<(), Status>)> {
    let token = FixedToken(token.and_then(|token| token.parse().ok()));
    let mut data = DataBrokerServiceClient::with_interceptor(broker.channel(), token.clone());
    let mut registry = RegistryClient::with_interceptor(broker.channel(), token.clone());
    let mut checkpoint = CheckpointServiceClient::with_interceptor(broker.channel(), token);
    let name = broker.unique();
    vec![
        (
            "AcquireLease",
            data.acquire_lease(AcquireLeaseRequest {
                name: name.clone(),
                duration: None,
            })
            .await
            .map(drop),
        ),
        (
            "RenewLease",
            data.renew_lease(RenewLeaseRequest {
                name: name.clone(),
                ..RenewLeaseRequest::default()
            })
            .await
            .map(drop),
        ),
        (
            "ReleaseLease",
            data.release_lease(ReleaseLeaseRequest {
                name: name.clone(),
                id: String::new(),
            })
            .await
            .map(drop),
        ),
        ("Clear", data.clear(()).await.map(drop)),
        (
            "Get",
            data.get(GetRequest {
                r#type: name.clone(),
                id: String::new(),
            })
            .await
            .map(drop),
        ),
        (
            "GetOptions",
            data.get_options(GetOptionsRequest { r#type: name.clone() })
                .await
                .map(drop),
        ),
        (
            "SetOptions",
            data.set_options(SetOptionsRequest {
                r#type: name.clone(),
                options: None,
            })
            .await
            .map(drop),
        ),
        ("ListTypes", data.list_types(()).await.map(drop)),
        ("Put", data.put(PutRequest::default()).await.map(drop)),
        ("Patch", data.patch(PatchRequest::default()).await.map(drop)),
        ("Query", data.query(QueryRequest::default()).await.map(drop)),
        ("ServerInfo", data.server_info(()).await.map(drop)),
        ("Sync", first(data.sync(SyncRequest::default()).await).await),
        (
            "SyncLatest",
            first(data.sync_latest(SyncLatestRequest { r#type: name.clone() }).await).await,
        ),
        (
            "GetCheckpoint",
            checkpoint.get_checkpoint(GetCheckpointRequest {}).await.map(drop),
        ),
        (
            "SetCheckpoint",
            checkpoint
                .set_checkpoint(SetCheckpointRequest::default())
                .await
                .map(drop),
        ),
        ("Report", registry.report(RegisterRequest::default()).await.map(drop)),
        ("List", registry.list(ListRequest::default()).await.map(drop)),
        ("Watch", first(registry.watch(ListRequest::default()).await).await),
    ]
}

/// How a stream begins.
async fn first<T>(stream: Result<Response<Streaming<T>>, Status>) -> Result<(), Status> {
    stream?.into_inner().message().await.map(drop)
}
