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
    /// The same of the database's processes.
    pub database: Option<f64>,
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
            database: None,
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

/// A median, and what it is of the stock server's: 0.25 is a quarter.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Compared {
    pub median: Option<f64>,
    pub of_stock: Option<f64>,
}

/// The medians of one workload on one server.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub workload: String,
    pub stored: usize,
    pub server: String,
    pub throughput: Compared,
    pub p50: Compared,
    pub p99: Compared,
    /// Processor time (µs), memory (MB) or time to start (ms).
    pub cost: Compared,
    /// The lowest and the highest cost of the rounds.
    pub spread: Option<(f64, f64)>,
    /// `cost` against that of bare gRPC.
    pub of_bare: Option<f64>,
    /// Processor time of the database (µs).
    pub database: Compared,
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
        let of = |server: &str, figure: Figure| {
            let (_, group) = of_workload.iter().find(|((_, _, name), _)| *name == server)?;
            median(group, figure)
        };
        for ((_, _, server), group) in &of_workload {
            let ratio = |other: &str, figure: Figure| {
                Some(median(group, figure)? / of(other, figure).filter(|other| *other > 0.0)?)
            };
            let compared = |figure: Figure| Compared {
                median: median(group, figure),
                of_stock: ratio(STOCK, figure),
            };
            let cost = compared(Measurement::cost);
            let costs = group.iter().filter_map(|one| one.cost());
            rows.push(Row {
                workload: workload.to_owned(),
                stored,
                server: (*server).to_owned(),
                throughput: compared(|one| one.throughput),
                p50: compared(|one| one.p50),
                p99: compared(|one| one.p99),
                spread: cost.median.map(|_| {
                    costs.fold((f64::MAX, 0.0_f64), |(low, high), one: f64| {
                        (low.min(one), high.max(one))
                    })
                }),
                cost,
                of_bare: ratio(BARE, Measurement::cost),
                database: compared(|one| one.database),
            });
        }
    }
    rows
}

/// One figure of a measurement.
type Figure = fn(&Measurement) -> Option<f64>;

fn median(group: &[&Measurement], figure: Figure) -> Option<f64> {
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
        "workload", "records", "server", "a second", "p50 µs", "p99 µs", "cost", "spread", "of bare", "database",
    ]);
    for row in rows {
        let spread = row
            .spread
            .map(|(low, high)| format!("{}-{}", figure(Some(low)), figure(Some(high))));
        let ratio = row.of_bare.map(|ratio| format!("{ratio:.2}"));
        table.add_row([
            row.workload.clone(),
            row.stored.to_string(),
            row.server.clone(),
            compared(row.throughput),
            compared(row.p50),
            compared(row.p99),
            compared(row.cost),
            spread.unwrap_or_default(),
            ratio.unwrap_or_default(),
            compared(row.database),
        ]);
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn compared(value: Compared) -> String {
    match value.of_stock {
        Some(ratio) => format!("{} ({ratio:.2})", figure(value.median)),
        None => figure(value.median),
    }
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
        assert_eq!(host.cost.median, Some(30.0));
        assert_eq!(host.spread, Some((20.0, 90.0)));
        assert_eq!(host.cost.of_stock, Some(30.0 / 90.0));
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
