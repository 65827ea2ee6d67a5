//! A case: one promise of the protocol and the code that checks it.

use std::fmt;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::broker::Broker;

/// The time that a case may take unless it says otherwise. Generous, since the suite also runs on busy machines.
const LIMIT: Duration = Duration::from_secs(60);

/// What a case's function gives back: success, a failure with its reason, or a [`Skip`].
pub type CheckResult = anyhow::Result<()>;

/// One promise of the protocol and the code that checks it.
#[derive(Clone)]
pub struct Case {
    /// Unique: the area and what is checked, such as `get.missing_is_not_found`.
    pub name: &'static str,
    /// The short id of the law that it checks; several cases may check the same one.
    pub law: &'static str,
    /// What must hold, in one sentence.
    pub description: &'static str,
    /// True where the case disturbs others, or is disturbed by them: it then runs alone, after all others.
    pub alone: bool,
    /// A case that takes longer has failed.
    pub limit: Duration,
    /// The check.
    pub check: fn(Broker) -> BoxFuture<'static, CheckResult>,
}

impl Case {
    /// A case that runs beside others.
    pub(crate) const fn new(
        name: &'static str,
        law: &'static str,
        description: &'static str,
        check: fn(Broker) -> BoxFuture<'static, CheckResult>,
    ) -> Self {
        Self {
            name,
            law,
            description,
            alone: false,
            limit: LIMIT,
            check,
        }
    }

    /// The same case, but it runs alone.
    pub(crate) const fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// The area: what stands before the first dot of the name.
    pub fn area(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(area, _)| area)
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Case")
            .field("name", &self.name)
            .field("law", &self.law)
            .finish_non_exhaustive()
    }
}

/// A row of a table of cases: name, law, what must hold, and the function that checks it.
macro_rules! case {
    ($name:literal, $law:literal, $description:literal, $check:path) => {
        $crate::case::Case::new($name, $law, $description, |broker| Box::pin($check(broker)))
    };
}
pub(crate) use case;

/// Says why a case could not be checked against this server; not a failure.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skip(pub String);

/// Leaves a case as skipped.
pub(crate) fn skip(reason: impl Into<String>) -> anyhow::Error {
    Skip(reason.into()).into()
}
