//! Leases: names that one holder at a time may have.
//!
//! The store keeps them. One that loses its content when its plugin stops loses its leases too, while their holders go on in
//! the belief that they have them until they next renew. So for such a store the host remembers who holds what: nobody else
//! is given a lease before the time is over for which it was last granted, and its holder renews it as if nothing had
//! happened. What a former process has granted is not known, as with any store that a process takes with it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::BrokerError;
use super::joined::{Apart, Joined, only};
use crate::backend::{Backend, LeaseAction, LeaseRequest, StoreInfo};
use crate::record::Timestamp;

/// What a lease takes beside its texts.
const GRANT_BYTES: usize = 128;

/// Most bytes that are remembered. What does not fit, thousands of leases where Pomerium has a handful, is
/// given and kept by the store alone.
const REMEMBERED_BYTES: usize = 1 << 20;

/// Most requests that one call carries.
const LEASE_REQUESTS: usize = 64;

/// The leases' part of the broker.
pub struct Leases {
    backend: Arc<dyn Backend>,
    clock: fn() -> Timestamp,
    /// Where callers meet; none where the store is shared: another host's claim to one of its leases may keep the store waiting,
    /// which shall not keep the others from theirs. A request may reach the store a second time once a call has failed: who holds
    /// a lease holds it on, and a release after another one has taken it does nothing.
    joined: Option<Joined<(LeaseRequest, Timestamp), bool>>,
    /// Where the store may forget.
    granted: Option<Mutex<Granted>>,
}

/// Who was granted what.
#[derive(Default)]
struct Granted {
    by_name: HashMap<String, Grant>,
    /// Of all of them.
    bytes: usize,
    /// True once there was no room for one, which is told.
    has_overflown: bool,
}

struct Grant {
    id: String,
    until: Timestamp,
}

/// Whether a lease can be had, as far as is remembered.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    Free {
        /// Until when the caller had it before; none where it did not.
        before: Option<Timestamp>,
    },
    HeldByAnother,
}

impl Leases {
    /// Those of a store that says this of itself.
    pub fn new(backend: Arc<dyn Backend>, clock: fn() -> Timestamp, info: &StoreInfo) -> Self {
        Self {
            backend,
            clock,
            joined: (!info.shared).then(|| Joined::new(LEASE_REQUESTS, Apart::OnFailure)),
            granted: (!info.shared && !info.durable).then(Mutex::default),
        }
    }

    /// Takes a lease, or keeps it for longer; false where another one holds it.
    pub async fn hold(&self, name: String, id: String, duration: Duration) -> Result<bool, BrokerError> {
        let action = LeaseAction::Hold(duration);
        let Some(granted) = &self.granted else {
            return self.ask(name, id, action, (self.clock)()).await;
        };
        let now = (self.clock)();
        let length = i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        let until = Timestamp(now.0.saturating_add(length));
        // Before the store is asked, so that it cannot answer yes to two callers and forget the first one in between.
        let before = match granted.lock().claim(&name, &id, until, now) {
            Claim::Free { before } => before,
            Claim::HeldByAnother => return Ok(false),
        };
        let mut claimed = Claimed {
            granted,
            name: &name,
            id: &id,
            until: before.map_or(until, |before| before.max(until)),
            after: before,
        };
        let held = self.ask(name.clone(), id.clone(), action, now).await?;
        claimed.after = held.then_some(until);
        Ok(held)
    }

    /// Gives a lease back. It is no error if the caller does not hold it.
    pub async fn release(&self, name: String, id: String) -> Result<(), BrokerError> {
        if let Some(granted) = &self.granted {
            // Whatever becomes of the call, the caller does not hold it any more.
            granted.lock().forget(&name, &id);
        }
        self.ask(name, id, LeaseAction::Release, (self.clock)()).await?;
        Ok(())
    }

    /// Asks the store, as of a time. A call for several is as of the earliest, so that the store gives nobody a lease for
    /// longer than is remembered; one that is repeated is as of its own.
    async fn ask(&self, name: String, id: String, action: LeaseAction, now: Timestamp) -> Result<bool, BrokerError> {
        let request = LeaseRequest { name, id, action };
        let ask = |asked: Vec<(LeaseRequest, Timestamp)>| {
            let backend = Arc::clone(&self.backend);
            let now = asked.iter().map(|(_, now)| *now).min().unwrap_or(now);
            let requests = asked.into_iter().map(|(request, _)| request).collect();
            async move { backend.lease(requests, now).await }
        };
        let answer = match &self.joined {
            Some(joined) => joined.ask((request, now), ask).await?,
            None => only(ask(vec![(request, now)]).await)?,
        };
        Ok(answer)
    }
}

fn grant_bytes(name: &str, id: &str) -> usize {
    name.len().saturating_add(id.len()).saturating_add(GRANT_BYTES)
}

/// What is remembered of a lease while the store is asked. A call that fails, or whose caller goes away meanwhile, leaves
/// what there was before.
struct Claimed<'a> {
    granted: &'a Mutex<Granted>,
    name: &'a str,
    id: &'a str,
    /// Until when it is remembered for meanwhile.
    until: Timestamp,
    /// Until when it is the caller's after that: as long as it was before, where the outcome is not known.
    after: Option<Timestamp>,
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        self.granted.lock().settle(self.name, self.id, self.until, self.after);
    }
}

impl Granted {
    /// Remembers a lease as the caller's, unless another one holds it: until the later of the time asked for and the time that it
    /// has it for already.
    fn claim(&mut self, name: &str, id: &str, until: Timestamp, now: Timestamp) -> Claim {
        match self.by_name.get_mut(name) {
            Some(grant) if grant.id == id => {
                let before = grant.until;
                grant.until = before.max(until);
                return Claim::Free { before: Some(before) };
            }
            Some(grant) if grant.until > now => return Claim::HeldByAnother,
            Some(_) => self.remove(name),
            None => {}
        }
        let bytes = grant_bytes(name, id);
        if self.bytes.saturating_add(bytes) > REMEMBERED_BYTES {
            self.by_name.retain(|_, grant| grant.until > now);
            self.bytes = self
                .by_name
                .iter()
                .map(|(name, grant)| grant_bytes(name, &grant.id))
                .sum();
        }
        if self.bytes.saturating_add(bytes) <= REMEMBERED_BYTES {
            self.bytes = self.bytes.saturating_add(bytes);
            let id = id.to_owned();
            self.by_name.insert(name.to_owned(), Grant { id, until });
        } else if !std::mem::replace(&mut self.has_overflown, true) {
            tracing::warn!(
                leases = self.by_name.len(),
                bytes = self.bytes,
                "more leases are held than are remembered: if the storage plugin stops, the others may get a second holder; \
                 this is told once"
            );
        }
        Claim::Free { before: None }
    }

    /// What has become of a claim that is remembered until then, unless there was another one since.
    fn settle(&mut self, name: &str, id: &str, until: Timestamp, after: Option<Timestamp>) {
        let claimed = |grant: &&mut Grant| grant.id == id && grant.until == until;
        match (self.by_name.get_mut(name).filter(claimed), after) {
            (Some(grant), Some(after)) => grant.until = after,
            (Some(_), None) => self.remove(name),
            (None, _) => {}
        }
    }

    fn forget(&mut self, name: &str, id: &str) {
        if self.by_name.get(name).is_some_and(|grant| grant.id == id) {
            self.remove(name);
        }
    }

    fn remove(&mut self, name: &str) {
        if let Some((name, grant)) = self.by_name.remove_entry(name) {
            self.bytes = self.bytes.saturating_sub(grant_bytes(&name, &grant.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Claim = Claim::Free { before: None };

    #[test]
    fn what_is_remembered_is_bounded_and_what_has_run_out_makes_room() {
        let log = crate::component::tests::Log::default();
        let _recording = log.record();
        let mut granted = Granted::default();
        let name = |number: usize| format!("{number:0>1000}");
        let mut claim = |number, id: &str, until, now| {
            let claim = granted.claim(&name(number), id, Timestamp(until), Timestamp(now));
            assert!(granted.bytes <= REMEMBERED_BYTES, "{}", granted.bytes);
            claim
        };
        for number in 0..2000 {
            assert_eq!(claim(number, "a", 10, 0), FREE);
        }
        let told = log.text().matches("more leases are held than are remembered").count();
        assert_eq!(told, 1, "{}", log.text());
        assert_eq!(claim(0, "b", 20, 9), Claim::HeldByAnother);
        assert_eq!(claim(1999, "b", 20, 9), FREE, "it did not fit");
        assert_eq!(claim(1999, "a", 30, 20), FREE);
        assert_eq!(claim(1999, "b", 40, 29), Claim::HeldByAnother);
        assert_eq!(granted.by_name.len(), 1);
        granted.forget(&name(1999), "a");
        assert_eq!(granted.bytes, 0);
    }

    #[test]
    fn a_renewal_of_unknown_outcome_leaves_the_lease_for_as_long_as_it_was() {
        let mut granted = Granted::default();
        assert_eq!(granted.claim("x", "a", Timestamp(10), Timestamp(0)), FREE);
        let before = Some(Timestamp(10));
        assert_eq!(
            granted.claim("x", "a", Timestamp(20), Timestamp(5)),
            Claim::Free { before }
        );
        granted.settle("x", "a", Timestamp(30), Some(Timestamp(15)));
        let until = granted.by_name.get("x").map(|grant| grant.until);
        assert_eq!(until, Some(Timestamp(20)), "of another renewal");
        granted.settle("x", "a", Timestamp(20), before);
        assert_eq!(
            granted.claim("x", "b", Timestamp(20), Timestamp(9)),
            Claim::HeldByAnother
        );
        assert_eq!(granted.claim("x", "b", Timestamp(20), Timestamp(10)), FREE);
    }

    #[test]
    fn a_shorter_renewal_shortens_a_lease_once_it_has_succeeded() {
        let mut granted = Granted::default();
        assert_eq!(granted.claim("x", "a", Timestamp(100), Timestamp(0)), FREE);
        let before = Some(Timestamp(100));
        let renewed = granted.claim("x", "a", Timestamp(51), Timestamp(50));
        assert_eq!(renewed, Claim::Free { before });
        assert_eq!(
            granted.claim("x", "b", Timestamp(200), Timestamp(52)),
            Claim::HeldByAnother
        );
        granted.settle("x", "a", Timestamp(100), Some(Timestamp(51)));
        assert_eq!(granted.claim("x", "b", Timestamp(200), Timestamp(52)), FREE);
    }

    #[test]
    fn a_first_claim_that_fails_leaves_what_its_holder_was_given_meanwhile() {
        let mut granted = Granted::default();
        assert_eq!(granted.claim("x", "a", Timestamp(10), Timestamp(0)), FREE);
        let before = Some(Timestamp(10));
        let again = granted.claim("x", "a", Timestamp(11), Timestamp(1));
        assert_eq!(again, Claim::Free { before });
        granted.settle("x", "a", Timestamp(10), None);
        assert_eq!(
            granted.claim("x", "b", Timestamp(20), Timestamp(2)),
            Claim::HeldByAnother
        );
        granted.settle("x", "a", Timestamp(11), None);
        assert_eq!(granted.claim("x", "b", Timestamp(20), Timestamp(2)), FREE);
    }

    #[test]
    fn a_caller_that_goes_away_while_the_store_is_asked_leaves_what_there_was() {
        let granted = Mutex::new(Granted::default());
        let ask_and_go = |after| {
            drop(Claimed {
                granted: &granted,
                name: "x",
                id: "a",
                until: Timestamp(1000),
                after,
            });
        };
        assert_eq!(granted.lock().claim("x", "a", Timestamp(1000), Timestamp(0)), FREE);
        ask_and_go(None);
        assert_eq!(granted.lock().claim("x", "b", Timestamp(10), Timestamp(0)), FREE);
        granted.lock().forget("x", "b");

        let before = Some(Timestamp(10));
        assert_eq!(granted.lock().claim("x", "a", Timestamp(10), Timestamp(0)), FREE);
        let renewed = granted.lock().claim("x", "a", Timestamp(1000), Timestamp(5));
        assert_eq!(renewed, Claim::Free { before });
        ask_and_go(before);
        let taken = granted.lock().claim("x", "b", Timestamp(20), Timestamp(9));
        assert_eq!(taken, Claim::HeldByAnother);
        assert_eq!(granted.lock().claim("x", "b", Timestamp(20), Timestamp(10)), FREE);
    }
}
