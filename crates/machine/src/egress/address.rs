//! Which addresses are somebody else's on the public Internet, and so no way into the host's own network.
//!
//! After the registries of special-purpose addresses (RFC 6890 and what IANA has added since).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// What an address is that is not public; nothing for one that is.
pub(super) fn special(address: IpAddr) -> Option<&'static str> {
    match address.to_canonical() {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => special_v6(address),
    }
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        [0, ..] => Some("unspecified"),
        [127, ..] => Some("loopback"),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Some("private"),
        [169, 254, ..] => Some("link-local"),
        [100, 64..=127, ..] => Some("shared by a carrier's customers"),
        // Public by its number; Azure's hosts answer their guests there.
        [168, 63, 129, 16] => Some("a cloud's own"),
        [192, 0, 0, _] | [192, 88, 99, _] => Some("for protocols"),
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Some("for documentation"),
        [198, 18..=19, ..] => Some("for benchmarks"),
        [224..=239, ..] => Some("multicast"),
        [240..=255, ..] => Some("reserved"),
        _ => None,
    }
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    let [first, second, ..] = address.segments();
    match (first, second) {
        _ if address.is_loopback() => Some("loopback"),
        _ if address.is_unspecified() => Some("unspecified"),
        (0xfc00..=0xfdff, _) => Some("private"),
        (0xfe80..=0xfebf, _) => Some("link-local"),
        (0xfec0..=0xfeff, _) => Some("private"),
        (0xff00..=0xffff, _) => Some("multicast"),
        // Networks without IPv4 reach it so (RFC 6052): what counts is the address inside.
        (0x64, 0xff9b) if address.segments()[2..6] == [0; 4] => {
            let [.., a, b, c, d] = address.octets();
            special_v4(Ipv4Addr::new(a, b, c, d))
        }
        // The first of these hold Teredo's tunnels (RFC 4380) among others.
        (0x2001, 0..=0x1ff) | (0x2002, _) => Some("for protocols"),
        (0x2001, 0xdb8) | (0x3fff, 0..=0xfff) => Some("for documentation"),
        (0x2000..=0x3fff, _) => None,
        _ => Some("reserved"),
    }
}

/// Whether a public address is this host's own: what listens there may trust whoever can reach it. Nothing
/// is sent to find out.
pub(super) fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let from = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    // Where there is no route to it, it is not here.
    from.is_ok_and(|from| from.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        for public in [
            "1.1.1.1",
            "100.63.0.1",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "2606:4700::1111",
            "64:ff9b::101:101",
            "2001:200::1",
            "::ffff:1.1.1.1",
            "223.255.255.255",
        ] {
            assert_eq!(special(public.parse().unwrap()), None, "{public}");
        }
        for special_one in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.254",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.255.255",
            "168.63.129.16",
            "192.0.0.1",
            "192.0.2.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "192.88.99.1",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "64:ff9b:0:1::101:101",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "fc00::1",
            "fdff::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "5f00::1",
            "4000::1",
        ] {
            assert!(special(special_one.parse().unwrap()).is_some(), "{special_one}");
        }
    }

    #[test]
    fn an_address_of_this_host_is_its_own() {
        assert!(is_own(Ipv4Addr::LOCALHOST.into()));
        // For documentation: nobody has it.
        assert!(!is_own(Ipv4Addr::new(192, 0, 2, 1).into()));
    }
}
