//! What a store is told where it is, and addresses to listen on.

use databroker_host::settings::Address;
use databroker_sql::{ConnectionString, Environment};
use memory::{Budget, Prefix};

use crate::Target;

pub const TARGET: Target = Target {
    name: "connection-string",
    feed,
    short: 30_000,
    words: &[
        "memory://",
        "?budget=",
        "&",
        "=",
        "%",
        "GiB",
        "MiB",
        "KiB",
        "18446744073709551615",
        "postgres://",
        "@",
        ":",
        "/",
        "[::1]",
        "0.0.0.0",
        ":5443",
        "/32",
        "unix:",
        "host=",
        "sslmode=",
        "options=",
        "'",
        "\\",
        " ",
        "?",
        "%20",
    ],
};

/// A password that no message and no `Debug` may hold.
const SECRET: &str = "hUnter2";

fn feed(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(budget) = Budget::from_connection_string(Some(&text)) {
        assert!(
            (Budget::LEAST.limit()..=Budget::MOST.limit()).contains(&budget.limit()),
            "a budget of {budget}"
        );
    }
    if let Ok(address) = Address::parse(&text) {
        let shown = address.to_string();
        let again = Address::parse(&shown).map(|address| address.to_string());
        assert_eq!(again.ok().as_ref(), Some(&shown), "of {text:?}");
    }
    if let Ok(prefix) = text.parse::<Prefix>() {
        assert!(text.parse::<ipnet::IpNet>().is_ok(), "{prefix:?} of {text:?}");
    }
    for text in [
        text.to_string(),
        format!("postgres://u:{SECRET}@{text}"),
        format!("user=u password={SECRET} {text}"),
        format!("user=u password=a {SECRET}{text}"),
    ] {
        let shown = match ConnectionString::parse(&text, &Environment::bare()) {
            Ok(settings) => {
                assert!(!settings.hosts.is_empty(), "{text:?}");
                format!("{settings:?}")
            }
            Err(error) => format!("{error} {error:?}"),
        };
        assert!(!shown.contains(SECRET), "{text:?}: {shown}");
    }
}
