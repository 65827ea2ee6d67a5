//! A socket that listens where a setting says, and takes connections come what may.
//!
//! Accepting fails where the process has run out of file descriptors. That is waited out and told, with the remedy: a
//! loop without a pause would keep a processor busy and say nothing.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream, lookup_host};

use crate::address::Address;
use crate::telemetry::seldom::Seldom;

/// The kernel's queue of connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// How long accepting pauses after an error: the first time, and at most.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How often such an error is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub struct ListenError {
    /// The setting that names the address.
    pub setting: &'static str,
    /// The address as it is set.
    pub address: String,
    /// What the operating system says.
    pub error: io::Error,
}

impl fmt::Display for ListenError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            setting,
            address,
            error,
        } = self;
        write!(formatter, "{setting}: cannot listen on {address}: ")?;
        match error.kind() {
            io::ErrorKind::AddrInUse => write!(
                formatter,
                "another process uses it, which may be another databroker-host: stop that one or set another {setting}"
            ),
            io::ErrorKind::PermissionDenied => write!(
                formatter,
                "not permitted: ports below 1024 need CAP_NET_BIND_SERVICE; set another {setting} or grant it"
            ),
            io::ErrorKind::AddrNotAvailable => {
                write!(
                    formatter,
                    "this machine does not have the address: set another {setting}"
                )
            }
            io::ErrorKind::HostUnreachable => write!(
                formatter,
                "the name of its host leads nowhere ({error}): write an address of this machine, or none for all of them"
            ),
            _ => write!(formatter, "{error}"),
        }
    }
}

/// Listens on an address: without a host on all addresses of this machine, IPv6 and IPv4 alike. The setting is the one
/// that an error tells the operator to change.
///
/// # Errors
///
/// [`ListenError`].
pub async fn listen(address: &Address, setting: &'static str) -> Result<TcpListener, ListenError> {
    let listened = match address.host() {
        "" => listen_everywhere(address.port()),
        host => match lookup_host((host, address.port())).await {
            Ok(found) => listen_on_any(found),
            Err(error) => Err(io::Error::new(io::ErrorKind::HostUnreachable, error)),
        },
    };
    listened.map_err(|error| ListenError {
        setting,
        address: address.to_string(),
        error,
    })
}

/// Accepts a connection, however long it takes. The errors are those of this listener, to tell them seldom.
pub async fn accept(listener: &TcpListener, errors: &mut Seldom) -> (TcpStream, SocketAddr) {
    let mut pause = SHORTEST_PAUSE;
    loop {
        let error = match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => error,
        };
        // That one connection was gone before it was accepted.
        if matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
        ) {
            continue;
        }
        if let Some(untold) = errors.turn(Instant::now(), LOG_INTERVAL) {
            tracing::error!(
                %error,
                untold,
                "cannot accept connections, and goes on trying: where too many files are open, raise the limit \
                 (LimitNOFILE of a systemd unit, ulimit -n of a shell)"
            );
        }
        tokio::time::sleep(pause).await;
        pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
    }
}

fn listen_everywhere(port: u16) -> io::Result<TcpListener> {
    let both = bind(SocketAddr::from(([0; 16], port)));
    match both {
        // A kernel without IPv6.
        Err(error) if error.kind() != io::ErrorKind::AddrInUse && error.kind() != io::ErrorKind::PermissionDenied => {
            bind(SocketAddr::from(([0; 4], port)))
        }
        bound => bound,
    }
}

fn listen_on_any(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpListener> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match bind(address) {
            // Where another process has one of the addresses, the next one would be a second databroker beside it.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // A restart does not wait for the connections of the process before to be forgotten.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[tokio::test]
    async fn an_address_that_is_taken_is_not_passed_over() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let listener = TcpListener::bind(taken).await.unwrap();
        let free = SocketAddr::from(([127, 0, 0, 2], taken.port()));
        let refused = listen_on_any([taken, free].into_iter()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        // One that this machine does not have is.
        let foreign = SocketAddr::from(([192, 0, 2, 1], 0));
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        assert!(listen_on_any([foreign, any].into_iter()).is_ok());
        drop(listener);
    }
}
