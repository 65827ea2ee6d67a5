//! How much an instance may have open at once: files, directories, sockets, their streams and HTTP requests.
//!
//! Each of them may hold a descriptor of the process, which has few, and needs them for its clients. They are counted where one
//! more is opened, by looking through the instance's table of handles: what a plugin leaks is in it too.

use wasmtime::component::{Linker, Resource, ResourceTable};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemView as _};
use wasmtime_wasi::p2::bindings::filesystem::types::{
    DescriptorFlags, DirectoryEntryStream, ErrorCode as FileError, HostDescriptor as _, OpenFlags, PathFlags,
};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode as SocketError, IpAddressFamily};
use wasmtime_wasi::p2::bindings::sockets::tcp_create_socket::Host as _;
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, TcpSocket, UdpSocket};
use wasmtime_wasi::sockets::WasiSocketsView as _;

use super::Refused;
use crate::component::state::State;

/// How many of an instance's handles may hold something open.
pub(super) fn count(table: &mut ResourceTable) -> usize {
    let entries = table.iter_mut();
    entries
        .filter(|entry| {
            entry.is::<Descriptor>()
                || entry.is::<DirectoryEntryStream>()
                || entry.is::<TcpSocket>()
                || entry.is::<UdpSocket>()
                || entry.is::<DynInputStream>()
                || entry.is::<DynOutputStream>()
        })
        .count()
}

impl State {
    /// Whether one more may be opened; if not, it is told.
    fn has_room(&mut self, what: &str) -> bool {
        let open = count(&mut self.table).saturating_add(self.http.under_way());
        self.granted.has_room(open, what)
    }
}

impl super::Granted {
    /// Whether one more may be opened where so many are open; if not, it is told.
    pub(super) fn has_room(&self, open: usize, what: &str) -> bool {
        let most = self.grants.most_open;
        if open < most {
            return true;
        }
        let asked = format!("one more {what} than the {most} things that it may have open");
        self.refusals.refuse(Refused::Open, &asked, || {
            "a higher DATABROKER_PLUGIN_OPEN, where it does not merely leak them".to_owned()
        });
        false
    }
}

/// Puts what is counted and told here in the place of WASI's own.
pub(super) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.instance("wasi:sockets/tcp-create-socket@0.2.12")?.func_wrap(
        "create-tcp-socket",
        |mut store, (family,): (IpAddressFamily,)| {
            let state = store.data_mut();
            if !state.has_room("socket") {
                return Ok((Err(SocketError::NewSocketLimit),));
            }
            match state.sockets().create_tcp_socket(family) {
                Ok(socket) => Ok((Ok(socket),)),
                Err(error) => Ok((Err(error.downcast()?),)),
            }
        },
    )?;
    linker.instance("wasi:sockets/udp-create-socket@0.2.12")?.func_wrap(
        "create-udp-socket",
        |mut store, (_family,): (IpAddressFamily,)| -> wasmtime::Result<(Result<Resource<UdpSocket>, SocketError>,)> {
            let refusals = &store.data_mut().granted.refusals;
            refusals.refuse(Refused::Socket, "a socket for UDP", || {
                "none: a plugin only opens connections, by TCP".to_owned()
            });
            Ok((Err(SocketError::AccessDenied),))
        },
    )?;
    // A listing is held whole until the plugin has read it.
    linker.instance("wasi:filesystem/types@0.2.12")?.func_wrap_async(
        "[method]descriptor.read-directory",
        |mut store, (directory,): (Resource<Descriptor>,)| {
            Box::new(async move {
                let state = store.data_mut();
                if !state.has_room("listing of a directory") {
                    return Ok((Err(FileError::InsufficientMemory),));
                }
                match state.filesystem().read_directory(directory).await {
                    Ok(listing) => Ok((Ok(listing),)),
                    Err(error) => Ok((Err(error.downcast()?),)),
                }
            })
        },
    )?;
    type OpenAt = (Resource<Descriptor>, PathFlags, String, OpenFlags, DescriptorFlags);
    linker.instance("wasi:filesystem/types@0.2.12")?.func_wrap_async(
        "[method]descriptor.open-at",
        |mut store, (directory, path_flags, path, open_flags, flags): OpenAt| {
            Box::new(async move {
                let state = store.data_mut();
                if !state.has_room("file") {
                    return Ok((Err(FileError::InsufficientMemory),));
                }
                let opened = state
                    .filesystem()
                    .open_at(directory, path_flags, path.clone(), open_flags, flags)
                    .await;
                let error = match opened {
                    Ok(file) => return Ok((Ok(file),)),
                    Err(error) => error.downcast()?,
                };
                if matches!(error, FileError::NotPermitted | FileError::ReadOnly) {
                    let remedy = "DATABROKER_PLUGIN_DIRECTORIES=/path/in/plugin=/path/on/this/machine, with :rw where it \
                                  may write";
                    let refusals = &state.granted.refusals;
                    refusals.refuse(Refused::Directory, &path, || remedy.to_owned());
                }
                Ok((Err(error),))
            })
        },
    )
}
