//! `wasi:sockets/ip-name-lookup`, in the place of WASI's own, which asks for any name or for none.

use std::net::IpAddr;
use std::sync::Arc;
use std::vec;

use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress};
use wasmtime_wasi::p2::{DynPollable, Network as Handle, Pollable, subscribe};
use wasmtime_wasi::runtime::{AbortOnDropJoinHandle, spawn};

use super::network::NoAddress;
use crate::component::state::State;

/// The interface's name, of the version in which WASI's own is linked: only the same name is replaced.
const INTERFACE: &str = "wasi:sockets/ip-name-lookup@0.2.12";

type Answer = Result<vec::IntoIter<IpAddr>, ErrorCode>;

/// A name that is being looked up, or what came of it.
enum LookUp {
    Pending(AbortOnDropJoinHandle<Answer>),
    Done(Answer),
}

#[async_trait]
impl Pollable for LookUp {
    async fn ready(&mut self) {
        if let Self::Pending(answer) = self {
            *self = Self::Done(answer.await);
        }
    }
}

impl LookUp {
    fn next(&mut self) -> Result<Option<IpAddr>, ErrorCode> {
        if let Self::Pending(answer) = self
            && answer.is_finished()
        {
            // It is there already, so that it needs nobody to be woken.
            if let Some(answer) = futures::FutureExt::now_or_never(answer) {
                *self = Self::Done(answer);
            }
        }
        match self {
            Self::Pending(_) => Err(ErrorCode::WouldBlock),
            Self::Done(Ok(addresses)) => Ok(addresses.next()),
            Self::Done(Err(error)) => Err(*error),
        }
    }
}

/// Links it.
pub(super) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut interface = linker.instance(INTERFACE)?;
    interface.resource(
        "resolve-address-stream",
        ResourceType::host::<LookUp>(),
        |mut store, handle| {
            let look_up = Resource::<LookUp>::new_own(handle);
            store.data_mut().table.delete(look_up)?;
            Ok(())
        },
    )?;
    interface.func_wrap(
        "resolve-addresses",
        |mut store, (handle, name): (Resource<Handle>, String)| {
            let state = store.data_mut();
            state.table.get(&handle)?;
            let network = Arc::clone(&state.network);
            let look_up = spawn(async move {
                match network.look_up(&name).await {
                    Ok(addresses) => Ok(addresses.into_iter()),
                    Err(NoAddress::Denied) => Err(ErrorCode::AccessDenied),
                    Err(NoAddress::Malformed) => Err(ErrorCode::InvalidArgument),
                    Err(NoAddress::Unresolvable) => Err(ErrorCode::NameUnresolvable),
                }
            });
            let look_up = state.table.push(LookUp::Pending(look_up))?;
            Ok((Ok::<_, ErrorCode>(look_up),))
        },
    )?;
    interface.func_wrap(
        "[method]resolve-address-stream.resolve-next-address",
        |mut store, (look_up,): (Resource<LookUp>,)| {
            let next = store.data_mut().table.get_mut(&look_up)?.next();
            Ok((next.map(|address| address.map(IpAddress::from)),))
        },
    )?;
    interface.func_wrap(
        "[method]resolve-address-stream.subscribe",
        |mut store, (look_up,): (Resource<LookUp>,)| -> wasmtime::Result<(Resource<DynPollable>,)> {
            Ok((subscribe(&mut store.data_mut().table, look_up)?,))
        },
    )
}
