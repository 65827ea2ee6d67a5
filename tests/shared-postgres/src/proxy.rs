//! A network between a host and Postgres that can be cut, silent, slow, or stopped at a point of what is said over it.
//!
//! It reads Postgres' messages, which is all that naming a point takes: the texts of statements when they are prepared and
//! run, and what the server completes. Connections are without TLS.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;

/// A moment in the life of a write or a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The statement that writes changes is on its way to the server.
    BeforeWrite,
    /// The server has carried it out, and its answer is on its way. Unless it is in a transaction, it is committed.
    AfterWrite,
    /// The COMMIT of a transaction with such a statement is on its way to the server: where something is removed, or a guess
    /// was wrong.
    BeforeCommit,
    /// It is committed, and the answer is on its way.
    AfterCommit,
    /// The statement that takes a lease is on its way to the server.
    BeforeLease,
    /// The lease is taken, and the answer is on its way.
    AfterLease,
}

impl Point {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::BeforeWrite,
        Self::AfterWrite,
        Self::BeforeCommit,
        Self::AfterCommit,
        Self::BeforeLease,
        Self::AfterLease,
    ];
}

/// What becomes of what is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Pass,
    /// Each message waits so long, in both directions.
    Slow(Duration),
    /// Nothing gets through, and nobody is told.
    Silent,
    /// Whoever connects is turned away.
    Cut,
}

/// A proxy before one server.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

struct Shared {
    upstream: Mutex<u16>,
    mode: watch::Sender<Mode>,
    /// The point that is waited for, and whom to tell.
    awaited: Mutex<Option<(Point, oneshot::Sender<()>)>>,
    connections: Mutex<Vec<AbortHandle>>,
}

impl Proxy {
    /// A proxy before the server at this port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// If there is no port for it.
    pub async fn start(upstream: u16) -> Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            mode: watch::channel(Mode::Pass).0,
            awaited: Mutex::default(),
            connections: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Ok(Self {
            port,
            shared,
            accepting,
        })
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends all connections, and turns away whoever connects.
    pub fn cut(&self) {
        self.shared.mode.send_replace(Mode::Cut);
        self.end_connections();
    }

    /// Lets nothing through, without a word: what a lost machine or a dropped route looks like.
    pub fn silence(&self) {
        self.shared.mode.send_replace(Mode::Silent);
    }

    /// Delays each message.
    pub fn slow(&self, delay: Duration) {
        self.shared.mode.send_replace(Mode::Slow(delay));
    }

    /// Works as a network should. What was held back is let go.
    pub fn heal(&self) {
        self.shared.mode.send_replace(Mode::Pass);
    }

    /// Ends all connections.
    pub fn end_connections(&self) {
        for connection in self.shared.connections.lock().drain(..) {
            connection.abort();
        }
    }

    /// Waits until something comes to the point, on any connection, and holds it there until that connection is ended.
    ///
    /// # Errors
    ///
    /// If another point is asked for meanwhile.
    pub async fn hold_at(&self, point: Point) -> Result<()> {
        let (reached, at_point) = oneshot::channel();
        *self.shared.awaited.lock() = Some((point, reached));
        Ok(at_point.await?)
    }

    /// Stands before another server from now on.
    pub fn aim(&self, upstream: u16) {
        *self.shared.upstream.lock() = upstream;
        self.end_connections();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.end_connections();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        if *shared.mode.borrow() == Mode::Cut {
            continue;
        }
        let connection = tokio::spawn(carry(client, Arc::clone(&shared))).abort_handle();
        let mut connections = shared.connections.lock();
        connections.retain(|connection| !connection.is_finished());
        connections.push(connection);
    }
}

/// Carries a connection until either end has closed it.
async fn carry(client: TcpStream, shared: Arc<Shared>) {
    let upstream = *shared.upstream.lock();
    let Ok(server) = TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, upstream)).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let said = Mutex::new(Said::default());
    tokio::select! {
        _ = forward(from_client, to_server, &shared, &said, Direction::ToServer) => {}
        _ = forward(from_server, to_client, &shared, &said, Direction::ToClient) => {}
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

/// What is known of a connection.
#[derive(Default)]
struct Said {
    /// The texts of prepared statements.
    statements: HashMap<Vec<u8>, Statement>,
    /// What the server is about to answer.
    pending: Option<Statement>,
    /// True where changes were written in the transaction that is open.
    has_written: bool,
    started: bool,
}

/// A statement that matters here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Statement {
    Write,
    Begin,
    Commit,
    Lease,
    Other,
}

impl Statement {
    fn of(text: &[u8]) -> Self {
        let has = |part: &[u8]| text.windows(part.len()).any(|window| window == part);
        if has(b"pomerium.host_write_") {
            Self::Write
        } else if has(b"INSERT INTO pomerium.leases") {
            Self::Lease
        } else if text.starts_with(b"BEGIN") {
            Self::Begin
        } else if text.starts_with(b"COMMIT") {
            Self::Commit
        } else {
            Self::Other
        }
    }
}

impl Said {
    /// The point that a message is at.
    fn point(&mut self, direction: Direction, message: &[u8]) -> Option<Point> {
        let (kind, body) = (message.first()?, message.get(5..)?);
        let until_zero = |bytes: &[u8]| bytes.split(|byte| *byte == 0).next().map(<[u8]>::to_vec);
        match (direction, kind) {
            // Parse: the statement's name, its text.
            (Direction::ToServer, b'P') => {
                let name = until_zero(body)?;
                let text = until_zero(body.get(name.len() + 1..)?)?;
                self.statements.insert(name, Statement::of(&text));
                None
            }
            // Bind: the portal's name, the statement's.
            (Direction::ToServer, b'B') => {
                let portal = until_zero(body)?;
                let name = until_zero(body.get(portal.len() + 1..)?)?;
                let statement = self.statements.get(&name).copied()?;
                self.pending = Some(statement);
                match statement {
                    Statement::Write => Some(Point::BeforeWrite),
                    Statement::Lease => Some(Point::BeforeLease),
                    Statement::Begin | Statement::Commit | Statement::Other => None,
                }
            }
            // Query: a text.
            (Direction::ToServer, b'Q') => {
                let statement = Statement::of(body);
                self.pending = Some(statement);
                if statement == Statement::Begin {
                    self.has_written = false;
                }
                (statement == Statement::Commit && self.has_written).then_some(Point::BeforeCommit)
            }
            // CommandComplete.
            (Direction::ToClient, b'C') => match self.pending.take()? {
                Statement::Write => {
                    self.has_written = true;
                    Some(Point::AfterWrite)
                }
                Statement::Lease => Some(Point::AfterLease),
                Statement::Commit => std::mem::take(&mut self.has_written).then_some(Point::AfterCommit),
                Statement::Begin | Statement::Other => None,
            },
            _ => None,
        }
    }
}

async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    shared: &Shared,
    said: &Mutex<Said>,
    direction: Direction,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        if from.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        loop {
            let is_start = direction == Direction::ToServer && !said.lock().started;
            let Some(message) = take_message(&mut buffer, is_start) else {
                break;
            };
            let point = if is_start {
                said.lock().started = true;
                None
            } else {
                said.lock().point(direction, &message)
            };
            if point.is_some_and(|point| shared.reached(point)) {
                std::future::pending::<()>().await;
            }
            shared.pass().await;
            to.write_all(&message).await?;
        }
    }
}

/// Takes a whole message. The first one of a client has no kind.
fn take_message(buffer: &mut Vec<u8>, is_start: bool) -> Option<Vec<u8>> {
    let begin = usize::from(!is_start);
    let length: [u8; 4] = buffer.get(begin..begin + 4)?.try_into().ok()?;
    let end = begin + usize::try_from(u32::from_be_bytes(length)).ok()?;
    if buffer.len() < end {
        return None;
    }
    let rest = buffer.split_off(end);
    Some(std::mem::replace(buffer, rest))
}

impl Shared {
    /// True where this is the point that somebody waits for, who is then told.
    fn reached(&self, point: Point) -> bool {
        let mut awaited = self.awaited.lock();
        if awaited.as_ref().is_none_or(|(wanted, _)| *wanted != point) {
            return false;
        }
        awaited.take().is_some_and(|(_, reached)| reached.send(()).is_ok())
    }

    /// Waits until a message may go on.
    async fn pass(&self) {
        let mut mode = self.mode.subscribe();
        let delay = match mode
            .wait_for(|mode| !matches!(mode, Mode::Silent | Mode::Cut))
            .await
            .as_deref()
        {
            Ok(Mode::Slow(delay)) => Some(*delay),
            _ => None,
        };
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
    }
}
