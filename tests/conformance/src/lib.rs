//! The databroker's protocol in executable form: cases that check, over gRPC and against any address, what a client of
//! the databroker can rely on.
//!
//! A case is a name, the law that it checks, a sentence and a function. It uses types and ids that nobody else uses, so
//! that the suite can run against a live server, again and again; the few cases that clear the store or count over all of
//! it run alone, after the others. The suite knows nothing of the server but the protocol: it does not start one, and it
//! writes down the record types itself rather than share descriptors with the server that it tests.

mod broker;
mod case;
mod cases;
mod known;
mod records;
mod report;
mod stream;
mod suite;
mod target;
mod token;

pub use broker::Broker;
pub use case::{Case, CheckResult, Skip};
pub use known::{Known, KnownError};
pub use report::{CaseReport, Format, Outcome, Report, ReportError, Verdict};
pub use suite::{Selection, Suite};
pub use target::{Settings, Target, TargetError};
