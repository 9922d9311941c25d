use super::*;
use crate::position::ReplicationId;

const ID: &str = "0123456789abcdef0123456789abcdef01234567";

fn options() -> ReplicaOptions {
    ReplicaOptions {
        auth: None,
        listening_port: None,
        announce_ip: None,
        version: None,
        rdb_only: false,
        rdb_filter_only: None,
        psync: PsyncRequest::Full,
        handshake_timeout_ms: 60_000,
        idle_timeout_ms: 30_000,
    }
}

fn id() -> ReplicationId {
    ID.parse().unwrap()
}

/// Everything up to the next wait, and until when that is.
fn drain(replica: &mut Replica) -> (Vec<Output>, Ticks) {
    let mut outputs = Vec::new();
    loop {
        match replica.poll_output() {
            Output::Wait { until } => return (outputs, until),
            output => outputs.push(output),
        }
    }
}

fn outputs(replica: &mut Replica) -> Vec<Output> {
    drain(replica).0
}

fn hear(replica: &mut Replica, now: u64, bytes: &str) -> Vec<Output> {
    replica.receive(Ticks(now), Bytes::copy_from_slice(bytes.as_bytes()));
    outputs(replica)
}

/// `words` as one request to send.
fn send(words: &str) -> Output {
    let words: Vec<&[u8]> = words
        .split(' ')
        .map(|word| word.trim_matches('"').as_bytes())
        .collect();
    Output::Send(command(&words))
}

fn event(event: Event) -> Output {
    Output::Event(event)
}

/// A replica behind an empty `$<length>` payload at offset 5, at time 0.
fn streaming(options: ReplicaOptions) -> Replica {
    let mut replica = Replica::new(options, Ticks(0));
    hear(&mut replica, 0, "+PONG\r\n+OK\r\n");
    let said = hear(&mut replica, 0, &format!("+FULLRESYNC {ID} 5\r\n$0\r\n"));
    assert_eq!(said.last(), Some(&send("REPLCONF ACK 0")));
    replica
}

#[test]
fn requests_go_out_one_by_one_in_order() {
    let mut replica = Replica::new(
        ReplicaOptions {
            auth: Some(Auth {
                user: Some("backup".into()),
                password: "secret".into(),
            }),
            listening_port: Some(7999),
            announce_ip: Some("10.0.0.9".into()),
            version: Some("9.1.2".into()),
            rdb_only: true,
            rdb_filter_only: Some(""),
            psync: PsyncRequest::Continue {
                id: id(),
                after: Offset::new(41),
            },
            ..options()
        },
        Ticks(0),
    );
    assert_eq!(outputs(&mut replica), [send("PING")]);
    for (reply, request) in [
        ("+PONG\r\n", "AUTH backup secret"),
        ("+OK\r\n", "REPLCONF listening-port 7999"),
        ("+OK\r\n", "REPLCONF ip-address 10.0.0.9"),
        ("+OK\r\n", "REPLCONF capa eof capa psync2"),
        ("+OK\r\n", "REPLCONF version 9.1.2"),
        ("+OK\r\n", "REPLCONF rdb-filter-only \"\""),
        ("+OK\r\n", "REPLCONF rdb-only 1"),
        ("+OK\r\n", &format!("PSYNC {ID} 42")),
    ] {
        let (most, last) = reply.split_at(reply.len() - 1);
        assert_eq!(hear(&mut replica, 0, most), [], "before {reply:?} is whole");
        assert_eq!(hear(&mut replica, 0, last), [send(request)]);
    }
    assert_eq!(replica.offset(), None);
}

#[test]
fn a_password_is_said_when_ping_asks_for_it() {
    let auth = Some(Auth {
        user: None,
        password: "secret".into(),
    });
    let mut replica = Replica::new(ReplicaOptions { auth, ..options() }, Ticks(0));
    assert_eq!(outputs(&mut replica), [send("PING")]);
    let said = hear(&mut replica, 0, "-NOAUTH Authentication required.\r\n");
    assert_eq!(said, [send("AUTH secret")]);
    assert!(!format!("{replica:?}").contains("secret"));

    let mut replica = Replica::new(options(), Ticks(0));
    outputs(&mut replica);
    let said = hear(&mut replica, 0, "-NOAUTH Authentication required.\r\n");
    assert_eq!(said, [event(Event::Refused(Refusal::AuthRequired))]);
}

#[test]
fn a_refused_option_is_told_before_the_next_request() {
    let rdb_filter_only = Some("functions");
    let mut replica = Replica::new(
        ReplicaOptions {
            rdb_filter_only,
            ..options()
        },
        Ticks(0),
    );
    outputs(&mut replica);
    hear(&mut replica, 0, "+PONG\r\n+OK\r\n");
    let reply = "-ERR Unrecognized REPLCONF option: rdb-filter-only";
    let refused = Event::OptionRefused {
        option: "rdb-filter-only",
        reply: reply.into(),
    };
    let said = hear(&mut replica, 0, &format!("{reply}\r\n"));
    assert_eq!(said, [event(refused), send("PSYNC ? -1")]);
}

#[test]
fn nothing_is_acknowledged_before_the_payload_ends_and_then_at_once() {
    for header in [
        "$10\r\n",
        "$EOF:ffffffffffffffffffffffffffffffffffffffff\r\n",
    ] {
        let mut replica = Replica::new(options(), Ticks(0));
        outputs(&mut replica);
        hear(&mut replica, 0, "+PONG\r\n+OK\r\n");
        replica.acknowledge(Ticks(1), Offset::new(3), None);
        assert_eq!(outputs(&mut replica), []);
        hear(
            &mut replica,
            10,
            &format!("+FULLRESYNC {ID} 5\r\n{header}REDIS"),
        );
        replica.acknowledge(Ticks(11), Offset::new(4), Some(Offset::new(2)));
        replica.time_passed(Ticks(5_000));
        assert_eq!(outputs(&mut replica), []);
        assert_eq!(replica.offset(), Some(Offset::new(5)));

        let end = match header.contains("EOF") {
            true => format!("00011{}", "f".repeat(40)),
            false => "00011".into(),
        };
        let said = hear(&mut replica, 6_000, &format!("{end}*1\r\n"));
        let expected = [
            event(Event::Payload("00011".into())),
            event(Event::PayloadEnds { bytes: 10 }),
            send("REPLCONF ACK 4 FACK 2"),
            event(Event::Stream("*1\r\n".into())),
        ];
        assert_eq!(said, expected);
        assert_eq!(replica.offset(), Some(Offset::new(9)));
    }
}

#[test]
fn acknowledgements_go_out_each_second_and_when_they_move() {
    let mut replica = streaming(options());
    assert_eq!(drain(&mut replica), (vec![], Ticks(1000)));
    replica.time_passed(Ticks(999));
    assert_eq!(drain(&mut replica), (vec![], Ticks(1000)));
    replica.time_passed(Ticks(1000));
    assert_eq!(
        drain(&mut replica),
        (vec![send("REPLCONF ACK 0")], Ticks(2000))
    );
    replica.acknowledge(Ticks(1500), Offset::new(5), None);
    assert_eq!(
        drain(&mut replica),
        (vec![send("REPLCONF ACK 5")], Ticks(2500))
    );
    replica.acknowledge(Ticks(1600), Offset::new(5), None);
    assert_eq!(drain(&mut replica), (vec![], Ticks(2500)));
    replica.acknowledge(Ticks(1700), Offset::new(5), Some(Offset::new(5)));
    assert_eq!(outputs(&mut replica), [send("REPLCONF ACK 5 FACK 5")]);

    // A busy link never comes to a wait: what is due goes out behind what was received.
    let said = hear(&mut replica, 2_700, "*1\r\n");
    let stream = event(Event::Stream("*1\r\n".into()));
    assert_eq!(said, [stream, send("REPLCONF ACK 5 FACK 5")]);
}

#[test]
fn the_stream_is_passed_on_without_a_copy() {
    let mut replica = streaming(options());
    let bytes = Bytes::from(vec![b'x'; 1000]);
    replica.receive(Ticks(1), bytes.clone());
    let said = outputs(&mut replica);
    let [Output::Event(Event::Stream(passed))] = said.as_slice() else {
        panic!("{said:?}");
    };
    assert_eq!(passed.as_ptr(), bytes.as_ptr());
    assert_eq!(replica.offset(), Some(Offset::new(1005)));
}

#[test]
fn a_continued_link_streams_at_once() {
    for (reply, told) in [
        ("+CONTINUE\r\n".to_owned(), None),
        (format!("+CONTINUE {ID}\r\n"), Some(id())),
    ] {
        let psync = PsyncRequest::Continue {
            id: ReplicationId::from_raw([1; 20]),
            after: Offset::new(41),
        };
        let mut replica = Replica::new(ReplicaOptions { psync, ..options() }, Ticks(0));
        outputs(&mut replica);
        hear(&mut replica, 0, "+PONG\r\n+OK\r\n");
        let said = hear(&mut replica, 0, &reply);
        let continued = event(Event::Continued { id: told });
        assert_eq!(said, [continued, send("REPLCONF ACK 0")]);
        assert_eq!(replica.offset(), Some(Offset::new(41)));
        hear(&mut replica, 0, "*1\r\n");
        assert_eq!(replica.offset(), Some(Offset::new(45)));
    }
}

#[test]
fn a_position_asked_for_may_be_answered_with_everything() {
    let psync = PsyncRequest::Continue {
        id: id(),
        after: Offset::new(41),
    };
    let mut replica = Replica::new(ReplicaOptions { psync, ..options() }, Ticks(0));
    outputs(&mut replica);
    let other = "f".repeat(40);
    hear(&mut replica, 0, "+PONG\r\n+OK\r\n");
    let said = hear(&mut replica, 0, &format!("+FULLRESYNC {other} 7\r\n"));
    let expected = Event::FullResync {
        id: other.parse().unwrap(),
        offset: Offset::new(7),
    };
    assert_eq!(said, [event(expected)]);
}

#[test]
fn a_link_for_the_payload_alone_ends_with_it_and_acknowledges_nothing() {
    let rdb_only = true;
    let mut replica = Replica::new(
        ReplicaOptions {
            rdb_only,
            ..options()
        },
        Ticks(0),
    );
    outputs(&mut replica);
    hear(&mut replica, 0, "+PONG\r\n+OK\r\n+OK\r\n");
    let said = hear(
        &mut replica,
        0,
        &format!("+FULLRESYNC {ID} 5\r\n$2\r\nab*1\r\n"),
    );
    assert_eq!(said.last(), Some(&event(Event::PayloadEnds { bytes: 2 })));
    replica.acknowledge(Ticks(1), Offset::new(5), None);
    replica.time_passed(Ticks(1_000_000));
    hear(&mut replica, 1_000_001, "*1\r\n");
    replica.closed();
    assert_eq!(drain(&mut replica), (vec![], Ticks(u64::MAX)));
    assert_eq!(replica.stage(), Stage::Ended);
    assert_eq!(replica.offset(), Some(Offset::new(5)));
}

#[test]
fn a_lone_newline_is_a_sign_of_life() {
    let mut replica = Replica::new(options(), Ticks(0));
    assert_eq!(drain(&mut replica).1, Ticks(60_000));
    hear(&mut replica, 0, "+PONG\r\n+OK\r\n");
    hear(&mut replica, 50_000, "\n");
    assert_eq!(drain(&mut replica), (vec![], Ticks(110_000)));
    hear(
        &mut replica,
        100_000,
        &format!("\n+FULLRESYNC {ID} 5\r\n\n"),
    );
    assert_eq!(drain(&mut replica).1, Ticks(160_000));
    hear(&mut replica, 150_000, "\n");
    assert_eq!(hear(&mut replica, 150_000, "\n\n$3\r\n\n\n").len(), 2);
    assert_eq!(drain(&mut replica).1, Ticks(180_000));
    hear(&mut replica, 150_000, "\n");
    assert_eq!(replica.stage(), Stage::Streaming, "in a payload \\n counts");
}

#[test]
fn silence_is_told_once_with_what_was_waited_for() {
    let silent = |replica: &mut Replica, now: u64| {
        replica.time_passed(Ticks(now - 1));
        let before = outputs(replica);
        assert!(!before.iter().any(|it| matches!(it, Output::Event(_))));
        replica.time_passed(Ticks(now));
        let said = outputs(replica);
        replica.time_passed(Ticks(now * 2));
        hear(replica, now * 2, "+PONG\r\n");
        replica.closed();
        assert_eq!(drain(replica), (vec![], Ticks(u64::MAX)));
        said
    };
    let timed_out = |stage, silent_ms| event(Event::TimedOut { stage, silent_ms });

    let mut replica = Replica::new(options(), Ticks(0));
    outputs(&mut replica);
    hear(&mut replica, 10, "+PO");
    let request = Request::Ping;
    let expected = timed_out(Stage::Handshake { request }, 60_000);
    assert_eq!(silent(&mut replica, 60_010), [expected]);

    let mut replica = Replica::new(options(), Ticks(0));
    outputs(&mut replica);
    hear(&mut replica, 0, "+PONG\r\n+OK\r\n");
    hear(&mut replica, 20, &format!("+FULLRESYNC {ID} 5\r\n$3\r\na"));
    let expected = timed_out(Stage::Payload, 30_000);
    assert_eq!(silent(&mut replica, 30_020), [expected]);

    let mut replica = streaming(options());
    let expected = timed_out(Stage::Streaming, 30_000);
    assert_eq!(silent(&mut replica, 30_000), [expected]);

    let mut replica = Replica::new(options(), Ticks(0));
    outputs(&mut replica);
    hear(&mut replica, 0, "\x05\x01");
    let head = "\\x05\\x01".into();
    let expected = event(Event::Refused(Refusal::NotRedis { head }));
    assert_eq!(silent(&mut replica, 60_000), [expected]);
}

#[test]
fn a_reply_without_end_is_not_gathered_for_ever() {
    for first in ["+", "-", "x"] {
        let mut replica = Replica::new(options(), Ticks(0));
        outputs(&mut replica);
        let mut said = hear(&mut replica, 0, first);
        let mut sent = 0;
        while said.is_empty() {
            assert!(sent <= 64 * 1024, "still gathering");
            said = hear(&mut replica, 0, &"y".repeat(1000));
            sent += 1000;
        }
        let [Output::Event(Event::Refused(Refusal::NotRedis { head }))] = said.as_slice() else {
            panic!("{said:?}");
        };
        assert!(head.len() < 100, "{head}");
    }
}

#[test]
fn silence_while_the_caller_does_not_read_is_not_the_masters() {
    let mut replica = streaming(options());
    for now in (0..600_000).step_by(1000) {
        replica.held_back(Ticks(now));
        replica.time_passed(Ticks(now));
        let said = outputs(&mut replica);
        assert!(!said.iter().any(|it| matches!(it, Output::Event(_))));
    }
    replica.time_passed(Ticks(599_000 + 30_000));
    let expected = event(Event::TimedOut {
        stage: Stage::Streaming,
        silent_ms: 30_000,
    });
    assert_eq!(outputs(&mut replica), [expected]);
}
