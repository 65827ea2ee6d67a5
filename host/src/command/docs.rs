//! Man pages and completions. The program makes them itself, so that they fit it wherever it was installed from.

use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::output::{Format, Output, OutputFlags};
use super::{CommandError, CommandLine};

/// Prints the script that completes commands and flags in a shell.
///
/// # Errors
///
/// It cannot be written.
pub fn completions(shell: clap_complete::Shell) -> Result<(), CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "databroker-host", &mut script);
    Ok(plain_output().raw(&script)?)
}

/// Prints the man page of the program, or writes those of all commands to a folder.
///
/// # Errors
///
/// They cannot be written.
pub fn man(folder: Option<&Path>) -> Result<(), CommandError> {
    let Some(folder) = folder else {
        let mut page = Vec::new();
        clap_mangen::Man::new(CommandLine::command()).render(&mut page)?;
        return Ok(plain_output().raw(&page)?);
    };
    let written =
        std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(CommandLine::command(), folder));
    Ok(written.with_context(|| format!("cannot write the man pages to {folder:?}"))?)
}

fn plain_output() -> Output {
    Output::new(OutputFlags { output: Format::Text })
}
