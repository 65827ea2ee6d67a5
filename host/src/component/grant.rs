//! What a plugin gets for each of its imports, in words; `state` is where it is given.

/// What an import leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// To something, which this says.
    Given(&'static str),
    /// To nothing: it is linked, because standard libraries import it whether they use it or not.
    Empty(&'static str),
    /// Nowhere: a plugin that needs it is refused.
    Missing,
}

/// What a plugin gets for an import of this name, such as `wasi:clocks/wall-clock@0.2.6`. Versions are not looked at.
pub fn grant(import: &str) -> Grant {
    let name = import.split_once('@').map_or(import, |(name, _)| name);
    let (package, interface) = name.split_once('/').unwrap_or((name, ""));
    match (package, interface) {
        ("databroker:storage", "log") => Grant::Given("lines in the host's log"),
        ("databroker:storage", "protobuf") => Grant::Given("a look inside record data"),
        ("databroker:storage", "types") => Grant::Given("types only"),
        ("wasi:clocks", _) => Grant::Given("the time, and waiting"),
        ("wasi:random", _) => Grant::Given("random numbers"),
        ("wasi:io", _) => Grant::Given("handles for the other imports"),
        ("wasi:cli", "stdout" | "stderr") => Grant::Given("lines in the host's log"),
        ("wasi:cli", "exit") => Grant::Given("an end of the plugin"),
        ("wasi:cli", "environment") => Grant::Empty("no variables and no arguments"),
        ("wasi:cli", "stdin") => Grant::Empty("nothing to read"),
        ("wasi:cli", _) => Grant::Empty("no terminal"),
        ("wasi:filesystem", _) => Grant::Empty("no directories"),
        ("wasi:sockets", _) => Grant::Empty("no network"),
        _ => Grant::Missing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_granted_is_told_from_what_leads_nowhere() {
        assert!(matches!(grant("wasi:clocks/wall-clock@0.2.6"), Grant::Given(_)));
        assert_eq!(grant("wasi:filesystem/preopens@0.2.6"), Grant::Empty("no directories"));
        assert_eq!(grant("wasi:sockets/tcp@0.2.6"), Grant::Empty("no network"));
        assert_eq!(grant("wasi:http/outgoing-handler@0.2.6"), Grant::Missing);
        assert_eq!(grant("nonsense"), Grant::Missing);
    }
}
