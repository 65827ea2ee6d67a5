//! The program; `command` is where it begins.

use std::process::ExitCode;

use databroker_host::command;

/// Static binaries would have musl's allocator, with which SyncLatest takes twice the time.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ExitCode::from(command::run(std::env::args_os(), std::env::vars_os()))
}
