//! Archives on S3: the loop over it, what its refusals are turned into, and what it holds in memory.

use std::time::Duration;

use perennial::archive::layout::ObjectName;
use perennial::store::{Created, Store, StoreErrorKind};

use crate::harness::s3::{BUCKET, Canned, KEEPER, READER, SECRET, WRITER, environment};
use crate::harness::{
    Archive, DEADLINE, Digest, Perennial, Port, REDIS_7_0, S3Server, assert_same, run_cli_with,
    until,
};

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

/// `status` must fail with exit code 1 and say this, and no secret.
#[track_caller]
fn status_says(url: &str, environment: &[(String, String)], expected: &str) {
    let environment: Vec<(&str, &str)> = environment
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let (code, out, err) = run_cli_with(&["status", "--archive", url], &environment);
    assert_eq!(code, 1, "{expected}: {out} {err}");
    assert!(err.contains(expected), "{expected:?} is not in: {err}");
    assert!(!err.contains(SECRET), "{err}");
    assert!(!err.contains("Signature="), "{err}");
}

#[test]
fn whoever_is_not_let_in_is_told_why() {
    let server = S3Server::in_process();
    let good = environment(WRITER, SECRET);
    let url = server.url("a");
    status_says(&url, &good, "there is no archive");
    let other = url.replace("s3://tests/", "s3://no-such-bucket/");
    status_says(
        &other,
        &good,
        "there is no bucket no-such-bucket: create it",
    );
    status_says(
        &url,
        &environment("AKIAWRONG", SECRET),
        "does not know the access key",
    );
    status_says(
        &url,
        &environment(WRITER, "another-secret"),
        "the secret key does not belong to the access key",
    );
    status_says(
        &format!("{url}&anonymous=true"),
        &good,
        "refuses requests without credentials (anonymous=true): allow s3:GetObject",
    );
    let nobody = environment("", "");
    status_says(&url, &nobody, "no credentials");
    let nowhere = Port::reserve();
    let down = url.replace(&server.endpoint(), &format!("http://{}", nowhere.address()));
    status_says(&down, &good, "cannot be reached");
    let unknown = url.replace(&server.endpoint(), "http://no-such-host.invalid");
    status_says(&unknown, &good, "cannot be resolved");
    // Plain HTTP where TLS is expected.
    let tls = url.replace("http://", "https://");
    status_says(&tls, &good, "https://127.0.0.1");
}

/// Answers as Amazon gives them, in its words.
#[test]
fn what_s3_answers_is_said_in_plain_words() {
    let server = S3Server::in_process();
    let url = server.url("a");
    let good = environment(WRITER, SECRET);
    let cases = [
        (
            Canned::error(
                301,
                "PermanentRedirect",
                "The bucket you are attempting to access must be addressed using the specified endpoint.",
            )
            .with("x-amz-bucket-region", "eu-west-1"),
            "the bucket is in eu-west-1, not in us-east-1: write region=eu-west-1",
        ),
        (
            Canned::error(
                400,
                "AuthorizationHeaderMalformed",
                "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'ap-south-1'",
            ),
            "the bucket is in ap-south-1",
        ),
        (
            Canned::error(403, "AccessDenied", "Access Denied"),
            "allow s3:GetObject on arn:aws:s3:::tests/a/*",
        ),
        (
            Canned::error(
                403,
                "RequestTimeTooSkewed",
                "The difference between the request time and the current time is too large.",
            ),
            "set the clock",
        ),
        (
            Canned::error(400, "ExpiredToken", "The provided token has expired."),
            "the credentials have expired",
        ),
        (
            Canned::error(503, "SlowDown", "Please reduce your request rate."),
            "asks us to slow down",
        ),
        (
            Canned::error(429, "TooManyRequests", "Please reduce your request rate."),
            "asks us to slow down",
        ),
        (
            Canned::error(500, "InternalError", "We encountered an internal error."),
            "it cannot now (InternalError",
        ),
        (
            Canned {
                status: 405,
                headers: Vec::new(),
                body: "<html><body>nginx</body></html>".into(),
            },
            "does not answer as S3 does",
        ),
    ];
    for (canned, expected) in cases {
        server.control().answer_every(1, canned);
        status_says(&url, &good, expected);
    }
}

#[test]
fn restore_fails_in_plain_words_as_well() {
    let server = S3Server::in_process();
    let archive = server.archive();
    let denied = Canned::error(403, "AccessDenied", "Access Denied");
    server.control().answer_every(1, denied);
    let target = archive.beside("restored");
    let arguments = [
        "restore",
        "--archive",
        &archive.url(),
        "--to",
        target.to_str().unwrap(),
    ];
    let (code, _, err) = run_cli_with(&arguments, &archive.environment());
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("allow s3:GetObject"), "{err}");
    assert!(!target.exists());
}

#[test]
fn run_says_why_it_waits_and_goes_on_when_it_can() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let mut s3 = S3Server::in_process();
    let archive = s3.archive();
    s3.stop();
    let mut perennial = Perennial::follow_url(&server.url(), &archive, &[]);
    perennial.until_logged("not ready: prepare s3://tests/a");
    perennial.until_logged("cannot be reached");
    s3.start_again();
    archive.until_durable();
    // It goes away in the middle, and WAIT confirms nothing meanwhile.
    s3.stop();
    let mut client = server.client();
    client.line("SET during 1");
    assert_eq!(client.line("WAIT 1 2000").integer(), 0);
    s3.start_again();
    client.wait_until_stored(DEADLINE);
    perennial.assert_healthy();
    assert!(!perennial.log().contains(SECRET), "{}", perennial.log());
}

/// Every address of this store has an `&` in it.
#[test]
fn what_a_message_says_to_run_runs_as_it_is_printed() {
    let Some(mut server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let s3 = S3Server::in_process();
    let archive = s3.archive();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    server.client().line("SET old 1");
    server.client().wait_until_stored(DEADLINE);
    perennial.kill();
    server.lose_everything();
    server.client().line("SET new 1");
    perennial.start_again();
    let status = archive.until("the suspect root is durable", DEADLINE, |status| {
        status.suspects() == [2] && status.timelines[1].end.is_some()
    });
    let command = "perennial accept 2 --archive ";
    for text in [status.problems.join("\n"), perennial.log()] {
        let (_, address) = text.split_once(command).unwrap();
        let address = address.split(['`', '\n']).next().unwrap();
        let program = env!("CARGO_BIN_EXE_perennial");
        let accept = format!("'{program}' accept 2 --archive {address}");
        let output = std::process::Command::new("sh")
            .args(["-c", &accept])
            .envs(archive.environment())
            .output()
            .unwrap();
        assert!(output.status.success(), "{accept}: {output:?}");
    }
    assert_eq!(archive.status().head_timeline(), 2);
}

#[test]
fn who_may_only_read_sees_the_archive_and_cannot_follow() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let s3 = S3Server::in_process();
    let archive = s3.archive();
    let mut writer = Perennial::follow(&server, &archive, &[]);
    server.client().line("SET a 1");
    server.client().wait_until_stored(DEADLINE);
    writer.kill();
    let reader = Archive::at(archive.url(), environment(READER, SECRET));
    assert_eq!(
        reader.status().durable_offset,
        archive.status().durable_offset
    );
    let folder = reader.restore("restored", &[]);
    assert!(folder.join("appendonlydir").exists());
    let mut follower = Perennial::follow_url(&server.url(), &reader, &[]);
    follower.until_logged("not ready: prepare");
    follower.until_logged("allow s3:PutObject on arn:aws:s3:::tests/a/*");
    follower.assert_healthy();
}

#[test]
fn who_may_not_delete_can_follow_and_seed() {
    let Some(mut server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let s3 = S3Server::in_process();
    let archive = Archive::at(s3.url("a"), environment(KEEPER, SECRET));
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    server.client().line("SET a 1");
    server.client().wait_until_stored(DEADLINE);
    server.kill();
    server.start_again();
    server.until_master_with_data();
    perennial.assert_healthy();
    assert!(s3.folder().join("a/.perennial-probe").exists());
    assert!(archive.status().problems.is_empty());
}

#[test]
fn the_probe_goes_where_it_may_and_stays_hidden_where_it_must() {
    let s3 = S3Server::in_process();
    block_on(async {
        let probe = s3.folder().join("a/.perennial-probe");
        let writer = s3.store("a");
        writer.prepare().await.unwrap();
        assert!(!probe.exists());
        let keeper = s3.store_as("a", KEEPER);
        keeper.prepare().await.unwrap();
        assert!(probe.exists());
        assert!(keeper.list("", None).await.unwrap().is_empty());
        // One request finds it at the next start.
        let puts = |server: &S3Server| {
            let requests = server.control().requests();
            requests
                .iter()
                .filter(|line| line.starts_with("PUT"))
                .count()
        };
        let before = puts(&s3);
        keeper.prepare().await.unwrap();
        assert_eq!(puts(&s3), before + 1);
        let reader = s3.store_as("a", READER);
        let error = reader.prepare().await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Denied, "{error}");
    });
}

#[test]
fn a_store_that_ignores_conditions_is_found_out() {
    let s3 = S3Server::in_process();
    s3.ignore_conditions();
    let error = block_on(async { s3.store("a").prepare().await.unwrap_err() });
    assert_eq!(error.kind, StoreErrorKind::Invalid);
    assert!(
        error.to_string().contains("ignores If-None-Match"),
        "{error}"
    );
    // Nothing is left behind.
    assert!(!s3.folder().join("a/.perennial-probe").exists());
}

#[test]
fn a_missing_bucket_is_no_empty_archive() {
    // Not s3s-fs, which makes the bucket of an object that is put there.
    let Some(s3) = S3Server::moto() else {
        return;
    };
    let url = s3.url("a").replace("s3://tests/", "s3://missing-bucket/");
    let store = perennial::store::s3::S3Store::open_as(&url, WRITER, SECRET).unwrap();
    block_on(async {
        for error in [
            store.list("", None).await.unwrap_err(),
            store.prepare().await.unwrap_err(),
            store.read(&name("archive.json"), None).await.unwrap_err(),
            store
                .create(&name("a"), vec!["x".into()])
                .await
                .unwrap_err(),
        ] {
            assert_eq!(error.kind, StoreErrorKind::NotFound, "{error}");
            assert!(error.to_string().contains("there is no bucket"), "{error}");
        }
    });
}

#[test]
fn long_lists_come_in_pages() {
    let s3 = S3Server::in_process();
    let folder = s3.folder().join("pages/segments");
    std::fs::create_dir_all(&folder).unwrap();
    for number in 0..2345 {
        std::fs::write(folder.join(format!("{number:06}.blocks")), "x").unwrap();
    }
    block_on(async {
        let store = s3.store("pages");
        let all = store.list("segments/", None).await.unwrap();
        assert_eq!(all.len(), 2345);
        assert!(all.is_sorted_by(|a, b| a.name < b.name));
        assert!(all[0].modified.0 > 1_500_000_000_000, "{:?}", all[0]);
        let after = store
            .list("segments/", Some("segments/002000.blocks"))
            .await
            .unwrap();
        assert_eq!(after.len(), 344);
    });
}

#[test]
fn conflicts_are_tried_again_and_other_refusals_are_not() {
    let s3 = S3Server::in_process();
    let conflict = Canned::error(
        409,
        "ConditionalRequestConflict",
        "A conflicting operation occurred.",
    );
    s3.control().answer_every(2, conflict);
    block_on(async {
        let store = s3.store("a");
        for number in 0..3 {
            let object = name(&format!("object-{number}"));
            let created = store.create(&object, vec!["x".into()]).await.unwrap();
            assert_eq!(created, Created::New);
        }
        let denied = Canned::error(403, "AccessDenied", "Access Denied");
        s3.control().answer_every(1, denied);
        let before = s3.control().requests().len();
        store
            .create(&name("b"), vec!["x".into()])
            .await
            .unwrap_err();
        assert_eq!(s3.control().requests().len(), before + 1);
    });
}

#[test]
fn one_refusal_in_ten_is_not_noticed() {
    let Some(mut server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let s3 = S3Server::in_process();
    let archive = s3.archive();
    s3.control().answer_every(
        10,
        Canned::error(503, "SlowDown", "Please reduce your request rate."),
    );
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    for number in 0..20 {
        let mut client = server.client();
        client.line(&format!("SET key:{number} 1"));
        client.wait_until_stored(DEADLINE);
    }
    let before = Digest::of(&server.address());
    server.kill();
    server.start_again();
    server.until_master_with_data();
    assert_same(&before, &Digest::of(&server.address()));
    perennial.assert_healthy();
}

/// The SDK takes XML that ends early for a shorter list; an archive that seems to hold less is worse than none.
#[test]
fn a_list_that_is_torn_is_no_shorter_list() {
    let s3 = S3Server::in_process();
    let store = s3.store("a");
    let begin = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult>";
    let counted = "<KeyCount>2</KeyCount><IsTruncated>false</IsTruncated>";
    let first = "<Contents><Key>a/one</Key><Size>3</Size></Contents>";
    let second = "<Contents><Key>a/two</Key><Size>3</Size></Contents>";
    let listed = |body: String| {
        let canned = Canned {
            status: 200,
            headers: Vec::new(),
            body,
        };
        s3.control().answer_every(1, canned);
        block_on(store.list("", None))
    };
    let end = "</ListBucketResult>";
    for space in ["", "\n"] {
        let whole = format!("{begin}{counted}{first}{second}{end}{space}");
        assert_eq!(listed(whole).unwrap().len(), 2);
    }
    for torn in [
        String::new(),
        "<html><body>welcome</body></html>".to_owned(),
        begin.to_owned(),
        format!("{begin}{end}"),
        format!("{begin}{first}"),
        format!("{begin}{counted}"),
        format!("{begin}{counted}{first}"),
        format!("{begin}{counted}{first}<Contents><Key>a/tw"),
        format!("{begin}{counted}{first}<Contents><Key>a/two</Key><Size>1"),
        format!("{begin}{counted}{first}{second}</ListBucketRes"),
    ] {
        let error = listed(torn.clone()).expect_err(&torn);
        assert_eq!(error.kind, StoreErrorKind::Unavailable, "{torn}: {error}");
    }
}

/// S3 begins to answer a completion before it knows how it ends: an error may come with status 200.
#[test]
fn a_completion_that_fails_with_status_200_has_failed() {
    let s3 = S3Server::in_process();
    block_on(async {
        let store = s3.store("a");
        let object = name("snapshots/a");
        let mut upload = store.begin_upload(&object).await.unwrap();
        for _ in 0..2 {
            upload
                .write(vec![7_u8; 9 * 1024 * 1024].into())
                .await
                .unwrap();
        }
        let late = Canned {
            status: 200,
            ..Canned::error(200, "InternalError", "We encountered an internal error.")
        };
        s3.control().answer_those_with("POST", late);
        let error = upload.complete().await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
        s3.control().answer_as_usual();
        assert!(store.list("", None).await.unwrap().is_empty());
    });
}

/// Parts that a crash left are freed after a day, those of others and of living uploads are not.
#[test]
fn old_uploads_are_given_up() {
    let s3 = S3Server::in_process();
    let object = "timelines/00000001-0000000000000000000000000000000000000000/snapshots/\
                  00000000000000000010-1700000000000.rdb.blocks";
    let upload = |key: &str, id: &str, initiated: &str| {
        format!(
            "<Upload><Key>{key}</Key><UploadId>{id}</UploadId><Initiated>{initiated}</Initiated></Upload>"
        )
    };
    let (long_ago, future) = ("2020-01-01T00:00:00.000Z", "2100-01-01T00:00:00.000Z");
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListMultipartUploadsResult>\
         <Bucket>{BUCKET}</Bucket><IsTruncated>false</IsTruncated>{}{}{}</ListMultipartUploadsResult>",
        upload(&format!("a/{object}"), "old-one", long_ago),
        upload(&format!("a/{object}"), "young-one", future),
        upload("a/somebody-elses.tar", "foreign-one", long_ago),
    );
    let canned = Canned {
        status: 200,
        headers: Vec::new(),
        body,
    };
    s3.control().answer_those_with("?uploads", canned);
    block_on(async { s3.store("a").prepare().await.unwrap() });
    let requests = s3.control().requests();
    let given_up: Vec<&String> = requests
        .iter()
        .filter(|line| line.starts_with("DELETE") && line.contains("uploadId"))
        .collect();
    assert_eq!(given_up.len(), 1, "{requests:#?}");
    assert!(given_up[0].contains("uploadId=old-one"), "{given_up:?}");
}

/// A store that gives the same page of uploads for ever does not keep anybody from starting.
#[test]
fn uploads_are_not_looked_at_for_ever() {
    let s3 = S3Server::in_process();
    let canned = Canned {
        status: 200,
        headers: Vec::new(),
        body: format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListMultipartUploadsResult><Bucket>{BUCKET}</Bucket>\
             <IsTruncated>true</IsTruncated><NextKeyMarker>a/x</NextKeyMarker>\
             <NextUploadIdMarker>1</NextUploadIdMarker></ListMultipartUploadsResult>"
        ),
    };
    s3.control().answer_those_with("uploads", canned);
    block_on(async {
        let limit = Duration::from_secs(60);
        let store = s3.store("a");
        let prepared = tokio::time::timeout(limit, store.prepare());
        prepared.await.expect("it ends").unwrap();
    });
    let requests = s3.control().requests();
    let pages = requests.iter().filter(|line| line.contains("uploads"));
    assert_eq!(pages.count(), 20);
}

/// An upload that fails, is given up or is dropped leaves no parts in the store.
#[test]
fn parts_of_uploads_that_come_to_nothing_are_freed() {
    let s3 = S3Server::in_process();
    let parts = || {
        let root = s3.folder().parent().unwrap().to_owned();
        let entries = std::fs::read_dir(root).unwrap();
        entries
            .filter(|entry| {
                let name = entry.as_ref().unwrap().file_name();
                name.to_string_lossy().contains(".upload")
            })
            .count()
    };
    let piece = || bytes::Bytes::from(vec![7_u8; 9 * 1024 * 1024]);
    block_on(async {
        let store = s3.store("a");
        let object = name("snapshots/a");
        let mut aborted = store.begin_upload(&object).await.unwrap();
        aborted.write(piece()).await.unwrap();
        aborted.write(piece()).await.unwrap();
        assert!(parts() > 0, "no part is being sent");
        assert!(aborted.held_bytes() <= 2 * 8 * 1024 * 1024);
        aborted.abort().await;
        assert_eq!(parts(), 0);

        let mut failing = store.begin_upload(&object).await.unwrap();
        failing.write(piece()).await.unwrap();
        s3.control().answer_those_with(
            "partNumber",
            Canned::error(403, "AccessDenied", "Access Denied"),
        );
        let mut written = Ok(());
        for _ in 0..3 {
            written = failing.write(piece()).await;
            if written.is_err() {
                break;
            }
        }
        let error = written.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Denied, "{error}");
        s3.control().answer_as_usual();
        // It is lost for good.
        assert!(failing.write(piece()).await.is_err());
        assert!(failing.complete().await.is_err());
        assert_eq!(parts(), 0);

        let mut dropped = store.begin_upload(&object).await.unwrap();
        dropped.write(piece()).await.unwrap();
        dropped.write(piece()).await.unwrap();
        drop(dropped);
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        until("the parts of the dropped one are freed", DEADLINE, || {
            parts() == 0
        });
        assert!(store.list("", None).await.unwrap().is_empty());
    });
}
