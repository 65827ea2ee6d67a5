//! The filter language of Query: JSON that says which records are wanted.
//!
//! ```
//! # use databroker_host::filter::Filter;
//! let filter = Filter::parse(&serde_json::json!({
//!     "$or": [{ "user_id": ["alice", "bob"] }, { "expires_at": { "$before": "2025-01-31T12:00:00Z" } }]
//! }));
//! # assert!(filter.is_ok());
//! ```
//!
//! # Grammar
//!
//! Every part stands at a path, which is empty at first. An object's keys are joined by AND: `$and` and `$or` hold lists
//! of parts at the same path, `$not` holds a part to negate, an operator compares the path with its operand, and any other
//! key goes on to a longer path. A list is the OR of its elements; a plain value is compared for equality. `{}` and `[]`
//! match no record, as in Pomerium, and so does `$and` or `$or` with an empty list.
//!
//! # Paths
//!
//! `id` and `type` are the record's own. `$index` compares networks: it takes an address or a prefix and matches the
//! records, of the type asked for, that carry the most specific network which contains it. All other paths lead into the
//! record's data: see [`crate::data::path`].
//!
//! # Operators
//!
//! A path may have several values, or none; a record matches if one of them passes. An operand that is a list stands for
//! any of its elements. Logic has two values: a negation matches exactly the records that its positive does not.
//!
//! | operator | passes |
//! |---|---|
//! | `=` `==` `$eq` `$equals` `$is` `$isAnyOf` | equal texts |
//! | `!=` `$doesNotEqual` | the negation of `=` |
//! | `<` `<=` `>` `>=` | ordered: as numbers where both are, else as times where both are RFC 3339, else bytewise |
//! | `$after` `$before` `$onOrAfter` `$onOrBefore` | ordered as times; the operand must be one |
//! | `$contains` `$startsWith` `$endsWith` | text within text; case matters |
//! | `$doesNotContain` | the negation of `$contains` |
//! | `$isNotEmpty` | a value that is not the empty string |
//! | `$isEmpty` | the negation of `$isNotEmpty`, so that it matches too where there is no such field |
//!
//! The operand of the last two is ignored unless it is `false`, which asks for the opposite. Equality with null is the same
//! as `$isEmpty`. Operands become texts as in Pomerium: `true` and `false`, numbers as Go writes them (`1e+06`); since an
//! integer field is written in plain digits, a number equals that form too.
//!
//! Pomerium's own backends know equality only and answer the other operators with an error; its `$not` on Postgres leaves
//! out records that do not have the field, which this one matches.

mod compare;
mod condition;
mod effort;
mod matching;
mod parse;
mod plan;

pub use effort::{EFFORT_BYTES, Effort};
pub use matching::Resolution;
pub use parse::FilterError;
pub use plan::{Lookup, MAX_SCANS, Plan};

use ipnet::IpNet;

use compare::Comparison;

/// A parsed filter.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    expression: Expression,
    /// What the filter's `$index` parts ask for, each once.
    networks: Vec<IpNet>,
}

/// A part of a filter.
#[derive(Clone, Debug, PartialEq)]
enum Expression {
    /// All of them; none at all match nothing.
    And(Vec<Expression>),
    /// One of them; none at all match nothing.
    Or(Vec<Expression>),
    Not(Box<Expression>),
    /// The record's own `id` or `type`, or a path into its data.
    Compare(Subject, Comparison),
    /// The record carries the most specific network that contains one of these, which are places in `Filter::networks`.
    Networks(Vec<usize>),
}

/// What is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    Id,
    Type,
    Path(String),
}

#[cfg(test)]
mod tests;
