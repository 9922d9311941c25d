//! What is asked of S3: headers, permissions, and the words in which each command says what is wrong.

use bytes::Bytes;
use perennial::archive::layout::{
    ArchiveDocument, ArchiveId, DOCUMENT_FORMAT, Object, Source, Span, TimelineDocument,
};
use perennial::position::{Offset, ReplicationId, TimelineSeq, UnixMillis};
use perennial::store::{Store, memory::MemoryStore};

use crate::harness::random::Random;
use crate::harness::s3::{Canned, READER, SECRET, Variables, WRITER, environment};
use crate::harness::{
    Archive, DEADLINE, Digest, Perennial, Port, REDIS_7_0, S3Server, assert_same, run_cli_with,
};

const ID: ReplicationId = ReplicationId::from_raw([7; 20]);

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

/// An archive with a suspect timeline that `accept` can choose: names are enough for that.
async fn write_suspect(store: &dyn Store) {
    let archive = ArchiveDocument {
        format: DOCUMENT_FORMAT,
        archive: ArchiveId::from_raw([7; 16]),
        name: None,
        created_at: UnixMillis(1),
    };
    let put = async |object: Object, body: Bytes| {
        store.create(&object.name(), vec![body]).await.unwrap();
    };
    put(Object::Archive, archive.encode()).await;
    for number in 1..=2 {
        let seq = TimelineSeq::new(number);
        let document = TimelineDocument {
            format: DOCUMENT_FORMAT,
            seq,
            id: ID,
            parent: None,
            start: Offset::ZERO,
            mapped: false,
            suspect: (number == 2).then(|| "a test".to_owned()),
            created_at: UnixMillis(1),
            created_by: "a test".to_owned(),
            source: Source {
                server: "redis".to_owned(),
                version: "7.0.15".to_owned(),
                run_id: "?".to_owned(),
                address: "?".to_owned(),
                replica: false,
            },
        };
        put(Object::Timeline { seq, id: ID }, document.encode()).await;
        put(snapshot(number), Bytes::from_static(b"never read")).await;
    }
}

fn snapshot(number: u32) -> Object {
    Object::Snapshot {
        seq: TimelineSeq::new(number),
        id: ID,
        offset: Offset::new(5),
        at: UnixMillis(1),
        derived: false,
    }
}

fn segment() -> Object {
    Object::Segment {
        seq: TimelineSeq::FIRST,
        id: ID,
        span: Span {
            first: Offset::new(6),
            last: Offset::new(9),
            first_at: UnixMillis(1),
            last_at: UnixMillis(1),
        },
        merged: false,
    }
}

/// A small segment, a small snapshot, and one of several parts.
async fn write_all(store: &dyn Store) {
    let body = vec![Bytes::from_static(b"small")];
    store.create(&segment().name(), body).await.unwrap();
    for number in 1..=2_usize {
        let object = snapshot(u32::try_from(number).unwrap());
        let mut upload = store.begin_upload(&object.name()).await.unwrap();
        let bytes = Bytes::from(vec![7_u8; 9 * 1024 * 1024]);
        upload
            .write(bytes.slice(..if number == 1 { 5 } else { bytes.len() }))
            .await
            .unwrap();
        upload.complete().await.unwrap();
    }
}

#[test]
fn requests_carry_what_the_address_asks_for() {
    let cases = [
        ("", None, None, false),
        ("&checksums=when-supported", None, None, true),
        ("&sse=AES256", Some("AES256"), None, false),
        (
            "&sse=aws:kms&kms-key-id=the-key",
            Some("aws:kms"),
            Some("the-key"),
            false,
        ),
    ];
    for (parameters, encryption, key, checksums) in cases {
        let server = S3Server::in_process();
        let url = server.url("a") + parameters;
        let store = perennial::store::s3::S3Store::open_as(&url, WRITER, SECRET).unwrap();
        block_on(write_all(&store));
        let mut seen = 0;
        for (sort, headers) in server.control().headers() {
            let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
            let creates = matches!(sort.as_str(), "PutObject" | "CreateMultipartUpload");
            assert_eq!(
                header("x-amz-server-side-encryption"),
                encryption.filter(|_| creates),
                "{parameters} {sort}"
            );
            assert_eq!(
                header("x-amz-server-side-encryption-aws-kms-key-id"),
                key.filter(|_| creates)
            );
            let summed = headers
                .keys()
                .any(|name| name.as_str().starts_with("x-amz-checksum-crc"));
            if matches!(sort.as_str(), "PutObject" | "UploadPart") {
                assert_eq!(summed, checksums, "{parameters} {sort}: {headers:?}");
            }
            let is_conditional = header("if-none-match") == Some("*");
            let appears = matches!(sort.as_str(), "PutObject" | "CompleteMultipartUpload");
            assert_eq!(is_conditional, appears, "{sort}");
            seen += usize::from(creates);
        }
        assert_eq!(seen, 3, "{parameters}");
        let sorts = server.control().sorts();
        assert_eq!(sorts["PutObject"], 2, "{sorts:?}");
        assert_eq!(sorts["UploadPart"], 2, "{sorts:?}");
        assert_eq!(sorts.values().sum::<usize>(), 6, "{sorts:?}");
    }
}

#[test]
fn moto_keeps_encryption_and_storage_class() {
    let Some(server) = S3Server::moto() else {
        return;
    };
    let url = server.url("a") + "&sse=AES256&snapshot-storage-class=STANDARD_IA";
    let store = perennial::store::s3::S3Store::open_as(&url, WRITER, SECRET).unwrap();
    block_on(write_all(&store));
    for (object, class) in [(segment(), false), (snapshot(1), true), (snapshot(2), true)] {
        let head = server.head(&format!("a/{}", object.name()));
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert!(
            head.contains("x-amz-server-side-encryption: aes256"),
            "{head}"
        );
        assert_eq!(
            head.contains("x-amz-storage-class: standard_ia"),
            class,
            "{head}"
        );
    }
}

/// The policies of the documentation, for the archive of the tests.
fn documented_policies() -> Vec<String> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let text = std::fs::read_to_string(path).unwrap();
    text.split("```\n")
        .filter(|block| block.starts_with("{\"Version\": \"2012-10-17\""))
        .map(|block| {
            let text = block
                .replace("my-bucket", "tests")
                .replace("redis/orders", "a");
            let mut policy: serde_json::Value = serde_json::from_str(&text).unwrap();
            for statement in policy["Statement"].as_array_mut().unwrap() {
                // moto takes a condition on a list for one that never holds.
                statement.as_object_mut().unwrap().remove("Condition");
            }
            policy.to_string()
        })
        .collect()
}

#[test]
fn the_documented_policies_are_enough_and_each_action_is_needed() {
    let policies = documented_policies();
    let [without_delete, with_delete] = policies.as_slice() else {
        panic!("{policies:?}");
    };
    assert!(!without_delete.contains("Delete"));
    let lacking: Vec<(&str, String)> = ["s3:PutObject", "s3:GetObject", "s3:ListBucket"]
        .into_iter()
        .map(|action| (action, without_delete.replace(action, "s3:GetObjectAcl")))
        .collect();
    let mut all = vec![without_delete.as_str(), with_delete.as_str()];
    all.extend(lacking.iter().map(|(_, policy)| policy.as_str()));
    let Some((moto, users)) = S3Server::moto_with_policies(&all) else {
        return;
    };
    for (number, user) in users[..2].iter().enumerate() {
        let Some(mut server) = REDIS_7_0.start(&[]) else {
            return;
        };
        // An archive of its own for each, below the prefix that the policy speaks of.
        let archive = Archive::at(moto.url(&format!("a/{number}")), user.clone());
        let mut random = Random::new();
        for key in 0..10 {
            let key = format!("large:{key}");
            let value = random.bytes(1024 * 1024);
            server
                .client()
                .ok(&[b"SET".as_slice(), key.as_bytes(), &value]);
        }
        let mut perennial = Perennial::follow(&server, &archive, &[]);
        let mut client = server.client();
        client.line("SET a 1");
        client.wait_until_stored(DEADLINE);
        let before = Digest::of(&server.address());
        server.kill();
        server.start_again();
        server.until_master_with_data();
        assert_same(&before, &Digest::of(&server.address()));
        perennial.assert_healthy();
        assert!(archive.status().problems.is_empty());
        assert!(archive.restore("restored", &[]).exists());
        let elsewhere = Archive::at(moto.url("b"), user.clone());
        let error = elsewhere.try_status().unwrap_err();
        assert!(
            error.contains("allow s3:GetObject on arn:aws:s3:::tests/b/*"),
            "{error}"
        );
    }
    let nowhere = Port::reserve();
    for ((action, _), user) in lacking.iter().zip(&users[2..]) {
        let archive = Archive::at(moto.url("a/new"), user.clone());
        let url = format!("redis://{}", nowhere.address());
        let mut follower = Perennial::follow_url(&url, &archive, &[]);
        follower.until_logged(&format!("allow {action} on arn:aws:s3:::tests"));
        follower.assert_healthy();
    }
}

/// Each thing that can be wrong with a bucket is said in its own words by every command that ends, with exit code 1;
/// `run` says the same and goes on trying.
#[test]
fn every_command_says_what_is_wrong_and_run_goes_on() {
    let s3 = S3Server::in_process();
    block_on(write_suspect(&s3.store("a")));
    let good = environment(WRITER, SECRET);
    let url = s3.url("a");
    let nowhere = Port::reserve();
    let down = url.replace(&s3.endpoint(), &format!("http://{}", nowhere.address()));
    let no_bucket = Canned::error(404, "NoSuchBucket", "The specified bucket does not exist");
    let moved = Canned::error(301, "PermanentRedirect", "Use the specified endpoint.")
        .with("x-amz-bucket-region", "eu-west-1");
    let skewed = Canned::error(403, "RequestTimeTooSkewed", "The difference is too large.");
    let cases: [(&str, Variables, Option<Canned>, &str); 6] = [
        (
            &url,
            good.clone(),
            Some(no_bucket),
            "there is no bucket tests",
        ),
        (
            &url,
            environment("AKIAWRONG", SECRET),
            None,
            "does not know the access key",
        ),
        (
            &url,
            environment(WRITER, "another"),
            None,
            "the secret key does not belong",
        ),
        (&url, good.clone(), Some(moved), "write region=eu-west-1"),
        (&url, good.clone(), Some(skewed), "set the clock"),
        (&down, good.clone(), None, "cannot be reached"),
    ];
    let target = tempfile::tempdir().unwrap();
    let target = target.path().join("restored");
    let target = target.to_str().unwrap();
    for (url, environment, canned, expected) in cases {
        match canned {
            Some(canned) => s3.control().answer_every(1, canned),
            None => s3.control().answer_as_usual(),
        }
        let variables: Vec<(&str, &str)> = environment
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        for arguments in [
            vec!["status", "--archive", url],
            vec!["ls", "--archive", url],
            vec!["accept", "2", "--archive", url],
            vec!["restore", "--archive", url, "--to", target],
        ] {
            let (code, out, err) = run_cli_with(&arguments, &variables);
            assert_eq!(code, 1, "{arguments:?}: {out} {err}");
            assert!(
                err.contains(expected),
                "{arguments:?}: {expected:?} is not in: {err}"
            );
            assert!(!err.contains(SECRET), "{err}");
        }
        let archive = Archive::at(url.to_owned(), environment.clone());
        let server = format!("redis://{}", nowhere.address());
        let mut follower = Perennial::follow_url(&server, &archive, &[]);
        follower.until_logged("not ready: ");
        follower.until_logged(expected);
        follower.assert_healthy();
    }
    s3.control().answer_as_usual();
    // Who may only read cannot accept, and is told what is missing.
    let reader = environment(READER, SECRET);
    let reader: Vec<(&str, &str)> = reader
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let accept = ["accept", "2", "--archive", &url];
    let (code, _, err) = run_cli_with(&accept, &reader);
    assert_eq!(code, 1, "{err}");
    assert!(
        err.contains("allow s3:PutObject on arn:aws:s3:::tests/a/*"),
        "{err}"
    );
    assert!(!std::path::Path::new(target).exists());
    // The archive itself is one that can be accepted.
    block_on(async {
        let memory = MemoryStore::new();
        write_suspect(&memory).await;
        let loaded = perennial::store::catalog::load(&memory, &[]).await.unwrap();
        assert!(loaded.catalog.suspect(TimelineSeq::new(2)).is_some());
    });
}
