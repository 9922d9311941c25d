//! A master with two real replicas dies. Filled again under its old replication id, it lets them go on from where they
//! stand; replicas that hold what the archive never got are told to take everything anew, and never differ silently.
//! One of them may be promoted instead: its history goes on in the archive. What a seed has to rewrite is in `rewritten`.

use std::sync::Arc;
use std::time::Duration;

use perennial::store::faulty::Faults;

use crate::harness::in_process::MovableClock;
use crate::harness::workload::write_verbatim;
use crate::harness::{
    Archive, BornAsReplica, DEADLINE, Digest, InProcess, Kind, Load, Perennial, Proxy, Server,
    Writers, assert_same, until,
};
use crate::on_every_server;

/// Long enough for every replica to go on from where it stood, however slow the machine.
const BACKLOG: [&str; 2] = ["--repl-backlog-size", "32mb"];
const PINGS_EACH_SECOND: [&str; 2] = ["--repl-ping-replica-period", "1"];
const PING_BYTES: u64 = 14;

const LOAD: Load = Load {
    plain: 3,
    confirming: 1,
    value_bytes: 100,
    pause: Duration::from_millis(2),
};

on_every_server! {
    one_is_promoted_and_followed,
    one_is_promoted_that_lacks_the_last_writes,
    born_a_replica_the_master_lets_them_go_on,
    seeded_from_empty_the_master_lets_them_go_on,
    they_may_ask_at_any_moment_of_the_seed,
    pings_are_stored_before_a_seed,
    pings_that_were_never_stored_mean_a_full_resync,
    writes_that_were_never_stored_mean_a_full_resync,
}

// Before 7.0 a save for replicas cannot be told from one by somebody who wrote: such a server is suspect.
on_every_server! {
    since 7.0;
    they_may_ask_the_empty_master,
}

/// A real replica, and what it has been through.
struct Replica {
    server: Server,
    /// Offset at the death of its master.
    offset: u64,
    /// (full, partial) syncs before that.
    syncs: (usize, usize),
}

impl Replica {
    #[track_caller]
    fn of(master: &Server) -> Self {
        let port = master.port().to_string();
        let config = [["--replicaof", "127.0.0.1"].as_slice(), &[&port], &BACKLOG].concat();
        let server = master.kind().start(&config).unwrap();
        until_level(&server, master);
        Self {
            server,
            offset: 0,
            syncs: (0, 0),
        }
    }

    /// (full, partial), as it logged them.
    fn syncs(&self) -> (usize, usize) {
        let log = self.server.log();
        let count = |text| log.matches(text).count();
        (
            count("sync: Finished with success"),
            count("Successful partial resynchronization"),
        )
    }

    #[track_caller]
    fn until_it_has_been_there_for_a_while(&self) {
        until("it has been there for a while", DEADLINE, || {
            self.server.is_not_young()
        });
    }

    /// Its master is dead: notes where it stands, and stops it, so that it asks when the test wants it to.
    #[track_caller]
    fn note_and_pause(&mut self) {
        until("the replica has lost its link", DEADLINE, || {
            let state = self.server.info("replication");
            state["master_link_status"] == "down"
        });
        self.offset = self.server.info_number("replication", "slave_repl_offset");
        self.syncs = self.syncs();
        self.server.pause();
    }

    /// It went on where it stood, or took everything anew if it was ahead of `end`, the archive's at the seed.
    #[track_caller]
    fn resumes_behind(&mut self, master: &Server, end: u64) {
        self.server.resume();
        until("the replica has synced", DEADLINE, || {
            self.syncs() != self.syncs
        });
        let (full, partial) = self.syncs;
        let expected = if self.offset <= end {
            (full, partial + 1)
        } else {
            (full + 1, partial)
        };
        let found = self.syncs();
        let log = self.server.log();
        assert_eq!(found, expected, "at {}, archive {end}: {log}", self.offset);
        let link = || self.server.info("replication")["master_link_status"] == "up";
        until("its link is up", DEADLINE, link);
        assert!(master.is_master());
    }
}

/// Waits until a replica's link is up and it has all that its master has.
#[track_caller]
fn until_level(replica: &Server, master: &Server) {
    until("the replica is level with its master", DEADLINE, || {
        let state = replica.try_info("replication")?;
        let target = master.try_info("replication")?;
        (state.get("master_link_status")? == "up"
            && state.get("master_replid") == target.get("master_replid")
            && state.get("slave_repl_offset") == target.get("master_repl_offset"))
        .then_some(())
    });
}

/// Writes a marker and waits until the archive and the real replicas have it; the digest of it all.
#[track_caller]
fn stored_digest(master: &Server, replicas: i64) -> Digest {
    let attached = replicas + 1;
    let mut client = master.client();
    until("all are attached", DEADLINE, || {
        let state = master.info("replication");
        state["connected_slaves"] == attached.to_string()
    });
    client.line("INCR marker");
    let confirmed = client.line(&format!("WAIT {attached} 30000")).integer();
    assert_eq!(confirmed, attached);
    Digest::of(&master.address())
}

/// Both replicas, and a server that is started from restored files, hold what the master holds.
#[track_caller]
fn all_are_the_same(master: &Server, replicas: &[Replica], archive: &Archive) -> Digest {
    let count = i64::try_from(replicas.len()).unwrap();
    let expected = stored_digest(master, count);
    for replica in replicas {
        until_level(&replica.server, master);
        assert_same(&expected, &Digest::of(&replica.server.address()));
    }
    let folder = archive.restore("compared", &[]);
    let restored = master.kind().start_on(&folder).unwrap();
    assert_same(&expected, &Digest::of(&restored.address()));
    drop(restored);
    std::fs::remove_dir_all(folder).unwrap();
    expected
}

/// Where the archive stood at the seed that began timeline `seq`.
#[track_caller]
fn seeded_at(archive: &Archive, seq: usize) -> u64 {
    let status = archive.until("the child timeline is there", DEADLINE, |status| {
        status.timelines.len() == seq
    });
    status.timelines[seq - 1].parent.unwrap().offset
}

#[track_caller]
fn ping_each_second(master: &Server, pings: u64) {
    let offset = || master.info_number("replication", "master_repl_offset");
    let target = offset() + pings * PING_BYTES;
    until("pings have been sent", DEADLINE, || offset() >= target);
}

/// The kill comes under load, so a replica may be a little ahead of the archive: then it takes everything anew.
fn born_a_replica_the_master_lets_them_go_on(kind: Kind) {
    let archive = Archive::new();
    let Some(mut born) = BornAsReplica::start_with(kind, &archive, &BACKLOG) else {
        return;
    };
    write_verbatim(&mut born.server.client(), 0);
    let mut replicas = [Replica::of(&born.server), Replica::of(&born.server)];
    let writers = Writers::start(&born.server.address(), LOAD);
    for timelines in 2..=3 {
        writers.until_acknowledged_more(100);
        // The second time it comes up with a dump, and goes on from there itself.
        born.server.client().save();
        writers.until_acknowledged_more(200);
        born.server.kill();
        if timelines == 2 {
            born.server.remove_dump();
        }
        replicas.iter_mut().for_each(Replica::note_and_pause);
        born.server.start_again();
        until("it is a master again", DEADLINE, || born.server.is_master());
        let end = seeded_at(&archive, timelines);
        for replica in &mut replicas {
            replica.resumes_behind(&born.server, end);
        }
    }
    writers.until_acknowledged_more(200);
    let _ = writers.stop();
    all_are_the_same(&born.server, &replicas, &archive);
    archive.status().assert_chain_of(3);
    born.perennial.assert_healthy();
}

fn seeded_from_empty_the_master_lets_them_go_on(kind: Kind) {
    let Some(mut master) = kind.start(&BACKLOG) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&master, &archive, &[]);
    write_verbatim(&mut master.client(), 0);
    let mut replicas = [Replica::of(&master), Replica::of(&master)];
    let writers = Writers::start(&master.address(), LOAD);
    writers.until_acknowledged_more(200);
    // A client would write to the empty server before it is seen empty.
    writers.pause();
    let before = stored_digest(&master, 2);
    master.kill();
    master.remove_dump();
    replicas.iter_mut().for_each(Replica::note_and_pause);
    master.start_again();
    master.until_master_with_data();
    assert_same(&before, &Digest::of(&master.address()));
    writers.resume();
    let end = seeded_at(&archive, 2);
    for replica in &mut replicas {
        assert!(replica.offset <= end, "{} {end}", replica.offset);
        replica.resumes_behind(&master, end);
    }
    writers.until_acknowledged_more(200);
    let _ = writers.stop();
    all_are_the_same(&master, &replicas, &archive);
    archive.status().assert_chain_of(2);
    perennial.assert_healthy();
}

/// Nobody holds the replicas back: they ask the empty server, the one that loads, the one that is half-way.
fn they_may_ask_at_any_moment_of_the_seed(kind: Kind) {
    let archive = Archive::new();
    let Some(mut born) = BornAsReplica::start_with(kind, &archive, &BACKLOG) else {
        return;
    };
    write_verbatim(&mut born.server.client(), 0);
    let replicas = [Replica::of(&born.server), Replica::of(&born.server)];
    let writers = Writers::start(&born.server.address(), LOAD);
    for _ in 0..3 {
        writers.until_confirmed_more(50);
        born.server.kill();
        born.server.remove_dump();
        born.server.start_again();
        until("it is a master again", DEADLINE, || born.server.is_master());
    }
    writers.until_confirmed_more(50);
    let _ = writers.stop();
    all_are_the_same(&born.server, &replicas, &archive);
    archive.status().assert_chain_of(4);
    born.perennial.assert_healthy();
}

/// It has nothing, and that is what they get; the seed fills them again.
fn they_may_ask_the_empty_master(kind: Kind) {
    let Some(mut master) = kind.start(&BACKLOG) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&master, &archive, &[]);
    write_verbatim(&mut master.client(), 0);
    let replicas = [Replica::of(&master), Replica::of(&master)];
    for timelines in 2..=3 {
        let before = stored_digest(&master, 2);
        perennial.pause();
        master.kill();
        master.remove_dump();
        master.start_again();
        until("both have nothing", DEADLINE, || {
            let empty = |replica: &Replica| replica.server.keys() == Some(0);
            replicas.iter().all(empty)
        });
        perennial.resume();
        master.until_master_with_data();
        assert_same(&before, &Digest::of(&master.address()));
        seeded_at(&archive, timelines);
    }
    all_are_the_same(&master, &replicas, &archive);
    archive.status().assert_chain_of(3);
    perennial.assert_healthy();
}

/// A piece of nothing but PINGs waits for company, but not beyond the end of its link: else a replica that got them
/// would be ahead of every seed. The clock is moved, because PINGs soon after a WAIT do not wait.
fn pings_are_stored_before_a_seed(kind: Kind) {
    let Some(mut master) = kind.start(&[BACKLOG, PINGS_EACH_SECOND].concat()) else {
        return;
    };
    let archive = Archive::new();
    let clock = Arc::new(MovableClock::new());
    let follower = InProcess::follow_by(
        &master.url(),
        &archive,
        &Faults::default(),
        Arc::clone(&clock) as _,
    );
    archive.until_durable();
    write_verbatim(&mut master.client(), 0);
    let mut replicas = [Replica::of(&master), Replica::of(&master)];
    let before = stored_digest(&master, 2);
    clock.forward(Duration::from_secs(40));
    ping_each_second(&master, 1);
    let waiting_from = archive.status().durable_offset.unwrap();
    ping_each_second(&master, 2);
    assert_eq!(archive.status().durable_offset, Some(waiting_from));
    master.kill();
    replicas.iter_mut().for_each(Replica::note_and_pause);
    assert!(replicas[0].offset > waiting_from);
    master.remove_dump();
    master.start_again();
    master.until_master_with_data();
    assert_same(&before, &Digest::of(&master.address()));
    let end = seeded_at(&archive, 2);
    for replica in &mut replicas {
        assert!(replica.offset <= end, "{} {end}", replica.offset);
        replica.resumes_behind(&master, end);
    }
    all_are_the_same(&master, &replicas, &archive);
    follower.stop().unwrap();
}

fn pings_that_were_never_stored_mean_a_full_resync(kind: Kind) {
    ahead_of_the_archive(kind, |master| ping_each_second(master, 1));
}

fn writes_that_were_never_stored_mean_a_full_resync(kind: Kind) {
    ahead_of_the_archive(kind, |master| {
        let mut client = master.client();
        client.line("SET never-stored 1");
        assert_eq!(client.line("WAIT 2 30000").integer(), 2);
    });
}

/// Perennial is killed, and the replicas get something that it never got.
#[track_caller]
fn ahead_of_the_archive(kind: Kind, more: impl Fn(&Server)) {
    let archive = Archive::new();
    let config = [BACKLOG, PINGS_EACH_SECOND].concat();
    let Some(mut born) = BornAsReplica::start_with(kind, &archive, &config) else {
        return;
    };
    write_verbatim(&mut born.server.client(), 0);
    let mut replicas = [Replica::of(&born.server), Replica::of(&born.server)];
    let before = stored_digest(&born.server, 2);
    born.perennial.kill();
    more(&born.server);
    for replica in &replicas {
        until_level(&replica.server, &born.server);
    }
    born.server.kill();
    born.server.remove_dump();
    replicas.iter_mut().for_each(Replica::note_and_pause);
    born.perennial.start_again();
    born.server.start_again();
    born.server.until_master_with_data();
    assert_same(&before, &Digest::of(&born.server.address()));
    let end = seeded_at(&archive, 2);
    for replica in &mut replicas {
        assert!(replica.offset > end, "{} {end}", replica.offset);
        replica.resumes_behind(&born.server, end);
    }
    all_are_the_same(&born.server, &replicas, &archive);
    born.perennial.assert_healthy();
}

fn one_is_promoted_and_followed(kind: Kind) {
    let Some(mut master) = kind.start(&BACKLOG) else {
        return;
    };
    let archive = Archive::new();
    let proxy = Proxy::to(&master.address());
    let mut perennial = Perennial::follow_url(&proxy.url(), &archive, &[]);
    archive.until_durable();
    write_verbatim(&mut master.client(), 0);
    let [promoted, other] = [Replica::of(&master), Replica::of(&master)];
    let writers = Writers::start(&master.address(), LOAD);
    promoted.until_it_has_been_there_for_a_while();
    writers.until_acknowledged_more(200);
    master.kill();
    drop(writers);
    promoted.server.client().line("REPLICAOF NO ONE");
    let port = promoted.server.port();
    let parent = format!("REPLICAOF 127.0.0.1 {port}");
    other.server.client().line(&parent);
    let writers = Writers::start(&promoted.server.address(), LOAD);
    proxy.switch_to(&promoted.server.address());
    archive.until("the child timeline is durable", DEADLINE, |status| {
        status.timelines.len() == 2 && status.timelines[1].end.is_some()
    });
    writers.until_confirmed_more(50);
    let _ = writers.stop();
    all_are_the_same(&promoted.server, &[other], &archive);
    archive.status().assert_chain_of(2);
    perennial.assert_healthy();
}

/// It is what clients use from then on, so it is the head; what it lacks can still be restored by name.
fn one_is_promoted_that_lacks_the_last_writes(kind: Kind) {
    let Some(mut master) = kind.start(&BACKLOG) else {
        return;
    };
    let archive = Archive::new();
    let followed = Proxy::to(&master.address());
    let mut perennial = Perennial::follow_url(&followed.url(), &archive, &[]);
    archive.until_durable();
    write_verbatim(&mut master.client(), 0);
    let mut promoted = Replica::of(&master);
    promoted.until_it_has_been_there_for_a_while();
    let before = stored_digest(&master, 1);
    until_level(&promoted.server, &master);
    promoted.server.pause();
    let mut client = master.client();
    client.line("CLIENT KILL TYPE replica");
    client.line("SET late 1");
    client.wait_until_stored(DEADLINE);
    let late = Digest::of(&master.address());
    master.kill();
    promoted.server.resume();
    promoted.note_and_pause();
    promoted.server.resume();
    promoted.server.client().line("REPLICAOF NO ONE");
    followed.switch_to(&promoted.server.address());
    assert_eq!(seeded_at(&archive, 2), promoted.offset);
    assert_same(&before, &Digest::of(&promoted.server.address()));
    all_are_the_same(&promoted.server, &[], &archive);
    archive.status().assert_chain_of(2);
    let folder = archive.restore("late", &["--at", "timeline:1"]);
    let restored = kind.start_on(&folder).unwrap();
    assert_same(&late, &Digest::of(&restored.address()));
    perennial.assert_healthy();
}
