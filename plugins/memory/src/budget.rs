//! How many bytes the store may take, and how many it takes.
//!
//! A component's memory ends at 4 GiB and a failed allocation ends the instance with everything in it, so the store has
//! to know its size beforehand. Each thing it keeps is counted with what it truly takes: its bytes, the structures
//! around them and the allocator's share. What the count cannot see (fragmentation, arguments, answers) is why the
//! highest budget is well below 4 GiB.

use std::sync::atomic::{AtomicU64, Ordering};

const MEBIBYTE: u64 = 1 << 20;
const GIBIBYTE: u64 = 1 << 30;

/// What an allocator adds to one allocation: a header, and rounding up to two words.
pub(crate) const ALLOCATION: u64 = 2 * WORD;

/// The two counts in front of shared data.
pub(crate) const SHARED: u64 = 2 * WORD;

/// What the nodes of an ordered map take for one entry of this many bytes, at the two thirds that they are filled by.
pub(crate) const fn ordered(size: usize) -> u64 {
    (size as u64) * 3 / 2 + WORD
}

const WORD: u64 = size_of::<usize>() as u64;

/// A length as a count of bytes.
pub(crate) fn bytes(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// The most bytes that the store may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    limit: u64,
}

impl Budget {
    /// What applies where the connection string names none: 1 GiB.
    pub const DEFAULT: Self = Self { limit: GIBIBYTE };

    /// The least that a connection string may ask for: 1 MiB.
    pub const LEAST: Self = Self { limit: MEBIBYTE };

    /// The most that a connection string may ask for: 3000 MiB. With a third more and 64 MiB for what is not counted, that
    /// is within the 4 GiB of a 32-bit memory.
    pub const MOST: Self = Self { limit: 3000 * MEBIBYTE };

    /// A budget of so many bytes.
    pub const fn of(limit: u64) -> Self {
        Self { limit }
    }

    /// Reads a connection string: none, nothing, `memory://` or `memory://?budget=512MiB`.
    ///
    /// # Errors
    ///
    /// One sentence that says what is wrong. The string itself is not repeated: it may hold another store's password.
    pub fn from_connection_string(connection_string: Option<&str>) -> Result<Self, SettingsError> {
        let text = connection_string.unwrap_or_default().trim();
        if text.is_empty() {
            return Ok(Self::DEFAULT);
        }
        let parameters = match text.strip_prefix("memory://") {
            Some("") => return Ok(Self::DEFAULT),
            Some(rest) => rest.strip_prefix('?').ok_or(SettingsError::Form)?,
            None => return Err(SettingsError::Form),
        };
        let mut budget = None;
        for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=') {
                Some(("budget", _)) if budget.is_some() => return Err(SettingsError::Repeated),
                Some(("budget", size)) => budget = Some(Self::parse(size)?),
                _ => return Err(SettingsError::Parameter),
            }
        }
        Ok(budget.unwrap_or(Self::DEFAULT))
    }

    fn parse(size: &str) -> Result<Self, SettingsError> {
        let digits = size.trim_end_matches(|letter: char| !letter.is_ascii_digit());
        let unit = match size.get(digits.len()..).unwrap_or_default() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => MEBIBYTE,
            "GiB" => GIBIBYTE,
            _ => return Err(SettingsError::Size),
        };
        let number: u64 = digits.parse().map_err(|_| SettingsError::Size)?;
        let limit = number.checked_mul(unit).ok_or(SettingsError::Range)?;
        if !(Self::LEAST.limit..=Self::MOST.limit).contains(&limit) {
            return Err(SettingsError::Range);
        }
        Ok(Self { limit })
    }

    /// The most bytes in all.
    pub fn limit(self) -> u64 {
        self.limit
    }

    /// The most bytes that no pruning can give back: live records, indexes and the small state. A sixteenth is left to
    /// the change log, so that deletes have room for their tombstones and readers for a little history.
    pub fn live_limit(self) -> u64 {
        self.limit - self.limit / 16
    }
}

impl std::fmt::Display for Budget {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.limit.is_multiple_of(MEBIBYTE) {
            write!(formatter, "{} MiB", self.limit / MEBIBYTE)
        } else {
            write!(formatter, "{} bytes", self.limit)
        }
    }
}

/// Why a connection string is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingsError {
    /// It is not one of this store.
    Form,
    /// It names something other than a budget.
    Parameter,
    /// It names the budget twice.
    Repeated,
    /// The budget is not a size.
    Size,
    /// The budget is too small or too large.
    Range,
}

impl std::fmt::Display for SettingsError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Form => {
                "the memory store's connection string must be empty, `memory://` or `memory://?budget=1GiB`; leave it \
                 out, or choose the storage plugin that it is meant for"
            }
            Self::Parameter => "the memory store's connection string knows one parameter, `budget`; remove the others",
            Self::Repeated => "the memory store's connection string gives `budget` twice; give it once",
            Self::Size => {
                "the memory store's `budget` must be a whole number of bytes, or one followed by KiB, MiB or GiB, such \
                 as `512MiB`"
            }
            Self::Range => "the memory store's `budget` must be at least 1MiB and at most 3000MiB",
        })
    }
}

impl std::error::Error for SettingsError {}

/// The bytes that a store takes, counted by whatever takes them.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    /// All of them.
    used: AtomicU64,
    /// Those that no pruning can give back.
    live: AtomicU64,
}

// Nothing is ordered by the counts, and under WebAssembly, which has one thread here, these are plain additions.
impl Usage {
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    pub fn charge(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Says that bytes which are charged, or will be, are there to stay.
    pub fn hold(&self, bytes: u64) {
        self.live.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes a `hold` back.
    pub fn unhold(&self, bytes: u64) {
        self.live.fetch_sub(bytes, Ordering::Relaxed);
    }
}
