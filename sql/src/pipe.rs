//! A pipe within this process, to hand to the library that speaks Postgres' protocol.
//!
//! The library opens its own connections and has no way to be given one. So where a connection has to be made here (for TLS), or
//! looked after (by a `guard`), it is handed the near end of a pipe: a Unix socket that takes one connection, from this process,
//! and is then gone. The price is one copy of each byte within the process, and two more descriptors.

use std::convert::Infallible;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::error::Error;
use super::guard::Guard;

/// The port in a pipe's name.
pub(crate) const PORT: u16 = 5432;

/// How much is copied at once, in each direction.
const BUFFER: usize = 64 << 10;

/// How long the near end waits for its connection: far longer than connecting within a process takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes a socket that takes one connection of this process and joins it to the stream from a server, of which it passes on what the
/// guard lets by. Gives its folder.
///
/// It has a name that nobody can guess in Linux's abstract namespace, so that no folder has to be writable.
pub(crate) fn join(far: impl AsyncRead + AsyncWrite + Send + 'static, guard: Guard) -> Result<String, Error> {
    let folder = format!("\0databroker-sql-{:032x}", rand::random::<u128>());
    // The library appends this to a folder and a port.
    let listener = UnixListener::bind(format!("{folder}/.s.PGSQL.{PORT}"))?;
    tokio::spawn(async move {
        if let Ok(Ok(near)) = tokio::time::timeout(PATIENCE, accept(listener)).await {
            carry(near, far, guard).await;
        }
    });
    Ok(folder)
}

/// Takes a connection of this process.
async fn accept(listener: UnixListener) -> std::io::Result<UnixStream> {
    loop {
        let (near, _) = listener.accept().await?;
        let process = near.peer_cred()?.pid().and_then(|process| u32::try_from(process).ok());
        if process == Some(std::process::id()) {
            return Ok(near);
        }
    }
}

/// Carries bytes both ways until the client closes its end, or the server takes no more. Either end may break at any time, which
/// the other end then sees.
///
/// Where the guard refuses, the server's end stays open and unread until the client has closed its own: meanwhile the server's
/// process is ended by its number, which is nobody else's for as long as the connection is there.
async fn carry(near: UnixStream, far: impl AsyncRead + AsyncWrite, guard: Guard) {
    let (mut from_client, mut to_client) = near.into_split();
    let (mut from_server, mut to_server) = tokio::io::split(far);
    let questions = async {
        drop(pass(&mut from_client, &mut to_server).await);
        drop(to_server.shutdown().await);
    };
    let answers = async {
        drop(pass_guarded(&mut from_server, &mut to_client, guard).await);
        drop(to_client.shutdown().await);
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        () = questions => {}
        never = answers => match never {},
    }
}

/// Passes on all that comes.
async fn pass(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(buffer.get(..read).unwrap_or_default()).await?;
        // TLS may keep the end of what it was given.
        to.flush().await?;
    }
}

/// Passes on what the guard lets by, and what it says in place of the rest.
async fn pass_guarded(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut guard: Guard,
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    // Bytes at the front that were not passed on yet: fewer than the head of a message, or a description that is not whole.
    let mut held = 0;
    loop {
        if held == buffer.len() {
            buffer.resize(held * 2, 0);
        }
        let read = from.read(buffer.get_mut(held..).unwrap_or_default()).await?;
        if read == 0 {
            return Ok(());
        }
        let there = held + read;
        let (clear, refused) = guard.follow(buffer.get(..there).unwrap_or_default());
        to.write_all(buffer.get(..clear).unwrap_or_default()).await?;
        if let Some(refused) = refused {
            return to.write_all(&refused.error()).await;
        }
        buffer.copy_within(clear..there, 0);
        held = there - clear;
        if held < BUFFER && buffer.len() > BUFFER {
            buffer.truncate(BUFFER);
            buffer.shrink_to_fit();
        }
    }
}
