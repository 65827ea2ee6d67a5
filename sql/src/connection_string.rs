//! What a connection string means: whom to connect to, as whom, how safely, and how large a pool.
//!
//! It is read once, at the start, and all of it: every name is known or refused, every value is in range, and what is said
//! twice or in contradiction is told. Files that it names are read by the connection and not here, but for their being
//! there. The environment variables of libpq stand in for what the string leaves out, as they do for every other client.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::keywords::{self, KEYWORDS, Treatment};
use super::{duration, syntax};

/// How long one address may take to answer where the string does not say.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The port of Postgres.
const PORT: u16 = 5432;

/// Folders in which Postgres' Unix socket usually is.
const SOCKET_FOLDERS: &[&str] = &["/var/run/postgresql", "/tmp"];

/// Why a connection string cannot be used. No message holds the string or a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionStringError {
    /// It is not well-formed.
    #[error("the connection string is malformed: {0}")]
    Malformed(String),
    /// A name in it is not known, and much like one that is.
    #[error("the connection string has {name:?}, which is no setting of a connection; did you mean {nearest:?}?")]
    Misspelt {
        /// The name.
        name: String,
        /// The known name.
        nearest: &'static str,
    },
    /// A name in it is like none that is known. It is not shown: it may be the rest of a password.
    #[error(
        "the connection string has {}a name that is no setting of a connection: look it up, or where it is part of a password, put \
         that in single quotes, or into a URL percent-encoded",
        After(.after)
    )]
    Unknown {
        /// The known name that stands before it, if one does.
        after: Option<&'static str>,
    },
    /// A setting that Postgres' own library takes is not supported here.
    #[error("the connection string has {name}, which is not supported: {advice}")]
    Unsupported {
        /// The setting's name, with its value where only that is not supported.
        name: String,
        /// What to do instead.
        advice: &'static str,
    },
    /// An environment variable that Postgres' own library reads is not supported here.
    #[error("the environment has {variable}, which is not supported: unset it, and {advice}")]
    UnsupportedVariable {
        /// The variable's name, with its value where only that is not supported.
        variable: String,
        /// What to do instead.
        advice: &'static str,
    },
    /// A value is not what it should be.
    #[error("{name} in the connection string {problem}")]
    Value {
        /// The setting's name.
        name: &'static str,
        /// What is wrong with its value.
        problem: String,
    },
    /// The value of an environment variable, which stands in for what the string leaves out, is not what it should be.
    #[error("{variable} in the environment {problem}")]
    Variable {
        /// The variable's name.
        variable: &'static str,
        /// What is wrong with its value.
        problem: String,
    },
}

struct After<'n>(&'n Option<&'static str>);

impl fmt::Display for After<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(formatter, "after {name} "),
            None => Ok(()),
        }
    }
}

/// A password. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// The password itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Password {
    fn from(password: String) -> Self {
        Self(password)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("…")
    }
}

/// One of the servers that a connection string names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name, the address where it has no name, or the folder of a Unix socket.
    pub name: String,
    /// The address to connect to, if the name is not to be looked up.
    pub address: Option<IpAddr>,
    /// Its port.
    pub port: u16,
}

impl Host {
    /// True for a Unix socket: its folder, or with an `@` a name in Linux's abstract namespace.
    #[must_use]
    pub fn is_socket(&self) -> bool {
        self.address.is_none() && self.name.starts_with(['/', '@'])
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_socket() {
            write!(formatter, "{}/.s.PGSQL.{}", self.name, self.port)
        } else if self.name.contains(':') {
            write!(formatter, "[{}]:{}", self.name, self.port)
        } else {
            write!(formatter, "{}:{}", self.name, self.port)
        }
    }
}

/// Which server will do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetSession {
    /// The first that answers.
    #[default]
    Any,
    /// One whose sessions may write as they begin.
    ReadWrite,
    /// One whose sessions may not.
    ReadOnly,
    /// One that is no standby.
    Primary,
    /// One that is a standby.
    Standby,
    /// A standby if there is one, otherwise any.
    PreferStandby,
}

/// How safely to connect, in ascending order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsMode {
    /// Without TLS.
    Disable,
    /// With TLS only where the server refuses to go without.
    Allow,
    /// With TLS where the server has it.
    #[default]
    Prefer,
    /// With TLS, with whoever answers.
    Require,
    /// With TLS and a certificate of a trusted authority, whatever its name.
    VerifyCa,
    /// With TLS and a certificate of a trusted authority for the host's name.
    VerifyFull,
}

/// Whom to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authorities {
    /// Those of the system.
    System,
    /// Those in this file, and no others.
    File(PathBuf),
}

/// How TLS is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// How safely.
    pub mode: TlsMode,
    /// Who may sign the server's certificate; none where nobody is verified.
    pub authorities: Option<Authorities>,
    /// The files of the client's certificate and key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// True to tell the server by which name it was called.
    pub server_name: bool,
    /// True to begin with TLS at once instead of asking for it first.
    pub direct: bool,
}

/// How many connections there are and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSettings {
    /// Connections at most; at least 1.
    pub max_connections: u32,
    /// Connections that are kept even if nothing uses them.
    pub min_connections: u32,
    /// A connection is not used any more after this and a random part of `lifetime_jitter`.
    pub max_lifetime: Duration,
    /// How much `max_lifetime` may be exceeded, so that connections do not all end at once.
    pub lifetime_jitter: Duration,
    /// A connection that nothing used for so long is closed.
    pub max_idle_time: Duration,
    /// How often all of this is looked at.
    pub health_check_period: Duration,
}

/// A connection string that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionString {
    /// The servers, in the order in which they are tried; at least one.
    pub hosts: Vec<Host>,
    /// The role to log in as.
    pub user: String,
    /// Its password. Without one, the password file is looked into.
    pub password: Option<Password>,
    /// The file of passwords, if there is to be one.
    pub password_file: Option<PathBuf>,
    /// The database.
    pub database: String,
    /// What the server shows this client as.
    pub application_name: String,
    /// Settings of the server for each session.
    pub server_settings: Vec<(String, String)>,
    /// How long one address may take.
    pub connect_timeout: Option<Duration>,
    /// Which server will do.
    pub target: TargetSession,
    /// True to try the servers, and the addresses of each, in random order.
    pub load_balance: bool,
    /// How TLS is used.
    pub tls: TlsSettings,
    /// The pool.
    pub pool: PoolSettings,
    /// False where the string asks for statements not to be prepared, as behind a pooler that cannot do it.
    pub prepare_statements: bool,
}

/// Where to look for what the string leaves out. Tests have one of their own.
pub struct Environment<'e> {
    /// The value of a variable.
    pub variable: &'e dyn Fn(&str) -> Option<String>,
    /// True where there is a file or socket.
    pub exists: &'e dyn Fn(&Path) -> bool,
}

impl Environment<'static> {
    /// One without variables and files, so that what the string says is all there is.
    #[must_use]
    pub fn bare() -> Self {
        Self {
            variable: &|_| None,
            exists: &|_| false,
        }
    }

    /// The process's own.
    #[must_use]
    pub fn process() -> Self {
        Self {
            variable: &|name| std::env::var(name).ok(),
            exists: &|path| path.exists(),
        }
    }
}

impl ConnectionString {
    /// Reads a connection string.
    ///
    /// # Errors
    ///
    /// [`ConnectionStringError`] for the first thing in it that cannot be used.
    pub fn parse(text: &str, environment: &Environment<'_>) -> Result<Self, ConnectionStringError> {
        let reader = Reader::new(text, environment)?;
        let variables = reader.variables.clone();
        reader.read().map_err(|error| {
            let ConnectionStringError::Value { name, problem } = error else {
                return error;
            };
            match variables.get(name) {
                Some(&variable) => ConnectionStringError::Variable { variable, problem },
                None => ConnectionStringError::Value { name, problem },
            }
        })
    }
}

/// The values by name, and what to do about those that are missing.
struct Reader<'e> {
    values: HashMap<&'static str, String>,
    /// Of those that the environment has, the variables.
    variables: HashMap<&'static str, &'static str>,
    server_settings: Vec<(String, String)>,
    environment: &'e Environment<'e>,
}

impl<'e> Reader<'e> {
    fn new(text: &str, environment: &'e Environment<'e>) -> Result<Self, ConnectionStringError> {
        let mut reader = Self {
            values: HashMap::new(),
            variables: HashMap::new(),
            server_settings: Vec::new(),
            environment,
        };
        // The last one of several counts, as with libpq.
        let mut before = None;
        for (name, value) in syntax::pairs(text)? {
            before = Some(reader.take(&name, value, before)?);
        }
        for keyword in KEYWORDS {
            if let Some(variable) = keyword.variable
                && let Some(value) = (environment.variable)(variable)
                && !reader.values.contains_key(keyword.name)
            {
                reader.variables.insert(keyword.name, variable);
                reader.take(keyword.name, value, None).map_err(|error| match error {
                    ConnectionStringError::Unsupported { name, advice } => ConnectionStringError::UnsupportedVariable {
                        variable: name.replacen(keyword.name, variable, 1),
                        advice,
                    },
                    other => other,
                })?;
            }
        }
        // To libpq an empty value is one that was left out.
        reader.values.retain(|_, value| !value.is_empty());
        Ok(reader)
    }

    /// Takes a value, and says what its name is; `before` is the name that stands before it.
    fn take(
        &mut self,
        name: &str,
        value: String,
        before: Option<&'static str>,
    ) -> Result<&'static str, ConnectionStringError> {
        let Some(keyword) = keywords::find(name) else {
            return Err(match keywords::nearest(name) {
                Some(nearest) => ConnectionStringError::Misspelt {
                    name: name.to_owned(),
                    nearest,
                },
                None => ConnectionStringError::Unknown { after: before },
            });
        };
        match keyword.treatment {
            Treatment::Read => {}
            Treatment::Server => {
                self.server_settings.push((name.to_owned(), value));
                return Ok(keyword.name);
            }
            _ if value.is_empty() => {}
            Treatment::Only(values, _) if values.contains(&value.as_str()) => {}
            Treatment::Only(_, advice) => {
                return Err(ConnectionStringError::Unsupported {
                    name: format!("{name}={value}"),
                    advice,
                });
            }
            Treatment::Refused(advice) => {
                return Err(ConnectionStringError::Unsupported {
                    name: name.to_owned(),
                    advice,
                });
            }
        }
        self.values.insert(keyword.name, value);
        Ok(keyword.name)
    }

    fn read(mut self) -> Result<ConnectionString, ConnectionStringError> {
        let user = match self.text("user").or_else(|| (self.environment.variable)("USER")) {
            Some(user) if !user.is_empty() => user,
            _ => return Err(value("user", "is missing: name the role to log in as")),
        };
        if let Some(options) = self.text("options") {
            self.server_settings.extend(server_options(&options)?);
        }
        Ok(ConnectionString {
            hosts: self.hosts()?,
            password: self.text("password").map(Password),
            password_file: self
                .text("passfile")
                .map(PathBuf::from)
                .or_else(|| self.in_home(".pgpass")),
            database: self.text("dbname").unwrap_or_else(|| user.clone()),
            user,
            application_name: self
                .text("application_name")
                .or_else(|| self.text("fallback_application_name"))
                .unwrap_or_else(|| "databroker-host".to_owned()),
            connect_timeout: self.connect_timeout()?,
            target: self.choice(
                "target_session_attrs",
                &[
                    ("any", TargetSession::Any),
                    ("read-write", TargetSession::ReadWrite),
                    ("read-only", TargetSession::ReadOnly),
                    ("primary", TargetSession::Primary),
                    ("standby", TargetSession::Standby),
                    ("prefer-standby", TargetSession::PreferStandby),
                ],
            )?,
            load_balance: self.choice("load_balance_hosts", &[("disable", false), ("random", true)])?,
            tls: self.tls()?,
            pool: self.pool()?,
            prepare_statements: self.prepare_statements()?,
            server_settings: self.server_settings,
        })
    }

    fn text(&self, name: &str) -> Option<String> {
        self.values.get(name).cloned()
    }

    /// A file in libpq's folder in the user's home, if there is a home.
    fn in_home(&self, file: &str) -> Option<PathBuf> {
        Some(Path::new(&(self.environment.variable)("HOME")?).join(file))
    }

    fn existing_in_home(&self, file: &str) -> Option<PathBuf> {
        self.in_home(file).filter(|path| (self.environment.exists)(path))
    }

    fn choice<T: Copy + Default>(&self, name: &'static str, choices: &[(&str, T)]) -> Result<T, ConnectionStringError> {
        let Some(text) = self.values.get(name) else {
            return Ok(T::default());
        };
        let found = choices.iter().find(|(choice, _)| choice == text);
        found.map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(choice, _)| *choice).collect();
            value(name, format!("is {text:?}: write {}", names.join(", ")))
        })
    }

    fn number(&self, name: &'static str, least: u32) -> Result<Option<u32>, ConnectionStringError> {
        let Some(text) = self.values.get(name) else {
            return Ok(None);
        };
        match text.trim().parse() {
            Ok(number) if number >= least => Ok(Some(number)),
            _ => Err(value(name, format!("is {text:?}: write a whole number from {least}"))),
        }
    }

    fn duration(&self, name: &'static str, default: Duration) -> Result<Duration, ConnectionStringError> {
        let Some(text) = self.values.get(name) else {
            return Ok(default);
        };
        duration::parse(text).ok_or_else(|| {
            value(
                name,
                format!("is {text:?}: write a length of time such as 90s, 30m or 1h"),
            )
        })
    }

    fn hosts(&self) -> Result<Vec<Host>, ConnectionStringError> {
        let list = |name| {
            let text = self.values.get(name);
            text.map(|text| text.split(',').map(|item| item.trim().to_owned()).collect::<Vec<_>>())
        };
        let (names, addresses) = (list("host"), list("hostaddr"));
        let ports = self.ports(list("port"))?;
        let count = match (&names, &addresses) {
            (Some(names), Some(addresses)) if names.len() != addresses.len() => {
                let problem = format!("names {} addresses, and host {} hosts", addresses.len(), names.len());
                return Err(value("hostaddr", format!("{problem}: name as many of each")));
            }
            (Some(list), _) | (None, Some(list)) => list.len(),
            (None, None) => 1,
        };
        if ports.len() != 1 && ports.len() != count {
            let problem = format!(
                "names {} ports for {count} hosts: name one for all, or one for each",
                ports.len()
            );
            return Err(value("port", problem));
        }
        let item = |list: &Option<Vec<String>>, index: usize| {
            let item = list.as_ref().and_then(|list| list.get(index));
            item.filter(|item| !item.is_empty()).cloned()
        };
        let mut hosts = Vec::with_capacity(count);
        for index in 0..count {
            let port = ports.get(index).or_else(|| ports.first()).copied().unwrap_or(PORT);
            let address = match item(&addresses, index) {
                None => None,
                Some(text) => Some(text.parse::<IpAddr>().map_err(|_| {
                    value(
                        "hostaddr",
                        format!("has {text:?}, which is no IP address: names belong into host"),
                    )
                })?),
            };
            let name = item(&names, index).or_else(|| address.map(|address| address.to_string()));
            hosts.push(Host {
                name: name.unwrap_or_else(|| self.default_host(port)),
                address,
                port,
            });
        }
        Ok(hosts)
    }

    fn ports(&self, list: Option<Vec<String>>) -> Result<Vec<u16>, ConnectionStringError> {
        let Some(list) = list else { return Ok(vec![PORT]) };
        list.iter()
            .map(|port| {
                if port.is_empty() {
                    return Ok(PORT);
                }
                // The value is not shown: it is part of the password, where a slash in that is not percent-encoded.
                port.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
                    value(
                        "port",
                        "has something that is no number from 1 to 65535: where it is part of a password, write `/` in that as %2F",
                    )
                })
            })
            .collect()
    }

    /// This machine's own server: its socket where there is one.
    fn default_host(&self, port: u16) -> String {
        let has_socket =
            |folder: &&&str| (self.environment.exists)(&Path::new(folder).join(format!(".s.PGSQL.{port}")));
        SOCKET_FOLDERS
            .iter()
            .find(has_socket)
            .map_or("localhost", |folder| *folder)
            .to_owned()
    }

    fn connect_timeout(&self) -> Result<Option<Duration>, ConnectionStringError> {
        let Some(text) = self.values.get("connect_timeout") else {
            return Ok(Some(CONNECT_TIMEOUT));
        };
        let seconds: i64 = text.trim().parse().map_err(|_| {
            value(
                "connect_timeout",
                format!("is {text:?}: write a whole number of seconds, or 0 for no end"),
            )
        })?;
        // As with libpq: no end at 0 or below.
        Ok(u64::try_from(seconds)
            .ok()
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs))
    }

    fn tls(&self) -> Result<TlsSettings, ConnectionStringError> {
        let modes = [
            ("disable", TlsMode::Disable),
            ("allow", TlsMode::Allow),
            ("prefer", TlsMode::Prefer),
            ("require", TlsMode::Require),
            ("verify-ca", TlsMode::VerifyCa),
            ("verify-full", TlsMode::VerifyFull),
        ];
        let mut mode = self.choice("sslmode", &modes)?;
        let authorities = match self.values.get("sslrootcert").map(String::as_str) {
            Some("system") => Some(Authorities::System),
            Some(file) => Some(Authorities::File(PathBuf::from(file))),
            None => self.existing_in_home(".postgresql/root.crt").map(Authorities::File),
        };
        if authorities == Some(Authorities::System) {
            // Anybody can have a certificate of the system's authorities, for a name of their own.
            if !self.values.contains_key("sslmode") {
                mode = TlsMode::VerifyFull;
            } else if mode < TlsMode::VerifyFull {
                return Err(value(
                    "sslrootcert",
                    "is system, which is of use with sslmode=verify-full only: set that",
                ));
            }
        }
        // So it is with libpq and pgx: who names an authority wants it looked at.
        if mode == TlsMode::Require && authorities.is_some() {
            mode = TlsMode::VerifyCa;
        }
        let authorities = if mode >= TlsMode::VerifyCa {
            Some(authorities.unwrap_or(Authorities::System))
        } else {
            None
        };
        let direct = self.choice("sslnegotiation", &[("postgres", false), ("direct", true)])?;
        if direct && mode < TlsMode::Require {
            return Err(value(
                "sslnegotiation",
                "is direct, which goes with sslmode=require or safer only: set that",
            ));
        }
        Ok(TlsSettings {
            mode,
            authorities,
            client: self.client_certificate()?,
            server_name: !self.choice("sslsni", &[("1", false), ("0", true)])?,
            direct,
        })
    }

    fn client_certificate(&self) -> Result<Option<(PathBuf, PathBuf)>, ConnectionStringError> {
        if self.values.get("sslcertmode").is_some_and(|mode| mode == "disable") {
            return Ok(None);
        }
        let file = |name, default| {
            let named = self.values.get(name).map(PathBuf::from);
            named.or_else(|| self.existing_in_home(default))
        };
        let certificate = file("sslcert", ".postgresql/postgresql.crt");
        let key = file("sslkey", ".postgresql/postgresql.key");
        match (certificate, key) {
            (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
            (Some(_), None) => Err(value("sslcert", "is set without sslkey: set both")),
            // A key that merely lies there is of no use.
            (None, Some(_)) if self.values.contains_key("sslkey") => {
                Err(value("sslkey", "is set without sslcert: set both"))
            }
            (None, _) => Ok(None),
        }
    }

    fn pool(&self) -> Result<PoolSettings, ConnectionStringError> {
        let cores =
            std::thread::available_parallelism().map_or(4, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX));
        let max_connections = self.number("pool_max_conns", 1)?.unwrap_or(cores.max(4));
        let min_connections = self.number("pool_min_conns", 0)?.unwrap_or(0);
        if min_connections > max_connections {
            let problem = format!("is {min_connections}, more than the {max_connections} of pool_max_conns");
            return Err(value(
                "pool_min_conns",
                format!("{problem}: set it lower, or the other higher"),
            ));
        }
        Ok(PoolSettings {
            max_connections,
            min_connections,
            max_lifetime: self.duration("pool_max_conn_lifetime", Duration::from_secs(3600))?,
            lifetime_jitter: self.duration("pool_max_conn_lifetime_jitter", Duration::ZERO)?,
            max_idle_time: self.duration("pool_max_conn_idle_time", Duration::from_secs(1800))?,
            health_check_period: match self.duration("pool_health_check_period", Duration::from_secs(60))? {
                Duration::ZERO => return Err(value("pool_health_check_period", "is nothing: write 1m or so")),
                period => period,
            },
        })
    }

    fn prepare_statements(&self) -> Result<bool, ConnectionStringError> {
        self.number("description_cache_capacity", 0)?;
        let capacity = self.number("statement_cache_capacity", 0)?;
        let mode = self.choice(
            "default_query_exec_mode",
            &[
                ("cache_statement", Some(true)),
                ("cache_describe", Some(false)),
                ("describe_exec", Some(false)),
                ("exec", Some(false)),
                ("simple_protocol", Some(false)),
            ],
        )?;
        Ok(mode.unwrap_or(true) && capacity != Some(0))
    }
}

fn value(name: &'static str, problem: impl Into<String>) -> ConnectionStringError {
    ConnectionStringError::Value {
        name,
        problem: problem.into(),
    }
}

/// The settings in `options`, which is a command line: `-c name=value`, `-cname=value` or `--name=value`, and a backslash
/// takes the next character as it is.
fn server_options(options: &str) -> Result<Vec<(String, String)>, ConnectionStringError> {
    let mut words = vec![String::new()];
    let mut characters = options.chars();
    while let Some(character) = characters.next() {
        match (character, words.last_mut()) {
            (' ' | '\t' | '\n', _) => words.push(String::new()),
            ('\\', Some(word)) => word.extend(characters.next()),
            (other, Some(word)) => word.push(other),
            (_, None) => {}
        }
    }
    let mut settings = Vec::new();
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("--") {
            Some(setting) => Some(setting.to_owned()),
            None if word == "-c" => words.next(),
            None => word.strip_prefix("-c").map(str::to_owned),
        };
        let Some((name, value)) = setting.as_deref().and_then(|setting| setting.split_once('=')) else {
            return Err(value_of_options());
        };
        // Postgres takes both in names on a command line.
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(settings)
}

fn value_of_options() -> ConnectionStringError {
    value(
        "options",
        "has a word that sets nothing: only `-c name=value` and `--name=value` are taken",
    )
}
