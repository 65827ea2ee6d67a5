//! The program; `command` is where it begins.

use std::process::ExitCode;

use databroker_host::command;

/// Records are many small allocations that one thread makes and another frees, which costs the system's allocators a
/// quarter of a write.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ExitCode::from(command::run(std::env::args_os(), std::env::vars_os()))
}
