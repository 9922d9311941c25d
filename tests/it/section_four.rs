//! The table of what is done with a server, row by row, on real servers: where each row is proven, and the rows that no
//! other scenario has. `each_row_has_its_tests` holds this list honest.
//!
//! - continues the head: `killed_under_load::with_a_long_backlog_it_continues`
//! - continues the head under a new id, a failover to a replica that has everything:
//!   `surviving_replicas::one_is_promoted_and_followed`, `sub_replica::its_master_dies_and_it_is_promoted`,
//!   `sentinel::it_is_followed_through_failovers`, `failover_without_to::it_aborts_cleanly_and_writes_go_on`
//! - continues below the head, a failover to a replica that lacks what we have:
//!   `surviving_replicas::one_is_promoted_that_lacks_the_last_writes`
//! - continues a branch that lived on, and comes back, A to B to A:
//!   `section_four::a_branch_that_lived_on_comes_back`
//! - two heads that advance: `section_four::of_two_heads_that_advance_none_is_seeded_before_one_is_chosen`
//! - continues after a restart from its whole dump: `section_four::restarted_from_its_whole_dump_it_goes_on`
//! - same id, ahead of ours, backlog overrun: `killed_under_load::with_a_short_backlog_there_is_a_gap_and_a_new_snapshot`,
//!   `older_masters::a_gap_costs_one_full_sync`
//! - the same, filled by another streamer: `two_streamers::what_one_misses_the_other_has`
//! - the same, emptied on purpose: `emptied_on_purpose::flushall_behind_a_backlog_that_is_too_short`
//! - same id, behind ours, a lagging replica: `sub_replica::it_lags_behind_the_archive`
//! - same id, behind ours, a master that was rolled back: `section_four::rolled_back_under_its_own_id_it_is_suspect`
//! - has data, unknown id, no archive: `killed_under_load::killed_during_the_first_snapshot`
//! - empty, unknown id, no archive: `loop_closes::a_master_that_was_empty_from_the_start_gets_its_first_writes_back`
//! - empty, unknown id, an archive: `loop_closes::an_empty_master_gets_everything_back_and_history_goes_on`
//! - stale, from an older dump: `stale_dump::the_writes_after_the_dump_are_back`,
//!   `loop_closes::the_dump_that_a_seed_leaves_behind_is_recognised_as_stale`,
//!   `seeds_refused::a_dump_from_before_the_first_snapshot_is_seeded`
//! - stale, before 7.0: `older_masters::without_dumps_of_full_syncs_it_comes_back_again_and_again`
//! - stale and written to: `stale_dump::a_write_on_the_stale_server_makes_it_suspect`,
//!   `section_four::an_old_master_from_its_dump_is_suspect_though_another_goes_on`
//! - stale and written to, its past accepted: `stale_dump::an_acceptance_from_before_does_not_cure_a_later_suspicion`
//! - has data, unknown id, its id forgotten after `repl-backlog-ttl`:
//!   `same_process::a_master_whose_backlog_expired_is_the_head_behind_a_new_snapshot`
//! - has data, unknown id, restarted from append-only files:
//!   `section_four::restarted_from_append_only_files_it_is_suspect_until_accepted`
//! - has data, unknown id, a foreign master: `section_four::a_foreign_master_is_suspect_and_ours_goes_on_behind_it`
//! - has data, unknown id, written to before it was seen:
//!   `loop_closes::a_write_to_the_empty_server_makes_a_suspect_root_and_the_old_head_stays`
//! - has data, unknown id, accepted: `loop_closes::an_accepted_suspect_is_the_head`
//! - a replica of us without data: `born_a_replica::without_data_it_is_seeded`,
//!   `born_a_replica::without_data_beside_an_empty_archive_it_is_promoted_at_once`
//! - a replica of us inside ours: `born_a_replica::a_stale_dump_of_ours_is_continued_and_no_payload_is_sent`
//! - a replica of us ahead or foreign: `born_a_replica::a_dump_ahead_of_the_archive_is_never_served`,
//!   `born_a_replica::a_foreign_dump_is_promoted_untouched_and_suspect`
//! - a replica of another server: `sub_replica::the_archive_goes_on_when_the_master_is_followed_instead`,
//!   `sub_replica::a_replica_of_another_server_is_never_seeded`
//! - a replica of another seeder: `section_four::a_server_that_another_seeder_fills_is_left_alone`
//! - another data set's `--name`: `bad_input::the_archive_of_another_data_set_is_refused`
//! - `--seed never`, `--seed if-empty`, `--seed start-over`: `born_a_replica::seed_never_serves_nobody`,
//!   `loop_closes::seed_never_leaves_an_empty_server_alone`, `born_a_replica::seed_if_empty_continues_and_fills`,
//!   `loop_closes::start_over_makes_a_suspect_the_head`

use std::path::Path;
use std::time::Duration;

use crate::harness::confined::SameNumbers;
use crate::harness::servers::VALKEY_9_1;
use crate::harness::trap::Way::Down;
use crate::harness::workload::write_everything;
use crate::harness::{
    Archive, DEADLINE, Digest, Kind, Perennial, Port, Proxy, REDIS_7_0, Server, Trap, assert_same,
    holds_for, run_cli, until,
};
use crate::on_every_server;

on_every_server! {
    a_branch_that_lived_on_comes_back,
    restarted_from_append_only_files_it_is_suspect_until_accepted,
}

// Before 7.0 a dump says nothing of its past to a master that loads it: see older_masters.
on_every_server! {
    since 7.0;
    an_old_master_from_its_dump_is_suspect_though_another_goes_on,
    restarted_from_its_whole_dump_it_goes_on,
}

on_every_server! {
    oldest, usual and newest;
    a_foreign_master_is_suspect_and_ours_goes_on_behind_it,
    a_server_that_another_seeder_fills_is_left_alone,
    of_two_heads_that_advance_none_is_seeded_before_one_is_chosen,
}

/// Without PINGs, so that the offset of the last write is the last offset.
const NO_PINGS: [&str; 2] = ["--repl-ping-replica-period", "3600"];

/// A real replica of `master`, level with it and old enough not to be taken for a server that restarted.
#[track_caller]
fn replica_of(master: &Server) -> Server {
    let port = master.port().to_string();
    let config = [["--replicaof", "127.0.0.1", &port].as_slice(), &NO_PINGS].concat();
    let replica = master.kind().start(&config).unwrap();
    let offset = |server: &Server| server.info_number("replication", "master_repl_offset");
    until("the replica is level and not young", DEADLINE, || {
        replica.info("replication")["master_link_status"] == "up"
            && offset(&replica) == offset(master)
            && replica.is_not_young()
    });
    replica
}

/// Waits until the newest timeline, of which there are `count`, holds all that its master has.
#[track_caller]
fn until_stored(archive: &Archive, master: &Server, count: usize) {
    let offset = master.info_number("replication", "master_repl_offset");
    archive.until("the newest timeline holds all", DEADLINE, |status| {
        status.timelines.len() == count
            && status.timelines[count - 1]
                .end
                .is_some_and(|end| end >= offset)
    });
}

/// What the archive restores is this.
#[track_caller]
fn assert_restored(archive: &Archive, kind: Kind, at: &str, expected: &Digest) {
    let folder = archive.restore(&at.replace(':', "-"), &["--at", at]);
    let restored = kind.start_on(&folder).unwrap();
    assert_same(expected, &Digest::of(&restored.address()));
}

#[track_caller]
fn accept(archive: &Archive, arguments: &[&str]) {
    let url = archive.url();
    let (code, _, err) = run_cli(&[&["accept", "--archive", &url], arguments].concat());
    assert_eq!(code, 0, "{err}");
}

/// A and its replica B. B is promoted while A lives on unseen, B is followed, and then A again, with what it took
/// meanwhile.
fn a_branch_that_lived_on_comes_back(kind: Kind) {
    let Some(mut a) = kind.start(&NO_PINGS) else {
        return;
    };
    let archive = Archive::new();
    let followed = Proxy::to(&a.address());
    let mut perennial = Perennial::follow_url(&followed.url(), &archive, &[]);
    archive.until_durable();
    write_everything(&mut a.client(), 0);
    let b = replica_of(&a);
    let fork = a.info_number("replication", "master_repl_offset");
    b.client().line("REPLICAOF NO ONE");
    a.client().line("SET only-a 1");
    until_stored(&archive, &a, 1);

    followed.switch_to(&b.address());
    b.client().line("SET only-b 1");
    until_stored(&archive, &b, 2);
    let of_b = Digest::of(&b.address());
    a.client().line("SET unseen-a 1");

    followed.switch_to(&a.address());
    a.client().line("SET again-a 1");
    until_stored(&archive, &a, 3);
    let of_a = Digest::of(&a.address());
    let status = archive.status();
    let parents: Vec<_> = status
        .timelines
        .iter()
        .map(|timeline| {
            timeline
                .parent
                .map(|parent| (parent.timeline, parent.offset))
        })
        .collect();
    let left = status.timelines[0].end.unwrap();
    assert!(left > fork, "{status:#?}");
    assert_eq!(parents, [None, Some((1, fork)), Some((1, left))]);
    assert_eq!((status.snapshots(), status.suspects()), (1, vec![]));
    assert_eq!(status.head_timeline(), 3);
    assert_restored(&archive, kind, "timeline:2", &of_b);
    assert_restored(&archive, kind, "latest", &of_a);

    // B has been still since A came back: nobody has to choose.
    a.lose_everything();
    a.until_master_with_data();
    assert_same(&of_a, &Digest::of(&a.address()));
    perennial.assert_healthy();
}

/// A died and B was promoted. A comes back from an old dump, and its address leads to it again while B still takes writes: that A
/// is older than B's last byte shows nothing.
fn an_old_master_from_its_dump_is_suspect_though_another_goes_on(kind: Kind) {
    let Some(mut a) = kind.start(&NO_PINGS) else {
        return;
    };
    let archive = Archive::new();
    let followed = Proxy::to(&a.address());
    let mut perennial = Perennial::follow_url(&followed.url(), &archive, &[]);
    archive.until_durable();
    write_everything(&mut a.client(), 0);
    a.client().save();
    a.client().line("SET after-the-dump 1");
    let b = replica_of(&a);
    until_stored(&archive, &a, 1);
    a.kill();
    b.client().line("REPLICAOF NO ONE");
    followed.switch_to(&b.address());
    b.client().line("SET of-b 1");
    until_stored(&archive, &b, 2);

    a.start_again();
    until("it is not young, and the other is alive", DEADLINE, || {
        b.client().line("INCR beat");
        a.is_not_young()
    });
    a.client().line("SET intruder 1");
    b.client().line("SET last 1");
    until_stored(&archive, &b, 2);
    let of_b = Digest::of(&b.address());
    followed.switch_to(&a.address());
    let status = archive.until("its branch is there", DEADLINE, |status| {
        status.timelines.len() == 3
    });
    assert_eq!((status.head_timeline(), status.suspects()), (2, vec![3]));
    assert_restored(&archive, kind, "latest", &of_b);
    perennial.assert_healthy();
}

/// Two masters of one history, each followed, each written to; and a third server, empty.
fn of_two_heads_that_advance_none_is_seeded_before_one_is_chosen(kind: Kind) {
    let Some(a) = kind.start(&NO_PINGS) else {
        return;
    };
    let archive = Archive::new();
    let mut beside_a = Perennial::follow(&a, &archive, &[]);
    write_everything(&mut a.client(), 0);
    let b = replica_of(&a);
    b.client().line("REPLICAOF NO ONE");
    let mut beside_b = Perennial::follow_url(&b.url(), &archive, &[]);
    b.client().line("SET only-b 1");
    until_stored(&archive, &b, 2);
    a.client().line("SET only-a 1");
    let offset = a.info_number("replication", "master_repl_offset");
    let status = archive.until("both have moved", DEADLINE, |status| {
        status.timelines[0].end == Some(offset)
    });
    assert_eq!((status.head_timeline(), status.timelines.len()), (2, 2));
    assert!(
        status
            .problems
            .iter()
            .any(|problem| problem.contains("two branches"))
    );

    let (of_a, of_b) = (Digest::of(&a.address()), Digest::of(&b.address()));
    beside_a.assert_healthy();
    beside_b.assert_healthy();
    drop((beside_a, beside_b, a, b));
    let empty = kind.start(&[]).unwrap();
    let mut perennial = Perennial::follow_url(&empty.url(), &archive, &[]);
    perennial.until_logged("two branches advanced lately");
    holds_for("it is left alone", Duration::from_secs(2), || {
        empty.is_master() && empty.keys() == Some(0)
    });
    assert_restored(&archive, kind, "timeline:2", &of_b);
    accept(&archive, &["1", "--force"]);
    empty.until_master_with_data();
    assert_same(&of_a, &Digest::of(&empty.address()));
    perennial.assert_healthy();
}

/// Stopped in order with a save point, it comes back with everything and goes on where it was.
fn restarted_from_its_whole_dump_it_goes_on(kind: Kind) {
    let Some(mut server) = kind.start(&["--save", "3600", "1"]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    write_everything(&mut server.client(), 0);
    let before = Digest::of(&server.address());
    server.terminate();
    server.start_again();
    assert_same(&before, &Digest::of(&server.address()));
    server.client().wait_until_stored(DEADLINE);
    write_everything(&mut server.client(), 1);
    server.client().wait_until_stored(DEADLINE);
    archive.status().assert_chain_of(2);
    assert_restored(&archive, kind, "latest", &Digest::of(&server.address()));
    perennial.assert_healthy();
}

/// Its files have every write, but not its name: nothing shows that it has everything that the archive has.
fn restarted_from_append_only_files_it_is_suspect_until_accepted(kind: Kind) {
    let Some(mut server) = kind.start(&["--appendonly", "yes"]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    write_everything(&mut server.client(), 0);
    server.client().wait_until_stored(DEADLINE);
    let before = Digest::of(&server.address());
    server.kill();
    server.start_again();
    assert_same(&before, &Digest::of(&server.address()));
    let status = archive.until("the suspect root is durable", DEADLINE, |status| {
        status.suspects() == [2] && status.timelines[1].end.is_some()
    });
    assert_eq!(status.head_timeline(), 1);
    assert!(status.timelines[1].parent.is_none());
    assert_same(&before, &Digest::of(&server.address()));

    accept(&archive, &["2"]);
    server.client().wait_until_stored(DEADLINE);
    assert_eq!(archive.status().head_timeline(), 2);
    let after = Digest::of(&server.address());
    assert_restored(&archive, kind, "latest", &after);
    perennial.assert_healthy();
}

/// The address of our master leads to somebody else's for a while.
fn a_foreign_master_is_suspect_and_ours_goes_on_behind_it(kind: Kind) {
    let long_backlog = ["--repl-backlog-size", "64mb"];
    let (Some(mut ours), Some(theirs)) = (kind.start(&long_backlog), kind.start(&[])) else {
        return;
    };
    let archive = Archive::new();
    let followed = Proxy::to(&ours.address());
    let mut perennial = Perennial::follow_url(&followed.url(), &archive, &[]);
    archive.until_durable();
    write_everything(&mut ours.client(), 0);
    ours.client().wait_until_stored(DEADLINE);
    theirs.client().line("SET theirs 1");
    let foreign = Digest::of(&theirs.address());

    followed.switch_to(&theirs.address());
    let status = archive.until("it is suspect and durable", DEADLINE, |status| {
        status.suspects() == [2] && status.timelines[1].end.is_some()
    });
    assert_eq!(status.head_timeline(), 1);
    assert_same(&foreign, &Digest::of(&theirs.address()));

    followed.switch_to(&ours.address());
    write_everything(&mut ours.client(), 1);
    ours.client().wait_until_stored(DEADLINE);
    let before = Digest::of(&ours.address());
    let status = archive.status();
    assert_eq!((status.head_timeline(), status.timelines.len()), (1, 2));
    assert_eq!(status.snapshots(), 2, "one of each: {status:#?}");
    ours.lose_everything();
    ours.until_master_with_data();
    assert_same(&before, &Digest::of(&ours.address()));
    assert_restored(&archive, kind, "timeline:2", &foreign);
    perennial.assert_healthy();
}

/// A machine that was set back to an earlier state: the process bears the same id and stands at a lower offset, and what
/// it says from there on is not what the archive holds.
#[track_caller]
fn rolled_back_under_its_own_id_it_is_suspect(kind: Kind) {
    let Some(numbers) = SameNumbers::of(kind) else {
        return;
    };
    let mut server = kind.start_as(numbers.program(), &NO_PINGS);
    // The first replica makes a master take the id that it keeps.
    let replica = replica_of(&server);
    let name = |server: &Server| {
        let run = server.info("server")["run_id"].clone();
        (run, server.info("replication")["master_replid"].clone())
    };
    let before = name(&server);
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    write_everything(&mut server.client(), 0);
    until_stored(&archive, &server, 1);
    let stored = Digest::of(&server.address());
    let end = server.info_number("replication", "master_repl_offset");

    perennial.kill();
    drop(replica);
    server.kill();
    server.start_again();
    let _replica = replica_of(&server);
    server.client().line("SET rolled-back 1");
    assert_eq!(name(&server), before, "the same process, as far as it says");
    assert!(server.info_number("replication", "master_repl_offset") < end);
    perennial.start_again();
    let status = archive.until("it is suspect and durable", DEADLINE, |status| {
        status.suspects() == [2] && status.timelines[1].end.is_some()
    });
    assert_eq!(status.timelines[1].id, before.1);
    assert_eq!(status.timelines[1].parent, None);
    assert_eq!(status.head_timeline(), 1);
    perennial.until_logged("rolled back");

    // Beyond the old end as well, over another link: the two are not confused.
    write_everything(&mut server.client(), 1);
    write_everything(&mut server.client(), 2);
    assert!(server.info_number("replication", "master_repl_offset") > end);
    until_stored(&archive, &server, 2);
    server.client().line("CLIENT KILL TYPE replica");
    server.client().line("SET last 1");
    until_stored(&archive, &server, 2);
    let status = archive.status();
    assert_eq!(status.timelines[0].end, Some(end), "{status:#?}");
    assert_restored(&archive, kind, "latest", &stored);
    let rolled_back = Digest::of(&server.address());
    assert_restored(&archive, kind, "timeline:2", &rolled_back);
    perennial.assert_healthy();
}

#[test]
fn rolled_back_under_its_own_id_it_is_suspect_redis_7_0() {
    rolled_back_under_its_own_id_it_is_suspect(REDIS_7_0);
}

#[test]
fn rolled_back_under_its_own_id_it_is_suspect_valkey_9_1() {
    rolled_back_under_its_own_id_it_is_suspect(VALKEY_9_1);
}

/// An archive with one key, and nobody who follows into it any more.
#[track_caller]
fn archive_of(kind: Kind, key: &str) -> Option<Archive> {
    let server = kind.start(&[])?;
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &[]);
    server.client().line(&format!("SET {key} 1"));
    server.client().wait_until_stored(DEADLINE);
    Some(archive)
}

/// Two Perennials with an archive each name the same empty server; one of them is filling it.
fn a_server_that_another_seeder_fills_is_left_alone(kind: Kind) {
    let (Some(one), Some(other)) = (archive_of(kind, "one"), archive_of(kind, "other")) else {
        return;
    };
    let server = kind.start(&[]).unwrap();
    let seed = Port::reserve();
    let door = Proxy::to(&seed.address());
    let payload = [Down.text("+FULLRESYNC"), Down.lines(1), Down.payload(10)];
    let trap = door.arm(Trap::behind(payload));
    let (listen, announce) = (seed.address(), door.address());
    let flags = ["--seed-listen", &listen, "--seed-announce", &announce];
    let mut seeding = Perennial::follow_url(&server.url(), &one, &flags);
    door.until_caught();
    let mut waiting = Perennial::follow_url(&server.url(), &other, &[]);
    waiting.until_logged("a replica whose own link to its master is down");
    let master = announce.split_once(':').unwrap().1;
    holds_for("it stays the other's", Duration::from_secs(2), || {
        server.info("replication")["master_port"] == master
    });
    door.let_go(trap);
    server.until_master_with_data();
    assert_eq!(server.client().line("GET one").text(), "1");
    assert_eq!(server.client().line("EXISTS other").integer(), 0);
    // To the other archive it is a foreign master from now on.
    // It takes its new id in the middle of that, perhaps.
    let status = other.until("it is suspect", DEADLINE, |status| {
        let later = &status.timelines[1..];
        later.iter().all(|it| it.suspect.is_some()) && later.iter().any(|it| it.end.is_some())
    });
    assert_eq!(status.head_timeline(), 1);
    seeding.assert_healthy();
    waiting.assert_healthy();
}

#[test]
fn each_row_has_its_tests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let own = std::fs::read_to_string(folder.join("section_four.rs")).unwrap();
    let header = own.lines().take_while(|line| line.starts_with("//!"));
    let named: Vec<(String, String)> = header
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter_map(|quoted| quoted.split_once("::"))
        .map(|(file, test)| (file.to_owned(), test.to_owned()))
        .collect();
    assert!(named.len() > 30, "{named:?}");
    let missing: Vec<_> = named
        .iter()
        .filter(|(file, test)| {
            let source = std::fs::read_to_string(folder.join(format!("{file}.rs")));
            !source.is_ok_and(|source| source.contains(&format!("fn {test}(")))
        })
        .collect();
    assert!(missing.is_empty(), "named and not there: {missing:?}");
}
