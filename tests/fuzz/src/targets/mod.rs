//! The targets, one per kind of bytes that the host is handed by somebody whom it does not trust.

pub mod answers;
pub mod codec;
pub mod component;
pub mod configuration;
pub mod connection_string;
pub mod filter;
pub mod request;
pub mod rows;
pub mod token;

use std::sync::LazyLock;

use databroker_host::data::Descriptors;

/// The descriptors of all that the host knows.
static DESCRIPTORS: LazyLock<Descriptors> = LazyLock::new(Descriptors::built_in);
