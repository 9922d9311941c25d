//! Every request to S3 or Google Cloud Storage goes wrong in turn, while following, taking the snapshot, seeding and
//! restoring: what a master was told is stored comes back, by a seed and by files.
//!
//! The requests of the scenario are counted once; then the first goes wrong, the second, and so on. A few of them,
//! chosen by a printed seed, in every run; all of them with `PERENNIAL_STORE_FAILURES=all`.

use std::sync::Arc;
use std::time::Duration;

use perennial::clock::SystemClock;
use perennial::store::{Store, open};

use crate::harness::gcs::{Answer, Gcs};
use crate::harness::random::Random;
use crate::harness::s3::{SECRET, Trouble, WRITER, environment};
use crate::harness::{
    Archive, DEADLINE, Digest, InProcess, REDIS_7_0, S3Server, Value, assert_same, run_cli_with,
    until,
};

/// Requests that go wrong in turn where not all of them do.
const SAMPLE: usize = 4;
/// Of all requests, so many go wrong where it is left to chance.
const PER_MILLE: u64 = 100;
/// A request that is late.
const LATE: Duration = Duration::from_millis(700);
/// More than a part of a large object holds, so that the snapshot goes up in parts.
const VALUE_BYTES: usize = 9 * 1024 * 1024;
/// How often a restore by files is tried: the request that goes wrong may be one of its own.
const RESTORES_MAX: u32 = 3;

/// What goes wrong with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Answered with 503, not done.
    Refused,
    /// The connection breaks, nothing is done.
    Cut,
    /// The connection breaks in the middle of what is sent.
    CutWithin,
    /// Done much later.
    Slow,
    /// Done, and answered with 500.
    DoneButFailed,
    /// Done, and the answer breaks off.
    DoneButCut,
}

impl Way {
    fn on_s3(self) -> Trouble {
        match self {
            Self::Refused => Trouble::Status(503),
            Self::Cut => Trouble::Cut,
            Self::CutWithin => Trouble::CutWithin,
            Self::Slow => Trouble::Late(LATE),
            Self::DoneButFailed => Trouble::DoneBut(500),
            Self::DoneButCut => Trouble::DoneButCut,
        }
    }

    fn on_gcs(self) -> Answer {
        match self {
            Self::Refused => Answer::Refuse(503),
            Self::Cut => Answer::Cut,
            // Of what is sent, the fake keeps half, where there is a way to go on.
            Self::CutWithin => Answer::Half,
            Self::Slow => Answer::Late(LATE),
            Self::DoneButFailed => Answer::DoneBut(500),
            Self::DoneButCut => Answer::DoneButCut,
        }
    }
}

/// When something goes wrong, and what.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Never,
    At(usize, Way),
    /// By chance, with this seed, answered with this status.
    Often(u64, u16),
}

/// A store of the test's own that can be told what goes wrong.
trait Place {
    fn archive(&self) -> Archive;
    fn store(&self) -> Arc<dyn Store>;
    fn plan(&self, fault: Fault);
    /// Requests so far, and how many of them went wrong.
    fn requests(&self) -> (usize, usize);
}

impl Place for S3Server {
    fn archive(&self) -> Archive {
        Archive::at(self.url("a"), environment(WRITER, SECRET))
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::new(Self::store(self, "a"))
    }

    fn plan(&self, fault: Fault) {
        let control = self.control();
        match fault {
            Fault::Never => {}
            Fault::At(number, way) => control.trouble_at(number, way.on_s3()),
            Fault::Often(seed, status) => {
                control.trouble_at_random(PER_MILLE, seed, Trouble::Status(status));
            }
        }
    }

    fn requests(&self) -> (usize, usize) {
        (
            self.control().requests().len(),
            self.control().troubles_met(),
        )
    }
}

impl Place for Gcs {
    fn archive(&self) -> Archive {
        Archive::at(self.url("a"), Vec::new())
    }

    fn store(&self) -> Arc<dyn Store> {
        open(&self.url("a")).unwrap()
    }

    fn plan(&self, fault: Fault) {
        match fault {
            Fault::Never => {}
            Fault::At(number, way) => self.plan_at(number, way.on_gcs()),
            Fault::Often(seed, status) => {
                let mut random = Random::fixed(seed);
                self.plan_where(
                    move || random.below(1000) < PER_MILLE,
                    Answer::Refuse(status),
                );
            }
        }
    }

    fn requests(&self) -> (usize, usize) {
        (Self::requests(self), self.met())
    }
}

/// Each way on each store, one test for each.
macro_rules! each_request {
    ($($name:ident: $way:expr),+ $(,)?) => {$(
        mod $name {
            use super::{each_goes_wrong, Gcs, S3Server, Way};
            #[test] fn s3() { each_goes_wrong(S3Server::in_process, $way); }
            #[test] fn gcs() { each_goes_wrong(Gcs::start, $way); }
        }
    )+};
}

each_request! {
    whatever_request_is_refused: Way::Refused,
    whatever_request_is_cut: Way::Cut,
    whatever_request_is_cut_in_the_middle: Way::CutWithin,
    whatever_request_is_slow: Way::Slow,
    whatever_request_is_done_and_reported_as_failed: Way::DoneButFailed,
    whatever_answer_is_cut: Way::DoneButCut,
}

fn each_goes_wrong<P: Place>(start: fn() -> P, way: Way) {
    let Some((requests, _)) = loop_with(&start(), Fault::Never) else {
        return;
    };
    assert!(requests >= 20, "a run takes {requests} requests");
    let all = std::env::var("PERENNIAL_STORE_FAILURES").is_ok_and(|text| text == "all");
    let numbers: Vec<usize> = if all {
        (1..=requests).collect()
    } else {
        let mut random = Random::new();
        let count = u64::try_from(requests).unwrap();
        (0..SAMPLE)
            .map(|_| 1 + usize::try_from(random.below(count)).unwrap())
            .collect()
    };
    let mut met = 0;
    for number in &numbers {
        eprintln!("{way:?} at {number} of {requests}");
        met += loop_with(&start(), Fault::At(*number, way)).unwrap().1;
    }
    eprintln!(
        "{way:?}: {met} requests of {} runs went wrong, nothing lost",
        numbers.len()
    );
    // Runs differ by a request or two: not every number is reached in each.
    assert!(met * 10 >= numbers.len() * 7, "{met} of {numbers:?}");
}

#[test]
fn one_request_in_ten_is_refused_by_s3() {
    often(S3Server::in_process);
}

#[test]
fn one_request_in_ten_is_refused_by_gcs() {
    often(Gcs::start);
}

fn often<P: Place>(start: fn() -> P) {
    let mut random = Random::new();
    let mut met = 0;
    for status in [503, 429, 503, 429] {
        let seed = random.bits();
        let Some((_, now)) = loop_with(&start(), Fault::Often(seed, status)) else {
            return;
        };
        met += now;
    }
    assert!(met > 0);
}

/// Follow, write and wait, lose the server, come back, restore by files. Returns the number of requests, and of those
/// that went wrong.
fn loop_with(place: &impl Place, fault: Fault) -> Option<(usize, usize)> {
    let mut server = REDIS_7_0.start(&[])?;
    let value = Random::fixed(1).bytes(VALUE_BYTES);
    server.client().ok(&[b"SET".as_slice(), b"large", &value]);
    let archive = place.archive();
    place.plan(fault);
    let perennial = InProcess::follow_into(
        &server.url(),
        &archive.url(),
        place.store(),
        Arc::new(SystemClock::new()),
    );
    let write = |key: &str| {
        let mut client = server.client();
        client.ok(&["SET", key, "1"]);
        let milliseconds = DEADLINE.as_millis().to_string();
        let confirmed = client.ok(&["WAIT", "1", &milliseconds]).integer();
        assert_eq!(confirmed, 1, "{key} with {fault:?}");
    };
    for key in ["one", "two", "three"] {
        write(key);
    }
    let before = Digest::of(&server.address());
    server.lose_everything();
    until(
        &format!("everything is back with {fault:?}"),
        DEADLINE,
        || {
            server.is_master()
                && server
                    .client()
                    .command(&["GET", "three"])
                    .is_ok_and(|value| value == Value::Bulk(b"1".to_vec()))
        },
    );
    assert_same(&before, &Digest::of(&server.address()));
    let mut client = server.client();
    client.ok(&["SET", "after", "1"]);
    client.wait_until_stored(DEADLINE);
    let before = Digest::of(&server.address());
    server.kill();
    perennial.stop().unwrap();

    let folder = restored(&archive, fault);
    let restored = REDIS_7_0.start_on(&folder).unwrap();
    assert_same(&before, &Digest::of(&restored.address()));
    Some(place.requests())
}

/// A restore fails and leaves nothing, or brings everything.
fn restored(archive: &Archive, fault: Fault) -> std::path::PathBuf {
    let folder = archive.beside("restored");
    for _ in 0..RESTORES_MAX {
        let url = archive.url();
        let to = folder.to_str().unwrap();
        let arguments = ["restore", "--archive", &url, "--to", to];
        let (code, _, err) = run_cli_with(&arguments, &archive.environment());
        if code == 0 {
            return folder;
        }
        assert_eq!(code, 1, "{err} with {fault:?}");
        let files = folder.join("appendonlydir");
        assert!(!files.exists(), "{err} with {fault:?}");
    }
    panic!("never restored with {fault:?}");
}
