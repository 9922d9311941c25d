//! Objects that are damaged or lost: where others lead to the very same moment, restores and seeds use those and say so;
//! where none do, nothing is restored.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use perennial::archive::layout::ObjectName;
use perennial::clock::SystemClock;
use perennial::store::fs::FsStore;
use perennial::store::{Created, Listed, Store, StoreError, Upload};
use serde_json::Value;

use crate::harness::archive::{objects_in, url_of};
use crate::harness::random::Random;
use crate::harness::workload::write_everything;
use crate::harness::{
    Archive, DEADLINE, Digest, InProcess, Kind, Perennial, REDIS_7_0, Server, assert_same,
    holds_for, run_cli, until,
};
use crate::on_every_server;

on_every_server! {
    oldest, usual and newest;
    a_restore_passes_over_what_is_damaged,
    a_seed_passes_over_what_is_damaged,
    a_copy_passes_over_what_is_damaged,
}

/// Merges at once, and keeps what was merged.
const KEEPING: &[&str] = &[
    "--flush-interval",
    "20ms",
    "--upkeep-interval",
    "300ms",
    "--merge-minute",
    "500ms",
    "--merge-hour",
    "2s",
    "--merge-grace",
    "1h",
];

/// An archive with two snapshots, and merged segments beside what they were made of, before and behind the second.
struct Stored {
    archive: Archive,
    digest: Digest,
    older: String,
    newer: String,
}

impl Stored {
    fn of(kind: Kind) -> Option<Self> {
        let server = kind.start(&[])?;
        let archive = Archive::new();
        let mut client = server.client();
        // More than one block, and than one read.
        for number in 0..6 {
            let bytes = Random::fixed(number).bytes(1024 * 1024);
            client.ok(&[
                b"SET".as_slice(),
                format!("large:{number}").as_bytes(),
                &bytes,
            ]);
        }
        let mut perennial = Perennial::follow(&server, &archive, KEEPING);
        write_until_merged(&server, &archive, 0);
        let url = archive.url();
        let arguments = ["snapshot", "--redis", &server.url(), "--archive", &url];
        let (code, out, err) = run_cli(&arguments);
        assert_eq!(code, 0, "{out}{err}");
        write_until_merged(&server, &archive, 1);
        client.wait_until_stored(DEADLINE);
        perennial.kill();
        let names = archive.objects().into_iter().map(|(name, _)| name);
        let snapshots: Vec<String> = names.filter(|name| name.contains("/snapshots/")).collect();
        let [older, newer] = snapshots.try_into().unwrap();
        Some(Self {
            digest: Digest::of(&server.address()),
            archive,
            older,
            newer,
        })
    }

    fn copy(&self, name: &str) -> Damaged {
        let (url, folder) = self.archive.copy(name);
        Damaged { url, folder }
    }
}

/// Writes everything, and then a little until there is another merged segment.
fn write_until_merged(server: &Server, archive: &Archive, round: u64) {
    let merged = || {
        let names = archive.objects().into_iter().map(|(name, _)| name);
        names.filter(|name| name.contains("/merged/")).max()
    };
    let before = merged();
    let mut client = server.client();
    write_everything(&mut client, round);
    let mut writes = 0;
    until("another segment is merged", DEADLINE, || {
        writes += 1;
        client.line(&format!("SET written:{round} {writes}"));
        client.wait_until_stored(DEADLINE);
        merged() > before
    });
}

/// A copy of the archive, to be damaged.
struct Damaged {
    url: String,
    folder: PathBuf,
}

/// What becomes of an object.
#[derive(Clone, Copy, Debug)]
enum Harm {
    /// A bit is another one, so many thousandths into the object.
    Flipped(usize),
    CutShort,
    Emptied,
    Lost,
}

impl Damaged {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn harm(&self, name: &str, harm: Harm) {
        let path = self.path(name);
        let mut bytes = fs::read(&path).unwrap();
        match harm {
            Harm::Flipped(place) => {
                let at = (bytes.len() - 1) * place / 1000;
                bytes[at] ^= 0x10;
            }
            Harm::CutShort => bytes.truncate(bytes.len() - 100),
            Harm::Emptied => bytes.clear(),
            Harm::Lost => return fs::remove_file(path).unwrap(),
        }
        fs::write(path, bytes).unwrap();
    }

    fn heal(&self, stored: &Stored, name: &str) {
        fs::copy(stored.archive.path().join(name), self.path(name)).unwrap();
    }

    fn merged(&self) -> Vec<String> {
        let names = objects_in(&self.folder).into_iter().map(|(name, _)| name);
        names.filter(|name| name.contains("/merged/")).collect()
    }

    /// `perennial restore`, with what it says.
    fn restore(&self, to: &str, more: &[&str]) -> (i32, String, String) {
        let arguments = ["restore", "--archive", &self.url, "--to", to];
        run_cli(&[&arguments, more].concat())
    }
}

/// One warning names the object, what is used instead, and what tells more.
#[track_caller]
fn assert_said(log: &str, name: &str) {
    let said = log.lines().any(|line| {
        line.contains("WARN") && line.contains(name) && line.contains("perennial verify")
    });
    assert!(said, "{name}: {log}");
}

#[track_caller]
fn assert_restored(kind: Kind, folder: &Path, digest: &Digest) {
    let restored = kind.start_on(folder).unwrap();
    assert_same(digest, &Digest::of(&restored.address()));
    drop(restored);
    fs::remove_dir_all(folder).unwrap();
}

fn a_restore_passes_over_what_is_damaged(kind: Kind) {
    let Some(stored) = Stored::of(kind) else {
        return;
    };
    let copy = stored.copy("damaged");
    let folder = stored.archive.beside("restored");
    let to = folder.to_str().unwrap();
    let program = kind.find().unwrap();
    let scratch = ["--format", "rdb", "--scratch", program.to_str().unwrap()];
    // The first block, a later one, and the end.
    for (harm, more) in [
        (Harm::Flipped(1), &[][..]),
        (Harm::Flipped(800), &["--at", "0s ago"]),
        (Harm::Flipped(1000), &scratch),
        (Harm::CutShort, &[]),
        (Harm::Emptied, &[]),
    ] {
        eprintln!("{harm:?} {more:?}");
        copy.harm(&stored.newer, harm);
        let (code, out, err) = copy.restore(to, more);
        assert_eq!(code, 0, "{harm:?}: {out}{err}");
        assert_said(&err, &stored.newer);
        assert!(err.contains(&stored.older), "{err}");
        // Files are of one server; a dump is what the same one saves.
        assert_restored(kind, &folder, &stored.digest);
        copy.heal(&stored, &stored.newer);
    }
    // Nothing tells of what is not listed: it is as if it had never been taken.
    copy.harm(&stored.newer, Harm::Lost);
    let (code, out, err) = copy.restore(to, &[]);
    assert_eq!(code, 0, "{out}{err}");
    assert_restored(kind, &folder, &stored.digest);

    let merged = copy.merged();
    for name in &merged {
        copy.harm(name, Harm::Flipped(500));
    }
    let (code, out, err) = copy.restore(to, &["--at", "0s ago"]);
    assert_eq!(code, 0, "{out}{err}");
    assert_said(&err, &merged[0]);
    assert_restored(kind, &folder, &stored.digest);

    // Nothing else leads there.
    copy.harm(&stored.older, Harm::Flipped(900));
    for at in ["latest", "0s ago"] {
        let (code, out, err) = copy.restore(to, &["--at", at]);
        assert_eq!(code, 1, "{out}{err}");
        assert!(err.contains(&stored.older), "{err}");
        assert!(!folder.exists(), "{at}");
    }
}

/// A server of this kind that was empty holds everything, and everything was said.
fn assert_seeded(stored: &Stored, kind: Kind, copy: &Damaged, damaged: &[&str]) {
    let server = kind.start(&[]).unwrap();
    let archive = Archive::at(copy.url.clone(), Vec::new());
    let mut perennial = Perennial::follow_url(&server.url(), &archive, &[]);
    server.until_master_with_data();
    assert_same(&stored.digest, &Digest::of(&server.address()));
    perennial.assert_healthy();
    for name in damaged {
        assert_said(&perennial.log(), name);
    }
    // It goes on from there.
    server.client().line("SET behind 1");
    server.client().wait_until_stored(DEADLINE);
}

fn a_seed_passes_over_what_is_damaged(kind: Kind) {
    let Some(stored) = Stored::of(kind) else {
        return;
    };
    for (number, harm) in [Harm::Flipped(1), Harm::Flipped(800), Harm::CutShort]
        .into_iter()
        .enumerate()
    {
        eprintln!("{harm:?}");
        let copy = stored.copy(&format!("damaged-{number}"));
        copy.harm(&stored.newer, harm);
        assert_seeded(&stored, kind, &copy, &[&stored.newer]);
    }
    let copy = stored.copy("merged");
    let merged = copy.merged();
    for name in &merged {
        copy.harm(name, Harm::Flipped(990));
    }
    copy.harm(&stored.newer, Harm::Flipped(800));
    let said = [stored.newer.as_str(), merged[0].as_str()];
    assert_seeded(&stored, kind, &copy, &said);
}

fn a_copy_passes_over_what_is_damaged(kind: Kind) {
    let Some(stored) = Stored::of(kind) else {
        return;
    };
    let copy = stored.copy("damaged");
    let server = kind.start(&[]).unwrap();
    copy.harm(&stored.newer, Harm::Flipped(800));
    let merged = copy.merged();
    for name in &merged {
        copy.harm(name, Harm::Flipped(990));
    }
    let (code, out, err) = copy.restore(&server.url(), &["--json"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(server.is_master(), "{out}");
    assert_said(&err, &stored.newer);
    assert_said(&err, &merged[0]);
    assert_same(&stored.digest, &Digest::of(&server.address()));
    let said: Value = serde_json::from_str(&out).unwrap();
    let head = stored.archive.status().head.unwrap();
    assert_eq!(said["offset"], head.offset, "the very same moment");

    // Nothing else leads there: what it is left as is said.
    copy.harm(&stored.older, Harm::Flipped(900));
    let empty = kind.start(&[]).unwrap();
    let (code, out, err) = copy.restore(&empty.url(), &[]);
    assert_eq!(code, 1, "{out}{err}");
    assert!(!empty.is_master() || empty.keys() == Some(0), "{err}");
    assert!(err.contains("was not filled"), "{err}");
}

/// Nothing older is seeded instead, and what is put right is used.
#[test]
fn a_seed_waits_until_an_object_without_which_nothing_leads_there_is_put_right() {
    let Some(stored) = Stored::of(REDIS_7_0) else {
        return;
    };
    let copy = stored.copy("damaged");
    copy.harm(&stored.newer, Harm::Flipped(800));
    copy.harm(&stored.older, Harm::Flipped(800));
    let server = REDIS_7_0.start(&[]).unwrap();
    let archive = Archive::at(copy.url.clone(), Vec::new());
    let mut perennial = Perennial::follow_url(&server.url(), &archive, &[]);
    perennial.until_logged("seed failed");
    holds_for("it stays a replica", Duration::from_secs(2), || {
        !server.is_master()
    });
    let log = perennial.log();
    assert!(log.contains(&stored.older), "{log}");
    copy.heal(&stored, &stored.newer);
    server.until_master_with_data();
    assert_same(&stored.digest, &Digest::of(&server.address()));
    perennial.assert_healthy();
}

/// A folder in which an object goes away as soon as a later part of it is read: pruned, or lost.
#[derive(Debug)]
struct Vanishing {
    inner: FsStore,
    path: PathBuf,
    name: ObjectName,
}

#[async_trait]
impl Store for Vanishing {
    async fn create(&self, name: &ObjectName, body: Vec<Bytes>) -> Result<Created, StoreError> {
        self.inner.create(name, body).await
    }

    async fn begin_upload(&self, name: &ObjectName) -> Result<Box<dyn Upload>, StoreError> {
        self.inner.begin_upload(name).await
    }

    async fn read(
        &self,
        name: &ObjectName,
        range: Option<Range<u64>>,
    ) -> Result<Bytes, StoreError> {
        let is_later = range
            .as_ref()
            .is_some_and(|range| range.start > 1024 * 1024);
        let is_end = range
            .as_ref()
            .is_some_and(|range| range.end - range.start <= 256 * 1024);
        if *name == self.name && is_later && !is_end {
            let _ = fs::remove_file(&self.path);
        }
        self.inner.read(name, range).await
    }

    async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> Result<Vec<Listed>, StoreError> {
        self.inner.list(prefix, start_after).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.inner.delete(name).await
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        self.inner.prepare().await
    }

    fn address(&self) -> String {
        self.inner.address()
    }
}

#[test]
fn a_seed_begins_anew_when_its_snapshot_goes_away_meanwhile() {
    let Some(stored) = Stored::of(REDIS_7_0) else {
        return;
    };
    let copy = stored.copy("vanishing");
    let path = copy.path(&stored.newer);
    let store = Vanishing {
        inner: FsStore::new(copy.folder.clone()),
        path: path.clone(),
        name: ObjectName::new(&stored.newer).unwrap(),
    };
    let server = REDIS_7_0.start(&[]).unwrap();
    let clock = Arc::new(SystemClock::new());
    let running = InProcess::follow_into(&server.url(), &copy.url, Arc::new(store), clock);
    server.until_master_with_data();
    assert!(!path.exists(), "it was read");
    assert_same(&stored.digest, &Digest::of(&server.address()));
    server.client().line("SET behind 1");
    server.client().wait_until_stored(DEADLINE);
    running.stop().unwrap();
}

/// A merged segment at the very end of a timeline is damaged: what it was made of is all there, so nothing is lost.
#[test]
fn a_damaged_end_that_others_hold_is_no_loss() {
    let Some(stored) = Stored::of(REDIS_7_0) else {
        return;
    };
    let copy = stored.copy("damaged");
    let last = |objects: &[(String, PathBuf)], kind: &str| {
        let of_kind = objects.iter().filter(|(name, _)| name.contains(kind));
        let last = of_kind.max_by_key(|(name, _)| last_offset(name));
        last.unwrap().0.clone()
    };
    // What came behind the last merged segment is taken away: that one is the end.
    let merged = last(&objects_in(&copy.folder), "/merged/");
    for (name, path) in objects_in(&copy.folder) {
        if name.contains("/segments/") && last_offset(&name) > last_offset(&merged) {
            fs::remove_file(path).unwrap();
        }
    }
    let folder = stored.archive.beside("whole");
    let to = folder.to_str().unwrap();
    let (code, out, err) = copy.restore(to, &["--json"]);
    assert_eq!(code, 0, "{err}");
    let whole: Value = serde_json::from_str(&out).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    copy.harm(&merged, Harm::Flipped(990));
    let (code, out, err) = copy.restore(to, &["--json"]);
    assert_eq!(code, 0, "{err}");
    let again: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(again["offset"], whole["offset"]);
    let (code, out, _) = run_cli(&["verify", "--archive", &url_of(&copy.folder)]);
    assert_eq!(code, 1, "it is damaged all the same");
    assert!(out.contains(&merged), "{out}");
}

fn last_offset(name: &str) -> u64 {
    let file = name.rsplit('/').next().unwrap();
    file.split('-').nth(1).unwrap().parse().unwrap()
}
