//! What came out: medians over the rounds, with their spread, and ratios to Pomerium's server and to bare gRPC.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// The server that others are compared with.
pub(crate) const STOCK: &str = "stock";
/// What gRPC itself costs.
pub(crate) const BARE: &str = "bare";

/// One measurement of one round.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measurement {
    pub round: usize,
    pub server: String,
    /// The workload's name.
    pub workload: String,
    /// Records in the store at the beginning.
    pub stored: usize,
    /// Calls, records or deliveries a second.
    pub throughput: Option<f64>,
    /// Microseconds of the server's processor per call, record or delivery.
    pub processor: Option<f64>,
    /// Latency of a call in microseconds.
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    /// Resident memory of the server in megabytes (1,000,000 bytes).
    pub memory: Option<f64>,
    /// From the start of the process to its first answer, in milliseconds.
    pub start: Option<f64>,
}

impl Measurement {
    pub(crate) fn new(round: usize, server: &str, workload: String, stored: usize) -> Self {
        Self {
            round,
            server: server.to_owned(),
            workload,
            stored,
            throughput: None,
            processor: None,
            p50: None,
            p99: None,
            memory: None,
            start: None,
        }
    }

    /// The one figure by which servers are compared.
    fn cost(&self) -> Option<f64> {
        self.processor.or(self.memory).or(self.start)
    }
}

/// The measurement of the call at this rank of all, in microseconds.
pub(crate) fn percentile(latencies: &mut [Duration], rank: f64) -> Option<f64> {
    latencies.sort_unstable();
    let last = latencies.len().checked_sub(1)?;
    let index = (last as f64 * rank).round() as usize;
    latencies.get(index).map(|latency| latency.as_secs_f64() * 1e6)
}

/// The median of one workload on one server.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub workload: String,
    pub stored: usize,
    pub server: String,
    pub throughput: Option<f64>,
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    /// Processor time (µs), memory (MB) or time to start (ms): the median.
    pub cost: Option<f64>,
    /// The lowest and the highest of the rounds.
    pub spread: Option<(f64, f64)>,
    /// `cost` against that of the stock server: 0.25 is a quarter.
    pub of_stock: Option<f64>,
    /// `cost` against that of bare gRPC.
    pub of_bare: Option<f64>,
}

/// The rows of all measurements, in the order in which they were made.
pub(crate) fn rows(measurements: &[Measurement]) -> Vec<Row> {
    let mut order = Vec::new();
    let mut groups: BTreeMap<(usize, &str, &str), Vec<&Measurement>> = BTreeMap::new();
    for one in measurements {
        let workload = (one.stored, one.workload.as_str());
        if !order.contains(&workload) {
            order.push(workload);
        }
        groups
            .entry((one.stored, &one.workload, &one.server))
            .or_default()
            .push(one);
    }
    let mut rows = Vec::new();
    for (stored, workload) in order {
        let of_workload: Vec<_> = groups
            .iter()
            .filter(|((size, name, _), _)| *size == stored && *name == workload)
            .collect();
        let cost_of = |server: &str| {
            let (_, group) = of_workload.iter().find(|((_, _, name), _)| *name == server)?;
            median(group, Measurement::cost)
        };
        for ((_, _, server), group) in &of_workload {
            let cost = median(group, Measurement::cost);
            let ratio = |other: &str| Some(cost? / cost_of(other).filter(|other| *other > 0.0)?);
            let costs = group.iter().filter_map(|one| one.cost());
            rows.push(Row {
                workload: workload.to_owned(),
                stored,
                server: (*server).to_owned(),
                throughput: median(group, |one| one.throughput),
                p50: median(group, |one| one.p50),
                p99: median(group, |one| one.p99),
                cost,
                spread: cost.map(|_| {
                    costs.fold((f64::MAX, 0.0_f64), |(low, high), one: f64| {
                        (low.min(one), high.max(one))
                    })
                }),
                of_stock: ratio(STOCK),
                of_bare: ratio(BARE),
            });
        }
    }
    rows
}

fn median(group: &[&Measurement], figure: impl Fn(&Measurement) -> Option<f64>) -> Option<f64> {
    let mut figures: Vec<f64> = group.iter().filter_map(|one| figure(one)).collect();
    figures.sort_unstable_by(f64::total_cmp);
    let middle = figures.len().checked_sub(1)? / 2;
    let low = *figures.get(middle)?;
    let high = *figures.get(figures.len() / 2)?;
    Some((low + high) / 2.0)
}

/// The table for people.
pub(crate) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header([
        "workload", "records", "server", "a second", "p50 µs", "p99 µs", "cost", "spread", "of stock", "of bare",
    ]);
    for row in rows {
        let spread = row
            .spread
            .map(|(low, high)| format!("{}-{}", figure(Some(low)), figure(Some(high))));
        let ratio = |ratio: Option<f64>| ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        table.add_row([
            row.workload.clone(),
            row.stored.to_string(),
            row.server.clone(),
            figure(row.throughput),
            figure(row.p50),
            figure(row.p99),
            figure(row.cost),
            spread.unwrap_or_default(),
            ratio(row.of_stock),
            ratio(row.of_bare),
        ]);
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Three digits that matter.
fn figure(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_row_is_a_median_and_compares_it() {
        let measurement = |round, server: &str, processor| Measurement {
            processor: Some(processor),
            ..Measurement::new(round, server, "Get".to_owned(), 10)
        };
        let measurements = [
            measurement(0, "host", 30.0),
            measurement(0, STOCK, 100.0),
            measurement(1, "host", 20.0),
            measurement(1, STOCK, 80.0),
            measurement(2, "host", 90.0),
        ];
        let rows = rows(&measurements);
        let host = rows.iter().find(|row| row.server == "host").unwrap();
        assert_eq!(host.cost, Some(30.0));
        assert_eq!(host.spread, Some((20.0, 90.0)));
        assert_eq!(host.of_stock, Some(30.0 / 90.0));
        assert_eq!(host.of_bare, None);
    }

    #[test]
    fn percentiles_are_calls_that_were_made() {
        let mut latencies: Vec<_> = (0..=100).rev().map(Duration::from_micros).collect();
        assert_eq!(percentile(&mut latencies, 0.5), Some(50.0));
        assert_eq!(percentile(&mut latencies, 0.99), Some(99.0));
        assert_eq!(percentile(&mut [], 0.5), None);
    }
}
