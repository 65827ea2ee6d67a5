//! The text query: is there a string in the record that holds this text, whatever its case?
//!
//! Strings at any depth count, those in lists and the values of maps among them. Keys of maps, bytes, enums and numbers
//! do not, nor what is inside an `Any` within the record. Case is folded character by character as Unicode's lower case.
//! The walk stops at the first match, and passes over messages that cannot hold a string, so that damage behind either
//! goes unnoticed; where a string occurs twice on the wire, which no encoder does, both count.
//!
//! Most records of a query do not have the text anywhere in their bytes, and are not walked at all.

use memchr::{memchr2, memchr2_iter};

use super::schema::{Form, Kind, MessageId, Schema};
use super::wire::{Fields, MAX_DEPTH, Payload, WireError};

/// Up to this many bytes a text is searched for without copying the string; that takes at worst as many comparisons a byte,
/// where the library's search of a copy takes a few whatever the text.
const SHORT: usize = 64;

/// A text to search for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needle {
    /// In lower case.
    text: String,
    is_ascii: bool,
}

impl Needle {
    /// The needle for a text in any case. The empty text is found in every string.
    pub fn new(text: &str) -> Self {
        let text = lowercase(text);
        Self {
            is_ascii: text.is_ascii(),
            text,
        }
    }

    /// True where a string holds the text.
    pub fn is_in(&self, string: &str) -> bool {
        if string.is_ascii() {
            // A text with other letters cannot be in an ASCII string: lower case keeps ASCII within ASCII.
            return self.is_ascii
                && if self.text.len() <= SHORT {
                    contains_ascii(string.as_bytes(), self.text.as_bytes())
                } else {
                    string.to_ascii_lowercase().contains(&self.text)
                };
        }
        lowercase(string).contains(&self.text)
    }

    /// False where no string in the message of these bytes can hold the text, whatever the message is.
    fn may_be_in(&self, message: &[u8]) -> bool {
        if !self.is_ascii || self.text.len() > SHORT || contains_ascii(message, self.text.as_bytes()) {
            return true;
        }
        let ([kelvin_sign, ..], [dotted_capital_i, ..]) = (KELVIN_SIGN, DOTTED_CAPITAL_I);
        memchr2_iter(kelvin_sign, dotted_capital_i, message)
            .filter_map(|start| message.get(start..))
            .any(|rest| rest.starts_with(&KELVIN_SIGN) || rest.starts_with(&DOTTED_CAPITAL_I))
    }
}

/// Character by character, so that a letter has the same lower case in the needle as in the string, wherever it stands.
fn lowercase(text: &str) -> String {
    text.chars().flat_map(char::to_lowercase).collect()
}

/// The letters outside ASCII whose lower case has one of ASCII in it.
const KELVIN_SIGN: [u8; 3] = [0xe2, 0x84, 0xaa];
const DOTTED_CAPITAL_I: [u8; 2] = [0xc4, 0xb0];

fn contains_ascii(mut string: &[u8], needle: &[u8]) -> bool {
    let Some((&first, _)) = needle.split_first() else {
        return true;
    };
    while let Some(start) = memchr2(first, first.to_ascii_uppercase(), string) {
        let candidate = string.get(start..).unwrap_or_default();
        match candidate.get(..needle.len()) {
            None => return false,
            Some(window) if window.eq_ignore_ascii_case(needle) => return true,
            Some(_) => string = candidate.get(1..).unwrap_or_default(),
        }
    }
    false
}

impl Schema {
    /// True where the message holds a string with the text.
    pub(super) fn has_text(&self, id: MessageId, bytes: &[u8], needle: &Needle) -> Result<bool, WireError> {
        Ok(needle.may_be_in(bytes) && self.search(id, bytes, needle, MAX_DEPTH)?)
    }

    fn search(&self, id: MessageId, bytes: &[u8], needle: &Needle, depth: usize) -> Result<bool, WireError> {
        let depth = depth.checked_sub(1).ok_or(WireError::Depth)?;
        let Some(message) = self.message(id) else {
            return Ok(false);
        };
        for occurrence in Fields::of(bytes) {
            let occurrence = occurrence?;
            let Payload::Bytes(payload) = occurrence.payload else {
                continue;
            };
            let Some(field) = message.field(occurrence.number) else {
                continue;
            };
            if message.form == Form::MapEntry && field.number == 1 {
                continue;
            }
            let found = match field.kind {
                Kind::String => needle.is_in(std::str::from_utf8(payload).map_err(|_| WireError::Utf8)?),
                Kind::Message(inner) if self.message(inner).is_some_and(|inner| inner.has_strings) => {
                    self.search(inner, payload, needle, depth)?
                }
                _ => false,
            };
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::{DOTTED_CAPITAL_I, KELVIN_SIGN};

    #[test]
    fn no_other_letter_is_folded_to_ascii() {
        let folded: String = ('\u{80}'..=char::MAX)
            .filter(|letter| letter.to_lowercase().any(|lower| lower.is_ascii()))
            .collect();
        assert_eq!(folded.as_bytes(), [&DOTTED_CAPITAL_I[..], &KELVIN_SIGN].concat());
    }
}
