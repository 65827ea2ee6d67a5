//! Where one instance may connect to.
//!
//! Two ways lead to a connection: an address that the operator has granted as such, and one that a granted name led to when
//! this instance looked it up, with a port granted for that name. A name's answer is held to the rules of `address` when it
//! comes and remembered for a short time. So it does not matter what the name leads to later, or for somebody else: whoever
//! answers for it cannot send a plugin to an address that was not checked.

use std::collections::{BTreeMap, BTreeSet};
use std::future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use wasmtime_wasi::sockets::SocketAddrUse;

use super::address::Kind;
use super::destination::{Host, is_any, literal, name};
use super::{Granted, Refused};

/// For how long an instance may connect to an address after the look-up of a name led to it.
const KNOWN_FOR: Duration = Duration::from_secs(300);

/// How many addresses and ports are remembered; the oldest are forgotten.
const MAX_KNOWN: usize = 1024;

/// How many addresses of an answer are looked at.
const MAX_ANSWER: usize = 64;

/// How many names are looked up at once: a thread of the process waits for each.
const LOOK_UPS: usize = 4;

/// Says which addresses a name leads to now. The name is one of DNS, in lower case.
pub type Resolver = dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync;

/// Where an instance may connect to.
pub(in crate::component) struct Network {
    granted: Granted,
    look_ups: Arc<Semaphore>,
    /// What names have led to, each with the time of the look-up.
    known: Mutex<BTreeMap<(IpAddr, u16), Instant>>,
}

/// Why a name leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoAddress {
    /// Names are not granted, or lead where they must not; the log says more.
    Denied,
    /// It is no name.
    Malformed,
    /// The name is not known, or nobody who knows it can be asked.
    Unresolvable,
}

impl Network {
    pub(in crate::component) fn new(granted: Granted) -> Self {
        Self {
            granted,
            look_ups: Arc::new(Semaphore::new(LOOK_UPS)),
            known: Mutex::default(),
        }
    }

    pub(super) fn granted(&self) -> &Granted {
        &self.granted
    }

    /// Whether a socket may be used so, in the form that the runtime asks in.
    pub(in crate::component) fn check(
        &self,
        address: SocketAddr,
        usage: SocketAddrUse,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + Sync>> {
        Box::pin(future::ready(self.allows(address, usage)))
    }

    fn allows(&self, address: SocketAddr, usage: SocketAddrUse) -> bool {
        let (ip, port) = (address.ip(), address.port());
        let refused = |kind, asked: String, remedy: fn(IpAddr, u16) -> String| {
            self.granted.refusals.refuse(kind, &asked, || remedy(ip, port));
            false
        };
        let never = |_, _| "none: a plugin only opens connections, by TCP".to_owned();
        match usage {
            SocketAddrUse::TcpConnect if self.is_granted(ip, port) || self.is_known(ip, port) => true,
            SocketAddrUse::TcpConnect => {
                let asked = format!("a connection to {address} ({})", Kind::of(ip));
                refused(Refused::Address, asked, remedy)
            }
            // A client binds before it connects.
            SocketAddrUse::TcpBind if is_any(ip, port) => true,
            SocketAddrUse::TcpBind => refused(Refused::Socket, format!("a socket bound to {address}"), never),
            SocketAddrUse::TcpListen | SocketAddrUse::TcpAccept => {
                refused(Refused::Socket, format!("listening on {address}"), never)
            }
            SocketAddrUse::UdpBind | SocketAddrUse::UdpSend | SocketAddrUse::UdpReceive => {
                refused(Refused::Socket, format!("UDP with {address}"), never)
            }
        }
    }

    /// True where the operator has granted the address itself.
    pub(super) fn is_granted(&self, address: IpAddr, port: u16) -> bool {
        let mut granted = self.granted.grants.addresses.iter();
        granted.any(|destination| destination.names(address, port))
    }

    fn is_known(&self, address: IpAddr, port: u16) -> bool {
        let known = self.known.lock();
        let looked_up = known.get(&(address.to_canonical(), port));
        looked_up.is_some_and(|looked_up| looked_up.elapsed() < KNOWN_FOR)
    }

    /// Looks a granted name up for TCP, and lets its addresses be connected to. An address is its own answer.
    pub(super) async fn look_up(&self, text: &str) -> Result<Vec<IpAddr>, NoAddress> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(vec![address]);
        }
        let Some(name) = name(text) else {
            return Err(NoAddress::Malformed);
        };
        let addresses = self.granted.grants.addresses.iter();
        let ports: BTreeSet<u16> = addresses
            .filter(|destination| matches!(&destination.host, Host::Name(granted) if *granted == name))
            .map(|destination| destination.port)
            .collect();
        if ports.is_empty() {
            let asked = format!("the address of {name}");
            self.granted.refusals.refuse(Refused::Name, &asked, || {
                format!("DATABROKER_PLUGIN_ADDRESSES={name}:PORT")
            });
            return Err(NoAddress::Denied);
        }
        let usable = self.resolve(&name, &ports).await?;
        let mut known = self.known.lock();
        let now = Instant::now();
        known.extend(usable.iter().map(|place| (*place, now)));
        while known.len() > MAX_KNOWN {
            let oldest = known.iter().min_by_key(|(_, time)| **time).map(|(place, _)| *place);
            oldest.and_then(|oldest| known.remove(&oldest));
        }
        drop(known);
        let mut addresses: Vec<IpAddr> = usable.into_iter().map(|(address, _)| address).collect();
        addresses.dedup();
        Ok(addresses)
    }

    /// The addresses that a name leads to now, each with those of the ports that may be connected to there.
    pub(super) async fn resolve(&self, name: &str, ports: &BTreeSet<u16>) -> Result<Vec<(IpAddr, u16)>, NoAddress> {
        let Ok(permit) = Arc::clone(&self.look_ups).acquire_owned().await else {
            return Err(NoAddress::Unresolvable);
        };
        let answer = (self.granted.resolver)(name.to_owned());
        // A task of its own, since the thread that waits for the answer goes on where nobody wants it any more.
        let answer = tokio::spawn(async move {
            let _permit = permit;
            answer.await
        });
        let answer = match answer.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                tracing::debug!(
                    name,
                    error = error.to_string(),
                    "a name that a plugin asked for was not found"
                );
                return Err(NoAddress::Unresolvable);
            }
            Err(_) => return Err(NoAddress::Unresolvable),
        };
        let mut usable = Vec::new();
        for address in answer
            .into_iter()
            .take(MAX_ANSWER)
            .map(|address| address.to_canonical())
        {
            for port in ports.iter().copied() {
                if self.may_lead_to(name, address, port) {
                    usable.push((address, port));
                } else {
                    let kind = Kind::of(address);
                    let asked = format!("{name} leads to {address} ({kind}), port {port}");
                    self.granted
                        .refusals
                        .refuse(Refused::Address, &asked, || remedy(address, port));
                }
            }
        }
        if usable.is_empty() {
            return Err(NoAddress::Denied);
        }
        Ok(usable)
    }

    /// Whether a granted name may lead to this address.
    fn may_lead_to(&self, name: &str, address: IpAddr, port: u16) -> bool {
        match Kind::of(address) {
            Kind::Public => name != "localhost",
            Kind::Loopback if name == "localhost" => true,
            _ => self.is_granted(address, port),
        }
    }
}

/// What would allow it, where anything can.
fn remedy(address: IpAddr, port: u16) -> String {
    let destination = literal(address, port);
    match Kind::of(address) {
        Kind::Unspecified | Kind::Multicast => "none: nobody can be connected to there".to_owned(),
        Kind::Metadata => {
            format!("DATABROKER_PLUGIN_ADDRESSES={destination}, which lets it have the credentials of this machine")
        }
        _ => format!("DATABROKER_PLUGIN_ADDRESSES={destination}"),
    }
}

/// Asks the system.
pub(in crate::component) fn system(name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
    Box::pin(async move {
        let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
        Ok(found.map(|address| address.ip()).collect())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::collections::VecDeque;

    use super::super::{Destination, Grants};
    use super::*;
    use crate::component::tests::Log;

    /// A network whose names lead to each of these answers in turn, and then to the last one for ever.
    fn network(addresses: &[&str], answers: &[&[&str]]) -> (Network, Arc<Mutex<Vec<String>>>) {
        let grants = Grants {
            addresses: addresses.iter().map(|text| Destination::parse(text).unwrap()).collect(),
            ..Grants::default()
        };
        let parse = |answer: &&[&str]| answer.iter().map(|text| text.parse().unwrap()).collect();
        let answers: VecDeque<Vec<IpAddr>> = answers.iter().map(parse).collect();
        let answers = Mutex::new(answers);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let resolver = move |name: String| -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
            log.lock().push(name);
            let mut answers = answers.lock();
            let answer = match answers.len() {
                0 => Err(io::Error::other("nobody knows it")),
                1 => Ok(answers.front().unwrap().clone()),
                _ => Ok(answers.pop_front().unwrap()),
            };
            Box::pin(future::ready(answer))
        };
        let granted = Granted {
            resolver: Arc::new(resolver),
            ..Granted::new("test", grants)
        };
        (Network::new(granted), asked)
    }

    fn connects(network: &Network, address: &str) -> bool {
        network.allows(address.parse().unwrap(), SocketAddrUse::TcpConnect)
    }

    async fn look_up(network: &Network, name: &str) -> Result<Vec<String>, NoAddress> {
        let found = network.look_up(name).await?;
        Ok(found.iter().map(ToString::to_string).collect())
    }

    #[tokio::test]
    async fn nothing_is_asked_and_nobody_connected_to_without_a_grant() {
        let (network, asked) = network(&[], &[&["8.8.8.8"]]);
        for name in [
            "db.example.com",
            "localhost",
            "db.example.com.",
            "metadata.google.internal",
        ] {
            assert_eq!(look_up(&network, name).await, Err(NoAddress::Denied), "{name}");
        }
        assert_eq!(look_up(&network, "a b").await, Err(NoAddress::Malformed));
        // These are addresses to resolvers, and no names.
        for number in ["127.1", "2130706433", "0x7f000001"] {
            assert_eq!(look_up(&network, number).await, Err(NoAddress::Malformed), "{number}");
        }
        assert!(asked.lock().is_empty(), "{:?}", asked.lock());
        for address in ["8.8.8.8:53", "127.0.0.1:80", "[::1]:80", "169.254.169.254:80"] {
            assert!(!connects(&network, address), "{address}");
        }
    }

    #[tokio::test]
    async fn a_connection_goes_where_a_granted_name_has_just_led_to() {
        let (network, asked) = network(&["db.example.com:5432"], &[&["8.8.8.8", "2a00::1"]]);
        assert!(!connects(&network, "8.8.8.8:5432"), "before the look-up");
        assert_eq!(
            look_up(&network, "DB.example.com.").await.unwrap(),
            ["8.8.8.8", "2a00::1"]
        );
        assert_eq!(*asked.lock(), ["db.example.com"]);
        assert!(connects(&network, "8.8.8.8:5432") && connects(&network, "[2a00::1]:5432"));
        assert!(!connects(&network, "8.8.8.8:22"), "another port");
        assert!(!connects(&network, "8.8.4.4:5432"), "another address");
        assert_eq!(look_up(&network, "evil.db.example.com").await, Err(NoAddress::Denied));
        for time in network.known.lock().values_mut() {
            *time = time.checked_sub(KNOWN_FOR).unwrap();
        }
        assert!(!connects(&network, "8.8.8.8:5432"), "long after the look-up");
    }

    #[tokio::test]
    async fn a_name_does_not_lead_into_the_inside() {
        for address in [
            "10.0.0.5",
            "127.0.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "::1",
            "::",
            "fd00:ec2::254",
            "fe80::1",
            "::ffff:10.0.0.5",
            "64:ff9b::10.0.0.5",
            "2002:a00:5::",
        ] {
            let log = Log::default();
            let recording = log.record();
            let (network, _) = network(&["db.example.com:5432"], &[&[address]]);
            assert_eq!(
                look_up(&network, "db.example.com").await,
                Err(NoAddress::Denied),
                "{address}"
            );
            let ip: IpAddr = address.parse().unwrap();
            assert!(
                !network.allows(SocketAddr::new(ip, 5432), SocketAddrUse::TcpConnect),
                "{address}"
            );
            drop(recording);
            let text = log.text();
            assert!(text.contains("db.example.com leads to"), "{text}");
            // What is said to help does help.
            if let Some((_, said)) = text.split_once("DATABROKER_PLUGIN_ADDRESSES=") {
                let said = said.split(['"', ',', ' ']).next().unwrap();
                let (network, _) = super::tests::network(&["db.example.com:5432", said], &[&[address]]);
                look_up(&network, "db.example.com").await.unwrap();
                assert!(connects(&network, said), "{said}");
            }
        }
    }

    #[tokio::test]
    async fn a_name_that_changes_its_mind_leads_nowhere_new() {
        let (network, _) = network(&["db.example.com:80"], &[&["8.8.8.8"], &["169.254.169.254"]]);
        assert_eq!(look_up(&network, "db.example.com").await.unwrap(), ["8.8.8.8"]);
        assert_eq!(look_up(&network, "db.example.com").await, Err(NoAddress::Denied));
        assert!(!connects(&network, "169.254.169.254:80"));
    }

    #[tokio::test]
    async fn of_a_mixed_answer_only_the_outside_is_used() {
        let (network, _) = network(&["db.example.com:80"], &[&["10.0.0.1", "8.8.8.8", "::1"]]);
        assert_eq!(look_up(&network, "db.example.com").await.unwrap(), ["8.8.8.8"]);
    }

    #[tokio::test]
    async fn the_name_of_this_machine_leads_to_it_and_nowhere_else() {
        let (network, _) = network(&["localhost:80"], &[&["127.0.0.1", "::1"], &["10.0.0.1"], &["8.8.8.8"]]);
        assert_eq!(look_up(&network, "localhost").await.unwrap(), ["127.0.0.1", "::1"]);
        assert!(connects(&network, "127.0.0.1:80") && connects(&network, "[::1]:80"));
        assert_eq!(look_up(&network, "localhost").await, Err(NoAddress::Denied));
        assert_eq!(look_up(&network, "localhost").await, Err(NoAddress::Denied));
    }

    #[tokio::test]
    async fn an_address_that_is_granted_needs_no_name() {
        let (network, asked) = network(&["10.0.0.0/8:5432", "169.254.169.254:80"], &[]);
        assert!(connects(&network, "10.1.2.3:5432") && connects(&network, "169.254.169.254:80"));
        assert!(!connects(&network, "10.1.2.3:22") && !connects(&network, "11.0.0.1:5432"));
        assert_eq!(look_up(&network, "10.1.2.3").await.unwrap(), ["10.1.2.3"]);
        assert!(asked.lock().is_empty());
    }

    #[test]
    fn only_connections_are_opened() {
        let (network, _) = network(&["10.0.0.0/8:80"], &[]);
        let allows = |address: &str, usage| network.allows(address.parse().unwrap(), usage);
        assert!(allows("0.0.0.0:0", SocketAddrUse::TcpBind) && allows("[::]:0", SocketAddrUse::TcpBind));
        for (address, usage) in [
            ("0.0.0.0:80", SocketAddrUse::TcpBind),
            ("127.0.0.1:0", SocketAddrUse::TcpBind),
            ("0.0.0.0:0", SocketAddrUse::TcpListen),
            ("10.0.0.1:80", SocketAddrUse::TcpAccept),
            ("0.0.0.0:0", SocketAddrUse::UdpBind),
            ("10.0.0.1:80", SocketAddrUse::UdpSend),
            ("10.0.0.1:80", SocketAddrUse::UdpReceive),
        ] {
            assert!(!allows(address, usage), "{address} {usage:?}");
        }
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded() {
        let (network, _) = network(&["db.example.com:80"], &[&["8.8.8.8"]]);
        for number in 0..2 * MAX_KNOWN {
            let number = u32::try_from(number).unwrap();
            network
                .known
                .lock()
                .insert((IpAddr::from(number.to_be_bytes()), 80), Instant::now());
        }
        look_up(&network, "db.example.com").await.unwrap();
        assert_eq!(network.known.lock().len(), MAX_KNOWN);
        assert!(connects(&network, "8.8.8.8:80"), "the newest stays");
    }
}
