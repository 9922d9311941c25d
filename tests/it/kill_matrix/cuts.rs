//! The links cut inside everything that passes on them, in both directions.

use super::follow::{LONG_BACKLOG, SHORT_BACKLOG, at_a_write, command, resync};
use super::seed::seed_step;
use super::stage::{Birth, Blow, Stage, Step, Victim};
use super::{on_matrix_servers, report};
use crate::harness::Way::{Down, Up};
use crate::harness::trap::Mark;
use crate::harness::{Kind, Trap};

on_matrix_servers! {
    inside_the_handshake_and_the_stream,
    inside_a_full_resync,
    inside_a_seed,
}

#[track_caller]
fn cut_at(stage: &mut Stage, steps: &[Step]) {
    for step in steps {
        stage.cell(step, Victim::Links, Blow::Cut);
    }
    let kind = stage.server.kind().name;
    report(&format!(
        "{} and on, {kind}: {} cuts",
        steps[0].name,
        steps.len()
    ));
}

/// Inside every kind of line of the handshake: the next link is held there.
fn handshake_steps() -> Vec<Step> {
    let psync = || Up.text("PSYNC\r\n");
    let places: Vec<(&str, Vec<Mark>)> = vec![
        ("request-header", vec![Up.text("*1")]),
        ("request-length", vec![Up.text("*1\r\n$")]),
        ("ping", vec![Up.text("PI")]),
        ("pong", vec![Up.text("PING\r\n"), Down.text("+PO")]),
        ("option-name", vec![Up.text("listening")]),
        (
            "option-value",
            vec![Up.text("listening-port\r\n"), Up.bytes(6)],
        ),
        ("ok", vec![Up.text("listening-port\r\n"), Down.text("+O")]),
        (
            "ok-line-end",
            vec![Up.text("psync2\r\n"), Down.text("+OK\r")],
        ),
        ("empty-filter", vec![Up.text("rdb-filter-only\r\n$0\r\n")]),
        ("psync", vec![Up.text("PSYN")]),
        ("psync-id", vec![psync(), Up.lines(1), Up.bytes(20)]),
        ("psync-offset", vec![psync(), Up.lines(3), Up.bytes(1)]),
        ("continue", vec![psync(), Down.text("+CONT")]),
        (
            "continue-id",
            vec![psync(), Down.text("+CONTINUE "), Down.bytes(20)],
        ),
    ];
    let step = |(name, marks): (&str, Vec<Mark>)| {
        Step::new(&format!("cut/handshake/{name}"), move |stage| {
            stage.hold_next_link(Trap::behind(marks.clone()));
        })
    };
    places.into_iter().map(step).collect()
}

/// Inside what the writers bring about all the time.
fn stream_steps() -> Vec<Step> {
    let places: Vec<(&str, Vec<Mark>)> = vec![
        ("command-header", vec![Down.text("*3")]),
        ("command-header-line-end", vec![Down.text("*3\r")]),
        ("length", vec![Down.text("*3\r\n$3\r\nSET\r\n$")]),
        ("name", vec![Down.text("*3\r\n$3\r\nSE")]),
        ("value", vec![Down.text("$16\r\n0000")]),
        ("value-line-end", vec![Down.text("$16\r\n"), Down.bytes(17)]),
        ("getack", vec![Down.text("GETA")]),
        ("getack-line-end", vec![Down.text("GETACK\r\n$1\r\n*\r")]),
        ("ack-header", vec![Up.text("*5\r")]),
        ("ack-name", vec![Up.text("REPLCONF\r\n$3\r\nAC")]),
        (
            "ack-offset",
            vec![Up.text("ACK\r\n"), Up.lines(1), Up.bytes(3)],
        ),
        ("ack-fack", vec![Up.text("FAC")]),
    ];
    let step = |(name, marks): (&str, Vec<Mark>)| {
        Step::new(&format!("cut/stream/{name}"), move |stage| {
            stage.link.arm(Trap::behind(marks.clone()));
            stage.link.until_caught();
        })
    };
    let mut steps: Vec<Step> = places.into_iter().map(step).collect();
    steps.push(Step::new("cut/stream/multi", |stage| {
        let key = format!("cut:{}", stage.number());
        let set = |name: &str| command(&format!("SET {key}:{name} 1"));
        let commands = [
            command("MULTI"),
            set("first"),
            set("second"),
            command("EXEC"),
        ];
        stage
            .pairs
            .push([format!("{key}:first"), format!("{key}:second")]);
        let trap = Trap::behind([Down.text("MULTI\r\n"), Down.text(&key)]);
        at_a_write(stage, trap, &commands);
    }));
    steps
}

/// With a backlog that is long enough nothing is fetched anew.
fn inside_the_handshake_and_the_stream(kind: Kind) {
    let Some(mut stage) = Stage::start(kind, Birth::Replica, LONG_BACKLOG) else {
        return;
    };
    let full_syncs = stage.server.info_number("stats", "sync_full");
    cut_at(&mut stage, &handshake_steps());
    cut_at(&mut stage, &stream_steps());
    assert_eq!(stage.server.info_number("stats", "sync_full"), full_syncs);
    stage.finish(false);
}

/// On the second connection, and a part of it on the link. Links that break again and again are made anew ever more
/// slowly, so each place takes its seconds.
fn inside_a_full_resync(kind: Kind) {
    let Some(mut stage) = Stage::start(kind, Birth::Replica, SHORT_BACKLOG) else {
        return;
    };
    let places: Vec<(&str, Vec<Mark>)> = vec![
        ("answer", vec![Down.text("+FULLRE")]),
        ("answer-id", vec![Down.text("+FULLRESYNC "), Down.bytes(20)]),
        (
            "answer-offset",
            vec![Down.text("+FULLRESYNC "), Down.bytes(42)],
        ),
        (
            "header",
            vec![Down.text("+FULLRESYNC"), Down.lines(1), Down.text("$EO")],
        ),
        (
            "header-mark",
            vec![Down.text("+FULLRESYNC"), Down.text("$EOF:"), Down.bytes(20)],
        ),
        (
            "payload",
            vec![Down.text("$EOF:"), Down.lines(1), Down.bytes(60)],
        ),
        (
            "end-mark",
            vec![Down.text("+FULLRESYNC"), Down.lines(1), Down.payload(20)],
        ),
    ];
    let mut steps = Vec::new();
    for (connection, first) in [("link", "rdb-filter-only"), ("snapshot", "rdb-only")] {
        for (name, marks) in &places {
            let is_of_both = ["answer-id", "header-mark", "payload", "end-mark"].contains(name);
            if connection == "link" && !is_of_both {
                continue;
            }
            let marks = [Up.text(first)].into_iter().chain(marks.iter().cloned());
            let trap = Trap::behind(marks);
            let name = format!("cut/full-resync/{connection}/{name}");
            steps.push(Step::new(&name, move |stage| resync(stage, trap.clone())));
        }
    }
    cut_at(&mut stage, &steps);
    stage.finish(true);
}

/// The server comes again by itself.
fn inside_a_seed(kind: Kind) {
    let Some(mut stage) = Stage::start(kind, Birth::Replica, LONG_BACKLOG) else {
        return;
    };
    let full = || [Down.text("+FULLRESYNC"), Down.lines(1)];
    let places: Vec<(&str, Vec<Mark>)> = vec![
        ("cut/ping", vec![Up.text("PI")]),
        ("cut/pong", vec![Up.text("PING\r\n"), Down.text("+PO")]),
        ("cut/option", vec![Up.text("listening-po")]),
        ("cut/ok", vec![Up.text("psync2\r\n"), Down.text("+O")]),
        ("cut/psync", vec![Up.text("PSYN")]),
        (
            "cut/psync-id",
            vec![Up.text("PSYNC\r\n"), Up.lines(1), Up.bytes(20)],
        ),
        ("cut/answer", vec![Down.text("+FULLRE")]),
        (
            "cut/answer-offset",
            vec![Down.text("+FULLRESYNC "), Down.bytes(42)],
        ),
        (
            "cut/header",
            vec![full()[0].clone(), full()[1].clone(), Down.text("$")],
        ),
        (
            "cut/payload",
            full().into_iter().chain([Down.payload(700)]).collect(),
        ),
        (
            "cut/last-byte",
            full().into_iter().chain([Down.payload(1)]).collect(),
        ),
        (
            "cut/command-header",
            full()
                .into_iter()
                .chain([Down.payload(0), Down.bytes(1)])
                .collect(),
        ),
        (
            "cut/command",
            full()
                .into_iter()
                .chain([Down.payload(0), Down.bytes(45)])
                .collect(),
        ),
        ("cut/ack", vec![Down.text("+FULLRESYNC"), Up.text("AC")]),
    ];
    let steps: Vec<Step> = places
        .into_iter()
        .map(|(name, marks)| seed_step(name, Trap::behind(marks)))
        .collect();
    cut_at(&mut stage, &steps);
    stage.finish(false);
}
