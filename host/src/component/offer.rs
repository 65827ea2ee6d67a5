//! What a plugin gets for each of its imports, in words: what every plugin has, and what needs a grant. `state` and `grants`
//! are where it is given.

/// What an import leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// To something that every plugin has, which this says.
    Given(&'static str),
    /// To what the operator grants.
    Granted(Need),
    /// To nothing: it is linked, because standard libraries import it whether they use it or not.
    Empty(&'static str),
    /// Nowhere: a plugin that needs it is refused.
    Missing,
}

/// What an operator may have to grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Settings and secrets of the plugin's own.
    Config,
    /// Directories.
    Directories,
    /// TCP connections, and the look-up of names.
    Network,
    /// HTTP requests.
    Http,
    /// A database, by way of the host.
    Database,
}

impl Need {
    /// What it is.
    pub fn what(self) -> &'static str {
        match self {
            Self::Config => "settings and secrets",
            Self::Directories => "directories",
            Self::Network => "network",
            Self::Http => "HTTP",
            Self::Database => "database",
        }
    }

    /// The settings that grant it.
    pub fn settings(self) -> &'static [&'static str] {
        match self {
            Self::Config => &["DATABROKER_PLUGIN_SETTINGS", "DATABROKER_PLUGIN_SECRETS"],
            Self::Directories => &["DATABROKER_PLUGIN_DIRECTORIES"],
            Self::Network => &["DATABROKER_PLUGIN_ADDRESSES"],
            Self::Http => &["DATABROKER_PLUGIN_HTTP_ORIGINS"],
            // Which the plugin is not shown then.
            Self::Database => &["DATABROKER_STORAGE_CONNECTION_STRING"],
        }
    }
}

/// What a plugin gets for an import of this name, such as `wasi:clocks/wall-clock@0.2.6`. Versions are not looked at.
pub fn offer(import: &str) -> Offer {
    let name = import.split_once('@').map_or(import, |(name, _)| name);
    let (package, interface) = name.split_once('/').unwrap_or((name, ""));
    match (package, interface) {
        ("databroker:storage", "config") => Offer::Granted(Need::Config),
        ("databroker:storage", "log") => Offer::Given("lines in the host's log"),
        ("databroker:storage", "protobuf") => Offer::Given("a look inside record data"),
        ("databroker:storage", "sql") => Offer::Granted(Need::Database),
        ("databroker:storage", "types") => Offer::Given("types only"),
        ("wasi:clocks", _) => Offer::Given("the time, and waiting"),
        ("wasi:random", _) => Offer::Given("random numbers"),
        ("wasi:io", _) => Offer::Given("handles for the other imports"),
        ("wasi:cli", "stdout" | "stderr") => Offer::Given("lines in the host's log"),
        ("wasi:cli", "exit") => Offer::Given("an end of the plugin"),
        ("wasi:cli", "environment") => Offer::Empty("no variables and no arguments"),
        ("wasi:cli", "stdin") => Offer::Empty("nothing to read"),
        ("wasi:cli", _) => Offer::Empty("no terminal"),
        ("wasi:filesystem", _) => Offer::Granted(Need::Directories),
        ("wasi:sockets", "udp" | "udp-create-socket") => Offer::Empty("no UDP"),
        ("wasi:sockets", _) => Offer::Granted(Need::Network),
        ("wasi:http", "types" | "outgoing-handler") => Offer::Granted(Need::Http),
        _ => Offer::Missing,
    }
}

/// What of the operator's grants a plugin with these imports could use, each with the imports that say so. Whether it does, and
/// which names and places it asks for, no file says: standard libraries import directories and network either way.
pub fn needs(imports: &[String]) -> Vec<(Need, Vec<&str>)> {
    let mut needs = std::collections::BTreeMap::<Need, Vec<&str>>::new();
    for import in imports {
        if let Offer::Granted(need) = offer(import) {
            needs.entry(need).or_default().push(import);
        }
    }
    needs.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_told_from_what_is_granted_and_what_leads_nowhere() {
        assert!(matches!(offer("wasi:clocks/wall-clock@0.2.6"), Offer::Given(_)));
        assert_eq!(
            offer("wasi:filesystem/preopens@0.2.6"),
            Offer::Granted(Need::Directories)
        );
        assert_eq!(offer("wasi:sockets/tcp@0.2.6"), Offer::Granted(Need::Network));
        assert_eq!(offer("wasi:sockets/udp@0.2.6"), Offer::Empty("no UDP"));
        assert_eq!(offer("wasi:http/outgoing-handler@0.2.6"), Offer::Granted(Need::Http));
        assert_eq!(offer("wasi:http/incoming-handler@0.2.6"), Offer::Missing);
        assert_eq!(offer("databroker:storage/config@0.1.0"), Offer::Granted(Need::Config));
        assert_eq!(offer("nonsense"), Offer::Missing);
    }

    #[test]
    fn needs_are_grouped() {
        let imports = [
            "wasi:sockets/tcp@0.2.6",
            "wasi:io/poll@0.2.6",
            "wasi:filesystem/types@0.2.6",
            "wasi:sockets/network@0.2.6",
        ];
        let imports: Vec<String> = imports.iter().map(|import| (*import).to_owned()).collect();
        assert_eq!(
            needs(&imports),
            [
                (Need::Directories, vec!["wasi:filesystem/types@0.2.6"]),
                (
                    Need::Network,
                    vec!["wasi:sockets/tcp@0.2.6", "wasi:sockets/network@0.2.6"]
                ),
            ]
        );
    }
}
