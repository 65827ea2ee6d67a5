//! Leases: names that one holder at a time may have.

use std::collections::BTreeMap;

use crate::budget::{ALLOCATION, bytes, ordered};
use crate::entry::Timestamp;

/// What is asked of one lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The lease's name.
    pub name: String,
    /// Who asks.
    pub id: String,
    /// Take and keep it, or give it back.
    pub action: LeaseAction,
}

/// Take and keep, or give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseAction {
    /// Take the lease for so many nanoseconds, or keep it for so long again.
    Hold(u64),
    /// Give it back.
    Release,
}

/// The leases that are held, and some that have run out.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    held: BTreeMap<String, Holder>,
    /// The leases that have run out are removed when there are more than this: after each removal twice what is left, so
    /// that the work is constant a request.
    sweep_above: usize,
}

#[derive(Debug)]
struct Holder {
    id: String,
    until: Timestamp,
}

impl Leases {
    /// What these requests can add at most: nothing where they renew, or are refused.
    pub fn growth(&self, requests: &[Lease], now: Timestamp) -> u64 {
        let of_request = |request: &Lease| match (&request.action, self.held.get(&request.name)) {
            (LeaseAction::Release, _) => 0,
            (LeaseAction::Hold(_), Some(holder)) if holder.id == request.id || holder.until > now => 0,
            (LeaseAction::Hold(_), Some(holder)) => {
                cost(&request.name, &request.id).saturating_sub(cost(&request.name, &holder.id))
            }
            (LeaseAction::Hold(_), None) => cost(&request.name, &request.id),
        };
        requests.iter().map(of_request).sum()
    }

    /// Answers one request. Returns whether it succeeded, and by how many bytes the leases grew.
    pub fn answer(&mut self, request: Lease, now: Timestamp) -> (bool, i64) {
        let before = self.sweep(now);
        let Lease { name, id, action } = request;
        let holder = self.held.get(&name);
        let is_own = holder.is_some_and(|holder| holder.id == id);
        let is_free = holder.is_none_or(|holder| holder.until <= now);
        let change = match action {
            LeaseAction::Hold(duration) if is_own || is_free => {
                let until = now.saturating_add(i64::try_from(duration).unwrap_or(i64::MAX));
                let added = signed(cost(&name, &id));
                let removed = holder.map_or(0, |holder| signed(cost(&name, &holder.id)));
                self.held.insert(name, Holder { id, until });
                Some(added - removed)
            }
            LeaseAction::Release if is_own => {
                self.held.remove(&name);
                Some(-signed(cost(&name, &id)))
            }
            LeaseAction::Hold(_) | LeaseAction::Release => None,
        };
        (change.is_some(), change.unwrap_or(0) - before)
    }

    /// Removes what has run out, now and then; returns the bytes that this gave back.
    fn sweep(&mut self, now: Timestamp) -> i64 {
        if self.held.len() <= self.sweep_above {
            return 0;
        }
        let mut removed = 0;
        self.held.retain(|name, holder| {
            let keep = holder.until > now;
            if !keep {
                removed += signed(cost(name, &holder.id));
            }
            keep
        });
        self.sweep_above = self.held.len().saturating_mul(2).max(64);
        removed
    }
}

fn cost(name: &str, id: &str) -> u64 {
    bytes(name.len()) + bytes(id.len()) + 2 * ALLOCATION + ordered(size_of::<(String, Holder)>())
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(leases: &mut Leases, id: &str, action: LeaseAction, now: Timestamp) -> bool {
        let request = Lease {
            name: "lease".into(),
            id: id.into(),
            action,
        };
        leases.answer(request, now).0
    }

    #[test]
    fn a_lease_has_one_holder_until_it_runs_out() {
        use LeaseAction::{Hold, Release};
        let mut leases = Leases::default();
        for (number, (id, action, now, expected)) in [
            ("a", Release, 0, false),
            ("a", Hold(10), 0, true),
            ("b", Hold(10), 5, false),
            ("b", Release, 5, false),
            ("a", Hold(10), 9, true),
            ("b", Hold(10), 18, false),
            ("b", Hold(10), 19, true),
            ("a", Hold(10), 20, false),
            ("b", Release, 21, true),
            ("a", Hold(u64::MAX), 21, true),
            ("b", Hold(1), i64::MAX - 1, false),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(ask(&mut leases, id, action, now), expected, "step {number}");
        }
    }

    #[test]
    fn leases_that_ran_out_do_not_pile_up() {
        let mut leases = Leases::default();
        let mut bytes = 0;
        for now in 0..10_000 {
            let request = Lease {
                name: format!("lease {now}"),
                id: "id".into(),
                action: LeaseAction::Hold(10),
            };
            bytes += leases.answer(request, now).1;
        }
        assert!(leases.held.len() < 100, "{}", leases.held.len());
        let counted: i64 = leases
            .held
            .iter()
            .map(|(name, holder)| signed(cost(name, &holder.id)))
            .sum();
        assert_eq!(bytes, counted);
    }
}
