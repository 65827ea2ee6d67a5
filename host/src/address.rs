//! Where to listen, as Pomerium writes it: `HOST:PORT`, or `:PORT` for all addresses of the machine.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A host and a port. Port 0 takes one that is free. The default is all addresses of the machine and such a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address without brackets; empty for all addresses.
    host: String,
    port: u16,
}

/// Why a text is no address.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an address")]
pub struct AddressError(String);

impl Address {
    /// Reads `HOST:PORT`, `[IPV6]:PORT` or `:PORT`.
    ///
    /// # Errors
    ///
    /// [`AddressError`] where it is something else.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let refuse = || AddressError(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(refuse)?;
        // A sign is no part of a port.
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(refuse());
        }
        let port = port.parse().map_err(|_| refuse())?;
        let host = match host.strip_prefix('[') {
            Some(bracketed) => {
                let host = bracketed.strip_suffix(']').ok_or_else(refuse)?;
                host.parse::<Ipv6Addr>().map_err(|_| refuse())?;
                host
            }
            None if host.contains([':', '/', '[', ']', '@']) || host.contains(char::is_whitespace) => {
                return Err(refuse());
            }
            None => host,
        };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }

    /// The host; empty for all addresses.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// True where two listeners could not have both addresses. Names other than `localhost` are not looked up.
    pub fn overlaps(&self, other: &Self) -> bool {
        if self.port != other.port || self.port == 0 {
            return false;
        }
        match (self.ip(), other.ip()) {
            (Some(one), Some(other)) if one.is_ipv4() == other.is_ipv4() => {
                one == other || one.is_unspecified() || other.is_unspecified()
            }
            // All addresses of IPv6 are all of IPv4 too.
            (Some(IpAddr::V6(six)), Some(_)) | (Some(_), Some(IpAddr::V6(six))) => six.is_unspecified(),
            (Some(ip), None) | (None, Some(ip)) => ip.is_unspecified(),
            _ => self.host.eq_ignore_ascii_case(&other.host),
        }
    }

    /// The IP address; none where the host is a name.
    fn ip(&self) -> Option<IpAddr> {
        match self.host.as_str() {
            "" => Some(Ipv6Addr::UNSPECIFIED.into()),
            host if host.eq_ignore_ascii_case("localhost") => Some(Ipv4Addr::LOCALHOST.into()),
            host => host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical()),
        }
    }

    /// True where only this machine can reach it.
    pub fn is_loopback(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost")
            || self
                .host
                .parse::<IpAddr>()
                .is_ok_and(|address| address.to_canonical().is_loopback())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn reads_what_pomerium_writes() {
        for (text, host, port, loopback) in [
            (":5443", "", 5443, false),
            (":443", "", 443, false),
            ("127.0.0.1:5443", "127.0.0.1", 5443, true),
            ("127.5.5.5:0", "127.5.5.5", 0, true),
            ("0.0.0.0:1", "0.0.0.0", 1, false),
            ("10.0.0.1:65535", "10.0.0.1", 65535, false),
            ("[::1]:5443", "::1", 5443, true),
            ("[::ffff:127.0.0.1]:5443", "::ffff:127.0.0.1", 5443, true),
            ("[::]:5443", "::", 5443, false),
            ("localhost:5443", "localhost", 5443, true),
            ("databroker.example.com:5443", "databroker.example.com", 5443, false),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!(
                (address.host(), address.port(), address.is_loopback()),
                (host, port, loopback),
                "{text}"
            );
            assert_eq!(address.to_string(), text);
        }
        for text in [
            "",
            ":",
            "5443",
            "127.0.0.1",
            "127.0.0.1:",
            "127.0.0.1:65536",
            "127.0.0.1:-1",
            "127.0.0.1:+1",
            "::1:5443",
            "[::1]",
            "[::1:5443",
            "[127.0.0.1]:5443",
            "http://127.0.0.1:5443",
            "a b:1",
            ":https",
            "user@host:1",
        ] {
            assert_eq!(Address::parse(text), Err(AddressError(text.to_owned())));
        }
    }
}
