//! What single steps cost, without sockets and clients: a call of the plugin, a record in a page, a filter, a text, a patch.
//!
//! `plugin` is the built-in memory plugin, `native` the same store without the boundary: the difference is the boundary.

#![allow(clippy::unwrap_used, reason = "a benchmark has nobody to tell")]

use std::sync::Arc;

use bytes::Bytes;
use databroker_benchmark::session;
use databroker_host::backend::{
    Backend, Batch, Change, ChangesRequest, Operation, PageBounds, ScanRequest, StoreInfo, native, new_server_version,
};
use databroker_host::component::{self, Source};
use databroker_host::data::{Descriptors, Mask, Needle};
use databroker_host::filter::{Effort, Filter};
use databroker_host::record::{Key, Options, Timestamp};
use divan::Bencher;
use divan::counter::ItemsCount;
use serde_json::json;
use tokio::runtime::Runtime;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Records in the store.
const STORED: usize = 10_000;
/// Records in a page.
const PAGE: u32 = 512;
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
        let descriptors = Arc::new(Descriptors::built_in().unwrap());
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
            for first in (0..STORED).step_by(100) {
                backend.put(vec![batch(first, 100)], NOW).await.unwrap();
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
#[divan::bench(args = ["plugin", "native"])]
fn call(bencher: Bencher<'_, '_>, store: &str) {
    let stand = Stand::new(store);
    bencher.bench_local(|| stand.runtime.block_on(stand.backend.current()).unwrap());
}

#[divan::bench(args = ["plugin", "native"])]
fn get(bencher: Bencher<'_, '_>, store: &str) {
    let stand = Stand::new(store);
    bencher.bench_local(|| stand.runtime.block_on(stand.backend.get(vec![key(77)])).unwrap());
}

/// Per record, over one that is there.
#[divan::bench(args = ["plugin", "native"], consts = [1, 100])]
fn put<const COUNT: usize>(bencher: Bencher<'_, '_>, store: &str) {
    let stand = Stand::new(store);
    bencher
        .counter(ItemsCount::new(COUNT))
        .with_inputs(|| vec![batch(0, COUNT)])
        .bench_local_values(|batches| stand.runtime.block_on(stand.backend.put(batches, NOW)).unwrap());
}

/// Per record.
#[divan::bench(args = ["plugin", "native"])]
fn page_of_scan(bencher: Bencher<'_, '_>, store: &str) {
    let stand = Stand::new(store);
    let request = || ScanRequest {
        record_type: Some(session::TYPE.to_owned()),
        hint: None,
        after: None,
        bounds: bounds(),
    };
    bencher
        .counter(ItemsCount::new(PAGE))
        .bench_local(|| stand.runtime.block_on(stand.backend.scan(request())).unwrap());
}

/// Per record.
#[divan::bench(args = ["plugin", "native"])]
fn page_of_changes(bencher: Bencher<'_, '_>, store: &str) {
    let stand = Stand::new(store);
    let request = || ChangesRequest {
        after: 0,
        record_type: None,
        bounds: bounds(),
    };
    bencher
        .counter(ItemsCount::new(PAGE))
        .bench_local(|| stand.runtime.block_on(stand.backend.changes(request())).unwrap());
}

/// A filter on one field, held to one record.
#[divan::bench]
fn filter(bencher: Bencher<'_, '_>) {
    let descriptors = Descriptors::built_in().unwrap();
    let filter = Filter::parse(&json!({"idp_id": "no such provider"}));
    let filter = filter.unwrap();
    let (key, data, resolution) = (key(1), data(1), filter.resolution());
    bencher.bench_local(|| filter.matches(&descriptors, &key, Some(&data), &resolution, &mut Effort::default()));
}

/// A text, looked for in one record.
#[divan::bench(args = ["no such text", "identity-provider"])]
fn text(bencher: Bencher<'_, '_>, text: &str) {
    let descriptors = Descriptors::built_in().unwrap();
    let (needle, data) = (Needle::new(text), data(1));
    bencher.bench_local(|| descriptors.matches_text(&data, &needle));
}

/// What an index takes from one record.
#[divan::bench]
fn values(bencher: Bencher<'_, '_>) {
    let descriptors = Descriptors::built_in().unwrap();
    let data = data(1);
    bencher.bench_local(|| descriptors.values(&data, "user_id"));
}

/// A patch of `accessed_at`, merged into one record.
#[divan::bench]
fn merge(bencher: Bencher<'_, '_>) {
    let descriptors = Descriptors::built_in().unwrap();
    let (existing, update) = (data(1), session::accessed(1).data.unwrap());
    let mask = Mask::new(["accessed_at"]).unwrap();
    bencher.bench_local(|| descriptors.merge(Some(&existing), Some(&update), &mask).unwrap());
}
