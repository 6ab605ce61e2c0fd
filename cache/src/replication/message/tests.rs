use super::*;
use proptest::prelude::*;

fn decoded(bytes: &[u8]) -> Message<'_> {
    let (frame, used) = frame::split(bytes, 1 << 21).unwrap().unwrap();
    assert_eq!(used, bytes.len());
    decode(&frame).unwrap()
}

fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL,
        link_index: 1,
        link_count: 4,
        session: LinkSession { epoch: 6, number: 0x0123_4567_89ab },
        store_id: 0xdead_beef_0102_0304,
        hash_check: 77,
        item_limit: 1 << 20,
        cluster: "shop".to_owned(),
        node: "a".to_owned(),
    }
}

#[test]
fn fixed_messages_come_back_as_they_were() {
    let pair = [3u8, 9, 0, 0, 0, 0, 0, 0, 0, 63, 0, 0, 0, 0, 0, 0, 6, 0];
    let table = [
        Message::Hello(hello()),
        Message::HelloAck { store_id: 5, node: "b" },
        Message::Refused(Refusal::Epoch),
        Message::Refused(Refusal::LinkNumber),
        Message::SyncBegin { partition: 63, version: 6 << 48 },
        Message::SyncEnd { partition: 0, version: 9, last_delete: 8, flush_in: None },
        Message::SyncEnd { partition: 0, version: 9, last_delete: 8, flush_in: Some(0) },
        Message::Ack { epoch: 6, applied: Applied(&pair) },
        Message::Ping(1),
        Message::Pong(u64::MAX),
        Message::Forward { connection: 7, request: 2, bytes: b"get a\r\n" },
        Message::Reply { connection: 7, request: 2, state: ReplyState::Idle, bytes: b"END\r\n" },
        Message::Reply { connection: 7, request: 2, state: ReplyState::Close, bytes: b"" },
        Message::ForwardClose { connection: 7 },
    ];
    for message in table {
        let mut out = Vec::new();
        encode(&mut out, &message);
        assert_eq!(decoded(&out), message);
    }
}

#[test]
fn wrong_forms_are_named() {
    let cases: [(u8, u8, &[u8], PeerMisbehaved); 10] = [
        (99, 0, b"", PeerMisbehaved::UnknownKind(99)),
        (kind::PING, 64, b"", PeerMisbehaved::NoSuchPartition(64)),
        (kind::ACK, 0, b"12345678", malformed("Ack", "length")),
        (kind::ACK, 0, &[64, 0, 0, 0, 0, 0, 0, 0, 0], PeerMisbehaved::NoSuchPartition(64)),
        (kind::PUT, 0, b"", malformed("Put", "too short")),
        (kind::PUT, 0, b"ffffrrrr\x05abcd", malformed("Put", "key runs past the end")),
        (kind::PUT, 0, b"ffffrrrr\0abcd", malformed("record", "key length")),
        (kind::DELETE, 0, b"", malformed("record", "key length")),
        (kind::REPLY, 0, b"12345678\x09", malformed("Reply", "unknown state")),
        (kind::SYNC_END, 0, b"", malformed("SyncEnd", "length")),
    ];
    for (kind, partition, payload, expected) in cases {
        let frame = Frame { kind, partition, version: 0, payload };
        assert_eq!(decode(&frame), Err(expected), "kind {kind}");
    }
}

proptest! {
    #[test]
    fn records_round_trip(
        partition in 0u8..64, version: u64, flags: u32, remaining: u32,
        key in proptest::collection::vec(any::<u8>(), 1..=250),
        value in proptest::collection::vec(any::<u8>(), 0..4000),
        cut in 0usize..4000, copy: bool,
    ) {
        let (left, right) = value.split_at(cut.min(value.len()));
        let item = Item { version, flags, remaining, key: &key, value: &[left, right] };
        let mut out = Vec::new();
        let record = if copy { Record::Copy(item) } else { Record::Put(item) };
        encode_record(&mut out, partition, &record);
        let expected = Arrived::Item { copy, version, flags, remaining, key: &key, value: &value };
        prop_assert_eq!(decoded(&out), Message::Record { partition, record: expected });
        for record in [
            Record::Delete { version, key: &key },
            Record::Touch { version, remaining, key: &key },
            Record::Flush { version },
            Record::FlushAt { version, remaining },
        ] {
            out.clear();
            encode_record(&mut out, partition, &record);
            let record = Arrived::Other(record);
            prop_assert_eq!(decoded(&out), Message::Record { partition, record });
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        fuzz_message(&bytes);
    }

    #[test]
    fn arbitrary_payloads_never_panic(
        kind in 0u8..20, partition in 0u8..70, version: u64,
        payload in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut out = Vec::new();
        let start = frame::begin(&mut out, kind, partition, version);
        out.extend_from_slice(&payload);
        frame::finish(&mut out, start);
        fuzz_message(&out);
    }
}
