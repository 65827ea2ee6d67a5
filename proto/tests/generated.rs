//! The generated code and descriptors are committed, so that building needs no protobuf compiler. This test makes them
//! anew, writes what has changed, removes what is no longer made, and fails if there was anything to do.
#![allow(clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{FileDescriptorProto, FileDescriptorSet, OneofDescriptorProto};

#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("src/generated");
    let fresh = tempfile::tempdir().expect("a temporary folder");

    let protocol = compile(root, &["protocol"]);
    let all = compile(root, &["protocol", "records"]);
    let descriptors = [
        ("protocol.binpb", comments_only(protocol.clone())),
        ("all.binpb", without_source(all)),
    ];
    for (name, set) in descriptors {
        std::fs::write(fresh.path().join(name), set.encode_to_vec()).expect("write");
    }
    generate(protocol, fresh.path());

    let (old, new) = (files(&committed), files(fresh.path()));
    let mut stale = Vec::new();
    for (name, content) in &new {
        if old.get(name) != Some(content) {
            std::fs::write(committed.join(name), content).expect("write");
            stale.push(name);
        }
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        std::fs::remove_file(committed.join(name)).expect("remove");
        stale.push(name);
    }
    assert!(
        stale.is_empty(),
        "these files were out of date and have been made anew; commit them: {stale:?}"
    );
}

/// The files of a folder by name.
fn files(folder: &Path) -> BTreeMap<OsString, Vec<u8>> {
    std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry"))
        .map(|entry| (entry.file_name(), std::fs::read(entry.path()).expect("read")))
        .collect()
}

/// Compiles all .proto files of these folders, with their comments and with what they import.
fn compile(root: &Path, folders: &[&str]) -> FileDescriptorSet {
    let mut files: Vec<PathBuf> = folders
        .iter()
        .flat_map(|folder| std::fs::read_dir(root.join(folder)).expect("a folder of .proto files"))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "proto"))
        .collect();
    files.sort();
    // The protocol's files go by Pomerium's names for them. Those of the records keep the folder in theirs, so that an
    // operator's own descriptors can have a `user.proto` too.
    let includes = [root.join("protocol"), root.to_owned()];
    let mut compiler = protox::Compiler::new(includes).expect("include folders");
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(files).unwrap_or_else(|error| panic!("{error:?}"));
    compiler.file_descriptor_set()
}

/// Keeps the comments, which reflection can show, and drops the positions of everything that has none.
fn comments_only(mut set: FileDescriptorSet) -> FileDescriptorSet {
    for info in set.file.iter_mut().filter_map(|file| file.source_code_info.as_mut()) {
        info.location.retain(|location| location.leading_comments.is_some());
    }
    set
}

/// Drops comments and positions: nothing that looks into data needs them.
fn without_source(mut set: FileDescriptorSet) -> FileDescriptorSet {
    for file in &mut set.file {
        file.source_code_info = None;
    }
    set
}

/// Generates messages and clients into `databroker.rs` and `registry.rs`, the servers into files of their own, in which
/// the messages of the Sync streams may be encoded already.
fn generate(protocol: FileDescriptorSet, out: &Path) {
    let mut protocol = protocol;
    protocol.file.iter_mut().for_each(keep_record_data_opaque);

    tonic_prost_build::configure()
        .build_server(false)
        .bytes(".")
        .out_dir(out)
        .compile_fds(protocol.clone())
        .expect("generate messages and clients");

    let servers = tempfile::tempdir().expect("a temporary folder");
    tonic_prost_build::configure()
        .build_client(false)
        .extern_path(".databroker", "crate::databroker")
        .extern_path(".databroker.SyncResponse", "crate::SyncMessage")
        .extern_path(".databroker.SyncLatestResponse", "crate::SyncLatestMessage")
        .extern_path(".registry", "crate::registry")
        .out_dir(servers.path())
        .compile_fds(protocol)
        .expect("generate servers");
    for package in ["databroker", "registry"] {
        let from = servers.path().join(format!("{package}.rs"));
        std::fs::copy(from, out.join(format!("{package}_server.rs"))).expect("copy");
    }
}

/// Makes `databroker.Record.data` optional bytes in the generated code. On the wire a message and its bytes are the same,
/// and this way the data passes through the server without being decoded, in shared memory, byte for byte.
fn keep_record_data_opaque(file: &mut FileDescriptorProto) {
    if file.package() != "databroker" {
        return;
    }
    for message in file
        .message_type
        .iter_mut()
        .filter(|message| message.name() == "Record")
    {
        for field in message.field.iter_mut().filter(|field| field.name() == "data") {
            field.set_type(Type::Bytes);
            field.set_label(Label::Optional);
            field.type_name = None;
            field.proto3_optional = Some(true);
            field.oneof_index = Some(i32::try_from(message.oneof_decl.len()).expect("small"));
            message.oneof_decl.push(OneofDescriptorProto {
                name: Some("_data".to_owned()),
                options: None,
            });
        }
    }
}
