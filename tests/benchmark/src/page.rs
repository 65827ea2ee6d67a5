//! The tables of docs/benchmark.md, made from what runs have written, so that nobody copies a figure by hand.
//!
//! The page has a place for each, between two comments of its name. What stands outside of them is left alone.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::aims;
use crate::report::{
    self, BARE, Figure, HOST, Kind, Median, NATIVE, Report, Row, SERVERS, STOCK, Series, number, part, ratio, whole,
};
use crate::shares::{OTHER, PARTS};
use crate::workload::{MIXED, MIXED_DURING_SYNC_LATEST};

/// Text for the place of a name.
type Block = (&'static str, String);

/// Prints the tables of these reports, or puts them into a page.
pub(crate) fn make(reports: &[PathBuf], into: Option<&Path>) -> anyhow::Result<()> {
    let mut blocks = Vec::new();
    for path in reports {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let report: Report = serde_json::from_str(&text)
            .with_context(|| format!("{} is not what --json writes; measure again", path.display()))?;
        blocks.extend(of_report(&report));
    }
    let Some(into) = into else {
        for (name, text) in blocks {
            println!("<!-- {name} -->\n\n{text}");
        }
        return Ok(());
    };
    let mut page = std::fs::read_to_string(into).with_context(|| format!("reading {}", into.display()))?;
    for (name, text) in blocks {
        page = replaced(&page, name, &text).with_context(|| {
            format!(
                "{} has no place between {} and {}",
                into.display(),
                begin(name),
                end(name)
            )
        })?;
    }
    std::fs::write(into, page).with_context(|| format!("writing {}", into.display()))
}

fn begin(name: &str) -> String {
    format!("<!-- begin of {name}, made by databroker-benchmark page -->")
}

fn end(name: &str) -> String {
    format!("<!-- end of {name} -->")
}

/// The page with another text in the place of this name; none where it has no such place.
fn replaced(page: &str, name: &str, text: &str) -> Option<String> {
    let (before, rest) = page.split_once(&begin(name))?;
    let (_, after) = rest.split_once(&end(name))?;
    Some(format!("{before}{}\n\n{text}\n{}{after}", begin(name), end(name)))
}

fn of_report(report: &Report) -> Vec<Block> {
    let rows = report::rows(&report.measurements);
    let tables = Tables {
        rows: &rows,
        rounds: report.rounds,
    };
    let conditions = conditions(report);
    match report.kind {
        Kind::Memory => vec![
            ("memory", format!("{conditions}\n{}\n{}", tables.all(), tables.mixed())),
            ("aims", aims(report.kind, &rows)),
        ],
        Kind::Postgres => vec![
            (
                "postgres",
                format!("{conditions}\n{}\n{}", tables.all(), tables.mixed()),
            ),
            ("aims on postgres", aims(report.kind, &rows)),
        ],
        Kind::Curves => {
            let series = report::series(&rows);
            let text = format!(
                "{conditions}\n![Curves of all costs](benchmark-curves.svg)\n\n{}\n{}",
                tables.curves(&series, "records"),
                tables.curves(&series, "streams")
            );
            vec![("curves", text)]
        }
        Kind::Shares => vec![("shares", format!("{conditions}\n{}", shares(&rows)))],
    }
}

/// What share of a server's time goes into what, a line for each workload.
pub(crate) fn shares(rows: &[Row]) -> String {
    let base = rows.first().map_or(0, |row| row.stored);
    let parts: Vec<&str> = PARTS.iter().map(|(part, _)| *part).chain([OTHER]).collect();
    let mut columns = vec!["server".to_owned(), "µs".to_owned()];
    columns.extend(parts.iter().map(|part| format!("{part}, %")));
    let mut lines = header("workload", &columns);
    for row in rows {
        let Some(shares) = &row.shares else { continue };
        let cost = row.cost.map(|cost| number(cost.median)).unwrap_or_default();
        let of_part = |part: &&str| shares.get(*part).map(|share| format!("{share:.0}")).unwrap_or_default();
        let mut cells = vec![row.server.clone(), cost];
        cells.extend(parts.iter().map(of_part));
        lines += &line(&labelled(&row.workload, row.stored, base), &cells);
    }
    lines
}

fn conditions(report: &Report) -> String {
    let rounds = match report.rounds {
        1 => "One round".to_owned(),
        rounds => format!("Medians of {rounds} rounds"),
    };
    let spread = if report.rounds > 1 {
        "; ± is half of what lies between the lowest and the highest round"
    } else {
        ""
    };
    format!(
        "{rounds} of {} s{spread}. {} processors ({}), {:.0} GB of memory.\n",
        report.seconds,
        report.processors,
        report.processor,
        report.memory as f64 / 1e9
    )
}

struct Tables<'a> {
    rows: &'a [Row],
    rounds: usize,
}

impl Tables<'_> {
    /// One table for each figure, a line for each workload.
    fn all(&self) -> String {
        let figures: [(&str, &str, Figure); 5] = [
            (
                "Processor time of the server",
                "Microseconds per call, record or delivery; megabytes; milliseconds.",
                |row| row.cost,
            ),
            (
                "Processor time of the database",
                "Microseconds per call, record or delivery, of all of Postgres' processes.",
                |row| row.database,
            ),
            ("Rate", "Calls, records or deliveries a second.", |row| row.throughput),
            ("Latency, median", "Microseconds.", |row| row.p50),
            ("Latency, 99th percentile", "Microseconds.", |row| row.p99),
        ];
        let tables = figures.into_iter().filter_map(|(title, unit, figure)| {
            let table = self.of_figure(figure, title.starts_with("Latency"))?;
            Some(format!("### {title}\n\n{unit}\n\n{table}"))
        });
        tables.collect::<Vec<_>>().join("\n")
    }

    /// None where nobody has that figure.
    fn of_figure(&self, figure: Figure, is_of_calls: bool) -> Option<String> {
        let measured: Vec<&Row> = self.rows.iter().filter(|row| figure(row).is_some()).collect();
        let base = measured.first()?.stored;
        let servers: Vec<&str> = SERVERS
            .into_iter()
            .filter(|server| measured.iter().any(|row| row.server == *server))
            .collect();
        // What the host is of others.
        let others: Vec<&str> = [STOCK, BARE, NATIVE]
            .into_iter()
            .filter(|other| servers.contains(other) && servers.contains(&HOST))
            .collect();
        let mut columns: Vec<String> = servers.iter().map(|server| (*server).to_owned()).collect();
        columns.extend(others.iter().map(|other| format!("host of {other}")));
        let mut lines = header("workload", &columns);
        let mut workloads: Vec<(&str, usize)> =
            measured.iter().map(|row| (row.workload.as_str(), row.stored)).collect();
        workloads.dedup();
        for (workload, stored) in workloads {
            let row_of = |server: &str| {
                let mut rows = measured.iter();
                rows.find(|row| row.workload == workload && row.stored == stored && row.server == server)
            };
            let mut cells: Vec<String> = servers
                .iter()
                .map(|server| {
                    row_of(server)
                        .and_then(|row| figure(row))
                        .map(|value| self.median(value))
                })
                .map(Option::unwrap_or_default)
                .collect();
            cells.extend(others.iter().map(|other| {
                let ratio = row_of(HOST).and_then(|row| ratio(self.rows, row, other, figure));
                ratio.map(part).unwrap_or_default()
            }));
            let name = if is_of_calls { of_calls(workload) } else { workload };
            lines += &line(&labelled(name, stored, base), &cells);
        }
        Some(lines)
    }

    /// Latency under a mixed load, and while everything is read beside it.
    fn mixed(&self) -> String {
        let columns = [
            "p50 µs",
            "p99 µs",
            "p50 during SyncLatest",
            "p99 during SyncLatest",
            "p99, of that without",
            "records a second read beside",
        ]
        .map(str::to_owned);
        let mut lines = header("server", &columns);
        for server in SERVERS {
            let row_of = |workload: &str| {
                let mut rows = self.rows.iter();
                rows.find(|row| row.server == server && row.workload == workload)
            };
            let (Some(alone), Some(beside)) = (row_of(MIXED), row_of(MIXED_DURING_SYNC_LATEST)) else {
                continue;
            };
            let cell = |value: Option<Median>| value.map(|value| self.median(value)).unwrap_or_default();
            let grown = alone.p99.zip(beside.p99);
            let cells = [
                cell(alone.p50),
                cell(alone.p99),
                cell(beside.p50),
                cell(beside.p99),
                grown
                    .map(|(alone, beside)| part(beside.median / alone.median))
                    .unwrap_or_default(),
                cell(beside.read_beside),
            ];
            lines += &line(server, &cells);
        }
        format!("### A mixed load, and everything read beside it\n\n{lines}")
    }

    /// How costs grow over records or streams.
    fn curves(&self, series: &[Series], over: &str) -> String {
        let series: Vec<&Series> = series.iter().filter(|one| one.over == over).collect();
        let mut places: Vec<usize> = series
            .iter()
            .flat_map(|one| &one.points)
            .map(|(place, _)| *place)
            .collect();
        places.sort_unstable();
        places.dedup();
        let mut columns = vec!["server".to_owned()];
        columns.extend(places.iter().map(|&place| whole(place)));
        columns.push("last of first".to_owned());
        let mut lines = header(&format!("cost over {over}"), &columns);
        for one in series {
            let mut cells = vec![one.server.clone()];
            cells.extend(places.iter().map(|place| {
                let point = one.points.iter().find(|(at, _)| at == place);
                point.map(|(_, value)| self.median(*value)).unwrap_or_default()
            }));
            let ends = one.points.first().zip(one.points.last());
            let grown = ends.filter(|((first, _), (last, _))| first < last);
            cells.push(
                grown
                    .map(|((_, first), (_, last))| part(last.median / first.median))
                    .unwrap_or_default(),
            );
            lines += &line(&one.name, &cells);
        }
        lines
    }

    /// A median, and how far the rounds were from each other.
    fn median(&self, value: Median) -> String {
        let text = number(value.median);
        if self.rounds < 2 || value.median <= 0.0 {
            return text;
        }
        let half = (value.highest - value.lowest) / 2.0 / value.median * 100.0;
        format!("{text} ±{half:.0} %")
    }
}

fn aims(kind: Kind, rows: &[Row]) -> String {
    let outcomes = aims::outcomes(kind, rows);
    let base = rows.first().map_or(0, |row| row.stored);
    let mut text = header("workload", &["figure", "aim", "seen", ""].map(str::to_owned));
    for outcome in &outcomes {
        let verdict = if outcome.met { "met" } else { "missed" };
        let cells = [&outcome.figure, &outcome.aim, &outcome.seen].map(Clone::clone);
        let cells = [&cells[..], &[verdict.to_owned()]].concat();
        text += &line(&labelled(&outcome.workload, outcome.stored, base), &cells);
    }
    let met = outcomes.iter().filter(|outcome| outcome.met).count();
    let _ = writeln!(
        text,
        "\nMet: {met} of {}.\n\n{}",
        outcomes.len(),
        single_callers(rows, base)
    );
    text
}

/// Where a single caller waits longer than with Pomerium's server.
fn single_callers(rows: &[Row], base: usize) -> String {
    let figures: [(&str, Figure); 2] = [("median", |row| row.p50), ("99th percentile", |row| row.p99)];
    let alone = |row: &&Row| row.server == HOST && row.callers == 1;
    let compared: Vec<(String, f64)> = rows
        .iter()
        .filter(alone)
        .flat_map(|row| figures.map(|(name, figure)| (row, name, figure)))
        .filter_map(|(row, name, figure)| {
            let times = ratio(rows, row, STOCK, figure)?;
            Some((
                format!("{}, {name}", labelled(of_calls(&row.workload), row.stored, base)),
                times,
            ))
        })
        .collect();
    let longer: Vec<String> = compared
        .iter()
        .filter(|(_, times)| *times > 1.0)
        .map(|(name, times)| format!("- {name}: {} times", part(*times)))
        .collect();
    let count = compared.len();
    if longer.is_empty() {
        format!(
            "A single caller waits no longer than with Pomerium's server, in all {count} medians and 99th percentiles."
        )
    } else {
        format!(
            "Of {count} medians and 99th percentiles of a single caller, these are longer than with Pomerium's server:\n\n{}",
            longer.join("\n")
        )
    }
}

/// A workload of which a figure is that of a call, whatever its cost is counted by.
fn of_calls(workload: &str) -> &str {
    let counted_by = [", per record", ", per delivery"];
    let name = counted_by.iter().find_map(|unit| workload.strip_suffix(unit));
    name.unwrap_or(workload)
}

/// A workload, with the number of records where it is another than most have.
fn labelled(workload: &str, stored: usize, base: usize) -> String {
    if stored == base {
        workload.to_owned()
    } else {
        format!("{workload}, {} records", whole(stored))
    }
}

fn header(first: &str, columns: &[String]) -> String {
    let rule = "---:|".repeat(columns.len());
    format!("{}|---|{rule}\n", line(first, columns))
}

fn line(first: &str, cells: &[String]) -> String {
    format!("| {first} | {} |\n", cells.join(" | "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::report::Measurement;

    #[test]
    fn a_place_is_filled_again_and_the_rest_is_left_alone() {
        let page = format!("before\n{}{}\nafter\n", begin("aims"), end("aims"));
        let once = replaced(&page, "aims", "one").unwrap();
        let twice = replaced(&once, "aims", "two").unwrap();
        assert_eq!(
            twice,
            format!("before\n{}\n\ntwo\n{}\nafter\n", begin("aims"), end("aims"))
        );
        assert_eq!(replaced(&page, "curves", "text"), None);
    }

    #[test]
    fn calls_that_take_longer_for_a_single_caller_are_named() {
        let measurement = |server: &str, callers, p50, p99| Measurement {
            callers,
            p50: Some(p50),
            p99: Some(p99),
            ..Measurement::new(0, server, format!("Put of 100, {callers}, per record"), 10)
        };
        let told = |of_host: [f64; 2]| {
            let [p50, p99] = of_host;
            let measurements = [
                measurement(HOST, 1, p50, p99),
                measurement(STOCK, 1, 10.0, 20.0),
                measurement(HOST, 64, 1000.0, 1000.0),
                measurement(STOCK, 64, 10.0, 20.0),
            ];
            single_callers(&report::rows(&measurements), 10)
        };
        assert!(told([10.0, 20.0]).ends_with("in all 2 medians and 99th percentiles."));
        let longer = told([15.0, 20.0]);
        assert!(longer.ends_with(":\n\n- Put of 100, 1, median: 1.50 times"), "{longer}");
    }

    #[test]
    fn the_page_has_all_places() {
        let page = include_str!("../../../docs/benchmark.md");
        for name in ["memory", "aims", "shares", "postgres", "aims on postgres", "curves"] {
            assert!(replaced(page, name, "text").is_some(), "{name}");
        }
    }
}
