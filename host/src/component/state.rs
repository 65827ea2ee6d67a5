//! What an instance of a plugin can reach: the host's side of its imports.
//!
//! Every plugin has its log, a look inside record data, clocks and random numbers. The rest of WASI 0.2 is linked, since
//! standard libraries import all of it, and leads where `grants` let it: without a grant there are no directories and no
//! network, and never any environment or arguments.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;
use wasmtime::ResourceLimiter;
use wasmtime::component::{HasSelf, Linker, ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use super::Limits;
use super::bindings::{self, World};
use super::computing::Computing;
use super::grants::{self, Granted, Http, Named, Network};
use super::log::{Level, PluginLog};
use super::sql::Sql;
use crate::data::{DataError, Descriptors};

/// How many fields of records a plugin may ask for in one call, paths times records.
const MAX_EXTRACTED: usize = 1_000_000;
/// How many paths: those of a type's old options and of the new ones, while it indexes.
const MAX_PATHS: usize = 200;
/// How many bytes of records, which are looked through once for each path.
const MAX_DATA_BYTES: usize = 16 << 20;
/// How many bytes of values, each counted with [`VALUE_BYTES`] more.
const MAX_VALUE_BYTES: usize = 64 << 20;
/// What a value takes beside its text.
const VALUE_BYTES: usize = 32;

/// How many bytes of one record become JSON: as many as a client can put.
const MAX_RECORD_BYTES: usize = 4 << 20;
/// How many parts the records of one call may have that become JSON or come from it, each counted once for every level that it
/// lies deep: some seconds of work at most.
const MAX_CALL_PARTS: usize = 4 << 20;
/// How many bytes are looked into where the plugin's own code runs.
const QUICK_BYTES: usize = 16 << 10;
/// How many bytes of JSON become one record: those of the largest one with all that JSON adds, above all where it escapes.
const MAX_JSON_BYTES: usize = 32 << 20;

/// The data of one instance's store.
pub(super) struct State {
    wasi: WasiCtx,
    /// WASI's handles, and those of grants and of `sql`.
    pub(super) table: ResourceTable,
    /// The database behind the `sql` import.
    pub(super) sql: Sql,
    /// What it is granted, by name or by handle.
    pub(super) granted: Granted,
    pub(super) named: Named,
    pub(super) network: Arc<Network>,
    pub(super) http: Http,
    /// The descriptors behind the `protobuf` import.
    descriptors: Arc<Descriptors>,
    /// Where its lines go.
    pub(super) log: PluginLog,
    /// How much memory it may have, and has.
    pub(super) memory: MemoryLimit,
    /// For how long it has computed.
    pub(super) computing: Computing,
}

impl State {
    /// The state of a new instance, with its directories open.
    ///
    /// # Errors
    ///
    /// Says which granted directory cannot be opened.
    pub(super) fn new(
        log: PluginLog,
        descriptors: Arc<Descriptors>,
        limits: Limits,
        granted: &Granted,
    ) -> Result<Self, String> {
        let network = Arc::new(Network::new(granted.clone()));
        let check = Arc::clone(&network);
        let mut wasi = WasiCtx::builder();
        wasi.stdout(log.stream(Level::Info, false))
            .stderr(log.stream(Level::Warn, true))
            .allow_tcp(true)
            .allow_udp(false)
            .socket_addr_check(move |address, usage| check.check(address, usage));
        grants::open_all(&granted.grants, &mut wasi)?;
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.handles);
        Ok(Self {
            wasi: wasi.build(),
            table,
            sql: Sql::new(None, limits),
            granted: granted.clone(),
            named: Named::new(granted.clone()),
            http: Http::new(Arc::clone(&network)),
            network,
            descriptors,
            log,
            memory: MemoryLimit::new(limits),
            computing: Computing::default(),
        })
    }
}

/// Links all that a plugin may import; HTTP where it does.
pub(super) fn link(linker: &mut Linker<State>, with_http: bool) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    grants::link(linker)?;
    if with_http {
        grants::link_http(linker)?;
    }
    World::add_to_linker::<State, HasSelf<State>>(linker, |state| state)
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl bindings::types::Host for State {}

impl bindings::log::Host for State {
    fn write(&mut self, level: bindings::log::Level, message: String) {
        let level = match level {
            bindings::log::Level::Trace => Level::Trace,
            bindings::log::Level::Debug => Level::Debug,
            bindings::log::Level::Info => Level::Info,
            bindings::log::Level::Warn => Level::Warn,
            bindings::log::Level::Error => Level::Error,
        };
        self.log.write(level, &message);
    }
}

impl bindings::protobuf::Host for State {
    fn extract(
        &mut self,
        data: Vec<Vec<u8>>,
        paths: Vec<String>,
    ) -> Result<Vec<Vec<Vec<String>>>, bindings::protobuf::Error> {
        // A small question could ask for an answer of any size, and for work that no limit on the plugin counts: the
        // records are looked through once for each path.
        let bytes: usize = data.iter().map(Vec::len).sum();
        let distinct: BTreeSet<&String> = paths.iter().collect();
        if data.len().saturating_mul(paths.len()) > MAX_EXTRACTED
            || paths.len() > MAX_PATHS
            || distinct.len() < paths.len()
            || bytes > MAX_DATA_BYTES
        {
            return Err(bindings::protobuf::Error::Exhausted(format!(
                "`extract` was asked for {} paths in {} records of {bytes} bytes; a call may ask for {MAX_PATHS} different \
                 paths, {MAX_DATA_BYTES} bytes and {MAX_EXTRACTED} fields at most",
                paths.len(),
                data.len()
            )));
        }
        self.look(bytes.saturating_mul(paths.len()), |descriptors| {
            extracted(descriptors, &data, &paths)
        })
    }

    fn to_json(&mut self, data: Vec<Vec<u8>>) -> Vec<Result<String, bindings::protobuf::Error>> {
        let (mut bytes, mut parts) = (MAX_DATA_BYTES, MAX_CALL_PARTS);
        self.look(data.iter().map(Vec::len).sum(), |descriptors| {
            let json = |data: &Vec<u8>| match bytes.checked_sub(data.len()) {
                Some(left) if data.len() <= MAX_RECORD_BYTES => {
                    bytes = left;
                    descriptors.to_json_within(data, &mut parts).map_err(data_error)
                }
                _ => Err(bindings::protobuf::Error::Exhausted(format!(
                    "`to-json` takes {MAX_RECORD_BYTES} bytes of one record at most, and {MAX_DATA_BYTES} in one call"
                ))),
            };
            data.iter().map(json).collect()
        })
    }

    fn from_json(&mut self, json: Vec<String>) -> Vec<Result<Vec<u8>, bindings::protobuf::Error>> {
        let mut parts = MAX_CALL_PARTS;
        self.look(json.iter().map(String::len).sum(), |descriptors| {
            let data = |json: &String| {
                if json.len() > MAX_JSON_BYTES {
                    return Err(bindings::protobuf::Error::Exhausted(format!(
                        "`from-json` takes {MAX_JSON_BYTES} bytes for one record at most"
                    )));
                }
                descriptors.from_json_within(json, &mut parts).map_err(data_error)
            };
            json.iter().map(data).collect()
        })
    }
}

impl State {
    /// Looks into so many bytes. Where they are many the thread is left to others meanwhile, and all of the time is the plugin's.
    fn look<T>(&mut self, bytes: usize, look: impl FnOnce(&Descriptors) -> T) -> T {
        if bytes <= QUICK_BYTES {
            return look(&self.descriptors);
        }
        let began = Instant::now();
        let has_other_threads =
            Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
        let seen = if has_other_threads {
            block_in_place(|| look(&self.descriptors))
        } else {
            look(&self.descriptors)
        };
        self.computing.worked(began.elapsed());
        seen
    }
}

/// The values at each path in each record.
fn extracted(
    descriptors: &Descriptors,
    data: &[Vec<u8>],
    paths: &[String],
) -> Result<Vec<Vec<Vec<String>>>, bindings::protobuf::Error> {
    let mut room = MAX_VALUE_BYTES;
    let mut answer = Vec::with_capacity(data.len());
    for data in data {
        let mut of_record = Vec::with_capacity(paths.len());
        for path in paths {
            let mut values = Vec::new();
            let is_too_much = descriptors.any_value(data, path, &mut |value| {
                let Some(left) = room.checked_sub(value.len() + VALUE_BYTES) else {
                    return true;
                };
                room = left;
                values.push(value.to_owned());
                false
            });
            if is_too_much {
                return Err(bindings::protobuf::Error::Exhausted(format!(
                    "`extract` was asked for more than {MAX_VALUE_BYTES} bytes of values: ask for fewer records"
                )));
            }
            of_record.push(values);
        }
        answer.push(of_record);
    }
    Ok(answer)
}

fn data_error(error: DataError) -> bindings::protobuf::Error {
    match error {
        DataError::UnknownType(type_url) => bindings::protobuf::Error::UnknownType(type_url),
        DataError::TooMany(_) => bindings::protobuf::Error::Exhausted(error.to_string()),
        other => bindings::protobuf::Error::Malformed(other.to_string()),
    }
}

/// Bounds the memory of an instance, over all of its linear memories and tables.
pub(super) struct MemoryLimit {
    limits: Limits,
    used: usize,
    /// True once more was asked for than the limit.
    refused: bool,
    /// Elements of all of its tables.
    table_elements: usize,
    /// True once more of them were asked for than the limit.
    refused_elements: bool,
    /// By how much it was last let grow.
    last_granted: usize,
    /// The same, for metrics.
    shown: Arc<AtomicU64>,
}

impl MemoryLimit {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            used: 0,
            refused: false,
            table_elements: 0,
            refused_elements: false,
            last_granted: 0,
            shown: Arc::default(),
        }
    }

    /// What the instance has asked for and was not given, with the setting that allows more.
    pub(super) fn refused(&self) -> Vec<String> {
        let Limits {
            memory_bytes,
            table_elements,
            ..
        } = self.limits;
        let memory = self.refused.then(|| {
            format!("it had asked for memory beyond its limit of {memory_bytes} bytes (DATABROKER_PLUGIN_MEMORY)")
        });
        let elements = self.refused_elements.then(|| {
            format!("it had asked for more than {table_elements} elements of tables (DATABROKER_PLUGIN_TABLE_ELEMENTS)")
        });
        memory.into_iter().chain(elements).collect()
    }

    /// The bytes that are used, for whoever wants to look later.
    pub(super) fn shown(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.shown)
    }
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let used = self.used.saturating_add(desired.saturating_sub(current));
        let within = used <= self.limits.memory_bytes;
        let granted = within && maximum.is_none_or(|maximum| desired <= maximum);
        self.last_granted = 0;
        if granted {
            self.last_granted = used.saturating_sub(self.used);
            self.used = used;
            self.shown
                .store(u64::try_from(used).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        self.refused |= !within;
        Ok(granted)
    }

    /// What was granted could not be had from the system.
    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.used = self.used.saturating_sub(std::mem::take(&mut self.last_granted));
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let elements = self.table_elements.saturating_add(desired.saturating_sub(current));
        let within = elements <= self.limits.table_elements;
        let granted = within && maximum.is_none_or(|maximum| desired <= maximum);
        if granted {
            self.table_elements = elements;
        }
        self.refused_elements |= !within;
        Ok(granted)
    }

    fn instances(&self) -> usize {
        self.limits.instances
    }

    fn tables(&self) -> usize {
        self.limits.tables
    }

    fn memories(&self) -> usize {
        self.limits.memories
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::bindings::protobuf::{Error, Host as _};
    use super::*;

    /// A string value that is no type of Pomerium's own: every host knows it.
    const JSON: &str = r#"{"@type":"type.googleapis.com/google.protobuf.StringValue","value":"x"}"#;

    fn state() -> State {
        let descriptors = Arc::new(Descriptors::built_in());
        let granted = Granted::new("test", grants::Grants::default());
        let limits = Limits::default();
        State::new(PluginLog::new("test", limits), descriptors, limits, &granted).unwrap()
    }

    #[test]
    fn data_becomes_json_and_back() {
        let mut state = state();
        let data = state.from_json(vec![JSON.to_owned()]).remove(0).unwrap();
        let json = state.to_json(vec![data]).remove(0).unwrap();
        let parsed = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
        assert_eq!(parsed(&json), parsed(JSON));
    }

    #[test]
    fn json_is_bounded_by_what_a_record_can_be() {
        let mut state = state();
        let json = |value: &str| format!(r#"{{"@type":"type.googleapis.com/google.protobuf.Value","value":{value}}}"#);
        // The longest JSON of the largest record: all of it is escaped.
        let largest = format!(r#""{}""#, r"\u0001".repeat(MAX_RECORD_BYTES - 100));
        let data = state.from_json(vec![json(&largest)]).remove(0).unwrap();
        let back = state.to_json(vec![data.clone(), data]);
        assert!(
            back.iter()
                .all(|back| back.as_ref().is_ok_and(|back| back.len() > largest.len()))
        );
        let long = json(&format!(r#""{}""#, "x".repeat(MAX_JSON_BYTES)));
        let answers = state.from_json(vec![long, JSON.to_owned()]);
        assert!(
            matches!(&answers[..], [Err(Error::Exhausted(_)), Ok(_)]),
            "{:?}",
            answers.iter().map(Result::is_ok).collect::<Vec<_>>()
        );
        let answers = state.to_json(vec![vec![0; MAX_RECORD_BYTES + 1]]);
        assert!(matches!(&answers[..], [Err(Error::Exhausted(_))]), "{answers:?}");
        let answers = state.to_json(vec![Vec::new(); 10]);
        assert!(answers.iter().all(Result::is_err), "nothing is no `Any`");
        let answers = state.to_json(vec![vec![0; MAX_RECORD_BYTES]; 5]);
        assert!(
            matches!(answers.last(), Some(Err(Error::Exhausted(_)))),
            "there is no room for a fifth"
        );
    }

    /// Small parts take a thousand times what they have in bytes.
    #[test]
    fn json_is_bounded_by_the_memory_that_it_takes() {
        let mut state = state();
        let value = |json: &str| format!(r#"{{"@type":"type.googleapis.com/google.protobuf.Value","value":{json}}}"#);
        let list = |part: &str, count: usize| value(&format!("[{}0]", part.repeat(count)));
        let cases = [
            (list("0,", 200_000), true),
            (list("0,", 600_000), false),
            (list("[],", 300_000), false),
            // Few commas, and many lists within lists.
            (list(&format!("{}{},", "[".repeat(50), "]".repeat(50)), 12_000), false),
            // Within a text they are no parts.
            (value(&format!(r#""{}""#, r#",[{\\\","#.repeat(200_000))), true),
        ];
        for (json, fits) in cases {
            let begins: String = json.chars().skip(60).take(30).collect();
            let answer = state.from_json(vec![json]).remove(0);
            let is_too_much = matches!(answer, Err(Error::Exhausted(_)));
            assert_eq!((answer.is_ok(), is_too_much), (fits, !fits), "{begins}");
        }
        // The same in bytes: nulls.
        let nulls = |count: usize| {
            let list = prost_types::Any {
                type_url: "type.googleapis.com/google.protobuf.ListValue".to_owned(),
                value: [0x0a, 2, 8, 0].repeat(count),
            };
            prost::Message::encode_to_vec(&list)
        };
        let answers = state.to_json(vec![nulls(1_000_000), nulls(100_000)]);
        assert!(matches!(&answers[..], [Err(Error::Exhausted(_)), Ok(_)]));
        // Of all of a call there is no more than of a few such records.
        let answers = state.to_json(vec![nulls(100_000); 20]);
        let fit = answers.iter().filter(|answer| answer.is_ok()).count();
        assert!((4..20).contains(&fit), "{fit}");
        let answers = state.from_json(vec![list("0,", 200_000); 20]);
        let fit = answers.iter().filter(|answer| answer.is_ok()).count();
        assert!((4..20).contains(&fit), "{fit}");
    }

    #[test]
    fn what_cannot_be_read_is_told_for_each_one() {
        let mut state = state();
        let unknown = br#"{"@type":"type.googleapis.com/no.Body"}"#;
        let json = [JSON.as_bytes(), b"{", unknown].map(|json| String::from_utf8(json.to_vec()).unwrap());
        let answers = state.from_json(json.to_vec());
        assert!(
            matches!(
                &answers[..],
                [Ok(_), Err(Error::Malformed(_)), Err(Error::UnknownType(_))]
            ),
            "{answers:?}"
        );
        // An `Any` whose first field is longer than all of it.
        let answers = state.to_json(vec![vec![0x0a, 0x7f, b'x']]);
        assert!(matches!(&answers[..], [Err(Error::Malformed(_))]), "{answers:?}");
    }

    #[test]
    fn growing_beyond_a_tables_own_end_uses_nothing_up() {
        let limits = Limits {
            table_elements: 10,
            ..Limits::default()
        };
        let mut memory = MemoryLimit::new(limits);
        for _ in 0..3 {
            assert!(!memory.table_growing(0, 6, Some(5)).unwrap());
        }
        assert!(memory.refused().is_empty(), "it was the table's end, and not the limit");
        assert!(memory.table_growing(0, 10, Some(10)).unwrap());
        assert!(!memory.table_growing(10, 11, None).unwrap());
        let refused = memory.refused();
        assert!(
            matches!(&refused[..], [one] if one.contains("more than 10 elements of tables (DATABROKER_PLUGIN_TABLE_ELEMENTS)")),
            "{refused:?}"
        );
    }

    #[test]
    fn values_are_extracted_in_order_and_bad_data_has_none() {
        let mut state = state();
        let data = state.from_json(vec![JSON.to_owned()]).remove(0).unwrap();
        let paths = vec!["value".to_owned(), "no.such".to_owned()];
        let values = state.extract(vec![data, vec![0xff]], paths).unwrap();
        assert_eq!(values, [vec![vec!["x".to_owned()], vec![]], vec![vec![], vec![]]]);
    }
}
