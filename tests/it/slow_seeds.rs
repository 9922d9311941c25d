//! Seeds that take long: whatever is quick to give up must not do so while a server is only busy with its seed.

use std::sync::Arc;
use std::time::Duration;

use perennial::store::faulty::Faults;

use crate::harness::servers::VALKEY_9_1;
use crate::harness::{
    Archive, DEADLINE, FastClock, InProcess, Kind, Perennial, Port, Proxy, REDIS_7_0, Trap, Way,
    holds_for, until,
};
use crate::on_every_server;

on_every_server! {
    a_server_that_closes_idle_connections_is_seeded,
}

/// Keys of a mebibyte each.
const LATER: u64 = 16;

/// With `timeout 1` the server closes our control connection while the payload takes its time.
fn a_server_that_closes_idle_connections_is_seeded(kind: Kind) {
    let Some(mut server) = kind.start(&["--timeout", "1"]) else {
        return;
    };
    let (archive, seed) = (Archive::new(), Port::reserve());
    let proxy = Proxy::to(&seed.address());
    let (listen, announce) = (seed.address(), proxy.address());
    let flags = ["--seed-listen", &listen, "--seed-announce", &announce];
    let mut perennial = Perennial::follow(&server, &archive, &flags);
    let mut client = server.client();
    // More than connections hold: as long as not everything is sent, nothing else is asked of the server.
    for key in 0..LATER {
        client.ok(&["SET", &format!("key{key}"), &"x".repeat(1 << 20)]);
    }
    client.wait_until_stored(DEADLINE);

    let trap = proxy.arm(Trap::behind([
        Way::Down.text("+FULLRESYNC"),
        Way::Down.lines(2),
    ]));
    server.lose_everything();
    proxy.until_caught();
    // The server looks every tenth of a second at some of its connections.
    holds_for("it is not given up", Duration::from_secs(6), || {
        !perennial.log().contains("seed failed")
    });
    proxy.let_go(trap);
    server.until_master_with_data();
    assert!(!perennial.log().contains("seed failed"));
    perennial.assert_healthy();
}

#[test]
fn a_payload_may_take_longer_to_load_than_any_silence_redis_7_0() {
    a_payload_may_take_longer_to_load_than_any_silence(REDIS_7_0);
}

#[test]
fn a_payload_may_take_longer_to_load_than_any_silence_valkey_9_1() {
    a_payload_may_take_longer_to_load_than_any_silence(VALKEY_9_1);
}

/// A server that loads reads nothing more, and says only that it lives. Behind the payload there is more than the
/// connection holds.
fn a_payload_may_take_longer_to_load_than_any_silence(kind: Kind) {
    const KEYS: u64 = 300;
    let Some(mut first) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut client = first.client();
    for key in 0..KEYS {
        client.ok(&["SET", &format!("key{key}"), &"x".repeat(1024)]);
    }
    let mut perennial = Perennial::follow(&first, &archive, &[]);
    archive.until_durable();
    for key in 0..LATER {
        client.ok(&["SET", &format!("later{key}"), &"y".repeat(1 << 20)]);
    }
    client.wait_until_stored(DEADLINE);
    perennial.kill();
    first.kill();

    // Nine seconds or more, which are 360: longer than each limit.
    let slow = [
        "--key-load-delay",
        "30000",
        "--loading-process-events-interval-bytes",
        "1024",
    ];
    let Some(server) = kind.start(&slow) else {
        return;
    };
    let clock = Arc::new(FastClock::new(40));
    let seeding = InProcess::follow_by(&server.url(), &archive, &Faults::new(), clock);
    until("it is a master again", DEADLINE, || {
        server.keys().is_some_and(|keys| keys > 0) && server.is_master()
    });
    // And the one that was waited for.
    assert_eq!(server.keys(), Some(KEYS + LATER + 1));
    let log = server.log();
    let attempts = log.matches("REPLICA sync started").count();
    assert_eq!(attempts, 1, "{log}");
    seeding.stop().unwrap();
}
