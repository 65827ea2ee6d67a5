//! Something that happens often and is told seldom: a line of the log that a client could otherwise write as often as
//! it likes.

use std::time::{Duration, Instant};

/// When it was last told, and how often it was not since.
#[derive(Debug, Default)]
pub struct Seldom {
    told: Option<Instant>,
    untold: u64,
}

impl Seldom {
    /// If it is to be told now, which it is once in an interval: how often it was not since it last was.
    pub fn turn(&mut self, now: Instant, interval: Duration) -> Option<u64> {
        match self.told {
            Some(told) if now.saturating_duration_since(told) < interval => {
                self.untold = self.untold.saturating_add(1);
                None
            }
            _ => {
                self.told = Some(now);
                Some(std::mem::take(&mut self.untold))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(60);

    #[test]
    fn what_happens_often_is_told_seldom() {
        let start = Instant::now();
        let mut seldom = Seldom::default();
        assert_eq!(seldom.turn(start, INTERVAL), Some(0));
        assert_eq!(seldom.turn(start, INTERVAL), None);
        assert_eq!(seldom.turn(start, INTERVAL), None);
        assert_eq!(seldom.turn(start + INTERVAL, INTERVAL), Some(2));
    }
}
