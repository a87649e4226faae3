//! What IP addresses are, for those who judge what may be dialled. Pure: somebody else resolved them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where clouds answer whoever asks with the machine's own credentials.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Where an address leads: an IPv6 address that stands for an IPv4 one leads there, so it is that one which counts.
pub fn meant(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => embedded_v4(v6).map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// What an address is, if it is one that nothing of ours ever dials. Takes what [`meant`] gives.
pub fn never_dialled(address: IpAddr) -> Option<&'static str> {
    if METADATA.contains(&address) {
        return Some("a cloud's metadata service");
    }
    if address.is_multicast() {
        return Some("a multicast address");
    }
    match address {
        IpAddr::V4(v4) if v4.octets().first() == Some(&0) => Some("an unspecified address"),
        IpAddr::V4(v4) if v4.is_link_local() => Some("a link-local address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V6(v6) if v6.is_unspecified() => Some("an unspecified address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        _ => None,
    }
}

/// Whether an address is one of the public internet (IANA special-purpose registries, RFC 6890). Takes what [`meant`]
/// gives.
pub fn is_public(address: IpAddr) -> bool {
    if never_dialled(address).is_some() || address.is_loopback() {
        return false;
    }
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            let shared = a == 100 && (64..128).contains(&b);
            let benchmarks = a == 198 && (b & 0xfe) == 18;
            let protocols = a == 192 && b == 0 && c == 0;
            !(v4.is_private() || v4.is_documentation() || shared || benchmarks || protocols || a >= 240)
        }
        // Only what is handed out is anybody's (2000::/3), without the ranges for documents, Teredo and the like.
        IpAddr::V6(v6) => match v6.segments() {
            [0x2001, b, ..] if b < 0x200 || b == 0xdb8 => false,
            [0x3fff, b, ..] if b < 0x1000 => false,
            [a, ..] => a & 0xe000 == 0x2000,
        },
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped and compatible (RFC 4291 section 2.5.5), NAT64 (RFC 6052
/// section 2.1, RFC 8215) and 6to4 (RFC 3056 section 2).
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let last = |h: u16, l: u16| Ipv4Addr::from(u32::from(h) << 16 | u32::from(l));
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, h, l] => Some(last(h, l)),
        // `::` and `::1` are IPv6's own.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0, h, l] => Some(last(h, l)),
        [0x64, 0xff9b, 0, 0, 0, 0, h, l] | [0x64, 0xff9b, 1, _, _, _, h, l] => Some(last(h, l)),
        [0x2002, h, l, ..] => Some(last(h, l)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_anybody_could_own_is_public() {
        let public = |text: &str| is_public(meant(text.parse().expect(text)));
        for good in ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8"] {
            assert!(public(good), "{good}");
        }
        for bad in [
            "127.0.0.1",
            "::1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "198.18.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "203.0.113.7",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "168.63.129.16",
            "fd00::1",
            "fe80::1",
            "ff02::1",
            "::",
            "2001:db8::1",
            "2001::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::1",
            "fec0::1",
            "3fff:fff::1",
        ] {
            assert!(!public(bad), "{bad}");
        }
    }
}
