//! One connection, from as many servers as the connection string names.
//!
//! Servers are tried in their order, and all addresses of each; a name that is not known, a server that does not answer in
//! its time or has another role than the one asked for does not end the attempt, and where nobody will do the error says
//! of each why. Only where a server refuses the client (a wrong password, say) is no other asked: it would be a second
//! failed login with the same outcome.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::seq::SliceRandom as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions as _, PgConnection, Row as _, ValueRef as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::connection_string::{ConnectionString, Host, Password, TargetSession, TlsMode};
use super::error::{Error, ErrorKind};
use super::guard::Guard;
use super::{passfile, pipe, transport};

/// How long a connection may take where the string sets no end: nobody waits for ever.
const LONGEST: Duration = Duration::from_secs(600);

/// How many statements a connection keeps prepared: each with its text, and a few hundred bytes for each of its columns.
const KEPT: usize = 200;

/// The same where the statements are not trusted.
const KEPT_GUARDED: usize = 64;

/// Where a connection leads.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    host: Host,
    /// None for a Unix socket.
    address: Option<SocketAddr>,
    /// True where TLS is used.
    tls: bool,
}

/// A connection that was made.
pub(crate) struct Established {
    pub(crate) connection: PgConnection,
    pub(crate) route: Route,
    /// The number of the server's process. Behind a pooler it means nothing.
    pub(crate) process: i32,
    /// True where its sessions do not write as they begin.
    pub(crate) read_only: bool,
}

/// Makes connections.
#[derive(Debug)]
pub(crate) struct Connector {
    settings: Arc<ConnectionString>,
    /// Bytes of a message of the server's at most; none where the statements are trusted.
    largest_message: Option<u64>,
}

impl Connector {
    pub(crate) fn new(settings: Arc<ConnectionString>, largest_message: Option<u64>) -> Self {
        Self {
            settings,
            largest_message,
        }
    }

    pub(crate) fn settings(&self) -> &ConnectionString {
        &self.settings
    }

    /// Connects to the first server that will do.
    pub(crate) async fn connect(&self) -> Result<Established, Error> {
        let passes: &[TargetSession] = match self.settings.target {
            TargetSession::PreferStandby => &[TargetSession::Standby, TargetSession::Any],
            TargetSession::Any => &[TargetSession::Any],
            TargetSession::ReadWrite => &[TargetSession::ReadWrite],
            TargetSession::ReadOnly => &[TargetSession::ReadOnly],
            TargetSession::Primary => &[TargetSession::Primary],
            TargetSession::Standby => &[TargetSession::Standby],
        };
        let mut hosts = self.settings.hosts.clone();
        if self.settings.load_balance {
            hosts.shuffle(&mut rand::rng());
        }
        let mut failures = Failures::default();
        for target in passes {
            failures = Failures::default();
            for host in &hosts {
                let addresses = match self.addresses(host).await {
                    Ok(addresses) => addresses,
                    Err(error) => {
                        failures.add(host, None, error);
                        continue;
                    }
                };
                for address in addresses {
                    match self.attempt(host, address, *target).await {
                        Ok(established) => return Ok(established),
                        Err(error) if error.refuses_client() => {
                            failures = Failures::default();
                            failures.add(host, address, error);
                            return Err(failures.into_error(*target));
                        }
                        Err(error) => failures.add(host, address, error),
                    }
                }
            }
        }
        Err(failures.into_error(self.settings.target))
    }

    /// The addresses of a host; none for a Unix socket, which has its folder.
    async fn addresses(&self, host: &Host) -> Result<Vec<Option<SocketAddr>>, Error> {
        if host.is_socket() {
            return Ok(vec![None]);
        }
        if let Some(address) = host.address {
            return Ok(vec![Some(SocketAddr::new(address, host.port))]);
        }
        let found = timeout(
            self.patience(),
            tokio::net::lookup_host((host.name.as_str(), host.port)),
        )
        .await;
        let mut addresses: Vec<_> = match found {
            Ok(Ok(addresses)) => addresses.map(Some).collect(),
            Ok(Err(error)) => {
                return Err(Error::new(
                    ErrorKind::Unreachable,
                    format!("its name cannot be looked up: {error}"),
                ));
            }
            Err(_) => return Err(Error::new(ErrorKind::Unreachable, "looking its name up takes too long")),
        };
        if addresses.is_empty() {
            return Err(Error::new(ErrorKind::Unreachable, "its name has no address"));
        }
        if self.settings.load_balance {
            addresses.shuffle(&mut rand::rng());
        }
        Ok(addresses)
    }

    /// How long one server may take.
    pub(crate) fn patience(&self) -> Duration {
        self.settings.connect_timeout.unwrap_or(LONGEST)
    }

    /// One address, in its time, in the role that is asked for.
    async fn attempt(
        &self,
        host: &Host,
        address: Option<SocketAddr>,
        target: TargetSession,
    ) -> Result<Established, Error> {
        let connecting = async {
            let (mut connection, route) = self.log_in(host, address).await?;
            let server = Server::ask(&mut connection).await?;
            if let Some(problem) = server.unfit(target) {
                return Err(Error::new(ErrorKind::ReadOnly, problem));
            }
            Ok(Established {
                connection,
                route,
                process: server.process,
                read_only: server.read_only,
            })
        };
        let patience = self.patience();
        match timeout(patience, connecting).await {
            // Nothing that a server says so far is large.
            Ok(Err(error)) if error.kind() == ErrorKind::TooLarge && error.code().is_none() => {
                let problem = "no server of Postgres answers there: what it says is none of Postgres' messages";
                Err(Error::new(ErrorKind::Unreachable, problem))
            }
            Ok(outcome) => outcome,
            Err(_) => {
                let problem = format!("it does not answer within {} s", patience.as_secs());
                Err(Error::new(ErrorKind::Unreachable, problem))
            }
        }
    }

    /// Connects as the TLS mode says: those before `require` try a second way where the first is refused.
    async fn log_in(&self, host: &Host, address: Option<SocketAddr>) -> Result<(PgConnection, Route), Error> {
        let route = |tls| Route {
            host: host.clone(),
            address,
            tls,
        };
        // As with libpq there is no TLS within a machine.
        let ways: &[bool] = match self.settings.tls.mode {
            _ if address.is_none() => &[false],
            TlsMode::Disable => &[false],
            TlsMode::Allow => &[false, true],
            TlsMode::Prefer => &[true, false],
            TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => &[true],
        };
        let mut problem = None;
        for tls in ways {
            let route = route(*tls);
            let connected = match self.options(&route).await {
                Ok(options) => options.connect().await.map_err(Error::from).map_err(Error::of_login),
                Err(error) => Err(error),
            };
            match connected {
                Ok(connection) => return Ok((connection, route)),
                // Only what the other way could mend: no TLS, bad TLS, or an entry of pg_hba.conf that wants the other.
                Err(error)
                    if matches!(error.kind(), ErrorKind::Settings)
                        && error.code().is_none_or(|code| code == "28000") =>
                {
                    // What the server says of the client is worth more than that it has no TLS, which was not required.
                    if problem.is_none() || error.code().is_some() {
                        problem = Some(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(problem.unwrap_or_else(|| Error::new(ErrorKind::Unreachable, "there is no way to connect")))
    }

    /// What the library needs to connect over a route, once. With TLS or a guard, the connection is half made already.
    pub(crate) async fn options(&self, route: &Route) -> Result<PgConnectOptions, Error> {
        let settings = &self.settings;
        let host = &route.host;
        let kept = match self.largest_message {
            _ if !settings.prepare_statements => 0,
            Some(_) => KEPT_GUARDED,
            None => KEPT,
        };
        let mut options = PgConnectOptions::new_without_pgpass()
            .port(host.port)
            .username(&settings.user)
            .database(&settings.database)
            .application_name(&settings.application_name)
            .ssl_mode(PgSslMode::Disable)
            // Poolers refuse what they do not know, and numbers come in binary, with all of their digits.
            .extra_float_digits(None)
            .statement_cache_capacity(kept)
            .disable_statement_logging();
        if !settings.server_settings.is_empty() {
            options = options.options(settings.server_settings.iter().map(|(name, value)| (name, value)));
        }
        let from_file = || {
            let file = settings.password_file.as_deref()?;
            passfile::look_up(file, host, &settings.database, &settings.user)
        };
        // An empty one keeps the library from looking for one by itself.
        let password = settings.password.clone().or_else(from_file);
        options = options.password(password.as_ref().map_or("", Password::expose));
        let guard = Guard::new(self.largest_message);
        let is_guarded = self.largest_message.is_some();
        let near = match route.address {
            Some(address) if route.tls => {
                let far = transport::encrypted(address, &host.name, &settings.tls).await?;
                pipe::join(far, guard)?
            }
            Some(address) if is_guarded => pipe::join(transport::plain(address).await?, guard)?,
            Some(address) => return Ok(options.host(&address.ip().to_string())),
            None => {
                let folder = match host.name.strip_prefix('@') {
                    Some(name) => format!("\0{name}"),
                    None => host.name.clone(),
                };
                if !is_guarded {
                    return Ok(options.socket(folder));
                }
                let far = UnixStream::connect(format!("{folder}/.s.PGSQL.{}", host.port)).await?;
                pipe::join(far, guard)?
            }
        };
        Ok(options.socket(near).port(pipe::PORT))
    }
}

/// What a server says of itself.
struct Server {
    process: i32,
    standby: bool,
    read_only: bool,
}

impl Server {
    async fn ask(connection: &mut PgConnection) -> Result<Self, Error> {
        let row = sqlx::raw_sql(
            "SELECT pg_catalog.pg_backend_pid()::text, pg_catalog.pg_is_in_recovery()::text, \
             pg_catalog.current_setting('default_transaction_read_only')",
        )
        .fetch_one(connection)
        .await?;
        let text = |index: usize| -> Result<String, Error> {
            let value = row.try_get_raw(index)?;
            if value.is_null() {
                return Ok(String::new());
            }
            let text = value
                .as_str()
                .map_err(|error| Error::from(sqlx::Error::Decode(error)))?;
            Ok(text.to_owned())
        };
        let standby = text(1)? == "true";
        Ok(Self {
            process: text(0)?.parse().unwrap_or_default(),
            standby,
            read_only: standby || text(2)? == "on",
        })
    }

    /// Why this server is not the one that is looked for.
    fn unfit(&self, target: TargetSession) -> Option<&'static str> {
        match target {
            TargetSession::ReadWrite if self.read_only => {
                Some("it takes no writes, and target_session_attrs is read-write")
            }
            TargetSession::ReadOnly if !self.read_only => {
                Some("it takes writes, and target_session_attrs is read-only")
            }
            TargetSession::Primary if self.standby => Some("it is a standby, and target_session_attrs is primary"),
            TargetSession::Standby if !self.standby => Some("it is no standby, and target_session_attrs is standby"),
            _ => None,
        }
    }
}

/// Why no server would do, one by one.
#[derive(Default)]
struct Failures(Vec<(String, Error)>);

impl Failures {
    fn add(&mut self, host: &Host, address: Option<SocketAddr>, error: Error) {
        let place = match address {
            Some(address) if host.address.is_none() && address.ip().to_string() != host.name => {
                format!("{host} ({})", address.ip())
            }
            _ => host.to_string(),
        };
        self.0.push((place, error));
    }

    fn into_error(mut self, target: TargetSession) -> Error {
        let text = |(place, error): &(String, Error)| format!("{place}: {error}");
        if self.0.len() == 1
            && let Some((place, mut error)) = self.0.pop()
        {
            error = error.at(&place);
            return error;
        }
        let kinds: Vec<_> = self.0.iter().map(|(_, error)| error.kind()).collect();
        let all = |kind| kinds.iter().all(|other| *other == kind);
        let any = |kind| kinds.contains(&kind);
        let kind = if all(ErrorKind::ReadOnly) || all(ErrorKind::Settings) {
            kinds.first().copied().unwrap_or(ErrorKind::Unreachable)
        } else if any(ErrorKind::FailingOver) || (any(ErrorKind::ReadOnly) && target != TargetSession::Any) {
            // One has lost its role, and nobody has taken it over yet.
            ErrorKind::FailingOver
        } else if any(ErrorKind::OutOfConnections) {
            ErrorKind::OutOfConnections
        } else {
            ErrorKind::Unreachable
        };
        let each: Vec<_> = self.0.iter().map(text).collect();
        Error::new(kind, format!("no server will do: {}", each.join("; ")))
    }
}
