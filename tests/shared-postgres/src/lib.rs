//! Several hosts on one Postgres, put through what happens to databases and networks, and a judge of what their clients saw.
//!
//! A test of a store looks at one call at a time. What goes wrong with several hosts on one database goes wrong between calls:
//! a change that a stream passes by because it was committed late, a write that was acknowledged by a server that is no
//! longer the primary, a lease that two hold for a moment. So clients work all at once through all hosts, and everything they
//! ask and are answered is recorded with its times ([`workload`], [`history`]). Meanwhile faults fire ([`faults`]): in the
//! database, in the hosts, in the network between them ([`proxy`]). Afterwards the whole of it is judged ([`check`]).
//!
//! All servers are real, and are started and stopped here: Postgres with a synchronous standby ([`cluster`]), hosts and
//! Pomerium's own databroker as processes ([`process`]).
//!
//! It is not a proof that no other order of events breaks a law. It is a run of many orders, with a judge that is known to
//! see each kind of violation.

pub mod check;
pub mod clear;
pub mod client;
pub mod cluster;
pub mod faults;
pub mod history;
pub mod process;
pub mod proxy;
pub mod workload;
