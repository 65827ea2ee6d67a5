//! Draws values out of bytes, so that a fuzzer that knows bytes makes structures.

use bytes::Bytes;
use databroker_host::backend::{PageBounds, Position};
use databroker_host::record::{Key, Record, Timestamp};

/// Bytes from which values are drawn. Where there are none left, everything is 0.
pub struct Draw<'a>(pub &'a [u8]);

impl Draw<'_> {
    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((byte, rest)) => {
                self.0 = rest;
                *byte
            }
            None => 0,
        }
    }

    pub fn is_so(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub fn below(&mut self, bound: u8) -> u8 {
        self.byte() % bound.max(1)
    }

    /// Small numbers, most of all, so that they meet; and a few of the largest.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            255 => u64::MAX,
            254 => u64::MAX - 1,
            253 => 1 << 63,
            small => u64::from(small) % 12,
        }
    }

    pub fn text(&mut self) -> String {
        const TEXTS: [&str; 6] = ["", "a", "b", "c", "a\0", "\u{10ffff}"];
        TEXTS[usize::from(self.below(6))].to_owned()
    }

    pub fn key(&mut self) -> Key {
        Key::new(self.text(), self.text())
    }

    pub fn option<T>(&mut self, draw: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.is_so().then(|| draw(self))
    }

    /// At most six.
    pub fn list<T>(&mut self, mut draw: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(7)).map(|_| draw(self)).collect()
    }

    pub fn data(&mut self) -> Option<Bytes> {
        match self.below(5) {
            0 => None,
            1 => Some(Bytes::new()),
            2 => Some(Bytes::from_static(b"\x0a\x01t")),
            3 => Some(Bytes::from_static(b"\x0a\x7f")),
            _ => Some(Bytes::from([&[0x12, 100][..], &[7; 100]].concat())),
        }
    }

    pub fn record(&mut self) -> Record {
        Record {
            version: self.number(),
            key: self.key(),
            data: self.data(),
            modified_at: Timestamp(self.number().cast_signed()),
            deleted_at: self.option(|draw| Timestamp(draw.number().cast_signed())),
        }
    }

    pub fn position(&mut self) -> Position {
        Position {
            server_version: self.number(),
            earliest_version: self.number(),
            latest_version: self.number(),
        }
    }

    pub fn bounds(&mut self) -> PageBounds {
        PageBounds {
            records: u32::from(self.below(7)),
            bytes: u64::from(self.byte()),
        }
    }
}
