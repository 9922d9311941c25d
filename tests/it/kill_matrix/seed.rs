//! Struck while seeding.

use std::time::Duration;

use super::follow::LONG_BACKLOG;
use super::stage::{Birth, Stage, Step};
use super::{on_matrix_servers, strike_at};
use crate::harness::Way::{Down, Up};
use crate::harness::trap::Mark;
use crate::harness::{DEADLINE, Kind, Server, Trap, holds_for, until};

on_matrix_servers! {
    born_as_a_replica,
    until_a_child_of_a_replica_born,
    taken_over,
    until_a_child_of_a_server_taken_over,
    nobody_is_seeded_in_the_place_of_another,
}

/// Up to here nobody has asked the server to become a master.
const NO_ONE: &str = "*3\r\n$9\r\nREPLICAOF\r\n$2\r\nNO";

/// The server is lost; the connection on which it is seeded is held.
pub(super) fn seed_step(name: &str, trap: Trap) -> Step {
    Step::new(&format!("seed/{name}"), move |stage| {
        stage.seed.arm(trap.clone());
        stage.lose(false);
        stage.seed.until_caught();
    })
}

/// The server is lost; a connection of Perennial to it is held.
fn control_step(name: &str, trap: Trap) -> Step {
    Step::new(&format!("seed/{name}"), move |stage| {
        stage.link.arm(trap.clone());
        stage.lose(false);
        stage.link.until_caught();
    })
}

fn full() -> [Mark; 2] {
    [Down.text("+FULLRESYNC"), Down.lines(1)]
}

fn behind_full(rest: impl IntoIterator<Item = Mark>) -> Trap {
    Trap::behind(full().into_iter().chain(rest))
}

/// From the question for data into the replication stream: the same for both ways to come to a seed.
fn seed_steps(prefix: &'static str) -> Vec<Step> {
    let named = |name: &str| format!("{prefix}/{name}");
    let asked = [Up.text("PSYNC\r\n"), Up.lines(4)];
    vec![
        seed_step(
            &named("before-it-asks"),
            Trap::before([Up.text("*3\r\n$5\r\nPSYNC")]),
        ),
        seed_step(&named("asked"), Trap::behind(asked)),
        seed_step(&named("answered"), behind_full([])),
        seed_step(
            &named("inside-the-payload"),
            behind_full([Down.payload(500)]),
        ),
        seed_step(
            &named("before-the-last-byte"),
            behind_full([Down.payload(1)]),
        ),
        seed_step(&named("behind-the-payload"), behind_full([Down.payload(0)])),
        seed_step(
            &named("inside-the-stream"),
            behind_full([Down.payload(0), Down.bytes(70)]),
        ),
    ]
}

/// From the last byte to the first one of the child timeline.
fn promotion_steps(prefix: &'static str) -> Vec<Step> {
    let named = |name: &str| format!("{prefix}/{name}");
    vec![
        Step::new(
            &format!("seed/{prefix}/everything-sent-not-acknowledged"),
            |stage| {
                apply_everything_unseen(stage, true);
            },
        ),
        Step::new(
            &format!("seed/{prefix}/acknowledged-not-promoted"),
            |stage| {
                apply_everything_unseen(stage, false);
            },
        ),
        control_step(
            &named("before-replicaof-no-one"),
            Trap::before([Up.text(NO_ONE)]),
        ),
        control_step(
            &named("replicaof-no-one-unanswered"),
            Trap::behind([Up.text(NO_ONE), Up.lines(2 + 1)]),
        ),
        control_step(
            &named("promoted-no-child-yet"),
            Trap::behind([Up.text("PSYNC\r\n"), Up.lines(4)]),
        ),
        Step::new(
            &format!("seed/{prefix}/child-without-a-segment"),
            child_without_a_segment,
        ),
    ]
}

/// The server gets everything and stands at the archive's end, while Perennial, whose control connection says nothing,
/// does not see that it does; nor, where `unacknowledged`, hears it acknowledge.
fn apply_everything_unseen(stage: &mut Stage, unacknowledged: bool) {
    let first = stage.seed.arm(behind_full([]));
    stage.lose(false);
    stage.seed.until_caught();
    stage.link.stall();
    let end = stage.archive.status().head.unwrap().offset.to_string();
    if unacknowledged {
        stage.seed.arm(Trap::before([Up.text("ACK\r\n")]).one_way());
    } else {
        let ack = format!("ACK\r\n${}\r\n{end}\r\n", end.len());
        stage.seed.arm(Trap::behind([Up.text(&ack)]));
    }
    stage.seed.let_go(first);
    until("the server stands at the archive's end", DEADLINE, || {
        let info = stage.server.try_info("replication").unwrap_or_default();
        let is = |name: &str, value: &str| info.get(name).is_some_and(|text| text == value);
        is("slave_repl_offset", &end) && is("master_link_status", "up")
    });
    stage.seed.until_caught();
    assert!(!stage.server.is_master());
}

/// The new timeline has its document and not one byte.
fn child_without_a_segment(stage: &mut Stage) {
    let timelines = stage.archive.status().timelines.len();
    let asked = [Up.text("PSYNC\r\n"), Down.text("+CONTINUE"), Down.lines(1)];
    stage.link.arm(Trap::behind(asked));
    stage.lose(false);
    stage.link.until_caught();
    let status = stage
        .archive
        .until("the child has its document", DEADLINE, |status| {
            status.timelines.len() > timelines
        });
    assert_eq!(status.timelines.last().unwrap().segments, 0, "{status:#?}");
}

/// A server that comes up with an older dump of the same history goes on from there, without a payload.
fn continued_steps() -> Vec<Step> {
    let continued = || [Down.text("+CONTINUE"), Down.lines(1)];
    let inside = continued().into_iter().chain([Down.bytes(70)]);
    [
        ("seed/continued/answered", Trap::behind(continued())),
        ("seed/continued/inside-the-stream", Trap::behind(inside)),
    ]
    .into_iter()
    .map(|(name, trap)| {
        Step::new(name, move |stage| {
            stage.server.client().save();
            stage.writers.until_confirmed_more(5);
            stage.seed.arm(trap.clone());
            stage.lose(true);
            stage.seed.until_caught();
        })
    })
    .collect()
}

pub(super) fn born_as_a_replica(kind: Kind) {
    let mut steps = seed_steps("born");
    steps.extend(continued_steps());
    strike_while_seeding(kind, Birth::Replica, &steps);
}

pub(super) fn until_a_child_of_a_replica_born(kind: Kind) {
    strike_while_seeding(kind, Birth::Replica, &promotion_steps("born"));
}

pub(super) fn taken_over(kind: Kind) {
    strike_while_seeding(kind, Birth::Master, &takeover_steps());
}

pub(super) fn until_a_child_of_a_server_taken_over(kind: Kind) {
    strike_while_seeding(kind, Birth::Master, &promotion_steps("takeover"));
}

fn strike_while_seeding(kind: Kind, birth: Birth, steps: &[Step]) {
    let Some(mut stage) = Stage::start(kind, birth, LONG_BACKLOG) else {
        return;
    };
    strike_at(&mut stage, steps);
    stage.finish(false);
}

fn takeover_steps() -> Vec<Step> {
    let multi = || Up.text("MULTI\r\n");
    let mut steps = vec![
        control_step("takeover/behind-multi", Trap::behind([multi()])),
        control_step(
            "takeover/before-exec",
            Trap::before([multi(), Up.text("*1\r\n$4\r\nEXEC")]),
        ),
        control_step(
            "takeover/exec-unanswered",
            Trap::behind([multi(), Up.text("EXEC\r\n")]),
        ),
        seed_step(
            "takeover/before-it-connects",
            Trap::before([Up.text("*1\r\n$4\r\nPING")]),
        ),
    ];
    steps.extend(seed_steps("takeover"));
    steps
}

/// A server dies while it is being seeded, and another one with data of its own comes up in its place, born a replica
/// of Perennial as well. Perennial cannot hear of it: its control connection is stuck. It must not answer.
fn nobody_is_seeded_in_the_place_of_another(kind: Kind) {
    let Some(mut stage) = Stage::start(kind, Birth::Replica, LONG_BACKLOG) else {
        return;
    };
    let Some(foreign) = kind.start(&[]) else {
        return;
    };
    foreign.client().line("SET foreign 1");
    foreign.client().save();
    let step = seed_step("inside-the-payload", behind_full([Down.payload(500)]));
    (step.reach)(&mut stage);
    stage.link.stall();
    stage.server.kill();
    stage
        .seed
        .arm(Trap::behind([Up.text("PSYNC\r\n"), Up.lines(4)]));
    stage.seed.cut();
    let dump = |server: &Server| server.folder().join("dump.rdb");
    std::fs::copy(dump(&foreign), dump(&stage.server)).unwrap();
    stage.server.start_again_without_waiting();
    stage.seed.until_caught();
    stage.seed.disarm();
    let is_there = |stage: &Stage| {
        let info = stage.server.try_info("keyspace").unwrap_or_default();
        info.get("db0")
            .is_some_and(|keys| keys.starts_with("keys=1,"))
    };
    holds_for("its data are its own", Duration::from_secs(3), || {
        is_there(&stage)
    });
    // Once it can be looked at, it is what it is: archived, and not trusted.
    stage.link.flow();
    stage
        .archive
        .until("it is a suspect root", DEADLINE, |status| {
            !status.suspects().is_empty()
        });
    assert!(stage.server.is_master());
    assert_eq!(stage.server.client().line("GET foreign").text(), "1");
    stage.perennial.assert_healthy();
}
