//! Does a record match?

use ipnet::IpNet;

use super::{Effort, Expression, Filter, Subject};
use crate::data::{Descriptors, network};
use crate::record::Key;

/// The most specific network, among the records asked about, for each network that a filter asks for.
///
/// `$index` cannot be decided by looking at one record. The caller first offers the networks of all records of the type
/// that contain one of [`Filter::networks`] (it may offer others too), then matches records with the outcome. A filter
/// without `$index` needs no offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolution {
    /// What is asked for, as in the filter, with the best network offered so far.
    best: Vec<(IpNet, Option<IpNet>)>,
}

impl Resolution {
    /// Considers the network of a record.
    pub fn offer(&mut self, network: IpNet) {
        for (wanted, best) in &mut self.best {
            let is_better = best.is_none_or(|best| best.prefix_len() < network.prefix_len());
            if is_better && network.contains(&*wanted) {
                *best = Some(network.trunc());
            }
        }
    }
}

impl Filter {
    /// The networks that the filter's `$index` parts ask for, each once; empty for most filters.
    pub fn networks(&self) -> &[IpNet] {
        &self.networks
    }

    /// A resolution of this filter to offer networks to.
    pub fn resolution(&self) -> Resolution {
        Resolution {
            best: self.networks.iter().map(|network| (*network, None)).collect(),
        }
    }

    /// True where a record matches. The resolution must be of this filter. Where the effort is exhausted afterwards, the
    /// answer says nothing.
    pub fn matches(
        &self,
        descriptors: &Descriptors,
        key: &Key,
        data: Option<&[u8]>,
        resolution: &Resolution,
        effort: &mut Effort,
    ) -> bool {
        let candidate = Candidate {
            descriptors,
            key,
            data,
            resolution,
        };
        candidate.matches(&self.expression, effort)
    }
}

/// A record that may match.
struct Candidate<'a> {
    descriptors: &'a Descriptors,
    key: &'a Key,
    data: Option<&'a [u8]>,
    resolution: &'a Resolution,
}

impl Candidate<'_> {
    fn matches(&self, expression: &Expression, effort: &mut Effort) -> bool {
        if effort.is_exhausted() {
            return false;
        }
        match expression {
            Expression::And(parts) => !parts.is_empty() && parts.iter().all(|part| self.matches(part, effort)),
            Expression::Or(parts) => parts.iter().any(|part| self.matches(part, effort)),
            Expression::Not(part) => !self.matches(part, effort),
            Expression::Compare(Subject::Id, comparison) => comparison.passes(&self.key.id, effort),
            Expression::Compare(Subject::Type, comparison) => comparison.passes(&self.key.record_type, effort),
            Expression::Compare(Subject::Path(path), comparison) => self.data.is_some_and(|data| {
                effort.spend(data.len(), 1)
                    && self
                        .descriptors
                        .any_value(data, path, &mut |value| comparison.passes(value, effort))
            }),
            Expression::Networks(places) => self.data.and_then(network).is_some_and(|network| {
                places
                    .iter()
                    .filter_map(|place| self.resolution.best.get(*place))
                    .any(|(_, best)| *best == Some(network))
            }),
        }
    }
}
