//! A server whose configuration makes it a replica of Perennial at every start: each row of what it may hold when it
//! comes, and what is done with it. Never is data lost that the archive does not have, nor served what is not its own.
//! As a replica 6.2 goes on from its dump's position as well. What a seed has to rewrite is in `rewritten`.

use std::fs;
use std::time::Duration;

use crate::harness::workload::{write_everything, write_verbatim};
use crate::harness::{
    Archive, BornAsReplica, DEADLINE, Digest, Kind, Load, Perennial, Server, Status, Writers,
    assert_same, holds_for, until,
};
use crate::on_every_server;

/// What the server logs when it went on from where it stood, and when it was sent a payload instead.
const CONTINUED: &str = "Successful partial resynchronization";
const SENT_A_PAYLOAD: &str = "Full resync from";

on_every_server! {
    a_stale_dump_of_ours_is_continued_and_no_payload_is_sent,
    seed_if_empty_continues_and_fills,
    without_data_beside_an_empty_archive_it_is_promoted_at_once,
    without_data_it_is_seeded,
    a_stale_server_catches_up_under_busy_clients,
    a_dump_ahead_of_the_archive_is_never_served,
    a_foreign_dump_is_promoted_untouched_and_suspect,
    an_append_only_file_is_promoted_untouched_and_suspect,
    an_append_only_file_without_data_is_seeded,
    seed_never_serves_nobody,
    seed_start_over_promotes_whatever_is_there,
}

// A full sync of 6.2 writes a dump over the one that was there.
on_every_server! {
    since 7.0;
    a_dump_from_before_the_first_snapshot_is_seeded,
    seed_if_empty_leaves_a_dump_from_before_the_first_snapshot_alone,
}

#[track_caller]
fn until_a_master(server: &Server) {
    until("it is a master", DEADLINE, || server.is_master());
}

/// Writes one more round that is stored. The digest of all there is then.
#[track_caller]
fn write_and_store(server: &Server, round: u64) -> Digest {
    write_verbatim(&mut server.client(), round);
    server.client().wait_until_stored(DEADLINE);
    Digest::of(&server.address())
}

/// How often a server has logged a text.
fn logged(server: &Server, text: &str) -> usize {
    server.log().matches(text).count()
}

#[track_caller]
fn until_followed(archive: &Archive, timelines: usize) -> Status {
    archive.until(
        &format!("timeline {timelines} is durable"),
        DEADLINE,
        |status| {
            status.timelines.len() == timelines && status.timelines[timelines - 1].end.is_some()
        },
    )
}

/// Another server's data in a `dump.rdb`, with the replication id and offset of its own history.
fn dump_of_a_stranger(kind: Kind, to: &Server) -> Digest {
    let stranger = kind.start(&[]).unwrap();
    let elsewhere = Archive::new();
    let perennial = Perennial::follow(&stranger, &elsewhere, &[]);
    let mut client = stranger.client();
    write_everything(&mut client, 7);
    client.line("SET theirs 1");
    client.wait_until_stored(DEADLINE);
    client.save();
    let digest = Digest::of(&stranger.address());
    fs::copy(
        stranger.folder().join("dump.rdb"),
        to.folder().join("dump.rdb"),
    )
    .unwrap();
    drop(perennial);
    digest
}

fn without_data_beside_an_empty_archive_it_is_promoted_at_once(kind: Kind) {
    let archive = Archive::new();
    let Some(mut born) = BornAsReplica::start(kind, &archive) else {
        return;
    };
    assert_eq!(born.server.keys(), Some(0));
    assert_eq!(logged(&born.server, SENT_A_PAYLOAD), 0);
    born.perennial
        .until_logged("promoting the replica as it is");
    write_and_store(&born.server, 0);
    archive.status().assert_chain_of(1);
    born.perennial.assert_healthy();
}

fn without_data_it_is_seeded(kind: Kind) {
    let archive = Archive::new();
    let Some(mut born) = BornAsReplica::start(kind, &archive) else {
        return;
    };
    let before = write_and_store(&born.server, 0);
    born.server.kill();
    born.server.remove_dump();
    born.server.start_again();
    born.server.until_master_with_data();
    assert_same(&before, &Digest::of(&born.server.address()));
    assert_eq!(logged(&born.server, SENT_A_PAYLOAD), 1);
    until_followed(&archive, 2).assert_chain_of(2);
    born.perennial.assert_healthy();
}

fn a_stale_dump_of_ours_is_continued_and_no_payload_is_sent(kind: Kind) {
    let archive = Archive::new();
    let Some(mut born) = BornAsReplica::start(kind, &archive) else {
        return;
    };
    let server = &mut born.server;
    for generation in 1..=2 {
        write_verbatim(&mut server.client(), generation * 2);
        server.client().save();
        let before = write_and_store(server, generation * 2 + 1);
        server.kill();
        server.start_again();
        until_a_master(server);
        assert_same(&before, &Digest::of(&server.address()));
        let continued = usize::try_from(generation).unwrap();
        assert_eq!(logged(server, CONTINUED), continued, "{}", server.log());
        assert_eq!(logged(server, SENT_A_PAYLOAD), 0, "{}", server.log());
        until_followed(&archive, continued + 1);
    }
    archive.status().assert_chain_of(3);
    born.perennial.assert_healthy();
}

fn a_stale_server_catches_up_under_busy_clients(kind: Kind) {
    let archive = Archive::new();
    let Some(mut born) = BornAsReplica::start(kind, &archive) else {
        return;
    };
    let server = &mut born.server;
    let writers = Writers::start(&server.address(), Load::default());
    writers.until_confirmed_more(50);
    server.client().save();
    for generation in 2..=3 {
        writers.until_confirmed_more(100);
        server.kill();
        server.start_again();
        archive.until("the next generation is archived", DEADLINE, |status| {
            status.timelines.len() == generation
        });
        until_a_master(server);
        writers.ledger().assert_all_in(&server.address());
    }
    writers.until_confirmed_more(50);
    writers.stop().assert_all_in(&server.address());
    assert!(archive.status().suspects().is_empty());
    born.perennial.assert_healthy();
}

/// Perennial was away while the master went on and saved: nothing of that is in the archive, so nothing is served.
fn a_dump_ahead_of_the_archive_is_never_served(kind: Kind) {
    let archive = Archive::new();
    let Some(mut born) = BornAsReplica::start(kind, &archive) else {
        return;
    };
    write_and_store(&born.server, 0);
    born.perennial.kill();
    let mut client = born.server.client();
    write_everything(&mut client, 1);
    client.line("SET ahead 1");
    client.save();
    let before = Digest::of(&born.server.address());
    born.server.kill();
    born.server.start_again();
    born.perennial.start_again();
    until_a_master(&born.server);
    assert_same(&before, &Digest::of(&born.server.address()));
    assert_eq!(logged(&born.server, SENT_A_PAYLOAD), 0);
    assert_eq!(logged(&born.server, CONTINUED), 0);

    // It descends from the head and has more: behind a hole it is the head from now on.
    let status = archive.until(
        "the snapshot behind the hole is there",
        DEADLINE,
        |status| status.timelines.len() == 2 && status.timelines[1].snapshots.len() == 1,
    );
    assert_eq!(status.timelines[1].parent.unwrap().timeline, 1);
    assert_eq!((status.head_timeline(), status.suspects()), (2, vec![]));
    comes_back_after_an_empty_start(&mut born, &archive);
}

/// What the server holds now is what the next seed brings.
#[track_caller]
fn comes_back_after_an_empty_start(born: &mut BornAsReplica, archive: &Archive) {
    born.server.client().wait_until_stored(DEADLINE);
    let before = Digest::of(&born.server.address());
    let timelines = archive.status().timelines.len();
    born.server.kill();
    born.server.remove_dump();
    born.server.start_again();
    born.server.until_master_with_data();
    assert_same(&before, &Digest::of(&born.server.address()));
    until_followed(archive, timelines + 1);
    born.perennial.assert_healthy();
}

/// The archive's head stays, and is what an empty start brings back.
#[track_caller]
fn kept_and_suspect(born: &mut BornAsReplica, archive: &Archive, own: &Digest, head: &Digest) {
    until_a_master(&born.server);
    let status = until_followed(archive, 2);
    assert_eq!(status.suspects(), [2], "{status:#?}");
    assert_eq!(status.head_timeline(), 1);
    assert!(status.timelines[1].parent.is_none());
    assert_same(own, &Digest::of(&born.server.address()));
    assert_eq!(logged(&born.server, SENT_A_PAYLOAD), 0);

    born.server.kill();
    born.server.remove_dump();
    born.server.remove_append_only_files();
    born.server.start_again();
    born.server.until_master_with_data();
    assert_same(head, &Digest::of(&born.server.address()));
    born.perennial.assert_healthy();
}

fn a_foreign_dump_is_promoted_untouched_and_suspect(kind: Kind) {
    let archive = Archive::new();
    let Some(mut born) = BornAsReplica::start(kind, &archive) else {
        return;
    };
    let head = write_and_store(&born.server, 0);
    born.server.kill();
    let theirs = dump_of_a_stranger(kind, &born.server);
    born.server.start_again();
    kept_and_suspect(&mut born, &archive, &theirs, &head);
}

/// Its history is ours, its offset lies before what the archive can restore: nothing of it is missing there.
fn a_dump_from_before_the_first_snapshot_is_seeded(kind: Kind) {
    let archive = Archive::new();
    let Some(mut born) = BornAsReplica::start(kind, &archive) else {
        return;
    };
    a_dump_and_an_archive_that_began_later(&mut born, &archive);
    let before = write_and_store(&born.server, 2);
    born.server.kill();
    born.server.start_again();
    born.server.until_master_with_data();
    assert_same(&before, &Digest::of(&born.server.address()));
    assert_eq!(logged(&born.server, SENT_A_PAYLOAD), 1);
    until_followed(&archive, 2).assert_chain_of(2);
    born.perennial.assert_healthy();
}

/// What the dump has. The server and Perennial run.
#[track_caller]
fn a_dump_and_an_archive_that_began_later(born: &mut BornAsReplica, archive: &Archive) -> Digest {
    let early = write_and_store(&born.server, 0);
    born.server.client().save();
    born.perennial.kill();
    fs::remove_dir_all(archive.path()).unwrap();
    write_everything(&mut born.server.client(), 1);
    born.perennial.start_again();
    archive.until_durable();
    early
}

/// A server that starts from its AOF has data under an id that nobody knows.
fn an_append_only_file_is_promoted_untouched_and_suspect(kind: Kind) {
    let archive = Archive::new();
    let aof = ["--appendonly", "yes"];
    let Some(mut born) = BornAsReplica::start_with(kind, &archive, &aof) else {
        return;
    };
    let head = write_and_store(&born.server, 0);
    let mut client = born.server.client();
    born.perennial.kill();
    client.line("SET unseen 1");
    let own = Digest::of(&born.server.address());
    // In order, so that the whole file is on disk.
    drop(client);
    born.server.terminate();
    born.server.start_again();
    born.perennial.start_again();
    kept_and_suspect(&mut born, &archive, &own, &head);
}

fn an_append_only_file_without_data_is_seeded(kind: Kind) {
    let archive = Archive::new();
    let aof = ["--appendonly", "yes"];
    let Some(mut born) = BornAsReplica::start_with(kind, &archive, &aof) else {
        return;
    };
    let before = write_and_store(&born.server, 0);
    born.server.kill();
    born.server.remove_dump();
    born.server.remove_append_only_files();
    born.server.start_again();
    born.server.until_master_with_data();
    assert_same(&before, &Digest::of(&born.server.address()));
    until_followed(&archive, 2).assert_chain_of(2);
    born.perennial.assert_healthy();
}

/// What a policy finds: an archive, and a server that is down with an older dump of its own.
struct Older {
    /// What the archive has.
    stored: Digest,
    /// What the dump has, and how many keys that is.
    dumped: Digest,
    keys: Option<u64>,
}

/// Perennial is down as well, to be started with another policy.
#[track_caller]
fn a_dump_and_more_in_the_archive(born: &mut BornAsReplica) -> Older {
    let dumped = write_and_store(&born.server, 0);
    born.server.client().save();
    let keys = born.server.keys();
    let stored = write_and_store(&born.server, 1);
    born.server.kill();
    born.perennial.kill();
    Older {
        stored,
        dumped,
        keys,
    }
}

fn seed_never_serves_nobody(kind: Kind) {
    let archive = Archive::new();
    let Some(mut born) = BornAsReplica::start(kind, &archive) else {
        return;
    };
    let older = a_dump_and_more_in_the_archive(&mut born);
    for keys in [older.keys, Some(0)] {
        born.server.start_again();
        born.follow_with(&archive, &["--seed", "never"]);
        born.perennial.until_logged("--seed never forbids");
        let what = "a replica with what it had";
        holds_for(what, Duration::from_secs(2), || {
            !born.server.is_master() && born.server.keys() == keys
        });
        assert_eq!(logged(&born.server, SENT_A_PAYLOAD), 0);
        assert_eq!(logged(&born.server, CONTINUED), 0);
        born.server.kill();
        born.server.remove_dump();
    }
    assert_eq!(archive.status().timelines.len(), 1);
    born.perennial.assert_healthy();
}

/// To go on from where it stands overwrites nothing.
fn seed_if_empty_continues_and_fills(kind: Kind) {
    let archive = Archive::new();
    let Some(mut born) = BornAsReplica::start(kind, &archive) else {
        return;
    };
    let older = a_dump_and_more_in_the_archive(&mut born);
    born.follow_with(&archive, &["--seed", "if-empty"]);
    born.server.start_again();
    until_a_master(&born.server);
    assert_same(&older.stored, &Digest::of(&born.server.address()));
    assert_eq!(logged(&born.server, SENT_A_PAYLOAD), 0);
    until_followed(&archive, 2).assert_chain_of(2);
    comes_back_after_an_empty_start(&mut born, &archive);
    archive.status().assert_chain_of(3);
}

/// From there it cannot go on, and a payload would overwrite what it has.
fn seed_if_empty_leaves_a_dump_from_before_the_first_snapshot_alone(kind: Kind) {
    let archive = Archive::new();
    let Some(mut born) = BornAsReplica::start(kind, &archive) else {
        return;
    };
    let early = a_dump_and_an_archive_that_began_later(&mut born, &archive);
    let head = write_and_store(&born.server, 2);
    born.server.kill();
    born.follow_with(&archive, &["--seed", "if-empty"]);
    born.server.start_again();
    kept_and_suspect(&mut born, &archive, &early, &head);
}

fn seed_start_over_promotes_whatever_is_there(kind: Kind) {
    let archive = Archive::new();
    let Some(mut born) = BornAsReplica::start(kind, &archive) else {
        return;
    };
    let older = a_dump_and_more_in_the_archive(&mut born);
    born.follow_with(&archive, &["--seed", "start-over"]);
    born.server.start_again();
    until_a_master(&born.server);
    assert_same(&older.dumped, &Digest::of(&born.server.address()));
    let status = until_followed(&archive, 2);
    assert_eq!((status.head_timeline(), status.suspects()), (2, vec![]));
    born.server.kill();
    born.server.remove_dump();
    born.server.start_again();
    until_a_master(&born.server);
    let status = until_followed(&archive, 3);
    assert_eq!((status.head_timeline(), status.suspects()), (3, vec![]));
    assert_eq!(born.server.keys(), Some(0));
    assert_eq!(logged(&born.server, SENT_A_PAYLOAD), 0);
    born.perennial.assert_healthy();
}
