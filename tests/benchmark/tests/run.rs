//! Every workload runs on both servers that this program carries, and its figures can be read. No figure is asserted.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

use serde_json::Value;

#[test]
fn every_workload_runs_and_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (json, svg) = (folder.path().join("figures.json"), folder.path().join("figures.svg"));
    let output = Command::new(env!("CARGO_BIN_EXE_databroker-benchmark"))
        .args([
            "run",
            "--servers",
            "native,bare",
            "--records",
            "200",
            "--rounds",
            "1",
            "--seconds",
            "0.02",
        ])
        // On a machine with one core both share it.
        .args([
            "--server-core",
            "0",
            "--load-core",
            "0",
            "--host",
            env!("CARGO_BIN_EXE_databroker-benchmark"),
        ])
        .args([("--json", &json), ("--svg", &svg)].map(|(name, path)| format!("{name}={}", path.display())))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let table = String::from_utf8(output.stdout).unwrap();
    let measurements: Vec<Value> = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    // Each workload, memory and the start, once on each server.
    let workloads: Vec<&str> = measurements
        .iter()
        .filter(|one| one["server"] == "bare")
        .map(|one| one["workload"].as_str().unwrap())
        .collect();
    assert_eq!(workloads.len(), 22, "{workloads:?}");
    assert_eq!(measurements.len(), 2 * workloads.len());
    for one in &measurements {
        let known = ["throughput", "memory", "start"]
            .iter()
            .filter_map(|figure| one[*figure].as_f64())
            .any(|figure| figure > 0.0);
        assert!(known, "{one}");
        assert!(table.contains(one["workload"].as_str().unwrap()), "{table}");
    }
    let svg = std::fs::read_to_string(&svg).unwrap();
    assert!(
        svg.starts_with("<svg ") && svg.contains("Memory, MB (200), native"),
        "{svg}"
    );
}
