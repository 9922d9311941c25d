//! A master that has no replica for a while forgets its replication id, not its data (`protocol-facts` 2.6). The very
//! process that the head was captured from is still trusted.

use crate::harness::{Archive, DEADLINE, Kind, Perennial, until};
use crate::on_every_server;

on_every_server! {
    a_master_whose_backlog_expired_is_the_head_behind_a_new_snapshot,
}

fn a_master_whose_backlog_expired_is_the_head_behind_a_new_snapshot(kind: Kind) {
    let Some(server) = kind.start(&["--repl-backlog-ttl", "1"]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    server.client().line("SET before 1");
    server.client().wait_until_stored(DEADLINE);
    let id = || server.info("replication")["master_replid"].clone();
    let old = id();
    perennial.kill();
    until("its id is another one", DEADLINE, || id() != old);
    server.client().line("SET meanwhile 1");

    perennial.start_again();
    let status = archive.until("the new root is restorable", DEADLINE, |status| {
        status.timelines.len() == 2 && status.timelines[1].end.is_some()
    });
    assert!(status.timelines[1].parent.is_none());
    assert_eq!((status.head_timeline(), status.suspects()), (2, vec![]));
    server.client().wait_until_stored(DEADLINE);
    perennial.assert_healthy();
}
