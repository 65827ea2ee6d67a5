//! Attempts to reach what was not granted. Each that succeeds is told in the error of the call; where none does, the call goes
//! on as if nothing had been.
//!
//! The operator grants the directory `/data` to read, the setting `port`, the secret `granted`, and connections and HTTP
//! requests to the name in the setting `name`, which leads to an address that a name must not lead to, and to that in the setting
//! `changing`, which leads to a granted address at one time and elsewhere at another.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket};

use wasip2::http::outgoing_handler;
use wasip2::http::types::{ErrorCode as HttpError, Fields, Method, OutgoingRequest, Scheme};
use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::ip_name_lookup::resolve_addresses;
use wasip2::sockets::network::{ErrorCode, IpAddress};

use crate::bindings::databroker::storage::config;
use crate::bindings::databroker::storage::types::Error;

/// More files than anybody may have open.
const MANY: usize = 100_000;

/// Reads and writes beyond the granted directory.
pub fn paths() -> Result<(), Error> {
    let outside = [
        "/etc/passwd",
        "/proc/self/environ",
        "secret",
        "../secret",
        "/data/../secret",
        "/data/inner/../../secret",
        "/data/./../secret",
        "/data//../secret",
        "/data/link",
        "/data/absolute-link",
        "/data/link-to-parent/secret",
        "/data/link-to-link",
        "/data/inner/link-to-root/etc/passwd",
        "/data/secret\0",
    ];
    let mut reached: Vec<String> = outside
        .iter()
        .filter(|path| fs::read(path).is_ok() || fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0))
        .map(|path| format!("read {path}"))
        .collect();
    let writes: [(&str, fn() -> bool); 7] = [
        ("create", || File::create("/data/new").is_ok()),
        ("append", || {
            let file = OpenOptions::new().append(true).open("/data/file");
            file.is_ok_and(|mut file| file.write_all(b"x").is_ok())
        }),
        ("remove", || fs::remove_file("/data/file").is_ok()),
        ("rename", || fs::rename("/data/file", "/data/other").is_ok()),
        ("folder", || fs::create_dir("/data/folder").is_ok()),
        ("hard link", || fs::hard_link("/data/file", "/data/hard").is_ok()),
        ("rename out", || fs::rename("/data/file", "/data/../file").is_ok()),
    ];
    reached.extend(
        writes
            .iter()
            .filter(|(_, write)| write())
            .map(|(name, _)| (*name).to_owned()),
    );
    if fs::read("/data/file").is_err() {
        reached.push("nothing, and not even what is granted".to_owned());
    }
    told(reached)
}

/// Connects, listens and looks up beyond what is granted.
pub fn addresses() -> Result<(), Error> {
    let Some(port) = config::get_setting("port").and_then(|port| port.parse::<u16>().ok()) else {
        return told(vec!["nothing: the setting `port` is not there".to_owned()]);
    };
    let name = config::get_setting("name").unwrap_or_default();
    let literal = [
        format!("127.0.0.1:{port}"),
        format!("127.1.2.3:{port}"),
        format!("0.0.0.0:{port}"),
        format!("[::1]:{port}"),
        format!("[::]:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
        format!("[::127.0.0.1]:{port}"),
        format!("[64:ff9b::7f00:1]:{port}"),
        format!("[2002:7f00:1::]:{port}"),
        format!("[fe80::1]:{port}"),
        format!("10.0.0.1:{port}"),
        "169.254.169.254:80".to_owned(),
        "[::ffff:169.254.169.254]:80".to_owned(),
        "[fd00:ec2::254]:80".to_owned(),
        "224.0.0.1:80".to_owned(),
        "255.255.255.255:80".to_owned(),
    ];
    let connects = |address: &SocketAddr| TcpStream::connect(address).is_ok();
    let mut reached: Vec<String> = literal
        .iter()
        .filter(|text| text.parse().is_ok_and(|address| connects(&address)))
        .cloned()
        .collect();
    let names = [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "localhost.localdomain",
        "ip6-localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "metadata.google.internal",
        "not.granted.example",
        "",
        "a..b",
        "-",
        "*",
    ];
    for name in names.into_iter().chain([name.as_str()]) {
        let found = (name, port).to_socket_addrs().map(Vec::from_iter).unwrap_or_default();
        if !found.is_empty() {
            reached.push(format!("looked up {name}: {found:?}"));
        }
        reached.extend(
            found
                .iter()
                .filter(|address| connects(address))
                .map(|address| format!("{name} at {address}")),
        );
    }
    if TcpListener::bind("0.0.0.0:0").is_ok() || TcpListener::bind("127.0.0.1:0").is_ok() {
        reached.push("listening".to_owned());
    }
    let sent = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(b"x", ("127.0.0.1", port)));
    if sent.is_ok() {
        reached.push("UDP".to_owned());
    }
    told(reached)
}

/// Goes by a granted name that leads to the granted address at the first look-up, into the inside at the second, to credentials at
/// the third, to all of them at the fourth, and so on from the beginning.
pub fn changing_names() -> Result<(), Error> {
    let place = config::get_setting("changing").unwrap_or_default();
    let Some((name, port)) = place.rsplit_once(':') else {
        return told(vec!["nothing: the setting `changing` is not there".to_owned()]);
    };
    let port = port.parse().unwrap_or_default();
    let granted = IpAddr::from([127, 0, 0, 2]);
    let elsewhere = ["127.0.0.1", "169.254.169.254", "::ffff:127.0.0.1"];
    let mut reached = Vec::new();
    for look_up in 1..=4 {
        let expected = match look_up {
            2 | 3 => Err(ErrorCode::AccessDenied),
            _ => Ok(vec![granted]),
        };
        let found = addresses_of(name);
        if found != expected {
            reached.push(format!("look-up {look_up}: {found:?} instead of {expected:?}"));
        }
        // Whatever the name leads to now, what is granted is there, and what is not stays away.
        if !is_greeted(SocketAddr::new(granted, port)) {
            reached.push(format!("look-up {look_up}: not even what is granted"));
        }
        let connects = |address: &&str| {
            let address = address.parse().map(|address| SocketAddr::new(address, port));
            address.is_ok_and(|address| TcpStream::connect(address).is_ok())
        };
        let others = elsewhere.iter().copied().filter(connects);
        reached.extend(others.map(|address| format!("look-up {look_up}: {address}")));
    }
    for look_up in 1..=4 {
        let answer = ask(&Scheme::Http, &Method::Get, &place);
        let is_expected = match look_up {
            2 | 3 => matches!(answer, Err(Some(HttpError::DestinationIpProhibited))),
            _ => answer.is_ok(),
        };
        if !is_expected {
            reached.push(format!("request {look_up}: {answer:?}"));
        }
    }
    told(reached)
}

/// The addresses that a name leads to now.
fn addresses_of(name: &str) -> Result<Vec<IpAddr>, ErrorCode> {
    let found = resolve_addresses(&instance_network(), name)?;
    let mut addresses = Vec::new();
    loop {
        match found.resolve_next_address() {
            Ok(Some(IpAddress::Ipv4((a, b, c, d)))) => addresses.push(IpAddr::from([a, b, c, d])),
            Ok(Some(IpAddress::Ipv6((a, b, c, d, e, f, g, h)))) => {
                addresses.push(IpAddr::from([a, b, c, d, e, f, g, h]));
            }
            Ok(None) => return Ok(addresses),
            Err(ErrorCode::WouldBlock) => found.subscribe().block(),
            Err(error) => return Err(error),
        }
    }
}

/// Whether somebody is there who answers what is said.
fn is_greeted(address: SocketAddr) -> bool {
    let answer = TcpStream::connect(address).and_then(|mut stream| {
        stream.write_all(b"hello")?;
        stream.read(&mut [0; 16])
    });
    answer.is_ok_and(|bytes| bytes > 0)
}

/// Sends HTTP requests beyond what is granted.
pub fn origins() -> Result<(), Error> {
    let Some(port) = config::get_setting("port") else {
        return told(vec!["nothing: the setting `port` is not there".to_owned()]);
    };
    let name = config::get_setting("name").unwrap_or_default();
    let authorities = [
        format!("127.0.0.1:{port}"),
        format!("localhost:{port}"),
        format!("[::1]:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
        format!("0.0.0.0:{port}"),
        format!("127.1:{port}"),
        format!("2130706433:{port}"),
        "169.254.169.254".to_owned(),
        "metadata.google.internal".to_owned(),
        format!("{name}:1"),
        format!("{name}.:{port}"),
        format!("user:password@{name}:{port}"),
        format!("{name}:{port}@127.0.0.1:{port}"),
        // Granted, but for where it leads to.
        format!("{name}:{port}"),
        String::new(),
    ];
    let mut reached = Vec::new();
    for authority in authorities {
        for (scheme, scheme_name) in [(Scheme::Http, "http"), (Scheme::Https, "https")] {
            for method in [Method::Get, Method::Connect] {
                if ask(&scheme, &method, &authority).is_ok() {
                    reached.push(format!("{method:?} {scheme_name}://{authority}"));
                }
            }
        }
    }
    told(reached)
}

/// Sends a request; says why it is not answered, with whatever, where it could be sent.
fn ask(scheme: &Scheme, method: &Method, authority: &str) -> Result<(), Option<HttpError>> {
    let request = OutgoingRequest::new(Fields::new());
    let is_taken = request.set_method(method).is_ok()
        && request.set_scheme(Some(scheme)).is_ok()
        && request.set_authority(Some(authority)).is_ok()
        && request.set_path_with_query(Some("/")).is_ok();
    if !is_taken {
        return Err(None);
    }
    let answer = outgoing_handler::handle(request, None).map_err(Some)?;
    answer.subscribe().block();
    match answer.get() {
        Some(Ok(answer)) => answer.map(drop).map_err(Some),
        _ => Err(None),
    }
}

/// Asks for settings and secrets of others, and of the host.
pub fn names() -> Result<(), Error> {
    let names = [
        "SHARED_SECRET",
        "shared_secret",
        "DATABROKER_STORAGE_CONNECTION_STRING",
        "other",
        "",
        "../granted",
        "PATH",
    ];
    let mut reached: Vec<String> = names
        .into_iter()
        .filter(|name| config::get_setting(name).is_some() || config::get_secret(name).is_some())
        .map(str::to_owned)
        .collect();
    reached.extend(std::env::vars().map(|(name, _)| format!("the variable {name}")));
    reached.extend(std::env::args().map(|argument| format!("the argument {argument}")));
    match config::get_secret("granted").map(|secret| secret.reveal()) {
        Some(Ok(secret)) if secret.starts_with(b"granted") => {}
        other => reached.push(format!("not even what is granted: {other:?}")),
    }
    told(reached)
}

/// Opens files and closes none, until no more can be opened.
pub fn leak_files() -> Result<(), Error> {
    let opened = (0..MANY)
        .take_while(|_| File::open("/data/file").map(std::mem::forget).is_ok())
        .count();
    told(if opened >= MANY {
        vec![format!("{opened} files")]
    } else {
        Vec::new()
    })
}

fn told(reached: Vec<String>) -> Result<(), Error> {
    match reached.as_slice() {
        [] => Ok(()),
        reached => Err(Error::Internal(format!("reached: {}", reached.join(", ")))),
    }
}
