use super::*;

const ID: &str = "0123456789abcdef0123456789abcdef01234567";
const OFFER: PsyncOffer = PsyncOffer {
    request: PsyncRequest::Full,
    listening_port: None,
    ip_address: None,
    eof: false,
    psync2: false,
    version: None,
};

fn options() -> MasterOptions {
    MasterOptions {
        auth: None,
        handshake_timeout_ms: 60_000,
        ack_timeout_ms: 30_000,
    }
}

fn with_auth(user: Option<&str>) -> MasterOptions {
    MasterOptions {
        auth: Some(Auth {
            user: user.map(Into::into),
            password: "secret".into(),
        }),
        ..options()
    }
}

fn ready(options: MasterOptions) -> Master {
    Master::new(options, Readiness::Ready, Ticks(0))
}

/// Everything up to the next wait or the close: what is sent as one text, and the events.
fn drain(master: &mut Master) -> (String, Vec<MasterEvent>) {
    let (mut sent, mut events) = (String::new(), Vec::new());
    loop {
        match master.poll_output() {
            MasterOutput::Send(bytes) => sent.push_str(std::str::from_utf8(&bytes).unwrap()),
            MasterOutput::Event(event) => events.push(event),
            MasterOutput::Wait { .. } | MasterOutput::Close => return (sent, events),
        }
    }
}

fn hear(master: &mut Master, now: u64, bytes: &str) -> (String, Vec<MasterEvent>) {
    master.receive(Ticks(now), Bytes::copy_from_slice(bytes.as_bytes()));
    drain(master)
}

fn until(master: &mut Master) -> Ticks {
    match master.poll_output() {
        MasterOutput::Wait { until } => until,
        other => panic!("{other:?}"),
    }
}

fn id() -> ReplicationId {
    ID.parse().unwrap()
}

#[test]
fn an_inline_handshake_is_understood_in_one_piece() {
    // As 2.8 to 4.0 spell it.
    let mut master = ready(options());
    let handshake = format!(
        "PING\r\nREPLCONF listening-port 6380\r\n\nreplconf CAPA eof capa psync2\nPSYNC {} 1\r\n",
        ID.to_uppercase()
    );
    let offer = PsyncOffer {
        request: PsyncRequest::Continue {
            id: id(),
            after: Offset::ZERO,
        },
        listening_port: Some(6380),
        eof: true,
        psync2: true,
        ..OFFER
    };
    assert_eq!(
        hear(&mut master, 0, &handshake),
        (
            "+PONG\r\n+OK\r\n+OK\r\n".into(),
            vec![MasterEvent::Psync(offer)]
        )
    );
}

#[test]
fn a_payload_is_announced_by_its_length_and_followed_by_the_stream() {
    let mut master = ready(options());
    hear(&mut master, 0, "PSYNC ? -1\r\n");
    master
        .full_resync(Ticks(100), id(), Offset::new(7), Some(6))
        .unwrap();
    assert_eq!(drain(&mut master).0, format!("+FULLRESYNC {ID} 7\r\n"));
    assert_eq!(until(&mut master), Ticks(1100));
    for now in [1100, 2100, 3500] {
        master.time_passed(Ticks(now));
        assert_eq!(drain(&mut master).0, "\n");
        assert_eq!(until(&mut master), Ticks(now + 1000));
    }
    master.payload(Ticks(4000), "abc".into()).unwrap();
    assert_eq!(drain(&mut master).0, "$6\r\nabc");
    assert_eq!(until(&mut master), Ticks(u64::MAX));
    assert!(master.stream("*1\r\n".into()).is_err());
    assert_eq!(drain(&mut master).0, "");
    master.payload(Ticks(9000), "def".into()).unwrap();
    master.stream("*1\r\n".into()).unwrap();
    assert_eq!(drain(&mut master).0, "def*1\r\n");
    assert_eq!(until(&mut master), Ticks(39_000));
    master.time_passed(Ticks(38_999));
    assert_eq!(drain(&mut master), (String::new(), vec![]));
}

#[test]
fn a_length_may_be_said_later() {
    let mut master = ready(options());
    hear(&mut master, 0, "PSYNC ? -1\r\n");
    let now = Ticks(0);
    master.full_resync(now, id(), Offset::ZERO, None).unwrap();
    assert_eq!(master.payload(now, "a".into()), Err(Misuse::LengthUnknown));
    master.begin_payload(now, 3).unwrap();
    assert_eq!(
        drain(&mut master).0,
        format!("+FULLRESYNC {ID} 0\r\n$3\r\n")
    );
    master.time_passed(Ticks(5000));
    assert_eq!(drain(&mut master).0, "", "no \\n inside a payload");
    assert!(master.begin_payload(now, 3).is_err());
}

#[test]
fn our_own_mistakes_are_errors_and_send_nothing() {
    let now = Ticks(0);
    let mut master = ready(options());
    let wrong = |operation, stage| Err(Misuse::WrongStage { operation, stage });
    let handshake = MasterStage::Handshake;
    assert_eq!(
        master.continue_with(now, id()),
        wrong("continue_with", handshake)
    );
    assert_eq!(master.refuse("no"), wrong("refuse", handshake));
    assert_eq!(master.payload(now, "a".into()), wrong("payload", handshake));
    assert_eq!(master.stream("a".into()), wrong("stream", handshake));
    hear(&mut master, 0, "PSYNC ? -1\r\n");
    assert_eq!(
        master.begin_payload(now, 1),
        wrong("begin_payload", MasterStage::Offered)
    );
    master
        .full_resync(now, id(), Offset::ZERO, Some(3))
        .unwrap();
    assert_eq!(
        master.full_resync(now, id(), Offset::ZERO, Some(3)),
        wrong("full_resync", MasterStage::Waiting)
    );
    drain(&mut master);
    let too_long = |sent, given| {
        Err(Misuse::PayloadTooLong {
            announced: 3,
            sent,
            given,
        })
    };
    assert_eq!(master.payload(now, "abcd".into()), too_long(0, 4));
    assert_eq!(drain(&mut master).0, "");
    assert_eq!(
        master.begin_payload(now, 4),
        Err(Misuse::LengthChanged {
            announced: 3,
            given: 4
        })
    );
    master.payload(now, "ab".into()).unwrap();
    assert_eq!(master.payload(now, "cd".into()), too_long(2, 2));
    assert_eq!(drain(&mut master).0, "$3\r\nab");
    master.payload(now, "c".into()).unwrap();
    assert_eq!(
        master.payload(now, "d".into()),
        wrong("payload", MasterStage::Streaming)
    );
}

#[test]
fn continue_says_the_id_to_those_who_know_psync2() {
    let ask = |capa: &str| {
        let mut master = ready(options());
        hear(&mut master, 0, &format!("{capa}PSYNC {ID} 42\r\n"));
        master.continue_with(Ticks(0), id()).unwrap();
        drain(&mut master).0
    };
    assert_eq!(
        ask("REPLCONF capa psync2\r\n"),
        format!("+CONTINUE {ID}\r\n")
    );
    assert_eq!(ask("REPLCONF capa eof\r\n"), "+CONTINUE\r\n");
}

#[test]
fn acknowledgements_are_heard_and_nothing_is_invented() {
    let mut master = ready(options());
    hear(&mut master, 0, &format!("PSYNC {ID} 42\r\n"));
    master.continue_with(Ticks(0), id()).unwrap();
    drain(&mut master);
    let acks = "*3\r\n$8\r\nREPLCONF\r\n$3\r\nACK\r\n$2\r\n41\r\n\n\
                *5\r\n$8\r\nreplconf\r\n$3\r\nack\r\n$2\r\n42\r\n$4\r\nFACK\r\n$2\r\n40\r\n";
    let acked = |ack, fack: Option<u64>| MasterEvent::Acked {
        ack: Offset::new(ack),
        fack: fack.map(Offset::new),
    };
    assert_eq!(
        hear(&mut master, 1000, acks),
        (String::new(), vec![acked(41, None), acked(42, Some(40))])
    );
    for now in (2000..30_000).step_by(1000) {
        master.time_passed(Ticks(now));
        assert_eq!(drain(&mut master), (String::new(), vec![]));
    }
    assert_eq!(until(&mut master), Ticks(31_000));
    master.time_passed(Ticks(31_000));
    let stage = MasterStage::Streaming;
    assert_eq!(drain(&mut master).1, [MasterEvent::TimedOut { stage }]);
    assert_eq!(master.poll_output(), MasterOutput::Close);
}

#[test]
fn behind_psync_only_acknowledgements_have_a_place() {
    for request in [
        "PING\r\n",
        "REPLCONF listening-port 1\r\n",
        "REPLCONF ACK x\r\n",
    ] {
        let mut master = ready(options());
        hear(&mut master, 0, &format!("PSYNC {ID} 42\r\n"));
        assert_eq!(hear(&mut master, 0, request), (String::new(), vec![]));
        master.continue_with(Ticks(0), id()).unwrap();
        let (sent, events) = drain(&mut master);
        assert_eq!(sent, "+CONTINUE\r\n", "no reply in the replication stream");
        assert!(matches!(events[..], [MasterEvent::ProtocolError { .. }]));
        assert_eq!(master.poll_output(), MasterOutput::Close);
    }
}

#[test]
fn until_it_is_decided_replicas_are_asked_to_wait() {
    let mut master = Master::new(options(), Readiness::Undecided, Ticks(0));
    let (sent, events) = hear(
        &mut master,
        0,
        "PING\r\nREPLCONF capa eof\r\nPSYNC ? -1\r\n",
    );
    let replies: Vec<&str> = sent.lines().collect();
    assert!(replies[0].starts_with("-LOADING "), "{sent}");
    assert_eq!(replies[1], "+OK");
    assert_eq!(replies[2], replies[0]);
    assert_eq!(events, [MasterEvent::Refused(RefusedRequest::Undecided)]);

    master.set_readiness(Readiness::Ready);
    let (sent, events) = hear(&mut master, 0, "PING\r\nPSYNC ? -1\r\n");
    assert_eq!(sent, "+PONG\r\n");
    let offer = PsyncOffer { eof: true, ..OFFER };
    assert_eq!(events, [MasterEvent::Psync(offer)]);
}

#[test]
fn a_refusing_master_says_the_same_to_everything() {
    let refusing = Readiness::Refusing("this is\r\na backup".into());
    let mut master = Master::new(with_auth(None), refusing, Ticks(0));
    let requests = "PING\r\nAUTH secret\r\nINFO\r\nREPLCONF capa eof\r\nSYNC\r\nPSYNC ? -1\r\n";
    let (sent, events) = hear(&mut master, 0, requests);
    assert_eq!(sent, "-ERR this is  a backup\r\n".repeat(6));
    assert_eq!(events, [MasterEvent::Refused(RefusedRequest::Refusing)]);
}

#[test]
fn an_offer_may_be_refused_or_postponed_and_made_again() {
    let mut master = ready(with_auth(None));
    let asked = "AUTH secret\r\nREPLCONF listening-port 1\r\nPSYNC ? -1\r\nPSYNC ? -1\r\n";
    let offer = PsyncOffer {
        listening_port: Some(1),
        ..OFFER
    };
    let (sent, events) = hear(&mut master, 0, asked);
    assert_eq!(sent, "+OK\r\n+OK\r\n");
    assert_eq!(events, [MasterEvent::Psync(offer.clone())]);
    master.refuse("too\nold").unwrap();
    let (sent, events) = drain(&mut master);
    assert_eq!(sent, "-ERR too old\r\n");
    assert_eq!(events, [MasterEvent::Psync(offer)]);
    master.postpone().unwrap();
    assert!(drain(&mut master).0.starts_with("-LOADING "));
}

#[test]
fn failover_and_sync_are_refused_always() {
    for readiness in [Readiness::Ready, Readiness::Undecided] {
        let mut master = Master::new(with_auth(None), readiness, Ticks(0));
        let (sent, events) = hear(&mut master, 0, &format!("psync {ID} 42 failover\r\n"));
        assert!(sent.starts_with("-ERR "), "{sent}");
        assert_eq!(events, [MasterEvent::Refused(RefusedRequest::Failover)]);
    }
    let mut master = ready(options());
    let (sent, events) = hear(&mut master, 0, "SYNC\r\n");
    assert!(sent.starts_with("-ERR "), "{sent}");
    assert_eq!(events, [MasterEvent::Refused(RefusedRequest::Sync)]);
}

#[test]
fn a_password_opens_the_door_and_a_wrong_one_locks_it() {
    const NOAUTH: &str = "-NOAUTH Authentication required.\r\n";
    for (user, said) in [
        (None, "AUTH secret"),
        (None, "auth default secret"),
        (None, "AUTH other secret"),
        (Some("replica"), "AUTH replica secret"),
    ] {
        let mut master = ready(with_auth(user));
        let before = hear(
            &mut master,
            0,
            "PING\r\nREPLCONF capa eof\r\nPSYNC ? -1\r\n",
        );
        let refused = MasterEvent::Refused(RefusedRequest::NoPassword);
        assert_eq!(before, (NOAUTH.repeat(3), vec![refused]));
        let after = hear(&mut master, 0, &format!("{said}\r\nPING\r\n"));
        assert_eq!(after, ("+OK\r\n+PONG\r\n".into(), vec![]));
    }
    for (user, said) in [
        (None, "AUTH secre"),
        (None, "AUTH secrets"),
        (Some("replica"), "AUTH secret"),
        (Some("replica"), "AUTH replica wrong"),
    ] {
        let mut master = ready(with_auth(user));
        let (sent, events) = hear(&mut master, 0, &format!("{said}\r\n"));
        assert!(sent.starts_with("-WRONGPASS "), "{said}: {sent}");
        let refused = MasterEvent::Refused(RefusedRequest::WrongPassword);
        assert_eq!(events, [refused]);
        let again = "AUTH replica secret\r\nAUTH secret\r\nPING\r\nPSYNC ? -1\r\n";
        assert_eq!(hear(&mut master, 0, again), (NOAUTH.repeat(4), vec![]));
    }
    let mut master = ready(options());
    let unneeded = hear(&mut master, 0, "AUTH whatever\r\nAUTH a b c\r\n").0;
    assert!(unneeded.starts_with("+OK\r\n-ERR "), "{unneeded}");
}

#[test]
fn psync_is_read_strictly() {
    for (asked, request) in [
        ("? -1".to_owned(), Some(PsyncRequest::Full)),
        (format!("{ID} 0"), Some(PsyncRequest::Full)),
        (format!("{ID} -1"), Some(PsyncRequest::Full)),
        (format!("{ID} x"), None),
        ("0123 5".to_owned(), None),
        (ID.to_owned(), None),
        (format!("{ID} 5 6"), None),
    ] {
        let mut master = ready(options());
        let (sent, events) = hear(&mut master, 0, &format!("PSYNC {asked}\r\n"));
        let (reply, event) = match request {
            Some(request) => ("", MasterEvent::Psync(PsyncOffer { request, ..OFFER })),
            None => ("-ERR ", MasterEvent::Refused(RefusedRequest::BadPsync)),
        };
        assert!(sent.starts_with(reply) && sent.is_empty() == reply.is_empty());
        assert_eq!(events, [event], "PSYNC {asked}");
    }
}

#[test]
fn other_requests_are_errors_and_ack_is_never_answered() {
    let mut master = ready(options());
    let requests = "GET k\r\n*0\r\n*1\r\n$4\r\nINFO\r\nREPLCONF ACK 1\r\nREPLCONF capa\r\nPING\r\n";
    let (sent, events) = hear(&mut master, 0, requests);
    let replies: Vec<&str> = sent.lines().map(|line| &line[..5]).collect();
    assert_eq!(replies, ["-ERR ", "-ERR ", "-ERR ", "+PONG"]);
    assert_eq!(events, []);
}

#[test]
fn a_peer_that_never_comes_to_the_point_is_let_go() {
    let closed = |master: &mut Master, events: Vec<MasterEvent>| {
        assert_eq!(events.len(), 1, "{events:?}");
        assert_eq!(master.poll_output(), MasterOutput::Close);
        assert_eq!(hear(master, 1, "PING\r\n"), (String::new(), vec![]));
        events[0].clone()
    };
    let mut master = ready(options());
    hear(&mut master, 59_000, "PING\r\n");
    assert_eq!(until(&mut master), Ticks(60_000));
    master.time_passed(Ticks(60_000));
    let events = drain(&mut master).1;
    let stage = MasterStage::Handshake;
    assert_eq!(closed(&mut master, events), MasterEvent::TimedOut { stage });

    for (bytes, said) in [
        ("PING\r\n".repeat(1001), "more than 1000 requests"),
        ("x".repeat(64 * 1024), "longer than 65536 bytes"),
        (
            format!("*2\r\n$100000\r\n{}", "x".repeat(64 * 1024)),
            "longer than",
        ),
        ("*1\r\n:1\r\n".into(), "malformed"),
        ("\x16\x03\x01".into(), "TLS"),
    ] {
        let mut master = ready(options());
        let events = hear(&mut master, 0, &bytes).1;
        let event = closed(&mut master, events);
        let MasterEvent::ProtocolError { found, .. } = event else {
            panic!("{event:?}");
        };
        assert!(found.contains(said), "{found}");
    }
    let mut master = ready(options());
    hear(&mut master, 0, "PSYNC ? -1\r\n");
    let events = hear(&mut master, 0, &"\n".repeat(64 * 1024 + 1)).1;
    closed(&mut master, events);
}
