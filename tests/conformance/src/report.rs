//! What a run has found, and how it is written down: text for people, JSON for programs, JUnit for CI.

use std::fmt::Write;
use std::time::Duration;

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};
use serde::Serialize;

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// One entry per case that was selected, in the order of the suite; those that run alone come last.
    pub cases: Vec<CaseReport>,
    /// Names in the table of known differences that no case has.
    pub unknown: Vec<String>,
}

/// The result of one case.
#[derive(Clone, Debug)]
pub struct CaseReport {
    /// The case's name.
    pub name: &'static str,
    /// The law that it checks.
    pub law: &'static str,
    /// What must hold.
    pub description: &'static str,
    /// Why the case is expected to fail, if it is.
    pub expected: Option<String>,
    /// What came of it.
    pub outcome: Outcome,
    /// How long it took.
    pub duration: Duration,
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The promise was kept.
    Passed,
    /// It was broken; how.
    Failed(String),
    /// It could not be checked against this server; why.
    Skipped(String),
}

/// What an outcome means, given what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// A promise was broken.
    Fail,
    /// Could not be checked.
    Skip,
    /// Fails, as the table of known differences says.
    KnownDifference,
    /// Passes, though the table of known differences says that it fails.
    UnexpectedPass,
}

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people: failures and skips in full, then the sums.
    Text,
    /// One JSON object.
    Json,
    /// JUnit's XML.
    Junit,
}

impl CaseReport {
    /// What the outcome means.
    pub fn verdict(&self) -> Verdict {
        match (&self.outcome, &self.expected) {
            (Outcome::Skipped(_), _) => Verdict::Skip,
            (Outcome::Passed, None) => Verdict::Pass,
            (Outcome::Passed, Some(_)) => Verdict::UnexpectedPass,
            (Outcome::Failed(_), None) => Verdict::Fail,
            (Outcome::Failed(_), Some(_)) => Verdict::KnownDifference,
        }
    }

    /// The reason that comes with the verdict; empty for a pass.
    pub fn detail(&self) -> String {
        match (&self.outcome, &self.expected) {
            (Outcome::Passed, None) => String::new(),
            (Outcome::Passed, Some(reason)) => format!("passes, but is listed as a known difference: {reason}"),
            (Outcome::Failed(failure), None) => failure.clone(),
            (Outcome::Failed(failure), Some(reason)) => format!("{failure} (known: {reason})"),
            (Outcome::Skipped(reason), _) => reason.clone(),
        }
    }

    fn area(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(area, _)| area)
    }
}

impl Report {
    /// True where everything is as expected.
    pub fn is_success(&self) -> bool {
        self.unknown.is_empty() && self.failures().next().is_none()
    }

    /// The cases whose outcome is not the expected one.
    pub fn failures(&self) -> impl Iterator<Item = &CaseReport> {
        self.cases
            .iter()
            .filter(|case| matches!(case.verdict(), Verdict::Fail | Verdict::UnexpectedPass))
    }

    /// How many cases have this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.cases.iter().filter(|case| case.verdict() == verdict).count()
    }

    /// The report in a format, with a line end.
    pub fn write(&self, format: Format) -> Result<String, ReportError> {
        match format {
            Format::Text => Ok(self.text()),
            Format::Json => Ok(format!("{}\n", serde_json::to_string_pretty(&self.json())?)),
            Format::Junit => Ok(self.junit().to_string()?),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for case in &self.cases {
            let word = match case.verdict() {
                Verdict::Pass => "ok",
                Verdict::Fail => "FAILED",
                Verdict::Skip => "skipped",
                Verdict::KnownDifference => "differs",
                Verdict::UnexpectedPass => "FAILED",
            };
            // Writing to a string cannot fail.
            let _ = write!(text, "{word:7} {} [{}] {:.1?}", case.name, case.law, case.duration);
            let detail = case.detail();
            if detail.is_empty() {
                text.push('\n');
            } else {
                let _ = writeln!(text, "\n        must: {}\n        {detail}", case.description);
            }
        }
        for name in &self.unknown {
            let _ = writeln!(
                text,
                "FAILED  {name} is listed as a known difference, but there is no such case"
            );
        }
        let _ = writeln!(
            text,
            "{} passed, {} failed, {} skipped, {} known differences, {} unexpected passes",
            self.count(Verdict::Pass),
            self.count(Verdict::Fail),
            self.count(Verdict::Skip),
            self.count(Verdict::KnownDifference),
            self.count(Verdict::UnexpectedPass),
        );
        text
    }

    fn json(&self) -> JsonReport<'_> {
        JsonReport {
            success: self.is_success(),
            unknown_names: &self.unknown,
            cases: self
                .cases
                .iter()
                .map(|case| JsonCase {
                    name: case.name,
                    law: case.law,
                    description: case.description,
                    verdict: case.verdict(),
                    detail: case.detail(),
                    seconds: case.duration.as_secs_f64(),
                })
                .collect(),
        }
    }

    fn junit(&self) -> quick_junit::Report {
        let mut report = quick_junit::Report::new("databroker-conformance");
        let mut suites: Vec<TestSuite> = Vec::new();
        for case in &self.cases {
            let mut status = match case.verdict() {
                Verdict::Pass => TestCaseStatus::success(),
                Verdict::Fail | Verdict::UnexpectedPass => TestCaseStatus::non_success(NonSuccessKind::Failure),
                Verdict::Skip | Verdict::KnownDifference => TestCaseStatus::skipped(),
            };
            if case.verdict() != Verdict::Pass {
                status.set_message(case.detail());
            }
            let mut entry = TestCase::new(case.name, status);
            entry.set_classname(case.law).set_time(case.duration);
            match suites.iter_mut().find(|suite| suite.name.as_str() == case.area()) {
                Some(suite) => {
                    suite.add_test_case(entry);
                }
                None => {
                    let mut suite = TestSuite::new(case.area());
                    suite.add_test_case(entry);
                    suites.push(suite);
                }
            }
        }
        if !self.unknown.is_empty() {
            let mut suite = TestSuite::new("known differences");
            for name in &self.unknown {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                status.set_message("there is no such case");
                suite.add_test_case(TestCase::new(name.as_str(), status));
            }
            suites.push(suite);
        }
        report.add_test_suites(suites);
        report
    }
}

/// Why a report could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// As JSON.
    #[error("could not write the report as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// As JUnit's XML.
    #[error("could not write the report as JUnit: {0}")]
    Junit(#[from] quick_junit::SerializeError),
}

#[derive(Serialize)]
struct JsonReport<'a> {
    success: bool,
    unknown_names: &'a [String],
    cases: Vec<JsonCase>,
}

#[derive(Serialize)]
struct JsonCase {
    name: &'static str,
    law: &'static str,
    description: &'static str,
    verdict: Verdict,
    detail: String,
    seconds: f64,
}
