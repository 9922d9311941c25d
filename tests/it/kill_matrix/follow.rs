//! Struck while following.

use super::stage::{Birth, Blow, Stage, Step, Victim};
use super::{blows, on_matrix_servers, report, strike_at};
use crate::harness::Way::{Down, Up};
use crate::harness::trap::Mark;
use crate::harness::{DEADLINE, Kind, Trap, until};

on_matrix_servers! {
    while_resuming,
    inside_the_stream,
    while_stopped_past_every_timeout,
    in_a_full_resync,
    in_the_first_sync,
}

/// Longer than what is written while a cell lasts: no gap comes about.
pub(super) const LONG_BACKLOG: &str = "64mb";
/// The least that servers allow: what is written while a link is down makes a gap.
pub(super) const SHORT_BACKLOG: &str = "16kb";

/// The requests of the handshake, by name, up to the last byte of each.
fn requests(kind: Kind) -> Vec<(&'static str, Vec<Mark>)> {
    let mut requests = vec![
        ("ping", vec![Up.text("PING\r\n")]),
        (
            "listening-port",
            vec![Up.text("listening-port\r\n"), Up.lines(2)],
        ),
        ("capa", vec![Up.text("psync2\r\n")]),
    ];
    if kind.name.starts_with("valkey") {
        requests.push(("version", vec![Up.text("version\r\n"), Up.lines(2)]));
    }
    requests.push((
        "rdb-filter-only",
        vec![Up.text("rdb-filter-only\r\n"), Up.lines(2)],
    ));
    requests.push(("psync", vec![Up.text("PSYNC\r\n"), Up.lines(4)]));
    requests
}

/// The trap behind a request, and the one behind its answer.
fn before_and_after_its_answer(marks: Vec<Mark>) -> [(&'static str, Trap); 2] {
    let sent = Trap::behind(marks.clone());
    let answered = Trap::behind(marks.into_iter().chain([Down.lines(1)]));
    [("sent", sent), ("answered", answered)]
}

/// Each line of the handshake in either direction; the last one is `+CONTINUE`.
pub(super) fn while_resuming(kind: Kind) {
    let Some(mut stage) = Stage::start(kind, Birth::Replica, LONG_BACKLOG) else {
        return;
    };
    let mut steps = Vec::new();
    for (request, marks) in requests(kind) {
        for (when, trap) in before_and_after_its_answer(marks) {
            let name = format!("follow/resuming/{request}-{when}");
            steps.push(Step::new(&name, move |stage| {
                stage.hold_next_link(trap.clone())
            }));
        }
    }
    steps.push(Step::new(
        "follow/resuming/continue-sent-not-read",
        |stage| {
            let continued = || stage.server.info_number("stats", "sync_partial_ok");
            let before = continued();
            stage.hold_next_link(Trap::before([Down.text("+CONTINUE")]));
            until("the server has answered", DEADLINE, || continued() > before);
        },
    ));
    strike_at(&mut stage, &steps);
    stage.finish(false);
}

/// Holds the link at `mark` of a write that is made now.
pub(super) fn at_a_write(stage: &mut Stage, trap: Trap, commands: &[Vec<String>]) {
    stage.link.arm(trap);
    let replies = stage.server.client().pipeline(commands).unwrap();
    assert_eq!(replies.len(), commands.len());
    stage.link.until_caught();
}

pub(super) fn command(words: &str) -> Vec<String> {
    words.split_whitespace().map(ToOwned::to_owned).collect()
}

/// A transaction, held behind what `mark` makes of its two values.
fn at_a_transaction(stage: &mut Stage, mark: impl Fn(&str, &str) -> Mark) {
    let number = stage.number();
    let pair = [
        format!("pair:{number}:first"),
        format!("pair:{number}:second"),
    ];
    let (first, second) = (format!("first-{number}"), format!("second-{number}"));
    let commands = [
        command("MULTI"),
        command(&format!("SET {} {first}", pair[0])),
        command(&format!("SET {} {second}", pair[1])),
        command("EXEC"),
    ];
    stage.pairs.push(pair);
    at_a_write(stage, Trap::behind([mark(&first, &second)]), &commands);
}

fn stream_steps() -> Vec<Step> {
    vec![
        Step::new("follow/stream/inside-a-command", |stage| {
            let key = format!("inside:{}", stage.number());
            let trap = Trap::behind([Down.text(&key)]);
            at_a_write(stage, trap, &[command(&format!("SET {key} value"))]);
        }),
        Step::new("follow/stream/between-two-commands", |stage| {
            let value = format!("between-{}", stage.number());
            let trap = Trap::behind([Down.text(&format!("{value}\r\n"))]);
            at_a_write(stage, trap, &[command(&format!("SET between {value}"))]);
        }),
        Step::new("follow/stream/behind-multi", |stage| {
            at_a_transaction(stage, |_, _| Down.text("MULTI\r\n"));
        }),
        Step::new("follow/stream/inside-multi", |stage| {
            at_a_transaction(stage, |first, _| Down.text(&format!("{first}\r\n")));
        }),
        Step::new("follow/stream/inside-a-command-inside-multi", |stage| {
            at_a_transaction(stage, |_, second| Down.text(second));
        }),
        Step::new("follow/stream/before-exec", |stage| {
            at_a_transaction(stage, |_, second| Down.text(&format!("{second}\r\n")));
        }),
        Step::new("follow/stream/inside-getack", |stage| {
            stage.link.arm(Trap::behind([Down.text("GETACK\r\n")]));
            stage.link.until_caught();
        }),
        Step::new("follow/stream/behind-getack", |stage| {
            stage
                .link
                .arm(Trap::behind([Down.text("GETACK\r\n"), Down.lines(2)]));
            stage.link.until_caught();
        }),
        Step::new(
            "follow/stream/stored-not-acknowledged",
            stored_not_acknowledged,
        ),
    ]
}

/// No acknowledgement passes any more; a write is made and waited for until the store has it.
fn stored_not_acknowledged(stage: &mut Stage) {
    stage.link.arm(Trap::before([Up.text("ACK\r\n")]).one_way());
    stage.link.until_caught();
    let key = format!("stored:{}", stage.number());
    stage.server.client().line(&format!("SET {key} 1"));
    let offset = stage
        .server
        .info_number("replication", "master_repl_offset");
    stage
        .archive
        .until("the write is in the store", DEADLINE, |status| {
            status
                .durable_offset
                .is_some_and(|durable| durable >= offset)
        });
    stage.stored.push(key);
}

pub(super) fn inside_the_stream(kind: Kind) {
    let Some(mut stage) = Stage::start(kind, Birth::Replica, LONG_BACKLOG) else {
        return;
    };
    strike_at(&mut stage, &stream_steps());
    stage.finish(false);
}

/// Longer than the server's `repl-timeout`.
fn while_stopped_past_every_timeout(kind: Kind) {
    let Some(mut stage) = Stage::start(kind, Birth::Replica, LONG_BACKLOG) else {
        return;
    };
    for step in &stream_steps()[..1] {
        for victim in [Victim::Perennial, Victim::MasterThenPerennial] {
            stage.cell(step, victim, Blow::LongStop);
        }
    }
    stage.finish(false);
}

/// Makes the next link a full resync: the backlog no longer holds what was missed. Holds it, or the connection for the
/// snapshot that follows it, in the trap.
pub(super) fn resync(stage: &Stage, trap: Trap) {
    stage.link.down();
    let mut client = stage.server.client();
    let value = "x".repeat(10_000);
    let commands: Vec<Vec<&str>> = (0..40).map(|_| vec!["SET", "long", &value]).collect();
    client.pipeline(&commands).unwrap();
    stage.link.arm(trap);
    stage.link.up();
    stage.link.until_caught();
}

fn resync_step(name: &str, trap: Trap) -> Step {
    let name = format!("follow/full-resync/{name}");
    Step::new(&name, move |stage| resync(stage, trap.clone()))
}

fn full_resync_steps(kind: Kind) -> Vec<Step> {
    let link = || Up.text("rdb-filter-only");
    let snapshot = || Up.text("rdb-only");
    let answer = || [Down.text("+FULLRESYNC"), Down.lines(1)];
    let from = |first: Mark, rest: Vec<Mark>| {
        Trap::behind([first].into_iter().chain(answer()).chain(rest))
    };
    let inside_172 = vec![Down.text("$EOF:"), Down.lines(1), Down.bytes(80)];
    let mut steps = vec![
        resync_step("link/answered", from(link(), vec![])),
        resync_step("link/inside-172-bytes", from(link(), inside_172)),
        resync_step("link/before-first-ack", from(link(), vec![Down.payload(0)])),
    ];
    // The second connection says the same, but for the port and the filter.
    for (request, marks) in requests(kind) {
        let (skip, marks) = match request {
            "listening-port" => continue,
            "rdb-filter-only" => (0, vec![Up.text("rdb-only\r\n"), Up.lines(2)]),
            "psync" => (0, [snapshot()].into_iter().chain(marks).collect()),
            _ => (1, marks),
        };
        let request = if request == "rdb-filter-only" {
            "rdb-only"
        } else {
            request
        };
        for (when, trap) in before_and_after_its_answer(marks) {
            let name = format!("snapshot/{request}-{when}");
            steps.push(resync_step(&name, trap.skip(skip)));
        }
    }
    let inside = [Down.lines(1), Down.bytes(50_000)].to_vec();
    steps.push(resync_step(
        "snapshot/inside-payload",
        from(snapshot(), inside),
    ));
    let last = Down.payload(1);
    steps.push(resync_step(
        "snapshot/before-last-byte",
        from(snapshot(), vec![last]),
    ));
    let trap = from(snapshot(), vec![Down.payload(1)]);
    let name = "follow/full-resync/snapshot/stored-not-acknowledged";
    steps.push(Step::new(name, move |stage| {
        let snapshots = stage.archive.status().snapshots();
        resync(stage, trap.clone());
        hold_acknowledgements_and_finish_the_snapshot(stage, snapshots);
    }));
    steps
}

/// The last byte of the payload passes, and no acknowledgement.
fn hold_acknowledgements_and_finish_the_snapshot(stage: &mut Stage, snapshots: usize) {
    let acknowledgements = stage.link.arm(Trap::before([Up.text("ACK\r\n")]).one_way());
    stage.link.let_go(acknowledgements - 1);
    stage
        .archive
        .until("the snapshot is in the store", DEADLINE, |status| {
            status.snapshots() > snapshots
        });
    stage.link.until_caught();
}

/// The link's own full resync, then the second connection with the snapshot.
pub(super) fn in_a_full_resync(kind: Kind) {
    let Some(mut stage) = Stage::start(kind, Birth::Replica, SHORT_BACKLOG) else {
        return;
    };
    strike_at(&mut stage, &full_resync_steps(kind));
    stage.finish(true);
}

/// Nothing is confirmed yet; what follows is, whatever happened.
pub(super) fn in_the_first_sync(kind: Kind) {
    let link = || {
        [
            Up.text("rdb-filter-only"),
            Down.text("+FULLRESYNC"),
            Down.lines(1),
        ]
    };
    let snapshot = || [Up.text("rdb-only"), Down.text("+FULLRESYNC"), Down.lines(1)];
    let cases = [
        ("timeline-without-a-segment", Trap::behind(link())),
        ("before-the-payload", Trap::behind(snapshot())),
        (
            "before-its-last-byte",
            Trap::behind(snapshot().into_iter().chain([Down.payload(1)])),
        ),
    ];
    let mut cells = 0;
    for (number, (name, trap)) in cases.into_iter().enumerate() {
        let waiting = name.starts_with("timeline");
        let step = Step::new(&format!("follow/first-sync/{name}"), move |stage| {
            if waiting {
                let status =
                    stage
                        .archive
                        .until("the timeline has its document", DEADLINE, |status| {
                            !status.timelines.is_empty()
                        });
                assert_eq!(status.timelines[0].segments, 0, "{status:#?}");
            }
        });
        for (victim, blow) in blows(kind, number) {
            let Some(mut stage) =
                Stage::start_trapped(kind, Birth::Replica, LONG_BACKLOG, trap.clone())
            else {
                return;
            };
            stage.cell_at_once(&step, victim, blow);
            cells += 1;
            stage.finish(false);
        }
    }
    report(&format!("follow/first-sync {}: {cells} cells", kind.name));
}
