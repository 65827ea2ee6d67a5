//! How to find the records that may match without reading all of them.
//!
//! A plan is sound: every record that matches is among the candidates. It need not be exact, since each candidate is
//! matched again. Of an AND one part that can be looked up suffices; of an OR all parts must be.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::compare::Comparison;
use super::{Effort, Expression, Filter, Subject};

/// The most look-ups by field or network that are worth more than one scan.
pub const MAX_SCANS: usize = 64;

/// Where the records that may match are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nowhere: no record matches.
    Nothing,
    /// Records with these ids, ascending; where the type is not given, of any type.
    Ids(Vec<String>),
    /// The union of these, of which one record may come from several.
    Lookups(Vec<Lookup>),
    /// Anywhere in the type.
    Scan,
}

/// One way to find records.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lookup {
    /// The record with this id.
    Id(String),
    /// Records of the type whose indexed field has this value.
    Field {
        /// One of the type's indexable fields.
        path: String,
        /// The value.
        value: String,
    },
    /// Records whose network contains this one.
    Network(IpNet),
}

impl Filter {
    /// How to find the records of a type, or of all types, that may match. Fields can be looked up only where they are in
    /// the type's `indexable_fields`, and only within a type.
    pub fn plan(&self, record_type: Option<&str>, indexable_fields: &[String]) -> Plan {
        let planner = Planner {
            filter: self,
            record_type,
            indexable_fields,
        };
        let Some(lookups) = planner.candidates(&self.expression) else {
            return Plan::Scan;
        };
        let ids = lookups.iter().filter(|lookup| matches!(lookup, Lookup::Id(_))).count();
        if lookups.is_empty() {
            Plan::Nothing
        } else if lookups.len() - ids > MAX_SCANS {
            Plan::Scan
        } else if lookups.len() == ids {
            Plan::Ids(
                lookups
                    .into_iter()
                    .filter_map(|lookup| match lookup {
                        Lookup::Id(id) => Some(id),
                        _ => None,
                    })
                    .collect(),
            )
        } else {
            Plan::Lookups(lookups.into_iter().collect())
        }
    }
}

struct Planner<'a> {
    filter: &'a Filter,
    record_type: Option<&'a str>,
    indexable_fields: &'a [String],
}

impl Planner<'_> {
    /// The look-ups that find all records which match; none where only a scan does.
    fn candidates(&self, expression: &Expression) -> Option<BTreeSet<Lookup>> {
        match expression {
            Expression::And(parts) if parts.is_empty() => Some(BTreeSet::new()),
            Expression::And(parts) => parts
                .iter()
                .filter_map(|part| self.candidates(part))
                .min_by_key(|lookups| lookups.iter().map(cost).sum::<usize>()),
            Expression::Or(parts) => {
                let mut all = BTreeSet::new();
                for part in parts {
                    all.extend(self.candidates(part)?);
                }
                Some(all)
            }
            Expression::Not(_) => None,
            Expression::Networks(places) => Some(
                places
                    .iter()
                    .filter_map(|place| self.filter.networks.get(*place))
                    .map(|network| Lookup::Network(*network))
                    .collect(),
            ),
            Expression::Compare(Subject::Id, Comparison::Equals(ids)) => {
                Some(ids.iter().cloned().map(Lookup::Id).collect())
            }
            Expression::Compare(Subject::Type, comparison) => match self.record_type {
                // The type is the same for all records asked about.
                Some(record_type) if !comparison.passes(record_type, &mut Effort::default()) => Some(BTreeSet::new()),
                _ => None,
            },
            Expression::Compare(Subject::Path(path), Comparison::Equals(values))
                if self.record_type.is_some() && self.indexable_fields.contains(path) =>
            {
                Some(
                    values
                        .iter()
                        .map(|value| Lookup::Field {
                            path: path.clone(),
                            value: value.clone(),
                        })
                        .collect(),
                )
            }
            Expression::Compare(..) => None,
        }
    }
}

/// What a look-up costs in comparison with others: a record by id is one at most.
fn cost(lookup: &Lookup) -> usize {
    match lookup {
        Lookup::Id(_) => 1,
        Lookup::Field { .. } | Lookup::Network(_) => 16,
    }
}
