//! A replica is followed in the coordinates of its master: same id, same offsets, one history, whichever of the two is
//! asked. It is never seeded: it belongs to its master.

use std::time::Duration;

use crate::harness::workload::{write_at_random, write_everything};
use crate::harness::{
    Archive, DEADLINE, Digest, Kind, Perennial, Proxy, Server, assert_same, holds_for,
    random::Random, until,
};
use crate::on_every_server;

/// Without PINGs, so that the offset of the last write is the last offset; and a backlog for what is missed here.
const CONFIG: [&str; 4] = [
    "--repl-ping-replica-period",
    "3600",
    "--repl-backlog-size",
    "32mb",
];

on_every_server! {
    the_archive_goes_on_when_the_master_is_followed_instead,
    a_snapshot_that_begins_in_another_database,
    its_own_link_breaks_and_comes_back,
    it_lags_behind_the_archive,
    its_master_dies_and_it_is_promoted,
    its_master_comes_back_empty,
    a_replica_of_another_server_is_never_seeded,
}

/// A master, a replica of it behind a proxy between the two, and Perennial behind another one that goes to the replica.
struct Scene {
    master: Server,
    replica: Server,
    between: Proxy,
    followed: Proxy,
    archive: Archive,
    perennial: Perennial,
}

impl Scene {
    /// `prepare` is done to the master before Perennial sees the replica.
    #[track_caller]
    fn start(kind: Kind, prepare: impl Fn(&Server)) -> Option<Self> {
        let master = kind.start(&CONFIG)?;
        let between = Proxy::to(&master.address());
        let replica = replica_of(kind, &between.address());
        until("the replica is attached", DEADLINE, || {
            replica.info("replication")["master_link_status"] == "up"
        });
        prepare(&master);
        until_level(&replica, &master);
        let archive = Archive::new();
        let followed = Proxy::to(&replica.address());
        let perennial = Perennial::follow_url(&followed.url(), &archive, &[]);
        archive.until_durable();
        Some(Self {
            master,
            replica,
            between,
            followed,
            archive,
            perennial,
        })
    }

    /// Waits until the archive has all that the master has written; the digest of it. WAIT on the master would speak
    /// of the replica, not of the archive.
    #[track_caller]
    fn stored_digest(&self) -> Digest {
        let digest = Digest::of(&self.master.address());
        let offset = self.master.info_number("replication", "master_repl_offset");
        self.archive
            .until("all of it is durable", DEADLINE, |status| {
                status.durable_offset == Some(offset)
            });
        digest
    }

    /// The one timeline, of one snapshot, under the master's own id.
    #[track_caller]
    fn assert_one_history(&mut self) {
        let status = self.archive.status();
        status.assert_chain_of(1);
        assert_eq!(
            status.timelines[0].id,
            self.master.info("replication")["master_replid"]
        );
        self.perennial.assert_healthy();
    }

    /// Restored into files, the archive is this.
    #[track_caller]
    fn assert_files_hold(&self, expected: &Digest) {
        let folder = self.archive.restore("restored", &[]);
        let restored = self.master.kind().start_on(&folder).unwrap();
        assert_same(expected, &Digest::of(&restored.address()));
        drop(restored);
        std::fs::remove_dir_all(folder).unwrap();
    }
}

fn replica_of(kind: Kind, master: &str) -> Server {
    let (host, port) = master.split_once(':').unwrap();
    let config = [["--replicaof", host, port].as_slice(), &CONFIG].concat();
    kind.start(&config).unwrap()
}

#[track_caller]
fn until_level(replica: &Server, master: &Server) {
    let offset = |server: &Server| server.info_number("replication", "master_repl_offset");
    until("the replica has what its master has", DEADLINE, || {
        offset(replica) == offset(master)
    });
}

fn the_archive_goes_on_when_the_master_is_followed_instead(kind: Kind) {
    let Some(mut scene) = Scene::start(kind, |master| write_everything(&mut master.client(), 0))
    else {
        return;
    };
    let mut random = Random::new();
    let mut client = scene.master.client();
    write_everything(&mut client, 1);
    scene.stored_digest();
    scene.assert_one_history();

    // From the replica to the master, and back again.
    for followed in [scene.master.address(), scene.replica.address()] {
        let resumed = scene.perennial.log().matches("resumed").count();
        scene.followed.switch_to(&followed);
        write_at_random(&mut client, &mut random, 200);
        scene.stored_digest();
        assert!(scene.perennial.log().matches("resumed").count() > resumed);
        scene.assert_one_history();
    }
    // Nor does it matter to a Perennial that knows nothing but the archive.
    scene.perennial.kill();
    write_at_random(&mut client, &mut random, 200);
    scene.followed.switch_to(&scene.master.address());
    scene.perennial.start_again();
    let before = scene.stored_digest();
    scene.assert_one_history();
    scene.assert_files_hold(&before);

    // The master comes up empty, and gets it all back.
    scene.between.down();
    scene.master.kill();
    scene.master.start_again();
    scene.master.until_master_with_data();
    assert_same(&before, &Digest::of(&scene.master.address()));
    scene.perennial.assert_healthy();
}

/// A replica's stream goes on in the database that its master has selected, without saying so again: only the payload
/// tells which (`protocol-facts` 2.3).
fn a_snapshot_that_begins_in_another_database(kind: Kind) {
    let in_three = |master: &Server| {
        let mut client = master.client();
        client.line("SET in-zero 1");
        client.line("SELECT 3");
        client.line("SET before 1");
    };
    let Some(mut scene) = Scene::start(kind, in_three) else {
        return;
    };
    let offset = |scene: &Scene| {
        scene
            .master
            .info_number("replication", "master_repl_offset")
    };
    let mut client = scene.master.client();
    client.line("SELECT 3");
    let at = offset(&scene);
    client.line("SET after 1");
    let spelled = "*3\r\n$3\r\nSET\r\n$5\r\nafter\r\n$1\r\n1\r\n".len() as u64;
    assert_eq!(offset(&scene) - at, spelled, "a SELECT is in the stream");
    let status = scene.archive.status();
    assert_eq!(status.timelines[0].snapshots[0].offset, at);
    let mut before = scene.stored_digest();
    scene.assert_files_hold(&before);

    // Also where Perennial resumed from the archive in between, and goes on in a child.
    scene.perennial.kill();
    scene.perennial.start_again();
    client.line("SET later 1");
    before = {
        let digest = scene.stored_digest();
        assert_ne!(digest.len(), before.len());
        digest
    };
    scene.assert_one_history();
    scene.between.down();
    scene.replica.kill();
    scene.followed.switch_to(&scene.master.address());
    scene.master.kill();
    scene.master.start_again();
    scene.master.until_master_with_data();
    assert_same(&before, &Digest::of(&scene.master.address()));
    scene
        .archive
        .until("its child is there", DEADLINE, |status| {
            status.timelines.len() == 2
        });
    scene.assert_files_hold(&before);
}

fn its_own_link_breaks_and_comes_back(kind: Kind) {
    let Some(mut scene) = Scene::start(kind, |master| write_everything(&mut master.client(), 0))
    else {
        return;
    };
    let link = |scene: &Scene, state: &str| {
        until(&format!("the replica's link is {state}"), DEADLINE, || {
            scene.replica.info("replication")["master_link_status"] == state
        });
    };
    // Linked to us, it goes on where it was.
    scene.between.down();
    link(&scene, "down");
    write_everything(&mut scene.master.client(), 1);
    scene.between.up();
    link(&scene, "up");
    scene.stored_digest();
    scene.assert_one_history();

    // Asked by a new link meanwhile, it refuses; that is said, and waited for.
    scene.between.down();
    link(&scene, "down");
    scene.followed.cut();
    scene
        .perennial
        .until_logged("a replica whose own link to its master is down");
    write_everything(&mut scene.master.client(), 2);
    scene.between.up();
    link(&scene, "up");
    let before = scene.stored_digest();
    scene.assert_one_history();
    scene.assert_files_hold(&before);
}

/// The archive already has what the replica has not received yet: waited for, and nothing is taken twice.
fn it_lags_behind_the_archive(kind: Kind) {
    let Some(mut scene) = Scene::start(kind, |master| write_everything(&mut master.client(), 0))
    else {
        return;
    };
    scene.followed.switch_to(&scene.master.address());
    until("the master has us as well", DEADLINE, || {
        scene.master.info_number("replication", "connected_slaves") == 2
    });
    scene.between.stall();
    write_everything(&mut scene.master.client(), 1);
    scene.stored_digest();
    scene.followed.switch_to(&scene.replica.address());
    scene
        .perennial
        .until_logged("this replica has not received what the archive already holds");
    scene.between.flow();
    until_level(&scene.replica, &scene.master);
    scene.master.client().line("SET last 1");
    let before = scene.stored_digest();
    scene.assert_one_history();
    scene.assert_files_hold(&before);
}

fn its_master_dies_and_it_is_promoted(kind: Kind) {
    let Some(mut scene) = Scene::start(kind, |master| write_everything(&mut master.client(), 0))
    else {
        return;
    };
    write_everything(&mut scene.master.client(), 1);
    let before = scene.stored_digest();
    scene.master.kill();
    scene.followed.cut();
    scene
        .perennial
        .until_logged("a replica whose own link to its master is down");
    // Nobody but its owner may decide what becomes of it.
    holds_for("still a replica", Duration::from_secs(2), || {
        !scene.replica.is_master()
    });
    scene.replica.client().line("REPLICAOF NO ONE");
    scene
        .archive
        .until("the child timeline is there", DEADLINE, |status| {
            status.timelines.len() == 2
        });
    assert_same(&before, &Digest::of(&scene.replica.address()));
    write_everything(&mut scene.replica.client(), 2);
    scene.replica.client().wait_until_stored(DEADLINE);
    let after = Digest::of(&scene.replica.address());
    scene.archive.status().assert_chain_of(2);
    scene.assert_files_hold(&after);
    // A master now, it is one that is filled.
    scene.replica.kill();
    scene.replica.remove_dump();
    let proxied = scene.replica.kind().start(&CONFIG).unwrap();
    scene.followed.switch_to(&proxied.address());
    proxied.until_master_with_data();
    assert_same(&after, &Digest::of(&proxied.address()));
    scene.perennial.assert_healthy();
}

/// Nobody fills a master that is not the one that is followed. It empties its replica; the head stays, and is what the
/// master gets once it is the one.
fn its_master_comes_back_empty(kind: Kind) {
    let Some(mut scene) = Scene::start(kind, |master| write_everything(&mut master.client(), 0))
    else {
        return;
    };
    let before = scene.stored_digest();
    scene.master.kill();
    scene.master.start_again();
    until("the replica is empty too", DEADLINE, || {
        scene.replica.keys() == Some(0)
    });
    let status = scene
        .archive
        .until("it is suspect", DEADLINE, |status| status.suspects() == [2]);
    assert_eq!(status.head_timeline(), 1);
    holds_for("still an empty replica", Duration::from_secs(2), || {
        !scene.replica.is_master() && scene.replica.keys() == Some(0)
    });
    scene.assert_files_hold(&before);

    scene.between.down();
    scene.master.kill();
    scene.followed.switch_to(&scene.master.address());
    scene.master.start_again();
    scene.master.until_master_with_data();
    assert_same(&before, &Digest::of(&scene.master.address()));
    scene.perennial.assert_healthy();
}

/// An archive with data, and an empty replica of an empty master: nothing is done to either, linked or not.
fn a_replica_of_another_server_is_never_seeded(kind: Kind) {
    let Some(first) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&first, &archive, &[]);
    first.client().line("SET ours 1");
    first.client().wait_until_stored(DEADLINE);
    perennial.kill();
    drop(first);

    let mut master = kind.start(&[]).unwrap();
    let replica = replica_of(kind, &master.address());
    until("the replica is attached", DEADLINE, || {
        replica.info("replication")["master_link_status"] == "up"
    });
    let perennial = Perennial::follow_url(&replica.url(), &archive, &[]);
    let port = master.port().to_string();
    let left_alone = |what: &str| {
        holds_for(what, Duration::from_secs(2), || {
            let state = replica.info("replication");
            state["role"] == "slave" && state["master_port"] == port && replica.keys() == Some(0)
        });
    };
    archive.until("it is followed, and suspect", DEADLINE, |status| {
        status.suspects() == [2]
    });
    left_alone("an empty replica with its link up");
    assert_eq!((master.is_master(), master.keys()), (true, Some(0)));
    master.kill();
    drop(perennial);
    let mut perennial = Perennial::follow_url(&replica.url(), &archive, &[]);
    perennial.until_logged("a replica whose own link to its master is down");
    left_alone("an empty replica without a link");
    let status = archive.status();
    assert_eq!((status.head_timeline(), status.timelines.len()), (1, 2));
    perennial.assert_healthy();
}
