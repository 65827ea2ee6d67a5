//! Calls that were not let in, by reason.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::page::Page;

/// Why a call is not let in.
const REASONS: [&str; 7] = [
    "missing",
    "malformed",
    "algorithm",
    "wrong_key",
    "extra_claim",
    "no_expiry",
    "expired",
];

/// What stands for a reason that is none of these.
const OTHER: &str = "other";

/// How often each happened.
#[derive(Debug, Default)]
pub struct Refused {
    reasons: [AtomicU64; REASONS.len()],
    other: AtomicU64,
}

impl Refused {
    /// A call was not let in for this reason.
    pub fn count(&self, reason: &str) {
        let place = REASONS.iter().position(|known| *known == reason);
        place
            .and_then(|place| self.reasons.get(place))
            .unwrap_or(&self.other)
            .fetch_add(1, Ordering::Relaxed);
    }

    /// Writes those that happened.
    pub fn encode(&self, page: &mut Page<'_>) -> fmt::Result {
        let all = REASONS.iter().zip(&self.reasons).chain([(&OTHER, &self.other)]);
        page.counters(
            "databroker_auth_refused",
            "Calls that were refused for their token, by reason.",
            all.map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
                .filter(|(_, count)| *count > 0)
                .map(|(reason, count)| (vec![("reason", (*reason).into())], count)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_place() {
        let refused = Refused::default();
        for reason in REASONS {
            refused.count(reason);
        }
        refused.count("as yet unheard of");
        assert!(refused.reasons.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        assert_eq!(refused.other.load(Ordering::Relaxed), 1);
    }
}
