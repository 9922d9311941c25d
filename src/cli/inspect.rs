//! `perennial inspect`: what a snapshot of an archive, or a dump file, holds. It is read once, from front to end, in
//! memory that does not depend on it.

mod prefixes;
mod shown;
mod summary;
mod text;
mod value;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use bytes::{Bytes, BytesMut};
use serde_json::{Value as Json, json};

use super::flags::InspectArguments;
use super::progress::Progress;
use super::when::{When, plan_for};
use super::{EXIT_NOTHING, Exit, open_store, restore, say, tell};
use crate::advice::unreadable;
use crate::archive::plan::PlanError;
use crate::clock::Clock;
use crate::position::UnixMillis;
use crate::proto::rdb::{Checksum, Scanner};
use crate::restore::source::{self, Checked};
use crate::store::catalog;
use summary::Summary;
use value::Wanted;

/// As much of a file as is read at once, bytes.
const PIECE_BYTES: usize = 1024 * 1024;

/// Inspects.
///
/// # Errors
/// What cannot be read, and where; exit code 3 where there is no snapshot, or no such key.
pub async fn run(arguments: InspectArguments, clock: Arc<dyn Clock>) -> anyhow::Result<()> {
    let usage = |message: String| Exit { message, code: 2 };
    let key = arguments
        .key
        .as_deref()
        .map(|key| {
            text::read(key).ok_or_else(|| {
                usage(format!(
                    "--key {key}: write \\\\ for a backslash, \\xNN for a byte"
                ))
            })
        })
        .transpose()?;
    let separator = arguments.prefix_separator.as_bytes();
    if separator.is_empty() {
        return Err(usage("--prefix-separator: it is empty".to_owned()).into());
    }
    let input = match (&arguments.file, &arguments.archive) {
        (Some(path), _) => Input::of_file(path, clock.unix())?,
        (None, Some(url)) => Input::of_archive(url, &arguments.at, clock.unix()).await?,
        (None, None) => return Err(usage("give --archive or --file".to_owned()).into()),
    };
    match key {
        Some(name) => show_key(input, name, &arguments, clock).await,
        None => {
            let top = usize::from(arguments.top);
            let summary = Summary::new(top, separator, input.taken_at);
            show_summary(input, summary, arguments.json, clock).await
        }
    }
}

async fn show_summary(
    mut input: Input,
    mut summary: Summary,
    json: bool,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<()> {
    input
        .scan(clock, |scanner, piece| {
            scanner.scan(piece, &mut |event| summary.note(event))
        })
        .await?;
    if json {
        let json = shown::summary_json(input.json, &summary);
        say(&serde_json::to_string_pretty(&json)?);
    } else {
        tell(&shown::summary_text(&input.about, &summary));
    }
    Ok(())
}

async fn show_key(
    mut input: Input,
    name: Vec<u8>,
    arguments: &InspectArguments,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<()> {
    let database = arguments.database;
    let mut wanted = Wanted::new(name.clone(), database);
    input
        .scan(clock, |scanner, piece| {
            let begins = scanner.position();
            scanner.scan(piece, &mut |event| wanted.note(event))?;
            wanted.keep(begins, piece);
            Ok(())
        })
        .await?;
    let Some(found) = &wanted.found else {
        return Err(Exit {
            message: format!(
                "database {database} has no key {}: {}",
                text::shown(&name),
                input.about,
            ),
            code: EXIT_NOTHING,
        }
        .into());
    };
    // The decoder trusts what it gets; blocks of an archive have checksums of their own.
    let value = if input.is_checked || wanted.checksum == Some(Checksum::Verified) {
        wanted.decoded()
    } else {
        Err("the dump has no checksum, so that nothing says whether it is whole".to_owned())
    };
    if arguments.json {
        let json = shown::key_json(input.json, &name, database, found, &value);
        say(&serde_json::to_string_pretty(&json)?);
    } else {
        tell(&shown::key_text(&name, database, found, &value));
    }
    Ok(())
}

/// Where the dump comes from.
struct Input {
    pieces: Pieces,
    /// Its length in bytes, where it is known before.
    total: Option<u64>,
    /// For people.
    about: String,
    /// The same for programs.
    json: Json,
    /// When it was taken, as far as it is known from outside.
    taken_at: UnixMillis,
    /// `true` where damage shows before the dump's own checksum.
    is_checked: bool,
}

enum Pieces {
    File(File),
    Archive(Checked),
}

impl Input {
    fn of_file(path: &Path, now: UnixMillis) -> anyhow::Result<Self> {
        let unread = |error: std::io::Error| anyhow!("--file: {}", unreadable(path, &error));
        let file = File::open(path).map_err(unread)?;
        if file.metadata().is_ok_and(|about| about.is_dir()) {
            return Err(unread(std::io::ErrorKind::IsADirectory.into()));
        }
        let total = file.metadata().ok().map(|about| about.len());
        Ok(Self {
            pieces: Pieces::File(file),
            total,
            about: path.display().to_string(),
            json: json!({
                "file": path.display().to_string(), "archive": null, "timeline": null, "offset": null, "at": null, "snapshot": null,
            }),
            taken_at: now,
            is_checked: false,
        })
    }

    /// The snapshot with which a restore of that moment would begin.
    async fn of_archive(url: &str, at: &str, now: UnixMillis) -> anyhow::Result<Self> {
        let when = When::read(at, now)?;
        let store = open_store(url)?;
        let nothing = |message: String| Exit {
            message,
            code: EXIT_NOTHING,
        };
        let mut loaded = match catalog::load(&*store, &[]).await {
            Ok(loaded) => loaded,
            Err(error) if restore::is_missing(&error) => {
                return Err(nothing(error.to_string()).into());
            }
            Err(error) => return Err(error.into()),
        };
        let archive = loaded.catalog.archive().map(|document| document.archive);
        let archive = archive.ok_or_else(|| anyhow!("archive.json is missing"))?;
        let plan = match plan_for(when, &mut loaded, &store, archive, now).await? {
            Ok(planned) => planned.plan,
            Err(error @ (PlanError::Empty | PlanError::OnlySuspects)) => {
                return Err(nothing(format!("{}: {error}", store.address())).into());
            }
            Err(error) => return Err(error.into()),
        };
        // Where the end cannot be read the payload itself says so, in its place.
        let total = source::payload_bytes(&*store, &plan).await.ok();
        let (snapshot, timeline) = (&plan.snapshot, plan.snapshot_timeline.0);
        Ok(Self {
            total,
            about: format!(
                "{}: {}snapshot at offset {} of timeline {timeline}, taken {}; what came after it is not in here",
                store.address(),
                if snapshot.derived { "derived " } else { "" },
                snapshot.offset,
                super::status::time(snapshot.at),
            ),
            json: json!({
                "file": null,
                "archive": store.address(),
                "timeline": timeline.as_u32(),
                "offset": snapshot.offset.as_u64(),
                "at": snapshot.at.0,
                "snapshot": snapshot.name.as_str(),
            }),
            taken_at: snapshot.at,
            is_checked: true,
            pieces: Pieces::Archive(source::payload(store, archive, &plan)),
        })
    }

    /// Reads all of it, and gives each piece to `take`.
    async fn scan(
        &mut self,
        clock: Arc<dyn Clock>,
        mut take: impl FnMut(&mut Scanner, &[u8]) -> Result<(), crate::proto::rdb::ScanError>,
    ) -> anyhow::Result<()> {
        let mut progress = Progress::lines("inspecting", clock, self.total);
        let mut scanner = Scanner::new();
        let whole = loop {
            let piece = self
                .pieces
                .next()
                .await
                .with_context(|| format!("read {}", self.about))?;
            let Some(piece) = piece else {
                break scanner.finish();
            };
            if let Err(error) = take(&mut scanner, &piece) {
                break Err(error);
            }
            progress.add(piece.len() as u64);
        };
        progress.end();
        whole.with_context(|| format!("inspect {}", self.about))
    }
}

impl Pieces {
    async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        match self {
            Self::Archive(checked) => Ok(checked.next().await?),
            // Nothing else runs in this process that a read could keep waiting.
            Self::File(file) => {
                let mut piece = BytesMut::zeroed(PIECE_BYTES);
                let length = file.read(&mut piece)?;
                piece.truncate(length);
                Ok((length > 0).then(|| piece.freeze()))
            }
        }
    }
}
