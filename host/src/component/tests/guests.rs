//! Components without a toolchain: a world's WIT gives one that exports what it should and traps, or never returns,
//! whenever it is called.

use wit_component::{ComponentEncoder, StringEncoding, dummy_module, embed_component_metadata};
use wit_parser::{LiftLowerAbi, ManglingAndAbi, Resolve};

/// What a component does when it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behaviour {
    /// It traps.
    Trap,
    /// It computes for ever.
    Loop,
    /// It lets go of its thread and asks to be called again, for ever.
    Yield,
}

/// The WIT package of this version of the interface.
pub(super) fn storage_wit() -> String {
    [
        include_str!("../../../../wit/storage-0.1.0/types.wit"),
        include_str!("../../../../wit/storage-0.1.0/host.wit"),
        include_str!("../../../../wit/storage-0.1.0/store.wit"),
        include_str!("../../../../wit/storage-0.1.0/sql.wit"),
        include_str!("../../../../wit/storage-0.1.0/world.wit"),
    ]
    .concat()
}

/// A storage plugin.
pub(super) fn storage(behaviour: Behaviour) -> Vec<u8> {
    component(&storage_wit(), "backend", behaviour)
}

/// A component of a world in a WIT package.
pub(super) fn component(wit: &str, world: &str, behaviour: Behaviour) -> Vec<u8> {
    let mut resolve = Resolve::default();
    let package = resolve.push_source("test.wit", wit).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    let abi = ManglingAndAbi::Legacy(LiftLowerAbi::AsyncCallback);
    let mut module = dummy_module(&resolve, world, abi);
    if behaviour != Behaviour::Trap {
        module = replaced(&module, behaviour);
    }
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().module(&module).unwrap().encode().unwrap()
}

/// The same module with another body in each function that traps.
fn replaced(module: &[u8], behaviour: Behaviour) -> Vec<u8> {
    /// What an async function returns to be called again.
    const YIELD: i32 = 1;

    let mut made = wasm_encoder::Module::new();
    let mut bodies = wasm_encoder::CodeSection::new();
    let mut remaining = 0;
    for payload in wasmparser::Parser::new(0).parse_all(module) {
        let payload = payload.unwrap();
        match &payload {
            wasmparser::Payload::CodeSectionStart { count, .. } => remaining = *count,
            wasmparser::Payload::CodeSectionEntry(body) => {
                remaining -= 1;
                let traps = body.as_bytes() == [0x00, 0x00, 0x0b];
                let mut function = wasm_encoder::Function::new([]);
                if traps && behaviour == Behaviour::Loop {
                    let mut code = function.instructions();
                    code.loop_(wasm_encoder::BlockType::Empty).br(0).end().unreachable();
                } else if traps {
                    function.instructions().i32_const(YIELD).return_();
                }
                function.instructions().end();
                bodies.function(&function);
                if remaining == 0 {
                    made.section(&bodies);
                }
            }
            other => {
                if let Some((id, range)) = other.as_section() {
                    let data = &module[range];
                    made.section(&wasm_encoder::RawSection { id, data });
                }
            }
        }
    }
    made.finish()
}
