//! The reference of all commands in `docs/cli.md`, which these tests make from the tree of commands and hold against
//! what is there.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use clap::builder::StyledStr;
use clap::{Arg, Command, CommandFactory as _};

use super::{CommandLine, EXIT_CODES};
use crate::settings::ALL;

const INTRODUCTION: &str = "# Commands

This page is generated from the program, and a test fails where it differs:
`UPDATE_EXPECT=1 cargo test --release -p databroker-host --lib command::reference` writes it anew.

`databroker-host help COMMAND` says the same. `databroker-host completions SHELL` prints completions for a shell, and
`databroker-host man --out DIR` writes man pages.

Results go to standard output and everything else to standard error. With `--output json` a result is one JSON document,
or one line for each item of a stream; numbers of 64 bits are strings, as in protobuf's JSON. Control characters and
invisible ones in records are escaped in both forms. Text hides the secrets within records, such as the tokens of
sessions, unless `--show-secrets` is given; JSON has them always, so that it can be put again.

There is no command that lists leases: the protocol has no call for it.

## Exit codes

";

#[test]
fn the_reference_is_what_the_program_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, markdown()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == markdown(),
        "docs/cli.md differs from the program: run this test with UPDATE_EXPECT=1"
    );
}

#[test]
fn every_command_and_flag_says_what_it_does() {
    fn check(command: &Command, path: &str) {
        let path = format!("{path} {}", command.get_name());
        assert!(command.get_about().is_some(), "{path}");
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{path}: {}", argument.get_id());
        }
        for command in command.get_subcommands() {
            check(command, &path);
        }
    }
    let mut command = CommandLine::command();
    command.build();
    check(&command, "");
    CommandLine::command().debug_assert();
}

/// The reference of all commands, in Markdown.
fn markdown() -> String {
    let mut text = String::from(INTRODUCTION);
    text.push_str("| code | meaning |\n|---|---|\n");
    for (code, meaning) in EXIT_CODES {
        text.push_str(&format!("| {code} | {meaning} |\n"));
    }
    let mut command = CommandLine::command().disable_help_subcommand(true);
    command.build();
    let mut leaves = Vec::new();
    collect(&command, "", &mut leaves);

    let all: Vec<String> = leaves.iter().flat_map(|(_, command)| flags(command)).collect();
    let is_common =
        |entry: &String| entry.starts_with("- `-") && all.iter().filter(|other| *other == entry).count() >= COMMON;
    text.push_str("\n## Flags of many commands\n\n");
    for (index, entry) in all.iter().enumerate() {
        let is_first = !all.iter().take(index).any(|before| before == entry);
        if is_common(entry) && is_first {
            text.push_str(entry);
        }
    }
    for (name, command) in leaves {
        text.push_str(&format!("\n## {name}\n\n"));
        let about = plain(command.get_long_about().or(command.get_about()));
        let paragraphs: Vec<&str> = about
            .split("\n\n")
            .map(|paragraph| paragraph.trim_end_matches('.'))
            .collect();
        text.push_str(&format!("{}.\n\n", paragraphs.join(".\n\n")));
        let positionals = command
            .get_positionals()
            .map(|argument| match argument.is_required_set() {
                true => format!(" {}", values(argument)),
                false => format!(" [{}]", values(argument)),
            });
        text.push_str(&format!(
            "```text\n{name}{} [FLAGS]\n```\n\n",
            positionals.collect::<String>()
        ));
        let (common, own): (Vec<_>, Vec<_>) = flags(command).into_iter().partition(is_common);
        own.iter().for_each(|entry| text.push_str(entry));
        if command.get_arguments().any(is_setting) {
            text.push_str("- all [settings](settings.md) as flags\n");
        }
        if !common.is_empty() {
            let names: Vec<&str> = common.iter().filter_map(|entry| entry.split('`').nth(1)).collect();
            text.push_str(&format!(
                "- [as many commands](#flags-of-many-commands): `{}`\n",
                names.join("`, `")
            ));
        }
    }
    text
}

/// From how many commands on a flag is described once for all.
const COMMON: usize = 4;

/// The commands that have none below, with their whole names.
fn collect<'c>(command: &'c Command, parent: &str, leaves: &mut Vec<(String, &'c Command)>) {
    let name = format!("{parent} {}", command.get_name()).trim_start().to_owned();
    if !command.has_subcommands() {
        leaves.push((name, command));
        return;
    }
    for command in command.get_subcommands() {
        collect(command, &name, leaves);
    }
}

/// The entries of a command's arguments.
fn flags(command: &Command) -> Vec<String> {
    let shown = |argument: &&Arg| !argument.is_hide_set() && argument.get_id() != "help" && !is_setting(argument);
    command.get_arguments().filter(shown).map(entry).collect()
}

fn is_setting(argument: &Arg) -> bool {
    ALL.iter().any(|key| key.variable == argument.get_id().as_str())
}

/// A flag or value with what it does, its default and its variable.
fn entry(argument: &Arg) -> String {
    let name = match (argument.get_short(), argument.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long}"),
        (None, Some(long)) => format!("--{long}"),
        _ => String::new(),
    };
    let takes_value = argument.get_action().takes_values();
    let shown = match (name.is_empty(), takes_value) {
        (true, _) => values(argument),
        // A value that may be left out has to be joined to its flag.
        (false, true) if argument.is_require_equals_set() => format!("{name}[={}]", values(argument)),
        (false, true) => format!("{name} {}", values(argument)),
        (false, false) => name,
    };
    let mut entry = format!(
        "- `{shown}`: {}",
        plain(argument.get_long_help().or(argument.get_help()))
    );
    if takes_value {
        let possible: Vec<_> = argument.get_possible_values();
        if !possible.is_empty() {
            let names: Vec<&str> = possible.iter().map(clap::builder::PossibleValue::get_name).collect();
            entry.push_str(&format!(". One of {}", names.join(", ")));
        }
        let defaults: Vec<_> = argument
            .get_default_values()
            .iter()
            .map(|value| value.to_string_lossy())
            .collect();
        if !defaults.is_empty() && !argument.is_hide_default_value_set() {
            entry.push_str(&format!(" [default: {}]", defaults.join(", ")));
        }
    }
    if let Some(variable) = argument.get_env() {
        entry.push_str(&format!(" [env: {}]", variable.to_string_lossy()));
    }
    entry.push('\n');
    entry
}

fn values(argument: &Arg) -> String {
    match argument.get_value_names() {
        Some(names) => names
            .iter()
            .map(clap::builder::Str::as_str)
            .collect::<Vec<_>>()
            .join(" "),
        None => argument.get_id().as_str().to_uppercase(),
    }
}

fn plain(text: Option<&StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default()
}
