//! Comparisons of a record's values with operands.

use std::cmp::Ordering;

use prost_types::Timestamp;

use super::Effort;

/// An operator with its operands; a value passes if it passes for one of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Comparison {
    /// Equal to one of these, which are sorted and distinct.
    Equals(Vec<String>),
    Contains(Vec<String>),
    StartsWith(Vec<String>),
    EndsWith(Vec<String>),
    /// Anything but the empty string.
    NotEmpty,
    /// Ordered as numbers, times or texts.
    Ordered(Order, Vec<Operand>),
    /// Ordered as times.
    Time(Order, Vec<Timestamp>),
}

/// How a value must stand to the operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// The operand of an ordering, in all forms that it has.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Operand {
    text: String,
    number: Option<Number>,
    time: Option<Timestamp>,
}

/// A number in a text. Integers are kept apart: a double cannot hold all of them.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    Integer(i128),
    Float(f64),
}

impl Comparison {
    /// Equality with one of these texts.
    pub(super) fn equals(mut texts: Vec<String>) -> Self {
        texts.sort_unstable();
        texts.dedup();
        Self::Equals(texts)
    }

    /// True where a value passes, and it is not too much work to tell.
    pub(super) fn passes(&self, value: &str, effort: &mut Effort) -> bool {
        let may = match self {
            // A search looks at the value again for each text.
            Self::Contains(texts) => effort.spend(value.len(), texts.len()),
            Self::Equals(_) | Self::NotEmpty => effort.spend(value.len(), 1),
            Self::StartsWith(texts) | Self::EndsWith(texts) => {
                effort.spend(value.len(), 1) && effort.spend(0, texts.len())
            }
            Self::Ordered(_, operands) => effort.spend(value.len(), 1) && effort.spend(0, operands.len()),
            Self::Time(_, times) => effort.spend(value.len(), 1) && effort.spend(0, times.len()),
        };
        may && match self {
            Self::Equals(texts) => texts.binary_search_by(|text| text.as_str().cmp(value)).is_ok(),
            Self::Contains(texts) => texts.iter().any(|text| value.contains(text)),
            Self::StartsWith(texts) => texts.iter().any(|text| value.starts_with(text)),
            Self::EndsWith(texts) => texts.iter().any(|text| value.ends_with(text)),
            Self::NotEmpty => !value.is_empty(),
            Self::Ordered(order, operands) => {
                let value = Operand::new(value.to_owned());
                operands.iter().any(|operand| order.holds(value.compare(operand)))
            }
            Self::Time(order, times) => {
                time(value).is_some_and(|value| times.iter().any(|time| order.holds(Some(compare_times(&value, time)))))
            }
        }
    }
}

impl Order {
    fn holds(self, ordering: Option<Ordering>) -> bool {
        ordering.is_some_and(|ordering| match self {
            Self::Less => ordering.is_lt(),
            Self::LessOrEqual => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::GreaterOrEqual => ordering.is_ge(),
        })
    }
}

impl Operand {
    pub(super) fn new(text: String) -> Self {
        let number = Number::read(&text);
        Self {
            time: if number.is_none() { time(&text) } else { None },
            number,
            text,
        }
    }

    /// The text of one that is compared as text with whatever it is compared with.
    pub(super) fn plain_text(&self) -> Option<&str> {
        (self.number.is_none() && self.time.is_none()).then_some(&self.text)
    }

    /// It as a decimal number, if it is one.
    pub(super) fn number(&self) -> Option<String> {
        Some(match self.number? {
            Number::Integer(integer) => integer.to_string(),
            Number::Float(float) => float.to_string(),
        })
    }

    /// It as a time, if it is one.
    pub(super) fn time(&self) -> Option<Timestamp> {
        self.time
    }

    fn compare(&self, other: &Self) -> Option<Ordering> {
        if let (Some(left), Some(right)) = (self.number, other.number) {
            return left.compare(right);
        }
        if let (Some(left), Some(right)) = (&self.time, &other.time) {
            return Some(compare_times(left, right));
        }
        Some(self.text.cmp(&other.text))
    }
}

impl Number {
    /// Decimal numbers with or without an exponent; words such as `inf` are texts.
    fn read(text: &str) -> Option<Self> {
        if !text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte))
        {
            return None;
        }
        if let Ok(integer) = text.parse() {
            return Some(Self::Integer(integer));
        }
        text.parse()
            .ok()
            .filter(|number: &f64| number.is_finite())
            .map(Self::Float)
    }

    fn compare(self, other: Self) -> Option<Ordering> {
        if let (Self::Integer(left), Self::Integer(right)) = (self, other) {
            return Some(left.cmp(&right));
        }
        self.as_float().partial_cmp(&other.as_float())
    }

    fn as_float(self) -> f64 {
        match self {
            #[expect(
                clippy::cast_precision_loss,
                reason = "the other side is a double, no more exact than this"
            )]
            Self::Integer(integer) => integer as f64,
            Self::Float(float) => float,
        }
    }
}

/// Reads a time in RFC 3339.
pub(super) fn time(text: &str) -> Option<Timestamp> {
    // The shortest form with date, time and zone; the parser would also take a date alone.
    const SHORTEST: usize = "2025-01-31T12:00:00Z".len();
    if text.len() < SHORTEST || !text.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn compare_times(left: &Timestamp, right: &Timestamp) -> Ordering {
    (left.seconds, left.nanos).cmp(&(right.seconds, right.nanos))
}
