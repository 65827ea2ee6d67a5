//! Text that others have written, made safe to show.
//!
//! Record ids and data, and what a server says, may hold anything: a control character could clear the screen, retitle
//! the window or hide what follows it, and some invisible ones turn the direction of writing around. None of them
//! reaches the terminal, in text or in JSON.

use std::borrow::Cow;

/// One line of text: dangerous characters, line ends among them, are shown as `\u{1b}`.
pub fn line(text: &str) -> Cow<'_, str> {
    replace(text, is_dangerous, |safe, character| {
        safe.extend(character.escape_unicode())
    })
}

/// Several lines of text: the same, but for line ends.
pub fn lines(text: &str) -> Cow<'_, str> {
    let dangerous = |character: char| is_dangerous(character) && character != '\n';
    replace(text, dangerous, |safe, character| {
        safe.extend(character.escape_unicode())
    })
}

/// JSON, in which dangerous characters stand in strings only and are escaped the way that JSON has for it.
pub fn json(text: &str) -> Cow<'_, str> {
    let dangerous = |character: char| is_dangerous(character) && character != '\n';
    replace(text, dangerous, |safe, character| {
        for unit in character.encode_utf16(&mut [0; 2]) {
            safe.push_str(&format!("\\u{unit:04x}"));
        }
    })
}

fn replace(text: &str, dangerous: impl Fn(char) -> bool, escape: impl Fn(&mut String, char)) -> Cow<'_, str> {
    if !text.contains(&dangerous) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len().saturating_add(16));
    for character in text.chars() {
        if dangerous(character) {
            escape(&mut safe, character);
        } else {
            safe.push(character);
        }
    }
    Cow::Owned(safe)
}

/// Control characters, and invisible ones that move or reorder what is seen.
fn is_dangerous(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn what_could_reach_the_terminal_is_escaped() {
        let cases = [
            ("plain text, ä, 日本語 🔑", "plain text, ä, 日本語 🔑"),
            ("\x1b[2J", "\\u{1b}[2J"),
            ("a\nb\tc", "a\\u{a}b\\u{9}c"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{202e}gpj.exe", "\\u{202e}gpj.exe"),
            ("\x7f\u{e0041}", "\\u{7f}\\u{e0041}"),
        ];
        for (text, expected) in cases {
            assert_eq!(line(text), expected);
        }
        assert_eq!(lines("a\n\x1bb"), "a\n\\u{1b}b");
    }

    #[test]
    fn escaped_json_is_the_same_json() {
        let value = serde_json::json!({"id": "a\u{9b}b\x7f\u{e0041}\x1b\u{2028}", "n": [1]});
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let safe = json(&text);
            assert!(
                !safe.contains(|character| is_dangerous(character) && character != '\n'),
                "{safe}"
            );
            assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
        }
    }
}
