//! What kind of address an IP address is, which decides whether a name may lead to it.
//!
//! Whoever answers for a name decides where it leads, and that is often not the operator: a name on the outside can be made to
//! lead into the inside. So a granted name leads to public addresses only; everything else must be granted as an address.
//! Forms of IPv6 that carry an address of IPv4 are what that address is, since a router makes it so.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// What kind of address it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Anybody's, on the internet.
    Public,
    /// None at all, which systems take for this machine.
    Unspecified,
    /// This machine.
    Loopback,
    /// A network of one's own: RFC 1918, unique local addresses, and translation prefixes of a network's own.
    Private,
    /// The same cable.
    LinkLocal,
    /// A provider's inner network (RFC 6598).
    Shared,
    /// Many at once, broadcast included.
    Multicast,
    /// Where a cloud's machines ask who they are, and get credentials.
    Metadata,
    /// Set aside for examples, tests and the future.
    Reserved,
}

impl Kind {
    /// The kind of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => of_v4(address),
            IpAddr::V6(address) => of_v6(address),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Public => "public",
            Self::Unspecified => "unspecified",
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::LinkLocal => "link-local",
            Self::Shared => "carrier-grade NAT",
            Self::Multicast => "multicast",
            Self::Metadata => "cloud metadata",
            Self::Reserved => "reserved",
        })
    }
}

/// Cloud metadata and credentials: AWS, Azure, Google, Oracle and others, AWS's containers, Azure's host, Alibaba, Oracle.
const METADATA_V4: [[u8; 4]; 6] = [
    [169, 254, 169, 254],
    [169, 254, 170, 2],
    [169, 254, 170, 23],
    [168, 63, 129, 16],
    [100, 100, 100, 200],
    [192, 0, 0, 192],
];

/// The same of IPv6: AWS, its pods, Google.
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

fn of_v4(address: Ipv4Addr) -> Kind {
    let octets = address.octets();
    if METADATA_V4.contains(&octets) {
        return Kind::Metadata;
    }
    match octets {
        [0, 0, 0, 0] => Kind::Unspecified,
        [127, ..] => Kind::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Kind::Private,
        [169, 254, ..] => Kind::LinkLocal,
        [100, 64..=127, ..] => Kind::Shared,
        [224..=239, ..] | [255, 255, 255, 255] => Kind::Multicast,
        // This network; protocols and examples; 6to4 relays; benchmarks; the future.
        [0, ..]
        | [192, 0, 0 | 2, _]
        | [192, 88, 99, _]
        | [198, 18..=19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _]
        | [240..=255, ..] => Kind::Reserved,
        _ => Kind::Public,
    }
}

fn of_v6(address: Ipv6Addr) -> Kind {
    if METADATA_V6.contains(&address) {
        return Kind::Metadata;
    }
    if address.is_unspecified() {
        return Kind::Unspecified;
    }
    if address.is_loopback() {
        return Kind::Loopback;
    }
    let low = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        of_v4(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        // Mapped, translated (SIIT), and through NAT64.
        [0, 0, 0, 0, 0, 0xffff, a, b] | [0, 0, 0, 0, 0xffff, 0, a, b] | [0x64, 0xff9b, 0, 0, 0, 0, a, b] => low(a, b),
        // 6to4.
        [0x2002, a, b, ..] => low(a, b),
        // A network's own NAT64, where the address of IPv4 can be anywhere.
        [0x64, 0xff9b, 1, ..] => Kind::Private,
        // An address of IPv4 at the end of any prefix (ISATAP) is as local as either of both.
        segments @ [.., 0 | 0x200, 0x5efe, a, b] => match (of_prefix(segments), low(a, b)) {
            (Kind::Public, inner) => inner,
            (outer, _) => outer,
        },
        segments => of_prefix(segments),
    }
}

fn of_prefix(segments: [u16; 8]) -> Kind {
    match segments {
        [0xff00..=0xffff, ..] => Kind::Multicast,
        [0xfe80..=0xfebf, ..] => Kind::LinkLocal,
        // Unique local, and the site-local ones from before.
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Kind::Private,
        // Teredo and protocols, examples; what is not given out at all.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Kind::Reserved,
        [0x2000..=0x3fff, ..] => Kind::Public,
        _ => Kind::Reserved,
    }
}

/// True where a granted range of addresses names this one. One that is not public is named by a range of its kind only, so that
/// `0.0.0.0/0` is the internet and not this network too; and metadata by itself only.
pub fn is_named_by(address: IpAddr, range: &IpNet) -> bool {
    let address = address.to_canonical();
    let kind = Kind::of(address);
    let single = range.prefix_len() == range.max_prefix_len();
    range.contains(&address)
        && (single
            || kind == Kind::Public
            || (kind != Kind::Metadata && Kind::of(range.network()) == kind && Kind::of(range.broadcast()) == kind))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn addresses_are_told_apart_in_all_their_forms() {
        let cases: &[(&str, Kind)] = &[
            ("8.8.8.8", Kind::Public),
            ("1.1.1.1", Kind::Public),
            ("172.15.255.255", Kind::Public),
            ("172.32.0.0", Kind::Public),
            ("100.63.255.255", Kind::Public),
            ("100.128.0.0", Kind::Public),
            ("192.167.255.255", Kind::Public),
            ("198.17.255.255", Kind::Public),
            ("0.0.0.0", Kind::Unspecified),
            ("0.1.2.3", Kind::Reserved),
            ("127.0.0.1", Kind::Loopback),
            ("127.255.255.254", Kind::Loopback),
            ("10.0.0.0", Kind::Private),
            ("10.255.255.255", Kind::Private),
            ("172.16.0.1", Kind::Private),
            ("172.31.255.255", Kind::Private),
            ("192.168.1.1", Kind::Private),
            ("169.254.0.1", Kind::LinkLocal),
            ("169.254.169.254", Kind::Metadata),
            ("169.254.170.2", Kind::Metadata),
            ("168.63.129.16", Kind::Metadata),
            ("100.100.100.200", Kind::Metadata),
            ("100.64.0.1", Kind::Shared),
            ("100.127.255.255", Kind::Shared),
            ("224.0.0.1", Kind::Multicast),
            ("239.255.255.255", Kind::Multicast),
            ("255.255.255.255", Kind::Multicast),
            ("192.0.0.1", Kind::Reserved),
            ("192.0.2.1", Kind::Reserved),
            ("192.88.99.1", Kind::Reserved),
            ("198.18.0.1", Kind::Reserved),
            ("198.51.100.1", Kind::Reserved),
            ("203.0.113.1", Kind::Reserved),
            ("240.0.0.1", Kind::Reserved),
            ("2606:4700:4700::1111", Kind::Public),
            ("2a00::1", Kind::Public),
            ("::", Kind::Unspecified),
            ("::1", Kind::Loopback),
            ("::2", Kind::Reserved),
            // The deprecated form that ends in an address of IPv4.
            ("::127.0.0.1", Kind::Reserved),
            ("::8.8.8.8", Kind::Reserved),
            ("::ffff:127.0.0.1", Kind::Loopback),
            ("::ffff:10.0.0.1", Kind::Private),
            ("::ffff:169.254.169.254", Kind::Metadata),
            ("::ffff:0.0.0.0", Kind::Unspecified),
            ("::ffff:8.8.8.8", Kind::Public),
            ("::ffff:0:10.0.0.1", Kind::Private),
            ("64:ff9b::10.0.0.1", Kind::Private),
            ("64:ff9b::169.254.169.254", Kind::Metadata),
            ("64:ff9b::8.8.8.8", Kind::Public),
            ("64:ff9b:1::8.8.8.8", Kind::Private),
            ("2002:7f00:1::", Kind::Loopback),
            ("2002:a00:1::1", Kind::Private),
            ("2002:a9fe:a9fe::1", Kind::Metadata),
            ("2002:808:808::1", Kind::Public),
            ("2a00::5efe:10.0.0.1", Kind::Private),
            ("2a00::200:5efe:8.8.8.8", Kind::Public),
            ("fe80::5efe:8.8.8.8", Kind::LinkLocal),
            ("fe80::1", Kind::LinkLocal),
            ("febf::1", Kind::LinkLocal),
            ("fec0::1", Kind::Private),
            ("fc00::1", Kind::Private),
            ("fdff:ffff::1", Kind::Private),
            ("fd00:ec2::254", Kind::Metadata),
            ("fd20:ce::254", Kind::Metadata),
            ("ff02::1", Kind::Multicast),
            ("2001::1", Kind::Reserved),
            ("2001:db8::1", Kind::Reserved),
            ("3fff::1", Kind::Reserved),
            ("100::1", Kind::Reserved),
            ("4000::1", Kind::Reserved),
        ];
        for (address, kind) in cases {
            assert_eq!(Kind::of(address.parse().unwrap()), *kind, "{address}");
        }
    }

    #[test]
    fn a_range_names_what_is_of_its_kind() {
        let cases: &[(&str, &str, bool)] = &[
            ("0.0.0.0/0", "8.8.8.8", true),
            ("0.0.0.0/0", "10.0.0.1", false),
            ("0.0.0.0/0", "127.0.0.1", false),
            ("0.0.0.0/0", "169.254.169.254", false),
            ("::/0", "2a00::1", true),
            ("::/0", "fd00::1", false),
            ("::/0", "::ffff:10.0.0.1", false),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("0.0.0.0/1", "10.1.2.3", false),
            ("127.0.0.0/8", "127.0.0.1", true),
            ("169.254.0.0/16", "169.254.1.1", true),
            ("169.254.0.0/16", "169.254.169.254", false),
            ("169.254.169.254/32", "169.254.169.254", true),
            ("fd00::/8", "fd12::1", true),
            ("fd00::/8", "fd00:ec2::254", false),
            ("fd00:ec2::254/128", "fd00:ec2::254", true),
            ("10.0.0.1/32", "10.0.0.1", true),
            ("10.0.0.1/32", "10.0.0.2", false),
        ];
        for (range, address, named) in cases {
            let (range, address) = (range.parse().unwrap(), address.parse().unwrap());
            assert_eq!(is_named_by(address, &range), *named, "{address} in {range}");
        }
    }
}
