//! What was aimed at, so that what was missed is said with the figures and not left to the reader.

use crate::report::{self, BARE, Figure, HOST, Kind, NATIVE, Row, STOCK};

/// An aim for a figure of the host's.
struct Aim {
    /// Workloads whose name begins with this.
    workloads: &'static str,
    measure: Measure,
    limit: Limit,
}

/// What of a workload's figures is meant, and whether it should be low or high.
#[derive(Clone, Copy)]
enum Measure {
    /// Processor time, memory or time to start: at most so much.
    Cost,
    /// Processor time of the database: at most so much.
    Database,
    /// Operations a second: at least so many.
    Throughput,
}

#[derive(Clone, Copy)]
enum Limit {
    /// So many times another server's figure.
    Of(&'static str, f64),
    /// Microseconds.
    Microseconds(f64),
}

/// An aim beside what came out.
pub(crate) struct Outcome {
    pub workload: String,
    pub stored: usize,
    /// What is compared, and with what.
    pub figure: String,
    pub aim: String,
    pub seen: String,
    pub met: bool,
}

const fn cost(workloads: &'static str, server: &'static str, times: f64) -> Aim {
    Aim {
        workloads,
        measure: Measure::Cost,
        limit: Limit::Of(server, times),
    }
}

const MEMORY: [Aim; 28] = [
    cost("Get, 64", STOCK, 1.0 / 3.5),
    cost("Get, 64", BARE, 1.5),
    cost("Put of one, 64", STOCK, 1.0 / 5.0),
    cost("Put of one, 64", BARE, 1.5),
    cost("Put of 100,", STOCK, 1.0 / 20.0),
    cost("Put of 100,", BARE, 2.5),
    cost("Patch, 64", STOCK, 1.0 / 7.0),
    cost("Patch, 64", BARE, 2.0),
    cost("Query by indexed field, 16", STOCK, 1.0 / 7.0),
    cost("Query by indexed field, 16", BARE, 1.5),
    cost("Query by id, 16", STOCK, 1.0 / 3.0),
    cost("Query by id, 16", BARE, 1.4),
    cost("Query of a page,", STOCK, 1.0 / 20.0),
    Aim {
        workloads: "Query by unindexed field",
        measure: Measure::Cost,
        limit: Limit::Microseconds(2.0),
    },
    cost("Query by text", STOCK, 1.0 / 10.0),
    cost("Lease renewal, 16", STOCK, 1.0 / 4.0),
    cost("Lease renewal, 16", BARE, 1.3),
    cost("SyncLatest", STOCK, 1.0 / 5.0),
    cost("SyncLatest", BARE, 1.7),
    cost("Replay of changes", STOCK, 1.0 / 12.0),
    cost("Replay of changes", BARE, 2.0),
    cost("Fan-out to 100 streams", STOCK, 1.0 / 6.0),
    cost("Fan-out to 100 streams", BARE, 1.4),
    cost("Memory", STOCK, 1.0 / 2.0),
    cost("Cold start", STOCK, 1.0 / 2.0),
    cost("Get,", NATIVE, 1.25),
    cost("Put of one,", NATIVE, 1.25),
    cost("Put of 100,", NATIVE, 1.25),
];

const fn of_stock(measure: Measure, workloads: &'static str, times: f64) -> Aim {
    Aim {
        workloads,
        measure,
        limit: Limit::Of(STOCK, times),
    }
}

const POSTGRES: [Aim; 9] = [
    of_stock(Measure::Throughput, "Put of one, 64", 10.0),
    of_stock(Measure::Throughput, "Put of 100,", 15.0),
    of_stock(Measure::Throughput, "Patch, 64", 8.0),
    of_stock(Measure::Throughput, "Get, 64", 4.0),
    of_stock(Measure::Throughput, "SyncLatest", 15.0),
    of_stock(Measure::Throughput, "Replay of changes", 15.0),
    of_stock(Measure::Cost, "Fan-out to 100 streams", 1.0 / 20.0),
    of_stock(Measure::Database, "Query by indexed field,", 1.0 / 20.0),
    of_stock(Measure::Database, "Put of one, 64", 1.0 / 2.0),
];

/// All aims of this kind of run for which both figures were measured.
pub(crate) fn outcomes(kind: Kind, rows: &[Row]) -> Vec<Outcome> {
    let aims: &[Aim] = match kind {
        Kind::Memory => &MEMORY,
        Kind::Postgres => &POSTGRES,
        Kind::Curves | Kind::Shares => &[],
    };
    let of_host = |aim: &'static Aim| {
        rows.iter()
            .filter(|row| row.server == HOST && row.workload.starts_with(aim.workloads))
            .filter_map(|row| outcome(aim, rows, row))
    };
    aims.iter().flat_map(of_host).collect()
}

fn outcome(aim: &Aim, rows: &[Row], row: &Row) -> Option<Outcome> {
    let (figure, name): (Figure, _) = match aim.measure {
        Measure::Cost => (|row| row.cost, "cost"),
        Measure::Database => (|row| row.database, "database"),
        Measure::Throughput => (|row| row.throughput, "rate"),
    };
    let (seen, limit, name, unit) = match aim.limit {
        Limit::Of(server, limit) => {
            let seen = report::ratio(rows, row, server, figure)?;
            (seen, limit, format!("{name}, of {server}"), "")
        }
        Limit::Microseconds(limit) => (figure(row)?.median, limit, name.to_owned(), " µs"),
    };
    let (bound, met) = match aim.measure {
        Measure::Cost | Measure::Database => ("at most", seen <= limit),
        Measure::Throughput => ("at least", seen >= limit),
    };
    Some(Outcome {
        workload: row.workload.clone(),
        stored: row.stored,
        figure: name,
        aim: format!("{bound} {}{unit}", report::part(limit)),
        seen: format!("{}{unit}", report::part(seen)),
        met,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::report::Measurement;
    use crate::workload;

    #[test]
    fn every_aim_is_for_a_workload_that_is_measured() {
        let in_memory = (workload::in_memory(10_000), &MEMORY[..]);
        let on_postgres = (workload::on_postgres(10_000), &POSTGRES[..]);
        for (steps, aims) in [in_memory, on_postgres] {
            let workloads = steps.iter().flat_map(|step| &step.workloads);
            let names: Vec<String> = workloads.map(|workload| workload.name()).collect();
            for aim in aims {
                let measured = names.iter().any(|name| name.starts_with(aim.workloads));
                assert!(measured, "{} is not among {names:?}", aim.workloads);
            }
        }
    }

    #[test]
    fn an_aim_is_met_on_its_own_side() {
        let measurement = |server: &str, processor, throughput| Measurement {
            processor: Some(processor),
            throughput: Some(throughput),
            ..Measurement::new(0, server, "Get, 64 callers".to_owned(), 10)
        };
        let rows = report::rows(&[measurement(HOST, 20.0, 300.0), measurement(STOCK, 100.0, 100.0)]);
        let told = |kind| {
            let outcomes = outcomes(kind, &rows);
            let outcome = outcomes.first().unwrap();
            format!("{} {} {} {}", outcome.figure, outcome.aim, outcome.seen, outcome.met)
        };
        assert_eq!(told(Kind::Memory), "cost, of stock at most 0.29 0.20 true");
        assert_eq!(told(Kind::Postgres), "rate, of stock at least 4.00 3.00 false");
    }
}
