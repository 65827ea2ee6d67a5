//! Record data: looked into, turned into JSON and back, merged. It comes from clients and from stores.

use databroker_host::data::{Mask, Needle, check_any, network};

use super::DESCRIPTORS;
use crate::Target;

pub const TARGET: Target = Target {
    name: "codec",
    feed,
    short: 20_000,
    words: &[
        "\x0a",
        "\x12",
        "type.googleapis.com/session.Session",
        "type.googleapis.com/user.User",
        "type.googleapis.com/google.protobuf.Struct",
        "type.googleapis.com/google.protobuf.Any",
        "type.googleapis.com/google.protobuf.Timestamp",
        "$index",
        "cidr",
        "\x0b\x0c",
    ],
};

/// Paths into sessions, users and JSON-like structures.
const PATHS: [&str; 6] = ["user_id", "id", "expires_at", "claims.email", "a", "$index.cidr"];

fn feed(bytes: &[u8]) {
    // Two records, parted by a byte that neither text nor a tag has.
    let (first, second) = match bytes.iter().position(|byte| *byte == 0xff) {
        Some(place) => (&bytes[..place], &bytes[place + 1..]),
        None => (bytes, bytes),
    };
    for data in [first, second] {
        look_into(data);
    }
    for mask in [vec![], vec!["user_id"], vec!["claims", "expires_at.seconds"]] {
        let Ok(mask) = Mask::new(mask) else { continue };
        if let Ok(merged) = DESCRIPTORS.merge(Some(first), Some(second), &mask) {
            check_any(&merged).expect("what was merged is an `Any`");
        }
    }
}

fn look_into(data: &[u8]) {
    let is_any = check_any(data).is_ok();
    for path in PATHS {
        let _ = DESCRIPTORS.values(data, path);
    }
    for text in ["", "u", "\u{130}"] {
        let _ = DESCRIPTORS.matches_text(data, &Needle::new(text));
    }
    let _ = network(data);
    if let Ok(json) = DESCRIPTORS.to_json(data) {
        assert!(is_any, "JSON of what is no `Any`: {json}");
        let back = DESCRIPTORS
            .from_json(&json)
            .unwrap_or_else(|error| panic!("{error}: {json}"));
        let again = DESCRIPTORS
            .to_json(&back)
            .unwrap_or_else(|error| panic!("{error}: {json}"));
        let parsed = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
        assert_eq!(parsed(&json), parsed(&again));
    }
}
