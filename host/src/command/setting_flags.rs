//! The settings as flags of a command, and the configuration file.
//!
//! They come from the table of settings, so that flag, variable and help cannot differ.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::{CommandError, Environment};
use crate::settings::{ALL, Key, Settings};

/// The id of the flag that names the configuration file.
const CONFIG: &str = "config";

/// The settings that were given as flags, and the configuration file.
#[derive(Clone, Debug, Default)]
pub struct SettingFlags {
    file: Option<PathBuf>,
    flags: BTreeMap<&'static str, OsString>,
}

impl SettingFlags {
    /// All settings, from the file, the environment and the flags.
    ///
    /// # Errors
    ///
    /// All mistakes there are.
    pub fn settings(&self, environment: &Environment) -> Result<Settings, CommandError> {
        let mut source = environment.source(self.file.clone());
        source.flags.clone_from(&self.flags);
        Ok(Settings::read(&source)?)
    }
}

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new(CONFIG)
            .long(CONFIG)
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help(
                "A configuration file in YAML or JSON, such as Pomerium's own. The environment goes before it, and flags \
                 before that",
            );
        command
            .after_help(environment_help())
            .arg(config)
            .args(ALL.iter().filter_map(|key| argument(key)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let given = |key: &'static Key| {
            let value = matches.try_get_one::<OsString>(key.variable).ok().flatten()?;
            Some((key.variable, value.clone()))
        };
        self.flags = ALL.iter().filter_map(|key| given(key)).collect();
        self.file = matches.get_one::<PathBuf>(CONFIG).cloned();
        Ok(())
    }
}

fn argument(key: &'static Key) -> Option<Arg> {
    let flag = key.flag?;
    let argument = Arg::new(key.variable)
        .long(flag)
        .value_name(key.value)
        .value_parser(clap::value_parser!(OsString))
        .help(key.help_text());
    if key.value == "BOOLEAN" {
        return Some(
            argument
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true"),
        );
    }
    Some(argument)
}

fn environment_help() -> String {
    let secrets = ALL.iter().filter(|key| key.flag.is_none());
    let lines = secrets.map(|key| format!("  {}={}\n          {}\n", key.variable, key.value, key.help_text()));
    format!(
        "In the environment or the file only, where other users cannot read it:\n{}",
        lines.collect::<String>()
    )
}
