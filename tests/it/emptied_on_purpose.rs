//! A data set that its users emptied stays empty: nothing is seeded into it, whatever the link did meanwhile.

use std::time::Duration;

use crate::harness::workload::write_everything;
use crate::harness::{Archive, Client, DEADLINE, Kind, Perennial, Proxy, Server, holds_for, until};
use crate::on_every_server;

on_every_server! {
    flushall_while_linked,
    flushall_while_the_link_is_cut,
    flushall_while_perennial_is_killed_by_the_server,
    flushall_behind_a_backlog_that_is_too_short,
    emptied_by_consumers_while_the_link_is_cut,
    briefly_empty_while_the_link_is_cut,
    flushall_while_perennial_is_dead,
    a_takeover_would_be_seen_in_the_log,
}

// Before 7.0 a master that is started again has a new id and no trace of the old one: an empty one is taken for one
// that lost everything.
on_every_server! {
    since 7.0;
    emptied_then_restarted_in_order,
    emptied_and_restarted_in_order_while_the_link_is_cut,
}

/// A server with data, followed through a proxy.
struct Scene {
    server: Server,
    proxy: Proxy,
    archive: Archive,
    perennial: Perennial,
}

fn scene(kind: Kind, config: &[&str]) -> Option<Scene> {
    let server = kind.start(config)?;
    let proxy = Proxy::to(&server.address());
    let archive = Archive::new();
    let perennial = Perennial::follow_url(&proxy.url(), &archive, &[]);
    archive.until_durable();
    write_everything(&mut server.client(), 0);
    server.client().wait_until_stored(DEADLINE);
    Some(Scene {
        server,
        proxy,
        archive,
        perennial,
    })
}

impl Scene {
    /// Cuts the link and sees to it that the server has noticed.
    #[track_caller]
    fn cut_the_link(&self) {
        self.proxy.down();
        until("the server has lost its replica", DEADLINE, || {
            self.server.info_number("replication", "connected_slaves") == 0
        });
    }

    /// Lets Perennial come back, and checks that the server keeps exactly `keys` keys of its own: over the time that
    /// a decision takes, and then with one more write that is stored.
    #[track_caller]
    fn assert_left_alone(&mut self, keys: u64) {
        self.proxy.up();
        until("perennial follows again", DEADLINE, || {
            self.server.info_number("replication", "connected_slaves") == 1
        });
        holds_for("a master with its own data", Duration::from_secs(2), || {
            self.server.is_master() && self.server.keys() == Some(keys)
        });
        self.server.client().wait_until_stored(DEADLINE);
        // The marker is one more.
        assert_eq!(self.server.keys(), Some(keys + 1));
        let status = self.archive.status();
        assert!(status.suspects().is_empty(), "{status:#?}");
        assert!(!self.server.log().contains("REPLICAOF"));
        self.perennial.assert_healthy();
    }
}

fn flushall_while_linked(kind: Kind) {
    let Some(mut scene) = scene(kind, &[]) else {
        return;
    };
    scene.server.client().line("FLUSHALL");
    scene.assert_left_alone(0);
    assert_eq!(scene.archive.status().timelines.len(), 1);
}

fn flushall_while_the_link_is_cut(kind: Kind) {
    let Some(mut scene) = scene(kind, &["--repl-backlog-size", "64mb"]) else {
        return;
    };
    scene.cut_the_link();
    scene.server.client().line("FLUSHALL");
    scene.assert_left_alone(0);
    assert_eq!(scene.archive.status().timelines.len(), 1);
}

fn flushall_while_perennial_is_killed_by_the_server(kind: Kind) {
    let Some(mut scene) = scene(kind, &[]) else {
        return;
    };
    let mut client = scene.server.client();
    let commands = [vec!["CLIENT", "KILL", "TYPE", "replica"], vec!["FLUSHALL"]];
    client.pipeline(&commands).unwrap();
    scene.assert_left_alone(0);
    assert_eq!(scene.archive.status().timelines.len(), 1);
}

/// The same id, further on than the backlog reaches: a gap, and still nothing to seed.
fn flushall_behind_a_backlog_that_is_too_short(kind: Kind) {
    let Some(mut scene) = scene(kind, &["--repl-backlog-size", "16kb"]) else {
        return;
    };
    scene.cut_the_link();
    let mut client = scene.server.client();
    client.ok(&["SET", "filler", &"x".repeat(1 << 20)]);
    client.line("FLUSHALL");
    scene.assert_left_alone(0);
    let status = scene.archive.status();
    assert_eq!(status.timelines.len(), 1, "{status:#?}");
    assert_eq!(status.timelines[0].gaps.len(), 1, "{status:#?}");
}

fn emptied_by_consumers_while_the_link_is_cut(kind: Kind) {
    let Some(mut scene) = scene(kind, &["--repl-backlog-size", "64mb"]) else {
        return;
    };
    let mut client = scene.server.client();
    client.line("FLUSHALL");
    client.line("RPUSH queue a b c");
    client.wait_until_stored(DEADLINE);
    client.line("DEL perennial:marker");
    scene.cut_the_link();
    for _ in 0..3 {
        client.line("BLPOP queue 1");
    }
    scene.assert_left_alone(0);
}

fn briefly_empty_while_the_link_is_cut(kind: Kind) {
    let Some(mut scene) = scene(kind, &["--repl-backlog-size", "64mb"]) else {
        return;
    };
    scene.cut_the_link();
    let mut client = scene.server.client();
    client.line("FLUSHALL");
    client.line("SET only 1");
    scene.assert_left_alone(1);
    assert_eq!(scene.archive.status().timelines.len(), 1);
}

/// Perennial itself was away when it happened.
fn flushall_while_perennial_is_dead(kind: Kind) {
    let Some(mut scene) = scene(kind, &["--repl-backlog-size", "64mb"]) else {
        return;
    };
    scene.perennial.kill();
    scene.server.client().line("FLUSHALL");
    scene.perennial.start_again();
    scene.assert_left_alone(0);
    assert_eq!(scene.archive.status().timelines.len(), 1);
}

/// An orderly restart with a dump: the server continues the same history.
fn emptied_then_restarted_in_order(kind: Kind) {
    let Some(mut scene) = scene(kind, &["--save", "3600", "1"]) else {
        return;
    };
    scene.server.client().line("FLUSHALL");
    scene.server.terminate();
    scene.server.start_again();
    scene.assert_left_alone(0);
}

/// The FLUSHALL never reached us, and the restarted server, empty and without a write since its start, looks like
/// one that lost everything. Its second id says otherwise: its history goes on from ours, beyond what we have.
fn emptied_and_restarted_in_order_while_the_link_is_cut(kind: Kind) {
    let Some(mut scene) = scene(kind, &["--save", "3600", "1"]) else {
        return;
    };
    scene.cut_the_link();
    scene.server.client().line("FLUSHALL");
    scene.server.terminate();
    scene.server.start_again();
    scene.assert_left_alone(0);
}

/// What the scene relies on: a server says in its log when somebody makes it a replica.
fn a_takeover_would_be_seen_in_the_log(kind: Kind) {
    let Some(server) = kind.start(&[]) else {
        return;
    };
    let mut client = Client::connect(&server.address()).unwrap();
    client.line("REPLICAOF 127.0.0.1 1");
    until("it is logged", DEADLINE, || {
        server.log().contains("REPLICAOF")
    });
}
