//! A server that is stopped in order, under clients that never stop and never WAIT: what it answered with OK is there
//! after an empty start, whether Perennial stays, is told to stop at the same instant, or a moment earlier. From 7.0
//! on a server waits in its shutdown until its replicas have acknowledged everything (`protocol-facts` 3.4).

use std::time::{Duration, Instant};

use crate::harness::{Archive, BornAsReplica, DEADLINE, Kind, Load, Writers, until};
use crate::on_every_server;

/// How long the server would wait for an acknowledgement that does not come, in seconds.
const SHUTDOWN_TIMEOUT: &str = "25";
/// A stop that is acknowledged is far below that, and far above what a busy machine needs.
const STOP_MAX: Duration = Duration::from_secs(15);
/// Stops of one server, one after the other.
const ROUNDS: u32 = 2;

const LOAD: Load = Load {
    plain: 4,
    confirming: 0,
    value_bytes: 100,
    pause: Duration::from_micros(300),
};

on_every_server! {
    since 7.0;
    nothing_answered_is_lost_when_the_server_stops,
    nothing_answered_is_lost_when_both_stop_the_server_first,
    nothing_answered_is_lost_when_both_stop_perennial_first,
    nothing_answered_is_lost_when_perennial_is_told_a_moment_earlier,
}

fn nothing_answered_is_lost_when_the_server_stops(kind: Kind) {
    stops_and_comes_back(kind, |born, _| born.server.begin_to_terminate(), false);
}

fn nothing_answered_is_lost_when_both_stop_the_server_first(kind: Kind) {
    let stop = |born: &mut BornAsReplica, _: &Writers| {
        born.server.begin_to_terminate();
        born.perennial.terminate();
    };
    stops_and_comes_back(kind, stop, true);
}

fn nothing_answered_is_lost_when_both_stop_perennial_first(kind: Kind) {
    let stop = |born: &mut BornAsReplica, _: &Writers| {
        born.perennial.terminate();
        born.server.begin_to_terminate();
    };
    stops_and_comes_back(kind, stop, true);
}

/// Perennial already knows that it shall stop, and clients write on for a while.
fn nothing_answered_is_lost_when_perennial_is_told_a_moment_earlier(kind: Kind) {
    let stop = |born: &mut BornAsReplica, writers: &Writers| {
        let told = born.perennial.log().matches("stopping: ").count();
        born.perennial.terminate();
        until("it has heard", DEADLINE, || {
            born.perennial.log().matches("stopping: ").count() > told
        });
        writers.until_acknowledged_more(300);
        born.server.begin_to_terminate();
    };
    stops_and_comes_back(kind, stop, true);
}

fn stops_and_comes_back(
    kind: Kind,
    stop: impl Fn(&mut BornAsReplica, &Writers),
    perennial_stops: bool,
) {
    let archive = Archive::new();
    let Some(mut born) =
        BornAsReplica::start_with(kind, &archive, &["--shutdown-timeout", SHUTDOWN_TIMEOUT])
    else {
        return;
    };
    let writers = Writers::start_recording(&born.server.address(), LOAD);
    for _ in 0..ROUNDS {
        writers.until_acknowledged_more(500);
        let began = Instant::now();
        stop(&mut born, &writers);
        born.server.until_ended();
        let took = began.elapsed();
        let answered = writers.answered();
        assert!(took < STOP_MAX, "the stop took {took:?}");
        if perennial_stops {
            assert_eq!(born.perennial.wait(DEADLINE).code(), Some(0));
            born.perennial.start_again();
        }
        born.server.start_again();
        until("it is a master again", DEADLINE, || born.server.is_master());
        assert!(answered.0.len() >= 500);
        answered.assert_all_in(&born.server.address());
    }
    drop(writers);
    let status = archive.status();
    assert!(status.suspects().is_empty(), "{status:#?}");
    born.perennial.assert_healthy();
}
