//! A link that is cut at any byte, that stalls or is slow: nothing is lost, nothing is doubled, nothing is fetched anew.

use std::sync::Arc;
use std::time::Duration;

use perennial::store::faulty::Faults;

use crate::harness::random::Random;
use crate::harness::workload::{write_at_random, write_everything};
use crate::harness::{
    Archive, DEADLINE, Digest, FastClock, InProcess, Kind, Load, Perennial, Proxy, Writers,
    assert_same, until,
};
use crate::kill_matrix::on_matrix_servers;

on_matrix_servers! {
    cut_at_random_bytes_under_load,
    cut_during_the_handshake_and_the_first_snapshot,
    a_slow_link_only_takes_longer,
    a_stalled_link_confirms_nothing_and_recovers,
    a_master_that_says_nothing_is_given_up_and_followed_again,
    a_malformed_stream_is_said_with_its_offset_and_nothing_before_or_after_is_lost,
}

const LARGE_BACKLOG: [&str; 2] = ["--repl-backlog-size", "256mb"];

fn cut_at_random_bytes_under_load(kind: Kind) {
    let Some(mut server) = kind.start(&LARGE_BACKLOG) else {
        return;
    };
    let proxy = Proxy::to(&server.address());
    let archive = Archive::new();
    let mut perennial = Perennial::follow_url(&proxy.url(), &archive, &[]);
    archive.until_durable();
    let writers = Writers::start(&server.address(), Load::default());
    let full_syncs = server.info_number("stats", "sync_full");
    let mut random = Random::new();
    let mut client = server.client();
    for round in 0..20 {
        let cuts = proxy.cuts();
        if round % 4 == 0 {
            proxy.cut();
        } else {
            proxy.cut_after_bytes(1 + random.below(20_000));
        }
        write_at_random(&mut client, &mut random, 200);
        until("the link is cut", DEADLINE, || proxy.cuts() > cuts);
    }
    write_everything(&mut client, 1);
    writers.until_confirmed_more(50);
    let ledger = writers.stop();
    assert_eq!(server.info_number("stats", "sync_full"), full_syncs);
    client.wait_until_stored(DEADLINE);
    archive.status().assert_chain_of(1);
    let before = Digest::of(&server.address());
    server.kill();
    server.start_again();
    server.until_master_with_data();
    assert_same(&before, &Digest::of(&server.address()));
    ledger.assert_all_in(&server.address());
    perennial.assert_healthy();
}

fn cut_during_the_handshake_and_the_first_snapshot(kind: Kind) {
    let Some(mut server) = kind.start(&LARGE_BACKLOG) else {
        return;
    };
    write_everything(&mut server.client(), 0);
    let archive = Archive::new();
    let proxy = Proxy::to(&server.address());
    // Every step of the dialogue, then pieces of the payload.
    let bytes = [1, 5, 7, 40, 120, 300, 700, 3000, 100_000, 1_000_000];
    proxy.cut_after_bytes(bytes[0]);
    let mut perennial = Perennial::follow_url(&proxy.url(), &archive, &[]);
    for (number, bytes) in (1..).zip(&bytes[1..]) {
        until("the link is cut", DEADLINE, || proxy.cuts() >= number);
        proxy.cut_after_bytes(*bytes);
    }
    proxy.cut_after_bytes(u64::MAX);
    archive.until_durable();
    server.client().wait_until_stored(DEADLINE);
    archive.status().assert_chain_of(1);
    let before = Digest::of(&server.address());
    server.kill();
    server.start_again();
    server.until_master_with_data();
    assert_same(&before, &Digest::of(&server.address()));
    perennial.assert_healthy();
}

fn a_slow_link_only_takes_longer(kind: Kind) {
    let Some(server) = kind.start(&[]) else {
        return;
    };
    let proxy = Proxy::to(&server.address());
    proxy.delay(Duration::from_millis(100));
    let archive = Archive::new();
    let mut perennial = Perennial::follow_url(&proxy.url(), &archive, &[]);
    archive.until_durable();
    write_everything(&mut server.client(), 0);
    server.client().wait_until_stored(DEADLINE);
    archive.status().assert_chain_of(1);
    perennial.assert_healthy();
}

fn a_stalled_link_confirms_nothing_and_recovers(kind: Kind) {
    let Some(server) = kind.start(&LARGE_BACKLOG) else {
        return;
    };
    let proxy = Proxy::to(&server.address());
    let archive = Archive::new();
    let mut perennial = Perennial::follow_url(&proxy.url(), &archive, &[]);
    archive.until_durable();
    let mut client = server.client();
    client.wait_until_stored(DEADLINE);
    proxy.stall();
    client.line("SET stalled 1");
    assert_eq!(client.line("WAIT 1 500").integer(), 0);
    proxy.flow();
    client.wait_until_stored(DEADLINE);
    archive.status().assert_chain_of(1);
    perennial.assert_healthy();
}

/// A stopped master's connections stay open: only our own limit, 60 s by a clock that here runs faster, ends them.
fn a_master_that_says_nothing_is_given_up_and_followed_again(kind: Kind) {
    let Some(mut server) = kind.start(&["--repl-ping-replica-period", "1"]) else {
        return;
    };
    let proxy = Proxy::to(&server.address());
    let archive = Archive::new();
    let clock = Arc::new(FastClock::new(15));
    let perennial = InProcess::follow_by(&proxy.url(), &archive, &Faults::new(), clock);
    archive.until_durable();
    server.client().wait_until_stored(DEADLINE);
    let connections = proxy.accepted();
    server.pause();
    until("it is looked for anew", DEADLINE, || {
        proxy.accepted() > connections
    });
    server.resume();
    server.client().wait_until_stored(DEADLINE);
    archive.status().assert_chain_of(1);
    perennial.stop().unwrap();
}

/// What servers before 7.0 do to a replica without permission for REPLCONF, and whatever else is no command.
fn a_malformed_stream_is_said_with_its_offset_and_nothing_before_or_after_is_lost(kind: Kind) {
    let Some(mut server) = kind.start(&LARGE_BACKLOG) else {
        return;
    };
    let proxy = Proxy::to(&server.address());
    let archive = Archive::new();
    let mut perennial = Perennial::follow_url(&proxy.url(), &archive, &[]);
    archive.until_durable();
    let mut client = server.client();
    for round in 0..3 {
        client.line(&format!("SET before:{round} 1"));
        client.wait_until_stored(DEADLINE);
        let offset = server.info_number("replication", "master_repl_offset");
        proxy.inject(b"-NOPERM this is no replication stream\r\n");
        perennial.until_logged(&format!("{}", offset + 1));
        client.line(&format!("SET after:{round} 1"));
        client.wait_until_stored(DEADLINE);
    }
    assert!(perennial.log().contains("malformed"), "{}", perennial.log());
    assert!(
        perennial.log().contains(&proxy.address()),
        "{}",
        perennial.log()
    );
    let status = archive.status();
    status.assert_chain_of(1);
    assert!(status.timelines[0].gaps.is_empty(), "{status:#?}");
    let before = Digest::of(&server.address());
    server.kill();
    server.start_again();
    server.until_master_with_data();
    assert_same(&before, &Digest::of(&server.address()));
    perennial.assert_healthy();
}
