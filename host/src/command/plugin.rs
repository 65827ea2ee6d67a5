//! `plugin inspect`: what a plugin is, what it imports, what of that needs a grant, and whether this host takes it.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::CommandError;
use super::output::{Output, OutputFlags};
use crate::component::{Need, Offer, Plugin, Source, built_ins, needs, offer};
use crate::settings::looks_like_file;

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
            // What looks like no file, and is none, is a name that is not known.
            Some(name) if built_ins().contains(&name) || !(looks_like_file(name) || self.plugin.exists()) => {
                Source::BuiltIn(name.to_owned())
            }
            _ => Source::File(self.plugin),
        };
        let inspection = Plugin::inspect(&source).map_err(|error| super::not_opened(error.into()))?;
        let loaded = Plugin::load(&source, None);
        let refusal = loaded.as_ref().err().map(ToString::to_string);
        let precompiled = loaded.as_ref().ok().map(Plugin::is_precompiled);

        let needed = needs(&inspection.imports);
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
                "wouldNeed": needed.iter().map(|(need, imports)| json!({
                    "what": need.what(),
                    "settings": need.settings(),
                    "imports": imports,
                })).collect::<Vec<_>>(),
                "exports": inspection.exports,
                "refusal": refusal,
            }))?;
        } else {
            let imports = inspection.imports.iter().map(|name| {
                let granted = match offer(name) {
                    Offer::Given(what) => format!("granted: {what}"),
                    Offer::Granted(need) => format!("by grant: {}", need.what()),
                    Offer::Empty(what) => format!("granted empty: {what}"),
                    Offer::Missing => "not offered".to_owned(),
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
                (
                    "would need",
                    "",
                    needed.iter().map(|need| Value::from(would_need(need))).collect(),
                ),
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

/// What an operator would have to grant, where the plugin uses it: `network (wasi:sockets): DATABROKER_PLUGIN_ADDRESSES`.
fn would_need((need, imports): &(Need, Vec<&str>)) -> String {
    let mut packages: Vec<&str> = imports
        .iter()
        .map(|import| match import.split_once('/') {
            // Of the storage interface a part is meant, of WASI a package.
            Some((package, _)) if package.starts_with("wasi:") => package,
            _ => import.split_once('@').map_or(*import, |(name, _)| name),
        })
        .collect();
    packages.dedup();
    format!(
        "{} ({}): {}",
        need.what(),
        packages.join(", "),
        need.settings().join(", ")
    )
}

fn import(name: &str) -> Value {
    let (granted, what) = match offer(name) {
        Offer::Given(what) => ("yes", Some(what)),
        Offer::Granted(need) => ("by grant", Some(need.what())),
        Offer::Empty(what) => ("empty", Some(what)),
        Offer::Missing => ("no", None),
    };
    json!({"name": name, "granted": granted, "what": what})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_have_to_be_granted_is_said_with_its_settings() {
        for (need, imports, expected) in [
            (
                Need::Network,
                vec!["wasi:sockets/tcp@0.2.6", "wasi:sockets/network@0.2.6"],
                "network (wasi:sockets): DATABROKER_PLUGIN_ADDRESSES",
            ),
            (
                Need::Config,
                vec!["databroker:storage/config@0.1.0"],
                "settings and secrets (databroker:storage/config): DATABROKER_PLUGIN_SETTINGS, DATABROKER_PLUGIN_SECRETS",
            ),
        ] {
            assert_eq!(would_need(&(need, imports)), expected);
        }
    }
}
