//! `perennial verify`: reads an archive and says what is wrong with it; with `--drill`, proves a restore by restoring.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::flags::VerifyArguments;
use super::progress::Progress;
use super::status::time;
use super::stored::counted;
use super::{Exit, findings, open_store, say, stop_on_signals, stopped, tell};
use crate::check::{Finding, Level, count};
use crate::clock::Clock;
use crate::position::UnixMillis;
use crate::restore::drill::{Compared, Drill, DrillError, Drilled, Step};
use crate::restore::verify::{Report, verify};
use crate::server::scratch::{ScratchPlace, Start};
use crate::store::Store;
use crate::store::catalog;

/// A metric's name, of which the last value is kept.
const TIMESTAMP: &str = "perennial_last_verified_timestamp_seconds";

/// What was found, to be printed.
struct Verified {
    address: String,
    since: Option<UnixMillis>,
    report: Report,
    drilled: Option<Drilled>,
    millis: u64,
}

/// Verifies.
///
/// # Errors
/// Wrong usage; what the store says; and, with exit code 1 and everything said before, that something is bad.
pub async fn run(arguments: VerifyArguments, clock: Arc<dyn Clock>) -> anyhow::Result<()> {
    let usage = |message: String| Exit { message, code: 2 };
    let since = arguments.since.as_deref();
    let since = since.map(|text| moment(text, clock.unix()));
    let since = since.transpose().map_err(usage)?;
    let scratch = arguments.scratch.as_deref();
    let scratch = scratch.map(str::parse::<ScratchPlace>);
    let scratch = scratch
        .transpose()
        .map_err(|error| usage(format!("--scratch: {error}")))?;
    let store = open_store(&arguments.archive)?;
    let mut stop = stop_on_signals()?;
    let began = clock.ticks();
    let looked = look(&store, since, &clock);
    let mut report = tokio::select! {
        report = looked => report?,
        () = stopped(&mut stop) => anyhow::bail!("stopped by a signal"),
    };
    let mut drilled = None;
    if let Some(place) = scratch.filter(|_| arguments.drill) {
        match drill(&store, &place, &clock, &mut stop).await {
            Ok(held) => {
                report.findings.extend(of_drill(&held));
                drilled = Some(held);
            }
            Err(error) => report.findings.push(Finding::bad_as_said(
                "drill",
                format!("it could not be held: {error:#}"),
            )),
        }
    }
    let verified = Verified {
        address: store.address(),
        since,
        report,
        drilled,
        millis: clock.ticks().since(began),
    };
    if arguments.json {
        say(&serde_json::to_string_pretty(&as_json(&verified))?);
    } else {
        tell(&as_text(&verified));
    }
    let found = &verified.report.findings;
    let bad = count(found, Level::Bad);
    if let Some(path) = &arguments.metrics_file {
        write_metrics(path, &verified, bad, clock.unix())?;
    }
    Ok(findings::verdict(found)?)
}

/// `--since`, as typed: a time, or how long ago.
fn moment(text: &str, now: UnixMillis) -> Result<UnixMillis, String> {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let ago = text.strip_suffix(" ago").unwrap_or(text);
    if let Ok(ago) = humantime::parse_duration(ago) {
        return Ok(UnixMillis(now.0.saturating_sub(millis(ago))));
    }
    humantime::parse_rfc3339_weak(text)
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
        .map(|time| UnixMillis(millis(time)))
        .ok_or_else(|| format!("--since {text}: write 7d, \"10m ago\" or 2026-01-31T12:00:00Z"))
}

async fn look(
    store: &Arc<dyn Store>,
    since: Option<UnixMillis>,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Report> {
    let mut progress = Progress::of("verifying", Arc::clone(clock));
    let report = verify(Arc::clone(store), since, clock.unix(), |bytes, total| {
        progress.stands_at(bytes, total);
    })
    .await;
    progress.end();
    let mut report = report?;
    let tally = report.tally;
    report.findings.insert(
        0,
        Finding::ok(
            "read",
            format!(
                "{}, {} and {} were read: {} as stored, {} of snapshots and replication stream in them",
                counted(tally.documents, "document"),
                counted(tally.snapshots, "snapshot"),
                counted(tally.segments, "segment"),
                bytesize::ByteSize(tally.stored_bytes),
                bytesize::ByteSize(tally.raw_bytes),
            ),
        ),
    );
    Ok(report)
}

async fn drill(
    store: &Arc<dyn Store>,
    place: &ScratchPlace,
    clock: &Arc<dyn Clock>,
    stop: &mut watch::Receiver<bool>,
) -> anyhow::Result<Drilled> {
    let loaded = catalog::load(&**store, &[]).await?;
    let archive = loaded.catalog.archive().map(|document| document.archive);
    let archive = archive.ok_or_else(|| anyhow::anyhow!("archive.json is missing"))?;
    let drill = Drill {
        store: Arc::clone(store),
        archive,
        catalog: &loaded.catalog,
        clock: Arc::clone(clock),
    };
    let mut scratch = place.open(Start::Empty).await.map_err(DrillError::from)?;
    let mut steps = Steps {
        clock: Arc::clone(clock),
        step: None,
    };
    let held = tokio::select! {
        held = drill.hold(&mut scratch, |step, done, total| steps.tell(step, done, total)) => Some(held),
        () = stopped(stop) => None,
    };
    drop(steps);
    // One that was lent is emptied in any case.
    let closed = scratch.close().await;
    let held = held.ok_or_else(|| anyhow::anyhow!("stopped by a signal"))??;
    closed?;
    Ok(held)
}

/// Says what a drill does.
struct Steps {
    clock: Arc<dyn Clock>,
    step: Option<(Step, Progress)>,
}

impl Steps {
    fn tell(&mut self, step: Step, done: u64, total: u64) {
        if self.step.as_ref().is_none_or(|(now, _)| *now != step) {
            tracing::info!("drill: {step}");
            if let Some((_, before)) = self.step.take() {
                before.end();
            }
            self.step = Some((step, Progress::of("drilling", Arc::clone(&self.clock))));
        }
        // Keys are not shown as bytes.
        if let Some((_, progress)) = self.step.as_mut().filter(|_| step != Step::Reading) {
            progress.stands_at(done, total);
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        if let Some((_, last)) = &self.step {
            last.end();
        }
    }
}

fn of_drill(drilled: &Drilled) -> Vec<Finding> {
    let oracle = match &drilled.compared {
        None => Finding::unknown(
            "drill-oracle",
            "there is only one snapshot of this history, and so nothing to compare with: that latest was restored shows \
             that its bytes are whole and that a server takes every command, not that its data are the master's. Hold the \
             drill again when there is a second snapshot (`perennial snapshot` takes one now)",
        ),
        Some(compared) if compared.is_same() && compared.derived => Finding::unknown(
            "drill-oracle",
            format!(
                "{}; that one was derived, made by replaying the archive: this says that a replay gives the same twice, not \
                 that the data are those of the master; a second snapshot of the server or of a replica will tell \
                 (`perennial snapshot`)",
                same(compared)
            ),
        ),
        Some(compared) if compared.is_same() => Finding::ok("drill-oracle", same(compared)),
        Some(compared) => Finding::bad(
            "drill-oracle",
            format!(
                "the snapshot at {} and {} of replication stream do not give the data of the snapshot at {}: {} of {} \
                 keys differ: {}",
                compared.from,
                bytesize::ByteSize(compared.stream_bytes),
                compared.to,
                compared.differences.count,
                compared.differences.compared,
                compared.described().join("; "),
            ),
            "do not trust restores of moments between them; keep the archive and report this",
        ),
    };
    let latest = Finding::ok(
        "drill-latest",
        format!(
            "{}, received until {}, was restored into {}: {} keys, and no command failed",
            drilled.latest,
            time(drilled.until),
            drilled.server,
            drilled.keys
        ),
    );
    vec![oracle, latest]
}

fn same(compared: &Compared) -> String {
    let differences = &compared.differences;
    let lapsed = match differences.passed_over {
        0 => String::new(),
        some => format!("; {some} whose time has run out were passed over"),
    };
    format!(
        "the snapshot at {} and {} of replication stream give the data of the snapshot {} at {} ({}): {} keys are the \
         same{lapsed}",
        compared.from,
        bytesize::ByteSize(compared.stream_bytes),
        if compared.derived {
            "that stands"
        } else {
            "that the master made"
        },
        compared.to,
        time(compared.at),
        differences.compared,
    )
}

fn as_json(verified: &Verified) -> Value {
    let (all, summary) = findings::json(&verified.report.findings);
    let tally = verified.report.tally;
    let position = |position: crate::position::Position| json!({ "timeline": position.timeline.as_u32(), "offset": position.offset.as_u64() });
    json!({
        "archive": verified.address,
        "since": verified.since.map(|since| since.0),
        "read": {
            "documents": tally.documents,
            "snapshots": tally.snapshots,
            "segments": tally.segments,
            "stored_bytes": tally.stored_bytes,
            "raw_bytes": tally.raw_bytes,
        },
        "drill": verified.drilled.as_ref().map(|drilled| json!({
            "server": drilled.server,
            "latest": position(drilled.latest),
            "until": drilled.until.0,
            "keys": drilled.keys,
            "compared": drilled.compared.as_ref().map(|compared| json!({
                "from": position(compared.from),
                "to": position(compared.to),
                "at": compared.at.0,
                "derived": compared.derived,
                "stream_bytes": compared.stream_bytes,
                "keys": compared.differences.compared,
                "passed_over": compared.differences.passed_over,
                "differences": compared.differences.count,
                "same": compared.is_same(),
                "described": compared.described(),
            })),
        })),
        "duration_ms": verified.millis,
        "findings": all,
        "summary": summary,
    })
}

fn as_text(verified: &Verified) -> String {
    let found = &verified.report.findings;
    let mut lines = vec![format!("archive {}", verified.address)];
    lines.extend(findings::lines(found));
    lines.push(String::new());
    lines.push(findings::summary(found));
    lines.join("\n")
}

/// Writes what a monitor reads, whole or not at all. The time of the last success stays when something is bad.
fn write_metrics(
    path: &Path,
    verified: &Verified,
    bad: usize,
    now: UnixMillis,
) -> anyhow::Result<()> {
    let before = std::fs::read_to_string(path).unwrap_or_default();
    let last = before.lines().find_map(|line| {
        let value = line.strip_prefix(TIMESTAMP)?.trim();
        value.parse::<u64>().ok()
    });
    let verified_at = match bad {
        0 => now.0 / 1000,
        _ => last.unwrap_or(0),
    };
    let tally = verified.report.tally;
    let seconds = Duration::from_millis(verified.millis).as_secs_f64();
    let gauges = [
        (
            TIMESTAMP,
            "When the archive was last verified and nothing was bad; 0: never",
            verified_at.to_string(),
        ),
        (
            "perennial_last_verified_bad_findings",
            "What was bad when it was last looked",
            bad.to_string(),
        ),
        (
            "perennial_last_verified_drill",
            "1 where that was a drill too",
            u8::from(verified.drilled.is_some()).to_string(),
        ),
        (
            "perennial_last_verified_duration_seconds",
            "How long that took",
            seconds.to_string(),
        ),
        (
            "perennial_last_verified_stored_bytes",
            "How much was read",
            tally.stored_bytes.to_string(),
        ),
    ];
    let text: String = gauges
        .iter()
        .map(|(name, help, value)| {
            format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n")
        })
        .collect();
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let readable = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o644);
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        file.as_file().set_permissions(readable)?;
        file.persist(path).map(drop).map_err(|error| error.error)
    };
    write().map_err(|error| {
        anyhow::anyhow!(
            "--metrics-file {} cannot be written: {error}; its folder has to be there, and to be writable for the user that \
             runs perennial",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_how_long_ago() {
        let now = UnixMillis(1_000_000_000_000);
        let of = |text| moment(text, now).map(|at| at.0);
        assert_eq!(of("10m"), Ok(now.0 - 600_000));
        assert_eq!(of("10m ago"), Ok(now.0 - 600_000));
        assert_eq!(of("2001-09-09T01:46:40Z"), Ok(now.0));
        assert_eq!(of("2001-09-09 01:46:40"), Ok(now.0));
        assert!(of("yesterday").unwrap_err().contains("--since yesterday"));
    }
}
