use std::time::Duration;

use super::*;
use crate::store::{StoreErrorKind, create_or_same, open};

#[allow(
    clippy::disallowed_methods,
    dead_code,
    unreachable_pub,
    reason = "shared with the end-to-end tests, which allow the same"
)]
#[path = "../../../tests/it/harness/gcs/mod.rs"]
pub(in crate::store) mod fake;

use fake::{Answer, Asked, BUCKET, Gcs};

const MIB: usize = 1024 * 1024;

fn store(fake: &Gcs) -> Arc<dyn Store> {
    open(&fake.url("archive")).unwrap()
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

fn one(text: &'static str) -> Vec<Bytes> {
    vec![Bytes::from_static(text.as_bytes())]
}

/// Bytes that look alike nowhere.
fn noise(bytes: usize) -> Bytes {
    let mut state = 1_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..bytes).map(next).collect()
}

async fn upload(store: &dyn Store, target: &str, bytes: &Bytes) -> Result<Created, StoreError> {
    let mut upload = store.begin_upload(&name(target)).await?;
    for at in (0..bytes.len()).step_by(3 * MIB) {
        upload
            .write(bytes.slice(at..bytes.len().min(at + 3 * MIB)))
            .await?;
    }
    upload.complete().await
}

fn names(fake: &Gcs) -> Vec<String> {
    fake.objects().into_iter().map(|(name, _)| name).collect()
}

#[tokio::test]
async fn objects_lie_below_the_prefix_and_opening_asks_nothing() {
    let fake = Gcs::start();
    fake.put("archive-of-somebody-else/a", b"x");
    fake.put("archive/", b"a folder, as some consoles make them");
    let store = store(&fake);
    assert_eq!(store.address(), fake.url("archive"));
    let all = [
        Asked::Create,
        Asked::Begin,
        Asked::Read,
        Asked::List,
        Asked::Delete,
    ];
    assert!(all.iter().all(|asked| fake.count(*asked) == 0));
    store.create(&name("a/b"), one("x")).await.unwrap();
    assert_eq!(
        names(&fake),
        ["archive-of-somebody-else/a", "archive/", "archive/a/b"]
    );
    let listed = store.list("", None).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].name.as_str(), "a/b");
    // By the store's own clock, which is this machine's here.
    assert!(listed[0].modified.0 > 1_600_000_000_000, "{listed:?}");
}

#[tokio::test]
async fn each_refusal_has_its_own_words() {
    let fake = Gcs::start();
    let store = store(&fake);
    let a = name("a");
    store.create(&a, one("x")).await.unwrap();
    for (asked, permission) in [
        (Asked::Create, "storage.objects.create"),
        (Asked::Begin, "storage.objects.create"),
        (Asked::Read, "storage.objects.get"),
        (Asked::List, "storage.objects.list"),
        (Asked::Delete, "storage.objects.delete"),
    ] {
        for (status, kind, words) in [
            (403, StoreErrorKind::Denied, permission),
            (401, StoreErrorKind::Denied, "anonymous=true"),
            (429, StoreErrorKind::Unavailable, "too many requests"),
            (503, StoreErrorKind::Unavailable, "cannot answer now"),
        ] {
            let before = fake.count(asked);
            fake.plan(asked, Answer::Refuse(status), 100);
            let result = match asked {
                Asked::Create => store.create(&a, one("x")).await.map(|_| ()),
                Asked::Begin => upload(&*store, "a", &Bytes::from_static(b"x"))
                    .await
                    .map(|_| ()),
                Asked::Read => store.read(&a, None).await.map(|_| ()),
                Asked::List => store.list("", None).await.map(|_| ()),
                _ => store.delete(&a).await,
            };
            let error = result.unwrap_err();
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.to_string().contains(words), "{error}");
            assert!(error.to_string().contains("gs://bucket/archive"), "{error}");
            let attempts = fake.count(asked) - before;
            match kind {
                StoreErrorKind::Denied => assert_eq!(attempts, 1, "{error}"),
                _ => assert!((2..=6).contains(&attempts), "{attempts}: {error}"),
            }
            fake.forget_plans();
        }
    }
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_no_empty_archive() {
    let fake = Gcs::start();
    let store = open(&fake.url_of("buckte", "archive")).unwrap();
    let a = name("a");
    let missing = |error: StoreError| {
        assert_eq!(error.kind, StoreErrorKind::NotFound, "{error}");
        assert!(error.to_string().contains("no bucket buckte"), "{error}");
    };
    missing(store.list("", None).await.unwrap_err());
    missing(store.create(&a, one("x")).await.unwrap_err());
    missing(store.read(&a, None).await.unwrap_err());
    missing(store.prepare().await.unwrap_err());
    missing(
        upload(&*store, "a", &Bytes::from_static(b"x"))
            .await
            .unwrap_err(),
    );
}

#[tokio::test]
async fn endpoints_that_cannot_be_reached_say_why() {
    let fake = Gcs::start();
    let tls = fake.endpoint().replace("http://", "https://");
    for (endpoint, expected) in [
        ("http://127.0.0.1:1", "cannot be reached"),
        ("http://no-such-host.invalid", "cannot be resolved"),
        (&tls, "check endpoint="),
    ] {
        let url = format!("gs://{BUCKET}/archive?endpoint={endpoint}&anonymous=true");
        let store = open(&url).unwrap();
        let a = name("a");
        let errors = [
            store.create(&a, one("x")).await.unwrap_err(),
            store.list("", None).await.unwrap_err(),
            upload(&*store, "a", &noise(10)).await.unwrap_err(),
        ];
        for error in errors {
            assert!(error.is_retryable(), "{error}");
            assert!(error.to_string().contains(expected), "{endpoint}: {error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_is_given_up() {
    let fake = Gcs::start();
    let store = store(&fake);
    for asked in [Asked::Create, Asked::Read, Asked::List, Asked::Begin] {
        fake.plan(asked, Answer::Never, 100);
    }
    let a = name("a");
    let errors = [
        store.create(&a, one("x")).await.unwrap_err(),
        store.read(&a, None).await.unwrap_err(),
        store.list("", None).await.unwrap_err(),
        upload(&*store, "a", &noise(10)).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("no answer within"), "{error}");
    }
}

#[tokio::test]
async fn what_fails_for_a_moment_is_tried_again() {
    let fake = Gcs::start();
    let store = store(&fake);
    let a = name("a");
    for status in [429, 503] {
        for asked in [Asked::Create, Asked::Read, Asked::List, Asked::Delete] {
            fake.plan(asked, Answer::Refuse(status), 2);
        }
        assert_eq!(store.create(&a, one("x")).await.unwrap(), Created::New);
        assert_eq!(store.read(&a, None).await.unwrap(), "x");
        assert_eq!(store.list("", None).await.unwrap().len(), 1);
        store.delete(&a).await.unwrap();
    }
    // Done, but told otherwise: the second try meets what the first one did.
    fake.plan(Asked::Create, Answer::DoneBut(503), 1);
    assert_eq!(
        store.create(&a, one("x")).await.unwrap(),
        Created::AlreadyPresent
    );
    assert!(create_or_same(&*store, &a, one("x")).await.is_ok());
    fake.plan(Asked::Delete, Answer::DoneBut(503), 1);
    store.delete(&a).await.unwrap();
}

#[tokio::test]
async fn a_list_of_many_pages_is_whole() {
    let fake = Gcs::start();
    let expected: Vec<String> = (10..33).map(|number| format!("a/{number}")).collect();
    for name in expected.iter().rev() {
        fake.put(&format!("archive/{name}"), b"x");
    }
    fake.put("archive/b", b"x");
    let store = store(&fake);
    for page in 1..5 {
        fake.forget_plans();
        fake.plan(Asked::List, Answer::Late(Duration::ZERO), page);
        fake.plan(Asked::List, Answer::Refuse(503), 1);
        let listed = store.list("a/", None).await.unwrap();
        let names: Vec<&str> = listed.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, expected);
    }
    let listed = store.list("a/", Some("a/20")).await.unwrap();
    assert_eq!(listed.len(), 12);
    assert_eq!(listed[0].name.as_str(), "a/21");
}

#[tokio::test]
async fn a_large_upload_survives_what_breaks_on_the_way() {
    let bytes = noise(20 * MIB + 12_345);
    for (label, answer, times) in [
        ("nothing", Answer::Late(Duration::ZERO), 1),
        ("refused", Answer::Refuse(503), 3),
        ("too many", Answer::Refuse(429), 2),
        ("done but told otherwise", Answer::DoneBut(503), 1),
        ("half of it kept", Answer::Half, 1),
    ] {
        for part in 0..3 {
            let fake = Gcs::start();
            let store = store(&fake);
            fake.plan(Asked::Part, Answer::Late(Duration::ZERO), part);
            fake.plan(Asked::Part, answer, times);
            let created = upload(&*store, "large", &bytes).await;
            let created = created.unwrap_or_else(|error| panic!("{label} at {part}: {error}"));
            assert_eq!(created, Created::New, "{label} at {part}");
            let read = store.read(&name("large"), None).await.unwrap();
            assert!(read == bytes, "{label} at {part}: other bytes");
            assert_eq!(fake.count(Asked::Begin), 1);
        }
    }
}

#[tokio::test]
async fn an_upload_without_progress_ends() {
    let fake = Gcs::start();
    let store = store(&fake);
    fake.plan(Asked::Part, Answer::Refuse(503), 1000);
    let error = upload(&*store, "large", &noise(10)).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
    assert_eq!(fake.count(Asked::Part), 5);
    fake.forget_plans();
    // The session is told to be gone.
    fake.plan(Asked::Part, Answer::Refuse(410), 1);
    let error = upload(&*store, "large", &noise(10)).await.unwrap_err();
    assert!(error.to_string().contains("begin anew"), "{error}");
    assert!(error.is_retryable());
    assert!(names(&fake).is_empty());
}

#[tokio::test]
async fn an_upload_that_loses_the_race_says_so() {
    let fake = Gcs::start();
    let store = store(&fake);
    let bytes = noise(20 * MIB);
    let mut slow = store.begin_upload(&name("a")).await.unwrap();
    slow.write(bytes.slice(..MIB)).await.unwrap();
    store.create(&name("a"), one("first")).await.unwrap();
    // The service may say so at any moment; until then bytes are taken.
    fake.plan(Asked::Part, Answer::Refuse(412), 1);
    for at in 1..20 {
        slow.write(bytes.slice(at * MIB..(at + 1) * MIB))
            .await
            .unwrap();
    }
    assert_eq!(slow.complete().await.unwrap(), Created::AlreadyPresent);
    assert_eq!(store.read(&name("a"), None).await.unwrap(), "first");
}

#[tokio::test]
async fn what_is_given_up_never_appears() {
    let fake = Gcs::start();
    let store = store(&fake);
    let bytes = noise(9 * MIB);
    for written in [0, 1, bytes.len()] {
        for aborted in [false, true] {
            let begun = fake.count(Asked::Begin);
            let mut upload = store.begin_upload(&name("a")).await.unwrap();
            upload.write(bytes.slice(..written)).await.unwrap();
            while fake.count(Asked::Begin) == begun {
                tokio::task::yield_now().await;
            }
            match aborted {
                true => upload.abort().await,
                false => drop(upload),
            }
        }
    }
    // Whatever the tasks still did, they have been told by now.
    upload(&*store, "b", &bytes).await.unwrap();
    assert_eq!(names(&fake), ["archive/b"]);
}

#[tokio::test]
async fn what_is_damaged_on_the_way_does_not_stay() {
    let fake = Gcs::start();
    let store = store(&fake);
    let bytes = noise(MIB);
    // The service compares, refuses, and the second try is whole.
    fake.plan(Asked::Create, Answer::Damaged, 1);
    let created = store.create(&name("a"), vec![bytes.clone()]).await;
    assert_eq!(created.unwrap(), Created::New);
    assert_eq!(fake.count(Asked::Create), 2);
    // A session that never broke ends with a checksum.
    fake.plan(Asked::Part, Answer::Damaged, 1);
    let error = upload(&*store, "b", &bytes).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(error.to_string().contains("damaged"), "{error}");
    // One that did is compared afterwards, by the library or, where only asking told the end, by us. What it made
    // is taken away again; where that may not be, somebody has to.
    let damaged_and_broken = async |told_by_asking| {
        fake.forget_plans();
        fake.plan(Asked::Part, Answer::Damaged, 1);
        fake.plan(Asked::Part, Answer::DoneBut(503), 1);
        if told_by_asking {
            // The question how far it is, then the last part.
            fake.plan(Asked::Part, Answer::Late(Duration::ZERO), 1);
            fake.plan(Asked::Part, Answer::DoneBut(503), 1);
        }
        upload(&*store, "c", &noise(17 * MIB)).await.unwrap_err()
    };
    for told_by_asking in [false, true] {
        let error = damaged_and_broken(told_by_asking).await;
        assert!(error.is_retryable(), "{error}");
        assert!(error.to_string().contains("deleted again"), "{error}");
        assert_eq!(names(&fake), ["archive/a"]);
    }
    fake.forbid_deleting();
    let error = damaged_and_broken(true).await;
    assert!(!error.is_retryable(), "{error}");
    assert!(error.to_string().contains("by hand"), "{error}");
}

#[tokio::test]
async fn what_is_read_whole_is_compared() {
    let fake = Gcs::start();
    let store = store(&fake);
    let a = name("a");
    store.create(&a, vec![noise(1000)]).await.unwrap();
    for range in [None, Some(0..1000), Some(0..u64::MAX)] {
        fake.plan(Asked::Read, Answer::Damaged, 1);
        let read = store.read(&a, range.clone()).await.unwrap();
        assert!(read == noise(1000), "{range:?}");
        fake.plan(Asked::Read, Answer::Damaged, 3);
        let error = store.read(&a, range).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
    }
}

#[tokio::test]
async fn preparing_proves_that_creating_is_conditional() {
    let fake = Gcs::start();
    let store = store(&fake);
    store.prepare().await.unwrap();
    assert!(names(&fake).is_empty(), "the probe is deleted again");

    // Who may only read is told what is missing.
    fake.plan(Asked::Create, Answer::Refuse(403), 1);
    let error = store.prepare().await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Denied, "{error}");
    assert!(
        error.to_string().contains("storage.objects.create"),
        "{error}"
    );

    let fake = Gcs::start();
    fake.ignore_conditions();
    let error = self::store(&fake).prepare().await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("ifGenerationMatch"), "{error}");
    assert!(names(&fake).is_empty() || names(&fake) == ["archive/.perennial-probe"]);
}

#[tokio::test]
async fn who_may_not_delete_can_do_everything_else() {
    let fake = Gcs::start();
    let store = store(&fake);
    fake.forbid_deleting();
    for _ in 0..3 {
        store.prepare().await.unwrap();
    }
    // One probe stays, not one for each start, and the archive is empty.
    assert_eq!(names(&fake), ["archive/.perennial-probe"]);
    assert!(store.list("", None).await.unwrap().is_empty());
    let a = name("a");
    assert_eq!(store.create(&a, one("x")).await.unwrap(), Created::New);
    let again = store.create(&a, one("y")).await.unwrap();
    assert_eq!(again, Created::AlreadyPresent);
    let again = upload(&*store, "a", &noise(10)).await.unwrap();
    assert_eq!(again, Created::AlreadyPresent);
    assert_eq!(store.read(&a, None).await.unwrap(), "x");
    let error = store.delete(&a).await.unwrap_err();
    assert!(
        error.to_string().contains("storage.objects.delete"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixteen_may_prepare_at_once() {
    let fake = Gcs::start();
    for _ in 0..4 {
        let all: Vec<_> = (0..16)
            .map(|_| {
                let store = store(&fake);
                tokio::spawn(async move { store.prepare().await })
            })
            .collect();
        for one in all {
            one.await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn keys_and_storage_classes_are_asked_for() {
    let fake = Gcs::start();
    let key = "projects/p/locations/eu/keyRings/r/cryptoKeys/k";
    let url = format!(
        "{}&kms-key-name={key}&snapshot-storage-class=nearline",
        fake.url("archive")
    );
    let store = open(&url).unwrap();
    let snapshot = "timelines/00000001-0000000000000000000000000000000000000000/snapshots/\
                    00000000000000000014-1795193009522.rdb.blocks";
    upload(&*store, snapshot, &noise(10)).await.unwrap();
    store
        .create(&name("archive.json"), one("{}"))
        .await
        .unwrap();
    let asked_for = |name: &str| fake.class_and_key(&format!("archive/{name}")).unwrap();
    assert_eq!(asked_for(snapshot), ("NEARLINE".to_owned(), key.to_owned()));
    assert_eq!(asked_for("archive.json"), (String::new(), key.to_owned()));
}
