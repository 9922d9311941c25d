//! An archive on Google Cloud Storage, which a fake in this process plays: the same promise over `gs://`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::harness::gcs::{Answer, Asked, Gcs, TOKEN};
use crate::harness::random::Random;
use crate::harness::workload::{write_at_random, write_everything};
use crate::harness::{
    Archive, DEADLINE, Digest, Load, Perennial, REDIS_7_0, Writers, assert_same, run_cli,
    run_cli_with, until,
};

const MIB: usize = 1024 * 1024;
/// The size of the large data set, which compresses badly: some parts.
const MEBIBYTES: usize = 64;
/// Storing and loading it, on a small machine that does other things as well.
const DEADLINE_BIG: Duration = Duration::from_secs(120);

/// Some of everything that a bucket does on a bad day.
fn a_bad_day(fake: &Gcs) {
    for _ in 0..3 {
        for asked in [Asked::Create, Asked::Read, Asked::List, Asked::Part] {
            fake.plan(asked, Answer::Refuse(503), 1);
            fake.plan(asked, Answer::Late(Duration::from_millis(20)), 3);
            fake.plan(asked, Answer::Refuse(429), 1);
            fake.plan(asked, Answer::DoneBut(503), 1);
            fake.plan(asked, Answer::Damaged, usize::from(asked == Asked::Create));
        }
    }
}

#[test]
fn the_loop_closes_whatever_the_bucket_answers() {
    // After each seed some looks fail: what is written meanwhile must still be in the backlog.
    let Some(mut server) = REDIS_7_0.start(&["--repl-backlog-size", "64mb"]) else {
        return;
    };
    let fake = Gcs::start();
    let archive = Archive::at(fake.url("redis/cache"), Vec::new());
    write_everything(&mut server.client(), 0);
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    let mut random = Random::new();
    for generation in 1..=2 {
        a_bad_day(&fake);
        let mut client = server.client();
        write_everything(&mut client, generation);
        write_at_random(&mut client, &mut random, 300);
        client.wait_until_stored(DEADLINE);
        let before = Digest::of(&server.address());
        server.kill();
        if generation == 2 {
            perennial.kill();
            perennial.start_again();
        }
        let _ = fs::remove_file(server.folder().join("dump.rdb"));
        server.start_again();
        server.until_master_with_data();
        assert_same(&before, &Digest::of(&server.address()));
        archive.until("the child timeline is there", DEADLINE, |status| {
            status.timelines.len() as u64 == generation + 1
        });
    }
    fake.forget_plans();
    server.client().wait_until_stored(DEADLINE);
    let status = archive.status();
    status.assert_chain_of(3);
    assert_eq!(status.archive, archive.url());
    assert!(
        fake.objects()
            .iter()
            .all(|(name, _)| name.starts_with("redis/cache/"))
    );
    perennial.assert_healthy();

    let before = Digest::of(&server.address());
    let folder = archive.restore("restored", &[]);
    let restored = REDIS_7_0.start_on(&folder).unwrap();
    assert_same(&before, &Digest::of(&restored.address()));
}

#[test]
fn a_bucket_that_refuses_for_a_while_loses_and_stalls_nothing() {
    let Some(mut server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let fake = Gcs::start();
    let archive = Archive::at(fake.url("archive"), Vec::new());
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    let writers = Writers::start(&server.address(), Load::default());
    writers.until_confirmed_more(50);
    fake.plan(Asked::Create, Answer::Refuse(503), usize::MAX);
    let refused = fake.count(Asked::Create);
    until("pieces are refused", DEADLINE, || {
        fake.count(Asked::Create) > refused + 2
    });
    let mut client = server.client();
    client.line("SET unconfirmed 1");
    assert_eq!(
        client.line("WAIT 1 300").integer(),
        0,
        "confirmed without a store"
    );
    writers.until_acknowledged_more(100);
    fake.forget_plans();
    until("writes are confirmed again", DEADLINE, || {
        client.line("SET confirmed 1");
        client.line("WAIT 1 1000").integer() == 1
    });
    let ledger = writers.stop();
    server.kill();
    server.start_again();
    server.until_master_with_data();
    ledger.assert_all_in(&server.address());
    perennial.assert_healthy();
}

#[test]
fn a_snapshot_whose_upload_is_broken_off_and_repeated_is_whole() {
    let Some(mut server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let fake = Gcs::start();
    let archive = Archive::at(fake.url("archive"), Vec::new());
    let mut random = Random::fixed(7);
    let mut client = server.client();
    for number in 0..MEBIBYTES {
        let key = format!("part:{number}");
        client.ok(&[b"SET".as_slice(), key.as_bytes(), &random.bytes(MIB)]);
    }
    let mut perennial = Perennial::follow_url(&server.url(), &archive, &[]);
    // Killed in the middle of it: nothing appears, and the next one is whole.
    until("the snapshot is under way", DEADLINE_BIG, || {
        fake.count(Asked::Part) >= 3
    });
    perennial.kill();
    let is_snapshot = |(name, _): &(String, usize)| name.contains("/snapshots/");
    assert!(!fake.objects().iter().any(is_snapshot));
    // Two parts of the next one have to be sent again.
    fake.plan(Asked::Part, Answer::Late(Duration::ZERO), 2);
    fake.plan(Asked::Part, Answer::Refuse(503), 1);
    fake.plan(Asked::Part, Answer::Half, 1);
    perennial.start_again();
    archive.until("the snapshot is stored", DEADLINE_BIG, |status| {
        status.durable_offset.is_some()
    });
    let stored: Vec<usize> = fake
        .objects()
        .into_iter()
        .filter(is_snapshot)
        .map(|(_, bytes)| bytes)
        .collect();
    assert_eq!(stored.len(), 1, "{stored:?}");
    assert!(stored[0] > MEBIBYTES * MIB, "{stored:?}");
    client.line("SET behind 1");
    client.wait_until_stored(DEADLINE_BIG);
    let before = Digest::of(&server.address());
    server.kill();
    let _ = fs::remove_file(server.folder().join("dump.rdb"));
    server.start_again();
    until("it is seeded", DEADLINE_BIG, || {
        server.is_master() && server.keys().is_some_and(|keys| keys > MEBIBYTES as u64)
    });
    assert_same(&before, &Digest::of(&server.address()));
    perennial.assert_healthy();
}

/// What a one-shot command says, which must fail.
#[track_caller]
fn complaint(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let (code, out, err) = run_cli_with(arguments, environment);
    assert_eq!(code, 1, "{arguments:?}: {out} {err}");
    err
}

#[test]
fn what_is_wrong_is_said_in_different_words() {
    let fake = Gcs::start();
    let url = fake.url("archive");
    let status = ["status", "--archive", &url];
    let elsewhere = fake.url_of("buckte", "archive");
    let err = complaint(&["status", "--archive", &elsewhere], &[]);
    assert!(err.contains("there is no bucket buckte"), "{err}");
    assert!(complaint(&status, &[]).contains("there is no archive"));
    for (code, expected) in [
        (401, "not open to everybody"),
        (403, "storage.objects.get"),
        (503, "cannot answer now"),
        (429, "too many requests"),
    ] {
        fake.plan(Asked::Read, Answer::Refuse(code), 10);
        let err = complaint(&status, &[]);
        assert!(err.contains(expected), "{err}");
        fake.forget_plans();
    }
    let down = "gs://bucket/archive?endpoint=http://127.0.0.1:1&anonymous=true";
    let err = complaint(&["status", "--archive", down], &[]);
    assert!(err.contains("cannot be reached"), "{err}");

    let (code, _, err) = run_cli(&["status", "--archive", "gs://bucket/p?regoin=eu"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("unknown parameter \"regoin\""), "{err}");
}

/// The same from every command, and what it lacks who may only read.
#[test]
fn every_command_says_what_is_wrong() {
    let fake = Gcs::start();
    let (url, elsewhere) = (fake.url("archive"), fake.url_of("buckte", "archive"));
    let down = "gs://bucket/archive?endpoint=http://127.0.0.1:1&anonymous=true";
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("restored");
    let target = target.to_str().unwrap();
    let commands = |url: &str| -> Vec<Vec<String>> {
        let with = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        vec![
            with(&["status", "--archive", url]),
            with(&["ls", "--archive", url]),
            with(&["accept", "2", "--archive", url]),
            with(&["restore", "--archive", url, "--to", target]),
        ]
    };
    let denied = (url.as_str(), Some(403), "storage.objects.get");
    let cases = [
        (elsewhere.as_str(), None, "there is no bucket buckte"),
        denied,
        (down, None, "cannot be reached"),
    ];
    for (url, refused, expected) in cases {
        for arguments in commands(url) {
            if let Some(code) = refused {
                fake.plan(Asked::Read, Answer::Refuse(code), 10);
            }
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let err = complaint(&arguments, &[]);
            assert!(err.contains(expected), "{arguments:?}: {err}");
            fake.forget_plans();
        }
    }
    assert!(!Path::new(target).exists());
}

#[test]
fn run_keeps_trying_and_says_why() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let fake = Gcs::start();
    fake.plan(Asked::Create, Answer::Refuse(403), usize::MAX);
    let archive = Archive::at(fake.url("archive"), Vec::new());
    let mut perennial = Perennial::follow_url(&server.url(), &archive, &[]);
    perennial.until_logged("storage.objects.create");
    perennial.assert_healthy();
    fake.forget_plans();
    archive.until("it goes on by itself", 3 * DEADLINE, |status| {
        status.durable_offset.is_some()
    });
}

/// Credentials of a person, as `gcloud auth application-default login` leaves them.
fn credentials(folder: &Path, fake: &Gcs) -> String {
    let path = folder.join("credentials.json");
    let text = format!(
        r#"{{"type": "authorized_user", "client_id": "id", "client_secret": "a-secret-of-the-client",
            "refresh_token": "a-secret-of-the-person", "token_uri": "{}/token"}}"#,
        fake.endpoint()
    );
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn credentials_are_found_used_and_never_shown() {
    let fake = Gcs::start();
    fake.want_token();
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().to_str().unwrap().to_owned();
    let file = credentials(folder.path(), &fake);
    let url = format!("gs://bucket/archive?endpoint={}", fake.endpoint());
    let status = ["status", "--archive", &url];
    let found = [("GOOGLE_APPLICATION_CREDENTIALS", file.as_str())];

    // With the token, the bucket answers: only the archive is missing.
    assert!(complaint(&status, &found).contains("there is no archive"));
    assert_eq!(fake.count(Asked::Token), 1);
    let open = fake.url("archive");
    let err = complaint(&["status", "--archive", &open], &found);
    assert!(err.contains("take anonymous=true out"), "{err}");

    let mut said = Vec::new();
    for code in [400, 401] {
        fake.plan(Asked::Token, Answer::Refuse(code), 100);
        let err = complaint(&status, &found);
        assert!(err.contains("no usable credentials"), "{err}");
        said.push(err);
        fake.forget_plans();
    }
    fs::write(&file, "{}").unwrap();
    said.push(complaint(&status, &found));
    fs::remove_file(&file).unwrap();
    said.push(complaint(&status, &found));
    // Neither a file, nor a home directory with one, nor a machine of Google's.
    let none = [
        ("HOME", home.as_str()),
        ("GCE_METADATA_HOST", "127.0.0.1:1"),
    ];
    said.push(complaint(&status, &none));
    for err in said {
        assert!(err.contains("GOOGLE_APPLICATION_CREDENTIALS"), "{err}");
        for secret in ["a-secret", TOKEN] {
            assert!(!err.contains(secret), "{err}");
        }
    }
}
