//! `FAILOVER` with nobody but us attached must not leave the master read-only.

use crate::harness::{Archive, DEADLINE, Kind, Perennial, until};
use crate::on_every_server;

on_every_server! {
    it_aborts_cleanly_and_writes_go_on,
}

fn it_aborts_cleanly_and_writes_go_on(kind: Kind) {
    let Some(server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    let mut client = server.client();
    client.line("SET before 1");
    client.wait_until_stored(DEADLINE);
    let id = server.info("replication")["master_replid"].clone();
    assert_eq!(client.line("FAILOVER").text(), "OK");
    until("the failover has ended", DEADLINE, || {
        let info = server.info("replication");
        info["role"] == "master" && info["master_failover_state"] == "no-failover"
    });
    assert!(server.log().contains("Failover"), "{}", server.log());
    client.line("SET after 1");
    client.wait_until_stored(DEADLINE);
    // It was a replica for a moment and comes back under a new id: the history goes on in a child, by
    // +CONTINUE, without a second snapshot.
    assert_ne!(server.info("replication")["master_replid"], id);
    archive.status().assert_chain_of(2);
    perennial.assert_healthy();
}
