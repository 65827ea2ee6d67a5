//! What the host makes of a plugin's file.

use std::path::{Path, PathBuf};

use super::guests::{Behaviour, component, storage, storage_wit};
use super::{config, descriptors};
use crate::component::{OpenError, Plugin, PluginError, Source, Unfit, built_ins, open};

/// A component that exports something else.
const FOREIGN: &str =
    "package demo:greeter@1.2.3; interface greet { hello: func() -> string; } world w { export greet; }";

fn write(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugin.wasm");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// Loads a file and says why it was refused, in words.
fn refusal(bytes: &[u8]) -> (PluginError, String) {
    let (folder, path) = write(bytes);
    let cache = folder.path().join("cache");
    match Plugin::load(&Source::File(path), Some(&cache)) {
        Ok(_) => panic!("the file was taken"),
        Err(error) => {
            let said = error.to_string();
            (error, said)
        }
    }
}

#[test]
fn a_file_that_is_no_plugin_is_refused_with_a_sentence() {
    let good = storage(Behaviour::Trap);
    let precompiled = {
        let engine = wasmtime::Engine::new(&crate::component::engine::config()).unwrap();
        engine.precompile_component(&good).unwrap()
    };
    let other_version = storage_wit().replace("databroker:storage@0.1.0", "databroker:storage@0.2.0");
    let with_more = storage_wit().replace(
        "import log;",
        "import log; import surprise: interface { gift: func(); } import files;",
    ) + "interface files { steal: func(); }";

    // The file, and words that the sentence must hold: what it is, what is supported, what to do.
    let cases: [(&str, Vec<u8>, &[&str]); 13] = [
        ("empty", vec![], &["empty", "name the component"]),
        ("prose", b"hello".to_vec(), &["no WebAssembly"]),
        ("half a magic number", b"\0as".to_vec(), &["no WebAssembly"]),
        (
            "text",
            b";; mine\n (component)".to_vec(),
            &["text form", "wasm-tools parse"],
        ),
        ("text of a module", b"(; x ;)(module)".to_vec(), &["text form"]),
        (
            "core module",
            b"\0asm\x01\0\0\0".to_vec(),
            &["core module", "wasm32-wasip2"],
        ),
        ("unknown format", b"\0asm\x63\0\0\0".to_vec(), &["damaged"]),
        ("truncated", good[..good.len() / 2].to_vec(), &["damaged", "again"]),
        ("machine code", precompiled, &["machine code", "the component itself"]),
        (
            "another world",
            component(FOREIGN, "w", Behaviour::Trap),
            &[
                "demo:greeter/greet@1.2.3",
                "databroker:storage/store",
                "databroker:storage/backend@0.1.0",
            ],
        ),
        (
            "another version",
            component(&other_version, "backend", Behaviour::Trap),
            &["databroker:storage@0.2.0", "compatible with 0.1.0", "build it for"],
        ),
        (
            "more imports",
            component(&with_more, "backend", Behaviour::Trap),
            &["surprise", "databroker:storage/files@0.1.0", "does not offer"],
        ),
        (
            "an empty component",
            b"\0asm\x0d\0\x01\0".to_vec(),
            &["exports nothing"],
        ),
    ];
    for (name, bytes, words) in cases {
        let (error, said) = refusal(&bytes);
        assert!(matches!(error, PluginError::Unfit { .. }), "{name}: {error:?}");
        for word in words {
            assert!(said.contains(word), "{name}: {word:?} is not in {said:?}");
        }
    }
}

#[test]
fn an_import_of_another_type_is_refused_before_anything_runs() {
    let other = storage_wit().replace(
        "write: func(level: level, message: string);",
        "write: func(level: level, message: string, color: u32);",
    );
    let (error, said) = refusal(&component(&other, "backend", Behaviour::Trap));
    assert!(matches!(error, PluginError::Refused { .. }), "{error:?}");
    assert!(said.contains("databroker:storage/log"), "{said}");
}

#[tokio::test]
async fn an_export_of_another_type_is_refused() {
    let other = storage_wit().replace(
        "count: async func(%type: option<string>) -> result<u64, error>;",
        "count: async func(%type: string) -> result<u64, error>;",
    );
    assert_ne!(other, storage_wit());
    let (_folder, path) = write(&component(&other, "backend", Behaviour::Trap));
    let Err(error) = open(config(Source::File(path)), descriptors()).await else {
        panic!("the plugin was opened");
    };
    assert!(
        matches!(error, OpenError::Start { .. } | OpenError::Plugin(_)),
        "{error:?}"
    );
}

/// What is kept is used, and what a disk has damaged is neither run nor in the way.
#[test]
fn kept_code_is_used_and_damaged_code_is_compiled_again() {
    let (_folder, path) = write(&component(&storage_wit(), "backend", Behaviour::Trap));
    let cache = path.with_file_name("cache");
    let load = || Plugin::load(&Source::File(path.clone()), Some(&cache)).unwrap();
    let entry = || {
        let entries: Vec<_> = std::fs::read_dir(&cache)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(entries.len(), 1, "{entries:?}");
        entries.into_iter().next().unwrap()
    };
    load();
    let first = entry();
    let written = first.metadata().unwrap().modified().unwrap();
    load();
    assert_eq!(
        first.metadata().unwrap().modified().unwrap(),
        written,
        "it was compiled again"
    );
    let whole = std::fs::read(&first).unwrap();
    for place in [0, 40, whole.len() / 2, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x55;
        std::fs::write(&first, damaged).unwrap();
        load();
        assert_eq!(std::fs::read(entry()).unwrap().len(), whole.len());
    }
}

#[test]
fn a_compatible_version_is_taken() {
    let newer = storage_wit().replace("databroker:storage@0.1.0", "databroker:storage@0.1.7");
    let (_folder, path) = write(&component(&newer, "backend", Behaviour::Trap));
    let cache = path.with_file_name("cache");
    let plugin = Plugin::load(&Source::File(path), Some(&cache)).unwrap();
    assert_eq!(
        plugin.inspection().world.as_deref(),
        Some("databroker:storage/backend@0.1.7")
    );
}

#[test]
fn a_name_or_a_path_that_leads_nowhere_is_an_error_that_says_so() {
    let unknown = Plugin::inspect(&Source::BuiltIn("memroy".to_owned()))
        .unwrap_err()
        .to_string();
    assert!(
        unknown.contains("\"memroy\"") && unknown.contains("memory"),
        "{unknown}"
    );

    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().join("none.wasm"), folder.path().to_owned()] {
        let error = Plugin::inspect(&Source::File(path.clone())).unwrap_err();
        assert!(matches!(error, PluginError::Unreadable { .. }), "{error:?}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn what_a_plugin_is_can_be_read_without_running_it() {
    assert_eq!(built_ins(), ["memory", "postgres"]);
    let inspection = Plugin::inspect(&Source::BuiltIn("memory".to_owned())).unwrap();
    assert_eq!(inspection.name, "memory");
    assert_eq!(inspection.world.as_deref(), Some("databroker:storage/backend@0.1.0"));
    assert_eq!(inspection.digest.len(), 64);
    assert!(
        inspection
            .exports
            .contains(&"databroker:storage/store@0.1.0".to_owned())
    );
    assert!(
        inspection
            .imports
            .contains(&"databroker:storage/protobuf@0.1.0".to_owned())
    );

    let foreign = component(FOREIGN, "w", Behaviour::Trap);
    let (_folder, path) = write(&foreign);
    let inspection = Plugin::inspect(&Source::File(path)).unwrap();
    assert_eq!(inspection.name, "plugin");
    assert_eq!(inspection.world, None);
    assert_eq!(inspection.exports, ["demo:greeter/greet@1.2.3"]);
    assert_eq!(inspection.size, u64::try_from(foreign.len()).unwrap());
}

#[test]
fn a_built_in_plugin_is_loaded_without_compiling() {
    // `is_precompiled` is set where the engine took the machine code as it is, which it does without its compiler.
    for name in built_ins() {
        let plugin = Plugin::load(&Source::BuiltIn(name.to_owned()), None).unwrap();
        assert!(plugin.is_precompiled(), "{name}");
    }
}

#[test]
fn machine_code_of_a_file_is_kept_only_where_it_is_safe() {
    let (folder, path) = write(&storage(Behaviour::Trap));
    let source = Source::File(path);
    let own = folder.path().join("own");
    assert!(!Plugin::load(&source, Some(&own)).unwrap().is_precompiled());
    assert!(count_files(&own) > 0, "nothing was kept");

    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let shared = folder.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o777)).unwrap();
        Plugin::load(&source, Some(&shared)).unwrap();
        assert_eq!(count_files(&shared), 0, "code was kept where others can write");
    }
}

/// How many files there are in a folder and in those within it.
fn count_files(path: &Path) -> usize {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let count = |entry: std::fs::DirEntry| match entry.path() {
        path if path.is_dir() => count_files(&path),
        _ => 1,
    };
    entries.map(count).sum()
}

#[test]
fn an_unfit_file_is_told_apart_by_type() {
    let (error, _) = refusal(b"\0asm\x01\0\0\0");
    assert!(matches!(
        error,
        PluginError::Unfit {
            unfit: Unfit::CoreModule,
            ..
        }
    ));
}
