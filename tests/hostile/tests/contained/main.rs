//! Whatever a plugin does ends in one named error, one line of the log and one metric; other calls go on with their answers
//! right, and open streams go on or end as they should.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod database;
mod honest;
mod rows;
mod stand;

use std::path::Path;
use std::time::{Duration, Instant};

use databroker_host::component::OpenError;
use databroker_hostile::binaries::Binary;
use databroker_hostile::misbehaviour::Misbehaviour;
use databroker_proto::databroker::{
    AcquireLeaseRequest, GetRequest, PutRequest, QueryRequest, Record, SyncRequest, SyncResponse,
};
use futures::future::join_all;
use tokio::time::timeout;
use tonic::Status;

use database::Database;
use honest::{Honest, Seen};
use rows::{Provocation, Row};
use stand::{Client, Log, PATIENCE, Site, Stand};

/// What provokes the guest.
const HOSTILE: &str = "hostile";

/// How long is measured without a provocation, and at least with one.
const MEASURED: Duration = Duration::from_millis(300);

/// No honest read takes longer in an instance that is provoked. Machines that run tests are busy, so that this is far more
/// than what is printed.
const LATE: Duration = Duration::from_secs(10);

/// Of reads of another instance than the one that is provoked 99 of 100 take no longer than this, or than [`FACTOR`] times what
/// they took before.
const ELSEWHERE: Duration = Duration::from_secs(1);
const FACTOR: u32 = 20;

/// A record to put, which holds a text.
fn record(record_type: &str, id: &str, text: &str) -> Record {
    const TEXT: &[u8] = b"\x0a\x2ftype.googleapis.com/google.protobuf.StringValue\x12";
    let length = u8::try_from(text.len()).unwrap();
    // The value is a message with the text in its first field.
    let data = [TEXT, &[length + 2, 0x0a, length], text.as_bytes()].concat();
    Record {
        r#type: record_type.to_owned(),
        id: id.to_owned(),
        data: Some(data.into()),
        ..Default::default()
    }
}

// One after the other: they share the log, and measure how long things take.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_that_a_plugin_does_harms_anybody_else() {
    let log = Log::record();
    let site = Site::new().unwrap();
    let wanted = std::env::var("HOSTILE").unwrap_or_default();
    let mut failures = Vec::new();

    let guest = guest_build::build("tests/hostile/guest", "hostile-guest");
    let database = Database::new();
    // Others that have another instance, which nobody provokes: what happens to one that does not even start.
    let opened = stand::open(&guest, Misbehaviour::Trap.name(), None, stand::limits(), &site).await;
    let others = Stand::start(opened.unwrap()).await;
    let mut honest = Honest::start(others.client()).await;

    println!(
        "{:<26} {:>5} {:>9} {:>5} {:>9} {:>9} {:>7}",
        "misbehaviour", "calls", "p99", "calls", "p99", "longest", "factor"
    );
    for misbehaviour in Misbehaviour::ALL {
        if !misbehaviour.name().contains(&wanted) {
            continue;
        }
        log.take();
        site.take_reports();
        let outcome = match rows::row(*misbehaviour) {
            row if row.provocation == Provocation::Open => {
                let name = misbehaviour.name();
                let opening = stand::open(&guest, name, None, row.limits, &site);
                beside(&mut honest, name, refuse_to_open(&row, opening, &log)).await
            }
            row => {
                let containing = contain(*misbehaviour, &row, &guest, &site, &database, &log);
                beside(&mut honest, "  elsewhere", containing).await
            }
        };
        let logged = log.take();
        if let Err(why) = outcome {
            println!("{:<26} {why}", misbehaviour.name());
            failures.push(format!("{}: {why}\n{}", misbehaviour.name(), shown(&logged)));
        }
    }
    for binary in Binary::ALL {
        let name = format!("{binary:?}");
        if !name.contains(&wanted) {
            continue;
        }
        log.take();
        if let Err(why) = beside(&mut honest, &name, refuse(*binary, &site, &log)).await {
            println!("{name:<26} {why}");
            failures.push(format!("{name}: {why}"));
        }
    }
    others.stop().await.unwrap();
    assert!(
        site.is_untouched(),
        "a plugin has connected to what it was not granted, or changed it"
    );
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// The end of what was logged, where that is long.
fn shown(logged: &str) -> String {
    let characters = logged.chars().count();
    logged.chars().skip(characters.saturating_sub(3000)).collect()
}

/// Does something while others read from another instance, whose answers must be right and quick all the while, and whose
/// stream must go on.
async fn beside(
    honest: &mut Honest,
    name: &str,
    doing: impl Future<Output = Result<(), String>>,
) -> Result<(), String> {
    let quiet = quiet(honest).await?;
    let reading = honest.read();
    let outcome = doing.await;
    let beside = reading.stop().await;
    print(name, &quiet, &beside);
    outcome?;
    unharmed(&beside)?;
    let bound = ELSEWHERE.max(quiet.p99() * FACTOR);
    expect(beside.p99() < bound, || {
        format!(
            "reads of another instance took {:?} and {:?} before",
            beside.p99(),
            quiet.p99()
        )
    })?;
    honest.write().await
}

/// What others see before anything happens.
async fn quiet(honest: &Honest) -> Result<Seen, String> {
    let reading = honest.read();
    tokio::time::sleep(MEASURED).await;
    let quiet = reading.stop().await;
    expect(quiet.wrong.is_empty() && quiet.missing == 0, || {
        format!("before anything happened: {} missing, {:?}", quiet.missing, quiet.wrong)
    })?;
    Ok(quiet)
}

/// What others saw before and meanwhile. It is for people: machines that run tests are busy.
fn print(name: &str, quiet: &Seen, beside: &Seen) {
    println!(
        "{name:<26} {:>5} {:>9.1?} {:>5} {:>9.1?} {:>9.1?} {:>7.1}",
        quiet.count(),
        quiet.p99(),
        beside.count(),
        beside.p99(),
        beside.longest(),
        beside.p99().as_secs_f64() / quiet.p99().as_secs_f64(),
    );
}

/// Others had all their answers, right and in time.
fn unharmed(seen: &Seen) -> Result<(), String> {
    expect(seen.wrong.is_empty(), || {
        format!("others were told what is not so: {:?}", seen.wrong)
    })?;
    expect(seen.missing == 0, || format!("{} reads of others failed", seen.missing))?;
    expect(seen.longest() < LATE, || {
        format!("others waited for {:?}", seen.longest())
    })
}

/// Holds one that does not open its store to its row.
async fn refuse_to_open<T>(
    row: &Row,
    opening: impl Future<Output = Result<T, OpenError>>,
    log: &Log,
) -> Result<(), String> {
    let error = opening.await.err().ok_or("the store was opened")?.to_string();
    expect(error.contains(row.says), || format!("the error is {error:?}"))?;
    one_line(row, &log.take())
}

/// Holds one misbehaviour to its row.
async fn contain(
    misbehaviour: Misbehaviour,
    row: &Row,
    guest: &Path,
    site: &Site,
    database: &Database,
    log: &Log,
) -> Result<(), String> {
    let connection_string = row.database.then(|| database.connection_string());
    let opened = stand::open(guest, misbehaviour.name(), connection_string, row.limits, site).await;
    let stand = Stand::start(opened.map_err(|error| error.to_string())?).await;
    provoke_among_others(misbehaviour, row, &stand, log).await?;
    // What an instance has begun ends with it, while the next one runs.
    if row.database && row.replaced {
        database.is_left_alone().await?;
    }
    let ended = stand.stop().await;
    ended.map_err(|error| format!("it did not end in order: {error}"))?;
    if row.database {
        database.is_left_alone().await?;
    }
    one_report(row, &site.take_reports())
}

/// Looks for what was kept of an instance that has ended.
fn one_report(row: &Row, reports: &[String]) -> Result<(), String> {
    if !row.replaced {
        return expect(reports.is_empty(), || format!("{} reports of nothing", reports.len()));
    }
    let [report] = reports else {
        return Err(format!("{} reports instead of one", reports.len()));
    };
    let parts = [row.says, "calls under way:\n  get", "\nstack:\n", "\nlast lines:\n"];
    let missing = parts.iter().find(|part| !report.contains(**part));
    expect(missing.is_none(), || {
        format!("{missing:?} is not in the report {report:?}")
    })
}

async fn provoke_among_others(misbehaviour: Misbehaviour, row: &Row, stand: &Stand, log: &Log) -> Result<(), String> {
    let mut honest = Honest::start(stand.client()).await;
    let quiet = quiet(&honest).await?;
    let (before, restarts) = (stand.metric(row.metric), stand.metric("plugin_restarts_total"));
    log.take();
    let reading = honest.read();
    let began = Instant::now();
    loop {
        let told = provoke(row.provocation, stand, honest.server_version).await?;
        check_told(row, &told)?;
        // What goes on is provoked again and again, so that there is something to measure.
        if row.replaced || began.elapsed() >= MEASURED {
            break;
        }
    }
    let beside = reading.stop().await;
    print(misbehaviour.name(), &quiet, &beside);
    expect(beside.longest() < LATE, || {
        format!("others waited for {:?}", beside.longest())
    })?;
    if row.replaced {
        expect(beside.wrong.is_empty(), || {
            format!("others were told what is not so: {:?}", beside.wrong)
        })?;
        honest.start_over().await?;
        let now = stand.metric("plugin_restarts_total");
        expect(now == restarts + 1.0, || {
            format!("{now} restarts instead of one more than {restarts}")
        })?;
    } else {
        unharmed(&beside)?;
        let now = stand.metric("plugin_restarts_total");
        expect(now == restarts, || "the plugin was replaced".to_owned())?;
    }
    // The stream that was opened before, or the one since, shows what is written now.
    honest.write().await?;
    let after = stand.metric(row.metric);
    expect(after > before, || format!("{} is {after} and was {before}", row.metric))?;
    let logged = log.take();
    // What was too busy to answer when it was last asked is down until it is asked again.
    let up = async {
        while stand.metric("plugin_up") != 1.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    expect(tokio::time::timeout(PATIENCE, up).await.is_ok(), || {
        "the plugin is told to be down".to_owned()
    })?;
    one_line(row, &logged)
}

/// What a caller is told who provokes the plugin; each of them, where there are several.
async fn provoke(
    provocation: Provocation,
    stand: &Stand,
    server_version: u64,
) -> Result<Vec<Result<(), Status>>, String> {
    let mut client = stand.client();
    let call = async {
        match provocation {
            Provocation::Open => Vec::new(),
            Provocation::Get => vec![get(client, "a").await],
            Provocation::Gets => loop {
                let told = get(client.clone(), "a").await;
                if told.is_err() {
                    break vec![told];
                }
            },
            Provocation::GetAmongOthers => {
                let others = join_all((0..20).map(|_| get(client.clone(), "slow")));
                let trap = async {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    get(client.clone(), "a").await
                };
                let (mut told, trapped) = tokio::join!(others, trap);
                told.push(trapped);
                told
            }
            Provocation::Put => {
                let records = vec![record(HOSTILE, "b", "new")];
                vec![client.put(PutRequest { records }).await.map(drop)]
            }
            Provocation::Query => {
                let request = QueryRequest {
                    r#type: HOSTILE.to_owned(),
                    limit: 10,
                    ..Default::default()
                };
                vec![client.query(request).await.map(drop)]
            }
            Provocation::Sync => vec![sync(client, server_version).await],
            Provocation::Lease => {
                let request = AcquireLeaseRequest {
                    name: HOSTILE.to_owned(),
                    duration: Some(prost_types::Duration { seconds: 10, nanos: 0 }),
                };
                vec![client.acquire_lease(request).await.map(drop)]
            }
            Provocation::ListTypes => vec![client.list_types(()).await.map(drop)],
        }
    };
    timeout(PATIENCE, call)
        .await
        .map_err(|_| "the caller waits for ever".to_owned())
}

async fn get(mut client: Client, id: &str) -> Result<(), Status> {
    let request = GetRequest {
        r#type: HOSTILE.to_owned(),
        id: id.to_owned(),
    };
    client.get(request).await.map(drop)
}

/// Follows the hostile type from its first change on.
async fn sync(mut client: Client, server_version: u64) -> Result<(), Status> {
    let request = SyncRequest {
        server_version,
        record_version: 1,
        r#type: HOSTILE.to_owned(),
        wait: Some(false),
    };
    let mut stream = client.sync(request).await?.into_inner();
    while let Some(SyncResponse { .. }) = stream.message().await? {}
    Ok(())
}

/// Holds what the callers were told to the row.
fn check_told(row: &Row, told: &[Result<(), Status>]) -> Result<(), String> {
    for told in told {
        match (told, row.code) {
            (Ok(()), None) => {}
            (Err(status), Some(code)) => {
                expect(status.code() == code && status.message().contains(row.says), || {
                    format!("the caller is told {:?}: {}", status.code(), status.message())
                })?;
                // A client's log is not the plugin's to write.
                let is_plain = status.message().len() < 8192 && !status.message().contains(['\x1b', '\n', '\r']);
                expect(is_plain, || {
                    format!("the caller is told {} bytes", status.message().len())
                })?;
            }
            (told, code) => return Err(format!("the caller is told {told:?} instead of {code:?}")),
        }
    }
    Ok(())
}

/// Looks for the row's line in what was logged, of which there is no more than anybody can read.
fn one_line(row: &Row, logged: &str) -> Result<(), String> {
    let is_it = |line: &&str| row.log.iter().all(|words| line.contains(words));
    let lines = logged.lines().filter(is_it).count();
    expect(lines > 0, || format!("no line of the log has {:?}", row.log))?;
    expect(!row.replaced || lines == 1, || {
        format!("{lines} lines of the log have {:?}", row.log)
    })?;
    expect(!logged.contains('\x1b'), || {
        "the log has what moves a terminal's cursor".to_owned()
    })?;
    expect(logged.len() < 4 << 20, || format!("{} bytes were logged", logged.len()))
}

/// Hands a file to the host that is no good plugin.
async fn refuse(binary: Binary, site: &Site, log: &Log) -> Result<(), String> {
    let (words, is_run) = rows::refusal(binary);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugin.wasm");
    std::fs::write(&path, binary.bytes()).unwrap();
    let opened = timeout(PATIENCE, stand::open(&path, "", None, rows::limits_of_files(), site));
    let error = match opened.await {
        Ok(Ok(_)) => return Err("the store was opened".to_owned()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => return Err("it is not refused".to_owned()),
    };
    for word in words {
        expect(error.contains(word), || format!("{word:?} is not in {error:?}"))?;
    }
    let lines = log
        .take()
        .lines()
        .filter(|line| line.contains("the plugin's instance has stopped"))
        .count();
    expect(lines == usize::from(is_run), || {
        format!("{lines} lines of the log say that it stopped")
    })
}

fn expect(is_so: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(otherwise()) }
}
