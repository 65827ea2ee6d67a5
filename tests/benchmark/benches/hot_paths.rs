//! What single steps cost, without sockets and clients: a call of the plugin, a record in a page, a change sent to many
//! streams, a filter, a text, a patch.
//!
//! `plugin` is the built-in memory plugin, `native` the same store without the boundary: the difference is the boundary. Pages
//! go through the whole store, as a reader does, and are dropped within what is measured, since both is a cost of each record.
//! Each sample is of so many calls that the clock's steps do not matter.

#![allow(clippy::unwrap_used, reason = "a benchmark has nobody to tell")]

use std::sync::Arc;

use bytes::Bytes;
use databroker_benchmark::session;
use databroker_host::backend::{
    Backend, Batch, Change, ChangesRequest, Operation, PageBounds, ScanRequest, StoreInfo, native, new_server_version,
};
use databroker_host::broker::{Change as Published, SyncPage};
use databroker_host::component::{self, Source};
use databroker_host::data::{Descriptors, Mask, Needle};
use databroker_host::filter::{Effort, Filter};
use databroker_host::grpc::sync_messages;
use databroker_host::record::{Key, Options, Record, Timestamp};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use serde_json::json;
use tokio::runtime::Runtime;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Records in a page.
const PAGE: u32 = 512;
/// Records in the store: so many full pages.
const STORED: usize = 20 * PAGE as usize;
const NOW: Timestamp = Timestamp(0);

fn main() {
    divan::main();
}

/// A store with an index on users, and who runs it.
struct Stand {
    runtime: Runtime,
    backend: Arc<dyn Backend>,
}

impl Stand {
    fn new(name: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let descriptors = Arc::new(Descriptors::built_in());
        let opened = async {
            let opened: (Arc<dyn Backend>, StoreInfo) = match name {
                "plugin" => {
                    let config = component::Config::new(Source::BuiltIn("memory".to_owned()));
                    component::open(config, descriptors).await.unwrap()
                }
                _ => {
                    let settings = native::Settings {
                        connection_string: None,
                        new_server_version: new_server_version(0),
                        descriptors,
                    };
                    let (backend, info) = native::Native::open(settings).unwrap();
                    (backend, info)
                }
            };
            let (backend, _) = opened;
            let options = Options {
                indexable_fields: vec!["user_id".to_owned()],
                ..Options::default()
            };
            backend
                .set_options(session::TYPE.to_owned(), Some(options))
                .await
                .unwrap();
            for first in (0..STORED).step_by(64) {
                backend.put(vec![batch(first, 64)], NOW).await.unwrap();
            }
            backend
        };
        let backend = runtime.block_on(opened);
        Self { runtime, backend }
    }
}

fn batch(first: usize, count: usize) -> Batch {
    let changes = (first..first + count).map(|number| Change {
        key: key(number),
        operation: Operation::Upsert {
            data: Some(data(number)),
            network: None,
        },
        expected: None,
    });
    Batch {
        changes: changes.collect(),
    }
}

fn key(number: usize) -> Key {
    Key::new(session::TYPE, session::id(number))
}

fn data(number: usize) -> Bytes {
    session::record(number).data.unwrap()
}

fn bounds() -> PageBounds {
    PageBounds {
        records: PAGE,
        bytes: 4 << 20,
    }
}

/// The least that a call of a store can be.
#[divan::bench(args = ["plugin", "native"], sample_size = 100)]
fn call(bencher: Bencher<'_, '_>, store: &str) {
    let stand = Stand::new(store);
    bencher.bench_local(|| stand.runtime.block_on(stand.backend.current()).unwrap());
}

/// Of records all over the store.
#[divan::bench(args = ["plugin", "native"], sample_size = 100)]
fn get(bencher: Bencher<'_, '_>, store: &str) {
    let stand = Stand::new(store);
    let mut number = 0;
    let next = || {
        number = (number + 7919) % STORED;
        vec![key(number)]
    };
    bencher.with_inputs(next).bench_local_values(|keys| {
        let found = stand.runtime.block_on(stand.backend.get(keys)).unwrap();
        assert!(matches!(found.as_slice(), [Some(_)]));
    });
}

/// Per record, over those that are there, all over the store.
#[divan::bench(args = ["plugin", "native"], consts = [1, 100], sample_size = 10)]
fn put<const COUNT: usize>(bencher: Bencher<'_, '_>, store: &str) {
    let stand = Stand::new(store);
    let mut first = 0;
    let next = || {
        first = (first + 7919) % (STORED - COUNT);
        vec![batch(first, COUNT)]
    };
    bencher
        .counter(ItemsCount::new(COUNT))
        .with_inputs(next)
        .bench_local_values(|batches| stand.runtime.block_on(stand.backend.put(batches, NOW)).unwrap());
}

/// Per record.
#[divan::bench(args = ["plugin", "native"], sample_size = 20)]
fn page_of_scan(bencher: Bencher<'_, '_>, store: &str) {
    let stand = Stand::new(store);
    let mut after = None;
    bencher.counter(ItemsCount::new(PAGE)).bench_local(|| {
        let request = ScanRequest {
            record_type: Some(session::TYPE.to_owned()),
            hint: None,
            condition: None,
            after: after.take(),
            bounds: bounds(),
        };
        let page = black_box(stand.runtime.block_on(stand.backend.scan(request)).unwrap());
        assert_eq!(page.records.len(), PAGE as usize);
        after = page.records.last().filter(|_| page.more).map(|last| last.key.clone());
    });
}

/// Per record.
#[divan::bench(args = ["plugin", "native"], sample_size = 20)]
fn page_of_changes(bencher: Bencher<'_, '_>, store: &str) {
    let stand = Stand::new(store);
    let mut after = 0;
    bencher.counter(ItemsCount::new(PAGE)).bench_local(|| {
        let request = ChangesRequest {
            after,
            record_type: None,
            bounds: bounds(),
        };
        let page = black_box(stand.runtime.block_on(stand.backend.changes(request)).unwrap());
        assert_eq!(page.records.len(), PAGE as usize);
        after = if page.through < page.position.latest_version {
            page.through
        } else {
            0
        };
    });
}

/// Per stream: the first one encodes the change, the others share its bytes.
#[divan::bench(args = [1, 10, 100, 1000], sample_size = 100)]
fn message_to_streams(bencher: Bencher<'_, '_>, streams: usize) {
    let data = data(1);
    let change = || {
        Arc::new(Published::new(Record {
            version: 1,
            key: key(1),
            data: Some(data.clone()),
            modified_at: NOW,
            deleted_at: None,
        }))
    };
    bencher
        .counter(ItemsCount::new(streams))
        .with_inputs(change)
        .bench_local_refs(|change| {
            for _ in 0..streams {
                black_box(sync_messages(SyncPage::Recent(vec![Arc::clone(change)])).next());
            }
        });
}

/// A filter on one field, held to one record.
#[divan::bench(args = ["no such provider", "identity-provider"], sample_size = 1000)]
fn filter(bencher: Bencher<'_, '_>, provider: &str) {
    let descriptors = Descriptors::built_in();
    descriptors.load();
    let filter = Filter::parse(&json!({"idp_id": provider})).unwrap();
    let (key, data, resolution) = (key(1), data(1), filter.resolution());
    bencher.bench_local(|| {
        let (key, data) = (black_box(&key), black_box(&data));
        filter.matches(&descriptors, key, Some(data), &resolution, &mut Effort::default())
    });
}

/// A text, looked for in one record.
#[divan::bench(args = ["no such text", "identity-provider"], sample_size = 1000)]
fn text(bencher: Bencher<'_, '_>, text: &str) {
    let descriptors = Descriptors::built_in();
    descriptors.load();
    let (needle, data) = (Needle::new(text), data(1));
    bencher.bench_local(|| descriptors.matches_text(black_box(&data), &needle));
}

/// What an index takes from one record.
#[divan::bench(sample_size = 1000)]
fn values(bencher: Bencher<'_, '_>) {
    let descriptors = Descriptors::built_in();
    descriptors.load();
    let data = data(1);
    bencher.bench_local(|| descriptors.values(black_box(&data), "user_id"));
}

/// A patch of `accessed_at`, merged into one record.
#[divan::bench(sample_size = 1000)]
fn merge(bencher: Bencher<'_, '_>) {
    let descriptors = Descriptors::built_in();
    descriptors.load();
    let (existing, update) = (data(1), session::accessed(1).data.unwrap());
    let mask = Mask::new(["accessed_at"]).unwrap();
    bencher.bench_local(|| {
        descriptors
            .merge(Some(black_box(&existing)), Some(&update), &mask)
            .unwrap()
    });
}
