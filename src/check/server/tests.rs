//! Facts of a good server, and each thing that may be wrong with it.

use super::*;
use crate::check::Level;

const INFO: &str = "redis_version:7.0.15\r\nloading:0\r\nrole:master\r\nconnected_slaves:0\r\ncluster_enabled:0\r\n\
                    used_memory:1000000\r\n";

fn permission(command: &'static str) -> Permission {
    Permission {
        command,
        allowed: Allowed::Yes,
    }
}

fn good() -> ServerFacts {
    let settings = [
        ("repl-backlog-size", "67108864"),
        ("repl-backlog-ttl", "3600"),
        (
            "client-output-buffer-limit",
            "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60",
        ),
        ("repl-timeout", "60"),
        ("repl-diskless-sync", "yes"),
        ("repl-diskless-sync-delay", "5"),
        ("repl-diskless-load", "disabled"),
        ("shutdown-timeout", "10"),
        ("min-replicas-to-write", "0"),
        ("replica-serve-stale-data", "yes"),
        ("replica-read-only", "yes"),
        ("masterauth", ""),
        ("appendonly", "no"),
        ("save", ""),
        ("rdb-del-sync-files", "yes"),
        ("maxmemory", "0"),
        ("maxmemory-policy", "noeviction"),
        ("tls-replication", "no"),
        ("protected-mode", "yes"),
    ];
    ServerFacts {
        client: "redis-cli -h h -p 1".into(),
        user: Some("perennial".into()),
        info: Info::parse(INFO),
        perennials: 0,
        to_follow: vec![permission("psync"), permission("replconf")],
        to_seed: vec![permission("multi"), permission("replicaof")],
        settings: Ok(settings
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()),
        written_per_second: Some(1000),
        seeds_with_password: false,
        seeds_with_tls: false,
    }
}

fn with_info(more: &str) -> ServerFacts {
    ServerFacts {
        info: Info::parse(&format!("{INFO}{more}\r\n")),
        ..good()
    }
}

fn with(name: &str, value: &str) -> ServerFacts {
    let mut facts = good();
    let settings = facts.settings.as_mut().unwrap();
    settings.insert(name.to_owned(), value.to_owned());
    facts
}

fn finding(facts: &ServerFacts, id: &str) -> Finding {
    let findings = of_server(facts);
    let mut found = findings.iter().filter(|finding| finding.id == id);
    let first = found.next();
    assert!(found.next().is_none(), "{id} twice");
    first
        .unwrap_or_else(|| panic!("no {id} in {findings:?}"))
        .clone()
}

/// This is wrong, nothing else is, and the change holds this.
#[track_caller]
fn only(facts: &ServerFacts, id: &str, level: Level, change: &str) {
    let found = finding(facts, id);
    assert_eq!(found.level, level, "{found:?}");
    assert!(
        found.change.as_deref().unwrap_or("").contains(change),
        "{change:?} is not in {found:?}"
    );
    for other in of_server(facts) {
        assert!(
            other.id == id || other.level == Level::Ok,
            "{id}: {other:?}"
        );
    }
}

#[test]
fn a_good_server_is_ok_throughout() {
    for finding in of_server(&good()) {
        assert_eq!(finding.level, Level::Ok, "{finding:?}");
        assert_eq!(finding.change, None);
    }
}

#[test]
fn what_the_server_is() {
    use Level::{Bad, Warn};
    for (info, id, level, change) in [
        ("redis_version:3.2.1", "server-version", Bad, "7.0"),
        (
            "redis_version:6.2.1",
            "server-version",
            Warn,
            "born a replica",
        ),
        ("loading:1", "server-loading", Warn, "wait"),
        (
            "cluster_enabled:1",
            "server-cluster",
            Warn,
            "perennial restore",
        ),
        (
            "module:name=ReJSON,ver=2",
            "server-modules",
            Warn,
            "same modules",
        ),
        ("connected_slaves:2", "server-wait", Warn, "one more"),
        (
            "role:slave\r\nmaster_host:m\r\nmaster_port:7\r\nmaster_link_status:up",
            "server-role",
            Warn,
            "the address of the master",
        ),
        (
            "role:slave\r\nmaster_host:m\r\nmaster_port:7\r\nmaster_link_status:down",
            "server-role",
            Warn,
            "--seed-listen",
        ),
    ] {
        only(&with_info(info), id, level, change);
    }
    assert_eq!(
        finding(
            &with_info("redis_version:7.2.4\r\nvalkey_version:9.1.2"),
            "server-version"
        )
        .level,
        Level::Ok
    );
}

#[test]
fn whoever_archives_is_no_replica_that_answers_a_wait_too_early() {
    let found = |attached: u64, perennials: u64| {
        let facts = ServerFacts {
            perennials,
            ..with_info(&format!("connected_slaves:{attached}"))
        };
        finding(&facts, "server-wait")
    };
    assert_eq!(found(0, 0).level, Level::Ok);
    let ours = found(1, 1);
    assert_eq!(ours.level, Level::Ok, "{ours:?}");
    assert!(ours.found.contains("the only replica"), "{ours:?}");
    let two = found(2, 2);
    assert_eq!(two.level, Level::Warn, "{two:?}");
    assert!(two.change.unwrap().contains("for each archive"));
    let mixed = found(3, 1);
    assert_eq!(mixed.level, Level::Warn, "{mixed:?}");
    assert!(mixed.change.unwrap().starts_with("WAIT 3, one more"));
}

#[test]
fn each_setting_that_bites() {
    use Level::{Bad, Warn};
    for (name, value, id, level, change) in [
        (
            "repl-backlog-size",
            "1048576",
            "setting-repl-backlog-size",
            Warn,
            "CONFIG SET repl-backlog-size 64mb",
        ),
        (
            "repl-backlog-ttl",
            "2",
            "setting-repl-backlog-ttl",
            Warn,
            "repl-backlog-ttl 3600",
        ),
        (
            "client-output-buffer-limit",
            "normal 0 0 0 replica 1048576 0 0 pubsub 0 0 0",
            "setting-client-output-buffer-limit",
            Warn,
            "'replica 256mb 64mb 60'",
        ),
        (
            "repl-timeout",
            "5",
            "setting-repl-timeout",
            Warn,
            "repl-timeout 60",
        ),
        (
            "repl-diskless-sync-delay",
            "60",
            "setting-repl-diskless-sync-delay",
            Warn,
            "delay 0",
        ),
        (
            "shutdown-timeout",
            "1",
            "setting-shutdown-timeout",
            Warn,
            "shutdown-timeout 10",
        ),
        (
            "min-replicas-to-write",
            "1",
            "setting-min-replicas-to-write",
            Warn,
            "min-replicas-to-write 2",
        ),
        (
            "replica-read-only",
            "no",
            "setting-replica-read-only",
            Bad,
            "replica-read-only yes",
        ),
        (
            "appendonly",
            "yes",
            "setting-appendonly",
            Warn,
            "appendonly no",
        ),
        (
            "maxmemory",
            "1000001",
            "setting-maxmemory",
            Warn,
            "maxmemory 2000000",
        ),
        (
            "tls-replication",
            "yes",
            "setting-tls-replication",
            Bad,
            "--seed-cert-file",
        ),
    ] {
        only(&with(name, value), id, level, change);
    }
}

#[test]
fn the_backlog_is_measured_by_what_is_written() {
    let mut facts = with("repl-backlog-size", "1048576");
    facts.written_per_second = Some(64_000_000);
    let found = finding(&facts, "setting-repl-backlog-size");
    assert!(found.found.contains("it lasts 16 ms"), "{found:?}");
    let change = found.change.unwrap();
    assert!(change.contains("repl-backlog-size 3663mb"), "{change}");
    // A server without a limit for its replicas' buffers is well.
    let facts = with("client-output-buffer-limit", "slave 0 0 0");
    assert_eq!(
        finding(&facts, "setting-client-output-buffer-limit").level,
        Level::Ok
    );
}

#[test]
fn before_7_0_dumps_are_looked_at() {
    let mut facts = with("save", "3600 1");
    assert_eq!(finding(&facts, "setting-save").level, Level::Ok);
    facts.info = Info::parse(&INFO.replace("7.0.15", "6.2.14"));
    let found = finding(&facts, "setting-save");
    assert_eq!(found.level, Level::Warn);
    assert!(found.change.unwrap().contains("CONFIG SET save ''"));
    let mut facts = with("rdb-del-sync-files", "no");
    facts.info = Info::parse(&INFO.replace("7.0.15", "6.2.14"));
    assert_eq!(
        finding(&facts, "setting-rdb-del-sync-files").level,
        Level::Warn
    );
}

#[test]
fn a_seed_from_elsewhere_needs_a_masterauth() {
    let mut facts = good();
    facts.seeds_with_password = true;
    only(
        &facts,
        "setting-masterauth",
        Level::Bad,
        "CONFIG SET masterauth",
    );
    let mut facts = with("masterauth", "set");
    facts.seeds_with_password = true;
    assert_eq!(finding(&facts, "setting-masterauth").level, Level::Ok);
}

#[test]
fn permissions_that_lack_are_all_named() {
    let mut facts = good();
    facts.to_seed = ["multi", "replicaof"]
        .map(|command| Permission {
            command,
            allowed: Allowed::No("NOPERM no".into()),
        })
        .to_vec();
    only(
        &facts,
        "server-permissions-seed",
        Level::Bad,
        "redis-cli -h h -p 1 ACL SETUSER perennial +multi +replicaof",
    );
    facts.to_seed[0].allowed = Allowed::No("ERR unknown command 'MULTI'".into());
    only(
        &facts,
        "server-permissions-seed",
        Level::Bad,
        "rename-command",
    );
    facts.to_seed = vec![Permission {
        command: "replicaof",
        allowed: Allowed::Untried,
    }];
    assert_eq!(
        finding(&facts, "server-permissions-seed").level,
        Level::Unknown
    );
}

#[test]
fn settings_that_are_not_shown_are_unknown_and_named() {
    let mut facts = good();
    facts.settings = Err("NOPERM".into());
    let found = finding(&facts, "server-settings");
    assert_eq!(found.level, Level::Unknown);
    assert!(found.found.contains("repl-backlog-size") && found.found.contains("+config|get"));
    let settings = of_server(&facts);
    assert!(
        !settings
            .iter()
            .any(|finding| finding.id.starts_with("setting-"))
    );
}
