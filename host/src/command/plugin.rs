//! `plugin inspect`: what a plugin is, what it asks for and gets, and whether this host takes it.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::CommandError;
use super::output::{Output, OutputFlags};
use crate::component::{Grant, Plugin, Source, built_ins, grant};

/// What to do with a plugin.
#[derive(Subcommand, Debug)]
pub enum PluginCommand {
    /// Show what a plugin is, what it imports and is granted, and whether serve takes it
    Inspect(InspectFlags),
}

/// Flags of `plugin inspect`.
#[derive(Args, Debug)]
pub struct InspectFlags {
    /// The name of a built-in plugin, or the path of a component's file
    #[arg(value_name = "FILE|NAME")]
    plugin: PathBuf,
    #[command(flatten)]
    output: OutputFlags,
}

impl InspectFlags {
    /// Shows it. Nothing of the plugin runs.
    ///
    /// # Errors
    ///
    /// What `serve` would say of a plugin that it does not take.
    pub fn run(self) -> Result<(), CommandError> {
        let source = match self.plugin.to_str() {
            Some(name) if built_ins().contains(&name) => Source::BuiltIn(name.to_owned()),
            _ => Source::File(self.plugin),
        };
        let inspection = Plugin::inspect(&source).map_err(|error| super::not_opened(error.into()))?;
        let loaded = Plugin::load(&source, None);
        let refusal = loaded.as_ref().err().map(ToString::to_string);
        let precompiled = loaded.as_ref().ok().map(Plugin::is_precompiled);

        let mut output = Output::new(self.output);
        let digest = format!("sha256:{}", inspection.digest);
        if output.is_json() {
            let imports: Vec<Value> = inspection.imports.iter().map(|name| import(name)).collect();
            output.document(&json!({
                "name": inspection.name,
                "digest": digest,
                "size": inspection.size,
                "world": inspection.world,
                "precompiled": precompiled,
                "imports": imports,
                "exports": inspection.exports,
                "refusal": refusal,
            }))?;
        } else {
            let imports = inspection.imports.iter().map(|name| {
                let granted = match grant(name) {
                    Grant::Given(what) => format!("granted: {what}"),
                    Grant::Empty(what) => format!("granted empty: {what}"),
                    Grant::Missing => "not offered".to_owned(),
                };
                format!("{name} ({granted})")
            });
            let precompiled = match precompiled {
                Some(true) => Value::from("yes"),
                Some(false) => Value::from("no: it is compiled at its first start, and kept"),
                None => Value::Null,
            };
            output.fields(&[
                ("name", "", Value::from(inspection.name.as_str())),
                ("digest", "", Value::from(digest)),
                ("size", "", Value::from(format!("{} bytes", inspection.size))),
                (
                    "world",
                    "",
                    Value::from(inspection.world.as_deref().unwrap_or("none of a storage plugin")),
                ),
                ("precompiled", "", precompiled),
                ("imports", "", imports.collect()),
                ("exports", "", Value::from(inspection.exports.clone())),
            ])?;
        }
        match loaded {
            Ok(_) => Ok(()),
            Err(error) => Err(super::not_opened(error.into())),
        }
    }
}

fn import(name: &str) -> Value {
    let (granted, what) = match grant(name) {
        Grant::Given(what) => ("yes", Some(what)),
        Grant::Empty(what) => ("empty", Some(what)),
        Grant::Missing => ("no", None),
    };
    json!({"name": name, "granted": granted, "what": what})
}
