//! Byte tables: adverts as keepalived sends them (VRID 51, VIP 10.99.0.100, sender 10.99.0.1 with
//! priority 200), each also with every single bit flipped; round trips; arbitrary bytes.

use proptest::prelude::*;

use super::*;

const SENDER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1));
const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 100));
const LINK_LOCAL: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x64));

/// Version 2, password "seed1234".
const V2_PASS: &str = "2133c8010101cdd20a6300647365656431323334";
/// The same router stopping.
const V2_PASS_STOP: &str = "21330001010195d30a6300647365656431323334";
/// Version 3, 100 ms, checksum with pseudo-header.
const V3: &str = "3133c801000a11070a630064";
/// The same, checksum of the message only.
const V3_PLAIN: &str = "3133c801000afbf90a630064";

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn decode(text: &str, version: Version) -> Result<(Advert, ChecksumKind), Refusal> {
    Advert::decode(&Received::multicast(SENDER, 255, &hex(text)), version)
}

fn v3() -> Advert {
    Advert {
        version: Version::V3,
        vrid: Vrid::new(51).unwrap(),
        priority: Priority::new(200),
        interval: AdvertInterval::from_centiseconds(10).unwrap(),
        addresses: vec![VIP],
        auth: Auth::None,
    }
}

fn v2(priority: u8) -> Advert {
    Advert {
        version: Version::V2,
        priority: Priority::new(priority),
        interval: AdvertInterval::DEFAULT,
        auth: Auth::Simple(*b"seed1234"),
        ..v3()
    }
}

/// Puts a right checksum over `bytes`, so that a later check is what refuses.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[6..8].fill(0);
    let sum = checksum(&bytes, None);
    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
    bytes
}

#[test]
fn captured_adverts_are_read_and_written_to_the_byte() {
    let rows = [
        (V3, v3(), ChecksumKind::PseudoHeader),
        (V3_PLAIN, v3(), ChecksumKind::Plain),
        (V2_PASS, v2(200), ChecksumKind::PseudoHeader),
        (V2_PASS_STOP, v2(0), ChecksumKind::PseudoHeader),
    ];
    for (text, advert, kind) in rows {
        assert_eq!(decode(text, advert.version), Ok((advert.clone(), kind)), "{text}");
        assert_eq!(advert.encode(SENDER, GROUP_V4.into(), kind), Ok(hex(text)), "{text}");
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    for (text, version) in [
        (V3, Version::V3),
        (V3_PLAIN, Version::V3),
        (V2_PASS, Version::V2),
        (V2_PASS_STOP, Version::V2),
    ] {
        for bit in 0..text.len() * 4 {
            let mut bytes = hex(text);
            bytes[bit / 8] ^= 0x80 >> (bit % 8);
            let got = Advert::decode(&Received::multicast(SENDER, 255, &bytes), version);
            let refusal = got.expect_err(&format!("{text}, bit {bit}"));
            match bit {
                0..=3 => assert!(matches!(refusal, Refusal::Version(_)), "{bit}: {refusal}"),
                4..=7 => assert!(matches!(refusal, Refusal::Type(_)), "{bit}: {refusal}"),
                // the address count: too long for the bytes, or a sum over fewer
                24..=31 => assert!(
                    matches!(refusal, Refusal::Length { .. } | Refusal::Checksum),
                    "{bit}: {refusal}"
                ),
                _ => assert_eq!(refusal, Refusal::Checksum, "{bit}"),
            }
        }
    }
}

#[test]
fn checks_come_in_the_order_of_the_rfc() {
    // each row breaks one thing and everything that is checked later too
    let rows: [(u8, &str, Refusal); 8] = [
        (254, "4f00", Refusal::HopLimit(254)),
        (255, "4f000000000000", Refusal::Truncated(7)),
        (255, "4f00000100000000", Refusal::Version(4)),
        (255, "3200000100000000", Refusal::Type(2)),
        (255, "3100000100000000", Refusal::Length { length: 8, needed: 12 }),
        (255, "310000000000ffff", Refusal::Checksum),
        (255, "310000000000ceff", Refusal::OtherVrid(0)),
        (255, "313300000000cecc", Refusal::NoAddresses),
    ];
    for (hop_limit, text, refusal) in rows {
        let bytes = hex(text);
        let received = Received::multicast(SENDER, hop_limit, &bytes);
        assert_eq!(Advert::decode(&received, Version::V3), Err(refusal), "{text}");
    }
    let zero = sealed(hex("3133c801000000000a630064"));
    let received = Received::multicast(SENDER, 255, &zero);
    assert_eq!(Advert::decode(&received, Version::V3), Err(Refusal::IntervalZero));
}

#[test]
fn refusals_have_distinct_names_for_every_index() {
    let names: Vec<_> = (0..Refusal::KINDS).map_while(Refusal::name).collect();
    assert_eq!(names.len(), Refusal::KINDS);
    let unique: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(unique.len(), Refusal::KINDS);
    assert_eq!(Refusal::name(Refusal::KINDS), None);
    assert_eq!(Refusal::name(Refusal::NotStarted.index()), Some("not_started"));
    assert_eq!(Refusal::name(Refusal::Carp.index()), Some("carp"));
}

#[test]
fn reserved_bits_are_ignored_on_reception() {
    let bytes = sealed(hex("3133c801f00a00000a630064"));
    let received = Received::multicast(SENDER, 255, &bytes);
    assert_eq!(Advert::decode(&received, Version::V3), Ok((v3(), ChecksumKind::Plain)));
}

#[test]
fn trailing_bytes_are_padding() {
    let padded = format!("{V3}000000000000");
    assert_eq!(decode(&padded, Version::V3), decode(V3, Version::V3));
}

#[test]
fn versions_do_not_mix() {
    assert_eq!(decode(V2_PASS, Version::V3), Err(Refusal::Version(2)));
    assert_eq!(decode(V3, Version::V2), Err(Refusal::Version(3)));
    let bytes = hex(V2_PASS);
    let received = Received::multicast(LINK_LOCAL, 255, &bytes);
    assert_eq!(Advert::decode(&received, Version::V2), Err(Refusal::Version(2)));
}

#[test]
fn carp_is_recognised_before_anything_is_blamed() {
    // version 2, type 1, vhid 51, advskew 0, authlen 7, pad, advbase 1, checksum, counter, hash
    let carp = format!("21330007000112{}", "ab".repeat(29));
    for version in [Version::V2, Version::V3] {
        assert_eq!(decode(&carp, version), Err(Refusal::Carp));
    }
    // version 2 with five addresses has 36 bytes too
    let addresses = (0..5).map(|n| IpAddr::V4(Ipv4Addr::new(10, 99, 0, n))).collect();
    let five = Advert { addresses, ..v2(100) };
    let bytes = five.encode(SENDER, GROUP_V4.into(), ChecksumKind::Plain).unwrap();
    assert_eq!(bytes.len(), 36);
    let received = Received::multicast(SENDER, 255, &bytes);
    assert_eq!(Advert::decode(&received, Version::V2).unwrap().0, five);
}

#[test]
fn version_2_authentication_types() {
    let none = Advert { auth: Auth::None, ..v2(200) };
    let bytes = none.encode(SENDER, GROUP_V4.into(), ChecksumKind::Plain).unwrap();
    assert_eq!(bytes.len(), 20);
    let received = Received::multicast(SENDER, 255, &bytes);
    assert_eq!(Advert::decode(&received, Version::V2).unwrap().0, none);
    for auth_type in [2, 255] {
        let mut bytes = bytes.clone();
        bytes[4] = auth_type;
        let bytes = sealed(bytes);
        let received = Received::multicast(SENDER, 255, &bytes);
        let got = Advert::decode(&received, Version::V2);
        assert_eq!(got, Err(Refusal::AuthType(auth_type)));
    }
}

#[test]
fn ipv6_always_covers_the_pseudo_header() {
    let advert = Advert { addresses: vec![LINK_LOCAL, VIP6], ..v3() };
    let plain = advert.encode(LINK_LOCAL, GROUP_V6.into(), ChecksumKind::Plain).unwrap();
    let pseudo = advert.encode(LINK_LOCAL, GROUP_V6.into(), ChecksumKind::PseudoHeader).unwrap();
    assert_eq!(plain, pseudo);
    assert_eq!(checksum(&pseudo, Some((LINK_LOCAL, GROUP_V6.into()))), 0);
    let without = sealed(pseudo.clone());
    let decode =
        |bytes: &[u8]| Advert::decode(&Received::multicast(LINK_LOCAL, 255, bytes), Version::V3);
    assert_eq!(decode(&pseudo), Ok((advert, ChecksumKind::PseudoHeader)));
    assert_eq!(decode(&without), Err(Refusal::Checksum));
}

#[test]
fn a_unicast_destination_enters_the_checksum() {
    let to = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 2));
    let bytes = v3().encode(SENDER, to, ChecksumKind::PseudoHeader).unwrap();
    let received = Received { source: SENDER, destination: to, hop_limit: 255, payload: &bytes };
    assert!(Advert::decode(&received, Version::V3).is_ok());
    let elsewhere = Received { destination: GROUP_V4.into(), ..received };
    assert_eq!(Advert::decode(&elsewhere, Version::V3), Err(Refusal::Checksum));
}

#[test]
fn contradictions_have_no_bytes() {
    let encode = |a: Advert| a.encode(SENDER, GROUP_V4.into(), ChecksumKind::Plain).unwrap_err();
    let cases = [
        (Advert { addresses: vec![], ..v3() }, Unencodable::AddressCount(0)),
        (Advert { addresses: vec![VIP; 256], ..v3() }, Unencodable::AddressCount(256)),
        (Advert { addresses: vec![VIP, VIP6], ..v3() }, Unencodable::Family(VIP6)),
        (Advert { auth: Auth::Simple([0; 8]), ..v3() }, Unencodable::Auth),
        (
            Advert { interval: v3().interval, ..v2(1) },
            Unencodable::Interval(AdvertInterval::from_centiseconds(10).unwrap()),
        ),
        (
            Advert { interval: AdvertInterval::from_seconds(41).unwrap(), ..v3() },
            Unencodable::Interval(AdvertInterval::from_seconds(41).unwrap()),
        ),
    ];
    for (advert, error) in cases {
        assert_eq!(encode(advert), error);
    }
}

fn any_advert() -> impl Strategy<Value = (Advert, IpAddr)> {
    let interval = prop_oneof![
        (1..=4095u16).prop_map(|n| (Version::V3, AdvertInterval::from_centiseconds(n).unwrap())),
        (1..=255u8).prop_map(|n| (Version::V2, AdvertInterval::from_seconds(n).unwrap())),
    ];
    let addresses = prop_oneof![
        prop::collection::vec(any::<Ipv4Addr>().prop_map(IpAddr::V4), 1..=255),
        prop::collection::vec(any::<Ipv6Addr>().prop_map(IpAddr::V6), 1..=255),
    ];
    let auth = prop_oneof![Just(Auth::None), any::<[u8; 8]>().prop_map(Auth::Simple)];
    (interval, addresses, auth, 1..=255u8, any::<u8>()).prop_map(
        |((version, interval), addresses, auth, vrid, priority)| {
            let v4 = addresses[0].is_ipv4();
            let (version, interval) =
                if v4 { (version, interval) } else { (Version::V3, AdvertInterval::DEFAULT) };
            let auth = if version == Version::V2 { auth } else { Auth::None };
            let vrid = Vrid::new(vrid).unwrap();
            let priority = Priority::new(priority);
            let advert = Advert { version, vrid, priority, interval, addresses, auth };
            (advert, if v4 { SENDER } else { LINK_LOCAL })
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read_back((advert, source) in any_advert(), plain in any::<bool>()) {
        let kind = if plain { ChecksumKind::Plain } else { ChecksumKind::PseudoHeader };
        let group = Received::multicast(source, 255, &[]).destination;
        let bytes = advert.encode(source, group, kind).unwrap();
        prop_assert!(bytes.len() <= MAX_LENGTH);
        let received = Received::multicast(source, 255, &bytes);
        let (got, got_kind) = Advert::decode(&received, advert.version).unwrap();
        prop_assert_eq!(&got, &advert);
        if advert.version == Version::V3 && source.is_ipv4() {
            prop_assert_eq!(got_kind, kind);
        }
        // and not read when cut anywhere
        for cut in 0..bytes.len() {
            let received = Received::multicast(source, 255, &bytes[..cut]);
            prop_assert!(Advert::decode(&received, advert.version).is_err());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        fuzz_advert(&bytes);
    }

    #[test]
    fn nearly_right_bytes_never_panic(
        (advert, source) in any_advert(),
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
    ) {
        let group = Received::multicast(source, 255, &[]).destination;
        let mut bytes = advert.encode(source, group, ChecksumKind::Plain).unwrap();
        *at.get_mut(&mut bytes) = value;
        fuzz_advert(&bytes);
        fuzz_advert(&sealed(bytes));
    }
}
