//! What a person is told: flags that exclude each other, files that cannot be read, output that nobody takes, restores and
//! prunes that are only tried out.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Read;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::harness::{Archive, DEADLINE, Perennial, REDIS_7_0, run_cli, run_cli_with, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_perennial");

/// The exit code and what is said, where standard output is this.
fn printing_to(out: impl Into<Stdio>, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(PROGRAM);
    // Those that are there are meant for the tests, and a warning of them would be said.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PERENNIAL_") {
            command.env_remove(name);
        }
    }
    let mut child = command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    (child.wait().unwrap().code(), said)
}

#[test]
fn what_could_not_be_printed_is_no_success() {
    for arguments in [&["--help"][..], &["man", "run"], &["completions", "bash"]] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (code, said) = printing_to(full, arguments);
        assert_eq!(code, Some(1), "{arguments:?}: {said}");
        assert!(said.contains("standard output"), "{arguments:?}: {said}");
        // Who reads no further knows that.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (code, said) = printing_to(writer, arguments);
        assert_eq!((code, said.as_str()), (Some(1), ""), "{arguments:?}");
        let (code, said) = printing_to(Stdio::null(), arguments);
        assert_eq!((code, said.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

/// Ends with the test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["run", "--redis", &server.url(), "--archive", &archive.url()]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(full);
    let mut running = Running(command.spawn().unwrap());
    archive.until_durable();
    server.client().wait_until_stored(DEADLINE);
    assert!(running.0.try_wait().unwrap().is_none(), "it has ended");
}

#[test]
fn a_flag_that_would_be_passed_over_is_refused_and_goes_before_a_variable() {
    let dump = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/archive/redis-7.0.15.rdb"
    );
    let archive = ("PERENNIAL_ARCHIVE", "file:///nowhere");
    let (code, _, err) = run_cli(&["inspect", "--archive", archive.1, "--file", dump]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("--archive and --file"), "{err}");
    // Where every call has an archive, --file is a file all the same.
    let (code, out, err) = run_cli_with(&["inspect", "--file", dump], &[archive]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("redis-7.0.15.rdb"), "{out}");
    let file = ("PERENNIAL_FILE", dump);
    let (code, _, err) = run_cli_with(&["inspect", "--archive", archive.1], &[file]);
    assert_eq!(code, 3, "{err}");
    let (code, _, err) = run_cli_with(&["inspect"], &[file, archive]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("both set"), "{err}");
    let scratch = [
        "verify",
        "--archive",
        archive.1,
        "--scratch",
        "redis-server",
    ];
    let (code, _, err) = run_cli(&scratch);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("--drill"), "{err}");
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_why_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("empty"), "\n").unwrap();
    std::fs::write(path("two"), "one\ntwo\n").unwrap();
    std::fs::write(
        path("bad.toml"),
        "archive = \"file:///a\"\nretention = 7d\n",
    )
    .unwrap();
    let (nothing, whole) = (path("nothing"), folder.path().display().to_string());
    let (empty, two, bad) = (path("empty"), path("two"), path("bad.toml"));
    let run = ["run", "--archive", "file:///nowhere"];
    for (arguments, said) in [
        (["--config", nothing.as_str()], "check the path"),
        (["--config", whole.as_str()], "name a file"),
        (["--config", bad.as_str()], "line 2: "),
        (
            ["--redis-password-file", nothing.as_str()],
            "check the path",
        ),
        (["--redis-password-file", whole.as_str()], "name a file"),
        (["--redis-password-file", empty.as_str()], "is empty"),
        (["--seed-password-file", two.as_str()], "several lines"),
    ] {
        let (code, _, err) = run_cli(&[&run[..], &arguments].concat());
        assert_eq!(code, 2, "{arguments:?}: {err}");
        for word in [arguments[0], arguments[1], said] {
            assert!(err.contains(word), "{word} is not in {err}");
        }
    }
    let (code, _, err) = run_cli(&["inspect", "--file", &nothing]);
    assert_eq!(code, 1, "{err}");
    assert!(
        err.contains(&nothing) && err.contains("check the path"),
        "{err}"
    );
}

#[test]
fn a_rehearsed_restore_tells_what_would_be_refused() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &[]);
    server.client().line("SET a b");
    server.client().wait_until_stored(DEADLINE);
    let url = archive.url();
    let rehearse = |to: &str, more: &[&str]| {
        let given = ["restore", "--archive", &url, "--to", to, "--dry-run"];
        run_cli(&[&given[..], more].concat())
    };
    let folder = archive.restore("restored", &[]);
    let to = folder.to_str().unwrap();
    let (code, out, err) = rehearse(to, &[]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("would restore timeline 1"), "{out}");
    assert!(
        err.contains("would be refused") && err.contains("already holds data"),
        "{err}"
    );
    let (code, out, _) = rehearse(to, &["--json"]);
    let plan: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 1, "{out}");
    assert!(
        plan["refused"]
            .as_str()
            .unwrap()
            .contains("already holds data")
    );
    let (code, out, err) = rehearse(to, &["--force", "--json"]);
    let plan: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &plan["refused"]), (0, &Value::Null), "{err}");
    let manifest = folder.join("appendonlydir/appendonly.aof.manifest");
    let below = manifest.join("below");
    for file in [&manifest, &below] {
        let (code, _, err) = rehearse(file.to_str().unwrap(), &[]);
        assert_eq!(code, 1, "{err}");
        assert!(err.contains("is a file"), "{err}");
    }
    assert!(manifest.is_file());
    let (code, _, err) = rehearse(&server.url(), &[]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("already holds data"), "{err}");
    let (code, _, err) = rehearse("-", &[]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("--scratch"), "{err}");
    let Some(empty) = REDIS_7_0.start(&[]) else {
        return;
    };
    let (code, out, err) = rehearse(&empty.url(), &[]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(empty.is_master());
    assert_eq!(empty.client().line("DBSIZE").integer(), 0);
}

#[test]
fn prune_does_what_its_rehearsal_says() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let quick = ["--flush-interval", "10ms", "--upkeep-interval", "0s"];
    let mut perennial = Perennial::follow(&server, &archive, &quick);
    let url = archive.url();
    let prune = |more: &[&str]| -> Value {
        let given = [
            "prune",
            "--archive",
            &url,
            "--retention",
            "7d",
            "--merge-minute",
            "400ms",
            "--merge-grace",
            "1ms",
            "--json",
        ];
        let (code, out, err) = run_cli(&[&given[..], more].concat());
        assert_eq!(code, 0, "{out}{err}");
        serde_json::from_str(&out).unwrap()
    };
    let mut client = server.client();
    until("there is something to merge", DEADLINE, || {
        for _ in 0..20 {
            client.line("INCR counter");
            client.wait_until_stored(DEADLINE);
        }
        // The newest merged one is as new as everything else: what it covers stays.
        prune(&["--dry-run"])["merge"].as_array().unwrap().len() >= 3
    });
    perennial.kill();
    let names = || -> BTreeSet<String> { archive.objects().into_iter().map(|it| it.0).collect() };
    let listed = |plan: &Value, what: &str| -> BTreeSet<String> {
        let objects = plan[what].as_array().unwrap().iter();
        let name = |object: &Value| object["name"].as_str().unwrap().to_owned();
        objects.map(name).collect()
    };
    let (mut merged, mut deleted) = (0, 0);
    for _ in 0..3 {
        let before = names();
        let undeleted = prune(&["--dry-run", "--no-delete"]);
        assert!(
            listed(&undeleted, "delete_merged").is_empty(),
            "{undeleted}"
        );
        let plan = prune(&["--dry-run"]);
        assert_eq!(names(), before, "a rehearsal does nothing");
        let done = prune(&[]);
        let after = names();
        let created: BTreeSet<String> = after.difference(&before).cloned().collect();
        let gone: BTreeSet<String> = before.difference(&after).cloned().collect();
        assert_eq!(created, listed(&plan, "merge"), "{plan} {done}");
        assert_eq!(gone, listed(&plan, "delete_merged"), "{plan} {done}");
        assert_eq!(plan["deleted_bytes"], done["deleted_bytes"]);
        assert_eq!(done["merges"], created.len());
        merged += created.len();
        deleted += gone.len();
    }
    assert!(
        merged > 0 && deleted > 0,
        "{merged} merged, {deleted} deleted"
    );
    // What was merged and still lies there is counted once.
    let status: Value =
        serde_json::from_str(&run_cli(&["status", "--archive", &url, "--json"]).1).unwrap();
    let stored = &status["stored"];
    let timeline = &status["timelines"][0];
    let [start, end] = ["start", "end"].map(|name| timeline[name].as_u64().unwrap());
    assert_eq!(stored["stream_bytes"], end - start, "{stored}");
    assert_eq!(stored["segments"], timeline["segments"], "{stored}");
}

/// On a terminal of that width no line is wider, but for what is there to be pasted.
#[test]
fn lines_for_people_fit_the_terminal() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let _perennial = Perennial::follow(
        &server,
        &archive,
        &[
            "--name",
            "a name that is quite long, for a data set of one word",
        ],
    );
    server.client().line("SET a b");
    server.client().wait_until_stored(DEADLINE);
    let (url, redis) = (archive.url(), server.url());
    let to = archive.beside("restored");
    let dump = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/archive/redis-7.0.15.rdb"
    );
    let calls: [&[&str]; 8] = [
        &["--help"],
        &["status", "--archive", &url],
        &["ls", "--archive", &url],
        &["verify", "--archive", &url],
        &["inspect", "--file", dump],
        &["check", "--redis", &redis, "--archive", &url],
        &["prune", "--archive", &url, "--dry-run"],
        &["restore", "--archive", &url, "--to", to.to_str().unwrap()],
    ];
    for call in calls {
        let (code, out, err) = run_cli_with(call, &[("COLUMNS", "80")]);
        assert_eq!(code, 0, "{call:?}: {err}");
        for line in out.lines() {
            let is_pasted = line.contains("redis-cli ") || line.contains("redis-server ");
            let is_one_word = line.trim().split(' ').count() == 1;
            let wide = line.chars().count();
            assert!(
                wide <= 80 || is_pasted || is_one_word,
                "{call:?}, {wide}: {line}"
            );
        }
    }
}
