//! What a history must be like, and the checker that says where it is not.
//!
//! The change log is the measure: every row of it must come from one call, and every call, reader and snapshot must agree with
//! it. Then time is added: who was answered before another one asked must have been first, and nobody reads what is older than
//! what anybody was shown before.
//!
//! The checker only judges; it knows nothing of hosts and faults. That it can judge is shown by doctored histories, one or
//! more for each kind of violation, in the tests below, and by stores that break a law, in `tests/shared/faulty.rs`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use crate::clear;
use crate::history::{Answer, Asked, Call, Change, Content, History, Reader};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A write was acknowledged and is not there, or not with the version of the answer.
    Lost,
    /// Something is there that nobody has written, or that was refused, or that differs from what was written.
    Invented,
    /// One write was carried out twice.
    Repeated,
    /// A patch has undone what another writer wrote beside it.
    Torn,
    /// Of one put there is a part, or something else is in the middle of it.
    Split,
    /// A write that began after another one was answered has the lower version.
    Order,
    /// A read shows what is older than what somebody knew before it began.
    Stale,
    /// A reader of Sync was not given a change.
    Missing,
    /// A reader of Sync was given a change twice, or an answer has a record twice.
    Duplicate,
    /// A reader of Sync was given an older change after a newer one.
    Disorder,
    /// A reader of Sync could not go on from where it was.
    GaveUp,
    /// Two hold a lease at the same time.
    TwoHolders,
    /// A holder could not renew in time what nobody had taken from it.
    LeaseLost,
    /// Nobody can hold a lease, and yet it was refused.
    LeaseStuck,
    /// A Clear has kept the server version, or somebody was shown another one than there was at that time.
    OldServer,
    /// What was there before a Clear was seen after it.
    Survived,
    /// A stream went on after a Clear.
    NotEnded,
}

/// Something that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What kind of thing.
    pub kind: Kind,
    /// In words.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}: {}", self.kind, self.text)
    }
}

/// How long after its caller has gone a call may still take effect: longer than a host waits for anything.
const LINGERS: Duration = Duration::from_secs(90);

/// Everything that is wrong with a history; nothing where it is as it must be.
#[must_use]
pub fn check(history: &History) -> Vec<Violation> {
    let violations = clear::check(history);
    let history = &clear::after_the_last(history);
    let mut checker = Checker::new(history);
    checker.violations = violations;
    checker.log();
    checker.writes();
    checker.order();
    checker.reads();
    for (number, reader) in history.readers.iter().enumerate() {
        checker.reader(number, reader);
    }
    checker.leases();
    checker.violations
}

struct Checker<'a> {
    history: &'a History,
    /// The log by version.
    changes: BTreeMap<u64, &'a Change>,
    /// The log's versions of each record, in order.
    versions: HashMap<&'a str, Vec<u64>>,
    /// Which version a text was written with, by text and record.
    applied: HashMap<(&'a str, &'a str), u64>,
    /// When the call of a version was made, as far as it is known which that was.
    asked: HashMap<u64, Duration>,
    violations: Vec<Violation>,
}

impl<'a> Checker<'a> {
    fn new(history: &'a History) -> Self {
        let mut versions: HashMap<&str, Vec<u64>> = HashMap::new();
        for change in &history.log {
            versions.entry(&change.id).or_default().push(change.version);
        }
        Self {
            history,
            changes: history.log.iter().map(|change| (change.version, change)).collect(),
            versions,
            applied: HashMap::new(),
            asked: HashMap::new(),
            violations: Vec::new(),
        }
    }

    fn report(&mut self, kind: Kind, text: String) {
        self.violations.push(Violation { kind, text });
    }

    /// Every row comes from one call, and every call has one row of each record at most.
    fn log(&mut self) {
        let history = self.history;
        let mut puts: HashSet<(&str, &str)> = HashSet::new();
        let mut patches: HashMap<(&str, &str), usize> = HashMap::new();
        let mut deletes: HashMap<&str, usize> = HashMap::new();
        for call in history.calls.iter().filter(|call| call.answer != Answer::Refused) {
            match &call.asked {
                Asked::Put { ids, text } => puts.extend(ids.iter().map(|id| (text.as_str(), id.as_str()))),
                Asked::Patch { id, field, text } => drop(patches.insert((text, id), *field)),
                Asked::Delete { id } => *deletes.entry(id).or_default() += 1,
                _ => {}
            }
        }
        let mut now: HashMap<&str, &Content> = HashMap::new();
        let mut last = 0;
        for change in &history.log {
            let Change { version, id, content } = change;
            if *version <= last {
                self.report(Kind::Disorder, format!("the log has version {version} after {last}"));
            }
            last = *version;
            let before = now.get(id.as_str()).copied();
            let Some(content) = content else {
                now.remove(id.as_str());
                match deletes.get_mut(id.as_str()) {
                    _ if before.is_none() => {
                        self.report(
                            Kind::Repeated,
                            format!("version {version} deletes {id}, which was not there"),
                        );
                    }
                    Some(left) if *left > 0 => *left -= 1,
                    Some(_) => self.report(Kind::Repeated, format!("{id} was deleted more often than asked for")),
                    None => self.report(Kind::Invented, format!("nobody has deleted {id} (version {version})")),
                }
                continue;
            };
            now.insert(id, content);
            let Content([first, second]) = content;
            if before == Some(content) {
                let text = format!("version {version} writes {first}, {second} into {id}, which was there already");
                self.report(Kind::Repeated, text);
                continue;
            }
            if first == second && puts.contains(&(first.as_str(), id.as_str())) {
                self.apply(first, id, *version);
                continue;
            }
            let patched: Vec<_> = [first, second]
                .into_iter()
                .enumerate()
                .filter(|(field, text)| patches.get(&(text.as_str(), id.as_str())) == Some(field))
                .map(|(field, text)| (field, text.as_str()))
                .collect();
            let rest_is_kept = |field: usize| {
                before.is_some_and(|Content([before_first, before_second])| {
                    if field == 0 {
                        before_second == second && before_first != first
                    } else {
                        before_first == first && before_second != second
                    }
                })
            };
            if let Some((_, text)) = patched.iter().find(|(field, _)| rest_is_kept(*field)) {
                self.apply(text, id, *version);
            } else {
                let kind = if patched.is_empty() { Kind::Invented } else { Kind::Torn };
                let text = format!("version {version} of {id} has {first}, {second} after {before:?}");
                self.report(kind, text);
            }
        }
    }

    fn apply(&mut self, text: &'a str, id: &'a str, version: u64) {
        if let Some(before) = self.applied.insert((text, id), version) {
            let text = format!("{text} was written into {id} with version {before} and again with {version}");
            self.report(Kind::Repeated, text);
        }
    }

    /// What was acknowledged is there, as it was acknowledged.
    fn writes(&mut self) {
        let history = self.history;
        for call in &history.calls {
            let (ids, content): (&[String], _) = match &call.asked {
                Asked::Put { ids, text } => (ids, Some(text)),
                Asked::Patch { id, text, .. } => (std::slice::from_ref(id), Some(text)),
                Asked::Delete { id } => (std::slice::from_ref(id), None),
                _ => continue,
            };
            match &call.answer {
                Answer::Written(versions) => {
                    if versions.len() != ids.len() {
                        self.report(Kind::Lost, format!("{:?} was answered with {versions:?}", call.asked));
                    }
                    for (id, version) in ids.iter().zip(versions) {
                        if *version == 0 && content.is_none() {
                            continue;
                        }
                        let row = self.changes.get(version).filter(|row| row.id == *id);
                        let is_there = match content {
                            None => row.is_some_and(|row| row.content.is_none()),
                            Some(text) => {
                                row.is_some() && self.applied.get(&(text.as_str(), id.as_str())) == Some(version)
                            }
                        };
                        if !is_there {
                            let text = format!(
                                "{:?}, acknowledged by host {} at {:?} with version {version}: the log has {row:?}",
                                call.asked, call.host, call.ended
                            );
                            self.report(Kind::Lost, text);
                        }
                    }
                }
                Answer::Refused => {
                    let done = content.and_then(|text| {
                        let applied = |id: &String| self.applied.get(&(text.as_str(), id.as_str())).copied();
                        ids.iter().find_map(applied)
                    });
                    if let Some(version) = done {
                        let text = format!("{:?} was refused and yet done, with version {version}", call.asked);
                        self.report(Kind::Invented, text);
                    }
                }
                _ => {}
            }
            if let (Asked::Put { ids, text }, true) = (&call.asked, history.ours_alone) {
                let mut versions: Vec<_> = ids
                    .iter()
                    .filter_map(|id| self.applied.get(&(text.as_str(), id.as_str())))
                    .copied()
                    .collect();
                versions.sort_unstable();
                let is_whole = versions.len() == ids.len()
                    && versions
                        .windows(2)
                        .all(|pair| pair.first().map(|first| first + 1) == pair.last().copied());
                if !versions.is_empty() && !is_whole {
                    self.report(Kind::Split, format!("{:?} is in the log as {versions:?}", call.asked));
                }
            }
        }
    }

    /// The versions that a write has in the log.
    fn versions_of(&self, call: &Call) -> Vec<u64> {
        let applied = |text: &str, id: &str| self.applied.get(&(text, id)).copied();
        match (&call.asked, &call.answer) {
            (Asked::Put { ids, text }, _) => ids.iter().filter_map(|id| applied(text, id)).collect(),
            (Asked::Patch { id, text, .. }, _) => applied(text, id).into_iter().collect(),
            (Asked::Delete { .. }, Answer::Written(versions)) => {
                versions.iter().copied().filter(|version| *version > 0).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Versions follow the order in which calls came after each other.
    fn order(&mut self) {
        if !self.history.ours_alone {
            return;
        }
        let mut writes: Vec<_> = self
            .history
            .calls
            .iter()
            .map(|call| (call, self.versions_of(call)))
            .filter(|(_, versions)| !versions.is_empty())
            .collect();
        let mut answered: Vec<_> = writes
            .iter()
            .filter(|(call, _)| matches!(call.answer, Answer::Written(_)))
            .map(|(call, versions)| (call.ended, versions.iter().copied().max().unwrap_or(0)))
            .collect();
        answered.sort_unstable();
        writes.sort_by_key(|(call, _)| call.began);
        let mut answered = answered.into_iter().peekable();
        let mut highest = 0;
        for (call, versions) in writes {
            while let Some((_, version)) = answered.next_if(|(ended, _)| *ended < call.began) {
                highest = highest.max(version);
            }
            if let Some(version) = versions.iter().find(|version| **version < highest) {
                let text = format!(
                    "{:?}, asked for at {:?}, has version {version}; {highest} was answered before",
                    call.asked, call.began
                );
                self.report(Kind::Order, text);
            }
        }
    }

    /// Nobody reads what is older than what anybody knew before.
    fn reads(&mut self) {
        let history = self.history;
        for call in &history.calls {
            let versions = self.versions_of(call);
            self.asked
                .extend(versions.into_iter().map(|version| (version, call.began)));
        }
        // When somebody knew that a record had reached a version.
        let mut known: Vec<(Duration, &str, u64)> = Vec::new();
        for call in &history.calls {
            match (&call.asked, &call.answer) {
                (Asked::Put { ids, .. }, Answer::Written(versions)) => {
                    known.extend(
                        ids.iter()
                            .zip(versions)
                            .map(|(id, version)| (call.ended, id.as_str(), *version)),
                    );
                }
                (Asked::Patch { id, .. } | Asked::Delete { id }, Answer::Written(versions)) => {
                    known.extend(versions.first().map(|version| (call.ended, id.as_str(), *version)));
                }
                (Asked::Get { id }, Answer::Found(Some((version, _)))) => known.push((call.ended, id, *version)),
                (_, Answer::All { records, .. }) => {
                    known.extend(
                        records
                            .iter()
                            .map(|(id, version, _)| (call.ended, id.as_str(), *version)),
                    );
                }
                _ => {}
            }
        }
        for reader in &history.readers {
            known.extend(
                reader
                    .changes
                    .iter()
                    .map(|(when, change)| (*when, change.id.as_str(), change.version)),
            );
        }
        known.sort_unstable();
        let mut reads: Vec<_> = history
            .calls
            .iter()
            .filter(|call| matches!(call.answer, Answer::Found(_) | Answer::All { .. }))
            .collect();
        reads.sort_by_key(|call| call.began);
        let mut known = known.into_iter().peekable();
        let mut floors: HashMap<&str, u64> = HashMap::new();
        let mut highest = 0;
        for call in reads {
            while let Some((_, id, version)) = known.next_if(|(when, ..)| *when < call.began) {
                let floor = floors.entry(id).or_default();
                *floor = (*floor).max(version);
                highest = highest.max(version);
            }
            match (&call.asked, &call.answer) {
                (Asked::Get { id }, Answer::Found(found)) => {
                    let found = found.as_ref().map(|(version, content)| (*version, content));
                    self.read(call, id, found, floors.get(id.as_str()).copied().unwrap_or(0), None);
                }
                (asked, Answer::All { through, records, .. }) => {
                    if *through < highest {
                        let text = format!(
                            "{asked:?} of host {} at {:?} is as new as {through}; {highest} was known before",
                            call.host, call.began
                        );
                        self.report(Kind::Stale, text);
                    }
                    let filter = match asked {
                        Asked::Query { filter } => filter.as_ref(),
                        _ => None,
                    };
                    let count = records.len();
                    let records: HashMap<_, _> = records
                        .iter()
                        .map(|(id, version, content)| (id.as_str(), (*version, content)))
                        .collect();
                    if records.len() < count {
                        let text = format!("{asked:?} of host {} at {:?} has a record twice", call.host, call.began);
                        self.report(Kind::Duplicate, text);
                    }
                    let ids: HashSet<&str> = self.versions.keys().chain(records.keys()).copied().collect();
                    for id in ids {
                        let of_snapshot = self
                            .versions
                            .get(id)
                            .and_then(|versions| versions.iter().rev().find(|version| *version <= through).copied());
                        let floor = floors.get(id).copied().unwrap_or(0).max(of_snapshot.unwrap_or(0));
                        self.read(call, id, records.get(id).copied(), floor, filter);
                    }
                }
                _ => {}
            }
        }
    }

    /// A record as it was read, where it had reached a version before. With a filter only what has the text is to be found.
    fn read(
        &mut self,
        call: &Call,
        id: &str,
        found: Option<(u64, &Content)>,
        floor: u64,
        filter: Option<&(usize, String)>,
    ) {
        let is_wanted = |Content(texts): &Content| filter.is_none_or(|(field, text)| texts.get(*field) == Some(text));
        let place = format!("read by {:?} of host {} at {:?}", call.asked, call.host, call.began);
        match found {
            Some((version, content)) => {
                let row = self.changes.get(&version).filter(|row| row.id == id);
                if row.and_then(|row| row.content.as_ref()) != Some(content) || !is_wanted(content) {
                    let text = format!("{id} with version {version} and {content:?}, {place}: the log has {row:?}");
                    self.report(Kind::Invented, text);
                } else if version < floor {
                    let text = format!("{id} with version {version}, {place}: {floor} was known before");
                    self.report(Kind::Stale, text);
                }
            }
            None if floor > 0 => {
                let versions = self.versions.get(id).map_or(&[] as &[u64], Vec::as_slice);
                // One that was not asked for yet cannot have been seen.
                let is_in_time = |version: &&u64| {
                    let asked = self.asked.get(*version);
                    **version >= floor && asked.is_none_or(|asked| *asked < call.ended)
                };
                let is_without = |version: &u64| {
                    let content = self.changes.get(version).map(|row| row.content.as_ref());
                    content.is_some_and(|content| content.is_none_or(|content| !is_wanted(content)))
                };
                if !versions.iter().filter(is_in_time).any(is_without) {
                    let text = format!(
                        "no {id}, {place}: version {floor} was known before, and nothing came after it that is not to be found"
                    );
                    self.report(Kind::Stale, text);
                }
            }
            None => {}
        }
    }

    /// A reader gets every row of the log once and in order.
    fn reader(&mut self, number: usize, reader: &Reader) {
        if let Some(why) = &reader.gave_up {
            self.report(Kind::GaveUp, format!("reader {number}: {why}"));
        }
        let mut seen = HashSet::new();
        let mut last = reader.after;
        for (when, change) in &reader.changes {
            let version = change.version;
            if !seen.insert(version) {
                self.report(
                    Kind::Duplicate,
                    format!("reader {number} got version {version} twice, again at {when:?}"),
                );
            } else if version <= last {
                self.report(
                    Kind::Disorder,
                    format!("reader {number} got version {version} after {last}"),
                );
            }
            last = last.max(version);
            let row = self.changes.get(&version).copied();
            if row != Some(change) {
                self.report(
                    Kind::Invented,
                    format!("reader {number} got {change:?}: the log has {row:?}"),
                );
            }
        }
        let after = (std::ops::Bound::Excluded(reader.after), std::ops::Bound::Unbounded);
        let missing: Vec<_> = self
            .changes
            .range(after)
            .map(|(version, _)| *version)
            .filter(|version| !seen.contains(version))
            .collect();
        if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
            let text = format!(
                "reader {number} did not get {} changes, from {first} to {last}",
                missing.len()
            );
            self.report(Kind::Missing, text);
        }
    }

    fn leases(&mut self) {
        let mut names: BTreeMap<&str, Vec<&Call>> = BTreeMap::new();
        for call in &self.history.calls {
            if let Asked::Hold { name, .. } | Asked::Release { name, .. } = &call.asked {
                names.entry(name).or_default().push(call);
            }
        }
        for (name, calls) in names {
            self.lease(name, &calls);
        }
    }

    fn lease(&mut self, name: &str, calls: &[&Call]) {
        let mut released: HashMap<&str, Duration> = HashMap::new();
        let mut given_back: HashMap<&str, Duration> = HashMap::new();
        for call in calls {
            if let Asked::Release { holder, .. } = &call.asked {
                released.entry(holder).or_insert(call.began);
                if call.answer == Answer::Granted {
                    given_back.entry(holder).or_insert(call.ended);
                }
            }
        }
        // From when a holder knows that it has it until it can no longer be sure; and when anybody may have it.
        let mut sure: Vec<(Duration, Duration, &str)> = Vec::new();
        let mut possible: Vec<(Duration, Duration)> = Vec::new();
        for call in calls {
            let Asked::Hold { holder, time, .. } = &call.asked else {
                continue;
            };
            match call.answer {
                Answer::Granted => {
                    let end = call.began + *time;
                    let end = released.get(holder.as_str()).map_or(end, |released| end.min(*released));
                    if call.ended < end {
                        sure.push((call.ended, end, holder));
                    }
                    let end = call.ended + *time;
                    let end = given_back
                        .get(holder.as_str())
                        .map_or(end, |given_back| end.min(*given_back));
                    possible.push((call.began, end));
                }
                Answer::Unknown(_) => possible.push((call.began, call.ended + *time + LINGERS)),
                _ => {}
            }
        }
        sure.sort_unstable();
        for (place, (_, end, holder)) in sure.iter().enumerate() {
            let later = sure.iter().skip(place + 1).take_while(|(start, ..)| start < end);
            if let Some((start, _, other)) = later.clone().find(|(.., other)| other != holder) {
                let text = format!("{name} was {holder}'s until {end:?} and {other}'s from {start:?}");
                self.report(Kind::TwoHolders, text);
            }
        }
        for call in calls.iter().filter(|call| call.answer == Answer::Refused) {
            let Asked::Hold { holder, renews, .. } = &call.asked else {
                continue;
            };
            let had = |(start, end, of): &(Duration, Duration, &str)| {
                of == holder && *start <= call.began && *end > call.ended
            };
            if *renews && sure.iter().any(had) {
                self.report(
                    Kind::LeaseLost,
                    format!("{holder} could not renew {name} at {:?}", call.began),
                );
            }
            if !possible
                .iter()
                .any(|(start, end)| *start < call.ended && *end > call.began)
            {
                let text = format!("{name} was refused at {:?}, when nobody could hold it", call.began);
                self.report(Kind::LeaseStuck, text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, reason = "tests")]

    use super::*;

    const HOST: usize = 0;

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn call(began: u64, ended: u64, asked: Asked, answer: Answer) -> Call {
        Call {
            host: HOST,
            began: at(began),
            ended: at(ended),
            asked,
            answer,
        }
    }

    fn put(ids: &[&str], text: &str) -> Asked {
        Asked::Put {
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            text: text.to_owned(),
        }
    }

    fn patch(id: &str, field: usize, text: &str) -> Asked {
        Asked::Patch {
            id: id.to_owned(),
            field,
            text: text.to_owned(),
        }
    }

    fn delete(id: &str) -> Asked {
        Asked::Delete { id: id.to_owned() }
    }

    fn get(id: &str) -> Asked {
        Asked::Get { id: id.to_owned() }
    }

    fn hold(holder: &str, renews: bool) -> Asked {
        Asked::Hold {
            name: "lease".to_owned(),
            holder: holder.to_owned(),
            time: at(100),
            renews,
        }
    }

    fn release(holder: &str) -> Asked {
        Asked::Release {
            name: "lease".to_owned(),
            holder: holder.to_owned(),
        }
    }

    fn with(field: usize, text: &str) -> Asked {
        Asked::Query {
            filter: Some((field, text.to_owned())),
        }
    }

    fn all(through: u64, records: &[(String, u64, Content)]) -> Answer {
        Answer::All {
            server_version: 1,
            through,
            records: records.to_vec(),
        }
    }

    fn content(first: &str, second: &str) -> Content {
        Content([first.to_owned(), second.to_owned()])
    }

    fn change(version: u64, id: &str, content: Option<Content>) -> Change {
        Change {
            version,
            id: id.to_owned(),
            content,
        }
    }

    /// A history in which all is well: two writers, a reader, a snapshot, a lease that changes hands.
    fn good() -> History {
        let log = vec![
            change(10, "a", Some(content("p1", "p1"))),
            change(11, "b", Some(content("p1", "p1"))),
            change(12, "a", Some(content("q1", "p1"))),
            change(14, "a", Some(content("q1", "q2"))),
            change(15, "b", None),
            change(16, "b", Some(content("p2", "p2"))),
            // Of unknown outcome, and done.
            change(18, "a", Some(content("p3", "p3"))),
        ];
        let written = |versions: &[u64]| Answer::Written(versions.to_vec());
        let unknown = || Answer::Unknown("UNAVAILABLE".to_owned());
        let records = vec![
            ("a".to_owned(), 14, content("q1", "q2")),
            ("b".to_owned(), 16, content("p2", "p2")),
        ];
        History {
            calls: vec![
                call(0, 10, put(&["a", "b"], "p1"), written(&[10, 11])),
                call(20, 30, patch("a", 0, "q1"), written(&[12])),
                call(25, 45, patch("a", 1, "q2"), written(&[14])),
                call(31, 32, get("a"), Answer::Found(Some((12, content("q1", "p1"))))),
                call(50, 60, delete("b"), written(&[15])),
                call(61, 62, get("b"), Answer::Found(None)),
                call(70, 80, put(&["b"], "p2"), written(&[16])),
                call(85, 95, Asked::Latest, all(16, &records)),
                call(100, 110, put(&["a"], "p3"), unknown()),
                call(100, 110, put(&["a"], "p4"), unknown()),
                call(120, 130, delete("c"), written(&[0])),
                call(120, 130, patch("c", 0, "q3"), Answer::Refused),
                call(0, 10, hold("x", false), Answer::Granted),
                call(20, 30, hold("y", false), Answer::Refused),
                call(50, 60, hold("x", true), Answer::Granted),
                call(100, 110, release("x"), Answer::Granted),
                call(105, 115, hold("y", false), Answer::Granted),
                call(96, 98, Asked::Query { filter: None }, all(16, &records)),
                call(96, 98, with(0, "q1"), all(16, &records[..1])),
                call(96, 98, with(1, "p1"), all(16, &[])),
            ],
            server_version: 1,
            readers: vec![Reader {
                server_version: 1,
                ended: None,
                after: 9,
                changes: log.iter().map(|change| (at(200), change.clone())).collect(),
                resumed: 1,
                gave_up: None,
            }],
            log,
            ours_alone: true,
        }
    }

    /// The same a second later, after a Clear, a put that it has removed, and one beside it.
    fn good_after_clear() -> History {
        let mut history = good();
        for call in &mut history.calls {
            call.began += at(1000);
            call.ended += at(1000);
        }
        for (when, _) in &mut history.readers[0].changes {
            *when += at(1000);
        }
        let before = Answer::All {
            server_version: 7,
            through: 5,
            records: vec![("z".to_owned(), 5, content("p0", "p0"))],
        };
        history.calls.extend([
            call(0, 10, put(&["z"], "p0"), Answer::Written(vec![5])),
            call(12, 15, Asked::Latest, before),
            call(20, 30, Asked::Clear, Answer::Cleared { before: 7, after: 1 }),
            call(25, 35, put(&["d"], "p9"), Answer::Written(vec![6])),
        ]);
        history.readers.push(Reader {
            server_version: 7,
            after: 4,
            changes: vec![(at(11), change(5, "z", Some(content("p0", "p0"))))],
            resumed: 0,
            ended: Some(at(31)),
            gave_up: None,
        });
        history
    }

    #[test]
    fn nothing_is_wrong_with_good_histories() {
        assert_eq!(check(&good()), Vec::new());
        assert_eq!(check(&good_after_clear()), Vec::new());
    }

    #[test]
    fn each_kind_of_violation_is_seen() {
        use Kind::{
            Disorder, Duplicate, GaveUp, Invented, LeaseLost, LeaseStuck, Lost, Missing, NotEnded, OldServer, Order,
            Repeated, Split, Stale, Survived, Torn, TwoHolders,
        };
        /// What a history is made wrong by, how, and the kinds that are seen.
        type Case = (&'static str, fn(&mut History), &'static [Kind]);
        fn answer(history: &mut History, place: usize, answer: Answer) {
            history.calls[place].answer = answer;
        }
        /// A row is gone from the log and from all readers.
        fn lose(history: &mut History, version: u64) {
            history.log.retain(|change| change.version != version);
            history.readers[0]
                .changes
                .retain(|(_, change)| change.version != version);
        }
        /// Another row is in the log and with all readers.
        fn add(history: &mut History, row: Change) {
            let when = history.readers[0].changes[0].0;
            history.readers[0].changes.push((when, row.clone()));
            history.log.push(row);
            history.log.sort_by_key(|change| change.version);
            history.readers[0].changes.sort_by_key(|(_, change)| change.version);
        }
        let cases: &[Case] = &[
            ("an acknowledged put is gone", |h| lose(h, 16), &[Lost, Invented, Stale]),
            (
                "an acknowledged delete is gone",
                |h| {
                    lose(h, 15);
                    h.calls.remove(5);
                },
                &[Lost],
            ),
            (
                "an acknowledged put has another version",
                |h| answer(h, 6, Answer::Written(vec![17])),
                &[Lost, Stale],
            ),
            (
                "nobody has written it",
                |h| add(h, change(19, "a", Some(content("z", "z")))),
                &[Invented],
            ),
            ("nobody has deleted it", |h| add(h, change(19, "a", None)), &[Invented]),
            (
                "a refused write was done",
                |h| {
                    add(h, change(19, "c", Some(content("q3", "q3"))));
                    h.calls.push(call(130, 140, put(&["c"], "q3"), Answer::Refused));
                },
                &[Invented],
            ),
            (
                "a put was done twice",
                |h| {
                    add(h, change(19, "a", Some(content("p4", "p4"))));
                    add(h, change(20, "a", Some(content("p3", "p3"))));
                },
                &[Repeated],
            ),
            (
                "a put was done twice at once",
                |h| add(h, change(19, "a", Some(content("p3", "p3")))),
                &[Repeated],
            ),
            (
                "a delete was done twice",
                |h| add(h, change(13, "c", None)),
                &[Repeated],
            ),
            (
                "a patch undid another",
                |h| {
                    let torn = change(14, "a", Some(content("p1", "q2")));
                    h.log[3] = torn.clone();
                    h.readers[0].changes[3].1 = torn;
                    h.calls.remove(7);
                    h.calls.truncate(16);
                },
                &[Torn, Lost],
            ),
            (
                "half of a put is gone",
                |h| {
                    lose(h, 11);
                    h.calls[0].answer = Answer::Unknown(String::new());
                    h.log.retain(|change| change.version != 15);
                    h.readers[0].changes.retain(|(_, change)| change.version != 15);
                    h.calls.remove(5);
                    h.calls.remove(4);
                },
                &[Split],
            ),
            (
                "something is within a put",
                |h| {
                    h.log[1].version = 13;
                    h.log.swap(1, 2);
                    h.readers[0].changes[1].1.version = 13;
                    h.readers[0].changes.swap(1, 2);
                    answer(h, 0, Answer::Written(vec![10, 13]));
                },
                &[Split, Order],
            ),
            (
                "a later write is before an earlier one",
                |h| h.calls[1].began = at(46),
                &[Order],
            ),
            (
                "an old record is read",
                |h| answer(h, 3, Answer::Found(Some((10, content("p1", "p1"))))),
                &[Stale],
            ),
            ("a record is not found", |h| answer(h, 3, Answer::Found(None)), &[Stale]),
            (
                "a record is not found that nobody deletes",
                |h| {
                    h.calls.push(call(140, 150, get("a"), Answer::Found(None)));
                },
                &[Stale],
            ),
            (
                "a deleted record is found",
                |h| answer(h, 5, Answer::Found(Some((11, content("p1", "p1"))))),
                &[Stale],
            ),
            (
                "what a stream showed is not read",
                |h| {
                    h.calls
                        .push(call(300, 310, get("a"), Answer::Found(Some((14, content("q1", "q2"))))));
                },
                &[Stale],
            ),
            (
                "the content read is another",
                |h| answer(h, 3, Answer::Found(Some((12, content("q1", "z"))))),
                &[Invented],
            ),
            (
                "a snapshot lacks a record",
                |h| {
                    let records = vec![("a".to_owned(), 14, content("q1", "q2"))];
                    answer(h, 7, all(16, &records));
                },
                &[Stale],
            ),
            (
                "a snapshot is too old",
                |h| {
                    let records = vec![("a".to_owned(), 14, content("q1", "q2"))];
                    answer(h, 7, all(15, &records));
                },
                &[Stale],
            ),
            ("a query lacks a record", |h| answer(h, 18, all(16, &[])), &[Stale]),
            (
                "a query has what it was not asked for",
                |h| {
                    let records = vec![("b".to_owned(), 16, content("p2", "p2"))];
                    answer(h, 19, all(16, &records));
                },
                &[Invented],
            ),
            (
                "a query has what a record was before",
                |h| {
                    let records = vec![("a".to_owned(), 10, content("p1", "p1"))];
                    answer(h, 19, all(16, &records));
                },
                &[Stale],
            ),
            ("a query is too old", |h| answer(h, 19, all(15, &[])), &[Stale]),
            (
                "a query has a record twice",
                |h| {
                    let record = ("a".to_owned(), 14, content("q1", "q2"));
                    answer(h, 18, all(16, &[record.clone(), record]));
                },
                &[Duplicate],
            ),
            (
                "a change is missing",
                |h| drop(h.readers[0].changes.remove(3)),
                &[Missing],
            ),
            (
                "the last change is missing",
                |h| drop(h.readers[0].changes.pop()),
                &[Missing],
            ),
            (
                "a change comes twice",
                |h| {
                    let again = h.readers[0].changes[3].clone();
                    h.readers[0].changes.insert(4, again);
                },
                &[Duplicate],
            ),
            ("changes are swapped", |h| h.readers[0].changes.swap(3, 4), &[Disorder]),
            (
                "a change is not what was written",
                |h| {
                    h.readers[0].changes[3].1.content = Some(content("q1", "z"));
                },
                &[Invented],
            ),
            (
                "a stream cannot go on",
                |h| h.readers[0].gave_up = Some("ABORTED".to_owned()),
                &[GaveUp],
            ),
            ("two hold a lease", |h| answer(h, 13, Answer::Granted), &[TwoHolders]),
            (
                "a lease is given before it has run out",
                |h| {
                    h.calls.truncate(15);
                    h.calls.push(call(140, 145, hold("y", false), Answer::Granted));
                },
                &[TwoHolders],
            ),
            (
                "a lease is given when it has run out",
                |h| {
                    h.calls.truncate(15);
                    h.calls.push(call(140, 151, hold("y", false), Answer::Granted));
                },
                &[],
            ),
            ("a lease is lost", |h| answer(h, 14, Answer::Refused), &[LeaseLost]),
            (
                "a lease that was given back is kept from all",
                |h| {
                    h.calls.truncate(16);
                    h.calls.push(call(115, 120, hold("z", false), Answer::Refused));
                },
                &[LeaseStuck],
            ),
            (
                "a lease is kept from all",
                |h| {
                    h.calls.push(call(300, 310, hold("z", false), Answer::Refused));
                },
                &[LeaseStuck],
            ),
        ];
        /// Of a history with a Clear: what comes before the Clear is behind all of the above.
        const BEFORE: usize = 20;
        const CLEAR: usize = BEFORE + 2;
        let cleared: &[Case] = &[
            (
                "Clear keeps the server version",
                |h| answer(h, CLEAR, Answer::Cleared { before: 7, after: 7 }),
                &[OldServer],
            ),
            (
                "Clear knows of another server version than there was",
                |h| answer(h, CLEAR, Answer::Cleared { before: 8, after: 1 }),
                &[OldServer],
            ),
            (
                "a host answers with the server version from before",
                |h| {
                    let records = vec![("a".to_owned(), 14, content("q1", "q2"))];
                    let old = Answer::All {
                        server_version: 7,
                        through: 16,
                        records,
                    };
                    h.calls.push(call(1096, 1098, with(0, "q1"), old));
                },
                &[OldServer],
            ),
            (
                "the server version is another in the end",
                |h| h.server_version = 9,
                &[OldServer],
            ),
            (
                "a record from before is in the log",
                |h| add(h, change(19, "a", Some(content("p0", "p0")))),
                &[Survived, Invented],
            ),
            (
                "a record from before is read",
                |h| {
                    h.calls.push(call(
                        1140,
                        1150,
                        get("z"),
                        Answer::Found(Some((5, content("p0", "p0")))),
                    ))
                },
                &[Survived, Invented],
            ),
            (
                "a record from before is found",
                |h| {
                    let records = vec![("z".to_owned(), 5, content("p0", "p0"))];
                    h.calls.push(call(1096, 1098, with(0, "p0"), all(16, &records)));
                },
                &[Survived, Invented],
            ),
            (
                "a stream has a change from before",
                |h| {
                    let old = (at(1200), change(5, "z", Some(content("p0", "p0"))));
                    h.readers[0].changes.insert(0, old);
                },
                &[Survived, Invented, Disorder],
            ),
            ("a stream is not ended", |h| h.readers[1].ended = None, &[NotEnded]),
            (
                "a stream goes on beyond",
                |h| {
                    let new = (at(1015), change(10, "a", Some(content("p1", "p1"))));
                    h.readers[1].changes.push(new);
                },
                &[NotEnded],
            ),
            (
                "a stream cannot go on from before",
                |h| h.readers[1].gave_up = Some("ABORTED".to_owned()),
                &[GaveUp],
            ),
            (
                "half of a put beside the Clear is gone",
                |h| {
                    h.calls
                        .push(call(25, 35, put(&["d", "e"], "p8"), Answer::Written(vec![7, 8])));
                    add(h, change(17, "e", Some(content("p8", "p8"))));
                },
                &[Split],
            ),
            (
                "an acknowledged put after the Clear is gone",
                |h| lose(h, 16),
                &[Lost, Invented, Stale],
            ),
        ];
        let (mut seen, mut wrong) = (HashSet::new(), Vec::new());
        let cases = cases.iter().map(|case| (good(), case));
        for (mut history, (name, doctor, expected)) in
            cases.chain(cleared.iter().map(|case| (good_after_clear(), case)))
        {
            doctor(&mut history);
            let violations = check(&history);
            let kinds: HashSet<Kind> = violations.iter().map(|violation| violation.kind).collect();
            if kinds != expected.iter().copied().collect() {
                wrong.push(format!("{name}: expected {expected:?}, not {violations:#?}"));
            }
            seen.extend(kinds);
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let all = [
            Lost, Invented, Repeated, Torn, Split, Order, Stale, Missing, Duplicate, Disorder, GaveUp, TwoHolders,
            LeaseLost, LeaseStuck, OldServer, Survived, NotEnded,
        ];
        assert_eq!(seen, all.into_iter().collect());
    }
}
