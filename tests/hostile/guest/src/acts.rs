//! What it does instead of answering, or before.

use std::cell::Cell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use wasip2::clocks::monotonic_clock;
use wit_bindgen::yield_async;

use crate::bindings::databroker::storage::log::{self, Level};
use crate::bindings::databroker::storage::types::Error;
use crate::bindings::databroker::storage::{config, protobuf};
use crate::misbehaviour::Misbehaviour;
use crate::{reach, statements};

/// For so long a slow read leaves the others their turn.
const WHILE: Duration = Duration::from_millis(500);

/// What one call takes for good, where memory grows slowly.
const LEAK: usize = 16 << 20;

thread_local! {
    static CALLS: Cell<u32> = const { Cell::new(0) };
}

/// Lets others have their turn for a while.
pub async fn take_a_while() {
    let began = Instant::now();
    while began.elapsed() < WHILE {
        yield_async().await;
    }
}

/// Does what it should not, in a call that was provoked.
pub async fn act(misbehaviour: Misbehaviour) -> Result<(), Error> {
    match misbehaviour {
        Misbehaviour::EndlessLoop => loop {
            black_box(());
        },
        Misbehaviour::EndlessHostCalls => loop {
            log::write(Level::Trace, "");
        },
        Misbehaviour::CostlyHostCalls => {
            // Text that has to be read, escaped and written again.
            let json = format!(
                r#"{{"@type":"type.googleapis.com/google.protobuf.StringValue","value":"{}"}}"#,
                r"\n".repeat(256 << 10)
            );
            loop {
                let _ = black_box(protobuf::from_json(std::slice::from_ref(&json)));
            }
        }
        Misbehaviour::BlocksForEver => std::thread::sleep(Duration::from_secs(365 * 24 * 60 * 60)),
        Misbehaviour::NeverAnswers => loop {
            yield_async().await;
        },
        Misbehaviour::WaitsForEver => std::future::pending().await,
        Misbehaviour::MemoryBomb => loop {
            leak(LEAK);
        },
        Misbehaviour::MemoryGrownSlowly => leak(LEAK),
        Misbehaviour::EndlessRecursion => {
            black_box(recurse(1));
        }
        Misbehaviour::LeakedHandles => loop {
            std::mem::forget(monotonic_clock::subscribe_duration(u64::MAX));
        },
        Misbehaviour::Trap | Misbehaviour::TrapWhileOthersRun => panic!("this is a trap"),
        Misbehaviour::TrapOnEveryThirdCall => {
            CALLS.set(CALLS.get() + 1);
            if CALLS.get() % 3 == 0 {
                panic!("this is a trap on the third call");
            }
        }
        Misbehaviour::Exit => std::process::exit(3),
        Misbehaviour::LogFlood => {
            let line = "a line that nobody has asked for\x1b[31m\n".repeat(100);
            for _ in 0..20_000 {
                log::write(Level::Info, &line);
            }
        }
        Misbehaviour::StandardErrorFlood => {
            let part = "nothing and nothing again ".repeat(1000);
            for _ in 0..200 {
                eprint!("{part}");
            }
        }
        Misbehaviour::LeakedSecrets => {
            while let Some(secret) = config::get_secret("granted") {
                std::mem::forget(secret);
            }
        }
        Misbehaviour::LeakedFiles => return reach::leak_files(),
        Misbehaviour::DatabaseOutside => return statements::without_a_grant().await,
        Misbehaviour::LeakedTransactions => return statements::leak_transactions().await,
        Misbehaviour::LeakedCalls => statements::leak_calls().await,
        Misbehaviour::LeakedListeners => return statements::leak_listeners().await,
        Misbehaviour::LongChannel => statements::listen_to_long_channel().await,
        Misbehaviour::TrapInTransaction => return statements::trap_in_transaction().await,
        Misbehaviour::EndlessStatement => return statements::run("SELECT pg_sleep(3600)").await,
        Misbehaviour::StubbornStatement => {
            let stubborn = "DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(3600); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$";
            return statements::run(stubborn).await;
        }
        Misbehaviour::EndlessRows => return statements::run("SELECT generate_series(1, 1000000000)").await,
        Misbehaviour::EndlessBytes => {
            return statements::run("SELECT repeat('x', 1000000), generate_series(1, 1000000000)").await;
        }
        Misbehaviour::EnormousRow => return statements::run("SELECT repeat('x', 300000000)").await,
        Misbehaviour::PathsOutside => return reach::paths(),
        Misbehaviour::AddressesOutside => return reach::addresses(),
        Misbehaviour::NamesThatChange => return reach::changing_names(),
        Misbehaviour::OriginsOutside => return reach::origins(),
        Misbehaviour::NamesOutside => return reach::names(),
        _ => {}
    }
    Ok(())
}

/// Takes memory for good.
fn leak(bytes: usize) {
    black_box(Vec::<u8>::with_capacity(bytes).leak());
}

#[expect(unconditional_recursion, reason = "that is the point")]
fn recurse(depth: u64) -> u64 {
    let room = black_box([depth; 64]);
    recurse(depth + 1) + room[0]
}
