//! Which addresses an upstream may have. Pure: judges addresses that somebody else resolved.
//!
//! The judgement is made on the resolved address at each dial, and the dialled address is the judged one, so that a
//! name that changes its mind gains nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Where clouds answer whoever asks with the machine's own credentials.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// An address that may not be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It is in no allowed range.
    #[error("IP validation failed: {0} is not a private address; list it under upstream.allowed_ips if it is meant")]
    NotAllowed(IpAddr),
    /// It is never dialled, whatever is allowed.
    #[error("IP validation failed: {address} is {what}, which is never dialled")]
    Never {
        /// The address as it was resolved.
        address: IpAddr,
        /// What it is.
        what: &'static str,
    },
}

/// The ranges that are allowed.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    allowed: Vec<IpNet>,
}

impl Guard {
    pub(crate) fn new(allowed: Vec<IpNet>) -> Self {
        Self { allowed }
    }

    /// Judges one address.
    pub(crate) fn judge(&self, address: IpAddr) -> Result<(), Refusal> {
        // An IPv6 address that stands for an IPv4 one leads there, so it is that one which counts.
        let meant = match address {
            IpAddr::V6(v6) => embedded_v4(v6).map_or(address, IpAddr::V4),
            IpAddr::V4(_) => address,
        };
        if let Some(what) = never(meant) {
            return Err(Refusal::Never { address, what });
        }
        let mut listed = self.allowed.iter().filter(|range| range.contains(&meant));
        // A wide range such as 0.0.0.0/0 does not mean this machine's own services; only a range that says so does.
        let good = if meant.is_loopback() { listed.any(within_loopback) } else { listed.next().is_some() };
        if good { Ok(()) } else { Err(Refusal::NotAllowed(address)) }
    }
}

fn never(address: IpAddr) -> Option<&'static str> {
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

fn within_loopback(range: &IpNet) -> bool {
    match range {
        IpNet::V4(range) => range.network().is_loopback() && range.prefix_len() >= 8,
        IpNet::V6(range) => range.network().is_loopback() && range.prefix_len() == 128,
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

    fn guard(ranges: &[&str]) -> Guard {
        Guard::new(ranges.iter().map(|text| text.parse().expect(text)).collect())
    }

    fn judge(guard: &Guard, address: &str) -> Result<(), Refusal> {
        guard.judge(address.parse().expect(address))
    }

    #[test]
    fn what_is_listed_may_be_dialled_and_nothing_else() {
        let guard = guard(&["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"]);
        for good in ["10.1.2.3", "172.31.255.255", "192.168.0.1", "fd12::1", "::ffff:10.1.2.3", "64:ff9b::10.0.0.1"] {
            assert_eq!(judge(&guard, good), Ok(()), "{good}");
        }
        for bad in ["127.0.0.1", "::1", "8.8.8.8", "172.32.0.1", "2001:db8::1", "::ffff:8.8.8.8", "2002:808:808::1"] {
            assert!(matches!(judge(&guard, bad), Err(Refusal::NotAllowed(_))), "{bad}");
        }
        let said = judge(&guard, "8.8.8.8").expect_err("refused").to_string();
        assert!(said.starts_with("IP validation failed: 8.8.8.8 is not a private address"), "{said}");
    }

    #[test]
    fn some_addresses_are_never_dialled() {
        let guard = guard(&["0.0.0.0/0", "::/0", "169.254.169.254/32", "fe80::/10", "224.0.0.0/4"]);
        for bad in [
            "169.254.169.254",
            "169.254.1.1",
            "fd00:ec2::254",
            "100.100.100.200",
            "168.63.129.16",
            "224.0.0.1",
            "ff02::1",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "255.255.255.255",
            "fe80::1",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "::ffff:0.0.0.0",
        ] {
            assert!(matches!(judge(&guard, bad), Err(Refusal::Never { .. })), "{bad}");
        }
        for good in ["8.8.8.8", "2001:db8::1"] {
            assert_eq!(judge(&guard, good), Ok(()), "{good}");
        }
    }

    #[test]
    fn loopback_must_be_meant() {
        let wide = guard(&["0.0.0.0/0", "::/0", "0.0.0.0/1"]);
        for address in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1", "2002:7f00:1::"] {
            assert!(matches!(judge(&wide, address), Err(Refusal::NotAllowed(_))), "{address}");
        }
        let meant = guard(&["127.0.0.0/8", "::1/128"]);
        for address in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(judge(&meant, address), Ok(()), "{address}");
        }
        let one = guard(&["127.0.0.1/32"]);
        assert_eq!(judge(&one, "127.0.0.1"), Ok(()));
        assert!(judge(&one, "127.0.0.2").is_err());
    }
}
