//! What goes wrong outside is said in words that name the address or the object; nothing panics, nothing is left half
//! done, and what can heal is tried again.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::harness::archive::{objects_in, url_of};
use crate::harness::workload::write_everything;
use crate::harness::{
    Archive, DEADLINE, Perennial, Port, REDIS_7_0, holds_for, run_cli, run_cli_with, until,
};

/// A run that cannot work yet: it says `said`, and goes on trying.
#[track_caller]
fn says_and_keeps_trying(perennial: &mut Perennial, said: &[&str]) {
    for text in said {
        perennial.until_logged(text);
    }
    holds_for("it keeps trying", Duration::from_secs(1), || {
        perennial.exited().is_none()
    });
    perennial.assert_healthy();
}

#[test]
fn a_wrong_password_is_said_and_heals() {
    let Some(server) = REDIS_7_0.start(&["--requirepass", "right"]) else {
        return;
    };
    let archive = Archive::new();
    let url = format!("redis://:wrong@{}", server.address());
    let mut perennial = Perennial::follow_url(&url, &archive, &[]);
    says_and_keeps_trying(&mut perennial, &[&server.address(), "WRONGPASS"]);
    let log = perennial.log();
    assert!(
        !log.contains(":wrong@"),
        "the password is in the log: {log}"
    );
    let mut client = server.client();
    client.line("AUTH right");
    client.line("CONFIG SET requirepass wrong");
    archive.until_durable();
}

#[test]
fn no_password_where_one_is_needed() {
    let Some(server) = REDIS_7_0.start(&["--requirepass", "right"]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow_url(&server.url(), &archive, &[]);
    says_and_keeps_trying(&mut perennial, &[&server.address(), "NOAUTH"]);
}

#[test]
fn an_acl_user_with_few_rights_is_told_what_is_missing() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    server
        .client()
        .line("ACL SETUSER backup on >pw +ping +info");
    let archive = Archive::new();
    let url = format!("redis://backup:pw@{}", server.address());
    let mut perennial = Perennial::follow_url(&url, &archive, &[]);
    says_and_keeps_trying(&mut perennial, &[&server.address(), "NOPERM"]);
}

#[test]
fn an_unreachable_server_is_said_and_followed_when_it_comes() {
    let Some(mut server) = REDIS_7_0.start(&[]) else {
        return;
    };
    server.kill();
    let archive = Archive::new();
    let mut perennial = Perennial::follow_url(&server.url(), &archive, &[]);
    says_and_keeps_trying(&mut perennial, &[&server.address()]);
    server.start_again();
    archive.until_durable();
}

#[test]
fn a_web_server_on_the_port_is_said() {
    let port = Port::reserve();
    let listener = TcpListener::bind(("127.0.0.1", port.number)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(
                b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html></html>",
            );
        }
    });
    let archive = Archive::new();
    let url = format!("redis://{}", port.address());
    let mut perennial = Perennial::follow_url(&url, &archive, &[]);
    says_and_keeps_trying(&mut perennial, &[&port.address(), "HTTP/1.1 400"]);
}

#[test]
fn a_server_that_accepts_and_says_nothing_does_not_stop_an_orderly_end() {
    let port = Port::reserve();
    let listener = TcpListener::bind(("127.0.0.1", port.number)).unwrap();
    let archive = Archive::new();
    let url = format!("redis://{}", port.address());
    let mut perennial = Perennial::follow_url(&url, &archive, &["--shutdown-timeout", "2s"]);
    let (_held, _) = listener.accept().unwrap();
    perennial.terminate();
    assert_eq!(perennial.wait(Duration::from_secs(10)).code(), Some(0));
}

/// A folder below a plain file cannot be made, by root neither.
#[test]
fn an_archive_that_cannot_be_written_is_said() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "in the way").unwrap();
    let url = url_of(&file.join("archive"));
    let mut perennial = Perennial::run(&["--redis", &server.url(), "--archive", &url]);
    perennial.until_logged(&url);
    until("it ends in order or keeps trying", DEADLINE, || {
        perennial
            .exited()
            .is_none_or(|status| status.code() == Some(1))
    });
    assert!(
        !perennial.log().contains("panicked at"),
        "{}",
        perennial.log()
    );
    // The master does not notice.
    server.client().line("SET a b");
    assert_eq!(fs::read(&file).unwrap(), b"in the way");
}

#[test]
fn the_archive_of_another_data_set_is_refused() {
    let (Some(one), Some(other)) = (REDIS_7_0.start(&[]), REDIS_7_0.start(&[])) else {
        return;
    };
    let archive = Archive::new();
    let mut first = Perennial::follow(&one, &archive, &["--name", "orders"]);
    first.kill();
    let before = archive.objects();
    let mut second = Perennial::follow_url(&other.url(), &archive, &["--name", "sessions"]);
    let code = second.wait(DEADLINE).code();
    assert!(matches!(code, Some(1 | 2)), "{code:?}");
    let log = second.log();
    assert!(log.contains("orders") && log.contains("sessions"), "{log}");
    assert!(log.contains(&archive.url()), "{log}");
    assert!(!log.contains("panicked at"), "{log}");
    assert_eq!(archive.objects(), before, "nothing is written");
}

/// One restore that must fail with exit code 1, name `named`, and leave nothing behind.
#[track_caller]
fn restore_fails(url: &str, target: &Path, named: &str) -> String {
    let arguments = [
        "restore",
        "--archive",
        url,
        "--to",
        target.to_str().unwrap(),
    ];
    let (code, out, err) = run_cli(&arguments);
    assert_eq!(code, 1, "{named}: stdout {out}; stderr {err}");
    assert!(err.contains(named), "{named} is not named: {err}");
    assert!(!err.contains("panicked at"), "{err}");
    assert!(
        !target.exists(),
        "{named}: something was left in {}",
        target.display()
    );
    let beside: Vec<_> = fs::read_dir(target.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("restored"))
        .collect();
    assert!(
        beside.is_empty(),
        "{named}: temporary files are left: {beside:?}"
    );
    err
}

/// A small archive with every kind of object.
fn small_archive() -> Option<Archive> {
    let server = REDIS_7_0.start(&[])?;
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &[]);
    for round in 0..3 {
        write_everything(&mut server.client(), round);
        server.client().wait_until_stored(DEADLINE);
    }
    let names: Vec<String> = archive
        .objects()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    for kind in ["archive.json", "timeline.json", "/snapshots/", "/segments/"] {
        assert!(
            names.iter().any(|name| name.contains(kind)),
            "{kind}: {names:?}"
        );
    }
    Some(archive)
}

/// Damages every object of an archive in turn; `damage` returns None where it does not apply.
fn each_object_damaged(damage: impl Fn(&str, &[u8]) -> Option<Vec<u8>>, said: Option<&str>) {
    let Some(archive) = small_archive() else {
        return;
    };
    let (url, copy) = archive.copy("damaged");
    let target = archive.beside("restored");
    let mut tried = 0;
    for (name, path) in objects_in(&copy) {
        let whole = fs::read(&path).unwrap();
        let Some(damaged) = damage(&name, &whole) else {
            continue;
        };
        assert_ne!(damaged, whole, "{name}");
        fs::write(&path, damaged).unwrap();
        let file_name = name.rsplit('/').next().unwrap();
        let err = restore_fails(&url, &target, file_name);
        if let Some(said) = said {
            assert!(err.contains(said), "{name}: {err}");
        }
        fs::write(&path, whole).unwrap();
        tried += 1;
    }
    assert!(tried >= 2, "only {tried} objects were damaged");
    // The undamaged copy is restored: it was the damage that was refused.
    let (code, _, err) = run_cli(&[
        "restore",
        "--archive",
        &url,
        "--to",
        target.to_str().unwrap(),
    ]);
    assert_eq!(code, 0, "{err}");
}

#[test]
fn a_truncated_object_is_named() {
    each_object_damaged(|_, whole| Some(whole[..whole.len() / 2].to_vec()), None);
}

#[test]
fn an_object_without_its_last_byte_is_named() {
    each_object_damaged(
        |name, whole| {
            name.ends_with(".blocks")
                .then(|| whole[..whole.len() - 1].to_vec())
        },
        None,
    );
}

#[test]
fn an_empty_object_is_named() {
    each_object_damaged(|_, _| Some(Vec::new()), None);
}

#[test]
fn a_flipped_bit_is_named() {
    for part in [0, 1, 2, 3, 4] {
        each_object_damaged(
            |name, whole| {
                let mut damaged = whole.to_vec();
                let at = (whole.len() - 1) * part / 4;
                damaged[at] ^= 0x10;
                name.ends_with(".blocks").then_some(damaged)
            },
            None,
        );
    }
}

#[test]
fn an_object_of_a_newer_version_says_so() {
    each_object_damaged(
        |name, whole| {
            if name.ends_with(".json") {
                let text = String::from_utf8(whole.to_vec()).unwrap();
                return Some(
                    text.replace("\"format\": 1", "\"format\": 999")
                        .into_bytes(),
                );
            }
            // The version follows the eight bytes of the magic.
            let mut damaged = whole.to_vec();
            damaged[8..10].copy_from_slice(&999_u16.to_le_bytes());
            Some(damaged)
        },
        Some("newer"),
    );
}

/// Of two segments that could stand for each other, the name says which is which: an exchanged one is refused.
#[test]
fn an_object_under_another_name_is_refused() {
    let Some(archive) = small_archive() else {
        return;
    };
    let (url, copy) = archive.copy("exchanged");
    let segments: Vec<_> = objects_in(&copy)
        .into_iter()
        .filter(|(name, _)| name.contains("/segments/"))
        .collect();
    assert!(segments.len() >= 2, "{segments:?}");
    let (name, path) = &segments[0];
    fs::copy(&segments[1].1, path).unwrap();
    restore_fails(
        &url,
        &archive.beside("restored"),
        name.rsplit('/').next().unwrap(),
    );
}

#[test]
fn a_missing_segment_is_a_gap_and_no_restore_goes_past_it() {
    let Some(archive) = small_archive() else {
        return;
    };
    let (url, copy) = archive.copy("holed");
    let segments: Vec<_> = objects_in(&copy)
        .into_iter()
        .filter(|(name, _)| name.contains("/segments/"))
        .collect();
    assert!(segments.len() >= 3, "{segments:?}");
    fs::remove_file(&segments[segments.len() / 2].1).unwrap();
    let last = archive.status().durable_offset.unwrap();
    let target = archive.beside("restored");
    let at = format!("offset:{last}");
    let arguments = [
        "restore",
        "--archive",
        &url,
        "--to",
        target.to_str().unwrap(),
        "--at",
        &at,
    ];
    let (code, _, err) = run_cli(&arguments);
    assert_eq!(code, 1, "{err}");
    assert!(!target.exists());
    let (code, out, err) = run_cli(&["status", "--archive", &url, "--json"]);
    assert_eq!(code, 0, "{err}");
    let status: crate::harness::Status = serde_json::from_str(&out).unwrap();
    assert_eq!(status.timelines[0].gaps.len(), 1, "{status:#?}");
    assert!(status.durable_offset.unwrap() < last);
}

#[test]
fn nothing_to_restore_is_exit_code_3_or_0_where_that_is_fine() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("restored");
    let target = target.to_str().unwrap();
    for name in ["empty", "missing"] {
        let archive = folder.path().join(name);
        if name == "empty" {
            fs::create_dir(&archive).unwrap();
        }
        let url = url_of(&archive);
        let mut arguments = vec!["restore", "--archive", &url, "--to", target];
        let (code, _, err) = run_cli(&arguments);
        assert_eq!(code, 3, "{err}");
        assert!(err.contains(&url), "{err}");
        arguments.push("--if-archive-exists");
        let (code, _, err) = run_cli(&arguments);
        assert_eq!(code, 0, "{err}");
        assert!(!Path::new(target).exists());
        assert_eq!(
            archive.exists(),
            name == "empty",
            "a reader creates nothing"
        );
    }
}

#[test]
fn usage_errors_are_exit_code_2() {
    let calls: &[&[&str]] = &[
        &[],
        &["frobnicate"],
        &["run"],
        &["run", "--redis", "redis://127.0.0.1:1"],
        &[
            "run",
            "--redis",
            "http://127.0.0.1:1",
            "--archive",
            "file:///tmp/x",
        ],
        &[
            "run",
            "--redis",
            "redis://127.0.0.1:1",
            "--archive",
            "ftp://x",
        ],
        &[
            "run",
            "--redis",
            "redis://127.0.0.1:1",
            "--archive",
            "file:///tmp/x",
            "--seed",
            "perhaps",
        ],
        &[
            "run",
            "--redis",
            "redis://127.0.0.1:1",
            "--archive",
            "file:///tmp/x",
            "--flush-bytes",
            "much",
        ],
        &["restore", "--archive", "file:///tmp/x"],
        &[
            "restore",
            "--archive",
            "file:///tmp/x",
            "--to",
            "s3://bucket/prefix",
        ],
        &[
            "restore",
            "--archive",
            "file:///tmp/x",
            "--to",
            "redis://127.0.0.1:1",
            "--format",
            "rdb",
        ],
        &[
            "restore",
            "--archive",
            "file:///tmp/x",
            "--to",
            "/tmp/y",
            "--at",
            "teatime",
        ],
    ];
    for call in calls {
        let (code, out, err) = run_cli(call);
        assert_eq!(code, 2, "{call:?}: stdout {out}; stderr {err}");
        assert!(!err.contains("panicked at"), "{call:?}: {err}");
        assert!(!err.is_empty(), "{call:?} says nothing");
    }
}

#[test]
fn flags_come_from_the_environment_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let url = url_of(&folder.path().join("missing"));
    let target = folder.path().join("restored");
    let environment = [
        ("PERENNIAL_ARCHIVE", url.as_str()),
        ("PERENNIAL_TO", target.to_str().unwrap()),
    ];
    let (code, _, err) = run_cli_with(&["restore"], &environment);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains(&url), "{err}");
}

#[test]
fn a_folder_with_data_is_not_restored_into_without_force() {
    let Some(archive) = small_archive() else {
        return;
    };
    let target = archive.beside("restored");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("dump.rdb"), "precious").unwrap();
    let url = archive.url();
    let mut arguments = vec![
        "restore",
        "--archive",
        &url,
        "--to",
        target.to_str().unwrap(),
    ];
    let (code, _, err) = run_cli(&arguments);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains(target.to_str().unwrap()), "{err}");
    assert_eq!(fs::read(target.join("dump.rdb")).unwrap(), b"precious");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
    arguments.push("--force");
    let (code, _, err) = run_cli(&arguments);
    assert_eq!(code, 0, "{err}");
}

#[test]
fn a_dry_run_writes_nothing() {
    let Some(archive) = small_archive() else {
        return;
    };
    let target = archive.beside("restored");
    let arguments = [
        "restore",
        "--archive",
        &archive.url(),
        "--to",
        target.to_str().unwrap(),
        "--dry-run",
    ];
    let (code, out, err) = run_cli(&arguments);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("snapshots/"), "{out}");
    assert!(!target.exists());
}
