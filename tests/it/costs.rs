//! What an archive costs a month, in requests to the store: counted on simulated time, and compared with the table of
//! `docs/operations.md`. An idle master costs at most one request an hour.
//!
//! The master here is a script: it says what a 7.0 says (`proto-fixtures/psync`) at the rate that a profile asks for.
//! Nothing about servers is proven by it; every other file follows real ones.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use perennial::cli::run::run;
use perennial::clock::Clock;
use perennial::config::RunSettings;
use perennial::position::{Ticks, UnixMillis};
use perennial::proto::handshake::command;
use perennial::store::faulty::{Faults, FaultyStore};
use perennial::store::measured::{Counts, MeasuredStore, Observer};
use perennial::store::memory::MemoryStore;
use perennial::store::{Operation, Store};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::harness::in_process::settings;
use crate::harness::random::Random;
use crate::harness::{Archive, DEADLINE, InProcess, Port, REDIS_7_0, until};

/// The month of the table.
const MONTH_SECONDS: f64 = 30.0 * 24.0 * 3600.0;
/// How often a master pings (`repl-ping-replica-period`).
const PING_EVERY: Duration = Duration::from_secs(10);
/// Writes of a tick arrive together.
const TICK: Duration = Duration::from_millis(100);
/// How long each request takes.
const LATENCY: Duration = Duration::from_millis(30);
/// Uploads that begin in a second at most, unless told otherwise, in a bucket.
const PER_SECOND: u64 = 20;
const ID: &str = "1111111111111111111111111111111111111111";

/// Tokio's time, which a paused runtime moves on whenever everybody waits.
#[derive(Debug)]
struct SimulatedClock(Instant);

impl Clock for SimulatedClock {
    fn unix(&self) -> UnixMillis {
        UnixMillis(1_800_000_000_000 + self.ticks().0)
    }

    fn ticks(&self) -> Ticks {
        Ticks(u64::try_from(self.0.elapsed().as_millis()).unwrap())
    }
}

/// What the master's clients do.
#[derive(Clone, Copy)]
enum Profile {
    /// Nothing.
    Idle,
    /// So many writes a second, of a hundred bytes each.
    Writes(u64),
    /// One writes and waits for it, again and again.
    WaitLoop,
}

/// One connection of the scripted master.
async fn serve(stream: UnixStream, profile: Profile) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let (acked, acknowledged) = watch::channel(0_u64);
    let mut rdb_only = false;
    let mut writer = loop {
        let Some(request) = request(&mut reader).await else {
            return;
        };
        let words: Vec<&str> = request.iter().map(String::as_str).collect();
        let answer = match words.as_slice() {
            ["INFO", ..] => bulk(&info()),
            ["PING"] => "+PONG\r\n".into(),
            ["PSYNC", ..] => {
                writer.write_all(&full_resync()).await.unwrap();
                break writer;
            }
            ["CONFIG", ..] => "*0\r\n".into(),
            _ => {
                rdb_only |= words.contains(&"rdb-only");
                "+OK\r\n".into()
            }
        };
        writer.write_all(answer.as_bytes()).await.unwrap();
    };
    if rdb_only {
        return;
    }
    tokio::spawn(async move {
        while let Some(request) = request(&mut reader).await {
            if let [_, ack, offset, ..] = request.as_slice()
                && ack == "ACK"
            {
                acked.send_replace(offset.parse().unwrap());
            }
        }
    });
    let mut random = Random::fixed(1);
    let mut offset = 0;
    let mut pinged = Instant::now();
    loop {
        let mut sent = Vec::new();
        if pinged.elapsed() >= PING_EVERY {
            pinged = Instant::now();
            sent.extend_from_slice(&command(&[b"PING"]));
        }
        let writes = match profile {
            Profile::Idle => 0,
            Profile::Writes(each_second) => each_second / 10,
            Profile::WaitLoop => 1,
        };
        for _ in 0..writes {
            sent.extend_from_slice(&set(&mut random));
        }
        let waits = matches!(profile, Profile::WaitLoop);
        if waits {
            sent.extend_from_slice(&command(&[b"REPLCONF", b"GETACK", b"*"]));
        }
        offset += sent.len() as u64;
        if writer.write_all(&sent).await.is_err() {
            return;
        }
        if waits {
            let mut acknowledged = acknowledged.clone();
            if acknowledged.wait_for(|at| *at >= offset).await.is_err() {
                return;
            }
        } else {
            let idle = matches!(profile, Profile::Idle);
            sleep(if idle { PING_EVERY } else { TICK }).await;
        }
    }
}

/// A write of a hundred bytes, which compress to about half.
fn set(random: &mut Random) -> Bytes {
    let value: String = random
        .bytes(50)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let key = format!("key:{}", random.below(1_000_000));
    command(&[b"SET", key.as_bytes(), value.as_bytes()])
}

/// The next request: an array of bulk strings, or one line.
async fn request(reader: &mut (impl AsyncBufReadExt + Unpin)) -> Option<Vec<String>> {
    let line = line(reader).await?;
    let Some(count) = line.strip_prefix('*') else {
        return Some(line.split(' ').map(str::to_owned).collect());
    };
    let mut words = Vec::new();
    for _ in 0..count.parse::<usize>().unwrap() {
        let length = self::line(reader).await?;
        let length: usize = length.strip_prefix('$')?.parse().unwrap();
        let mut word = vec![0; length + 2];
        reader.read_exact(&mut word).await.ok()?;
        word.truncate(length);
        words.push(String::from_utf8(word).unwrap());
    }
    Some(words)
}

async fn line(reader: &mut (impl AsyncBufReadExt + Unpin)) -> Option<String> {
    let mut line = String::new();
    let read = reader.read_line(&mut line).await.ok()?;
    (read > 0).then(|| line.trim_end().to_owned())
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

fn info() -> String {
    format!(
        "redis_version:7.0.15\r\nrun_id:{ID}\r\nuptime_in_seconds:1\r\nloading:0\r\nasync_loading:0\r\n\
         rdb_changes_since_last_save:0\r\nrdb_saves:0\r\nrole:master\r\nmaster_replid:{ID}\r\n\
         master_replid2:0000000000000000000000000000000000000000\r\nmaster_repl_offset:0\r\n\
         second_repl_offset:-1\r\nrepl_backlog_active:0\r\ndb0:keys=1,expires=0,avg_ttl=0\r\n"
    )
}

/// At offset 0, with a payload that says it was not given a checksum.
fn full_resync() -> Vec<u8> {
    let payload = [b"REDIS0010\xff".as_slice(), &[0; 8]].concat();
    let head = format!("+FULLRESYNC {ID} 0\r\n${}\r\n", payload.len());
    [head.into_bytes(), payload].concat()
}

/// What was asked of the store.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Requests {
    writes: u64,
    reads: u64,
    lists: u64,
    bytes: u64,
}

impl Requests {
    fn of(counts: &Counts) -> Self {
        let of = |kinds: &[Operation]| kinds.iter().map(|kind| counts.of(*kind)).sum();
        Self {
            writes: of(&[
                Operation::Create,
                Operation::BeginUpload,
                Operation::Write,
                Operation::Complete,
            ]),
            reads: of(&[Operation::Read]),
            lists: counts.list_pages(),
            bytes: counts.bytes(Operation::Create),
        }
    }
}

/// Follows a master of this profile for so long, on simulated time, and tells what was asked of the store after the
/// first minutes. Each operation of the store takes `latency`, and so many uploads may begin in a second.
fn follow(profile: Profile, time: Duration, latency: Duration, per_second: u64) -> Requests {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let requests = runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("redis.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, profile));
            }
        });
        let clock: Arc<dyn Clock> = Arc::new(SimulatedClock(Instant::now()));
        let faults = Faults::new();
        faults.delay_all(u64::try_from(latency.as_millis()).unwrap());
        let counts = Arc::new(Counts::default());
        let store: Arc<dyn Store> = Arc::new(MeasuredStore::new(
            Arc::new(FaultyStore::new(Arc::new(MemoryStore::new()), faults)),
            Arc::clone(&counts) as Arc<dyn Observer>,
            Arc::clone(&clock),
        ));
        let (stop, stopped) = watch::channel(false);
        let url = format!("unix://{}", socket.display());
        // The defaults of the flags.
        let options = RunSettings {
            flush_bytes: "8MiB".into(),
            uploads_per_second: Some(per_second.to_string()),
            ..settings(&url, "file:///nowhere", "1s")
        };
        let options = options.check().unwrap();
        let running = tokio::spawn(run(options, Arc::clone(&store), clock, stopped));
        // The first sync, and PINGs that are stored at once after it.
        sleep(Duration::from_secs(90)).await;
        let before = Requests::of(&counts);
        assert!(
            counts.of(Operation::Complete) == 1,
            "no snapshot: {before:?}"
        );
        sleep(time).await;
        let after = Requests::of(&counts);
        stop.send_replace(true);
        running.await.unwrap().unwrap();
        for kind in Operation::ALL {
            // archive.json, which was not there.
            let absent = u64::from(kind == Operation::Read);
            assert_eq!(counts.failed(kind), absent, "{kind:?}");
        }
        Requests {
            writes: after.writes - before.writes,
            reads: after.reads - before.reads,
            lists: after.lists - before.lists,
            bytes: after.bytes - before.bytes,
        }
    });
    runtime.shutdown_background();
    requests
}

#[test]
fn an_idle_master_is_at_most_one_request_an_hour() {
    let hours = 10;
    let time = Duration::from_secs(hours * 3600);
    let asked = follow(Profile::Idle, time, LATENCY, PER_SECOND);
    assert!(asked.writes <= hours, "{asked:?}");
    assert!(asked.writes >= hours - 1, "its PINGs are stored: {asked:?}");
    assert_eq!((asked.reads, asked.lists), (0, 0), "{asked:?}");
}

/// Who loops `WAIT` is answered as often as an upload may begin, which is less often than the store would allow.
#[test]
fn a_loop_of_waits_makes_no_more_uploads_than_are_allowed() {
    let (per_second, seconds) = (5, 60);
    let time = Duration::from_secs(seconds);
    let asked = follow(Profile::WaitLoop, time, LATENCY, per_second);
    assert!(asked.writes <= per_second * seconds + 1, "{asked:?}");
    assert!(asked.writes >= per_second * seconds - 10, "{asked:?}");
}

/// A row of the table in the documentation.
struct Row {
    writes: f64,
    others: f64,
    gigabytes: f64,
    dollars: [f64; 2],
}

fn documented(master: &str) -> Row {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let text = fs::read_to_string(path).unwrap();
    let begins = format!("| {master} |");
    let line = text
        .lines()
        .find(|line| line.starts_with(&begins))
        .unwrap_or_else(|| panic!("no row for {master:?}"));
    let numbers: Vec<f64> = line
        .split('|')
        .skip(2)
        .map(|cell| cell.replace([',', '$', ' '], ""))
        .filter(|cell| !cell.is_empty())
        .map(|cell| {
            cell.parse()
                .unwrap_or_else(|_| panic!("{cell:?} in {line}"))
        })
        .collect();
    let [writes, others, gigabytes, s3, gcs] = numbers.as_slice() else {
        panic!("five numbers are expected in {line}");
    };
    Row {
        writes: *writes,
        others: *others,
        gigabytes: *gigabytes,
        dollars: [*s3, *gcs],
    }
}

/// Dollars for a thousand writes or lists, on S3 and on Google's side alike: the documentation says where and when.
const DOLLARS_PER_THOUSAND: f64 = 0.005;

#[track_caller]
fn near(what: &str, counted: f64, documented: f64, part: f64) {
    let off = (counted - documented).abs();
    assert!(
        off <= documented.abs() * part,
        "{what}: counted {counted}, documented {documented}"
    );
}

#[test]
fn a_month_costs_what_the_documentation_says() {
    let profiles = [
        ("idle", Profile::Idle, 4 * 3600),
        ("100 writes a second", Profile::Writes(100), 300),
        ("10,000 writes a second", Profile::Writes(10_000), 10),
        (
            "one client that loops `SET` and `WAIT 1`",
            Profile::WaitLoop,
            60,
        ),
    ];
    let counted = profiles.map(|(master, profile, seconds)| {
        let asked = follow(profile, Duration::from_secs(seconds), LATENCY, PER_SECOND);
        eprintln!("{master}, {seconds} s: {asked:?}");
        (master, seconds, asked)
    });
    for (master, seconds, asked) in counted {
        let row = documented(master);
        #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
        let month =
            |count: u64| count as f64 * MONTH_SECONDS / f64::from(u32::try_from(seconds).unwrap());
        eprintln!(
            "{master}: {} writes, {} others, {:.1} GB a month",
            month(asked.writes),
            month(asked.reads + asked.lists),
            month(asked.bytes) / 1e9
        );
        near(master, month(asked.writes), row.writes, 0.06);
        // Once a minute it is looked whether the archive is still there, while anything is stored: not in the table.
        let looks = if master == "idle" { 0 } else { seconds / 60 };
        assert!(asked.reads + 1 >= looks, "{master}: {asked:?}");
        let others = (asked.reads + asked.lists).saturating_sub(looks);
        near(master, month(others), row.others, 0.0);
        near(master, month(asked.bytes) / 1e9, row.gigabytes, 0.15);
        for dollars in row.dollars {
            let expected = row.writes / 1000.0 * DOLLARS_PER_THOUSAND;
            assert!(
                (dollars - expected).abs() < 0.01,
                "{master}: {dollars} for {expected}"
            );
        }
    }
}

/// A server that is nobody's to follow, looked at every two seconds: the archive is read once, not at each look.
#[test]
fn a_server_that_cannot_be_followed_costs_nothing() {
    let nowhere = Port::reserve();
    let Some(server) = REDIS_7_0.start(&["--replicaof", &format!("127.0.0.1 {}", nowhere.number)])
    else {
        return;
    };
    let (archive, faults) = (Archive::new(), Faults::new());
    let running = InProcess::follow(&server, &archive, &faults);
    let looks = || {
        server
            .info("commandstats")
            .get("cmdstat_info")
            .map_or(0, |stat| {
                let calls = stat.trim_start_matches("calls=").split(',').next().unwrap();
                calls.parse::<u64>().unwrap()
            })
    };
    // One of them is this test's own, each time.
    let began = looks();
    let mut asked = 0;
    until("it was looked at again and again", 2 * DEADLINE, || {
        asked += 1;
        std::thread::sleep(Duration::from_millis(100));
        looks() >= began + asked + 9
    });
    // Whether there is an archive, whether one lost its document, and what is in it.
    assert!(
        faults.count(Operation::List) <= 3,
        "{}",
        faults.count(Operation::List)
    );
    assert!(
        faults.count(Operation::Read) <= 4,
        "{}",
        faults.count(Operation::Read)
    );
    // It is followed as soon as it is a master.
    server.client().line("REPLICAOF NO ONE");
    server.client().line("SET a 1");
    server.client().wait_until_stored(DEADLINE);
    running.stop().unwrap();
}
