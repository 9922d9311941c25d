//! One suite for every store: plain, and wrapped by faults.

use super::faulty::{Fault, Faults, FaultyStore, Operation};
use super::fs::FsStore;
use super::memory::MemoryStore;
use std::time::Duration;

use super::*;

/// A store under test; the directory or server lives as long as it does.
struct Subject {
    label: &'static str,
    store: Arc<dyn Store>,
    _kept: Option<Box<dyn std::any::Any>>,
}

fn memory() -> Subject {
    Subject {
        label: "memory",
        store: Arc::new(MemoryStore::new()),
        _kept: None,
    }
}

async fn directory() -> Subject {
    let directory = tempfile::tempdir().unwrap();
    let store = FsStore::new(directory.path().join("archive"));
    store.prepare().await.unwrap();
    Subject {
        label: "directory",
        store: Arc::new(store),
        _kept: Some(Box::new(directory)),
    }
}

/// A bucket of Google Cloud Storage, played by a fake in this process.
#[cfg(feature = "gcs")]
fn gcs() -> Subject {
    let fake = gcs::tests::fake::Gcs::start();
    Subject {
        label: "gcs",
        store: open(&fake.url("archive")).unwrap(),
        _kept: Some(Box::new(fake)),
    }
}

fn wrapped(subject: Subject, label: &'static str, faults: Faults) -> Subject {
    Subject {
        label,
        store: Arc::new(FaultyStore::new(subject.store, faults)),
        _kept: subject._kept,
    }
}

/// Every store, plain and behind the wrapper (late, but not failing).
async fn subjects() -> Vec<Subject> {
    let late = || {
        let faults = Faults::new();
        faults.at_random(1, 500, &[Fault::Delay(0), Fault::Delay(1)]);
        faults
    };
    vec![
        memory(),
        directory().await,
        wrapped(memory(), "late memory", late()),
        wrapped(directory().await, "late directory", late()),
        #[cfg(feature = "gcs")]
        gcs(),
        #[cfg(feature = "gcs")]
        wrapped(gcs(), "late gcs", late()),
    ]
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

#[tokio::test]
async fn objects_are_read_as_they_were_created() {
    for Subject { label, store, .. } in subjects().await {
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

#[tokio::test]
async fn an_object_never_changes() {
    for Subject { label, store, .. } in subjects().await {
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

#[tokio::test]
async fn what_is_not_there_is_not_found_and_may_be_deleted() {
    for Subject { label, store, .. } in subjects().await {
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

#[tokio::test]
async fn lists_are_sorted_by_name_and_cut_by_prefix_and_start() {
    for Subject { label, store, .. } in subjects().await {
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

#[tokio::test]
async fn an_upload_appears_only_when_it_is_complete() {
    for Subject { label, store, .. } in subjects().await {
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

#[tokio::test]
async fn finding_the_same_bytes_is_success_and_other_bytes_are_a_conflict() {
    for Subject { label, store, .. } in subjects().await {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_sixteen_racers_for_a_name_one_wins() {
    for Subject { label, store, .. } in subjects().await {
        for round in 0..4 {
            let target = name(&format!("timelines/{round}/timeline.json"));
            let start = Arc::new(tokio::sync::Barrier::new(16));
            let racers: Vec<_> = (0..16)
                .map(|racer| {
                    let (store, target, start) = (store.clone(), target.clone(), start.clone());
                    tokio::spawn(async move {
                        let body = Bytes::from(format!("racer {racer}"));
                        start.wait().await;
                        // Half of them by upload: the two ways must exclude each other, too.
                        let created = if racer % 2 == 0 {
                            store.create(&target, vec![body.clone()]).await.unwrap()
                        } else {
                            let mut upload = store.begin_upload(&target).await.unwrap();
                            upload.write(body.clone()).await.unwrap();
                            upload.complete().await.unwrap()
                        };
                        (created, body)
                    })
                })
                .collect();
            let mut winners = Vec::new();
            for racer in racers {
                if let (Created::New, body) = racer.await.unwrap() {
                    winners.push(body);
                }
            }
            assert_eq!(winners.len(), 1, "{label}, round {round}");
            assert_eq!(store.read(&target, None).await.unwrap(), winners[0]);
        }
    }
}

#[tokio::test]
async fn a_store_may_be_prepared_again() {
    for Subject { label, store, .. } in subjects().await {
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

#[tokio::test]
async fn whatever_fails_at_any_step_trying_again_gives_the_same() {
    let faults = [
        Fault::Refuse,
        Fault::CutShort,
        Fault::Delay(1),
        Fault::DoneButReportedFailed,
    ];
    for label in [
        "memory",
        "directory",
        #[cfg(feature = "gcs")]
        "gcs",
    ] {
        let subject = async || match label {
            "memory" => memory(),
            #[cfg(feature = "gcs")]
            "gcs" => gcs(),
            _ => directory().await,
        };
        let switch = Faults::new();
        let plain = wrapped(subject().await, "plain", switch.clone());
        scenario(&*plain.store).await;
        let steps = switch.operations();
        assert!(steps >= 12, "{steps}");

        for step in 1..=steps {
            for fault in faults {
                let switch = Faults::new();
                switch.at(step, fault);
                let failing = wrapped(subject().await, "failing", switch.clone());
                scenario(&*failing.store).await;
                let again = matches!(fault, Fault::Delay(_)) || switch.operations() > steps;
                assert!(again, "nothing was tried again after {fault:?} at {step}");
            }
        }
        for seed in 0..20 {
            eprintln!("seed {seed}");
            let switch = Faults::new();
            switch.at_random(seed, 300, &faults);
            let failing = wrapped(subject().await, "failing", switch);
            scenario(&*failing.store).await;
        }
    }
}

#[tokio::test]
async fn faults_do_what_they_say() {
    let (a, b) = (name("a"), name("b"));
    let faults = Faults::new();
    let inner = MemoryStore::new();
    let store = FaultyStore::new(Arc::new(inner.clone()), faults.clone());

    faults.at_kind(Operation::Create, 1, Fault::Refuse);
    faults.at_kind(Operation::Create, 2, Fault::DoneButReportedFailed);
    let error = store.create(&a, body(&["x"])).await.unwrap_err();
    assert!(error.is_retryable());
    assert!(inner.read(&a, None).await.is_err());
    assert!(store.create(&a, body(&["x"])).await.is_err());
    assert_eq!(inner.read(&a, None).await.unwrap(), "x");

    faults.refuse_all(true);
    assert!(store.read(&a, None).await.is_err());
    assert!(store.list("", None).await.is_err());
    assert!(store.delete(&a).await.is_err());
    assert!(store.prepare().await.is_err());
    assert!(store.begin_upload(&b).await.is_err());
    faults.refuse_all(false);
    assert!(store.read(&a, None).await.is_ok());

    faults.at_kind(Operation::Write, 2, Fault::CutShort);
    let mut upload = store.begin_upload(&b).await.unwrap();
    upload.write("xx".into()).await.unwrap();
    assert!(upload.write("xx".into()).await.is_err());
    upload.abort().await;

    faults.at_kind(Operation::Complete, 1, Fault::DoneButReportedFailed);
    let mut upload = store.begin_upload(&b).await.unwrap();
    upload.write("yy".into()).await.unwrap();
    assert!(upload.complete().await.is_err());
    assert_eq!(inner.read(&b, None).await.unwrap(), "yy");

    assert_eq!(faults.count(Operation::Create), 2);
    assert_eq!(faults.count(Operation::Write), 3);
    assert_eq!(faults.operations(), 14);
    faults.at(15, Fault::Refuse);
    faults.clear();
    assert!(store.read(&a, None).await.is_ok());
    assert_eq!(faults.operations(), 15);
}

#[tokio::test(start_paused = true)]
async fn a_delay_is_as_long_as_it_says() {
    let faults = Faults::new();
    let store = FaultyStore::new(Arc::new(MemoryStore::new()), faults.clone());
    let within = |millis| tokio::time::timeout(Duration::from_millis(millis), store.list("", None));
    faults.delay_all(1000);
    assert!(within(999).await.is_err());
    assert!(within(1001).await.is_ok());
    faults.delay_all(0);
    assert!(within(1).await.is_ok());
    faults.at(4, Fault::Delay(50));
    assert!(within(49).await.is_err());
}

#[tokio::test]
async fn the_same_seed_gives_the_same_faults() {
    let failures = async |seed| {
        let faults = Faults::new();
        faults.at_random(seed, 500, &[Fault::Refuse]);
        let store = FaultyStore::new(Arc::new(MemoryStore::new()), faults);
        let mut failures = Vec::new();
        for _ in 0..64 {
            failures.push(store.list("", None).await.is_err());
        }
        failures
    };
    assert_eq!(failures(1).await, failures(1).await);
    assert_ne!(failures(1).await, failures(2).await);
    let count = failures(1).await.iter().filter(|failed| **failed).count();
    assert!((16..48).contains(&count), "{count}");
}

#[tokio::test]
async fn memory_dates_objects_by_the_time_it_was_given() {
    let store = MemoryStore::new();
    store.set_now(UnixMillis(5));
    store.create(&name("a"), vec![]).await.unwrap();
    store.set_now(UnixMillis(7));
    store.overwrite(&name("b"), Bytes::from_static(b"damaged"));
    let listed = store.list("", None).await.unwrap();
    let times: Vec<_> = listed.iter().map(|listed| listed.modified.0).collect();
    assert_eq!(times, [5, 7]);
}

#[test]
fn an_address_that_cannot_be_opened_says_what_can() {
    for (url, expected) in [
        ("/var/backup", "not an archive's address"),
        ("file:/var/backup", "not an archive's address"),
        ("file://var/backup", "three slashes"),
        ("file://./backup", "three slashes"),
        ("file:///backup?region=x", "no parameters"),
        ("file:///100%", "%25"),
        ("file:///a%00b", "zero byte"),
        ("s3://bucket/prefix", "not built in this version"),
        #[cfg(feature = "gcs")]
        ("gs://user:secret@bucket/prefix", "credentials come from"),
        #[cfg(not(feature = "gcs"))]
        ("gs://user:secret@bucket/prefix", "without the feature gcs"),
        ("ftp://user:secret@host/x", "unknown scheme"),
        ("", "not an archive's address"),
    ] {
        let error = open(url).unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Invalid);
        let text = error.to_string();
        assert!(text.contains(expected), "{url}: {text}");
        assert!(!text.contains("secret"), "{text}");
    }
    for (url, address) in [
        ("file:///var/backup", "file:///var/backup"),
        ("file://localhost/var/backup", "file:///var/backup"),
        ("file:///with%20space", "file:///with space"),
    ] {
        assert_eq!(open(url).unwrap().address(), address);
    }
}

#[test]
fn an_error_reads_as_one_sentence() {
    let object = "timelines/00000001-0000000000000000000000000000000000000000/timeline.json";
    let error = StoreError::new(
        StoreErrorKind::Denied,
        "create",
        &name(object),
        "file:///x".to_owned(),
        "no".to_owned(),
    );
    assert_eq!(
        error.to_string(),
        format!("create timeline document {object} in file:///x: no")
    );
    let error = StoreError::about_store(
        StoreErrorKind::Full,
        "prepare",
        "file:///x".to_owned(),
        "no space".to_owned(),
    );
    assert_eq!(error.to_string(), "prepare file:///x: no space");
    assert!(error.is_retryable());
}
