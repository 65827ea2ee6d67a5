//! Text that Postgres can store: all but the character NUL.
//!
//! NUL becomes U+0001 U+0001, and U+0001 becomes U+0001 U+0002. That keeps texts apart and their order as it is, and leaves all
//! texts alone that have neither, which are all that Pomerium itself can have written but for those with U+0001.

/// What stands before an escaped character.
const ESCAPE: char = '\u{1}';

/// What an escaped [`ESCAPE`] becomes after it.
const ITSELF: char = '\u{2}';

/// Text as it is stored.
pub(crate) fn store(text: &str) -> String {
    if !text.contains(['\0', ESCAPE]) {
        return text.to_owned();
    }
    let mut stored = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '\0' => stored.extend([ESCAPE, ESCAPE]),
            ESCAPE => stored.extend([ESCAPE, ITSELF]),
            other => stored.push(other),
        }
    }
    stored
}

/// How many bytes text has as it is stored.
pub(crate) fn stored_len(text: &str) -> usize {
    text.len()
        + text
            .chars()
            .filter(|character| matches!(*character, '\0' | ESCAPE))
            .count()
}

/// Text as it was before it was stored.
pub(crate) fn load(stored: String) -> String {
    if !stored.contains(ESCAPE) {
        return stored;
    }
    let mut text = String::with_capacity(stored.len());
    let mut characters = stored.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, characters.peek()) {
            (ESCAPE, Some(&ESCAPE)) => {
                characters.next();
                text.push('\0');
            }
            (ESCAPE, Some(&ITSELF)) => {
                characters.next();
                text.push(ESCAPE);
            }
            (other, _) => text.push(other),
        }
    }
    text
}

/// A short name for a text: FNV-1a, which is the same everywhere.
pub(crate) fn digest(text: &str) -> String {
    let digest = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |digest, byte| {
        (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{digest:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_comes_back_and_keeps_its_order() {
        let mut texts = [
            "",
            "\0",
            "\0\0",
            "\0\u{1}",
            "\u{1}",
            "\u{1}\0",
            "\u{1}\u{1}",
            "\u{1}\u{2}",
            "\u{2}",
            "a",
            "a\0",
            "a\0b",
            "a\u{1}",
            "é",
        ];
        texts.sort_unstable();
        let stored: Vec<_> = texts.iter().map(|text| store(text)).collect();
        assert!(stored.is_sorted_by(|one, other| one < other), "{stored:?}");
        for (text, stored) in texts.iter().zip(stored) {
            assert!(!stored.contains('\0'));
            assert_eq!(stored_len(text), stored.len());
            assert_eq!(load(stored), *text);
        }
        assert_eq!(load("\u{1}x".to_owned()), "\u{1}x", "what nobody has escaped");
    }
}
