//! What holds while many write, read, follow and lock at the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use databroker_proto::databroker::{Options, QueryRequest, Record, SyncRequest};
use futures::future::{join_all, try_join_all};
use tokio::task::JoinHandle;
use tonic::Code;

use crate::broker::{Broker, only};
use crate::case::{Case, CheckResult, case};
use crate::cases::leases;
use crate::records::{IdToken, OAuthToken, Session, any, decode, deletion, record, session, session_record, timestamp};
use crate::stream::Stream;

/// How many write at the same time.
const WRITERS: usize = 8;

pub(super) const CASES: &[Case] = &[
    case!(
        "laws.nothing_lost_or_repeated",
        "sync.complete",
        "With eight writers, every stream, typed or not, delivers every answered change exactly once, in order of versions, exactly as answered.",
        nothing_lost_or_repeated
    ),
    case!(
        "laws.no_late_versions",
        "versions.no_late",
        "No version becomes visible after a higher one: who reads the log bit by bit while eight write misses nothing.",
        no_late_versions
    ),
    case!(
        "laws.versions_are_unique",
        "versions.unique",
        "With eight writers over several types no version is given twice.",
        versions_are_unique
    ),
    case!(
        "laws.batches_are_seen_whole",
        "put.atomic",
        "While batches are written over each other, Query and SyncLatest never show part of one.",
        batches_are_seen_whole
    ),
    case!(
        "laws.batches_are_contiguous",
        "put.atomic",
        "On a stream, the members of a Put follow one another with nobody else's change of the type between them.",
        batches_are_contiguous
    ),
    case!(
        "laws.latest_plus_stream",
        "sync.equals_latest",
        "SyncLatest, taken at any moment while eight write and delete, plus the stream from its versions, ends at what the server holds.",
        latest_plus_stream
    ),
    case!(
        "laws.state_plus_changes",
        "sync.equals_latest",
        "The state at any version plus the changes after it is what SyncLatest gives.",
        state_plus_changes
    ),
    case!(
        "laws.query_reflects_its_version",
        "query.versions",
        "A Query's and a SyncLatest's records reflect every change up to the record version that the answer names.",
        query_reflects_its_version
    ),
    case!(
        "laws.highest_version_stays",
        "put.last_wins",
        "When eight write one key, the record that stays is that of the highest answered version.",
        highest_version_stays
    ),
    case!(
        "laws.read_own_writes",
        "read.own_writes",
        "While eight write, each finds its own answered write at once by Get, Query, index and SyncLatest.",
        read_own_writes
    ),
    case!(
        "laws.streams_join_any_time",
        "sync.complete",
        "Streams that begin in the middle of the writing, from versions just answered, miss nothing.",
        streams_join_any_time
    ),
    case!(
        "laws.patch_loses_nothing",
        "patch.no_lost_update",
        "Tasks that patch different fields of one session, nested ones among them, lose no update of each other.",
        patch_loses_nothing
    ),
    case!(
        "laws.patch_beside_put",
        "patch.no_lost_update",
        "A Patch that races with Puts of the same record builds on the state just before it.",
        patch_beside_put
    ),
    case!(
        "laws.patch_beside_delete",
        "patch.no_lost_update",
        "A Patch that races with deletes never brings a record back.",
        patch_beside_delete
    ),
    case!(
        "laws.patches_of_many_are_whole",
        "patch.atomic",
        "Patches over several records are seen whole.",
        patches_of_many_are_whole
    ),
    case!(
        "laws.leases_exclude",
        "lease.exclusive",
        "Tasks that guard a section by a lease are never in it together.",
        leases_exclude
    ),
    case!(
        "laws.capacity_under_load",
        "capacity.evicts",
        "While eight write into a type with a capacity, its followers end at exactly the records that the server holds, and that is the capacity.",
        capacity_under_load
    ),
];

async fn nothing_lost_or_repeated(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut streams = Vec::new();
    for stream_type in [record_type.as_str(), &record_type, "", ""] {
        streams.push(broker.apart().follow_from_here(stream_type).await?);
    }
    let total = WRITERS * 30 * 3;
    let readers: Vec<JoinHandle<anyhow::Result<Vec<Record>>>> = streams
        .into_iter()
        .map(|mut stream| tokio::spawn(async move { stream.records(total).await }))
        .collect();
    let mut written = write(&broker, &record_type, 30, 3).await?;
    written.sort_by_key(|record| record.version);
    for reader in readers {
        let seen = reader.await??;
        same(&written, &seen)?;
    }
    Ok(())
}

async fn no_late_versions(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let start = broker.server_info().await?;
    let done = Arc::new(AtomicBool::new(false));
    let pollers: Vec<JoinHandle<anyhow::Result<Vec<Record>>>> = (0..4)
        .map(|poller| {
            let (broker, done) = (broker.apart(), Arc::clone(&done));
            // Half of them read all types, where other writers' changes push the version on.
            let stream_type = if poller % 2 == 0 {
                record_type.clone()
            } else {
                String::new()
            };
            tokio::spawn(async move {
                let mut seen: Vec<Record> = Vec::new();
                let mut last = start.latest_record_version;
                loop {
                    let finished = done.load(Ordering::SeqCst);
                    let request = SyncRequest {
                        server_version: start.server_version,
                        record_version: last,
                        r#type: stream_type.clone(),
                        wait: Some(false),
                    };
                    let changes = broker.sync(request).rest().await?;
                    last = changes.last().map_or(last, |change| change.version);
                    seen.extend(changes);
                    if finished {
                        return Ok(seen);
                    }
                }
            })
        })
        .collect();
    let mut written = write(&broker, &record_type, 40, 2).await?;
    done.store(true, Ordering::SeqCst);
    written.sort_by_key(|record| record.version);
    for poller in pollers {
        same(&written, &poller.await??)?;
    }
    Ok(())
}

async fn versions_are_unique(broker: Broker) -> CheckResult {
    let types: Vec<String> = (0..3).map(|_| broker.unique()).collect();
    let written = try_join_all(types.iter().map(|name| write(&broker, name, 15, 4))).await?;
    let mut versions = BTreeSet::new();
    for record in written.into_iter().flatten() {
        ensure!(
            versions.insert(record.version),
            "version {} was given twice",
            record.version
        );
    }
    Ok(())
}

async fn batches_are_seen_whole(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let put = |broker: Broker, record_type: String, round: usize| async move {
        let records = (0..10)
            .map(|n| session_record(&record_type, &n.to_string(), &round.to_string()))
            .collect();
        broker.put(records).await
    };
    put(broker.clone(), record_type.clone(), 0).await?;
    let writers = spawn_until_done(4, {
        let (broker, record_type) = (broker.clone(), record_type.clone());
        move |round| put(broker.clone(), record_type.clone(), round)
    });
    let mut round = 0;
    // The writers may have to wait for those of other cases: without their writing there is nothing to see.
    while round < 60 || writers.rounds() < 60 {
        round += 1;
        let records = if round % 2 == 0 {
            broker.all(&record_type).await?
        } else {
            broker.latest(&record_type).await?.records
        };
        let mut users = BTreeSet::new();
        for record in &records {
            users.insert(decode::<Session>(record)?.user_id);
        }
        ensure!(records.len() == 10, "{} of 10 records", records.len());
        ensure!(users.len() == 1, "parts of {} Puts are seen at once", users.len());
    }
    writers.finish().await
}

async fn batches_are_contiguous(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut stream = broker.follow_from_here(&record_type).await?;
    let written = write(&broker, &record_type, 20, 5).await?;
    let seen = stream.records(written.len()).await?;
    // The id of a record is "writer-batch-member".
    for members in seen.chunks(5) {
        let batches: BTreeSet<&str> = members
            .iter()
            .filter_map(|record| record.id.rsplit_once('-').map(|(batch, _)| batch))
            .collect();
        ensure!(batches.len() == 1, "the members of {batches:?} are mixed");
        ensure!(members.is_sorted_by(|a, b| a.id < b.id), "the members are out of order");
    }
    Ok(())
}

async fn latest_plus_stream(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let writers = spawn_until_done(WRITERS, {
        let (broker, record_type) = (broker.clone(), record_type.clone());
        move |round| {
            let (broker, record_type) = (broker.clone(), record_type.clone());
            async move {
                let id = format!("{}", round % 23);
                let record = if round % 4 == 3 {
                    deletion(&record_type, &id)
                } else {
                    session_record(&record_type, &id, &round.to_string())
                };
                broker.put(vec![record]).await
            }
        }
    });
    let mut copies = Vec::new();
    for _ in 0..10 {
        let latest = broker.latest(&record_type).await?;
        let stream = broker.follow(
            &record_type,
            latest.versions.server_version,
            latest.versions.latest_record_version,
        );
        // Each is read while there are writers: a connection has room for so many bytes that nobody has read, and the more a
        // server writes, the sooner it would be full.
        copies.push(tokio::spawn(followed(copy_of(latest.records), stream)));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    writers.finish().await?;
    broker.put_one(session_record(&record_type, MARKER, "alice")).await?;
    let held = copy_of(broker.all(&record_type).await?);
    for (n, copy) in copies.into_iter().enumerate() {
        let copy = copy.await??;
        ensure!(
            copy == held,
            "copy {n} ends with {} records that differ from the server's {}",
            copy.len(),
            held.len()
        );
    }
    Ok(())
}

async fn state_plus_changes(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let start = broker.server_info().await?.latest_record_version;
    let rounds = (0..WRITERS).map(|writer| {
        let (broker, record_type) = (broker.clone(), record_type.clone());
        tokio::spawn(async move {
            for round in 0..25_usize {
                let id = format!("{}", (round * 7 + writer) % 13);
                let record = if round % 5 == 4 {
                    deletion(&record_type, &id)
                } else {
                    session_record(&record_type, &id, &format!("{writer}-{round}"))
                };
                broker.put(vec![record]).await?;
            }
            anyhow::Ok(())
        })
    });
    for writer in join_all(rounds).await {
        writer??;
    }
    let log = broker.changes(&record_type, start).await?;
    let held = copy_of(broker.latest(&record_type).await?.records);
    for at in (0..=log.len()).step_by(7) {
        let (before, _) = log.split_at_checked(at).context("a place in the log")?;
        let mut copy = BTreeMap::new();
        for change in before {
            apply(&mut copy, change.clone());
        }
        let version = before.last().map_or(start, |change| change.version);
        for change in broker.changes(&record_type, version).await? {
            apply(&mut copy, change);
        }
        ensure!(copy == held, "from version {version}, the changes end at another state");
    }
    Ok(())
}

async fn query_reflects_its_version(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let start = broker.server_info().await?.latest_record_version;
    let writers = spawn_until_done(WRITERS, {
        let (broker, record_type) = (broker.clone(), record_type.clone());
        move |round| {
            let (broker, record_type) = (broker.clone(), record_type.clone());
            async move {
                let record = session_record(&record_type, &format!("{}", round % 31), &round.to_string());
                broker.put(vec![record]).await
            }
        }
    });
    let mut answers = Vec::new();
    for round in 0..40 {
        if round % 2 == 0 {
            let request = QueryRequest {
                r#type: record_type.clone(),
                limit: 1000,
                ..QueryRequest::default()
            };
            let response = broker.query(request).await?;
            answers.push((response.record_version, copy_of(response.records)));
        } else {
            let latest = broker.latest(&record_type).await?;
            answers.push((latest.versions.latest_record_version, copy_of(latest.records)));
        }
    }
    writers.finish().await?;
    let log = broker.changes(&record_type, start).await?;
    for (version, copy) in answers {
        for change in log.iter().filter(|change| change.version <= version) {
            let shown = copy.get(&change.id).map_or(0, |record| record.version);
            ensure!(
                shown >= change.version,
                "an answer that names version {version} shows {:?} at version {shown}, before its change {}",
                change.id,
                change.version
            );
        }
    }
    Ok(())
}

async fn highest_version_stays(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    for _ in 0..5 {
        let id = broker.unique();
        let writers = (0..WRITERS).map(|writer| {
            let (broker, record_type, id) = (broker.apart(), record_type.clone(), id.clone());
            tokio::spawn(async move {
                let mut last = None;
                for round in 0..10 {
                    let record = session_record(&record_type, &id, &format!("{writer}-{round}"));
                    last = Some(broker.put_one(record).await?);
                }
                last.context("nothing was written")
            })
        });
        let mut answers = Vec::new();
        for writer in join_all(writers).await {
            answers.push(writer??);
        }
        let highest = answers.into_iter().max_by_key(|record| record.version);
        let stays = broker.find(&record_type, &id).await?;
        ensure!(stays == highest, "{stays:?} stays, the highest answered is {highest:?}");
    }
    Ok(())
}

async fn read_own_writes(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker.index(&record_type, &["user_id"]).await?;
    let writers = (0..WRITERS).map(|writer| {
        let (broker, record_type) = (broker.apart(), record_type.clone());
        tokio::spawn(async move {
            for round in 0..10 {
                let (id, user) = (format!("{writer}"), format!("{writer}-{round}"));
                let put = broker.put_one(session_record(&record_type, &id, &user)).await?;
                ensure!(
                    broker.get(&record_type, &id).await? == put,
                    "Get does not find its own write"
                );
                let request = QueryRequest {
                    r#type: record_type.clone(),
                    limit: 100,
                    filter: Some(crate::records::json_struct(&serde_json::json!({ "user_id": user }))),
                    ..QueryRequest::default()
                };
                let found = broker.query(request).await?;
                ensure!(
                    found.record_version >= put.version,
                    "Query names a version before its own write"
                );
                ensure!(found.records == [put.clone()], "the index finds {:?}", found.records);
                let latest = broker.latest(&record_type).await?;
                ensure!(latest.records.contains(&put), "SyncLatest does not show its own write");
            }
            Ok(())
        })
    });
    for writer in join_all(writers).await {
        writer??;
    }
    Ok(())
}

async fn streams_join_any_time(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let server_version = broker.server_info().await?.server_version;
    let writers = (0..WRITERS).map(|writer| {
        let (broker, record_type) = (broker.clone(), record_type.clone());
        tokio::spawn(async move {
            let mut written = Vec::new();
            let mut streams = Vec::new();
            for round in 0..30 {
                let record = session_record(&record_type, &format!("{writer}-{round}"), "alice");
                let put = broker.put_one(record).await?;
                if round % 10 == 5 {
                    streams.push((put.version, broker.follow(&record_type, server_version, put.version)));
                }
                written.push(put);
            }
            anyhow::Ok((written, streams))
        })
    });
    let mut written = Vec::new();
    let mut streams = Vec::new();
    for writer in join_all(writers).await {
        let (its_written, its_streams) = writer.await_ok()?;
        written.extend(its_written);
        streams.extend(its_streams);
    }
    written.sort_by_key(|record| record.version);
    for (start, mut stream) in streams {
        let expected: Vec<Record> = written
            .iter()
            .filter(|record| record.version > start)
            .cloned()
            .collect();
        let seen = stream
            .records(expected.len())
            .await
            .with_context(|| format!("the stream from version {start}"))?;
        same(&expected, &seen)?;
    }
    Ok(())
}

async fn patch_loses_nothing(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker.put_one(session_record(&record_type, "1", "alice")).await?;
    let rounds = 15;
    let tasks = FIELDS.iter().map(|(path, set)| {
        let (broker, record_type) = (broker.apart(), record_type.clone());
        tokio::spawn(async move {
            let mut versions = Vec::new();
            for round in 0..=rounds {
                let mut update = Session::default();
                set(&mut update, round);
                let response = broker
                    .patch(vec![record(&record_type, "1", any(&update))], &[path])
                    .await?;
                versions.push(only(response.records)?.version);
            }
            anyhow::Ok(versions)
        })
    });
    let mut versions = BTreeSet::new();
    for task in join_all(tasks).await {
        for version in task.await_ok()? {
            ensure!(versions.insert(version), "version {version} was given twice");
        }
    }
    let mut expected = session("1", "alice");
    for (_, set) in FIELDS {
        set(&mut expected, rounds);
    }
    let got: Session = decode(&broker.get(&record_type, "1").await?)?;
    ensure!(got == expected, "expected {expected:?}, got {got:?}");
    Ok(())
}

/// Fields that are patched at the same time, and how to set each to a round's value. Setting one leaves its neighbours in
/// the same message alone.
type SetField = fn(&mut Session, i64);
const FIELDS: &[(&str, SetField)] = &[
    ("user_id", |session, round| session.user_id = format!("user-{round}")),
    ("idp_id", |session, round| session.idp_id = format!("idp-{round}")),
    ("accessed_at", |session, round| {
        session.accessed_at = Some(timestamp(1_800_000_000 + round));
    }),
    ("audience", |session, round| {
        session.audience = vec![format!("audience-{round}")]
    }),
    ("oauth_token.access_token", |session, round| {
        session.oauth_token.get_or_insert_with(OAuthToken::default).access_token = format!("access-{round}");
    }),
    ("oauth_token.refresh_token", |session, round| {
        session
            .oauth_token
            .get_or_insert_with(OAuthToken::default)
            .refresh_token = format!("refresh-{round}");
    }),
    ("id_token.subject", |session, round| {
        session.id_token.get_or_insert_with(IdToken::default).subject = format!("subject-{round}");
    }),
    ("id_token.raw", |session, round| {
        session.id_token.get_or_insert_with(IdToken::default).raw = format!("raw-{round}");
    }),
];

async fn patch_beside_put(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let first = broker.put_one(session_record(&record_type, "1", "put")).await?;
    let tasks = (0..WRITERS).map(|task| {
        let (broker, record_type) = (broker.apart(), record_type.clone());
        tokio::spawn(async move {
            for round in 0..15 {
                let name = format!("{task}-{round}");
                if task % 2 == 0 {
                    let stored = Session {
                        idp_id: name,
                        ..session("1", "put")
                    };
                    broker.put_one(record(&record_type, "1", any(&stored))).await?;
                } else {
                    let update = session_record(&record_type, "1", &name);
                    broker.patch(vec![update], &["user_id"]).await?;
                }
            }
            anyhow::Ok(())
        })
    });
    for task in join_all(tasks).await {
        task.await_ok()?;
    }
    // A Put sets the user to "put" and a new idp, a Patch keeps the idp that was there.
    let mut idp = session("1", "put").idp_id;
    let changes = broker.changes(&record_type, first.version).await?;
    ensure!(changes.len() == WRITERS * 15, "{} changes", changes.len());
    for change in changes {
        let seen: Session = decode(&change)?;
        if seen.user_id != "put" {
            ensure!(
                seen.idp_id == idp,
                "a Patch built on {:?}, though {idp:?} was there before it",
                seen.idp_id
            );
        }
        idp = seen.idp_id;
    }
    Ok(())
}

async fn patch_beside_delete(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let start = broker.server_info().await?.latest_record_version;
    let patchers = spawn_until_done(4, {
        let (broker, record_type) = (broker.clone(), record_type.clone());
        move |round| {
            let (broker, record_type) = (broker.clone(), record_type.clone());
            async move {
                let update = session_record(&record_type, "1", &round.to_string());
                broker.patch(vec![update], &["user_id"]).await
            }
        }
    });
    for _ in 0..25 {
        broker.put_one(session_record(&record_type, "1", "put")).await?;
        broker.put_one(deletion(&record_type, "1")).await?;
    }
    patchers.finish().await?;
    let mut lives = false;
    for change in broker.changes(&record_type, start).await? {
        if change.deleted_at.is_some() {
            lives = false;
        } else if decode::<Session>(&change)?.user_id == "put" {
            lives = true;
        } else {
            ensure!(lives, "a Patch brought the record back at version {}", change.version);
        }
    }
    ensure!(
        broker.find(&record_type, "1").await?.is_none(),
        "the record is there after its last delete"
    );
    Ok(())
}

async fn patches_of_many_are_whole(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let update = |record_type: &str, user: &str| -> Vec<Record> {
        (0..5)
            .map(|n| session_record(record_type, &n.to_string(), user))
            .collect()
    };
    broker.put(update(&record_type, "0")).await?;
    let patchers = spawn_until_done(4, {
        let (broker, record_type) = (broker.clone(), record_type.clone());
        move |round| {
            let (broker, records) = (broker.clone(), update(&record_type, &round.to_string()));
            async move { broker.patch(records, &["user_id"]).await }
        }
    });
    for _ in 0..30 {
        let mut users = BTreeSet::new();
        for record in broker.all(&record_type).await? {
            users.insert(decode::<Session>(&record)?.user_id);
        }
        ensure!(users.len() == 1, "parts of {} Patches are seen at once", users.len());
    }
    patchers.finish().await
}

async fn leases_exclude(broker: Broker) -> CheckResult {
    let name = broker.unique();
    let inside = Arc::new(AtomicUsize::new(0));
    let tasks = (0..WRITERS).map(|_| {
        let (broker, name, inside) = (broker.apart(), name.clone(), Arc::clone(&inside));
        tokio::spawn(async move {
            let mut held = 0;
            while held < 4 {
                let id = match leases::acquire(&broker, &name, Duration::from_secs(600)).await {
                    Ok(id) => id,
                    Err(status) if status.code() == Code::AlreadyExists => {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                        continue;
                    }
                    Err(status) => return Err(status.into()),
                };
                let others = inside.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(5)).await;
                inside.fetch_sub(1, Ordering::SeqCst);
                ensure!(others == 0, "two hold the lease at once");
                let request = databroker_proto::databroker::ReleaseLeaseRequest { name: name.clone(), id };
                broker.data().release_lease(request).await?;
                held += 1;
            }
            Ok(())
        })
    });
    for task in join_all(tasks).await {
        task.await_ok()?;
    }
    Ok(())
}

async fn capacity_under_load(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let options = Options {
        capacity: Some(10),
        ..Options::default()
    };
    broker.set_options(&record_type, options).await?;
    let mut stream = broker.follow_from_here(&record_type).await?;
    write(&broker, &record_type, 15, 3).await?;
    let marker = broker.put_one(session_record(&record_type, "marker", "alice")).await?;
    let held = broker.all(&record_type).await?;
    ensure!(held.len() == 10, "the server holds {} records", held.len());
    let latest = broker.server_info().await?.latest_record_version;
    let mut copy = BTreeMap::new();
    catch_up(&mut copy, &mut stream, marker.version).await?;
    // The marker's own write may have evicted one more; its tombstone comes after it.
    for change in broker.changes(&record_type, marker.version).await? {
        ensure!(
            change.version <= latest.max(change.version),
            "a version from the future"
        );
        apply(&mut copy, change);
    }
    ensure!(copy == copy_of(held), "the follower's copy differs");
    Ok(())
}

/// Lets eight writers put batches of this many members, and gives back all answered records. Ids are
/// "writer-batch-member".
async fn write(broker: &Broker, record_type: &str, batches: usize, members: usize) -> anyhow::Result<Vec<Record>> {
    let writers = (0..WRITERS).map(|writer| {
        let (broker, record_type) = (broker.apart(), record_type.to_owned());
        tokio::spawn(async move {
            let mut written = Vec::new();
            for batch in 0..batches {
                let records: Vec<Record> = (0..members)
                    .map(|member| session_record(&record_type, &format!("{writer}-{batch}-{member}"), "alice"))
                    .collect();
                let answer = broker.put(records).await?.records;
                ensure!(
                    answer.is_sorted_by(|a, b| a.version < b.version),
                    "versions do not ascend in an answer"
                );
                written.extend(answer);
            }
            Ok(written)
        })
    });
    let mut written = Vec::new();
    for writer in join_all(writers).await {
        written.extend(writer.await_ok()?);
    }
    Ok(written)
}

/// Tasks that call again and again until told to finish.
struct Background {
    /// How many calls have been begun.
    rounds: Arc<AtomicUsize>,
    done: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<anyhow::Result<()>>>,
}

/// Starts tasks that make calls with ever new numbers.
fn spawn_until_done<T, F>(tasks: usize, call: impl Fn(usize) -> F + Send + Sync + 'static) -> Background
where
    T: Send,
    F: Future<Output = Result<T, tonic::Status>> + Send,
{
    let done = Arc::new(AtomicBool::new(false));
    let rounds = Arc::new(AtomicUsize::new(1));
    let call = Arc::new(call);
    let tasks = (0..tasks)
        .map(|_| {
            let (done, rounds, call) = (Arc::clone(&done), Arc::clone(&rounds), Arc::clone(&call));
            tokio::spawn(async move {
                while !done.load(Ordering::SeqCst) {
                    call(rounds.fetch_add(1, Ordering::SeqCst)).await?;
                }
                Ok(())
            })
        })
        .collect();
    Background { done, rounds, tasks }
}

impl Background {
    /// How many calls have been begun.
    fn rounds(&self) -> usize {
        self.rounds.load(Ordering::SeqCst)
    }

    /// Ends the tasks; a call that has failed is a failure of the case.
    async fn finish(mut self) -> CheckResult {
        self.done.store(true, Ordering::SeqCst);
        for task in self.tasks.drain(..) {
            task.await??;
        }
        Ok(())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The result of a task that has ended.
trait AwaitOk<T> {
    fn await_ok(self) -> anyhow::Result<T>;
}

impl<T> AwaitOk<T> for Result<anyhow::Result<T>, tokio::task::JoinError> {
    fn await_ok(self) -> anyhow::Result<T> {
        self.context("a task of the case")?
    }
}

/// Checks that a stream has delivered what was written, and says what is lost, repeated or different.
fn same(written: &[Record], seen: &[Record]) -> CheckResult {
    if written == seen {
        return Ok(());
    }
    let versions = |records: &[Record]| records.iter().map(|record| record.version).collect::<BTreeSet<_>>();
    let (expected, got) = (versions(written), versions(seen));
    if let Some(lost) = expected.difference(&got).next() {
        bail!("version {lost} is lost ({} of {} came)", seen.len(), written.len());
    }
    if let Some(unknown) = got.difference(&expected).next() {
        bail!("version {unknown} was never answered");
    }
    ensure!(got.len() == seen.len(), "a version came twice");
    bail!("the same versions came with other content")
}

fn copy_of(records: Vec<Record>) -> BTreeMap<String, Record> {
    records.into_iter().map(|record| (record.id.clone(), record)).collect()
}

/// Applies a change to a copy, as a client does.
fn apply(copy: &mut BTreeMap<String, Record>, change: Record) {
    if change.deleted_at.is_some() {
        copy.remove(&change.id);
    } else {
        copy.insert(change.id.clone(), change);
    }
}

/// The id of what is written last.
const MARKER: &str = "marker";

/// Applies all changes up to the marker.
async fn followed(mut copy: BTreeMap<String, Record>, mut stream: Stream) -> anyhow::Result<BTreeMap<String, Record>> {
    loop {
        let change = stream.record().await?;
        let is_last = change.id == MARKER;
        apply(&mut copy, change);
        if is_last {
            return Ok(copy);
        }
    }
}

/// Applies a stream to a copy up to a version.
async fn catch_up(copy: &mut BTreeMap<String, Record>, stream: &mut Stream, version: u64) -> CheckResult {
    loop {
        let change = stream.record().await?;
        let reached = change.version >= version;
        apply(copy, change);
        if reached {
            return Ok(());
        }
    }
}
