//! The table: what each misbehaviour must end in. A misbehaviour without a row does not compile.

use std::time::Duration;

use databroker_host::component::Limits;
use databroker_hostile::binaries::Binary;
use databroker_hostile::misbehaviour::Misbehaviour;
use tonic::Code;

use crate::stand::limits;

/// How a misbehaviour is provoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provocation {
    /// By opening the store.
    Open,
    /// By a Get.
    Get,
    /// By one Get after the other until one fails.
    Gets,
    /// By a Get while twenty others are under way.
    GetAmongOthers,
    /// By a Put.
    Put,
    /// By a Query.
    Query,
    /// By a Sync.
    Sync,
    /// By AcquireLease.
    Lease,
    /// By ListTypes.
    ListTypes,
}

/// What a misbehaviour must end in.
pub struct Row {
    pub provocation: Provocation,
    /// The code that the caller is told; none where the call succeeds all the same.
    pub code: Option<Code>,
    /// Words of what the caller is told.
    pub says: &'static str,
    /// Words that one line of the log has.
    pub log: &'static [&'static str],
    /// A series that has moved, from its name to the end of its labels.
    pub metric: &'static str,
    /// Whether the instance is replaced.
    pub replaced: bool,
    /// Whether it is granted a database.
    pub database: bool,
    pub limits: Limits,
}

/// An answer that breaks a law: the call fails with INTERNAL and the instance goes on.
fn lie(provocation: Provocation, law: &'static str) -> Row {
    let metric = match provocation {
        Provocation::Get => r#"plugin_calls_total{function="get",result="internal"}"#,
        Provocation::Put => r#"plugin_calls_total{function="put",result="internal"}"#,
        Provocation::Query => r#"plugin_calls_total{function="scan",result="internal"}"#,
        Provocation::Sync => r#"plugin_calls_total{function="changes",result="internal"}"#,
        Provocation::Lease => r#"plugin_calls_total{function="lease",result="internal"}"#,
        Provocation::ListTypes => r#"plugin_calls_total{function="list-types",result="internal"}"#,
        other => panic!("{other:?} has no answer"),
    };
    Row {
        provocation,
        code: Some(Code::Internal),
        says: law,
        log: &["broke a law of databroker:storage"],
        metric,
        replaced: false,
        database: false,
        limits: limits(),
    }
}

/// What ends the instance: the callers are told UNAVAILABLE and why, and another instance takes its place.
fn end(cause: &'static str) -> Row {
    Row {
        provocation: Provocation::Get,
        code: Some(Code::Unavailable),
        says: cause,
        log: &["the plugin's instance has stopped"],
        metric: r#"plugin_calls_total{function="get",result="stopped"}"#,
        replaced: true,
        database: false,
        limits: limits(),
    }
}

/// What waits for longer than a call may take.
fn late() -> Row {
    Row {
        limits: Limits {
            call: Duration::from_secs(2),
            ..limits()
        },
        ..end("a call of `get` took longer than 2s (DATABROKER_PLUGIN_CALL_TIME)")
    }
}

/// What is refused, while the call goes on: the guest would tell what it has reached, and fail.
fn refused(log: &'static [&'static str], metric: &'static str) -> Row {
    Row {
        provocation: Provocation::Get,
        code: None,
        says: "",
        log,
        metric,
        replaced: false,
        database: false,
        limits: Limits {
            compute: Duration::from_secs(10),
            turn: Duration::from_secs(10),
            call: Duration::from_secs(30),
            ..limits()
        },
    }
}

/// What is left out, while the call succeeds.
fn flood() -> Row {
    Row {
        provocation: Provocation::Get,
        code: None,
        says: "",
        log: &["the plugin logs too much"],
        metric: "plugin_log_lines_dropped_total",
        replaced: false,
        database: false,
        limits: Limits {
            compute: Duration::from_secs(10),
            turn: Duration::from_secs(10),
            call: Duration::from_secs(30),
            ..limits()
        },
    }
}

/// What is done to a database: this row with one.
fn in_database(row: Row) -> Row {
    Row {
        database: true,
        limits: Limits {
            transactions: 3,
            listeners: 3,
            ..row.limits
        },
        ..row
    }
}

/// A statement whose answer is larger than it may be: it fails, and the instance goes on.
fn too_large(bound: &'static str) -> Row {
    in_database(Row {
        code: Some(Code::Unavailable),
        says: bound,
        ..refused(
            &["the database has failed", r#"kind="too_large""#],
            r#"plugin_database_statements_total{result="too_large"}"#,
        )
    })
}

/// The row of a misbehaviour.
pub fn row(misbehaviour: Misbehaviour) -> Row {
    use Misbehaviour as M;
    use Provocation as P;
    match misbehaviour {
        M::EndlessLoop => end("computed for more than 500ms in one call (DATABROKER_PLUGIN_COMPUTE_TIME)"),
        M::EndlessHostCalls => Row {
            limits: Limits {
                compute: Duration::from_secs(20),
                turn: Duration::from_millis(500),
                ..limits()
            },
            // Seen by whoever counts what it computes, or on a busy machine by whoever looks from outside.
            ..end("for more than 500ms without giving other calls their turn (DATABROKER_PLUGIN_TURN_TIME)")
        },
        M::CostlyHostCalls => end("computed for more than 500ms in one call"),
        M::BlocksForEver => Row {
            limits: Limits {
                turn: Duration::from_secs(1),
                ..limits()
            },
            ..end(
                "it was in a call of the host's for more than 1s without giving other calls their turn \
                 (DATABROKER_PLUGIN_TURN_TIME)",
            )
        },
        M::NeverAnswers => end("computed for more than 500ms in one call"),
        M::WaitsForEver => late(),
        M::MemoryBomb => end("memory beyond its limit of 268435456 bytes (DATABROKER_PLUGIN_MEMORY)"),
        M::MemoryGrownSlowly => Row {
            provocation: P::Gets,
            ..end("memory beyond its limit of 268435456 bytes (DATABROKER_PLUGIN_MEMORY)")
        },
        M::EndlessRecursion => end("wasm trap"),
        M::LeakedHandles => end("no free keys; at most 16384 (DATABROKER_PLUGIN_HANDLES)"),
        M::LeakedSecrets | M::LeakedCalls => end("handle limit exceeded; at most 16384 (DATABROKER_PLUGIN_HANDLES)"),
        M::LeakedFiles => refused(
            &["refused what it is not granted", r#"kind="open""#],
            r#"plugin_refusals_total{kind="open"}"#,
        ),
        M::PathsOutside => refused(
            &["refused what it is not granted", r#"kind="directory""#],
            r#"plugin_refusals_total{kind="directory"}"#,
        ),
        M::AddressesOutside => refused(
            &["refused what it is not granted", r#"kind="address""#],
            r#"plugin_refusals_total{kind="address"}"#,
        ),
        M::NamesThatChange => refused(
            &[
                "refused what it is not granted",
                r#"kind="address""#,
                "changes.example leads to 169.254.169.254 (cloud metadata)",
                "DATABROKER_PLUGIN_ADDRESSES=169.254.169.254:",
            ],
            r#"plugin_refusals_total{kind="address"}"#,
        ),
        M::OriginsOutside => refused(
            &["refused what it is not granted", r#"kind="origin""#],
            r#"plugin_refusals_total{kind="origin"}"#,
        ),
        M::NamesOutside => refused(
            &["refused what it is not granted", r#"kind="secret""#],
            r#"plugin_refusals_total{kind="secret"}"#,
        ),
        M::DatabaseOutside => Row {
            code: Some(Code::Unavailable),
            says: "settings: no database",
            ..refused(
                &[
                    "refused what it is not granted",
                    r#"kind="database""#,
                    "DATABROKER_STORAGE_CONNECTION_STRING",
                ],
                r#"plugin_refusals_total{kind="database"}"#,
            )
        },
        M::LeakedTransactions => in_database(Row {
            code: Some(Code::Unavailable),
            says: "out-of-connections: the plugin has 3 transactions open",
            ..refused(
                &[
                    "refused what it is not granted",
                    r#"kind="open""#,
                    "DATABROKER_PLUGIN_TRANSACTIONS",
                ],
                r#"plugin_refusals_total{kind="open"}"#,
            )
        }),
        M::LeakedListeners => in_database(end("more than 3 listeners at once (DATABROKER_PLUGIN_LISTENERS)")),
        M::LongChannel => in_database(end(
            "a listener has 64 channels at most, with names of 63 bytes at most",
        )),
        M::TrapInTransaction => in_database(end("unreachable")),
        M::EndlessStatement | M::StubbornStatement => in_database(late()),
        M::EndlessRows => too_large("too-large: "),
        M::EndlessBytes => too_large("too-large: "),
        // Not received, unlike what is counted row by row.
        M::EnormousRow => too_large("too-large: a row, or another message, of the database is 287 MiB long"),
        M::Trap => end("unreachable"),
        M::TrapOnEveryThirdCall => Row {
            provocation: P::Gets,
            ..end("unreachable")
        },
        M::TrapWhileOthersRun => Row {
            provocation: P::GetAmongOthers,
            ..end("unreachable")
        },
        M::TrapInOpen => Row {
            provocation: P::Open,
            code: None,
            says: "cannot open its store: the storage plugin stopped",
            // Nothing is served, so there is nobody to ask for a metric.
            metric: "",
            replaced: false,
            ..end("")
        },
        M::Exit => end("exit"),
        M::AnswerOfOneGibibyte => Row {
            limits: Limits {
                memory_bytes: 3 << 30,
                compute: Duration::from_secs(20),
                turn: Duration::from_secs(20),
                call: Duration::from_secs(40),
                ..limits()
            },
            ..end("exhausted; at most 134217728 (DATABROKER_PLUGIN_ANSWER_SIZE)")
        },
        M::BrokenUtf8 => end("utf-8"),
        M::BrokenProtobuf => lie(P::Get, "an encoded `google.protobuf.Any`"),
        M::EndlessErrorText => Row {
            log: &["level=error"],
            ..lie(P::Get, "level=error")
        },
        M::ForeignError => lie(P::Get, "only `open` fails with `configuration`"),
        M::TooFewAnswers | M::TooManyAnswers => lie(P::Get, "one answer per key"),
        M::AnotherRecord => lie(P::Get, "the record with that key"),
        M::DeadRecord => lie(P::Get, "a live record has no `deleted-at`"),
        M::VersionZero => lie(P::Get, "never 0"),
        M::TooFewResults => lie(P::Put, "one result per batch"),
        M::TooFewOutcomes => lie(P::Put, "one outcome per step"),
        M::WrongOutcome => lie(P::Put, "the outcome of an upsert"),
        M::FalseConflict => lie(P::Put, "expected a version"),
        M::VersionRepeated => lie(P::Put, "versions ascend"),
        M::ServerVersionZero => lie(P::Put, "the server version is never 0"),
        M::TooFewLeases => lie(P::Lease, "one answer per request"),
        M::TypesOutOfOrder => lie(P::ListTypes, "types ascend"),
        M::PageOfTooManyRecords => lie(P::Query, "no more records than asked for"),
        M::PageOfTooManyBytes => lie(P::Query, "no more bytes than asked for"),
        M::CursorStandsStill => lie(P::Query, "keys ascend strictly"),
        M::EmptyPageWithMore => lie(P::Query, "one record at least"),
        M::PageOutOfOrder => lie(P::Query, "keys ascend strictly"),
        M::AnotherType => lie(P::Query, "the type asked for"),
        M::ChangesOutOfOrder | M::ChangesRepeated => lie(P::Sync, "versions ascend"),
        M::ChangeOfTheFuture => lie(P::Sync, "`through` is no higher"),
        M::ChangesStandStill => lie(P::Sync, "reaches further"),
        M::PrunedInThePast => lie(P::Sync, "higher than the one asked for"),
        M::LogFlood | M::StandardErrorFlood => flood(),
    }
}

/// What is said of more elements of tables than there may be.
const ELEMENTS: &str = "asked for more than 1000000 elements of tables (DATABROKER_PLUGIN_TABLE_ELEMENTS)";

/// The limits that files are held to: fewer parts than a file of one module can have.
pub fn limits_of_files() -> Limits {
    Limits {
        memories: 7,
        tables: 60,
        instances: 40,
        ..limits()
    }
}

/// What a file is refused with, and whether it got so far that it ran.
pub fn refusal(binary: Binary) -> (&'static [&'static str], bool) {
    match binary {
        Binary::Empty => (&["it is empty", "name the component"], false),
        Binary::Prose => (&["it is no WebAssembly"], false),
        Binary::CoreModule => (&["core module", "wasm32-wasip2"], false),
        Binary::Truncated => (&["damaged"], false),
        Binary::Malformed => (&["the engine refuses it"], false),
        Binary::WrongVersion => (&["databroker:storage@0.2.0", "compatible with 0.1.0"], false),
        Binary::WrongWorld => (&["demo:greeter/greet@1.2.3", "another world"], false),
        Binary::UnknownImport => (&["databroker:storage/files@0.1.0", "does not offer"], false),
        Binary::WrongImport => (&["databroker:storage/log", "the engine refuses it"], false),
        Binary::WrongExport => (&["does not start", "expected `option` found `string`"], true),
        Binary::TrapAtStart => (&["does not start", "out of bounds"], true),
        Binary::TableBomb | Binary::LargeTables => (&["does not start", ELEMENTS], true),
        Binary::TableGrown => (&["cannot open its store", "unreachable", ELEMENTS], true),
        Binary::LargeMemory => (
            &[
                "does not start",
                "memory beyond its limit of 268435456 bytes (DATABROKER_PLUGIN_MEMORY)",
            ],
            true,
        ),
        Binary::ManyTables => (
            &["table count too high at", "at most 60 (DATABROKER_PLUGIN_TABLES)"],
            true,
        ),
        Binary::ManyMemories => (
            &["memory count too high at 8", "at most 7 (DATABROKER_PLUGIN_MEMORIES)"],
            true,
        ),
        Binary::ManyModules => (
            &[
                "instance count too high at 41",
                "at most 40 (DATABROKER_PLUGIN_INSTANCES)",
            ],
            true,
        ),
    }
}
