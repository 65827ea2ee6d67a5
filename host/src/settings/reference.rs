//! The reference of all settings, made from the table of keys.

use std::fmt::Write as _;

use super::keys::{ALL, Key, Origin};

/// What stands before the settings.
const HEAD: &str = "\
# Settings

This file is made from the program's own table of settings; a test holds the two together.

A setting has three names. In the configuration file, `serve --config FILE`, it is `grpc_address`; in the environment
`GRPC_ADDRESS`; as a flag `--grpc-address`. A flag goes before the environment, the environment before the file. Secrets
have no flag, since other users of a machine can read flags. A setting whose name ends in `_file` names a file with the
value, and goes before the one without.

- The file is YAML or JSON, at most 1 MiB. A configuration file of Pomerium works as it is: settings of other parts of
  Pomerium are passed over with one line in the log. A name that nobody knows is a mistake.
- An empty variable counts as not set.
- Durations are written as `1h30m`, `10s` or `500ms`, apart from those of traces, which are milliseconds as OpenTelemetry
  has them. Booleans are `true` and `false`. Lists are YAML lists, or a text with commas.
- All mistakes are told at once, each with its place, what is wrong and what to do; the program then ends with exit code
  64.
- A file with secrets that users other than its owner can read is a warning.
- On SIGHUP the settings are read again. Those marked *at run time* then count at once; for the others the log says that
  they need a restart. Where something is wrong nothing changes.
";

/// The reference in Markdown.
pub fn reference() -> String {
    let mut text = HEAD.to_owned();
    let mut group = None;
    for key in ALL {
        if group != Some(key.group) {
            group = Some(key.group);
            // Writing to a text does not fail.
            let _ = write!(text, "\n## {}\n", key.group.title());
        }
        text.push_str(&entry(key));
    }
    text
}

fn entry(key: &Key) -> String {
    let mut entry = format!("\n### {}\n\n{}.", key.yaml(), key.help);
    if !key.reason.is_empty() {
        let _ = write!(entry, " {}.", key.reason);
    }
    let flag = key.flag.map_or_else(
        || "no flag, since it is secret".to_owned(),
        |flag| format!("`--{flag} {}`", key.value),
    );
    let default = match key.default {
        "" => "not set".to_owned(),
        text if text.contains(' ') => text.to_owned(),
        text => format!("`{text}`"),
    };
    let origin = match key.origin {
        Origin::Pomerium => "Pomerium's",
        Origin::Ours => "this program's own",
    };
    let change = if key.changeable { "at run time" } else { "by a restart" };
    let _ = write!(
        entry,
        "\n\n- `{}={}`, {flag}\n- default: {default}\n- {origin}; changes {change}\n",
        key.variable, key.value
    );
    entry
}
