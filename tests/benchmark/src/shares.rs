//! Where a server's processor time goes: samples of `perf`, added up by what the code that was met is there for.
//!
//! A function is told by the first library in its name that is not the language's own: what the compiler has made a part of its
//! caller counts as the caller's.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

/// What time goes into, as columns of a table, and the libraries that stand for each.
pub(crate) const PARTS: [(&str, &[&str]); 9] = [
    ("kernel", &[]),
    (
        "HTTP/2, gRPC",
        &[
            "axum",
            "databroker_proto",
            "h2",
            "http",
            "http_body",
            "http_body_util",
            "hyper",
            "hyper_util",
            "matchit",
            "slab",
            "tonic",
            "tonic_prost",
            "tower",
            "tower_layer",
            "tower_service",
        ],
    ),
    ("protobuf", &["prost", "prost_types", "prost_reflect"]),
    (
        "token",
        &[
            "base64",
            "digest",
            "hmac",
            "jsonwebtoken",
            "serde",
            "serde_core",
            "serde_json",
            "sha2",
            "signature",
            "subtle",
        ],
    ),
    (
        "runtime",
        &[
            "arc_swap",
            "futures",
            "futures_channel",
            "futures_core",
            "futures_util",
            "mio",
            "parking_lot",
            "parking_lot_core",
            "socket2",
            "tokio",
            "tokio_stream",
            "tokio_util",
        ],
    ),
    (
        "host",
        &[
            "databroker_host",
            "ipnet",
            "memchr",
            "prometheus_client",
            "tracing",
            "tracing_core",
            "tracing_subscriber",
        ],
    ),
    (
        "boundary",
        &["wasmtime", "wasmtime_environ", "wasmtime_fiber", "wasmtime_wasi"],
    ),
    ("store", &["memory"]),
    ("allocation, copying", &["bytes", "mimalloc"]),
];

/// What is none of these, the language's own library above all.
pub(crate) const OTHER: &str = "other";

/// The host's code on its side of the boundary.
const COMPONENT: &str = "databroker_host::component::";

/// Samples a process until it is finished, or dropped.
pub(crate) struct Sampler {
    perf: Child,
    directory: tempfile::TempDir,
}

impl Sampler {
    pub(crate) fn start(process: u32) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let samples = directory.path().join("samples");
        let mut perf = Command::new("perf")
            .args([
                "record",
                "--quiet",
                "--freq",
                "1999",
                "--pid",
                &process.to_string(),
                "--output",
            ])
            .arg(&samples)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("running perf")?;
        // It is not there at once; the work is to begin when it has its counters, after which it writes a head. Where it has ended,
        // `finish` says so.
        let has_begun = || samples.metadata().is_ok_and(|file| file.len() > 0);
        while !has_begun() && perf.try_wait()?.is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Self { perf, directory })
    }

    /// What share of the time went into each part.
    pub(crate) fn finish(mut self) -> anyhow::Result<BTreeMap<String, f64>> {
        let stopped = Command::new("kill")
            .args(["-INT", &self.perf.id().to_string()])
            .status()?;
        ensure!(
            stopped.success(),
            "perf has ended before it was told to: may this user sample processes?"
        );
        self.perf.wait()?;
        let report = Command::new("perf")
            .args([
                "report",
                "--stdio",
                "--no-children",
                "--sort",
                "dso,symbol",
                "--field-separator",
                "|",
                "--input",
            ])
            .arg(self.directory.path().join("samples"))
            .stderr(Stdio::null())
            .output()?;
        let shares = added_up(&String::from_utf8_lossy(&report.stdout));
        ensure!(
            !shares.is_empty(),
            "perf has no samples: may this user sample processes?"
        );
        Ok(shares)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // Where it was finished, it has ended already.
        let _ = self.perf.kill();
        let _ = self.perf.wait();
    }
}

/// The shares in a report of perf's: lines of a percentage, where the code is from, and its name.
fn added_up(report: &str) -> BTreeMap<String, f64> {
    let mut shares = BTreeMap::new();
    for line in report.lines().filter(|line| !line.starts_with('#')) {
        let mut fields = line.splitn(3, '|');
        let (Some(share), Some(from), Some(name)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        if let Ok(share) = share.trim().trim_end_matches('%').parse::<f64>() {
            *shares.entry(part(from.trim(), name.trim()).to_owned()).or_default() += share;
        }
    }
    shares
}

/// What code is there for.
fn part(from: &str, name: &str) -> &'static str {
    let file = Path::new(from)
        .file_name()
        .and_then(|file| file.to_str())
        .unwrap_or(from);
    if file.starts_with("[kernel") || file == "[vdso]" {
        return "kernel";
    }
    // A plugin's code is in no file.
    if file.starts_with("[JIT]") || file.starts_with("//anon") || file == "[unknown]" {
        return "store";
    }
    let name = name.trim_start_matches("[.]").trim();
    if file.starts_with("libc") || name.starts_with("mi_") || name.starts_with("_mi_") {
        return "allocation, copying";
    }
    // Ordered maps are the stores'; without a plugin their code has no other name.
    if name.contains("collections::btree") {
        return "store";
    }
    if name.contains(COMPONENT) {
        return "boundary";
    }
    let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let mut libraries = name
        .split("::")
        .filter_map(|path| path.rsplit(|letter| !is_of_name(letter)).next());
    let known = libraries.find_map(|library| PARTS.iter().find(|(_, libraries)| libraries.contains(&library)));
    known.map_or(OTHER, |(part, _)| part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_told_by_where_it_is_from() {
        for (from, name, expected) in [
            ("[kernel.kallsyms]", "[k] tcp_sendmsg_locked", "kernel"),
            ("[JIT] tid 7052", "[.] 0x00007fa0fdf2bad4", "store"),
            ("libc.so.6", "[.] __memmove_avx_unaligned_erms", "allocation, copying"),
            ("databroker-host", "[.] _mi_page_malloc_zero", "allocation, copying"),
            (
                "databroker-host",
                "[.] <h2::codec::framed_read::FramedRead<T> as futures_core::stream::Stream>::poll_next",
                "HTTP/2, gRPC",
            ),
            (
                "databroker-host",
                "[.] core::ptr::drop_in_place<tonic::request::Request<()>>",
                "HTTP/2, gRPC",
            ),
            (
                "databroker-host",
                "[.] <&mut serde_json::de::Deserializer<R> as serde_core::de::Deserializer>::deserialize_map",
                "token",
            ),
            (
                "databroker-host",
                "[.] <databroker_host::component::adapter::ComponentBackend as databroker_host::backend::Backend>::get::{{closure}}",
                "boundary",
            ),
            ("databroker-host", "[.] databroker_host::grpc::call::Call::end", "host"),
            ("databroker-benchmark", "[.] memory::table::Table<D>::upsert", "store"),
            ("databroker-host", "[.] core::str::converts::from_utf8", OTHER),
        ] {
            assert_eq!(part(from, name), expected, "{name}");
        }
    }

    #[test]
    fn shares_are_added_up() {
        let report =
            "# Samples: 2K\n#\n    12.50%|[kernel.kallsyms]|[k] a\n     7.25%|[vdso]|[.] b|c\n\n     1.00%|x|[.] d\n";
        let shares = added_up(report);
        assert_eq!(shares, [("kernel".to_owned(), 19.75), (OTHER.to_owned(), 1.0)].into());
    }
}
