//! How far a long restore or seed has come: a bar where somebody looks at a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::clock::Clock;
use crate::position::Ticks;

/// The time between two lines, milliseconds.
const LINE_MILLIS: u64 = 10_000;
/// How often a bar is drawn, per second, at most.
const DRAWN_PER_SECOND_MAX: u8 = 10;

/// Bytes so far, of how many.
pub(super) struct Progress {
    /// What is being done.
    doing: &'static str,
    clock: Arc<dyn Clock>,
    began: Ticks,
    said: Ticks,
    bytes: u64,
    /// `None` where it is not known.
    total: Option<u64>,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Begins to count up to `total` bytes.
    pub(super) fn new(clock: Arc<dyn Clock>, total: Option<u64>) -> Self {
        Self::with_bar("restoring", clock, total)
    }

    /// Of something else than a restore; [`Self::stands_at`] tells of how many.
    pub(super) fn of(doing: &'static str, clock: Arc<dyn Clock>) -> Self {
        Self::with_bar(doing, clock, Some(0))
    }

    fn with_bar(doing: &'static str, clock: Arc<dyn Clock>, total: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| bar(doing, total));
        Self {
            bar,
            ..Self::lines(doing, clock, total)
        }
    }

    /// The same in lines only, among other lines.
    pub(super) fn lines(doing: &'static str, clock: Arc<dyn Clock>, total: Option<u64>) -> Self {
        let now = clock.ticks();
        Self {
            doing,
            clock,
            began: now,
            said: now,
            bytes: 0,
            total,
            bar: None,
        }
    }

    /// So many more.
    pub(super) fn add(&mut self, bytes: u64) {
        self.reach(self.bytes + bytes);
    }

    /// So many of so many: both may change where something begins anew.
    pub(super) fn stands_at(&mut self, bytes: u64, total: u64) {
        self.total = Some(total);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
        self.reach(bytes);
    }

    fn reach(&mut self, bytes: u64) {
        self.bytes = bytes;
        if let Some(bar) = &self.bar {
            bar.set_position(self.bytes);
            return;
        }
        let now = self.clock.ticks();
        if now.since(self.said) >= LINE_MILLIS {
            self.said = now;
            let line = line(self.doing, self.bytes, self.total, now.since(self.began));
            tracing::info!("{line}");
        }
    }

    /// That was all, or it failed: the bar goes, so that what follows stands alone.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(doing: &'static str, total: Option<u64>) -> ProgressBar {
    let target = ProgressDrawTarget::stderr_with_hz(DRAWN_PER_SECOND_MAX);
    let template = match total {
        Some(_) => {
            "{msg} [{bar:30}] {percent}% {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left"
        }
        None => "{msg} {bytes} {binary_bytes_per_sec}",
    };
    let style = ProgressStyle::with_template(template)
        .map(|style| style.progress_chars("=> "))
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(total, target)
        .with_style(style)
        .with_message(doing)
}

/// `restoring: 1.2 GiB of 4.0 GiB (30%), 120.0 MiB/s, 24s left`
fn line(doing: &str, bytes: u64, total: Option<u64>, millis: u64) -> String {
    let per_second = bytes.saturating_mul(1000) / millis.max(1);
    let (done, rate) = (bytesize::ByteSize(bytes), bytesize::ByteSize(per_second));
    let Some(total) = total else {
        return format!("{doing}: {done}, {rate}/s");
    };
    let percent = bytes.saturating_mul(100) / total.max(1);
    let left = total.saturating_sub(bytes).checked_div(per_second);
    let left = left.map_or_else(
        || "no end in sight".to_owned(),
        |seconds| {
            let left = humantime::format_duration(Duration::from_secs(seconds));
            format!("{left} left")
        },
    );
    // What is rewritten on the way makes more of it than was planned.
    format!(
        "{doing}: {done} of {} ({}%), {rate}/s, {left}",
        bytesize::ByteSize(total),
        percent.min(100)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        const MIB: u64 = 1024 * 1024;
        assert_eq!(
            line("seeding", 100 * MIB, Some(400 * MIB), 10_000),
            "seeding: 100.0 MiB of 400.0 MiB (25%), 10.0 MiB/s, 30s left"
        );
        assert_eq!(
            line("restoring", 0, Some(400 * MIB), 10_000),
            "restoring: 0 B of 400.0 MiB (0%), 0 B/s, no end in sight"
        );
        assert_eq!(
            line("restoring", 20 * MIB, None, 10_000),
            "restoring: 20.0 MiB, 2.0 MiB/s"
        );
        assert!(
            line("restoring", 3, Some(2), 1000).contains("(100%)"),
            "rewritten bytes"
        );
        assert!(line("restoring", 1, Some(0), 0).contains("(100%)"));
    }
}
