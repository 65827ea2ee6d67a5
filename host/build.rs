//! Builds the built-in plugins and compiles them to machine code, so that the host carries them and starts without
//! compiling anything.
//!
//! Each plugin is built by the Cargo that runs this script, in a target folder of its own, since the outer Cargo holds the
//! lock of the other. What the outer build sets for the host (flags, wrappers, profiles) must not reach the plugins: a
//! plugin is the same whether `cargo build`, `clippy`, `test` or `doc` asks for it.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

#[path = "src/component/engine.rs"]
mod engine;

/// The crates in `plugins/` that the host carries, by their names.
const BUILT_IN: &[&str] = &["memory", "postgres"];

/// What the plugins are compiled to.
const TARGET: &str = "wasm32-wasip2";

/// Variables of Cargo that say where it finds and fetches things, and which tokens of the job server it may take; all
/// others of its variables are about the host's own build.
const KEPT: &[&str] = &[
    "CARGO_HOME",
    "CARGO_MAKEFLAGS",
    "CARGO_HTTP_",
    "CARGO_NET_",
    "CARGO_REGISTRIES_",
    "CARGO_REGISTRY_",
    "CARGO_SOURCE_",
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..");
    let out = PathBuf::from(variable("OUT_DIR")?);
    for path in ["Cargo.lock", "Cargo.toml", "plugins", "wit"] {
        println!("cargo:rerun-if-changed={}", workspace.join(path).display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/component/engine.rs");

    see_to_target()?;
    let target_dir = out.join("plugins");
    build(&workspace, &target_dir)?;

    let mut list = String::from("[\n");
    for name in BUILT_IN {
        let component = target_dir.join(TARGET).join("release").join(format!("{name}.wasm"));
        let precompiled = out.join(format!("{name}.cwasm"));
        precompile(&component, &precompiled)?;
        writeln!(
            list,
            "BuiltIn {{ name: {name:?}, component: include_bytes!({component:?}), precompiled: include_bytes!({precompiled:?}) }},"
        )?;
    }
    list.push(']');
    fs::write(out.join("built_in.rs"), list)?;
    Ok(())
}

/// Installs the plugins' target where the toolchain lacks it.
fn see_to_target() -> Result<(), Box<dyn Error>> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let printed = Command::new(&rustc)
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .map_err(|error| format!("cannot run {}: {error}", rustc.display()))?;
    let library = String::from_utf8_lossy(&printed.stdout);
    if printed.status.success() && Path::new(library.trim()).is_dir() {
        return Ok(());
    }
    let status = Command::new("rustup").args(["target", "add", TARGET]).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!(
            "the plugins need Rust's target {TARGET}, and `rustup target add {TARGET}` failed ({status}): run it by hand to see why"
        )
        .into()),
        Err(error) => Err(format!(
            "the plugins need Rust's target {TARGET}, which this toolchain lacks, and rustup, which could add it, does not \
             run ({error}): install the standard library for {TARGET} in the way this Rust was installed, or build with rustup"
        )
        .into()),
    }
}

/// Builds all built-in plugins.
fn build(workspace: &Path, target_dir: &Path) -> Result<(), Box<dyn Error>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command
        .current_dir(workspace)
        .args(["build", "--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(target_dir);
    for name in BUILT_IN {
        command.args(["--package", name]);
    }
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let of_cargo = text.starts_with("CARGO_") && !KEPT.iter().any(|kept| text.starts_with(kept));
        let of_rustc = text.starts_with("RUSTC_") || text.starts_with("RUSTFLAGS") || text.starts_with("RUSTDOC");
        if of_cargo || of_rustc {
            command.env_remove(name);
        }
    }
    let status = command
        .status()
        .map_err(|error| format!("cannot run {} to build the plugins: {error}", cargo.display()))?;
    if !status.success() {
        return Err(format!("building the plugins for {TARGET} failed ({status}): the lines above say why").into());
    }
    Ok(())
}

/// Compiles a component for the machine that the host is built for.
fn precompile(component: &Path, precompiled: &Path) -> Result<(), Box<dyn Error>> {
    let target = variable("TARGET")?;
    let mut config = engine::config();
    // Naming the target, even where it is this machine's, leaves out what only this machine's processor can do: the
    // result must run wherever the host runs.
    let code = match config.target(&target).and_then(|config| wasmtime::Engine::new(config)) {
        Ok(engine) => {
            let bytes = fs::read(component).map_err(|error| format!("cannot read {}: {error}", component.display()))?;
            engine
                .precompile_component(&bytes)
                .map_err(|error| format!("cannot compile {}: {error:#}", component.display()))?
        }
        Err(error) => {
            println!(
                "cargo:warning=the plugins are not compiled ahead of time, so that the host starts slowly: {error:#}"
            );
            Vec::new()
        }
    };
    fs::write(precompiled, code)?;
    Ok(())
}

fn variable(name: &str) -> Result<String, Box<dyn Error>> {
    env::var(name).map_err(|error| format!("{name} is not set as Cargo sets it for build scripts: {error}").into())
}
