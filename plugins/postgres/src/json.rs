//! Data as Pomerium keeps it, which is protobuf's JSON form, and back.
//!
//! What cannot be said in it is kept by us alone, and Pomerium sees a type that it does not know. What Pomerium has written and
//! cannot be read here becomes what Pomerium itself gives in such a case: a value that holds nothing but the id.

use crate::database::{Data, JsonError};

/// The JSON of data, one text each, that Postgres takes.
pub(crate) fn encode(data: &impl Data, items: &[Option<&[u8]>]) -> Vec<String> {
    /// What Pomerium reads as no data.
    const NOTHING: &str = "{}";
    let present: Vec<_> = items
        .iter()
        .flatten()
        .filter(|bytes| !bytes.is_empty())
        .map(|bytes| bytes.to_vec())
        .collect();
    let mut json = data.to_json(present).into_iter();
    items
        .iter()
        .map(|item| match item {
            Some(bytes) if !bytes.is_empty() => match json.next() {
                // Postgres keeps no NUL in JSON either.
                Some(Ok(text)) if !has_nul(&text) => text,
                Some(Err(JsonError::UnknownType(url))) => format!("{{\"@type\": {}}}", quoted(&url)),
                _ => NOTHING.to_owned(),
            },
            _ => NOTHING.to_owned(),
        })
        .collect()
}

/// True if a string of the JSON has the character NUL. After an odd number of backslashes the next one is itself escaped.
fn has_nul(json: &str) -> bool {
    json.match_indices("\\u0000").any(|(place, _)| {
        let before = json.bytes().take(place).rev();
        before.take_while(|byte| *byte == b'\\').count() % 2 == 0
    })
}

/// The data of JSON texts that Pomerium wrote, each with its record's id.
pub(crate) fn decode(data: &impl Data, texts: Vec<(String, String)>) -> Vec<Vec<u8>> {
    let (texts, ids): (Vec<_>, Vec<_>) = texts.into_iter().unzip();
    let answers = data.read_json(texts.clone());
    let mut decoded = Vec::with_capacity(texts.len());
    for ((text, id), answer) in texts.iter().zip(&ids).zip(answers) {
        decoded.push(match answer {
            _ if text == "{}" => Vec::new(),
            Ok(bytes) => bytes,
            Err(_) => placeholder(data, id),
        });
    }
    decoded
}

fn placeholder(data: &impl Data, id: &str) -> Vec<u8> {
    let json = format!(
        "{{\"@type\": \"type.googleapis.com/google.protobuf.Value\", \"value\": {{\"id\": {}}}}}",
        quoted(id)
    );
    data.read_json(vec![json])
        .into_iter()
        .flatten()
        .next()
        .unwrap_or_default()
}

/// Text as a string of JSON, as the host writes it. NUL, which Postgres cannot keep, is left out.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\0' => {}
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            control if u32::from(control) < 0x20 => quoted.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nul_is_told_from_the_text_that_looks_like_it() {
        for (json, expected) in [
            (r#"{"a": "plain"}"#, false),
            (r#"{"a": "\u0000"}"#, true),
            (r#"{"a": "\\u0000"}"#, false),
            (r#"{"a": "\\\u0000"}"#, true),
            (r#"{"a": "\\u0000", "b": "x\u0000"}"#, true),
            (r#"{"a": "\\\\u0000"}"#, false),
        ] {
            assert_eq!(has_nul(json), expected, "{json}");
        }
    }
}
