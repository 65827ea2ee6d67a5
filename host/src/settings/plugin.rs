//! What a running plugin may use, and how often it is started again.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rustix::fs::{Access, access};

use super::reader::Reader;
use super::{HOUR, Key, SHORTEST, bounded, duration, keys};
use crate::component::{LEAST_ANSWER_BYTES, Limits, Restarts};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The shortest time after which an instance may be ended: less would end one that a busy machine is slow with.
const SHORTEST_LIMIT: Duration = Duration::from_millis(100);

/// What one instance may use.
pub(super) fn limits(reader: &mut Reader<'_>) -> Limits {
    let times = (SHORTEST_LIMIT, HOUR);
    Limits {
        // The whole of what 32 bits can address is a page more than an instance can have.
        memory_bytes: size(reader, &keys::PLUGIN_MEMORY, (MIB, 4 * GIB)).min(Limits::default().memory_bytes),
        compute: duration(reader, &keys::PLUGIN_COMPUTE_TIME, times),
        turn: duration(reader, &keys::PLUGIN_TURN_TIME, times),
        memories: number(reader, &keys::PLUGIN_MEMORIES, (1, 1000)),
        tables: number(reader, &keys::PLUGIN_TABLES, (1, 10_000)),
        table_elements: number(reader, &keys::PLUGIN_TABLE_ELEMENTS, (1, 10_000_000)),
        instances: number(reader, &keys::PLUGIN_INSTANCES, (1, 10_000)),
        handles: number(reader, &keys::PLUGIN_HANDLES, (64, 1_000_000)),
        transactions: number(reader, &keys::PLUGIN_TRANSACTIONS, (1, 10_000)),
        listeners: number(reader, &keys::PLUGIN_LISTENERS, (1, 1000)),
        log_burst: number(reader, &keys::PLUGIN_LOG_BURST, (1, 100_000)),
        log_rate: number(reader, &keys::PLUGIN_LOG_RATE, (1, 10_000)),
        answer_bytes: size(reader, &keys::PLUGIN_ANSWER_SIZE, (LEAST_ANSWER_BYTES, GIB)),
        // With fewer, the host would not catch up with a busy store that others write to.
        page_records: number(reader, &keys::PLUGIN_PAGE_RECORDS, (16, 1024)),
        call: duration(reader, &keys::PLUGIN_CALL_TIME, times),
        calls: number(reader, &keys::PLUGIN_CALLS, (1, 1 << 16)),
        queue: number(reader, &keys::PLUGIN_QUEUE, (2, 1 << 20)),
        queue_time: duration(reader, &keys::PLUGIN_QUEUE_TIME, (SHORTEST, HOUR)),
    }
}

/// How often it is started again.
pub(super) fn restarts(reader: &mut Reader<'_>) -> Restarts {
    Restarts {
        most: number(reader, &keys::PLUGIN_RESTARTS, (0, 1000)),
        ..Restarts::default()
    }
}

/// Where reports of its ends are kept. The directory is made with the first of them, which is when nobody wants to hear that
/// it cannot be: so it is looked at here, or what it would be made in.
pub(super) fn report_dir(reader: &mut Reader<'_>) -> Option<PathBuf> {
    let key = &keys::PLUGIN_REPORT_DIR;
    let directory = PathBuf::from(reader.text(key)?);
    // A relative path begins in the working directory.
    let there = directory.ancestors().find(|path| path.symlink_metadata().is_ok());
    let there = there.unwrap_or(Path::new("."));
    let unusable = match fs::metadata(there) {
        Ok(metadata) if !metadata.is_dir() => Some("it is not a directory".to_owned()),
        Ok(_) => {
            let allowed = access(there, Access::WRITE_OK | Access::EXEC_OK);
            allowed
                .err()
                .map(|error| format!("it cannot be written to: {}", std::io::Error::from(error)))
        }
        Err(error) => Some(error.to_string()),
    };
    if let Some(wrong) = unusable {
        reader.mistake(key, format!("{there:?}: {wrong}"), key.remedy);
    }
    Some(directory)
}

fn number<N>(reader: &mut Reader<'_>, key: &'static Key, (least, most): (N, N)) -> N
where
    N: Copy + Default + FromStr + PartialOrd + fmt::Display,
{
    reader.or_default(key, |text| bounded(text, least, most))
}

fn size(reader: &mut Reader<'_>, key: &'static Key, (least, most): (u64, u64)) -> usize {
    reader.or_default(key, |text| {
        let bytes = bytes(text).filter(|bytes| (least..=most).contains(bytes));
        bytes
            .map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
            .ok_or_else(|| {
                let (least, most) = (least / MIB, most / MIB);
                format!("{text:?} is not a size from {least}MiB to {most}MiB")
            })
    })
}

/// Bytes: a whole number, and a unit unless bytes are meant.
fn bytes(text: &str) -> Option<u64> {
    let units = [("GiB", GIB), ("MiB", MIB), ("KiB", KIB), ("B", 1), ("", 1)];
    let (number, unit) = units
        .iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    number.trim_end().parse::<u64>().ok()?.checked_mul(*unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_numbers_with_a_unit() {
        let cases = [
            ("0", Some(0)),
            ("1048576", Some(MIB)),
            ("5B", Some(5)),
            ("64KiB", Some(64 * KIB)),
            ("512 MiB", Some(512 * MIB)),
            ("4GiB", Some(4 * GIB)),
            ("", None),
            ("MiB", None),
            ("-1MiB", None),
            ("1.5GiB", None),
            ("1MB", None),
            ("1mib", None),
            ("18446744073709551615GiB", None),
        ];
        for (text, expected) in cases {
            assert_eq!(bytes(text), expected, "{text:?}");
        }
    }
}
