//! Finds the networks that contain an address or another network.
//!
//! A network that contains `10.1.2.0/24` is that prefix itself or one of its 24 shortenings, so a look-up of each length
//! that occurs answers without a scan: three or four look-ups in practice, 129 at most.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::str::FromStr;
use std::sync::Arc;

/// A canonical network prefix: no bit is set after its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    family: Family,
    length: u8,
    /// The address, in the highest bits.
    bits: u128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Family {
    V4,
    V6,
}

/// The text is not a network prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixError;

impl std::fmt::Display for PrefixError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a network must be a canonical prefix, such as 10.1.0.0/16 or 2001:db8::/32")
    }
}

impl std::error::Error for PrefixError {}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (address, length) = text.split_once('/').ok_or(PrefixError)?;
        // One way to write each, as everybody else reads it: no signs and no zeros in front.
        if length.starts_with('+') || (length.len() > 1 && length.starts_with('0')) {
            return Err(PrefixError);
        }
        let length: u8 = length.parse().map_err(|_| PrefixError)?;
        let (family, bits, width) = match address.parse().map_err(|_| PrefixError)? {
            IpAddr::V4(address) => (Family::V4, u128::from(address.to_bits()) << 96, 32),
            IpAddr::V6(address) => (Family::V6, address.to_bits(), 128),
        };
        if length > width || bits & mask(length) != bits {
            return Err(PrefixError);
        }
        Ok(Self { family, length, bits })
    }
}

impl Prefix {
    /// The prefix of the same family that has fewer bits and contains this one.
    fn shortened(self, length: u8) -> Self {
        Self {
            family: self.family,
            length,
            bits: self.bits & mask(length),
        }
    }
}

/// The highest bits set.
fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0)
}

/// Which records have which network.
#[derive(Debug, Default)]
pub(crate) struct NetworkIndex {
    records: BTreeSet<(Prefix, Arc<str>)>,
    /// How many records have a prefix of this family and length.
    lengths: BTreeMap<(Family, u8), usize>,
}

impl NetworkIndex {
    /// What one record takes.
    pub const COST: u64 = crate::budget::ordered(size_of::<(Prefix, Arc<str>)>());

    pub fn insert(&mut self, prefix: Prefix, id: &Arc<str>) {
        if self.records.insert((prefix, Arc::clone(id))) {
            *self.lengths.entry((prefix.family, prefix.length)).or_default() += 1;
        }
    }

    pub fn remove(&mut self, prefix: Prefix, id: &Arc<str>) {
        if !self.records.remove(&(prefix, Arc::clone(id))) {
            return;
        }
        let key = (prefix.family, prefix.length);
        if let Some(count) = self.lengths.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&key);
            }
        }
    }

    /// The lowest ids after this one, ascending, whose network contains the whole prefix; at most so many.
    pub fn containing(&self, prefix: Prefix, after: Option<&str>, most: usize) -> Vec<Arc<str>> {
        let mut ids = Vec::new();
        for &(family, length) in self.lengths.keys() {
            if family != prefix.family || length > prefix.length {
                continue;
            }
            let network = prefix.shortened(length);
            let start = (network, Arc::from(after.unwrap_or_default()));
            let start = if after.is_some() {
                Bound::Excluded(start)
            } else {
                Bound::Included(start)
            };
            let of_network = self
                .records
                .range((start, Bound::Unbounded))
                .take_while(|(found, _)| *found == network);
            ids.extend(of_network.take(most).map(|(_, id)| Arc::clone(id)));
        }
        ids.sort_unstable();
        ids.truncate(most);
        ids
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn prefixes_are_canonical() {
        for good in [
            "0.0.0.0/0",
            "10.1.0.0/16",
            "10.1.2.3/32",
            "::/0",
            "2001:db8::/32",
            "::1/128",
        ] {
            assert!(good.parse::<Prefix>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "::1/64",
            "::/129",
            "x/8",
            "10.0.0.0/-1",
            "10.0.0.0/08",
            "10.0.0.0/+8",
        ] {
            assert_eq!(bad.parse::<Prefix>(), Err(PrefixError), "{bad}");
        }
    }

    #[test]
    fn containing_finds_every_length_in_the_order_of_ids() {
        let mut index = NetworkIndex::default();
        for (id, prefix) in [
            ("d", "0.0.0.0/0"),
            ("a", "10.0.0.0/8"),
            ("c", "10.1.0.0/16"),
            ("b", "10.1.2.3/32"),
            ("e", "10.2.0.0/16"),
            ("f", "::/0"),
        ] {
            index.insert(prefix.parse().unwrap(), &Arc::from(id));
        }
        let find = |index: &NetworkIndex, prefix: &str, after, most| {
            index
                .containing(prefix.parse().unwrap(), after, most)
                .iter()
                .map(|id| id.to_string())
                .collect::<String>()
        };
        assert_eq!(find(&index, "10.1.2.3/32", None, 9), "abcd");
        assert_eq!(find(&index, "10.1.2.3/32", Some("a"), 2), "bc");
        assert_eq!(
            find(&index, "10.1.0.0/16", None, 9),
            "acd",
            "a longer prefix contains less"
        );
        assert_eq!(find(&index, "2001:db8::/32", None, 9), "f", "families do not mix");
        index.remove("10.0.0.0/8".parse().unwrap(), &Arc::from("a"));
        index.remove("10.0.0.0/8".parse().unwrap(), &Arc::from("a"));
        assert_eq!(find(&index, "10.9.0.0/16", None, 9), "d");
    }
}
