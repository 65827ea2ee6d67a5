//! Sizes at the edge, and input that no client would send.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use databroker_proto::databroker::{AcquireLeaseRequest, GetRequest, GetResponse, Options, PutResponse, Record};
use databroker_proto::registry::{ListRequest, RegisterRequest, Service, ServiceKind};
use futures::future::join_all;
use rand::Rng as _;
use rand::distr::Alphanumeric;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::broker::{Broker, refused};
use crate::case::{Case, CheckResult, case};
use crate::records::{deletion, raw_any, record, session_record};
use crate::token;

/// What gRPC servers take and Pomerium's clients receive unless told otherwise.
const MESSAGE_LIMIT: usize = 4 << 20;

pub(super) const CASES: &[Case] = &[
    case!(
        "limits.large_record",
        "limits.size",
        "A record just below 4 MiB is put, got, queried, synced and deleted.",
        large_record
    ),
    case!(
        "limits.too_large",
        "limits.size",
        "A request above 4 MiB is RESOURCE_EXHAUSTED or OUT_OF_RANGE, and the connection and the server go on.",
        too_large
    ),
    case!(
        "limits.many_records_in_one_put",
        "limits.count",
        "A Put of ten thousand records is applied as a whole.",
        many_records_in_one_put
    ),
    case!(
        "limits.long_keys",
        "limits.keys",
        "Types and ids of 2 KiB together work, of letters that do not compress.",
        long_keys
    ),
    case!(
        "limits.long_names",
        "limits.keys",
        "Names of leases and services, and types of options, work with 1 KiB of letters that do not compress; of whatever length beyond, they work or are INVALID_ARGUMENT.",
        long_names
    ),
    case!(
        "limits.garbage_request",
        "limits.bad_input",
        "A request that cannot be decoded is refused with INTERNAL or INVALID_ARGUMENT, and the server goes on.",
        garbage_request
    ),
    case!(
        "limits.unknown_fields",
        "limits.bad_input",
        "Fields of a request that the protocol does not have are ignored.",
        unknown_fields
    ),
    case!(
        "limits.unknown_method",
        "limits.unimplemented",
        "A method or service that is not there is UNIMPLEMENTED, with a message.",
        unknown_method
    ),
    case!(
        "limits.deadlines",
        "limits.deadline",
        "Calls whose deadline is over at once do not disturb the server, and a Put among them is applied as a whole or not at all.",
        deadlines
    ),
    case!(
        "limits.many_calls",
        "limits.concurrency",
        "A thousand calls at once on one connection are all answered.",
        many_calls
    ),
    case!(
        "limits.many_large_deletes",
        "limits.answer",
        "A Put that deletes 160 MiB of records is applied as a whole, or refused with RESOURCE_EXHAUSTED; the store goes on, and a few at a time they go.",
        many_large_deletes
    )
    .alone(),
];

async fn large_record(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut stream = broker.follow_from_here(&record_type).await?;
    let data = raw_any("example.com/large", vec![0x5a; MESSAGE_LIMIT - 4096]);
    let put = broker.put_one(record(&record_type, "1", data.clone())).await?;
    ensure!(put.data.as_ref() == Some(&data), "Put's answer differs");
    ensure!(broker.get(&record_type, "1").await? == put, "Get differs");
    ensure!(broker.all(&record_type).await? == [put.clone()], "Query differs");
    ensure!(
        broker.latest(&record_type).await?.records == [put.clone()],
        "SyncLatest differs"
    );
    ensure!(stream.record().await? == put, "Sync differs");
    broker.put_one(deletion(&record_type, "1")).await?;
    let tombstone = stream.record().await.context("the tombstone")?;
    ensure!(
        tombstone.deleted_at.is_some() && tombstone.data == Some(data),
        "the tombstone differs"
    );
    Ok(())
}

async fn too_large(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    for size in [MESSAGE_LIMIT, MESSAGE_LIMIT + 1, 2 * MESSAGE_LIMIT, 8 * MESSAGE_LIMIT] {
        let data = raw_any("example.com/large", vec![1; size]);
        let result = broker.put(vec![record(&record_type, "1", data)]).await;
        refused(result, &[Code::ResourceExhausted, Code::OutOfRange]).with_context(|| format!("{size} bytes"))?;
        let found = broker.find(&record_type, "1").await.context("the server after it")?;
        ensure!(found.is_none(), "the record was stored");
    }
    Ok(())
}

async fn many_records_in_one_put(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let sent: Vec<Record> = (0..10_000)
        .map(|n| {
            record(
                &record_type,
                &format!("{n:05}"),
                raw_any("example.com/small", vec![1, 2, 3]),
            )
        })
        .collect();
    let put = broker.put(sent).await?.records;
    ensure!(put.len() == 10_000, "the answer holds {} records", put.len());
    ensure!(put.is_sorted_by(|a, b| a.version < b.version), "versions do not ascend");
    let latest = broker.latest(&record_type).await?.records;
    ensure!(latest.len() == 10_000, "SyncLatest gives {} records", latest.len());
    Ok(())
}

/// So many letters, of which none can be told from those before it.
fn letters(count: usize) -> String {
    rand::rng()
        .sample_iter(Alphanumeric)
        .take(count)
        .map(char::from)
        .collect()
}

async fn long_keys(broker: Broker) -> CheckResult {
    // A store that keeps both in an index has to bound them somewhere.
    let (record_type, id) = (format!("{}{}", broker.unique(), letters(448)), letters(1600));
    let put = broker.put_one(session_record(&record_type, &id, "alice")).await?;
    ensure!(broker.get(&record_type, &id).await? == put, "Get differs");
    ensure!(
        broker.find(&record_type, &format!("{id}i")).await?.is_none(),
        "a longer id was found"
    );
    Ok(())
}

async fn long_names(broker: Broker) -> CheckResult {
    for bytes in [1024, 2048, 2049, 2700, 4096, 10_000, 100_000] {
        let unique = broker.unique();
        let name = format!("{unique}{}", letters(bytes - unique.len()));
        let options = Options {
            capacity: Some(5),
            ..Options::default()
        };
        let service = Service {
            kind: ServiceKind::Proxy.into(),
            endpoint: name.clone(),
        };
        let lease = AcquireLeaseRequest {
            name: name.clone(),
            duration: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        };
        let report = RegisterRequest {
            services: vec![service.clone()],
            ..RegisterRequest::default()
        };
        let lease = broker.data().acquire_lease(lease).await.map(drop);
        let reported = broker.registry().report(report).await.map(drop);
        let set = broker.set_options(&name, options.clone()).await.map(drop);
        for (what, result) in [("lease", &lease), ("service", &reported), ("type with options", &set)] {
            match result {
                Ok(()) => {}
                Err(status) if bytes > 1024 && status.code() == Code::InvalidArgument => {}
                Err(status) => bail!("a {what} of {bytes} bytes: {:?} ({})", status.code(), status.message()),
            }
        }
        if reported.is_ok() {
            let listed = broker.registry().list(ListRequest::default()).await?.into_inner();
            ensure!(
                listed.services.contains(&service),
                "a service of {bytes} bytes is not listed"
            );
        }
        if set.is_ok() {
            let kept = broker.options(&name).await?;
            ensure!(kept == options, "the options of a type of {bytes} bytes are {kept:?}");
            broker.set_options(&name, Options::default()).await?;
        }
    }
    Ok(())
}

/// A request whose first field holds anything, where the real one holds a record.
#[derive(Clone, PartialEq, prost::Message)]
struct Garbage {
    #[prost(bytes = "vec", tag = "1")]
    record: Vec<u8>,
}

/// A Get with fields that the protocol does not have.
#[derive(Clone, PartialEq, prost::Message)]
struct ExtendedGet {
    #[prost(string, tag = "1")]
    record_type: String,
    #[prost(string, tag = "2")]
    id: String,
    #[prost(string, tag = "99")]
    unknown: String,
    #[prost(uint64, tag = "100")]
    unknown_number: u64,
}

async fn garbage_request(broker: Broker) -> CheckResult {
    for record in [
        vec![0xff; 20],
        vec![0x12, 0x7f],
        vec![0x12, 0x02, 0xff, 0xfe],
        vec![0x0c],
    ] {
        let garbage = Garbage { record };
        let result: Result<PutResponse, Status> = call(&broker, "/databroker.DataBrokerService/Put", garbage).await?;
        refused(result, &[Code::Internal, Code::InvalidArgument])?;
        broker.server_info().await.context("the server after it")?;
    }
    Ok(())
}

async fn unknown_fields(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let put = broker.put_one(session_record(&record_type, "1", "alice")).await?;
    let request = ExtendedGet {
        record_type,
        id: "1".to_owned(),
        unknown: "from the future".to_owned(),
        unknown_number: 7,
    };
    let response: GetResponse = call(&broker, "/databroker.DataBrokerService/Get", request).await??;
    ensure!(response.record == Some(put), "Get differs");
    Ok(())
}

async fn unknown_method(broker: Broker) -> CheckResult {
    for path in [
        "/databroker.DataBrokerService/NoSuchMethod",
        "/databroker.NoSuchService/Get",
        "/no.such.Service/Method",
    ] {
        let result: Result<GetResponse, Status> = call(&broker, path, GetRequest::default()).await?;
        let status = refused(result, &[Code::Unimplemented]).with_context(|| path.to_owned())?;
        ensure!(!status.message().is_empty(), "{path} is refused without a message");
    }
    Ok(())
}

async fn deadlines(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let rounds = 20;
    for round in 0..rounds {
        let records = (0..10)
            .map(|n| session_record(&record_type, &format!("{round}-{n}"), "alice"))
            .collect();
        let mut request = Request::new(databroker_proto::databroker::PutRequest { records });
        request.set_timeout(Duration::from_micros(50 * round));
        let _ = broker.data().put(request).await;
    }
    // Whatever was under way is over once a Put with all the time in the world is answered.
    broker.put_one(session_record(&record_type, "last", "alice")).await?;
    let held = broker.all(&record_type).await?;
    for round in 0..rounds {
        let prefix = format!("{round}-");
        let count = held.iter().filter(|record| record.id.starts_with(&prefix)).count();
        ensure!(count == 0 || count == 10, "{count} of 10 records of one Put are there");
    }
    Ok(())
}

async fn many_calls(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let put = broker.put_one(session_record(&record_type, "1", "alice")).await?;
    let calls = (0..1000).map(|n| {
        let (broker, record_type) = (broker.clone(), record_type.clone());
        tokio::spawn(async move {
            if n % 10 == 0 {
                broker
                    .put_one(session_record(&record_type, &format!("w{n}"), "alice"))
                    .await?;
            }
            anyhow::Ok(broker.get(&record_type, "1").await?)
        })
    });
    for result in join_all(calls).await {
        ensure!(result?? == put, "Get differs");
    }
    Ok(())
}

async fn many_large_deletes(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let ids: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    for id in &ids {
        let data = raw_any("example.com/large", vec![0x5a; MESSAGE_LIMIT - 4096]);
        broker.put_one(record(&record_type, id, data)).await?;
    }
    let deletions = |ids: &[String]| ids.iter().map(|id| deletion(&record_type, id)).collect::<Vec<_>>();
    let result = broker.put(deletions(&ids)).await;
    let gone = result.is_ok();
    if !gone {
        refused(result, &[Code::ResourceExhausted])?;
    }
    for id in &ids {
        let found = broker.find(&record_type, id).await.context("the store after it")?;
        ensure!(found.is_none() == gone, "{id} is in another state than the answer says");
    }
    for ids in ids.chunks(4) {
        broker.put(deletions(ids)).await.context("four at a time")?;
    }
    ensure!(broker.all(&record_type).await?.is_empty(), "records are left");
    Ok(())
}

/// Calls a method by its path with a message of any type.
async fn call<Q, A>(broker: &Broker, path: &'static str, message: Q) -> anyhow::Result<Result<A, Status>>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut client = tonic::client::Grpc::new(broker.channel());
    client.ready().await.context("connecting")?;
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("jwt", token::valid(broker.secret())?.parse()?);
    let path = PathAndQuery::from_static(path);
    let result = client.unary(request, path, ProstCodec::<Q, A>::default()).await;
    Ok(result.map(tonic::Response::into_inner))
}
