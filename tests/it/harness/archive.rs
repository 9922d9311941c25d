//! An archive in a temporary folder, and what `perennial status --json` says about it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tempfile::TempDir;

use super::{DEADLINE, run_cli_when_it_can, run_cli_with, until};

/// A place for an archive, not created before Perennial does so: a folder, or an address elsewhere.
#[derive(Debug)]
pub struct Archive {
    parent: TempDir,
    elsewhere: Option<String>,
    environment: Vec<(String, String)>,
}

impl Archive {
    /// A place for an archive.
    pub fn new() -> Self {
        Self {
            parent: tempfile::tempdir().unwrap(),
            elsewhere: None,
            environment: Vec::new(),
        }
    }

    /// The archive at an address that is no folder; Perennial is given these variables.
    #[cfg_attr(
        not(any(feature = "s3", feature = "gcs")),
        allow(dead_code, reason = "for the stores that are no folder")
    )]
    pub fn at(url: String, environment: Vec<(String, String)>) -> Self {
        Self {
            elsewhere: Some(url),
            environment,
            ..Self::new()
        }
    }

    /// The variables that Perennial is given.
    pub fn environment(&self) -> Vec<(&str, &str)> {
        self.environment
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect()
    }

    /// The archive's own folder.
    pub fn path(&self) -> PathBuf {
        self.parent.path().join("archive")
    }

    /// A scratch folder beside it, for restores and the like.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.parent.path().join(name)
    }

    /// `file:///…`, or the address elsewhere.
    pub fn url(&self) -> String {
        match &self.elsewhere {
            Some(url) => url.clone(),
            None => url_of(&self.path()),
        }
    }

    /// Status, where the command succeeds, as if seeds had not been rewritten.
    pub fn try_status(&self) -> Result<Status, String> {
        self.try_status_with_mapped().map(Status::without_mapped)
    }

    /// Status with the timelines that stand for rewritten seeds.
    #[track_caller]
    pub fn status_with_mapped(&self) -> Status {
        let mut status = None;
        until("there is a status", DEADLINE, || {
            status = self.try_status_with_mapped().ok();
            status.is_some()
        });
        status.unwrap()
    }

    fn try_status_with_mapped(&self) -> Result<Status, String> {
        let url = self.url();
        let arguments = ["status", "--archive", &url, "--json"];
        let (code, out, err) = run_cli_with(&arguments, &self.environment());
        if code != 0 {
            return Err(format!("status exits {code}: {err}"));
        }
        serde_json::from_str(&out).map_err(|error| format!("status --json: {error} in {out}"))
    }

    /// Status, which must succeed.
    #[track_caller]
    pub fn status(&self) -> Status {
        self.try_status().unwrap()
    }

    /// Waits until the status is as wished, and returns it. At the deadline the last one is part of the message.
    #[track_caller]
    pub fn until(&self, what: &str, deadline: Duration, wish: impl Fn(&Status) -> bool) -> Status {
        let started = std::time::Instant::now();
        loop {
            let last = self.try_status();
            match last {
                Ok(status) if wish(&status) => return status,
                last => assert!(
                    started.elapsed() < deadline,
                    "waited {deadline:?} in vain until {what}; status: {last:#?}"
                ),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until there is a complete snapshot: before that nothing is durable.
    #[track_caller]
    pub fn until_durable(&self) -> Status {
        self.until("something is durable", DEADLINE, |status| {
            status.durable_offset.is_some()
        })
    }

    /// All objects with their names relative to the archive, sorted. Temporary files are not objects.
    pub fn objects(&self) -> Vec<(String, PathBuf)> {
        objects_in(&self.path())
    }

    /// A copy of the whole archive, as `file://` URL and folder, to be damaged.
    #[track_caller]
    pub fn copy(&self, name: &str) -> (String, PathBuf) {
        let target = self.beside(name);
        for (object, path) in self.objects() {
            let copy = target.join(object);
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::copy(path, copy).unwrap();
        }
        (url_of(&target), target)
    }

    /// `perennial restore` into a folder beside the archive, which must succeed. Returns the folder.
    #[track_caller]
    pub fn restore(&self, name: &str, more: &[&str]) -> PathBuf {
        let target = self.beside(name);
        let url = self.url();
        let mut arguments = vec![
            "restore",
            "--archive",
            &url,
            "--to",
            target.to_str().unwrap(),
        ];
        arguments.extend(more);
        let (code, out, err) = run_cli_when_it_can(&arguments, &self.environment());
        assert_eq!(code, 0, "{arguments:?}: stdout {out}; stderr {err}");
        target
    }
}

/// `file://` and the path.
pub fn url_of(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// The objects below a folder.
pub fn objects_in(folder: &Path) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(current) = folders.pop() {
        let Ok(entries) = fs::read_dir(&current) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            let hidden = path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if hidden {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap();
                found.push((name.to_string_lossy().into_owned(), path));
            }
        }
    }
    found.sort();
    found
}

/// `status --json`, as documented: the tests read it strictly where it matters to scripts.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    pub archive: String,
    pub archive_id: String,
    pub name: Option<String>,
    pub head: Option<Head>,
    pub durable_offset: Option<u64>,
    pub timelines: Vec<Timeline>,
    pub problems: Vec<String>,
}

/// The head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Head {
    pub timeline: u64,
    pub offset: u64,
    pub at: u64,
}

/// A timeline.
#[derive(Debug, Clone, Deserialize)]
pub struct Timeline {
    pub seq: u64,
    pub id: String,
    pub parent: Option<Parent>,
    pub start: u64,
    pub end: Option<u64>,
    pub suspect: Option<String>,
    pub accepted: bool,
    /// It stands for a seed with rewritten bytes; it holds nothing.
    #[serde(default)]
    pub mapped: bool,
    pub head: bool,
    pub snapshots: Vec<Snapshot>,
    pub segments: u64,
    pub bytes: u64,
    pub gaps: Vec<Gap>,
}

/// Where a timeline began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Parent {
    pub timeline: u64,
    pub offset: u64,
}

/// A snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Snapshot {
    pub offset: u64,
    pub at: u64,
    pub bytes: u64,
    /// Made from the archive.
    pub derived: bool,
}

/// A hole in the coverage: the last byte before it and the first behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Gap {
    pub after: u64,
    pub before: u64,
}

impl Status {
    /// As if seeds had not been rewritten: without the timelines that stand for them, and numbered without a gap. The
    /// last one stays while nothing continues it. So a scenario says the same of servers before 7.0 and of later ones.
    fn without_mapped(mut self) -> Self {
        let dropped: Vec<Timeline> = self
            .timelines
            .iter()
            .filter(|timeline| {
                let continued = |child: &Timeline| {
                    child.parent.map(|parent| parent.timeline) == Some(timeline.seq)
                };
                timeline.mapped && self.timelines.iter().any(continued)
            })
            .cloned()
            .collect();
        self.timelines
            .retain(|timeline| dropped.iter().all(|other| other.seq != timeline.seq));
        let renumbered = |seq: u64| {
            let before = dropped.iter().filter(|timeline| timeline.seq < seq).count();
            seq - before as u64
        };
        for timeline in &mut self.timelines {
            while let Some(skipped) = dropped
                .iter()
                .find(|other| Some(other.seq) == timeline.parent.map(|parent| parent.timeline))
            {
                timeline.parent = skipped.parent;
            }
            timeline.seq = renumbered(timeline.seq);
            if let Some(parent) = &mut timeline.parent {
                parent.timeline = renumbered(parent.timeline);
            }
        }
        if let Some(head) = &mut self.head {
            head.timeline = renumbered(head.timeline);
        }
        self
    }

    /// The number of the head's timeline.
    #[track_caller]
    pub fn head_timeline(&self) -> u64 {
        self.head.expect("there is a head").timeline
    }

    /// Snapshots of all timelines.
    pub fn snapshots(&self) -> usize {
        self.timelines
            .iter()
            .map(|timeline| timeline.snapshots.len())
            .sum()
    }

    /// Suspect roots that nobody has accepted.
    pub fn suspects(&self) -> Vec<u64> {
        self.timelines
            .iter()
            .filter(|timeline| timeline.suspect.is_some() && !timeline.accepted)
            .map(|timeline| timeline.seq)
            .collect()
    }

    /// Fails unless the timelines are 1 ← 2 ← … ← `count`, each the child of the one before, all from one snapshot.
    #[track_caller]
    pub fn assert_chain_of(&self, count: u64) {
        let parents: Vec<(u64, Option<u64>)> = self
            .timelines
            .iter()
            .map(|timeline| (timeline.seq, timeline.parent.map(|parent| parent.timeline)))
            .collect();
        let chain: Vec<(u64, Option<u64>)> = (1..=count)
            .map(|seq| (seq, (seq > 1).then(|| seq - 1)))
            .collect();
        assert_eq!(parents, chain, "{self:#?}");
        assert_eq!(self.snapshots(), 1, "{self:#?}");
        assert!(self.suspects().is_empty(), "{self:#?}");
        assert!(
            self.timelines
                .iter()
                .all(|timeline| timeline.gaps.is_empty()),
            "{self:#?}"
        );
        assert_eq!(self.head_timeline(), count);
    }
}

#[test]
fn status_is_read_as_documented() {
    let text = r#"{ "archive": "file:///a", "archive_id": "00ff", "name": null,
        "head": {"timeline": 2, "offset": 90, "at": 5}, "durable_offset": 90,
        "timelines": [
          { "seq": 1, "id": "aa", "parent": null, "start": 10, "end": 50, "suspect": null, "accepted": false,
            "head": false, "snapshots": [{"offset": 10, "at": 1, "bytes": 7, "derived": false}], "segments": 3, "bytes": 40, "gaps": [],
            "source": {"server": "redis"} },
          { "seq": 2, "id": "bb", "parent": {"timeline": 1, "offset": 50}, "start": 50, "end": 90, "suspect": null,
            "accepted": false, "head": true, "snapshots": [], "segments": 1, "bytes": 40, "gaps": [], "source": {} } ],
        "problems": [] }"#;
    let status: Status = serde_json::from_str(text).unwrap();
    status.assert_chain_of(2);
    assert_eq!(status.timelines[1].parent.unwrap().offset, 50);
    let mut status = status;
    status.timelines[1].mapped = true;
    assert_eq!(status.clone().without_mapped().timelines.len(), 2);
    let mut child = status.timelines[1].clone();
    child.seq = 3;
    child.mapped = false;
    child.parent = Some(Parent {
        timeline: 2,
        offset: 90,
    });
    status.timelines.push(child);
    status.head = status.head.map(|head| Head {
        timeline: 3,
        ..head
    });
    let status = status.without_mapped();
    status.assert_chain_of(2);
    assert_eq!(status.timelines[1].parent.unwrap().offset, 50);
}
