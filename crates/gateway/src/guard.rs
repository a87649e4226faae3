//! Which addresses an upstream may have. Pure: judges addresses that somebody else resolved.
//!
//! The judgement is made on the resolved address at each dial, and the dialled address is the judged one, so that a
//! name that changes its mind gains nothing.

use std::net::IpAddr;

use ipnet::IpNet;
use sortie_runtime::addresses::{meant, never_dialled};

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
        let meant = meant(address);
        if let Some(what) = never_dialled(meant) {
            return Err(Refusal::Never { address, what });
        }
        let mut listed = self.allowed.iter().filter(|range| range.contains(&meant));
        // A wide range such as 0.0.0.0/0 does not mean this machine's own services; only a range that says so does.
        let good = if meant.is_loopback() { listed.any(within_loopback) } else { listed.next().is_some() };
        if good { Ok(()) } else { Err(Refusal::NotAllowed(address)) }
    }
}

fn within_loopback(range: &IpNet) -> bool {
    match range {
        IpNet::V4(range) => range.network().is_loopback() && range.prefix_len() >= 8,
        IpNet::V6(range) => range.network().is_loopback() && range.prefix_len() == 128,
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
