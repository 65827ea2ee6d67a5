//! New options for a type that has records already.
//!
//! A new index has to look into every record of its type, which takes long where there are many. So it is made in
//! steps, between which others may read; a reader is not shown an index before it is whole. Until the last step the old
//! options stand, and where one fails everything is as it was.

use std::sync::Arc;

use crate::entry::Data;
use crate::index::{Extract, TOO_MANY_VALUES};
use crate::page::{Bounds, Filling};
use crate::store::{Exhausted, Options, Store};

/// A change of options that is under way. While there is one, nothing else may be written.
#[derive(Debug)]
pub struct Reindex {
    record_type: String,
    options: Option<Options>,
    /// True while there are records to look into.
    is_indexing: bool,
    /// The last record that was looked into.
    after: Option<Arc<str>>,
}

impl<D: Data> Store<D> {
    /// Records of one step: some milliseconds' work.
    const STEP: Bounds = Bounds {
        records: 512,
        bytes: 1 << 20,
    };

    /// Replaces a type's options, all in one; none removes them.
    ///
    /// # Errors
    ///
    /// [`Exhausted`] where there is no room for the indexes.
    pub fn set_options(
        &mut self,
        record_type: String,
        options: Option<Options>,
        extract: &impl Extract,
    ) -> Result<(), Exhausted> {
        let mut reindex = self.start_reindex(record_type, options)?;
        while !self.continue_reindex(&mut reindex, extract, &|| true)? {}
        Ok(())
    }

    /// Begins to replace a type's options; they stand when [`Store::continue_reindex`] has returned true.
    ///
    /// # Errors
    ///
    /// [`Exhausted`] where there is no room for the options.
    pub fn start_reindex(&mut self, record_type: String, options: Option<Options>) -> Result<Reindex, Exhausted> {
        let paths = options
            .as_ref()
            .map(|options| options.indexable_fields.as_slice())
            .unwrap_or_default();
        if let Some(options) = &options {
            self.expect_room(options.cost(&record_type))?;
        }
        let is_indexing = !paths.is_empty() && self.table(&record_type).add_fields(paths);
        Ok(Reindex {
            record_type,
            options,
            is_indexing,
            after: None,
        })
    }

    /// Does the next step; true when that was the last. `has_room` says whether the memory around the store has room
    /// for one.
    ///
    /// # Errors
    ///
    /// [`Exhausted`] where there is no room for the indexes: the options are as they were, and there is no next step.
    pub fn continue_reindex(
        &mut self,
        reindex: &mut Reindex,
        extract: &impl Extract,
        has_room: &impl Fn() -> bool,
    ) -> Result<bool, Exhausted> {
        if reindex.is_indexing {
            let indexed = self.index_page(reindex, extract);
            if let Err(exhausted) = indexed.and_then(|()| self.make_room(has_room)) {
                self.table(&reindex.record_type).drop_unready_fields();
                self.forget_if_empty(&reindex.record_type);
                return Err(exhausted);
            }
            return Ok(false);
        }
        let paths = reindex
            .options
            .as_ref()
            .map(|options| options.indexable_fields.as_slice())
            .unwrap_or_default();
        if let Some(table) = self.tables.get_mut(reindex.record_type.as_str()) {
            table.keep_fields(paths);
        }
        let replaced = match reindex.options.take() {
            Some(options) => {
                self.keep(options.cost(&reindex.record_type));
                self.options.insert(reindex.record_type.clone(), options)
            }
            None => self.options.remove(&reindex.record_type),
        };
        if let Some(replaced) = replaced {
            self.unkeep(replaced.cost(&reindex.record_type));
        }
        self.options_revision += 1;
        self.forget_if_empty(&reindex.record_type);
        Ok(true)
    }

    fn index_page(&mut self, reindex: &mut Reindex, extract: &impl Extract) -> Result<(), Exhausted> {
        let Some(table) = self.tables.get_mut(reindex.record_type.as_str()) else {
            reindex.is_indexing = false;
            return Ok(());
        };
        let mut page = Filling::new(Self::STEP);
        page.extend(table.after(reindex.after.as_deref()));
        let with_data: Vec<_> = page
            .records
            .iter()
            .filter_map(|entry| Some((entry, entry.data()?.as_ref())))
            .collect();
        let data: Vec<&[u8]> = with_data.iter().map(|(_, data)| *data).collect();
        for ((entry, _), values) in with_data.iter().zip(extract.extract(&data, &table.paths())) {
            let values = values.ok_or_else(|| Exhausted(TOO_MANY_VALUES.to_owned()))?;
            let indexed = table.indexed(table.network(entry.id()), values);
            table.set_indexed(entry.id(), indexed);
        }
        reindex.is_indexing = page.is_full;
        reindex.after = page.records.last().map(|entry| Arc::clone(entry.shared_id()));
        Ok(())
    }
}
