//! What a filter says of the JSON form of data, for a database that keeps it.
//!
//! The condition is a predicate in the path language of SQL/JSON. It is met by every record that matches, but for those whose
//! data JSON does not say; so whatever it cannot say is left out: parts of an AND, an OR with such a part, and all of it where
//! nothing is left. Others may meet it, since each record is matched again.
//!
//! A negation needs the opposite: what it negates must be met by no record but those that match. So there are two readings of
//! every part, a wide one and a narrow one, and a negation turns one into the other.

use super::compare::{Comparison, Operand, Order};
use super::{Effort, Expression, Filter, Subject};
use crate::data::{Absence, Descriptors, Place, PlaceForm, literal, number_text};

/// Most bytes of a condition. A database reads it once for each page, and goes through it for each record.
const MAX_BYTES: usize = 16 << 10;

/// Most texts that one comparison may have in a condition.
const MAX_TEXTS: usize = 128;

/// Longest text that is searched for within others, in bytes: databases make a pattern of it.
const MAX_PATTERN: usize = 1 << 10;

/// Most of them in a condition. Databases keep some that were made, and would make more of them anew for each record.
const MAX_PATTERNS: usize = 16;

const TRUE: &str = "1 == 1";
const FALSE: &str = "1 == 0";

/// Which records a condition may be wrong about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// It is met by all that match, and perhaps by others.
    Wide,
    /// It is met by none but those that match, and perhaps not by all of them.
    Narrow,
}

impl Filter {
    /// A predicate in the path language of SQL/JSON that the JSON form of the data of every matching record of the type meets,
    /// if it has one and is of that type. None where nothing can be said.
    pub fn condition(&self, descriptors: &Descriptors, record_type: &str) -> Option<String> {
        let writer = Writer {
            descriptors,
            record_type,
        };
        let condition = writer.write(&self.expression, Reading::Wide)?;
        let patterns = condition.matches("like_regex").count();
        (condition.len() <= MAX_BYTES && patterns <= MAX_PATTERNS).then_some(condition)
    }
}

struct Writer<'a> {
    descriptors: &'a Descriptors,
    record_type: &'a str,
}

impl Writer<'_> {
    /// A condition, or none where there is none of that reading: a wide one would be met by all, a narrow one by nobody.
    fn write(&self, expression: &Expression, reading: Reading) -> Option<String> {
        let all = |parts: &[Expression]| {
            parts
                .iter()
                .map(|part| self.write(part, reading))
                .collect::<Option<Vec<_>>>()
        };
        let any = |parts: &[Expression]| {
            parts
                .iter()
                .filter_map(|part| self.write(part, reading))
                .collect::<Vec<_>>()
        };
        match (expression, reading) {
            (Expression::And(parts), _) if parts.is_empty() => Some(FALSE.to_owned()),
            (Expression::And(parts), Reading::Wide) => join(any(parts), " && "),
            (Expression::And(parts), Reading::Narrow) => join(all(parts)?, " && "),
            (Expression::Or(parts), _) if parts.is_empty() => Some(FALSE.to_owned()),
            (Expression::Or(parts), Reading::Wide) => join(all(parts)?, " || "),
            (Expression::Or(parts), Reading::Narrow) => join(any(parts), " || "),
            (Expression::Not(part), Reading::Wide) => Some(format!("!({})", self.write(part, Reading::Narrow)?)),
            (Expression::Not(part), Reading::Narrow) => Some(format!("!({})", self.write(part, Reading::Wide)?)),
            (Expression::Compare(Subject::Type, comparison), _) => {
                let passes = passes(comparison, self.record_type)?;
                Some(if passes { TRUE } else { FALSE }.to_owned())
            }
            (Expression::Compare(Subject::Path(path), comparison), _) => self.compare(path, comparison, reading),
            // Neither the id nor other records are in the data.
            (Expression::Compare(Subject::Id, _) | Expression::Networks(_), _) => None,
        }
    }

    /// A value at the path passes.
    fn compare(&self, path: &str, comparison: &Comparison, reading: Reading) -> Option<String> {
        let places = self.descriptors.places(self.record_type, path)?;
        let mut parts = Vec::new();
        let mut bytes = 0;
        for Place { path, form, absence } in places {
            match (predicate(form, comparison, reading), reading) {
                (Some(predicate), _) if predicate == FALSE => {}
                (Some(predicate), _) => {
                    bytes += path.len() + predicate.len();
                    if bytes > MAX_BYTES {
                        return None;
                    }
                    parts.push(format!("exists({path} ? ({predicate}))"));
                }
                (None, Reading::Wide) => return None,
                (None, Reading::Narrow) => continue,
            }
            if let Some(Absence { path, default }) = absence {
                let counts = reading == Reading::Wide || !default.is_empty();
                if counts && passes(comparison, &default)? {
                    parts.push(format!("exists({path})"));
                }
            }
        }
        join(parts, " || ").or_else(|| Some(FALSE.to_owned()))
    }
}

/// Whether a text passes; none where that takes more effort than a record may cost, about which the walk is to complain.
fn passes(comparison: &Comparison, text: &str) -> Option<bool> {
    let mut effort = Effort::default();
    let passes = comparison.passes(text, &mut effort);
    (!effort.is_exhausted()).then_some(passes)
}

fn join(parts: Vec<String>, by: &str) -> Option<String> {
    match parts.as_slice() {
        [] => None,
        [only] => Some(only.clone()),
        _ => Some(format!("({})", parts.join(by))),
    }
}

/// What a JSON value at a place must be for the comparison to pass; none where that cannot be said, in that reading.
fn predicate(form: PlaceForm, comparison: &Comparison, reading: Reading) -> Option<String> {
    match form {
        PlaceForm::Text => text_predicate(comparison),
        PlaceForm::Time => time_predicate(comparison, reading),
        PlaceForm::Enum => enum_predicate(comparison),
        PlaceForm::Bool => bool_predicate(comparison),
        PlaceForm::Integer => integer_predicate(comparison),
        PlaceForm::Double => (reading == Reading::Wide)
            .then(|| double_predicate(comparison))
            .flatten(),
        PlaceForm::Json => (reading == Reading::Wide).then(|| json_predicate(comparison)).flatten(),
    }
}

/// One of the texts. Text with the character NUL is in no database's JSON.
fn one_of(texts: &[String], each: impl Fn(&str) -> Option<String>) -> Option<String> {
    if texts.len() > MAX_TEXTS {
        return None;
    }
    let texts = texts.iter().filter(|text| !text.contains('\0'));
    let each = texts.map(|text| each(text)).collect::<Option<Vec<_>>>()?;
    join(each, " || ").or_else(|| Some(FALSE.to_owned()))
}

fn equals(text: &str) -> String {
    format!("@ == {}", literal(text))
}

/// Exact, for a string that is the text.
fn text_predicate(comparison: &Comparison) -> Option<String> {
    match comparison {
        Comparison::Equals(texts) => one_of(texts, |text| Some(equals(text))),
        Comparison::StartsWith(texts) => one_of(texts, |text| {
            Some(match text {
                "" => TRUE.to_owned(),
                _ => format!("@ starts with {}", literal(text)),
            })
        }),
        Comparison::Contains(texts) => one_of(texts, |text| pattern(text, "")),
        Comparison::EndsWith(texts) => one_of(texts, |text| pattern(text, "$")),
        Comparison::NotEmpty => Some(format!("@ != {}", literal(""))),
        Comparison::Ordered(order, operands) if operands.len() <= MAX_TEXTS => {
            // With a number or a time it depends on what the value is.
            let texts = operands.iter().map(Operand::plain_text).collect::<Option<Vec<_>>>()?;
            if texts.iter().any(|text| text.contains('\0')) {
                return None;
            }
            let each = texts
                .iter()
                .map(|text| format!("@ {} {}", symbol(*order), literal(text)));
            join(each.collect(), " || ").or_else(|| Some(FALSE.to_owned()))
        }
        Comparison::Ordered(..) | Comparison::Time(..) => None,
    }
}

/// A text within a string.
fn pattern(text: &str, end: &str) -> Option<String> {
    if text.is_empty() {
        return Some(TRUE.to_owned());
    }
    if text.len() > MAX_PATTERN {
        return None;
    }
    let mut pattern = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if character.is_ascii_punctuation() {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern.push_str(end);
    Some(format!("@ like_regex {}", literal(&pattern)))
}

fn symbol(order: Order) -> &'static str {
    match order {
        Order::Less => "<",
        Order::LessOrEqual => "<=",
        Order::Greater => ">",
        Order::GreaterOrEqual => ">=",
    }
}

/// Times in UTC are in the order of their texts, but for the fraction of a second, which is of any length.
fn time_predicate(comparison: &Comparison, reading: Reading) -> Option<String> {
    /// Behind whatever follows the seconds, which is a dot or the letter Z.
    const AFTER: char = '[';
    let (order, times) = match comparison {
        Comparison::Time(order, times) => (*order, times.clone()),
        Comparison::Ordered(order, operands) => {
            (*order, operands.iter().map(Operand::time).collect::<Option<Vec<_>>>()?)
        }
        _ => return text_predicate(comparison),
    };
    if times.len() > MAX_TEXTS {
        return None;
    }
    let each = times.into_iter().map(|time| {
        let whole = prost_types::Timestamp { nanos: 0, ..time }.to_string();
        let second = whole
            .strip_suffix('Z')
            .filter(|second| second.len() == "2025-01-31T12:00:00".len())?;
        let (begin, end) = (literal(second), literal(&format!("{second}{AFTER}")));
        Some(match (order, reading) {
            (Order::Less | Order::LessOrEqual, Reading::Wide) => format!("@ < {end}"),
            (Order::Less | Order::LessOrEqual, Reading::Narrow) => format!("@ < {begin}"),
            (Order::Greater | Order::GreaterOrEqual, Reading::Wide) => format!("@ > {begin}"),
            (Order::Greater | Order::GreaterOrEqual, Reading::Narrow) => format!("@ > {end}"),
        })
    });
    join(each.collect::<Option<Vec<_>>>()?, " || ").or_else(|| Some(FALSE.to_owned()))
}

/// Exact. Every value has a text that is not empty.
fn enum_predicate(comparison: &Comparison) -> Option<String> {
    match comparison {
        Comparison::Equals(texts) => one_of(texts, |text| {
            let is_number = text.parse::<i32>().is_ok_and(|number| number.to_string() == text);
            Some(if is_number {
                format!("@ == {text}")
            } else {
                equals(text)
            })
        }),
        Comparison::NotEmpty => Some(TRUE.to_owned()),
        _ => None,
    }
}

/// Exact.
fn bool_predicate(comparison: &Comparison) -> Option<String> {
    Some(match (passes(comparison, "true")?, passes(comparison, "false")?) {
        (true, true) => TRUE.to_owned(),
        (true, false) => "@ == true".to_owned(),
        (false, true) => "@ == false".to_owned(),
        (false, false) => FALSE.to_owned(),
    })
}

/// Exact.
fn integer_predicate(comparison: &Comparison) -> Option<String> {
    match comparison {
        Comparison::Equals(texts) => one_of(texts, |text| {
            let is_written_so = text.parse::<i64>().is_ok_and(|number| number.to_string() == text);
            Some(if is_written_so {
                format!("@ == {text}")
            } else {
                FALSE.to_owned()
            })
        }),
        Comparison::NotEmpty => Some(TRUE.to_owned()),
        Comparison::Ordered(order, operands) => numbers(*order, operands),
        _ => None,
    }
}

/// Ordered as numbers, in case that all operands are.
fn numbers(order: Order, operands: &[Operand]) -> Option<String> {
    if operands.len() > MAX_TEXTS {
        return None;
    }
    let each = operands
        .iter()
        .map(|operand| Some(format!("@ {} {}", symbol(order), operand.number()?)));
    join(each.collect::<Option<Vec<_>>>()?, " || ").or_else(|| Some(FALSE.to_owned()))
}

/// Wide: zero has two signs and one number in JSON.
fn double_predicate(comparison: &Comparison) -> Option<String> {
    match comparison {
        Comparison::Equals(texts) => one_of(texts, |text| {
            if ["NaN", "+Inf", "-Inf"].contains(&text) {
                return None;
            }
            Some(number(text).unwrap_or_else(|| FALSE.to_owned()))
        }),
        Comparison::NotEmpty => Some(TRUE.to_owned()),
        _ => None,
    }
}

/// Equality with the number of which this is the text, if it is the text of one.
fn number(text: &str) -> Option<String> {
    let number: f64 = text.parse().ok()?;
    (number.is_finite() && number_text(number) == text).then(|| format!("@ == {number:e}"))
}

/// Wide: there may be more values at the place than the filter compares.
fn json_predicate(comparison: &Comparison) -> Option<String> {
    /// Whether a text may be part of how a number or a flag is written.
    fn is_in_a_number(text: &str) -> bool {
        text.chars()
            .all(|character| character.is_ascii_alphanumeric() || "+-.".contains(character))
    }
    match comparison {
        Comparison::Equals(texts) => one_of(texts, |text| {
            let mut alternatives = vec![equals(text)];
            alternatives.extend(number(text));
            match text {
                "" => alternatives.push("@ == null".to_owned()),
                "true" | "false" => alternatives.push(format!("@ == {text}")),
                _ => {}
            }
            join(alternatives, " || ")
        }),
        Comparison::StartsWith(texts) | Comparison::Contains(texts) | Comparison::EndsWith(texts) => {
            let mut alternatives = vec![text_predicate(comparison)?];
            if texts.iter().any(|text| is_in_a_number(text)) {
                alternatives.push("@.type() != \"string\"".to_owned());
            }
            join(alternatives, " || ")
        }
        Comparison::NotEmpty => join(
            vec![
                format!("@ != {}", literal("")),
                "@.type() == \"number\"".to_owned(),
                "@.type() == \"boolean\"".to_owned(),
            ],
            " || ",
        ),
        Comparison::Ordered(..) | Comparison::Time(..) => None,
    }
}

#[cfg(test)]
mod tests;
