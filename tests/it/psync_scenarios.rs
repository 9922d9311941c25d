//! What the servers' own suites put replication through, with Perennial in both roles: links killed under load with a
//! backlog and without, diskless and by disk; nodes that change their masters; masters that restart; and seeds whose link
//! is killed.

use std::time::Duration;

use crate::harness::random::Random;
use crate::harness::workload::{write_at_random, write_everything};
use crate::harness::{
    Archive, DEADLINE, Digest, Kind, Load, Perennial, Port, Proxy, Server, Writers, assert_same,
    until,
};
use crate::on_every_server;
use crate::two_streamers::assert_one_history;

on_every_server! {
    oldest, usual and newest;
    links_killed_under_load_with_a_backlog,
    links_down_under_load_without_a_backlog,
    five_nodes_change_their_masters,
    a_seed_whose_link_is_killed_again_and_again_ends_whole,
}

// Before 7.0 a dump says nothing of its past to a master that loads it.
on_every_server! {
    since 7.0;
    a_master_that_restarts_again_and_again,
}

const LOAD: Load = Load {
    plain: 2,
    confirming: 1,
    value_bytes: 500,
    pause: Duration::from_millis(4),
};

/// Without PINGs a node that has all writes has all bytes.
const NO_PINGS: [&str; 2] = ["--repl-ping-replica-period", "3600"];

fn full_syncs(server: &Server) -> u64 {
    server.info_number("stats", "sync_full")
}

/// A moment of the test's own, to let something happen under load.
fn a_moment(random: &mut Random, milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(random.below(milliseconds)));
}

fn links_killed_under_load_with_a_backlog(kind: Kind) {
    for diskless in ["yes", "no"] {
        let config = [
            "--repl-backlog-size",
            "64mb",
            "--repl-diskless-sync",
            diskless,
        ];
        let Some(server) = kind.start(&config) else {
            return;
        };
        write_everything(&mut server.client(), 0);
        let archive = Archive::new();
        let mut perennial = Perennial::follow(&server, &archive, &[]);
        let before = full_syncs(&server);
        let mut random = Random::new();
        let writers = Writers::start(&server.address(), LOAD);
        for _ in 0..6 {
            writers.until_acknowledged_more(50);
            a_moment(&mut random, 600);
            server.client().line("CLIENT KILL TYPE replica");
        }
        writers.until_confirmed_more(5);
        let _ = writers.stop();
        server.client().wait_until_stored(DEADLINE);
        assert_eq!(full_syncs(&server), before, "diskless {diskless}");
        assert_one_history(&archive, kind, 1, &Digest::of(&server.address()));
        perennial.assert_healthy();
    }
}

/// What is written while the link is down does not fit into the backlog: gaps, and a new snapshot behind each.
fn links_down_under_load_without_a_backlog(kind: Kind) {
    for diskless in ["yes", "no"] {
        let config = [
            "--repl-backlog-size",
            "16kb",
            "--repl-diskless-sync",
            diskless,
        ];
        let Some(mut server) = kind.start(&config) else {
            return;
        };
        write_everything(&mut server.client(), 0);
        let archive = Archive::new();
        let proxy = Proxy::to(&server.address());
        let mut perennial = Perennial::follow_url(&proxy.url(), &archive, &[]);
        archive.until_durable();
        let before = full_syncs(&server);
        let writers = Writers::start(&server.address(), LOAD);
        for _ in 0..2 {
            writers.until_confirmed_more(5);
            proxy.down();
            writers.until_acknowledged_more(200);
            proxy.up();
        }
        writers.until_confirmed_more(5);
        let ledger = writers.stop();
        server.client().wait_until_stored(DEADLINE);
        assert!(full_syncs(&server) > before);
        let expected = Digest::of(&server.address());
        let status = archive.status();
        assert_eq!((status.timelines.len(), status.suspects()), (1, vec![]));
        assert!(!status.timelines[0].gaps.is_empty(), "{status:#?}");
        let folder = archive.restore("restored", &[]);
        let restored = kind.start_on(&folder).unwrap();
        assert_same(&expected, &Digest::of(&restored.address()));
        server.lose_everything();
        server.until_master_with_data();
        assert_same(&expected, &Digest::of(&server.address()));
        ledger.assert_all_in(&server.address());
        perennial.assert_healthy();
    }
}

/// Of `nodes` the one of this number becomes the master; each other one follows one that is already in the tree.
fn plant(nodes: &[Server], master: usize, random: &mut Random) {
    nodes[master].client().line("REPLICAOF NO ONE");
    let mut planted = vec![master];
    let mut others: Vec<usize> = (0..nodes.len()).filter(|node| *node != master).collect();
    while !others.is_empty() {
        let pick = |random: &mut Random, from: &[usize]| {
            usize::try_from(random.below(from.len() as u64)).unwrap()
        };
        let node = others.swap_remove(pick(random, &others));
        let parent = planted[pick(random, &planted)];
        let port = nodes[parent].port();
        let replicaof = format!("REPLICAOF 127.0.0.1 {port}");
        nodes[node].client().line(&replicaof);
        planted.push(node);
    }
}

/// Waits until every node has all that the master has.
#[track_caller]
fn until_all_level(nodes: &[Server], master: usize) {
    let state = |node: &Server| {
        let info = node.info("replication");
        (
            info["master_replid"].clone(),
            info["master_repl_offset"].clone(),
        )
    };
    until("all nodes are level", DEADLINE, || {
        let expected = state(&nodes[master]);
        nodes.iter().all(|node| state(node) == expected)
    });
}

/// Waits until the archive has all that the master has.
#[track_caller]
fn until_stored(archive: &Archive, master: &Server) {
    let end = master.info_number("replication", "master_repl_offset");
    archive.until("all of it is stored", DEADLINE, |status| {
        status.durable_offset == Some(end)
    });
}

fn five_nodes_change_their_masters(kind: Kind) {
    let config = [&["--repl-backlog-size", "16mb"], &NO_PINGS[..]].concat();
    let Some(first) = kind.start(&config) else {
        return;
    };
    let mut nodes = vec![first];
    nodes.extend((1..5).map(|_| kind.start(&config).unwrap()));
    let mut random = Random::new();
    plant(&nodes, 0, &mut random);
    until_all_level(&nodes, 0);
    write_everything(&mut nodes[0].client(), 0);
    until_all_level(&nodes, 0);
    let archive = Archive::new();
    // One that is a replica at first, and a master at times.
    let mut perennial = Perennial::follow(&nodes[4], &archive, &[]);
    let syncs = |nodes: &[Server]| nodes.iter().map(full_syncs).sum::<u64>();
    let before = syncs(&nodes);
    let mut master = 0;
    for round in 0..3 {
        let next = if round == 1 { 4 } else { random.below(4) };
        master = usize::try_from(next).unwrap();
        plant(&nodes, master, &mut random);
        write_at_random(&mut nodes[master].client(), &mut random, 200);
        // A link or two, killed under load.
        let node = usize::try_from(random.below(5)).unwrap();
        nodes[node].client().line("CLIENT KILL TYPE replica");
        write_at_random(&mut nodes[master].client(), &mut random, 200);
        until_all_level(&nodes, master);
        // A server remembers one id before its own: of two changes that nobody saw the first is lost.
        until_stored(&archive, &nodes[master]);
    }
    let expected = Digest::of(&nodes[master].address());
    for node in &nodes {
        assert_same(&expected, &Digest::of(&node.address()));
    }
    let timelines = archive.status().timelines.len() as u64;
    assert_eq!(syncs(&nodes), before, "nobody needed everything anew");
    assert!(timelines > 1, "no id has changed");
    assert_one_history(&archive, kind, timelines, &expected);
    perennial.assert_healthy();
}

/// Stopped in order under load, with a dump, and up again: a child each time, and never a second snapshot.
fn a_master_that_restarts_again_and_again(kind: Kind) {
    const RESTARTS: u64 = 3;
    let Some(mut server) = kind.start(&["--save", "3600", "1"]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    write_everything(&mut server.client(), 0);
    let load = Load {
        pause: Duration::from_millis(10),
        ..LOAD
    };
    let writers = Writers::start_recording(&server.address(), load);
    for _ in 0..RESTARTS {
        writers.until_confirmed_more(3);
        server.terminate();
        server.start_again();
    }
    writers.until_confirmed_more(3);
    let answered = {
        writers.pause();
        writers.answered()
    };
    let _ = writers.stop();
    server.client().wait_until_stored(DEADLINE);
    answered.assert_all_in(&server.address());
    let expected = Digest::of(&server.address());
    assert_one_history(&archive, kind, 1 + RESTARTS, &expected);
    perennial.assert_healthy();
}

/// We are the master of a server that takes its payload by disk or beside its data, over a link that breaks at any byte.
fn a_seed_whose_link_is_killed_again_and_again_ends_whole(kind: Kind) {
    for load in ["disabled", "swapdb"] {
        let seed = Port::reserve();
        let door = Proxy::to(&seed.address());
        let port = door.address().split_once(':').unwrap().1.to_owned();
        let config = [
            "--replicaof",
            "127.0.0.1",
            &port,
            "--replica-serve-stale-data",
            "no",
            "--repl-diskless-load",
            load,
        ];
        let Some(mut server) = kind.start(&config) else {
            return;
        };
        let archive = Archive::new();
        let (listen, announce) = (seed.address(), door.address());
        let flags = ["--seed-listen", &listen, "--seed-announce", &announce];
        let mut perennial = Perennial::follow_url(&server.url(), &archive, &flags);
        until("it is promoted", DEADLINE, || server.is_master());
        archive.until_durable();
        let (mut client, mut random) = (server.client(), Random::new());
        for number in 0..40 {
            let key = format!("large:{number}");
            client.ok(&[b"SET".as_slice(), key.as_bytes(), &random.bytes(50_000)]);
        }
        write_everything(&mut client, 0);
        client.wait_until_stored(DEADLINE);
        let expected = Digest::of(&server.address());

        // Handshake, payload and what comes behind it. A link that broke often is tried more slowly, so only a few times.
        door.cut_after_bytes(random.below(200));
        let cuts = door.cuts();
        server.lose_everything();
        for cut in 1..=3 {
            until("the link is cut", DEADLINE, || door.cuts() >= cuts + cut);
            door.cut_after_bytes(random.below(2_500_000));
        }
        door.cut_after_bytes(u64::MAX);
        server.until_master_with_data();
        assert_same(&expected, &Digest::of(&server.address()));
        server.client().wait_until_stored(DEADLINE);
        assert_one_history(&archive, kind, 2, &Digest::of(&server.address()));
        perennial.assert_healthy();
    }
}
