//! Where a plugin may connect to, as an operator writes it: `HOST:PORT`, and `https://HOST[:PORT]` for HTTP.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::GrantError;
use super::address::{Kind, is_named_by};

/// The longest name that DNS has, in bytes.
const MAX_NAME: usize = 253;

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// A name, in lower case and without a dot at its end.
    Name(String),
    /// An address, or a range of them.
    Range(IpNet),
}

impl Host {
    /// Reads a name, an address, or a range such as `10.0.0.0/8`; one of IPv6 without brackets.
    ///
    /// # Errors
    ///
    /// [`GrantError`] where it is something else, an address that nobody can connect to, or a range that is written as one of
    /// its addresses: that grants far more than whoever means the address wants.
    pub fn parse(text: &str) -> Result<Self, GrantError> {
        let range = match text.parse::<IpAddr>() {
            Ok(address) => Some(IpNet::from(address.to_canonical())),
            Err(_) => text.parse::<IpNet>().ok(),
        };
        if let Some(range) = range.filter(|range| range.trunc() != *range) {
            let (meant, address) = (range.trunc(), range.addr());
            return Err(GrantError::new(format!(
                "{text} is an address within a range: {meant} is the whole range, {address} the address alone"
            )));
        }
        let Some(range) = range else {
            return name(text)
                .map(Self::Name)
                .ok_or_else(|| GrantError::new(format!("{text:?} is neither a host's name nor an address")));
        };
        let kind = Kind::of(range.network());
        if range.prefix_len() == range.max_prefix_len() && matches!(kind, Kind::Unspecified | Kind::Multicast) {
            return Err(GrantError::new(format!(
                "{text} is {kind}: nobody can be connected to there"
            )));
        }
        Ok(Self::Range(range))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => formatter.write_str(name),
            Self::Range(range) => {
                let single = range.prefix_len() == range.max_prefix_len();
                match (range, single) {
                    (IpNet::V4(range), true) => write!(formatter, "{}", range.addr()),
                    (IpNet::V4(range), false) => write!(formatter, "{range}"),
                    (IpNet::V6(range), true) => write!(formatter, "[{}]", range.addr()),
                    (IpNet::V6(range), false) => write!(formatter, "[{range}]"),
                }
            }
        }
    }
}

/// A name as it is compared: in lower case, and without the dot at its end. None where it is no name of DNS; one that ends in
/// a number is none, since resolvers take it for an address.
pub(in crate::component) fn name(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let label = |label: &str| !label.is_empty() && label.len() <= 63 && label.bytes().all(letter);
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit())
        || last
            .strip_prefix("0x")
            .is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    (name.len() <= MAX_NAME && name.split('.').all(label) && !is_number).then_some(name)
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// Who is there.
    pub host: Host,
    /// Never 0.
    pub port: u16,
}

impl Destination {
    /// Reads `NAME:PORT`, `ADDRESS:PORT` or `RANGE:PORT`; what has colons itself stands in brackets, such as
    /// `[fd00::/8]:5432`.
    ///
    /// # Errors
    ///
    /// [`GrantError`] where it is something else, such as a URL.
    pub fn parse(text: &str) -> Result<Self, GrantError> {
        // The rest of either may be a password: not shown.
        match text.split_once("://") {
            Some((scheme @ ("https" | "http"), _)) => {
                return Err(GrantError::new(format!(
                    "{scheme}://… is a URL, which belongs into DATABROKER_PLUGIN_HTTP_ORIGINS"
                )));
            }
            Some((scheme, _)) => {
                return Err(GrantError::new(format!(
                    "{scheme}://… is a URL, of which the host and the port alone belong here"
                )));
            }
            None if text.contains('@') => return Err(has_user("an address")),
            None => {}
        }
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| GrantError::new(format!("{text:?} has no port")))?;
        Ok(Self {
            host: bracketed(host)?,
            port: parse_port(port)?,
        })
    }

    /// True where it names this address and port by themselves, whatever any name leads to.
    pub(super) fn names(&self, address: IpAddr, port: u16) -> bool {
        self.port == port && matches!(&self.host, Host::Range(range) if is_named_by(address, range))
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.host, self.port)
    }
}

/// What stands before the @ may be a password: not shown.
fn has_user(what: &str) -> GrantError {
    GrantError::new(format!("{what} has no user and no password"))
}

/// A host; what has colons must stand in brackets.
fn bracketed(text: &str) -> Result<Host, GrantError> {
    match text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
        Some(inner) if inner.contains(':') => Host::parse(inner),
        Some(_) => Err(GrantError::new(format!("{text:?} is no address of IPv6"))),
        None if text.contains(':') => Err(GrantError::new(format!(
            "{text:?} has colons: an address of IPv6 stands in brackets"
        ))),
        None => Host::parse(text),
    }
}

fn parse_port(text: &str) -> Result<u16, GrantError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|port| digits && *port > 0)
        .ok_or_else(|| GrantError::new(format!("{text:?} is not a port from 1 to 65535")))
}

/// Where HTTP requests may go: a scheme, a host and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// Whether it is `https`.
    pub tls: bool,
    /// A name, or an address by itself.
    pub host: Host,
    /// Never 0.
    pub port: u16,
}

impl Origin {
    /// Reads `https://HOST`, with a port where it is not 443, or `http://HOST`, with one where it is not 80.
    ///
    /// # Errors
    ///
    /// [`GrantError`] where it is something else: a path is none of an origin's.
    pub fn parse(text: &str) -> Result<Self, GrantError> {
        if text.contains('@') {
            return Err(has_user("an origin"));
        }
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| GrantError::new(format!("{text:?} does not begin with https:// or http://")))?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(GrantError::new(format!("{text:?} is neither https nor http"))),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err(GrantError::new(format!(
                "{text:?} has more than a scheme, a host and a port"
            )));
        }
        Self::of(tls, authority)
    }

    /// The origin of a request.
    pub(super) fn of(tls: bool, authority: &str) -> Result<Self, GrantError> {
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, parse_port(port)?),
            _ => (authority, if tls { 443 } else { 80 }),
        };
        Ok(Self {
            tls,
            host: bracketed(host)?,
            port,
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, usual) = if self.tls { ("https", 443) } else { ("http", 80) };
        write!(formatter, "{scheme}://{}", self.host)?;
        if self.port == usual {
            return Ok(());
        }
        write!(formatter, ":{}", self.port)
    }
}

/// The form of an address in which it can be granted.
pub(super) fn literal(address: IpAddr, port: u16) -> Destination {
    let host = Host::Range(IpNet::from(address.to_canonical()));
    Destination { host, port }
}

/// True for an address to bind to that leaves the choice to the system, as clients do before they connect.
pub(super) fn is_any(address: IpAddr, port: u16) -> bool {
    let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    port == 0 && any.contains(&address)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, reason = "tests")]

    use super::*;

    /// Checks what is read of each text and how it is written back, or what the refusal says.
    fn check<T: fmt::Display>(parse: fn(&str) -> Result<T, GrantError>, cases: &[(&str, Result<&str, &str>)]) {
        for (text, expected) in cases {
            match (parse(text), expected) {
                (Ok(read), Ok(expected)) => assert_eq!(read.to_string(), *expected, "{text}"),
                (Err(error), Err(expected)) => {
                    let error = error.to_string();
                    assert!(
                        error.contains(expected) && !error.contains("hunter2"),
                        "{text}: {error}"
                    );
                }
                (Ok(read), Err(_)) => panic!("{text} was taken, as {read}"),
                (Err(error), Ok(_)) => panic!("{text}: {error}"),
            }
        }
    }

    #[test]
    fn addresses_are_read() {
        check(
            Destination::parse,
            &[
                ("db.example.com:5432", Ok("db.example.com:5432")),
                ("DB.Example.COM.:5432", Ok("db.example.com:5432")),
                ("localhost:1", Ok("localhost:1")),
                ("_pg._tcp.internal:65535", Ok("_pg._tcp.internal:65535")),
                ("10.0.0.5:5432", Ok("10.0.0.5:5432")),
                ("10.0.0.0/8:5432", Ok("10.0.0.0/8:5432")),
                ("10.0.0.5/32:5432", Ok("10.0.0.5:5432")),
                ("[::1]:5432", Ok("[::1]:5432")),
                ("[fd00::/8]:5432", Ok("[fd00::/8]:5432")),
                ("[::ffff:10.0.0.5]:5432", Ok("10.0.0.5:5432")),
                ("169.254.169.254:80", Ok("169.254.169.254:80")),
                ("", Err("has no port")),
                ("db.example.com", Err("has no port")),
                ("db.example.com:", Err("\"\" is not a port")),
                ("db.example.com:0", Err("not a port from 1 to 65535")),
                ("db.example.com:65536", Err("not a port")),
                ("db.example.com:+1", Err("not a port")),
                ("db.example.com:postgres", Err("\"postgres\" is not a port")),
                (":5432", Err("neither a host's name nor an address")),
                ("*:5432", Err("neither a host's name")),
                ("*.example.com:5432", Err("neither a host's name")),
                ("a b:5432", Err("neither a host's name")),
                ("a..b:5432", Err("neither a host's name")),
                ("bücher.example:443", Err("neither a host's name")),
                ("::1:5432", Err("stands in brackets")),
                ("[::1:5432", Err("stands in brackets")),
                ("[10.0.0.5]:5432", Err("no address of IPv6")),
                ("0.0.0.0:80", Err("unspecified")),
                ("[::]:80", Err("unspecified")),
                ("224.0.0.1:80", Err("multicast")),
                // What resolvers take for addresses.
                ("127.1:80", Err("neither a host's name")),
                ("2130706433:80", Err("neither a host's name")),
                ("0x7f.0x1:80", Err("neither a host's name")),
                ("10.0.0.0/33:80", Err("neither a host's name")),
                // An address with the length of its network, as `ip address` shows it, is not the whole network.
                (
                    "10.0.0.5/8:5432",
                    Err(
                        "10.0.0.5/8 is an address within a range: 10.0.0.0/8 is the whole range, 10.0.0.5 the address alone",
                    ),
                ),
                (
                    "[fd00::5/8]:5432",
                    Err("fd00::/8 is the whole range, fd00::5 the address alone"),
                ),
                (
                    "https://db.example.com:443",
                    Err("https://… is a URL, which belongs into DATABROKER_PLUGIN_HTTP_ORIGINS"),
                ),
                (
                    "postgres://user:hunter2@db.example.com:5432/db",
                    Err("postgres://… is a URL, of which the host and the port alone"),
                ),
                (
                    "user:hunter2@db.example.com:5432",
                    Err("an address has no user and no password"),
                ),
            ],
        );
    }

    #[test]
    fn origins_are_read() {
        check(
            Origin::parse,
            &[
                ("https://kv.example.com", Ok("https://kv.example.com")),
                ("https://KV.example.com:443/", Ok("https://kv.example.com")),
                ("https://kv.example.com:8443", Ok("https://kv.example.com:8443")),
                ("http://localhost:2379", Ok("http://localhost:2379")),
                ("HTTP://localhost", Ok("http://localhost")),
                ("https://[::1]:8443", Ok("https://[::1]:8443")),
                ("https://[::1]", Ok("https://[::1]")),
                ("https://10.0.0.5", Ok("https://10.0.0.5")),
                ("kv.example.com", Err("does not begin with https://")),
                ("ftp://kv.example.com", Err("neither https nor http")),
                ("https://kv.example.com/v1", Err("more than a scheme")),
                ("https://kv.example.com?a", Err("more than a scheme")),
                ("https://user:hunter2@kv.example.com", Err("no user and no password")),
                ("user:hunter2@kv.example.com", Err("no user and no password")),
                ("https://", Err("neither a host's name")),
                ("https://kv.example.com:0", Err("not a port")),
            ],
        );
    }
}
