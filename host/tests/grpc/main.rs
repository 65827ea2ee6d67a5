//! The server over real connections, on the native backend: what a client sees. The broker's own behaviour is tested with
//! the broker; here it is that each call arrives there and comes back.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod abuse;
mod calls;
mod half_open;
mod health;
mod hostile;
mod https;
mod meta;
mod metrics;
mod opening;
mod operate;
mod postgres;
mod program;
mod server;
mod shutdown;
mod traces;
mod web;
