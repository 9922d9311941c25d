//! The whole loop on one machine, beside what it has to keep up with: the real binary and a real redis-server,
//! in interleaved runs, medians and ratios. Nothing is asserted: this prints.
//!
//! Expectation before measuring, on two cores: a full sync is bound by the server's own serializing, so ours and
//! `redis-cli --rdb` are equal; a replica costs the master's machine more than we do, because it executes what we
//! only compress; `WAIT 1` costs one create and a round trip; a restore runs at the speed of checking and of the disk.
//!
//! `cargo bench --bench loop -- --help` tells how to run a part of it.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a program that measures real time and prints; what goes wrong ends it"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use perennial::archive::layout::ObjectName;
use perennial::store::Store;
use perennial::store::fs::FsStore;

#[path = "common/mod.rs"]
mod common;

#[path = "common/harness.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "made for the tests, which need more of it"
)]
mod harness;

use common::{
    cpu_seconds, cpu_seconds_of, cpu_seconds_of_server, fill, resident_mib, row, row_alone,
    row_of_memory, say_if_unlinked,
};
use harness::random::Random;
use harness::{Archive, Client, Perennial, REDIS_7_0, Server, run_cli, until};

/// Nothing here takes longer.
const DEADLINE: Duration = Duration::from_secs(300);
/// The value that is larger than every buffer, bytes.
const BIG_VALUE_BYTES: usize = 300 * 1024 * 1024;
/// How long the load lasts under which memory is measured.
const LOAD: Duration = Duration::from_secs(20);
/// SETs of one throughput run.
const REQUESTS: &str = "2000000";
/// Keys they fall on.
const KEYS: &str = "1000000";
/// SETs with WAIT that are not counted, and those that are.
const WAITS: (usize, usize) = (20, 300);

/// Full sync, memory, throughput, WAIT and restore, beside their peers.
#[derive(Debug, Parser)]
struct Options {
    /// Only these parts: sync, value, load, throughput, wait, restore, idle
    parts: Vec<String>,
    /// Counted runs of each part, after one that is not
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Size of the data set, megabytes of values
    #[arg(long, default_value_t = 500)]
    megabytes: u64,
    /// Also watch an idle master for this long
    #[arg(long)]
    idle_minutes: Option<u64>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn wants(&self, part: &str) -> bool {
        if part == "idle" {
            return self.idle_minutes.is_some();
        }
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }
}

fn main() {
    let options = Options::parse();
    let Some(tools) = Tools::find() else { return };
    println!(
        "{:<44} {:>11} {:>11} {:>7}  bar",
        "what", "ours", "peer", "ratio"
    );
    if options.wants("sync") || options.wants("restore") {
        let Some(server) = REDIS_7_0.start(&[]) else {
            return;
        };
        fill(&server, options.megabytes);
        if options.wants("sync") {
            full_sync(&server, &tools, options.rounds);
            // The server itself is faster then, and more comes.
            server.client().line("CONFIG SET rdbcompression no");
            println!("the same with rdbcompression no:");
            full_sync(&server, &tools, options.rounds);
            server.client().line("CONFIG SET rdbcompression yes");
        }
        if options.wants("restore") {
            restore(&server, &tools, options.rounds);
        }
    }
    let parts: [(&str, &dyn Fn()); 5] = [
        ("value", &memory_of_a_big_value),
        ("load", &|| memory_under_load(&tools)),
        ("throughput", &|| {
            throughput(&tools, options.rounds, Values::Same);
            throughput(&tools, options.rounds, Values::Differing);
        }),
        ("wait", &wait),
        ("idle", &|| idle(options.idle_minutes.unwrap_or_default())),
    ];
    for (part, run) in parts {
        if options.wants(part) {
            run();
        }
    }
}

/// What redis-benchmark writes.
#[derive(Debug, Clone, Copy)]
enum Values {
    /// `-t set -d 100`: one value, which compresses to nothing.
    Same,
    /// 96 bytes, half of which are random digits.
    Differing,
}

/// Programs that come with the server.
struct Tools {
    cli: PathBuf,
    benchmark: PathBuf,
}

impl Tools {
    /// Beside the server that the tests use, or in PATH.
    fn find() -> Option<Self> {
        let Some(server) = REDIS_7_0.find() else {
            println!("SKIPPED: no redis-server 7.0 on this machine: run scripts/servers.sh");
            return None;
        };
        let tool = |name: &str| {
            let beside = server.with_file_name(name);
            if beside.is_file() {
                beside
            } else {
                PathBuf::from(name)
            }
        };
        let tools = Self {
            cli: tool("redis-cli"),
            benchmark: tool("redis-benchmark"),
        };
        for program in [&tools.cli, &tools.benchmark] {
            let runs = Command::new(program).arg("--version").output();
            if !runs.is_ok_and(|output| output.status.success()) {
                println!("SKIPPED: no {} on this machine", program.display());
                return None;
            }
        }
        Some(tools)
    }

    /// Pipelined SETs of 100 bytes on random keys, one run; SETs per second.
    fn sets_per_second(&self, server: &Server, values: Values) -> f64 {
        let port = port_of(server);
        let differing = "__rand_int__".repeat(8);
        let what: &[&str] = match values {
            Values::Same => &["-t", "set", "-d", "100"],
            Values::Differing => &["SET", "key:__rand_int__", &differing],
        };
        let output = Command::new(&self.benchmark)
            .args(["-p", &port, "-P", "16", "-r", KEYS, "-n", REQUESTS, "--csv"])
            .args(what)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let rate = text
            .lines()
            .find_map(|line| line.strip_prefix("\"SET")?.split('"').nth(2));
        rate.and_then(|rate| rate.parse().ok())
            .unwrap_or_else(|| panic!("redis-benchmark said: {text}"))
    }

    /// `redis-cli --rdb` into a file of a new folder; seconds.
    fn fetch_rdb(&self, server: &Server) -> f64 {
        let folder = tempfile::tempdir().unwrap();
        let port = port_of(server);
        let started = Instant::now();
        let status = Command::new(&self.cli)
            .args(["-p", &port, "--rdb"])
            .arg(folder.path().join("dump.rdb"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "redis-cli --rdb: {status}");
        started.elapsed().as_secs_f64()
    }
}

fn port_of(server: &Server) -> String {
    let address = server.address();
    address
        .rsplit_once(':')
        .map(|(_, port)| port)
        .unwrap()
        .to_owned()
}

/// A run of ours until its log says that the snapshot is complete; seconds.
fn snapshot_seconds(server: &Server, archive: &Archive) -> (f64, Perennial) {
    let started = Instant::now();
    let mut perennial = Perennial::follow_url(&server.url(), archive, &[]);
    while !perennial.log().contains("snapshot complete") {
        assert!(perennial.exited().is_none(), "{}", perennial.log());
        assert!(started.elapsed() < DEADLINE, "{}", perennial.log());
        thread::sleep(Duration::from_millis(2));
    }
    (started.elapsed().as_secs_f64(), perennial)
}

fn until_quiet(server: &Server) {
    until("the server serves no replica", DEADLINE, || {
        server.info_number("replication", "connected_slaves") == 0
            && server.info_number("persistence", "rdb_bgsave_in_progress") == 0
    });
}

fn full_sync(server: &Server, tools: &Tools, rounds: usize) {
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    let (mut ours_cpu, mut peer_cpu, mut resident) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=rounds {
        for turn in [round % 2, (round + 1) % 2] {
            until_quiet(server);
            if turn == 0 {
                let archive = Archive::new();
                let (seconds, perennial) = snapshot_seconds(server, &archive);
                ours.push(seconds);
                ours_cpu.push(cpu_seconds(&perennial));
                resident.push(resident_mib(&perennial));
            } else {
                let before = cpu_seconds_of_children();
                peer.push(tools.fetch_rdb(server));
                peer_cpu.push(cpu_seconds_of_children() - before);
            }
        }
    }
    for values in [
        &mut ours,
        &mut peer,
        &mut ours_cpu,
        &mut peer_cpu,
        &mut resident,
    ] {
        values.remove(0);
    }
    row(
        "full sync, s (peer: redis-cli --rdb)",
        &ours,
        &peer,
        "ratio <= 1",
    );
    row("  CPU of the process, s", &ours_cpu, &peer_cpu, "");
    row_of_memory(&resident);
}

fn memory_of_a_big_value() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let mut client = server.client();
    client.ok(&[
        "CONFIG",
        "SET",
        "client-output-buffer-limit",
        "replica 0 0 0",
    ]);
    let archive = Archive::new();
    let perennial = Perennial::follow(&server, &archive, &[]);
    let value = Random::fixed(3).bytes(BIG_VALUE_BYTES);
    let started = Instant::now();
    client.ok(&[b"SET".as_slice(), b"big", &value]);
    client.wait_until_stored(DEADLINE);
    println!(
        "{:<44} {:>11.2}",
        "300 MiB value to durable, s",
        started.elapsed().as_secs_f64()
    );
    row_of_memory(&[resident_mib(&perennial)]);
    say_if_unlinked(&perennial);
}

fn memory_under_load(tools: &Tools) {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let perennial = Perennial::follow(&server, &archive, &[]);
    let before = cpu_seconds(&perennial);
    let started = Instant::now();
    let mut rates = Vec::new();
    while started.elapsed() < LOAD {
        rates.push(tools.sets_per_second(&server, Values::Differing));
    }
    server.client().wait_until_stored(DEADLINE);
    let seconds = started.elapsed().as_secs_f64();
    row_alone("20 s of SETs, per second", &rates, "");
    let cpu = (cpu_seconds(&perennial) - before) / seconds;
    row_alone("  CPU of the process, cores", &[cpu], "");
    row_of_memory(&[resident_mib(&perennial)]);
    say_if_unlinked(&perennial);
    // A store that refuses: everything in flight fills up.
    fs::rename(archive.path(), archive.beside("away")).unwrap();
    fs::write(archive.path(), "not a folder").unwrap();
    let rates = [
        tools.sets_per_second(&server, Values::Differing),
        tools.sets_per_second(&server, Values::Differing),
    ];
    row_alone("SETs while the store refuses, per second", &rates, "");
    row_of_memory(&[resident_mib(&perennial)]);
}

/// Three masters that have nothing, a replica, and us attached, in turn.
fn throughput(tools: &Tools, rounds: usize, values: Values) {
    let start = || REDIS_7_0.start(&[]);
    let (Some(alone), Some(replicated), Some(followed), Some(replica)) =
        (start(), start(), start(), start())
    else {
        return;
    };
    let master = port_of(&replicated);
    replica.client().ok(&["REPLICAOF", "127.0.0.1", &master]);
    until("the replica is online", DEADLINE, || {
        let info = replicated.info("replication");
        info.get("slave0")
            .is_some_and(|line| line.contains("online"))
    });
    let archive = Archive::new();
    let perennial = Perennial::follow(&followed, &archive, &[]);
    let (mut rates, mut cpu) = (vec![Vec::new(); 3], vec![Vec::new(); 2]);
    for round in 0..=rounds {
        for turn in 0..3 {
            let which = (turn + round) % 3;
            let master = [&alone, &replicated, &followed][which];
            let before = [cpu_seconds_of_server(&replica), cpu_seconds(&perennial)];
            let rate = tools.sets_per_second(master, values);
            if which > 0 {
                // What is behind must not run into the next turn.
                master.client().wait_until_stored(DEADLINE);
            }
            let after = [cpu_seconds_of_server(&replica), cpu_seconds(&perennial)];
            if round > 0 {
                rates[which].push(rate);
                if which > 0 {
                    cpu[which - 1].push(after[which - 1] - before[which - 1]);
                }
            }
        }
    }
    println!("{values:?} values:");
    row(
        "master, SETs/s (peer: with a replica)",
        &rates[2],
        &rates[1],
        "ratio >= 1",
    );
    row("  beside a master alone", &rates[2], &rates[0], "");
    row("  CPU for 2 million SETs, s", &cpu[1], &cpu[0], "");
    say_if_unlinked(&perennial);
}

fn wait() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let perennial = Perennial::follow(&server, &archive, &[]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let store = FsStore::new(archive.beside("another"));
    runtime.block_on(store.prepare()).unwrap();
    let body = Bytes::from(Random::fixed(5).bytes(300));
    let mut client = server.client();
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for number in 0..WAITS.0 + WAITS.1 {
        let started = Instant::now();
        client.ok(&["SET", "key", &number.to_string()]);
        let confirmed = client.ok(&["WAIT", "1", "10000"]).integer();
        let waited = started.elapsed().as_secs_f64();
        assert_eq!(confirmed, 1, "WAIT was not confirmed");
        let name = ObjectName::new(&format!("waits/{number:08}")).unwrap();
        let started = Instant::now();
        runtime
            .block_on(store.create(&name, vec![body.clone()]))
            .unwrap();
        let created = started.elapsed().as_secs_f64();
        if number >= WAITS.0 {
            ours.push(waited * 1e3);
            peer.push(created * 1e3);
        }
    }
    row(
        "SET + WAIT 1, ms (peer: one create + fsync)",
        &ours,
        &peer,
        "ratio <= 2",
    );
    say_if_unlinked(&perennial);
}

/// Restore to files and a server's start on them, beside a start on the same files.
fn restore(server: &Server, tools: &Tools, rounds: usize) {
    let archive = Archive::new();
    let (_, mut perennial) = snapshot_seconds(server, &archive);
    tools.sets_per_second(server, Values::Differing);
    server.client().wait_until_stored(DEADLINE);
    perennial.kill();
    let (mut ours, mut files, mut peer) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=rounds {
        let target = archive.beside("restored");
        let started = Instant::now();
        let (url, to) = (archive.url(), target.to_str().unwrap());
        let (code, _, error) = run_cli(&["restore", "--archive", &url, "--to", to]);
        assert_eq!(code, 0, "{error}");
        let restored = started.elapsed().as_secs_f64();
        let start = start_seconds(&target);
        let again = start_seconds(&target);
        fs::remove_dir_all(&target).unwrap();
        if round > 0 {
            files.push(restored);
            ours.push(restored + start);
            peer.push(again);
        }
    }
    row(
        "restore + start, s (peer: start alone)",
        &ours,
        &peer,
        "ratio <= 2",
    );
    row_alone("  restore to files alone, s", &files, "");
}

fn start_seconds(folder: &Path) -> f64 {
    let started = Instant::now();
    let folder = folder.to_str().unwrap();
    let server = REDIS_7_0
        .start(&["--dir", folder, "--appendonly", "yes"])
        .unwrap();
    Client::connect_loaded(&server.address());
    let seconds = started.elapsed().as_secs_f64();
    assert!(server.keys() > Some(0), "{}", server.log());
    seconds
}

fn idle(minutes: u64) {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    server.client().line("SET one key");
    let archive = Archive::new();
    let perennial = Perennial::follow(&server, &archive, &[]);
    let (cpu, objects) = (cpu_seconds(&perennial), archive.objects().len());
    thread::sleep(Duration::from_secs(minutes * 60));
    let written = archive.objects().len() - objects;
    let cpu = cpu_seconds(&perennial) - cpu;
    #[allow(clippy::cast_precision_loss, reason = "minutes of a bench")]
    let percent = cpu / (minutes as f64 * 60.0) * 100.0;
    println!("idle for {minutes} min: objects written {written} (bar: 1 an hour)");
    println!("  CPU {cpu:.2} s, {percent:.3} % of a core (bar: 0.5 %)");
    row_of_memory(&[resident_mib(&perennial)]);
}

/// Of children of ours that have ended and been waited for.
fn cpu_seconds_of_children() -> f64 {
    cpu_seconds_of(std::process::id(), [16, 17])
}
