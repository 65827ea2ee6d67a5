//! Running cases: side by side where they allow it, then one by one those that do not, each within its time.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt, stream};

use crate::broker::Broker;
use crate::case::{Case, Skip};
use crate::cases;
use crate::known::Known;
use crate::report::{CaseReport, Outcome, Report};
use crate::target::Target;

/// How long a server may take to go down.
const GOING_DOWN: Duration = Duration::from_millis(300);

/// The conformance suite.
pub struct Suite;

/// Which cases to run, and how.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Only cases whose name or law contains one of these; empty for all.
    pub filters: Vec<String>,
    /// How many cases run side by side; at least 1.
    pub jobs: usize,
    /// The cases that are expected to fail.
    pub known: Known,
    /// How long a case waits for a server that is not there before it begins: for one that a case may bring down and that
    /// is then started again.
    pub patience: Duration,
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            filters: Vec::new(),
            jobs: 4,
            known: Known::default(),
            patience: Duration::ZERO,
        }
    }
}

impl Selection {
    /// True where the case is to run.
    pub fn includes(&self, case: &Case) -> bool {
        self.filters.is_empty()
            || self
                .filters
                .iter()
                .any(|filter| case.name.contains(filter.as_str()) || case.law.contains(filter.as_str()))
    }
}

impl Suite {
    /// All cases, by area.
    pub fn cases() -> Vec<Case> {
        cases::ALL.iter().copied().flatten().cloned().collect()
    }

    /// Runs the selected cases against a server.
    pub async fn run(target: &Target, selection: &Selection) -> Report {
        let selected: Vec<Case> = Self::cases()
            .into_iter()
            .filter(|case| selection.includes(case))
            .collect();
        let names: BTreeSet<&str> = Self::cases().iter().map(|case| case.name).collect();
        let (alone, together): (Vec<Case>, Vec<Case>) = selected.into_iter().partition(|case| case.alone);
        // In the order of the list, so that two reports can be compared line by line.
        let mut reports: Vec<CaseReport> = stream::iter(together)
            .map(|case| check(target, case, selection))
            .buffered(selection.jobs.max(1))
            .collect()
            .await;
        for case in alone {
            reports.push(check(target, case, selection).await);
        }
        Report {
            cases: reports,
            unknown: selection.known.names_not_in(&names),
        }
    }
}

/// Runs one case in a task of its own, so that a fault of the case itself is a failure like others.
async fn check(target: &Target, case: Case, selection: &Selection) -> CaseReport {
    // Where it stays away, the case says so itself.
    let _ = target.wait(selection.patience).await;
    let broker = Broker::new(target, case.name);
    let start = Instant::now();
    let result = tokio::time::timeout(case.limit, AssertUnwindSafe((case.check)(broker)).catch_unwind()).await;
    if selection.patience > Duration::ZERO && !matches!(result, Ok(Ok(Ok(())))) {
        // A server that the case has brought down may still take connections for a moment.
        tokio::time::sleep(GOING_DOWN).await;
    }
    let outcome = match result {
        Ok(Ok(Ok(()))) => Outcome::Passed,
        Ok(Ok(Err(error))) => match error.downcast_ref::<Skip>() {
            Some(Skip(reason)) => Outcome::Skipped(reason.clone()),
            None => Outcome::Failed(format!("{error:#}")),
        },
        Ok(Err(_)) => Outcome::Failed("the case itself panicked".to_owned()),
        Err(_) => Outcome::Failed(format!("still running after {:?}", case.limit)),
    };
    CaseReport {
        name: case.name,
        law: case.law,
        description: case.description,
        expected: selection.known.reason(case.name).map(str::to_owned),
        outcome,
        duration: start.elapsed(),
    }
}
