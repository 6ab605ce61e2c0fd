//! Whom the kernel talks to on a segment: its ARP table. A master's clients are there, though none
//! of them may have asked for an address for minutes.

use std::net::Ipv4Addr;

use vrrp::arp::Mac;

/// Taken of one interface, at most.
const HOSTS_MAX: usize = 32;

/// Hosts with a known Ethernet address on `interface`, by `/proc/net/arp`.
pub(super) fn read(interface: &str) -> Vec<(Ipv4Addr, Mac)> {
    std::fs::read_to_string("/proc/net/arp").map(|text| parse(&text, interface)).unwrap_or_default()
}

/// Lines of `address, type, flags, Ethernet address, mask, interface`; flag 2 = complete.
fn parse(text: &str, interface: &str) -> Vec<(Ipv4Addr, Mac)> {
    let host = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [address, _, flags, mac, _, device] = words[..] else { return None };
        let flags = u32::from_str_radix(flags.strip_prefix("0x")?, 16).ok()?;
        let complete = flags & 2 != 0 && device == interface;
        Some((address.parse().ok()?, parse_mac(mac)?)).filter(|_| complete)
    };
    text.lines().skip(1).filter_map(host).take(HOSTS_MAX).collect()
}

fn parse_mac(text: &str) -> Option<Mac> {
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    Mac::try_from(bytes?).ok().filter(|mac| *mac != Mac::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_entries_of_the_interface() {
        let text = "IP address       HW type     Flags       HW address        Mask     Device\n\
            10.0.0.9         0x1         0x2         02:00:00:00:00:09     *        lan\n\
            10.0.0.8         0x1         0x0         00:00:00:00:00:00     *        lan\n\
            10.0.0.7         0x1         0x2         02:00:00:00:00:07     *        wan\n\
            10.0.0.6         0x1         0x6         02:00:00:00:00:06     *        lan\n\
            garbage\n";
        let host = |n: u8| (Ipv4Addr::new(10, 0, 0, n), [2, 0, 0, 0, 0, n]);
        assert_eq!(parse(text, "lan"), [host(9), host(6)]);
        assert!(parse("", "lan").is_empty());
    }
}
