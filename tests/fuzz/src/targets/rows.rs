//! What a database sends: its messages, and the values in them.

use databroker_sql::Value;
use databroker_sql::fuzz::{guarded, sent, value};

use crate::Target;

pub const TARGET: Target = Target {
    name: "rows",
    feed,
    short: 30_000,
    words: &[
        "T",
        "t",
        "D",
        "\0\0\0\x04",
        "\0\0@\0",
        "\0\x02",
        "a\0",
        "\0\0\0\x19",
        "\0\0\0\x01",
    ],
};

/// Bytes of a message at most.
const LARGEST: u64 = 300;

/// All types that are read, and one that is not.
const TYPES: [u32; 28] = [
    16, 17, 19, 20, 21, 23, 25, 26, 114, 650, 700, 701, 705, 869, 1000, 1001, 1007, 1009, 1015, 1016, 1022, 1042, 1043,
    1184, 1185, 1700, 2950, 3802,
];

fn feed(bytes: &[u8]) {
    messages(bytes);
    if let Some((first, rest)) = bytes.split_first() {
        values(TYPES[usize::from(*first) % TYPES.len()], rest);
    }
}

/// However they are cut, the same passes, and none of it is what may not.
fn messages(bytes: &[u8]) {
    let whole = guarded(bytes, LARGEST, bytes.len());
    for size in [1, 3, 64] {
        assert_eq!(guarded(bytes, LARGEST, size), whole, "by {size}");
    }
    let mut passed = &bytes[..whole.0];
    while let Some((&[kind, a, b, c, d], rest)) = passed.split_first_chunk() {
        let length = u32::from_be_bytes([a, b, c, d]);
        assert!(u64::from(length) <= LARGEST, "a message of {length} bytes");
        let end = (length.saturating_sub(4) as usize).min(rest.len());
        if kind == b't' {
            let made = rest[2..end].chunks(4).find(|number| **number >= [0, 0, 0x40, 0][..]);
            assert_eq!(made, None, "a type that was made in the database");
        }
        // A length that does not even count itself is taken at its word, and says where the next one begins.
        passed = &passed[(length as usize + 1).min(passed.len())..];
    }
}

/// A value counts what was expected of it at least, is bounded by what it came in, and comes back as it was sent.
fn values(type_number: u32, bytes: &[u8]) {
    let (Some(read), least) = value(type_number, bytes) else {
        return;
    };
    let size = read.size();
    assert!(
        least <= size,
        "{size} bytes, and at least {least} were expected: {read:?}"
    );
    assert!(
        size <= 32 + 8 * bytes.len() as u64,
        "{size} bytes of {}: {read:?}",
        bytes.len()
    );
    if let Some((type_number, bytes)) = sent(&read) {
        // By its text, since what is no number is not equal to itself.
        let again = value(type_number, &bytes).0.unwrap_or(Value::Null);
        assert_eq!(format!("{again:?}"), format!("{read:?}"));
    }
}
