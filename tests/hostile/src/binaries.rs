//! Files that are no good plugins, made without a toolchain: from the interface's own text comes a component that exports
//! all it should, and then something is done to it.

use wasm_encoder::{
    BlockType, CodeSection, ComponentSection as _, ConstExpr, DataSection, Function, HeapType, InstanceSection,
    MemorySection, MemoryType, Module, ModuleArg, ModuleSection, RawSection, RefType, TableSection, TableType,
};
use wasmparser::{Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding, dummy_module, embed_component_metadata};
use wit_parser::{LiftLowerAbi, ManglingAndAbi, Resolve};

/// Declares the kinds together with the list of them all.
macro_rules! binaries {
    ($($(#[doc = $doc:literal])+ $kind:ident,)+) => {
        /// A file that is handed to the host as a plugin.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Binary {
            $($(#[doc = $doc])+ $kind,)+
        }

        impl Binary {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind,)+];
        }
    };
}

binaries! {
    /// Nothing at all.
    Empty,
    /// Something else.
    Prose,
    /// A core module.
    CoreModule,
    /// The first half of a good plugin.
    Truncated,
    /// A good plugin with an instruction that does not exist.
    Malformed,
    /// A plugin of a later version of the interface.
    WrongVersion,
    /// A component of another world.
    WrongWorld,
    /// A plugin that imports what no host offers.
    UnknownImport,
    /// A plugin that imports what the host offers, with other parameters.
    WrongImport,
    /// A plugin that exports what it should, with other parameters.
    WrongExport,
    /// A plugin that traps before its first call.
    TrapAtStart,
    /// A plugin with a table of more functions than there is memory for.
    TableBomb,
    /// A plugin with some tables, each as large as one may be.
    LargeTables,
    /// A plugin with many tables of nothing.
    ManyTables,
    /// A plugin with many memories of nothing.
    ManyMemories,
    /// A plugin that is made of many modules of nothing.
    ManyModules,
    /// A plugin that makes its table larger and larger while it runs.
    TableGrown,
    /// A plugin with more memory than it may have.
    LargeMemory,
}

/// A good plugin, which traps whenever it is called.
pub fn good() -> Vec<u8> {
    component(&storage_wit(), |module| module)
}

impl Binary {
    /// The file's bytes.
    pub fn bytes(self) -> Vec<u8> {
        let wit = storage_wit();
        let replaced = |from: &str, to: &str| {
            let changed = wit.replace(from, to);
            assert_ne!(changed, wit, "{from:?} is not in the interface");
            component(&changed, |module| module)
        };
        match self {
            Self::Empty => Vec::new(),
            Self::Prose => b"this is no plugin".to_vec(),
            Self::CoreModule => b"\0asm\x01\0\0\0".to_vec(),
            Self::Truncated => {
                let good = good();
                good[..good.len() / 2].to_vec()
            }
            Self::Malformed => {
                let mut bytes = good();
                // Each function's body traps: instead of that instruction there is one that does not exist.
                for at in 0..bytes.len() - 4 {
                    if bytes[at..at + 4] == [0x03, 0x00, 0x00, 0x0b] {
                        bytes[at + 2] = 0xff;
                    }
                }
                bytes
            }
            Self::WrongVersion => replaced("databroker:storage@0.1.0", "databroker:storage@0.2.0"),
            Self::WrongWorld => component_of(
                "package demo:greeter@1.2.3; interface greet { hello: func() -> string; } world w { export greet; }",
                "w",
                |module| module,
            ),
            Self::UnknownImport => {
                let wit =
                    wit.replace("import log;", "import log; import files;") + "interface files { steal: func(); }";
                component(&wit, |module| module)
            }
            Self::WrongImport => replaced(
                "write: func(level: level, message: string);",
                "write: func(level: level, message: string, color: u32);",
            ),
            Self::WrongExport => replaced(
                "count: async func(%type: option<string>) -> result<u64, error>;",
                "count: async func(%type: string) -> result<u64, error>;",
            ),
            Self::TrapAtStart => component(&wit, |module| {
                let mut data = DataSection::new();
                // Beyond the end of any memory: instantiating it is a trap.
                data.active(0, &ConstExpr::i32_const(-1), *b"beyond");
                with(&module, Place::AtEnd, &data)
            }),
            Self::TableBomb => component(&wit, |module| tables(&module, 1, 4_000_000_000)),
            Self::LargeTables => component(&wit, |module| tables(&module, 50, 9_999_999)),
            Self::ManyTables => component(&wit, |module| tables(&module, 90, 0)),
            Self::ManyMemories => component(&wit, |module| memories(&module, 8, 0)),
            Self::ManyModules => modules(good(), 90),
            Self::TableGrown => component(&wit, |module| growing(&tables(&module, 1, 0))),
            Self::LargeMemory => component(&wit, |module| memories(&module, 1, 1 << 15)),
        }
    }
}

fn tables(module: &[u8], count: usize, elements: u64) -> Vec<u8> {
    let mut tables = TableSection::new();
    for _ in 0..count {
        tables.table(TableType {
            element_type: RefType::FUNCREF,
            table64: false,
            minimum: elements,
            maximum: None,
            shared: false,
        });
    }
    with(module, Place::BeforeMemory, &tables)
}

/// The same module with so many memories of so many pages, of which the first is its own.
fn memories(module: &[u8], count: usize, pages: u64) -> Vec<u8> {
    let mut memories = MemorySection::new();
    for _ in 0..count {
        memories.memory(MemoryType {
            minimum: pages,
            maximum: None,
            memory64: false,
            shared: false,
            page_size_log2: None,
        });
    }
    with(module, Place::InsteadOfMemory, &memories)
}

/// The same component with so many instances of an empty module more.
fn modules(mut component: Vec<u8>, count: usize) -> Vec<u8> {
    let is_module = |payload: &Payload<'_>| matches!(payload, Payload::ModuleSection { .. });
    let parsed = Parser::new(0).parse_all(&component).map(Result::unwrap);
    let empty = u32::try_from(parsed.filter(is_module).count()).unwrap();
    let mut instances = InstanceSection::new();
    for _ in 0..count {
        instances.instantiate(empty, Vec::<(&str, ModuleArg)>::new());
    }
    ModuleSection(&Module::new()).append_to_component(&mut component);
    instances.append_to_component(&mut component);
    component
}

/// The same module, of which each function that traps makes the first table larger first, until it is refused. Where the
/// table has come to have more than a million elements then, it never ends.
fn growing(module: &[u8]) -> Vec<u8> {
    const MOST: i32 = 1_000_000;
    const STEP: i32 = 10_000;
    const TRAPS: [u8; 3] = [0x00, 0x00, 0x0b];
    let mut made = Module::new();
    let mut bodies = CodeSection::new();
    let mut left = 0;
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload.unwrap();
        match &payload {
            Payload::CodeSectionStart { count, .. } => left = *count,
            Payload::CodeSectionEntry(body) if body.as_bytes() == TRAPS => {
                let mut function = Function::new([]);
                let mut code = function.instructions();
                code.loop_(BlockType::Empty);
                code.ref_null(HeapType::FUNC).i32_const(STEP).table_grow(0);
                code.i32_const(-1).i32_ne().br_if(0).end();
                code.loop_(BlockType::Empty);
                code.table_size(0).i32_const(MOST).i32_gt_u().br_if(0).end();
                code.unreachable().end();
                bodies.function(&function);
                left -= 1;
            }
            Payload::CodeSectionEntry(body) => {
                bodies.raw(body.as_bytes());
                left -= 1;
            }
            other => {
                if let Some((id, range)) = other.as_section() {
                    let data = &module[range];
                    made.section(&RawSection { id, data });
                }
                continue;
            }
        }
        if left == 0 {
            made.section(&bodies);
        }
    }
    made.finish()
}

/// Where a section goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    BeforeMemory,
    InsteadOfMemory,
    AtEnd,
}

/// The same module with one more section.
fn with(module: &[u8], place: Place, added: &impl wasm_encoder::Section) -> Vec<u8> {
    let mut made = Module::new();
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload.unwrap();
        let is_memory = matches!(payload, Payload::MemorySection(_));
        if is_memory && place != Place::AtEnd {
            made.section(added);
        }
        let is_replaced = is_memory && place == Place::InsteadOfMemory;
        if let Some((id, range)) = payload.as_section().filter(|_| !is_replaced) {
            let data = &module[range];
            made.section(&RawSection { id, data });
        }
    }
    if place == Place::AtEnd {
        made.section(added);
    }
    made.finish()
}

/// The interface's text.
fn storage_wit() -> String {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit/storage-0.1.0");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let texts = files.iter().map(|file| std::fs::read_to_string(file).unwrap());
    let (mut package, mut rest) = (String::new(), String::new());
    for text in texts {
        // The one file with the package's name has to come first.
        let part = if text.starts_with("package") {
            &mut package
        } else {
            &mut rest
        };
        part.push_str(&text);
    }
    package + &rest
}

/// A plugin that traps whenever it is called, of which the module is changed first.
fn component(wit: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Vec<u8> {
    component_of(wit, "backend", change)
}

fn component_of(wit: &str, world: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Vec<u8> {
    let mut resolve = Resolve::default();
    let package = resolve.push_source("test.wit", wit).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    let abi = ManglingAndAbi::Legacy(LiftLowerAbi::AsyncCallback);
    let mut module = change(dummy_module(&resolve, world, abi));
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().module(&module).unwrap().encode().unwrap()
}
