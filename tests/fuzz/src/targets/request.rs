//! Requests of clients: decoded, and turned into what the broker is asked.

use databroker_host::grpc::fuzz;

use crate::Target;

pub const TARGET: Target = Target {
    name: "request",
    feed,
    short: 50_000,
    words: &[
        "\x0a",
        "\x12",
        "\x1a",
        "\x22",
        "\x2a",
        "\x08",
        "\x10",
        "\x18",
        "type.googleapis.com/session.Session",
        "$and",
        "$or",
        "user_id",
    ],
};

fn feed(bytes: &[u8]) {
    let Some((kind, request)) = bytes.split_first() else {
        return;
    };
    if let Some(refusal) = fuzz::request(*kind, request) {
        assert!(!refusal.is_empty(), "refused without a reason");
    }
}
