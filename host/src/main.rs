//! The program; `command` is where it begins.

use std::process::ExitCode;

use databroker_host::command;

fn main() -> ExitCode {
    ExitCode::from(command::run(std::env::args_os(), std::env::vars_os()))
}
