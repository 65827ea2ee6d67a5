//! What every process has, under the names that Prometheus' own libraries use: processor time, memory, open files.
//!
//! Read from `/proc/self` at each scrape, which a service that is hardened sees too; on a system without it all but the
//! time of the start are left out.

use std::fmt;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use super::page::Page;

/// Ticks in which the kernel tells processor times to programs: 100 a second on every architecture that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// What the process uses.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Process {
    cpu_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    open_fds: u64,
    max_fds: u64,
}

/// Writes what there is to know of a process that began at this time.
pub fn encode(page: &mut Page<'_>, start: SystemTime) -> fmt::Result {
    let start = start.duration_since(UNIX_EPOCH).unwrap_or_default();
    page.fractional_gauge(
        "process_start_time_seconds",
        "When this process began, in seconds since the Unix epoch.",
        start.as_secs_f64(),
    )?;
    let Some(process) = read() else { return Ok(()) };
    page.fractional_counter(
        "process_cpu_seconds",
        "Processor time of this process, in seconds.",
        process.cpu_seconds,
    )?;
    page.gauge(
        "process_resident_memory_bytes",
        "Memory of this process that is in use, in bytes.",
        process.resident_bytes,
    )?;
    page.gauge(
        "process_virtual_memory_bytes",
        "Addresses that this process has mapped, in bytes.",
        process.virtual_bytes,
    )?;
    page.gauge("process_open_fds", "Files and sockets that are open.", process.open_fds)?;
    page.gauge(
        "process_max_fds",
        "Most files and sockets that may be open.",
        process.max_fds,
    )
}

fn read() -> Option<Process> {
    let open_fds = fs::read_dir("/proc/self/fd").ok()?.count();
    parse(
        &fs::read_to_string("/proc/self/stat").ok()?,
        &fs::read_to_string("/proc/self/status").ok()?,
        &fs::read_to_string("/proc/self/limits").ok()?,
        u64::try_from(open_fds).ok()?,
    )
}

fn parse(stat: &str, status: &str, limits: &str, open_fds: u64) -> Option<Process> {
    // The program's name, in brackets, may hold anything; what follows it begins with field 3.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field.checked_sub(3)?)?.parse::<f64>().ok();
    let kibibytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let max_fds = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?
        .split_whitespace()
        .next()?;
    Some(Process {
        cpu_seconds: (ticks(14)? + ticks(15)?) / TICKS_PER_SECOND,
        resident_bytes: kibibytes("VmRSS:")?,
        virtual_bytes: kibibytes("VmSize:")?,
        open_fds,
        // Without a limit there is no number.
        max_fds: max_fds.parse().unwrap_or(u64::MAX),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_says() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 9 9 20 0 1 0 12345 99 42 0";
        let status = "Name:\ta\nVmSize:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        let limits =
            "Limit   Soft  Hard  Units\nMax open files            1024                 4096                 files\n";
        let process = parse(stat, status, limits, 12);
        assert_eq!(
            process,
            Some(Process {
                cpu_seconds: 3.0,
                resident_bytes: 1 << 20,
                virtual_bytes: 2 << 20,
                open_fds: 12,
                max_fds: 1024,
            })
        );
        assert_eq!(parse("", status, limits, 12), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn reads_this_process() {
        assert!(read().is_some_and(|process| process.resident_bytes > 0 && process.open_fds > 0));
    }
}
