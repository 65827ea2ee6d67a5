//! What came out: medians over the rounds, with their spread, and ratios to Pomerium's server and to bare gRPC.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

/// This project's server.
pub(crate) const HOST: &str = "host";
/// The host without a plugin.
pub(crate) const NATIVE: &str = "native";
/// What gRPC itself costs.
pub(crate) const BARE: &str = "bare";
/// The server that others are compared with.
pub(crate) const STOCK: &str = "stock";
/// The same, without its tracer.
pub(crate) const STOCK_WITHOUT_TRACER: &str = "stock without tracer";
/// All servers, in the order of columns.
pub(crate) const SERVERS: [&str; 5] = [HOST, NATIVE, BARE, STOCK, STOCK_WITHOUT_TRACER];

/// Where the records were, and what was asked of the figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// All workloads, in memory.
    Memory,
    /// All workloads, on Postgres.
    Postgres,
    /// How costs grow with what is stored and with streams.
    Curves,
    /// Where this project's server spends its time, in memory.
    Shares,
}

/// All that a run has measured: what `--json` writes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub kind: Kind,
    /// The processor's kind, as the system tells it.
    pub processor: String,
    /// How many processors there are; the server has one and the load another.
    pub processors: usize,
    /// The machine's memory in bytes.
    pub memory: u64,
    /// How often all was measured.
    pub rounds: usize,
    /// How long each workload was measured in a round.
    pub seconds: f64,
    pub measurements: Vec<Measurement>,
}

/// One measurement of one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measurement {
    pub round: usize,
    pub server: String,
    /// The workload's name.
    pub workload: String,
    /// Callers at the same time.
    pub callers: usize,
    /// Records in the store at the beginning.
    pub stored: usize,
    /// Streams that changes were delivered to, where that was what was measured.
    pub streams: Option<usize>,
    /// Calls, records or deliveries a second.
    pub throughput: Option<f64>,
    /// Microseconds of the server's processor per call, record or delivery.
    pub processor: Option<f64>,
    /// The same of the database's processes.
    pub database: Option<f64>,
    /// Latency of a call in microseconds.
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    /// Records a second that another client read by SyncLatest meanwhile.
    pub read_beside: Option<f64>,
    /// Resident memory of the server in megabytes (1,000,000 bytes).
    pub memory: Option<f64>,
    /// From the start of the process to its first answer, in milliseconds.
    pub start: Option<f64>,
    /// What share of the processor time, in percent, went into what.
    pub shares: Option<BTreeMap<String, f64>>,
}

impl Measurement {
    pub(crate) fn new(round: usize, server: &str, workload: String, stored: usize) -> Self {
        Self {
            round,
            server: server.to_owned(),
            workload,
            callers: 1,
            stored,
            streams: None,
            throughput: None,
            processor: None,
            database: None,
            p50: None,
            p99: None,
            read_beside: None,
            memory: None,
            start: None,
            shares: None,
        }
    }

    /// The one figure by which servers are compared.
    fn cost(&self) -> Option<f64> {
        self.processor.or(self.memory).or(self.start)
    }
}

/// The measurement of the call at this rank of all, of percents, in microseconds. None of the highest ranks where there were
/// too few calls for one to be above it.
pub(crate) fn percentile(latencies: &mut [Duration], rank: usize) -> Option<f64> {
    latencies.sort_unstable();
    if rank > 50 && latencies.len() * (100 - rank) < 100 {
        return None;
    }
    let last = latencies.len().checked_sub(1)?;
    let index = (last * rank + 50) / 100;
    latencies.get(index).map(|latency| latency.as_secs_f64() * 1e6)
}

/// The median over the rounds, and between what the rounds were.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Median {
    pub median: f64,
    pub lowest: f64,
    pub highest: f64,
}

/// The medians of one workload on one server.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub workload: String,
    pub callers: usize,
    pub stored: usize,
    pub streams: Option<usize>,
    pub server: String,
    pub throughput: Option<Median>,
    pub p50: Option<Median>,
    pub p99: Option<Median>,
    /// Processor time (µs), memory (MB) or time to start (ms).
    pub cost: Option<Median>,
    /// Processor time of the database (µs).
    pub database: Option<Median>,
    pub read_beside: Option<Median>,
    /// What share of the processor time, in percent, went into what in the first round.
    pub shares: Option<BTreeMap<String, f64>>,
}

/// The rows of all measurements: workloads in the order in which they were made, and of each the servers.
pub(crate) fn rows(measurements: &[Measurement]) -> Vec<Row> {
    let mut order = Vec::new();
    let mut groups: BTreeMap<_, Vec<&Measurement>> = BTreeMap::new();
    for one in measurements {
        let workload = (one.stored, one.workload.as_str());
        if !order.contains(&workload) {
            order.push(workload);
        }
        groups.entry((workload, one.server.as_str())).or_default().push(one);
    }
    let workloads = order.into_iter();
    workloads
        .flat_map(|workload| SERVERS.map(|server| (workload, server)))
        .filter_map(|(workload, server)| {
            let group = groups.get(&(workload, server))?;
            let (stored, workload) = workload;
            Some(Row {
                workload: workload.to_owned(),
                callers: group.first()?.callers,
                stored,
                streams: group.first().and_then(|one| one.streams),
                server: server.to_owned(),
                throughput: median(group, |one| one.throughput),
                p50: median(group, |one| one.p50),
                p99: median(group, |one| one.p99),
                cost: median(group, Measurement::cost),
                database: median(group, |one| one.database),
                read_beside: median(group, |one| one.read_beside),
                shares: group.first().and_then(|one| one.shares.clone()),
            })
        })
        .collect()
}

fn median(group: &[&Measurement], figure: impl Fn(&Measurement) -> Option<f64>) -> Option<Median> {
    let mut figures: Vec<f64> = group.iter().filter_map(|one| figure(one)).collect();
    figures.sort_unstable_by(f64::total_cmp);
    let middle = figures.len().checked_sub(1)? / 2;
    let low = *figures.get(middle)?;
    let high = *figures.get(figures.len() / 2)?;
    Some(Median {
        median: f64::midpoint(low, high),
        lowest: *figures.first()?,
        highest: *figures.last()?,
    })
}

/// How the cost of one workload on one server grows.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub name: String,
    pub server: String,
    /// Over what: records or streams.
    pub over: &'static str,
    /// Costs at so many of them, ascending.
    pub points: Vec<(usize, Median)>,
}

/// The series that rows make: a delivery's cost over streams, all others over records.
pub(crate) fn series(rows: &[Row]) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    for row in rows {
        let Some(cost) = row.cost else { continue };
        let (name, over, place) = match row.streams {
            Some(streams) => ("Fan-out, per delivery", "streams", streams),
            None => (row.workload.as_str(), "records", row.stored),
        };
        let known = all
            .iter_mut()
            .find(|series| series.name == name && series.server == row.server);
        if let Some(series) = known {
            series.points.push((place, cost));
            series.points.sort_unstable_by_key(|(place, _)| *place);
        } else {
            all.push(Series {
                name: name.to_owned(),
                server: row.server.clone(),
                over,
                points: vec![(place, cost)],
            });
        }
    }
    all
}

/// A figure of a row.
pub(crate) type Figure = fn(&Row) -> Option<Median>;

/// The median of one server as a part of another's, for the same workload: 0.25 is a quarter.
pub(crate) fn ratio(rows: &[Row], row: &Row, other: &str, figure: Figure) -> Option<f64> {
    let other = rows
        .iter()
        .find(|one| one.server == other && one.workload == row.workload && one.stored == row.stored)?;
    let other = figure(other)?.median;
    (other > 0.0).then_some(figure(row)?.median / other)
}

/// The table for people who watch.
pub(crate) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header([
        "workload",
        "records",
        "server",
        "a second",
        "p50 µs",
        "p99 µs",
        "cost",
        "spread",
        "of bare",
        "database",
        "read beside",
    ]);
    for row in rows {
        let compared = |figure: Figure| {
            let Some(value) = figure(row) else {
                return String::new();
            };
            match ratio(rows, row, STOCK, figure) {
                Some(ratio) => format!("{} ({})", number(value.median), part(ratio)),
                None => number(value.median),
            }
        };
        let spread = row
            .cost
            .map(|cost| format!("{}-{}", number(cost.lowest), number(cost.highest)));
        table.add_row([
            row.workload.clone(),
            row.stored.to_string(),
            row.server.clone(),
            compared(|row| row.throughput),
            compared(|row| row.p50),
            compared(|row| row.p99),
            compared(|row| row.cost),
            spread.unwrap_or_default(),
            ratio(rows, row, BARE, |row| row.cost).map(part).unwrap_or_default(),
            compared(|row| row.database),
            compared(|row| row.read_beside),
        ]);
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Three digits that matter, and all before the point.
pub(crate) fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => whole(value.round() as usize),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// With a comma at each thousand.
pub(crate) fn whole(value: usize) -> String {
    match (value / 1000, value % 1000) {
        (0, rest) => rest.to_string(),
        (thousands, rest) => format!("{},{rest:03}", whole(thousands)),
    }
}

/// A part of something.
pub(crate) fn part(ratio: f64) -> String {
    match ratio {
        ratio if ratio < 0.1 => format!("{ratio:.3}"),
        ratio if ratio < 10.0 => format!("{ratio:.2}"),
        ratio => number(ratio),
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
            measurement(0, HOST, 30.0),
            measurement(0, STOCK, 100.0),
            measurement(1, HOST, 20.0),
            measurement(1, STOCK, 80.0),
            measurement(2, HOST, 90.0),
        ];
        let rows = rows(&measurements);
        let servers: Vec<_> = rows.iter().map(|row| row.server.as_str()).collect();
        assert_eq!(servers, [HOST, STOCK]);
        let host = rows.first().unwrap();
        let cost: Figure = |row| row.cost;
        let expected = Median {
            median: 30.0,
            lowest: 20.0,
            highest: 90.0,
        };
        assert_eq!(cost(host), Some(expected));
        assert_eq!(ratio(&rows, host, STOCK, cost), Some(30.0 / 90.0));
        assert_eq!(ratio(&rows, host, BARE, cost), None);
    }

    #[test]
    fn numbers_have_three_digits_that_matter() {
        let numbers = [0.0, 0.123, 12.34, 123.4, 1234.4, 1_034_567.0].map(number);
        assert_eq!(numbers, ["0.00", "0.12", "12.3", "123", "1,234", "1,034,567"]);
        assert_eq!([0.0031, 0.5, 12.34].map(part), ["0.003", "0.50", "12.3"]);
    }

    #[test]
    fn percentiles_are_calls_that_were_made() {
        let mut latencies: Vec<_> = (0..=100).rev().map(Duration::from_micros).collect();
        assert_eq!(percentile(&mut latencies, 50), Some(50.0));
        assert_eq!(percentile(&mut latencies, 99), Some(99.0));
        assert_eq!(percentile(&mut [], 50), None);
        let mut few: Vec<_> = (0..99).map(Duration::from_micros).collect();
        assert_eq!(percentile(&mut few, 50), Some(49.0));
        assert_eq!(percentile(&mut few, 99), None);
    }
}
