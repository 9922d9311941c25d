//! One suite for every store, plain and wrapped by faults: what the archive relies on, whatever it lies in.

use std::sync::Arc;

use bytes::Bytes;
use perennial::archive::layout::ObjectName;
use perennial::store::faulty::{Fault, Faults, FaultyStore};
use perennial::store::fs::FsStore;
use perennial::store::memory::MemoryStore;
use perennial::store::{Created, SameOrNew, Store, StoreError, StoreErrorKind, create_or_same};
use tempfile::TempDir;

#[cfg(feature = "s3")]
use crate::harness::S3Server;
#[cfg(feature = "gcs")]
use crate::harness::gcs::Gcs;

/// What stores are made of, each empty and apart from the others.
enum Backend {
    Memory,
    Directory(TempDir),
    #[cfg(feature = "s3")]
    S3(S3Server),
    #[cfg(feature = "gcs")]
    Gcs(Gcs),
}

impl Backend {
    fn directory() -> Self {
        Self::Directory(tempfile::tempdir().unwrap())
    }

    #[cfg(feature = "s3")]
    fn s3s() -> Self {
        Self::S3(S3Server::in_process())
    }

    #[cfg(feature = "gcs")]
    fn gcs() -> Self {
        Self::Gcs(Gcs::start())
    }

    /// An empty store, prepared.
    async fn plain(&self) -> Arc<dyn Store> {
        let number = getrandom::u64().unwrap();
        let place = format!("archive-{number:016x}");
        let store: Arc<dyn Store> = match self {
            Self::Memory => Arc::new(MemoryStore::new()),
            Self::Directory(directory) => Arc::new(FsStore::new(directory.path().join(place))),
            #[cfg(feature = "s3")]
            Self::S3(server) => Arc::new(server.store(&place)),
            #[cfg(feature = "gcs")]
            Self::Gcs(fake) => perennial::store::open(&fake.url(&place)).unwrap(),
        };
        store.prepare().await.unwrap();
        store
    }

    /// An empty store that obeys `faults`.
    async fn faulty(&self, faults: &Faults) -> Arc<dyn Store> {
        Arc::new(FaultyStore::new(self.plain().await, faults.clone()))
    }

    /// Two empty stores: plain, and behind the wrapper (late, but not failing).
    async fn both(&self) -> [(&'static str, Arc<dyn Store>); 2] {
        let late = Faults::new();
        late.at_random(1, 500, &[Fault::Delay(0), Fault::Delay(1)]);
        [
            ("plain", self.plain().await),
            ("late", self.faulty(&late).await),
        ]
    }
}

fn blocking(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap()
        .block_on(work);
}

/// Each scenario as a test for each store; `moto`, which takes a second to start, goes through all of them in one.
macro_rules! on_every_store {
    ($($scenario:ident),+ $(,)?) => {
        $(mod $scenario {
            use super::{Backend, blocking};
            #[test] fn memory() { blocking(super::$scenario(&Backend::Memory)); }
            #[test] fn directory() { blocking(super::$scenario(&Backend::directory())); }
            #[cfg(feature = "s3")]
            #[test] fn s3s() { blocking(super::$scenario(&Backend::s3s())); }
            #[cfg(feature = "gcs")]
            #[test] fn gcs() { blocking(super::$scenario(&Backend::gcs())); }
        })+

        #[cfg(feature = "s3")]
        #[test]
        fn all_of_it_on_moto() {
            let Some(server) = S3Server::moto() else {
                return;
            };
            let backend = Backend::S3(server);
            $(
                eprintln!("{}", stringify!($scenario));
                blocking($scenario(&backend));
            )+
        }
    };
}

on_every_store! {
    objects_are_read_as_they_were_created,
    an_object_never_changes,
    what_is_not_there_is_not_found_and_may_be_deleted,
    lists_are_sorted_by_name_and_cut_by_prefix_and_start,
    an_upload_appears_only_when_it_is_complete,
    a_large_upload_is_whole_and_excludes_others,
    finding_the_same_bytes_is_success_and_other_bytes_are_a_conflict,
    of_sixteen_racers_for_a_name_one_wins,
    a_store_may_be_prepared_again,
    whatever_fails_at_any_step_trying_again_gives_the_same,
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

fn body(parts: &[&'static str]) -> Vec<Bytes> {
    parts
        .iter()
        .map(|part| Bytes::from_static(part.as_bytes()))
        .collect()
}

async fn listed(store: &dyn Store, prefix: &str, after: Option<&str>) -> Vec<String> {
    let listed = store.list(prefix, after).await.unwrap();
    listed
        .into_iter()
        .map(|listed| listed.name.to_string())
        .collect()
}

async fn objects_are_read_as_they_were_created(backend: &Backend) {
    for (label, store) in backend.both().await {
        let a = name("timelines/1/a.blocks");
        assert_eq!(
            store.create(&a, body(&["hel", "", "lo"])).await.unwrap(),
            Created::New,
            "{label}"
        );
        assert_eq!(store.read(&a, None).await.unwrap(), "hello");
        for (range, expected) in [
            (0..5, "hello"),
            (1..3, "el"),
            (3..99, "lo"),
            (5..9, ""),
            (99..u64::MAX, ""),
            (2..2, ""),
            (0..0, ""),
        ] {
            let read = store.read(&a, Some(range.clone())).await.unwrap();
            assert_eq!(read, expected, "{label}: {range:?}");
        }
        let empty = name("empty");
        assert_eq!(store.create(&empty, vec![]).await.unwrap(), Created::New);
        assert_eq!(store.read(&empty, None).await.unwrap(), "");
    }
}

async fn an_object_never_changes(backend: &Backend) {
    for (label, store) in backend.both().await {
        let a = name("a");
        store.create(&a, body(&["first"])).await.unwrap();
        let again = store.create(&a, body(&["second, longer"])).await.unwrap();
        assert_eq!(again, Created::AlreadyPresent, "{label}");
        let mut upload = store.begin_upload(&a).await.unwrap();
        upload.write("third".into()).await.unwrap();
        let again = upload.complete().await.unwrap();
        assert_eq!(again, Created::AlreadyPresent, "{label}");
        assert_eq!(store.read(&a, None).await.unwrap(), "first", "{label}");
    }
}

async fn what_is_not_there_is_not_found_and_may_be_deleted(backend: &Backend) {
    for (label, store) in backend.both().await {
        let a = name("timelines/1/a");
        let error = store.read(&a, None).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::NotFound, "{label}: {error}");
        assert!(!error.is_retryable());
        store.delete(&a).await.unwrap();
        store.create(&a, body(&["x"])).await.unwrap();
        store.delete(&a).await.unwrap();
        store.delete(&a).await.unwrap();
        assert!(store.read(&a, Some(0..1)).await.is_err(), "{label}");
        assert!(listed(&*store, "", None).await.is_empty(), "{label}");
        assert_eq!(store.create(&a, body(&["y"])).await.unwrap(), Created::New);
    }
}

async fn lists_are_sorted_by_name_and_cut_by_prefix_and_start(backend: &Backend) {
    // Not late as well: hundreds of requests, one after the other.
    for (label, store) in [("plain", backend.plain().await)] {
        // Sorted as whole names: '-' and '.' come before '/', digits after it.
        let names = [
            "archive.json",
            "timelines/1-a/segments/1",
            "timelines/1-a/segments/2",
            "timelines/1-a/segments-old/1",
            "timelines/1-a/timeline.json",
            "timelines/1/x",
            "timelines/10-b/timeline.json",
            "timelines/2-c/timeline.json",
        ];
        let mut sorted = names.map(str::to_owned);
        sorted.sort();
        for name in names.iter().rev() {
            store
                .create(&self::name(name), body(&["123"]))
                .await
                .unwrap();
        }
        assert_eq!(listed(&*store, "", None).await, sorted, "{label}");
        for prefix in [
            "",
            "a",
            "timelines",
            "timelines/",
            "timelines/1",
            "timelines/1-a/",
            "timelines/1-a/segments",
            "timelines/1-a/segments/",
            "timelines/1-a/segments/2",
            "timelines/1-a/segments/2/",
            "nowhere/",
            "timelines//",
            "../",
            "/",
            ".",
        ] {
            let mut starts: Vec<String> = sorted.to_vec();
            starts.extend(
                [
                    "",
                    "0",
                    "timelines/1-a",
                    "timelines/1-a/",
                    "timelines/1-a/t",
                    "zzz",
                ]
                .map(str::to_owned),
            );
            for after in std::iter::once(None).chain(starts.iter().map(Some)) {
                let after = after.map(String::as_str);
                let expected: Vec<&String> = sorted
                    .iter()
                    .filter(|name| {
                        name.starts_with(prefix) && after.is_none_or(|after| name.as_str() > after)
                    })
                    .collect();
                assert_eq!(
                    listed(&*store, prefix, after)
                        .await
                        .iter()
                        .collect::<Vec<_>>(),
                    expected,
                    "{label}: {prefix:?} after {after:?}"
                );
            }
        }
        let one = store.list("archive.json", None).await.unwrap();
        assert_eq!(one[0].bytes, 3);
    }
}

async fn an_upload_appears_only_when_it_is_complete(backend: &Backend) {
    for (label, store) in backend.both().await {
        let a = name("snapshots/a");
        let mut upload = store.begin_upload(&a).await.unwrap();
        for part in ["one ", "two ", "", "three"] {
            upload.write(part.into()).await.unwrap();
        }
        assert!(store.read(&a, None).await.is_err(), "{label}");
        assert!(listed(&*store, "", None).await.is_empty(), "{label}");
        assert_eq!(upload.complete().await.unwrap(), Created::New, "{label}");
        assert_eq!(store.read(&a, None).await.unwrap(), "one two three");

        let b = name("snapshots/b");
        let mut aborted = store.begin_upload(&b).await.unwrap();
        aborted.write("x".into()).await.unwrap();
        aborted.abort().await;
        let mut dropped = store.begin_upload(&b).await.unwrap();
        dropped.write("y".into()).await.unwrap();
        drop(dropped);
        assert_eq!(listed(&*store, "", None).await, ["snapshots/a"], "{label}");
    }
}

async fn finding_the_same_bytes_is_success_and_other_bytes_are_a_conflict(backend: &Backend) {
    for (label, store) in backend.both().await {
        let a = name("a");
        let store = &*store;
        let create = |parts| create_or_same(store, &a, body(parts));
        assert_eq!(create(&["ab", "cd"]).await.unwrap(), SameOrNew::New);
        assert_eq!(create(&["ab", "cd"]).await.unwrap(), SameOrNew::Same);
        assert_eq!(create(&["a", "", "bcd"]).await.unwrap(), SameOrNew::Same);
        for other in [&["abc"][..], &["abcde"], &["abcx"], &[]] {
            let error = create(other).await.unwrap_err();
            assert_eq!(error.kind, StoreErrorKind::Conflict, "{label}: {error}");
            assert!(!error.is_retryable());
        }
        assert_eq!(store.read(&a, None).await.unwrap(), "abcd");
    }
}

const RACERS: usize = 16;

async fn of_sixteen_racers_for_a_name_one_wins(backend: &Backend) {
    // By one request, by upload, and both: the two ways must exclude each other, too.
    let by_create = |way, racer| match way {
        "create" => true,
        "complete" => false,
        _ => racer % 2 == 0,
    };
    for (label, store) in backend.both().await {
        for way in ["create", "complete", "both"] {
            let target = name(&format!("timelines/{way}/timeline.json"));
            let start = Arc::new(tokio::sync::Barrier::new(RACERS));
            let racers: Vec<_> = (0..RACERS)
                .map(|racer| {
                    let (store, target, start) = (store.clone(), target.clone(), start.clone());
                    tokio::spawn(async move {
                        let body = Bytes::from(format!("racer {racer}"));
                        let upload = match by_create(way, racer) {
                            true => None,
                            false => {
                                let mut upload = store.begin_upload(&target).await.unwrap();
                                upload.write(body.clone()).await.unwrap();
                                Some(upload)
                            }
                        };
                        start.wait().await;
                        let created = match upload {
                            None => store.create(&target, vec![body.clone()]).await.unwrap(),
                            Some(upload) => upload.complete().await.unwrap(),
                        };
                        (created, body)
                    })
                })
                .collect();
            let won = winner(racers).await;
            assert_eq!(
                store.read(&target, None).await.unwrap(),
                won,
                "{label}, {way}"
            );
        }
    }
}

/// What the only one of the racers wrote that was told that the object is new.
async fn winner<T>(racers: Vec<tokio::task::JoinHandle<(Created, T)>>) -> T {
    let mut winners = Vec::new();
    for racer in racers {
        if let (Created::New, body) = racer.await.unwrap() {
            winners.push(body);
        }
    }
    assert_eq!(winners.len(), 1);
    winners.remove(0)
}

/// Not on `moto`: it looks whether the name is taken, puts the parts together for a while, and overwrites.
mod of_sixteen_uploads_in_parts_that_are_completed_at_once_one_wins {
    use super::{Backend, blocking, completed_at_once_one_wins};
    #[test]
    fn memory() {
        blocking(completed_at_once_one_wins(&Backend::Memory));
    }
    #[test]
    fn directory() {
        blocking(completed_at_once_one_wins(&Backend::directory()));
    }
    #[cfg(feature = "s3")]
    #[test]
    fn s3s() {
        blocking(completed_at_once_one_wins(&Backend::s3s()));
    }
    #[cfg(feature = "gcs")]
    #[test]
    fn gcs() {
        blocking(completed_at_once_one_wins(&Backend::gcs()));
    }
}

/// Large enough for parts. All of them are in the store before the first is completed.
async fn completed_at_once_one_wins(backend: &Backend) {
    let store = backend.plain().await;
    let target = name("snapshots/raced");
    let start = Arc::new(tokio::sync::Barrier::new(RACERS));
    let mut racers = Vec::new();
    let shared = Bytes::from(vec![7; 8 * 1024 * 1024]);
    for racer in 0..RACERS {
        let mut upload = store.begin_upload(&target).await.unwrap();
        upload.write(shared.clone()).await.unwrap();
        upload
            .write(vec![u8::try_from(racer).unwrap(); 1000].into())
            .await
            .unwrap();
        let start = start.clone();
        racers.push(tokio::spawn(async move {
            start.wait().await;
            (upload.complete().await.unwrap(), racer)
        }));
    }
    let won = winner(racers).await;
    let tail = shared.len() as u64..u64::MAX;
    let read = store.read(&target, Some(tail)).await.unwrap();
    assert_eq!(read, vec![u8::try_from(won).unwrap(); 1000]);
    let names = listed(&*store, "", None).await;
    assert_eq!(names, ["snapshots/raced"]);
}

async fn a_store_may_be_prepared_again(backend: &Backend) {
    for (label, store) in backend.both().await {
        store.create(&name("a"), body(&["x"])).await.unwrap();
        store.prepare().await.unwrap();
        store.prepare().await.unwrap();
        assert_eq!(listed(&*store, "", None).await, ["a"], "{label}");
        assert!(!store.address().is_empty());
    }
}

/// Does something of everything, trying again from the start of a step whenever it fails.
async fn scenario(store: &dyn Store) {
    async fn until_done<T>(label: &str, mut step: impl AsyncFnMut() -> Result<T, StoreError>) -> T {
        for _ in 0..100 {
            match step().await {
                Ok(done) => return done,
                Err(error) => assert!(error.is_retryable(), "{label}: {error}"),
            }
        }
        panic!("{label}: never done")
    }
    until_done("prepare", async || store.prepare().await).await;
    for (target, parts) in [("s/1", &["a", "b"][..]), ("s/2", &["c"]), ("s/3", &[])] {
        let target = name(target);
        until_done("create", async || {
            create_or_same(store, &target, body(parts)).await
        })
        .await;
    }
    let snapshot = name("snapshot");
    until_done("upload", async || {
        let mut upload = store.begin_upload(&snapshot).await?;
        upload.write("large ".into()).await?;
        upload.write("object".into()).await?;
        upload.complete().await
    })
    .await;
    until_done("delete", async || store.delete(&name("s/3")).await).await;
    let left = until_done("list", async || store.list("", None).await).await;
    let left: Vec<_> = left.iter().map(|listed| listed.name.as_str()).collect();
    assert_eq!(left, ["s/1", "s/2", "snapshot"]);
    for (target, expected) in [("s/1", "ab"), ("s/2", "c"), ("snapshot", "large object")] {
        let read = until_done("read", async || store.read(&name(target), None).await).await;
        assert_eq!(read, expected);
    }
}

async fn whatever_fails_at_any_step_trying_again_gives_the_same(backend: &Backend) {
    let faults = [
        Fault::Refuse,
        Fault::CutShort,
        Fault::Delay(1),
        Fault::DoneButReportedFailed,
    ];
    let switch = Faults::new();
    scenario(&*backend.faulty(&switch).await).await;
    let steps = switch.operations();
    assert!(steps >= 12, "{steps}");

    for step in 1..=steps {
        for fault in faults {
            let switch = Faults::new();
            switch.at(step, fault);
            scenario(&*backend.faulty(&switch).await).await;
            let again = matches!(fault, Fault::Delay(_)) || switch.operations() > steps;
            assert!(again, "nothing was tried again after {fault:?} at {step}");
        }
    }
    for seed in 0..20 {
        eprintln!("seed {seed}");
        let switch = Faults::new();
        switch.at_random(seed, 300, &faults);
        scenario(&*backend.faulty(&switch).await).await;
    }
}

/// Larger than two of the parts that stores send, and not a multiple of one.
const LARGE_PIECES: u8 = 37;
const LARGE_PIECE_BYTES: usize = 700_000;

async fn a_large_upload_is_whole_and_excludes_others(backend: &Backend) {
    let store = backend.plain().await;
    let a = name("snapshots/large");
    let pieces: Vec<Bytes> = (0..LARGE_PIECES)
        .map(|number| vec![number; LARGE_PIECE_BYTES].into())
        .collect();
    let upload = async || {
        let mut upload = store.begin_upload(&a).await.unwrap();
        for piece in &pieces {
            upload.write(piece.clone()).await.unwrap();
        }
        upload
    };
    let (first, second) = (upload().await, upload().await);
    assert!(store.read(&a, None).await.is_err(), "it is there already");
    assert_eq!(first.complete().await.unwrap(), Created::New);
    assert_eq!(second.complete().await.unwrap(), Created::AlreadyPresent);
    let whole = pieces.concat();
    assert!(store.read(&a, None).await.unwrap() == whole);
    let middle = 9_000_000_u64..9_100_000;
    let part = store.read(&a, Some(middle)).await.unwrap();
    assert!(part == whole[9_000_000..9_100_000]);

    let dropped = upload().await;
    upload().await.abort().await;
    drop(dropped);
    assert_eq!(listed(&*store, "", None).await, ["snapshots/large"]);
}
