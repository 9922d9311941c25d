//! Which seeds run, on how many threads, and what is said of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use perennial::clock::{Clock, SystemClock};
use perennial::random::seeded;
use perennial::server::net::simulated;

use crate::trace::{self, Traced};
use crate::{chance, scenario};

/// Of so many seeds one is run twice, to see that it is the same again.
const TWICE_EACH: u64 = 50;
/// Seeds that once found something, each with a line of why.
const KNOWN: &str = include_str!("seeds.txt");

/// What was asked for.
struct Arguments {
    seeds: Range<u64>,
    trace: bool,
    /// A violation does not end it.
    all: bool,
    known: bool,
    until: Option<Duration>,
    threads: usize,
}

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut read = Self {
            seeds: 0..2000,
            trace: false,
            all: false,
            known: true,
            until: None,
            threads,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} wants a value"));
            let number = |text: &str| {
                text.parse::<u64>()
                    .map_err(|_| format!("{text:?} is no number"))
            };
            match word.as_str() {
                "--trace" => read.trace = true,
                "--all" => read.all = true,
                "--threads" => {
                    read.threads = usize::try_from(number(&value()?)?).unwrap_or(1).max(1)
                }
                "--seed" => {
                    let seed = number(&value()?)?;
                    (read.seeds, read.known) = (seed..seed + 1, false);
                }
                "--seeds" => {
                    let text = value()?;
                    let (from, to) = text.split_once("..").ok_or("write --seeds 0..2000")?;
                    read.seeds = number(from)?..number(to)?;
                }
                "--hours" => {
                    let hours: f64 = value()?.parse().map_err(|_| "--hours wants a number")?;
                    let until = Duration::try_from_secs_f64(hours * 3600.0);
                    read.until = Some(until.map_err(|_| "--hours wants a number")?);
                    let mut start = [0; 4];
                    perennial::random::fill(&mut start).map_err(|error| error.to_string())?;
                    let start = u64::from(u32::from_le_bytes(start)) * 1_000_000;
                    read.seeds = start..u64::MAX;
                }
                _ => return Err(format!("unknown: {word}")),
            }
        }
        Ok(read)
    }
}

/// What all runs came across.
#[derive(Default)]
struct Sum {
    /// Of so many runs at least once, and how often in all.
    counts: BTreeMap<&'static str, (u64, u64)>,
    violated: Vec<u64>,
}

/// Runs what the words ask for.
pub fn main(words: impl Iterator<Item = String>) -> ExitCode {
    if cfg!(not(tokio_unstable)) {
        eprintln!(
            "built without RUSTFLAGS=\"--cfg tokio_unstable\": tokio would take turns by chance, and no seed would be the same \
             twice; use `make simulation`"
        );
        return ExitCode::from(2);
    }
    let arguments = match Arguments::read(words) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}; see the head of tests/simulation/simulate.rs");
            return ExitCode::from(2);
        }
    };
    let clock = SystemClock::new();
    std::panic::set_hook(Box::new(|panic| {
        trace::panicked(format!("a panic: {panic}"));
    }));
    let sum = Mutex::new(Sum::default());
    let done = AtomicU64::new(0);
    run_all(&arguments, &clock, &sum, &done);
    let sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    tell(&sum, done.load(Ordering::Relaxed), clock.ticks().0);
    match sum.violated.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn run_all(arguments: &Arguments, clock: &SystemClock, sum: &Mutex<Sum>, done: &AtomicU64) {
    let known = KNOWN
        .lines()
        .filter_map(|line| line.split(' ').next()?.parse().ok());
    let known: Vec<u64> = known.filter(|_| arguments.known).collect();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let over = || {
        let until = arguments
            .until
            .is_some_and(|until| clock.ticks().0 / 1000 >= until.as_secs());
        until || stop.load(Ordering::Relaxed)
    };
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads {
            scope.spawn(|| {
                while !over() {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let known_at = usize::try_from(at).ok().and_then(|at| known.get(at));
                    let seed = match known_at {
                        Some(seed) => *seed,
                        None => match arguments.seeds.start.checked_add(at - known.len() as u64) {
                            Some(seed) if seed < arguments.seeds.end => seed,
                            _ => return,
                        },
                    };
                    let traced = run_seed(seed, arguments.trace);
                    done.fetch_add(1, Ordering::Relaxed);
                    if take(sum, seed, &traced) && !arguments.all {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

fn run_seed(seed: u64, printed: bool) -> Traced {
    let mut traced = run_once(seed, printed);
    if seed.is_multiple_of(TWICE_EACH) && !printed {
        let again = run_once(seed, false);
        if again.digest != traced.digest {
            let differ = traced
                .lines
                .iter()
                .zip(&again.lines)
                .find(|(one, other)| one != other);
            traced.violations.push(format!(
                "two runs of the seed differ; among the last lines: {differ:?}"
            ));
        }
    }
    traced
}

fn run_once(seed: u64, printed: bool) -> Traced {
    trace::begin(printed);
    let guard = trace::capture(printed);
    seeded::begin(Some(seed));
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    let runtime = builder.build().expect("a runtime without I/O can be built");
    // What tasks say while they are dropped has no time.
    let traced = runtime.block_on(async {
        chance::begin(seed);
        scenario::run().await;
        trace::end()
    });
    drop(runtime);
    drop(guard);
    simulated::install(None);
    seeded::begin(None);
    traced
}

/// Adds a run to the others. Whether something was violated.
fn take(sum: &Mutex<Sum>, seed: u64, traced: &Traced) -> bool {
    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
    for (what, count) in &traced.counts {
        let (runs, times) = sum.counts.entry(what).or_default();
        *runs += 1;
        *times += count;
    }
    if traced.violations.is_empty() {
        return false;
    }
    sum.violated.push(seed);
    println!("\nSEED {seed}: {}", traced.violations.join("\n"));
    println!("what befell it:\n  {}", traced.steps.join("\n  "));
    println!("the last lines:\n  {}", traced.lines.join("\n  "));
    println!("run just that: simulate --seed {seed} --trace");
    true
}

fn tell(sum: &Sum, done: u64, millis: u64) {
    for (what, (runs, times)) in &sum.counts {
        println!("{what:>28}: in {runs} runs, {times} in all");
    }
    let rate = done * 1000 / millis.max(1);
    println!(
        "{done} seeds in {} s ({rate} per second), {} with a violation",
        millis / 1000,
        sum.violated.len()
    );
    if !sum.violated.is_empty() {
        println!("violated: {:?}", sum.violated);
    }
}
