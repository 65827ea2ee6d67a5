//! What a Clear has to do: everything is gone at every host, there is a new server version, and every stream is told.
//!
//! Before a Clear there is another log, of which nothing is left in the end. So what came before is judged by this alone, and the
//! rest of the judge sees what came after the last one ([`after_the_last`]).

use std::collections::HashSet;

use crate::check::{Kind, Violation};
use crate::history::{Answer, Asked, Call, Content, History};

/// What is wrong with a history's Clears, and with server versions in it.
#[must_use]
pub fn check(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    server_versions(history, &mut violations);
    for clear in clears(history) {
        survivors(history, clear, &mut violations);
        streams(history, clear, &mut violations);
    }
    violations
}

/// What is left to judge once a Clear was: the calls that came after it. Those that were made beside it may have been carried out
/// before it, and left nothing.
#[must_use]
pub fn after_the_last(history: &History) -> History {
    let mut rest = history.clone();
    let Some(clear) = clears(history).last().copied() else {
        return rest;
    };
    rest.calls.retain_mut(|call| {
        let of_records = matches!(
            call.asked,
            Asked::Put { .. } | Asked::Patch { .. } | Asked::Delete { .. }
        );
        let of_leases = matches!(call.asked, Asked::Hold { .. } | Asked::Release { .. });
        if of_leases || call.began > clear.ended {
            return true;
        }
        if !of_records {
            return false;
        }
        // Where its client does not know what came of it, it may come yet.
        if call.ended < clear.began {
            return matches!(call.answer, Answer::Unknown(_));
        }
        if matches!(call.answer, Answer::Written(_)) {
            call.answer = Answer::Unknown("beside a Clear".to_owned());
        }
        true
    });
    rest.readers
        .retain(|reader| reader.server_version == history.server_version);
    rest
}

/// The Clears that were carried out, in order.
fn clears(history: &History) -> Vec<&Call> {
    let mut clears: Vec<_> = history
        .calls
        .iter()
        .filter(|call| matches!(call.answer, Answer::Cleared { .. }))
        .collect();
    clears.sort_by_key(|call| call.began);
    clears
}

/// Each Clear gives a new server version, and nobody is shown another one than there is.
fn server_versions(history: &History, violations: &mut Vec<Violation>) {
    let mut report = |text| {
        violations.push(Violation {
            kind: Kind::OldServer,
            text,
        });
    };
    let clears = clears(history);
    let first = clears.first().map(|call| &call.answer);
    let mut now = match first {
        Some(Answer::Cleared { before, .. }) => *before,
        _ => history.server_version,
    };
    // Each with the time from which it may be shown, and until which.
    let mut versions = vec![(now, None, clears.first().map(|clear| clear.ended))];
    for (place, clear) in clears.iter().enumerate() {
        let Answer::Cleared { before, after } = &clear.answer else {
            continue;
        };
        if *before != now || versions.iter().any(|(version, ..)| version == after) {
            report(format!(
                "the Clear at {:?} says that server version {after} follows {before}, and it was {now}",
                clear.began
            ));
        }
        now = *after;
        versions.push((now, Some(clear.began), clears.get(place + 1).map(|next| next.ended)));
    }
    if now != history.server_version {
        report(format!(
            "the server version is {} in the end, and {now} by the last Clear",
            history.server_version
        ));
    }
    for call in &history.calls {
        let Answer::All { server_version, .. } = &call.answer else {
            continue;
        };
        let is_right = versions.iter().any(|(version, from, until)| {
            version == server_version
                && from.is_none_or(|from| from <= call.ended)
                && until.is_none_or(|until| call.began <= until)
        });
        if !is_right {
            report(format!(
                "{:?} of host {} at {:?} is of server version {server_version}, of {versions:?}",
                call.asked, call.host, call.began
            ));
        }
    }
}

/// Nothing is seen after a Clear that was acknowledged before it.
fn survivors(history: &History, clear: &Call, violations: &mut Vec<Violation>) {
    let gone: HashSet<&str> = history
        .calls
        .iter()
        .filter(|call| call.ended < clear.began && matches!(call.answer, Answer::Written(_)))
        .filter_map(text)
        .collect();
    let is_gone = |content: &Content| content.0.iter().any(|text| gone.contains(text.as_str()));
    let mut report = |text: String| {
        violations.push(Violation {
            kind: Kind::Survived,
            text: format!("{text}, after the Clear at {:?}", clear.began),
        });
    };
    for change in &history.log {
        if change.content.as_ref().is_some_and(is_gone) {
            report(format!("the log has {change:?}"));
        }
    }
    for call in history.calls.iter().filter(|call| call.began > clear.ended) {
        let survivor = match &call.answer {
            Answer::Found(Some((_, content))) => Some(content).filter(|content| is_gone(content)),
            Answer::All { records, .. } => records
                .iter()
                .map(|(.., content)| content)
                .find(|content| is_gone(content)),
            _ => None,
        };
        if let Some(content) = survivor {
            report(format!("{:?} of host {} shows {content:?}", call.asked, call.host));
        }
    }
    let after = match clear.answer {
        Answer::Cleared { before, after } if before != after => after,
        _ => return,
    };
    for reader in history.readers.iter().filter(|reader| reader.server_version == after) {
        for (when, change) in &reader.changes {
            if change.content.as_ref().is_some_and(is_gone) {
                report(format!("a stream delivered {change:?} at {when:?}"));
            }
        }
    }
}

/// Every stream from before a Clear is ended, and has nothing from after it.
fn streams(history: &History, clear: &Call, violations: &mut Vec<Violation>) {
    let Answer::Cleared { before, after } = clear.answer else {
        return;
    };
    let new: HashSet<&str> = history
        .calls
        .iter()
        .filter(|call| call.began > clear.ended)
        .filter_map(text)
        .collect();
    let mut report = |kind, text: String| {
        violations.push(Violation {
            kind,
            text: format!("{text}, and there was a Clear at {:?}", clear.began),
        });
    };
    for (number, reader) in history.readers.iter().enumerate() {
        if reader.server_version != before || before == after {
            continue;
        }
        if let Some(why) = &reader.gave_up {
            report(
                Kind::GaveUp,
                format!("reader {number} of server version {before}: {why}"),
            );
        } else if reader.ended.is_none() {
            report(
                Kind::NotEnded,
                format!("reader {number} of server version {before} was never told"),
            );
        }
        for (when, change) in &reader.changes {
            let texts = change.content.iter().flat_map(|content| &content.0);
            if texts.into_iter().any(|text| new.contains(text.as_str())) {
                let text = format!("reader {number} of server version {before} got {change:?} at {when:?}");
                report(Kind::NotEnded, text);
            }
        }
    }
}

/// The text that a call writes.
fn text(call: &Call) -> Option<&str> {
    match &call.asked {
        Asked::Put { text, .. } | Asked::Patch { text, .. } => Some(text),
        _ => None,
    }
}
