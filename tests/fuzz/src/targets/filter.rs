//! Filters of Query, as JSON: parsed, planned and matched with a record.

use databroker_host::filter::{Effort, Filter};
use databroker_host::record::Key;

use super::DESCRIPTORS;
use crate::Target;

pub const TARGET: Target = Target {
    name: "filter",
    feed,
    short: 20_000,
    words: &[
        "\"$and\":[",
        "\"$or\":[",
        "\"$not\":",
        "\"$index\":",
        "\"$eq\":",
        "\"$before\":",
        "\"$after\":",
        "{",
        "}",
        "[",
        "]",
        "\"id\":",
        "\"type\":",
        "\"user_id\":",
        "nested_type.",
        "claims.",
        "\"10.0.0.0/8\"",
        "\"::/0\"",
        "null",
        "1e308",
        "\"2025-01-31T12:00:00Z\"",
    ],
};

/// A session with an id, a user and a time.
const SESSION: &[u8] =
    b"\x0a\x23type.googleapis.com/session.Session\x12\x10\x0a\x01s\x12\x01u\x2a\x08\x08\x80\x92\xb8\xc3\x98\xfe\xff\x01";

fn feed(bytes: &[u8]) {
    let Ok(json) = serde_json::from_slice(bytes) else {
        return;
    };
    let filter = match Filter::parse(&json) {
        Ok(filter) => filter,
        Err(error) => {
            assert!(
                error.to_string().len() < 4096,
                "{} bytes of a reason",
                error.to_string().len()
            );
            return;
        }
    };
    assert_eq!(
        Filter::parse(&json).ok().as_ref(),
        Some(&filter),
        "the same filter twice"
    );
    let indexable = ["user_id".to_owned(), "id".to_owned()];
    for record_type in [None, Some("type.googleapis.com/session.Session")] {
        let _ = filter.plan(record_type, &indexable);
    }
    for record_type in [
        "session.Session",
        "google.protobuf.DescriptorProto",
        "google.protobuf.Struct",
    ] {
        let condition = filter.condition(&DESCRIPTORS, &format!("type.googleapis.com/{record_type}"));
        assert!(condition.is_none_or(|condition| condition.len() <= 16 << 10));
    }
    let mut resolution = filter.resolution();
    for network in filter.networks() {
        resolution.offer(*network);
    }
    let key = Key::new("type.googleapis.com/session.Session", "s");
    for data in [None, Some(&b""[..]), Some(SESSION)] {
        let mut effort = Effort::default();
        let first = filter.matches(&DESCRIPTORS, &key, data, &resolution, &mut effort);
        let mut again = Effort::default();
        assert_eq!(first, filter.matches(&DESCRIPTORS, &key, data, &resolution, &mut again));
        assert_eq!(effort.spent(), again.spent(), "the same work twice");
    }
}
