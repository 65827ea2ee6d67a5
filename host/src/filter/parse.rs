//! From JSON to a filter.

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::compare::{Comparison, Operand, Order, time};
use super::{Expression, Filter, Subject};
use crate::data::number_text;

/// How deep a filter may be nested.
const MAX_DEPTH: usize = 64;

/// How many parts a filter may have.
const MAX_PARTS: usize = 1_000;

/// How many values a filter may compare with.
const MAX_OPERANDS: usize = 10_000;

/// Why JSON is not a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// The whole is not an object.
    #[error("a filter must be an object")]
    NotAnObject,
    /// `$and` or `$or` without a list.
    #[error("{0} must be an array")]
    NotAnArray(&'static str),
    /// Nested too deep.
    #[error("a filter may be nested {MAX_DEPTH} deep at most")]
    TooDeep,
    /// Too many parts.
    #[error("a filter may have {MAX_PARTS} parts at most; use one list of values instead of many comparisons")]
    TooManyParts,
    /// Too many values.
    #[error("a filter may compare with {MAX_OPERANDS} values at most; split the query")]
    TooManyValues,
    /// The operand is an object, or a list within a list.
    #[error("{operator} of {path:?} takes a text, a number, a flag, null or a list of these")]
    Operand {
        /// The operator as it was written.
        operator: String,
        /// Where it stands.
        path: String,
    },
    /// The operand is not a time.
    #[error("{operator} of {path:?} takes a time such as 2025-01-31T12:00:00Z")]
    Time {
        /// The operator as it was written.
        operator: String,
        /// Where it stands.
        path: String,
    },
    /// An operator that makes no sense for networks.
    #[error("{operator} cannot compare the networks of $index; only equality and its negation can")]
    Network {
        /// The operator as it was written.
        operator: String,
    },
}

/// As much of a client's text as is told back to it: the answer's trailers have room for little.
fn beginning(text: &str) -> String {
    const LONGEST: usize = 200;
    text.get(..text.floor_char_boundary(LONGEST))
        .unwrap_or_default()
        .to_owned()
}

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    ///
    /// See [`FilterError`]. The bounds are 64 levels, 1,000 parts and 10,000 values to compare with.
    pub fn parse(json: &Value) -> Result<Self, FilterError> {
        let Value::Object(object) = json else {
            return Err(FilterError::NotAnObject);
        };
        let mut parser = Parser::default();
        let expression = parser.object(&mut Vec::new(), object, MAX_DEPTH)?;
        Ok(Self {
            expression,
            networks: parser.networks,
        })
    }
}

/// What is counted and collected on the way.
#[derive(Default)]
struct Parser {
    networks: Vec<IpNet>,
    parts: usize,
    operands: usize,
}

/// An operator of the language.
enum Operator {
    Equals,
    Contains,
    StartsWith,
    EndsWith,
    NotEmpty,
    Ordered(Order),
    Time(Order),
}

impl Operator {
    /// The operator with this name, and whether it stands for the negation.
    fn named(name: &str) -> Option<(Self, bool)> {
        Some(match name {
            "=" | "==" | "$eq" | "$equals" | "$is" | "$isAnyOf" => (Self::Equals, false),
            "!=" | "$doesNotEqual" => (Self::Equals, true),
            "$contains" => (Self::Contains, false),
            "$doesNotContain" => (Self::Contains, true),
            "$startsWith" => (Self::StartsWith, false),
            "$endsWith" => (Self::EndsWith, false),
            "$isNotEmpty" => (Self::NotEmpty, false),
            "$isEmpty" => (Self::NotEmpty, true),
            "<" => (Self::Ordered(Order::Less), false),
            "<=" => (Self::Ordered(Order::LessOrEqual), false),
            ">" => (Self::Ordered(Order::Greater), false),
            ">=" => (Self::Ordered(Order::GreaterOrEqual), false),
            "$before" => (Self::Time(Order::Less), false),
            "$onOrBefore" => (Self::Time(Order::LessOrEqual), false),
            "$after" => (Self::Time(Order::Greater), false),
            "$onOrAfter" => (Self::Time(Order::GreaterOrEqual), false),
            _ => return None,
        })
    }
}

impl Parser {
    /// A part at a path.
    fn value<'j>(&mut self, path: &mut Vec<&'j str>, json: &'j Value, depth: usize) -> Result<Expression, FilterError> {
        match json {
            Value::Object(object) => self.object(path, object, depth),
            // A list of plain values is one comparison, whatever its length.
            Value::Array(list) if !list.is_empty() && list.iter().all(|value| is_scalar(value) && !value.is_null()) => {
                self.compare(path, "=", json)
            }
            Value::Array(list) => self.list(path, list, depth).map(Expression::Or),
            Value::Null => self.compare(path, "$isEmpty", json),
            _ => self.compare(path, "=", json),
        }
    }

    fn object<'j>(
        &mut self,
        path: &mut Vec<&'j str>,
        object: &'j Map<String, Value>,
        depth: usize,
    ) -> Result<Expression, FilterError> {
        let depth = self.enter(depth)?;
        let mut all = Vec::with_capacity(object.len());
        for (key, value) in object {
            all.push(match key.as_str() {
                "$and" => Expression::And(self.operands(path, "$and", value, depth)?),
                "$or" => Expression::Or(self.operands(path, "$or", value, depth)?),
                "$not" => Expression::Not(Box::new(self.value(path, value, depth)?)),
                operator if Operator::named(operator).is_some() => self.compare(path, operator, value)?,
                name => {
                    path.push(name);
                    let below = self.value(path, value, depth)?;
                    path.pop();
                    below
                }
            });
        }
        // One part stands for itself.
        Ok(match all.pop() {
            Some(only) if all.is_empty() => only,
            Some(last) => {
                all.push(last);
                Expression::And(all)
            }
            None => Expression::And(all),
        })
    }

    fn operands<'j>(
        &mut self,
        path: &mut Vec<&'j str>,
        operator: &'static str,
        json: &'j Value,
        depth: usize,
    ) -> Result<Vec<Expression>, FilterError> {
        match json {
            Value::Array(list) => self.list(path, list, depth),
            _ => Err(FilterError::NotAnArray(operator)),
        }
    }

    fn list<'j>(
        &mut self,
        path: &mut Vec<&'j str>,
        list: &'j [Value],
        depth: usize,
    ) -> Result<Vec<Expression>, FilterError> {
        let depth = self.enter(depth)?;
        list.iter().map(|element| self.value(path, element, depth)).collect()
    }

    fn compare(&mut self, path: &[&str], name: &str, operand: &Value) -> Result<Expression, FilterError> {
        self.enter(1)?;
        let path = path.join(".");
        let Some((mut operator, mut is_negated)) = Operator::named(name) else {
            // Only ever called with the name of one.
            return Ok(Expression::Or(Vec::new()));
        };
        if matches!(operator, Operator::Equals) && operand.is_null() {
            operator = Operator::NotEmpty;
            is_negated = !is_negated;
        }
        if matches!(operator, Operator::NotEmpty) {
            is_negated ^= *operand == Value::Bool(false);
        }
        let positive = match (path.as_str(), operator) {
            ("$index", Operator::Equals) => self.network(name, &path, operand)?,
            ("$index", _) => {
                return Err(FilterError::Network {
                    operator: beginning(name),
                });
            }
            (_, operator) => {
                let comparison = self.comparison(operator, name, &path, operand)?;
                let subject = match path.as_str() {
                    "id" => Subject::Id,
                    "type" => Subject::Type,
                    _ => Subject::Path(path),
                };
                Expression::Compare(subject, comparison)
            }
        };
        Ok(if is_negated {
            Expression::Not(Box::new(positive))
        } else {
            positive
        })
    }

    fn comparison(
        &mut self,
        operator: Operator,
        name: &str,
        path: &str,
        operand: &Value,
    ) -> Result<Comparison, FilterError> {
        Ok(match operator {
            Operator::Equals => {
                let mut texts = Vec::new();
                for value in self.scalars(name, path, operand)? {
                    // An integer field is written in plain digits, however large.
                    if let Value::Number(number) = value {
                        texts.extend(number.as_f64().map(|number| number.to_string()));
                    }
                    texts.push(text(value));
                }
                Comparison::equals(texts)
            }
            Operator::Contains => Comparison::Contains(self.texts(name, path, operand)?),
            Operator::StartsWith => Comparison::StartsWith(self.texts(name, path, operand)?),
            Operator::EndsWith => Comparison::EndsWith(self.texts(name, path, operand)?),
            Operator::NotEmpty => Comparison::NotEmpty,
            Operator::Ordered(order) => {
                let texts = self.texts(name, path, operand)?;
                Comparison::Ordered(order, texts.into_iter().map(Operand::new).collect())
            }
            Operator::Time(order) => {
                let times = self.texts(name, path, operand)?.iter().map(|text| time(text)).collect();
                let times: Option<Vec<_>> = times;
                Comparison::Time(
                    order,
                    times.ok_or_else(|| FilterError::Time {
                        operator: beginning(name),
                        path: beginning(path),
                    })?,
                )
            }
        })
    }

    /// Equality of the `$index` path. What is neither prefix nor address matches nothing.
    fn network(&mut self, name: &str, path: &str, operand: &Value) -> Result<Expression, FilterError> {
        let mut places = Vec::new();
        for text in self.texts(name, path, operand)? {
            let network = text
                .parse::<IpNet>()
                .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
            let Ok(network) = network else {
                continue;
            };
            let network = network.trunc();
            let place = self
                .networks
                .iter()
                .position(|other| *other == network)
                .unwrap_or_else(|| {
                    self.networks.push(network);
                    self.networks.len() - 1
                });
            places.push(place);
        }
        Ok(Expression::Networks(places))
    }

    fn texts(&mut self, name: &str, path: &str, operand: &Value) -> Result<Vec<String>, FilterError> {
        Ok(self.scalars(name, path, operand)?.iter().map(text).collect())
    }

    /// The operands: the value, or the values of the list.
    fn scalars<'j>(&mut self, name: &str, path: &str, operand: &'j Value) -> Result<&'j [Value], FilterError> {
        let values = match operand {
            Value::Array(list) => list.as_slice(),
            _ => std::slice::from_ref(operand),
        };
        if !values.iter().all(is_scalar) {
            return Err(FilterError::Operand {
                operator: beginning(name),
                path: beginning(path),
            });
        }
        self.operands += values.len();
        if self.operands > MAX_OPERANDS {
            return Err(FilterError::TooManyValues);
        }
        Ok(values)
    }

    /// Counts a part and a level.
    fn enter(&mut self, depth: usize) -> Result<usize, FilterError> {
        self.parts += 1;
        if self.parts > MAX_PARTS {
            return Err(FilterError::TooManyParts);
        }
        depth.checked_sub(1).ok_or(FilterError::TooDeep)
    }
}

fn is_scalar(value: &Value) -> bool {
    !matches!(value, Value::Array(_) | Value::Object(_))
}

/// A plain value as text.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.as_f64().map_or_else(|| number.to_string(), number_text),
        Value::Null | Value::Array(_) | Value::Object(_) => String::new(),
    }
}
