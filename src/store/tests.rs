//! The wrapper that fails on request, addresses, and errors. The suite that every store must pass is
//! `tests/it/store_suite.rs`.

use std::time::Duration;

use super::faulty::{Fault, Faults, FaultyStore, Operation};
use super::memory::MemoryStore;
use super::*;

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

fn body(parts: &[&'static str]) -> Vec<Bytes> {
    parts
        .iter()
        .map(|part| Bytes::from_static(part.as_bytes()))
        .collect()
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
        #[cfg(feature = "s3")]
        ("s3://bucket/prefix?regoin=x", "did you mean region?"),
        #[cfg(not(feature = "s3"))]
        ("s3://bucket/prefix", "without the feature s3"),
        #[cfg(feature = "gcs")]
        ("gs://bucket/prefix?regoin=x", "unknown parameter"),
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
        ("file:///100%25%3f%23", "file:///100%25%3F%23"),
    ] {
        assert_eq!(open(url).unwrap().address(), address);
        assert_eq!(open(address).unwrap().address(), address);
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
