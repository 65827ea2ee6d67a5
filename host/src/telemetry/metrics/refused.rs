//! Calls that were not let in, by reason.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::page::Page;

/// Why a call is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// It has no token.
    Missing,
    /// Its token cannot be read.
    Malformed,
    /// Its token is signed in another way.
    Algorithm,
    /// Its token is signed with another key.
    WrongKey,
    /// Its token says more than it should.
    ExtraClaim,
    /// Its token does not say when it expires.
    NoExpiry,
    /// Its token was good once.
    Expired,
}

/// All of them, with their labels.
const REASONS: [(Refusal, &str); 7] = [
    (Refusal::Missing, "missing"),
    (Refusal::Malformed, "malformed"),
    (Refusal::Algorithm, "algorithm"),
    (Refusal::WrongKey, "wrong_key"),
    (Refusal::ExtraClaim, "extra_claim"),
    (Refusal::NoExpiry, "no_expiry"),
    (Refusal::Expired, "expired"),
];

/// How often each happened.
#[derive(Debug, Default)]
pub struct Refused([AtomicU64; REASONS.len()]);

impl Refused {
    /// A call was not let in for this reason.
    pub fn count(&self, reason: Refusal) {
        let place = REASONS.iter().position(|(known, _)| *known == reason);
        if let Some(count) = place.and_then(|place| self.0.get(place)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes those that happened.
    pub fn encode(&self, page: &mut Page<'_>) -> fmt::Result {
        page.counters(
            "databroker_auth_refused",
            "Calls that were refused for their token, by reason.",
            REASONS
                .iter()
                .zip(&self.0)
                .map(|((_, label), count)| (label, count.load(Ordering::Relaxed)))
                .filter(|(_, count)| *count > 0)
                .map(|(label, count)| (vec![("reason", (*label).into())], count)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_place() {
        let refused = Refused::default();
        for (reason, label) in REASONS {
            // So that no reason is missing in the table.
            let expected = match reason {
                Refusal::Missing => "missing",
                Refusal::Malformed => "malformed",
                Refusal::Algorithm => "algorithm",
                Refusal::WrongKey => "wrong_key",
                Refusal::ExtraClaim => "extra_claim",
                Refusal::NoExpiry => "no_expiry",
                Refusal::Expired => "expired",
            };
            assert_eq!(label, expected);
            refused.count(reason);
        }
        assert!(refused.0.iter().all(|count| count.load(Ordering::Relaxed) == 1));
    }
}
