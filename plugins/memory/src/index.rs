//! Finds records by the value of a field.
//!
//! The postings of a field are one ordered set of value and id: the ids of one value come out in the order of a scan,
//! so a look-up pages like one. They hold ids rather than records: a write that leaves the field as it was, which is
//! nearly every write, does not touch them.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use crate::budget::{ALLOCATION, SHARED, bytes, ordered};
use crate::network::{NetworkIndex, Prefix};

/// Looks into record data, which is opaque to the store.
pub trait Extract {
    /// For each record's data and each path (field names joined by dots): the strings that a filter on that path
    /// compares, and none where the field is not set, or where the type or the field is not known. Nothing at all for a
    /// record of which they are more than can be had.
    fn extract(&self, data: &[&[u8]], paths: &[String]) -> Vec<Option<Values>>;
}

/// For each path the values of a record.
pub type Values = Vec<Vec<String>>;

/// Why a record is refused whose values cannot be had.
pub(crate) const TOO_MANY_VALUES: &str = "a record has more values in the indexed fields of its type than the host gives \
                                          at once: put it with fewer, or index fewer fields";

impl<F: Fn(&[&[u8]], &[String]) -> Vec<Values>> Extract for F {
    fn extract(&self, data: &[&[u8]], paths: &[String]) -> Vec<Option<Values>> {
        self(data, paths).into_iter().map(Some).collect()
    }
}

/// The indexes of one type.
#[derive(Debug, Default)]
pub(crate) struct Indexes {
    pub fields: Vec<FieldIndex>,
    next_field: u32,
    pub networks: NetworkIndex,
}

impl Indexes {
    /// The index that can answer for this path.
    pub fn ready(&self, path: &str) -> Option<&FieldIndex> {
        self.fields.iter().find(|field| field.ready && field.path == path)
    }

    /// Adds an index for each path that has none yet, not ready to be asked; returns whether there were any.
    pub fn add_fields(&mut self, paths: &[String]) -> bool {
        let known = self.fields.len();
        for path in paths {
            if !self.fields.iter().any(|field| field.path == *path) {
                self.fields.push(FieldIndex::new(path.clone(), self.next_field));
                self.next_field += 1;
            }
        }
        self.fields.len() > known
    }

    /// Takes in what is known of a record.
    pub fn insert(&mut self, indexed: &Indexed, id: &Arc<str>) {
        if let Some(prefix) = indexed.network {
            self.networks.insert(prefix, id);
        }
        for (number, value) in &indexed.values {
            if let Some(field) = self.fields.iter_mut().find(|field| field.number == *number) {
                field.insert(value, id);
            }
        }
    }

    /// Lets go of what is known of a record.
    pub fn remove(&mut self, indexed: &Indexed, id: &Arc<str>) {
        if let Some(prefix) = indexed.network {
            self.networks.remove(prefix, id);
        }
        for (number, value) in &indexed.values {
            if let Some(field) = self.fields.iter_mut().find(|field| field.number == *number) {
                field.remove(value, id);
            }
        }
    }
}

/// One indexed field of a type.
#[derive(Debug)]
pub(crate) struct FieldIndex {
    /// Field names joined by dots.
    pub path: String,
    /// Tells the field from others that the type has or had.
    pub number: u32,
    /// False until the records that were there before the index are in it.
    pub ready: bool,
    postings: BTreeSet<(Arc<str>, Arc<str>)>,
}

impl FieldIndex {
    pub fn new(path: String, number: u32) -> Self {
        Self {
            path,
            number,
            ready: false,
            postings: BTreeSet::new(),
        }
    }

    pub fn insert(&mut self, value: &Arc<str>, id: &Arc<str>) {
        self.postings.insert((Arc::clone(value), Arc::clone(id)));
    }

    pub fn remove(&mut self, value: &Arc<str>, id: &Arc<str>) {
        self.postings.remove(&(Arc::clone(value), Arc::clone(id)));
    }

    /// The ids of the records with this value after this id, ascending.
    pub fn ids<'a>(&'a self, value: &'a str, after: Option<&str>) -> impl Iterator<Item = &'a Arc<str>> {
        let start = (Arc::from(value), Arc::from(after.unwrap_or_default()));
        let start = if after.is_some() {
            Bound::Excluded(start)
        } else {
            Bound::Included(start)
        };
        self.postings
            .range((start, Bound::Unbounded))
            .take_while(move |(found, _)| **found == *value)
            .map(|(_, id)| id)
    }

    /// The ids in the index, in no particular order; one may come several times.
    pub fn all_ids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.postings.iter().map(|(_, id)| id)
    }
}

/// What the indexes hold of one record, so that they can let go of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Indexed {
    pub network: Option<Prefix>,
    /// Numbers of fields, with a value each; ascending and each once.
    pub values: Vec<(u32, Arc<str>)>,
}

impl Indexed {
    pub fn is_empty(&self) -> bool {
        self.network.is_none() && self.values.is_empty()
    }

    /// What the record takes in the indexes and in this list.
    pub fn cost(&self) -> u64 {
        let network = if self.network.is_some() { NetworkIndex::COST } else { 0 };
        let postings: u64 = self.values.iter().map(|(_, value)| posting_cost(value.len())).sum();
        network + postings + bytes(size_of::<Self>()) + 2 * ALLOCATION
    }
}

/// What one value takes: the value itself, its posting, and its place in `Indexed`.
fn posting_cost(value_length: usize) -> u64 {
    SHARED
        + ALLOCATION
        + bytes(value_length)
        + ordered(size_of::<(Arc<str>, Arc<str>)>())
        + bytes(size_of::<(u32, Arc<str>)>())
}
