//! What happened: every line is hashed, so that two runs can be compared, and the last ones are kept for whoever reads of a
//! violation. Also the counts of what a run came across.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;

use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

use crate::chance;

/// Lines that are kept.
const LINES_MAX: usize = 150;

thread_local! {
    static TRACE: RefCell<Trace> = RefCell::new(Trace::default());
}

#[derive(Default)]
struct Trace {
    hasher: DefaultHasher,
    lines: VecDeque<String>,
    steps: Vec<String>,
    counts: BTreeMap<&'static str, u64>,
    violations: Vec<String>,
    printed: bool,
}

/// What a run left behind.
pub struct Traced {
    pub digest: u64,
    pub lines: Vec<String>,
    pub steps: Vec<String>,
    pub counts: BTreeMap<&'static str, u64>,
    pub violations: Vec<String>,
}

/// Begins a run; with `printed` each line goes to the terminal as well.
pub fn begin(printed: bool) {
    TRACE.set(Trace {
        printed,
        ..Trace::default()
    });
}

/// Ends it.
pub fn end() -> Traced {
    let trace = TRACE.take();
    Traced {
        digest: trace.hasher.finish(),
        lines: trace.lines.into(),
        steps: trace.steps,
        counts: trace.counts,
        violations: trace.violations,
    }
}

/// Something happened.
pub fn line(text: &str) {
    let at = chance::elapsed().as_millis();
    let line = format!("{:>4}.{:03} {text}", at / 1000, at % 1000);
    TRACE.with_borrow_mut(|trace| {
        line.hash(&mut trace.hasher);
        if trace.printed {
            eprintln!("{line}");
        }
        if trace.lines.len() == LINES_MAX {
            trace.lines.pop_front();
        }
        trace.lines.push_back(line);
    });
}

/// A step of the scenario.
pub fn step(text: &str) {
    line(&format!("STEP {text}"));
    let at = chance::elapsed().as_secs_f64();
    TRACE.with_borrow_mut(|trace| trace.steps.push(format!("{at:8.3} {text}")));
}

/// Counts something that the whole of all runs should have come across.
pub fn count(what: &'static str) {
    TRACE.with_borrow_mut(|trace| *trace.counts.entry(what).or_insert(0) += 1);
}

/// Bytes, hashed only.
pub fn bytes(bytes: &[u8]) {
    TRACE.with_borrow_mut(|trace| bytes.hash(&mut trace.hasher));
}

/// Something that must never happen.
pub fn violation(text: String) {
    line(&format!("VIOLATION {text}"));
    TRACE.with_borrow_mut(|trace| trace.violations.push(text));
}

/// Somebody panicked, perhaps in here.
pub fn panicked(text: String) {
    TRACE.with(|trace| match trace.try_borrow_mut() {
        Ok(mut trace) => trace.violations.push(text),
        Err(_) => eprintln!("{text}"),
    });
}

/// Whether something happened that must never.
pub fn is_violated() -> bool {
    TRACE.with_borrow(|trace| !trace.violations.is_empty())
}

/// Takes what Perennial logs, for this thread, until the guard is dropped.
pub fn capture(debug: bool) -> tracing::subscriber::DefaultGuard {
    let level = if debug { Level::DEBUG } else { Level::INFO };
    let subscriber = tracing_subscriber::fmt()
        .without_time()
        .with_ansi(false)
        .with_max_level(level)
        .with_writer(Lines)
        .finish();
    tracing::subscriber::set_default(subscriber)
}

struct Lines;

struct OneLine(Vec<u8>);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = OneLine;

    fn make_writer(&'a self) -> OneLine {
        OneLine(Vec::new())
    }
}

impl io::Write for OneLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for OneLine {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.0);
        // One that remembers what happened asks for nothing of its own: `count` by what it says.
        for (word, what) in SAID {
            if text.contains(word) {
                count(what);
            }
        }
        line(text.trim_end());
    }
}

/// What Perennial says of what it came across.
const SAID: [(&str, &str); 14] = [
    ("seeded: ", "seeds"),
    ("suspect timeline: ", "suspect timelines"),
    ("gap: the master's", "gaps"),
    ("a child timeline begins", "child timelines"),
    ("a new timeline begins", "roots"),
    ("resumed where the link broke off", "links resumed"),
    ("resumed from the archive", "resumed from the archive"),
    ("seed failed", "seeds that failed"),
    ("promoting the replica as it is", "promoted as they were"),
    ("two branches advanced lately", "contested"),
    ("still trying", "retries said"),
    ("not seeded: ", "seeds given back"),
    ("not promoted: ", "seeds outgrown"),
    ("snapshot complete", "snapshots"),
];
