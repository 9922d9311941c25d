//! An archive on S3: the real binary and a real redis-server, the bucket in a process of its own (this one), beside
//! what the bucket alone can do, in interleaved runs. Nothing is asserted: this prints.
//!
//! Expectation before measuring: a snapshot costs us the compression (some 310 MB/s and core on RDB), its checksums and
//! the hash that signs each part, so about 200 MB per CPU second; `WAIT 1` costs one PUT with any number of clients,
//! because whoever comes while one is under way shares the next.
//!
//! `cargo bench --bench s3 -- --help` tells how to run a part of it.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a program that measures real time and prints; what goes wrong ends it"
)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use perennial::archive::layout::ObjectName;
use perennial::store::Store;
use perennial::store::s3::S3Store;

#[path = "common/mod.rs"]
#[allow(dead_code, reason = "shared by two programs")]
mod common;

#[path = "common/harness.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "made for the tests, which need more of it"
)]
mod harness;

use common::{
    cpu_seconds, fill, median, resident_mib, row, row_alone, row_of_memory, say_if_unlinked,
};
use harness::random::Random;
use harness::s3::{BUCKET, S3Server, SECRET, WRITER, environment};
use harness::{Archive, Perennial, REDIS_7_0, Server};

/// Nothing here takes longer.
const DEADLINE: Duration = Duration::from_secs(300);
/// How long each number of clients waits for its writes, a round.
const TURN: Duration = Duration::from_secs(3);
/// PUTs that a round measures.
const PUTS: usize = 60;
/// Clients that wait at the same time.
const CLIENTS: [usize; 3] = [1, 8, 64];

/// Snapshots into a bucket, and writes that wait for it.
#[derive(Debug, Parser)]
struct Options {
    /// Only these parts: snapshot, wait
    parts: Vec<String>,
    /// Counted runs of each part
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Size of the data set, megabytes of values
    #[arg(long, default_value_t = 500)]
    megabytes: u64,
    /// How much further away the bucket is than this machine, milliseconds there and back
    #[arg(long, default_values_t = [0, 20])]
    away: Vec<u64>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }
}

fn main() {
    let options = Options::parse();
    println!(
        "{:<44} {:>11} {:>11} {:>7}  bar",
        "what", "ours", "peer", "ratio"
    );
    if options.wants("snapshot") {
        snapshot(&options);
    }
    if options.wants("wait") {
        for away in &options.away {
            wait(&options, Duration::from_millis(*away));
        }
    }
}

fn snapshot(options: &Options) {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    fill(&server, options.megabytes);
    // `yes` is what servers do by default; without it more bytes come, and they compress better.
    for compressed in ["yes", "no"] {
        server
            .client()
            .line(&format!("CONFIG SET rdbcompression {compressed}"));
        println!("rdbcompression {compressed}:");
        snapshots(&server, options.rounds);
    }
}

fn snapshots(server: &Server, rounds: usize) {
    let (mut per_cpu_second, mut resident, mut size) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let s3 = S3Server::in_process();
        let archive = s3.archive();
        let started = Instant::now();
        let mut perennial = Perennial::follow_url(&server.url(), &archive, &[]);
        let bytes = loop {
            if let Some(bytes) = snapshot_bytes(&perennial.log()) {
                break bytes;
            }
            assert!(perennial.exited().is_none(), "{}", perennial.log());
            assert!(started.elapsed() < DEADLINE, "{}", perennial.log());
            thread::sleep(Duration::from_millis(5));
        };
        let megabytes = bytes / 1e6;
        size.push(megabytes);
        per_cpu_second.push(megabytes / cpu_seconds(&perennial));
        resident.push(resident_mib(&perennial));
        say_if_unlinked(&perennial);
    }
    row_alone("  RDB payload, MB", &size, "");
    row_alone("  MB per CPU second of ours", &per_cpu_second, ">= 180");
    row_of_memory(&resident);
}

/// What the log says of the payload.
fn snapshot_bytes(log: &str) -> Option<f64> {
    let line = log
        .lines()
        .find(|line| line.contains("snapshot complete"))?;
    line.split("bytes=")
        .nth(1)?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

fn wait(options: &Options, away: Duration) {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let s3 = S3Server::in_process();
    let far = FarAway::from(&s3, away);
    let url = |prefix: &str| {
        format!(
            "s3://{BUCKET}/{prefix}?region=us-east-1&endpoint={}",
            far.endpoint()
        )
    };
    let archive = Archive::at(url("a"), environment(WRITER, SECRET));
    let perennial = Perennial::follow(&server, &archive, &["--uploads-per-second", "none"]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let store = S3Store::open_as(&url("b"), WRITER, SECRET).unwrap();
    println!("the bucket {} ms further away:", away.as_millis());
    let mut puts = Vec::new();
    let mut waits = vec![Vec::new(); CLIENTS.len()];
    let mut rates = vec![Vec::new(); CLIENTS.len()];
    for round in 0..=options.rounds {
        let put = runtime.block_on(put_millis(&store, round));
        for (turn, clients) in CLIENTS.iter().enumerate() {
            let (millis, per_second) = waited(&server, *clients);
            if round > 0 {
                waits[turn].push(millis);
                rates[turn].push(per_second);
            }
        }
        if round > 0 {
            puts.push(put);
        }
    }
    for (turn, clients) in CLIENTS.iter().enumerate() {
        let what = format!("  {clients} clients: SET + WAIT 1, ms (peer: one PUT)");
        row(&what, &waits[turn], &puts, "ratio <= 2");
        row_alone("    waited writes per second", &rates[turn], "grows");
    }
    say_if_unlinked(&perennial);
}

/// The median of one small PUT after the other.
async fn put_millis(store: &S3Store, round: usize) -> f64 {
    let body = Bytes::from(Random::fixed(5).bytes(300));
    let mut millis = Vec::new();
    for number in 0..PUTS {
        let name = ObjectName::new(&format!("puts/{round:04}-{number:08}")).unwrap();
        let started = Instant::now();
        store.create(&name, vec![body.clone()]).await.unwrap();
        millis.push(started.elapsed().as_secs_f64() * 1e3);
    }
    median(&millis)
}

/// The median of a SET with its WAIT, and how many there were per second.
#[allow(clippy::cast_precision_loss, reason = "a few thousand writes")]
fn waited(server: &Server, clients: usize) -> (f64, f64) {
    let (sender, results) = mpsc::channel();
    let started = Instant::now();
    thread::scope(|scope| {
        for number in 0..clients {
            let sender = sender.clone();
            scope.spawn(move || {
                let mut client = server.client();
                let key = format!("key:{number}");
                for value in 0_u64.. {
                    if started.elapsed() >= TURN {
                        break;
                    }
                    let began = Instant::now();
                    client.ok(&["SET", &key, &value.to_string()]);
                    let confirmed = client.ok(&["WAIT", "1", "60000"]).integer();
                    assert_eq!(confirmed, 1, "WAIT was not confirmed");
                    sender.send(began.elapsed().as_secs_f64() * 1e3).unwrap();
                }
            });
        }
    });
    drop(sender);
    let millis: Vec<f64> = results.iter().collect();
    (
        median(&millis),
        millis.len() as f64 / started.elapsed().as_secs_f64(),
    )
}

/// The same bucket behind a longer way: each answer comes later by as much.
struct FarAway {
    port: u16,
    stop: Arc<AtomicBool>,
}

impl FarAway {
    fn from(s3: &S3Server, away: Duration) -> Self {
        let upstream = s3.endpoint().trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::Acquire) {
                    break;
                }
                let Ok(server) = TcpStream::connect(&upstream) else {
                    break;
                };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let (to_server, to_client) =
                    (server.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || carry(client, to_server, Duration::ZERO));
                thread::spawn(move || carry(server, to_client, away));
            }
        });
        Self { port, stop }
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for FarAway {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, late: Duration) {
    let mut buffer = vec![0; 256 * 1024];
    while let Ok(read) = from.read(&mut buffer)
        && read > 0
    {
        thread::sleep(late);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
