//! `perennial check`: what it finds on real servers and stores, and that it leaves both as they were.

use serde_json::Value;

use crate::harness::{
    Archive, BornAsReplica, Kind, Perennial, Port, REDIS_7_0, Server, archive::objects_in, run_cli,
};
use crate::on_every_server;

on_every_server! {
    a_server_is_looked_at_and_left_as_it_was,
    each_permission_that_lacks_is_named,
}
on_every_server! {
    oldest, usual and newest;
    settings_that_bite_are_found,
}

/// The outcome of one call.
struct Checked {
    code: i32,
    json: Value,
    text: String,
}

impl Checked {
    fn of(arguments: &[&str]) -> Self {
        Self::with(arguments, &[])
    }

    #[track_caller]
    fn with(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let arguments = [&["check", "--json"], arguments].concat();
        let (code, out, err) = crate::harness::run_cli_with(&arguments, environment);
        let json = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{code} {out} {err}"));
        Self {
            code,
            json,
            text: format!("{out}{err}"),
        }
    }

    /// The level and the change of the finding `id`, or of the first one of that name.
    #[track_caller]
    fn finding(&self, id: &str) -> (String, String) {
        let findings = self.json["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| finding["id"] == id);
        let found = found.unwrap_or_else(|| panic!("no {id} in {}", self.text));
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        (
            text("level"),
            format!("{} -> {}", text("found"), text("change")),
        )
    }

    #[track_caller]
    fn expect(&self, id: &str, level: &str, words: &str) {
        let (found, text) = self.finding(id);
        assert_eq!(found, level, "{id}: {text}");
        assert!(text.contains(words), "{words:?} is not in {id}: {text}");
    }

    /// Nothing is at this level.
    #[track_caller]
    fn expect_no(&self, level: &str) {
        let findings = self.json["findings"].as_array().unwrap();
        let found: Vec<_> = findings
            .iter()
            .filter(|finding| finding["level"] == level)
            .collect();
        assert!(found.is_empty(), "{found:?}");
    }
}

/// What must not move.
fn state(server: &Server) -> Vec<(String, String)> {
    let info = server.client().ok(&["INFO"]).text();
    let keep = [
        "role",
        "master_replid",
        "master_repl_offset",
        "connected_slaves",
        "sync_full",
        "sync_partial_ok",
        "sync_partial_err",
        "rdb_changes_since_last_save",
        "rdb_bgsave_in_progress",
        "repl_backlog_active",
        "db0",
    ];
    info.lines()
        .filter_map(|line| line.trim_end().split_once(':'))
        .filter(|(name, _)| keep.contains(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn a_server_is_looked_at_and_left_as_it_was(kind: Kind) {
    let Some(server) = kind.start(&["--repl-backlog-size", "64mb", "--save", ""]) else {
        return;
    };
    server.client().line("SET kept 1");
    let before = state(&server);
    assert!(before.len() >= 9, "{before:?}");
    let archive = Archive::new();
    let (redis, url) = (server.url(), archive.url());
    let checked = Checked::of(&["--redis", &redis, "--archive", &url]);
    assert_eq!(state(&server), before);
    assert_eq!(checked.code, 0, "{}", checked.text);
    checked.expect_no("bad");
    checked.expect_no("unknown");
    for id in ["server-reachable", "server-role", "server-wait", "archive"] {
        checked.expect(id, "ok", "");
    }
    checked.expect("server-permissions-follow", "ok", "follow it");
    checked.expect("server-permissions-seed", "ok", "fill it");
    let version = if kind.speaks < (7, 0) { "warn" } else { "ok" };
    checked.expect("server-version", version, "");
    assert_eq!(objects_in(&archive.path()), Vec::new());
    assert!(!archive.path().join(".perennial-probe").exists());
    // What was advised can be done: it is a master as before.
    server.client().line("SET kept 2");
}

fn each_permission_that_lacks_is_named(kind: Kind) {
    let rules = [
        "on",
        ">secret",
        "+psync",
        "+replconf",
        "+info",
        "+multi",
        "+exec",
        "+replicaof",
        "+config|get",
    ];
    let Some(server) = kind.start(&[]) else {
        return;
    };
    let redis = format!("redis://perennial:secret@{}", server.address());
    let with = |left_out: &str| {
        let mut words = vec!["ACL", "SETUSER", "perennial", "reset"];
        words.extend(rules.iter().filter(|rule| **rule != left_out));
        server.client().ok(&words);
        let before = state(&server);
        let checked = Checked::of(&["--redis", &redis]);
        assert_eq!(state(&server), before, "{left_out}");
        checked
    };
    let checked = with("");
    assert_eq!(checked.code, 0, "{}", checked.text);
    checked.expect_no("unknown");
    for (rule, id) in [
        ("+psync", "server-permissions-follow"),
        ("+replconf", "server-permissions-follow"),
        ("+multi", "server-permissions-seed"),
        ("+exec", "server-permissions-seed"),
        ("+replicaof", "server-permissions-seed"),
    ] {
        let checked = with(rule);
        assert_eq!(checked.code, 1, "{rule}: {}", checked.text);
        checked.expect(id, "bad", &format!("ACL SETUSER perennial {rule}"));
    }
    let checked = with("+info");
    assert_eq!(checked.code, 1);
    checked.expect("server-reachable", "bad", "+info");
    let checked = with("+config|get");
    assert_eq!(checked.code, 0, "{}", checked.text);
    checked.expect("server-settings", "unknown", "repl-backlog-size");
    assert!(!checked.text.contains("secret"));
}

fn settings_that_bite_are_found(kind: Kind) {
    let Some(server) = kind.start(&["--repl-backlog-size", "1mb"]) else {
        return;
    };
    let redis = server.url();
    for (name, value, level, change) in [
        (
            "repl-backlog-size",
            "1mb",
            "warn",
            "CONFIG SET repl-backlog-size 64mb",
        ),
        (
            "repl-backlog-ttl",
            "2",
            "warn",
            "CONFIG SET repl-backlog-ttl 3600",
        ),
        ("repl-timeout", "5", "warn", "CONFIG SET repl-timeout 60"),
        (
            "min-replicas-to-write",
            "1",
            "warn",
            "CONFIG SET min-replicas-to-write 2",
        ),
        (
            "replica-read-only",
            "no",
            "bad",
            "CONFIG SET replica-read-only yes",
        ),
        (
            "client-output-buffer-limit",
            "replica 1mb 1mb 1",
            "warn",
            "CONFIG SET client-output-buffer-limit 'replica 256mb 64mb 60'",
        ),
        ("maxmemory", "100kb", "warn", "CONFIG SET maxmemory"),
        ("appendonly", "yes", "warn", "CONFIG SET appendonly no"),
    ] {
        server.client().ok(&["CONFIG", "SET", name, value]);
        let checked = Checked::of(&["--redis", &redis]);
        let id = format!("setting-{name}");
        checked.expect(&id, level, change);
        assert_eq!(checked.code, i32::from(level == "bad"), "{}", checked.text);
        // What is advised is what the server takes.
        let advised = checked.finding(&id).1;
        let advised = advised.split("CONFIG SET ").nth(1).unwrap();
        let (name, value) = advised.split_once(' ').unwrap();
        server
            .client()
            .ok(&["CONFIG", "SET", name, value.trim_matches('\'')]);
        if name == "min-replicas-to-write" {
            // Perennial counts as one, however many are asked for.
            continue;
        }
        assert_eq!(
            Checked::of(&["--redis", &redis]).finding(&id).0,
            "ok",
            "{advised}"
        );
    }
}

#[test]
fn what_cannot_be_reached_or_is_no_server_is_bad() {
    let nowhere = Port::reserve();
    let checked = Checked::of(&["--redis", &format!("redis://{}", nowhere.address())]);
    assert_eq!(checked.code, 1);
    checked.expect("server-reachable", "bad", "is the server running");
    let Some(server) = REDIS_7_0.start(&["--requirepass", "right"]) else {
        return;
    };
    let wrong = format!("redis://:wrong@{}", server.address());
    Checked::of(&["--redis", &wrong]).expect(
        "server-reachable",
        "bad",
        "check the user and password",
    );
    let none = format!("redis://{}", server.address());
    Checked::of(&["--redis", &none]).expect("server-reachable", "bad", "--redis-password-file");
}

#[test]
fn wrong_usage_is_2() {
    for arguments in [
        &["check"][..],
        &["check", "--redis", "http://x"],
        &["check", "--archive", "nowhere"],
        &[
            "check",
            "--redis",
            "redis://h:1",
            "--seed-listen",
            "0.0.0.0:1",
        ],
    ] {
        let (code, out, err) = run_cli(arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{err}");
    }
}

#[test]
fn renamed_commands_and_clusters_are_found() {
    let Some(server) = REDIS_7_0.start(&[
        "--rename-command",
        "REPLICAOF",
        "HIDDEN-A",
        "--rename-command",
        "CONFIG",
        "HIDDEN-B",
    ]) else {
        return;
    };
    let checked = Checked::of(&["--redis", &server.url()]);
    checked.expect("server-permissions-seed", "bad", "rename-command");
    checked.expect("server-settings", "unknown", "unknown command");
    // By default 10,000 above the other one, where any outgoing connection may be.
    let bus = Port::reserve();
    let Some(node) = REDIS_7_0.start(&[
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &bus.number.to_string(),
    ]) else {
        return;
    };
    let checked = Checked::of(&["--redis", &node.url()]);
    checked.expect("server-cluster", "warn", "perennial restore");
}

#[test]
fn a_seed_from_elsewhere_needs_a_masterauth() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    std::fs::write(&password, "hidden-word\n").unwrap();
    let redis = server.url();
    let flags = [
        "--redis",
        &redis,
        "--seed-listen",
        "0.0.0.0:6390",
        "--seed-password-file",
        password.to_str().unwrap(),
    ];
    let checked = Checked::of(&flags);
    assert_eq!(checked.code, 1);
    checked.expect("setting-masterauth", "bad", "CONFIG SET masterauth");
    server
        .client()
        .ok(&["CONFIG", "SET", "masterauth", "hidden-word"]);
    let checked = Checked::of(&flags);
    assert_eq!(checked.code, 0, "{}", checked.text);
    checked.expect("setting-masterauth", "ok", "");
    assert!(!checked.text.contains("hidden-word"));
}

#[test]
fn a_replica_is_told_whom_wait_means() {
    let Some(master) = REDIS_7_0.start(&[]) else {
        return;
    };
    let port = master.address().rsplit_once(':').unwrap().1.to_owned();
    let Some(replica) = REDIS_7_0.start(&["--replicaof", "127.0.0.1", &port]) else {
        return;
    };
    crate::harness::until("the link is up", crate::harness::DEADLINE, || {
        let info = replica.client().ok(&["INFO", "replication"]).text();
        info.contains("master_link_status:up")
    });
    let before = state(&replica);
    let checked = Checked::of(&["--redis", &replica.url()]);
    checked.expect("server-role", "warn", "never mean the archive");
    assert_eq!(state(&replica)[0], before[0]);
    let checked = Checked::of(&["--redis", &master.url()]);
    checked.expect("server-wait", "warn", "one more");
}

#[test]
fn an_archive_in_use_is_described() {
    let archive = Archive::new();
    let Some(born) = BornAsReplica::start_with(REDIS_7_0, &archive, &[]) else {
        return;
    };
    let (redis, url) = (born.server.url(), archive.url());
    let objects = objects_in(&archive.path()).len();
    let checked = Checked::of(&["--redis", &redis, "--archive", &url]);
    assert_eq!(checked.code, 0, "{}", checked.text);
    checked.expect("archive-head", "ok", "latest is timeline 1");
    checked.expect("archive-payload", "ok", "reads");
    checked.expect("archive-name", "ok", "no name");
    // The one replica that is attached is ours.
    checked.expect("server-wait", "ok", "the only replica");
    assert!(objects_in(&archive.path()).len() >= objects);
    let found = Checked::of(&["--archive", &url, "--name", "cache"]);
    found.expect("archive-name", "bad", "cache");
    // `run` says the same.
    let mut refused = Perennial::follow_url(&redis, &archive, &["--name", "cache"]);
    assert_eq!(refused.wait(crate::harness::DEADLINE).code(), Some(1));
    assert!(refused.log().contains("has no name"), "{}", refused.log());
}

#[test]
fn another_name_and_an_unreadable_payload_are_bad() {
    let Some(server) = crate::harness::servers::REDIS_8_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &["--name", "cache"]);
    perennial.kill();
    let url = archive.url();
    let checked = Checked::of(&["--archive", &url, "--name", "queue"]);
    assert_eq!(checked.code, 1);
    checked.expect("archive-name", "bad", "cache, not to queue");
    let Some(older) = REDIS_7_0.start(&[]) else {
        return;
    };
    let checked = Checked::of(&["--archive", &url, "--redis", &older.url()]);
    assert_eq!(checked.code, 1);
    checked.expect("archive-payload", "bad", "cannot read it");
}

#[test]
fn folders_that_cannot_be_used_are_bad() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let url = format!("file://{}", file.display());
    let checked = Checked::of(&["--archive", &url]);
    assert_eq!(checked.code, 1);
    checked.expect("store-reachable", "bad", "");
}

/// `docs/json.md` names every field, and no other.
#[test]
fn the_fields_of_the_json_are_those_of_the_document() {
    let document = include_str!("../../docs/json.md");
    let section = document
        .split("## `perennial check --json`")
        .nth(1)
        .unwrap();
    let section = section.split("\n## ").next().unwrap();
    let documented = |prefix: &str| -> Vec<String> {
        let mut names: Vec<String> = section
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .filter_map(|name| name.strip_prefix(prefix))
            .filter(|name| !name.contains('.'))
            .map(|name| name.trim_end_matches("[]").to_owned())
            .collect();
        names.sort();
        names
    };
    let archive = Archive::new();
    let checked = Checked::of(&["--archive", &archive.url()]);
    let names = |value: &Value| -> Vec<String> {
        let mut names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names
    };
    assert_eq!(names(&checked.json), documented(""));
    assert_eq!(
        names(&checked.json["findings"][0]),
        documented("findings[].")
    );
    assert_eq!(names(&checked.json["summary"]), documented("summary."));
    // Every finding of every source is in the table of identifiers.
    let sources = [
        include_str!("../../src/check/server.rs"),
        include_str!("../../src/check/settings.rs"),
        include_str!("../../src/check/store.rs"),
        include_str!("../../src/check/archive.rs"),
    ];
    for source in sources {
        let source = source.split("mod tests").next().unwrap();
        for word in source.split('"') {
            let is_id = ["server-", "setting-", "store-", "archive-"]
                .iter()
                .any(|prefix| word.starts_with(prefix))
                && word
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'-');
            assert!(
                !is_id || section.contains(&format!("`{word}`")),
                "{word} is not in docs/json.md"
            );
        }
    }
}

#[cfg(feature = "s3")]
mod on_s3 {
    use super::Checked;
    use crate::harness::s3::{Canned, KEEPER, READER, S3Server, SECRET, WRITER, environment};

    fn check(url: &str, environment: &[(String, String)]) -> Checked {
        let environment: Vec<(&str, &str)> = environment
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let checked = Checked::with(&["--archive", url], &environment);
        assert!(!checked.text.contains(SECRET), "{}", checked.text);
        checked
    }

    #[test]
    fn a_good_bucket_is_ok_and_left_as_it_was() {
        let server = S3Server::in_process();
        let checked = check(&server.url("a"), &environment(WRITER, SECRET));
        assert_eq!(checked.code, 0, "{}", checked.text);
        for level in ["bad", "warn", "unknown"] {
            checked.expect_no(level);
        }
        checked.expect("store-conditional-upload", "ok", "");
        checked.expect("store-delete", "ok", "");
        checked.expect("store-clock", "ok", "");
        let left = walk(&server.folder());
        assert!(left.is_empty(), "{left:?}");
    }

    /// Files in a folder, but for what the server in this process writes for itself.
    fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(walk(&path));
            } else {
                found.push(path);
            }
        }
        found
    }

    #[test]
    fn a_good_bucket_of_moto_has_nothing_bad() {
        if let Some(server) = S3Server::moto() {
            let checked = check(&server.url("a"), &environment(WRITER, SECRET));
            assert_eq!(checked.code, 0, "{}", checked.text);
            checked.expect_no("bad");
        }
    }

    #[test]
    fn who_may_not_write_or_delete_is_told() {
        let server = S3Server::in_process();
        let url = server.url("a");
        let checked = check(&url, &environment(READER, SECRET));
        assert_eq!(checked.code, 1);
        checked.expect("store-write", "bad", "s3:PutObject");
        for _ in 0..2 {
            let checked = check(&url, &environment(KEEPER, SECRET));
            assert_eq!(checked.code, 0, "{}", checked.text);
            let (level, _) = checked.finding("store-delete");
            assert!(level == "warn" || level == "unknown", "{}", checked.text);
        }
    }

    #[test]
    fn each_wrong_address_or_key_is_a_line_of_its_own() {
        let server = S3Server::in_process();
        let (url, good) = (server.url("a"), environment(WRITER, SECRET));
        let nowhere = crate::harness::Port::reserve();
        let down = url.replace(&server.endpoint(), &format!("http://{}", nowhere.address()));
        for (url, environment, words) in [
            (
                &url,
                &environment("AKIAWRONG", SECRET),
                "does not know the access key",
            ),
            (
                &url,
                &environment(WRITER, "other"),
                "does not belong to the access key",
            ),
            (&down, &good, "cannot be reached"),
        ] {
            let checked = check(url, environment);
            assert_eq!(checked.code, 1, "{words}");
            checked.expect("store-reachable", "bad", words);
        }
        // As Amazon says it; the server in this process makes a bucket for whoever writes.
        let missing = Canned::error(404, "NoSuchBucket", "The specified bucket does not exist");
        server.control().answer_every(1, missing);
        check(&url, &good).expect("store-reachable", "bad", "there is no bucket tests");
        let elsewhere = Canned::error(301, "PermanentRedirect", "must be addressed elsewhere")
            .with("x-amz-bucket-region", "eu-west-1");
        server.control().answer_every(1, elsewhere);
        check(&url, &good).expect("store-reachable", "bad", "region=eu-west-1");
    }

    #[test]
    fn a_store_that_overwrites_is_bad() {
        let server = S3Server::in_process();
        server.ignore_conditions();
        let checked = check(&server.url("a"), &environment(WRITER, SECRET));
        assert_eq!(checked.code, 1);
        checked.expect("store-conditional-create", "bad", "ignores If-None-Match");
    }
}

#[cfg(feature = "gcs")]
mod on_gcs {
    use super::Checked;
    use crate::harness::gcs::Gcs;

    #[test]
    fn a_bucket_is_ok_and_left_as_it_was() {
        let fake = Gcs::start();
        let checked = Checked::of(&["--archive", &fake.url("a")]);
        assert_eq!(checked.code, 0, "{}", checked.text);
        checked.expect_no("bad");
        checked.expect("store-delete", "ok", "");
        checked.expect("store-conditional-upload", "ok", "");
        assert_eq!(fake.objects(), Vec::new());
    }

    #[test]
    fn what_it_may_not_or_does_not_is_found() {
        let fake = Gcs::start();
        let missing = Checked::of(&["--archive", &fake.url_of("no-such-bucket", "a")]);
        assert_eq!(missing.code, 1);
        missing.expect("store-reachable", "bad", "no bucket");
        fake.forbid_deleting();
        let checked = Checked::of(&["--archive", &fake.url("a")]);
        assert_eq!(checked.code, 0, "{}", checked.text);
        let (level, _) = checked.finding("store-delete");
        assert!(level == "warn" || level == "unknown", "{}", checked.text);
        let fake = Gcs::start();
        fake.ignore_conditions();
        let checked = Checked::of(&["--archive", &fake.url("a")]);
        assert_eq!(checked.code, 1);
        checked.expect("store-conditional-create", "bad", "ifGenerationMatch");
    }
}
