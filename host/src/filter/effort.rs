//! How much work the matching of a record is: what keeps one query from holding up everybody else.
//!
//! A filter of a thousand parts or ten thousand texts over a record of 4 MiB is within every bound that each of them has,
//! and takes minutes. So matching counts what it looks at, in bytes, and gives up where a record takes more than anybody's
//! does. Counted, not timed: the same query on the same record has the same outcome on every machine.

/// The most bytes that the matching of one record may look at: some hundredths of a second. The largest record there is may
/// be gone through 64 times, and one of usual size 400,000 times.
pub const EFFORT_BYTES: u64 = 256 << 20;

/// What the matching of one record may still look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    left: u64,
}

impl Default for Effort {
    fn default() -> Self {
        Self { left: EFFORT_BYTES }
    }
}

impl Effort {
    /// Counts work before it is done; false where it would be too much, now and from then on.
    pub fn spend(&mut self, bytes: usize, times: usize) -> bool {
        // A comparison costs something where there is nothing to compare too.
        let work = (bytes as u64).saturating_add(1).saturating_mul(times as u64);
        match self.left.checked_sub(work) {
            Some(left) if !self.is_exhausted() => {
                self.left = left;
                true
            }
            _ => {
                self.left = 0;
                false
            }
        }
    }

    /// True once it was too much: what matching then says is no answer.
    pub fn is_exhausted(&self) -> bool {
        self.left == 0
    }

    /// What was looked at so far, in bytes.
    pub fn spent(&self) -> u64 {
        EFFORT_BYTES - self.left
    }
}
