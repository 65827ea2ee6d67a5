//! Every workload runs on both servers that this program carries, and its figures can be read. No figure is asserted.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

#[test]
fn every_workload_runs_and_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let told = measured(folder.path(), &["run", "--records", "100"]);
    let measurements = told.report["measurements"].as_array().unwrap();
    // Each workload once on each server.
    let on = |server: &str| measurements.iter().filter(|one| one["server"] == server).count();
    assert_eq!((on("bare"), on("native")), (29, 29), "{}", told.table);
    for one in measurements {
        let known = ["throughput", "memory", "start"]
            .iter()
            .filter_map(|figure| one[*figure].as_f64())
            .any(|figure| figure > 0.0);
        assert!(known, "{one}");
        assert!(told.table.contains(one["workload"].as_str().unwrap()), "{}", told.table);
    }
    assert!(told.svg.contains("Memory, MB (1000), native"), "{}", told.svg);
    assert!(told.page.contains("| Get, 64 callers |"), "{}", told.page);
    assert!(
        told.page.contains("| SyncLatest, per record, 1,000 records |"),
        "{}",
        told.page
    );
}

#[test]
fn curves_have_a_point_at_each_number() {
    let folder = tempfile::tempdir().unwrap();
    let told = measured(folder.path(), &["curves", "--records", "100,1000", "--streams", "1,10"]);
    // The memory always has a figure, however little is measured.
    let memory = told
        .page
        .lines()
        .find(|line| line.starts_with("| Memory, MB | native |"));
    let cells: Vec<&str> = memory.unwrap().split('|').map(str::trim).collect();
    assert_eq!(cells.len(), 7, "{cells:?}");
    assert!(
        cells[3..5].iter().all(|cell| cell.parse::<f64>().unwrap() > 0.0),
        "{cells:?}"
    );
    // A delivery may take less processor time than the system counts.
    let measurements = told.report["measurements"].as_array().unwrap();
    let deliveries = |streams: u64| {
        let of = measurements.iter().filter(|one| one["streams"] == streams);
        of.filter(|one| one["throughput"].as_f64().unwrap() > 0.0).count()
    };
    assert_eq!((deliveries(1), deliveries(10)), (2, 2));
    assert!(told.page.contains("| cost over streams | server |"), "{}", told.page);
    assert!(told.svg.contains("<polyline"), "{}", told.svg);
}

/// What a run has told.
struct Told {
    table: String,
    report: Value,
    svg: String,
    /// The tables for the docs.
    page: String,
}

fn measured(folder: &Path, arguments: &[&str]) -> Told {
    let (json, svg) = (folder.join("figures.json"), folder.join("figures.svg"));
    let table = output(
        Command::new(env!("CARGO_BIN_EXE_databroker-benchmark"))
            .args(arguments)
            .args([
                "--servers",
                "native,bare",
                "--rounds",
                "1",
                "--seconds",
                "0.02",
                "--puts",
                "10",
            ])
            // On a machine with one core both share it. The host is not asked for, but has to be there.
            .args(["--server-core", "0", "--load-core", "0", "--host"])
            .arg(env!("CARGO_BIN_EXE_databroker-benchmark"))
            .arg("--json")
            .arg(&json)
            .arg("--svg")
            .arg(&svg),
    );
    let page = output(
        Command::new(env!("CARGO_BIN_EXE_databroker-benchmark"))
            .arg("page")
            .arg(&json),
    );
    Told {
        table,
        report: serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap(),
        svg: std::fs::read_to_string(&svg).unwrap(),
        page,
    }
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}
