//! Passwords and permissions on both sides: the ACL rules of the README are enough and each of them is needed, and a
//! server's `masterauth` is checked or forgiven.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::harness::{
    Archive, DEADLINE, Kind, Perennial, Port, REDIS_7_0, Server, Value, holds_for, run_cli, until,
};
use crate::on_every_server;

on_every_server! {
    the_rules_of_the_readme_follow_and_seed,
    the_rules_for_following_alone_follow,
    each_permission_for_following_is_needed_and_named,
    each_permission_for_seeding_is_needed_and_named,
    a_masterauth_is_forgiven_where_no_password_is_asked_for,
    a_masterauth_and_masteruser_open_the_seed_address,
    a_wrong_masterauth_is_named_and_nothing_is_touched,
    the_loop_over_a_socket_file,
}

/// What a read of `key` gives, where the server answers at all.
fn holds(server: &Server, key: &str, value: &str) -> bool {
    server.is_master()
        && server.client().command(&["GET", key]).ok() == Some(Value::Bulk(value.into()))
}

#[track_caller]
fn until_holds(server: &Server, key: &str, value: &str) {
    until(&format!("{key} is {value} on a master"), DEADLINE, || {
        holds(server, key, value)
    });
}

fn lose_everything(server: &mut Server) {
    server.kill();
    let _ = fs::remove_file(server.folder().join("dump.rdb"));
    server.start_again();
}

/// The rules behind `ACL SETUSER perennial` in the README: for running, and for following alone.
fn rules_of_the_readme() -> [Vec<String>; 2] {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let mut found = text
        .lines()
        .filter_map(|line| line.strip_prefix("ACL SETUSER perennial "))
        .map(|rules| rules.split_whitespace().map(ToOwned::to_owned).collect());
    let rules = [found.next().unwrap(), found.next().unwrap()];
    assert_eq!(found.next(), None, "more rules in the README");
    rules
}

fn allowed(rules: &[String]) -> Vec<&str> {
    rules
        .iter()
        .filter_map(|rule| rule.strip_prefix('+'))
        .collect()
}

/// A server that knows the user from its configuration, as it must after an empty start.
fn with_user(kind: Kind, rules: &[String]) -> Option<Server> {
    let mut config = vec!["--user", "perennial"];
    config.extend(rules.iter().map(String::as_str));
    kind.start(&config)
}

fn url(server: &Server) -> String {
    format!("redis://perennial:secret@{}", server.address())
}

fn the_rules_of_the_readme_follow_and_seed(kind: Kind) {
    let [rules, _] = rules_of_the_readme();
    let Some(mut server) = with_user(kind, &rules) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow_url(&url(&server), &archive, &[]);
    archive.until_durable();
    server.client().line("SET kept 1");
    server.client().wait_until_stored(DEADLINE);
    lose_everything(&mut server);
    until_holds(&server, "kept", "1");
    server.client().wait_until_stored(DEADLINE);
    assert!(!perennial.log().contains("NOPERM"), "{}", perennial.log());
    perennial.assert_healthy();
}

fn the_rules_for_following_alone_follow(kind: Kind) {
    let [_, rules] = rules_of_the_readme();
    let Some(server) = with_user(kind, &rules) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow_url(&url(&server), &archive, &["--seed", "never"]);
    archive.until_durable();
    server.client().line("SET kept 1");
    server.client().wait_until_stored(DEADLINE);
    assert!(!perennial.log().contains("NOPERM"), "{}", perennial.log());
    perennial.assert_healthy();
}

/// The user with all rules but one.
fn without(server: &Server, rules: &[String], command: &str) {
    let mut words = vec!["ACL", "SETUSER", "perennial", "reset"];
    let rule = format!("+{command}");
    words.extend(rules.iter().map(String::as_str).filter(|it| *it != rule));
    server.client().ok(&words);
}

fn each_permission_for_following_is_needed_and_named(kind: Kind) {
    let [_, rules] = rules_of_the_readme();
    let Some(server) = kind.start(&[]) else {
        return;
    };
    for command in allowed(&rules) {
        without(&server, &rules, command);
        let archive = Archive::new();
        let mut perennial = Perennial::follow_url(&url(&server), &archive, &["--seed", "never"]);
        perennial.until_logged("NOPERM");
        perennial.until_logged(&format!("'{command}'"));
        perennial.until_logged(&format!("+{command}"));
        perennial.assert_healthy();
        assert!(
            archive.try_status().unwrap().durable_offset.is_none(),
            "{command} is not needed"
        );
    }
}

fn each_permission_for_seeding_is_needed_and_named(kind: Kind) {
    let [all, follow] = rules_of_the_readme();
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    server.client().line("SET kept 1");
    server.client().wait_until_stored(DEADLINE);
    perennial.kill();
    lose_everything(&mut server);
    let needed: Vec<&str> = allowed(&all)
        .into_iter()
        .filter(|command| !follow.contains(&format!("+{command}")))
        .collect();
    assert_eq!(needed, ["multi", "exec", "replicaof", "config|get"]);
    for command in &needed[..3] {
        without(&server, &all, command);
        let mut perennial = Perennial::follow_url(&url(&server), &archive, &[]);
        perennial.until_logged("not ready: seed failed");
        perennial.until_logged(&format!("'{command}'"));
        perennial.until_logged(&format!("+{command}"));
        assert!(server.is_master() && server.keys() == Some(0), "{command}");
        perennial.assert_healthy();
    }
    // CONFIG GET may be missing: said, and the seed comes about.
    without(&server, &all, "config|get");
    let perennial = Perennial::follow_url(&url(&server), &archive, &[]);
    until_holds(&server, "kept", "1");
    let said = perennial.log().matches("seeding without").count();
    assert_eq!(said, 1, "{}", perennial.log());
}

/// An archive with `kept`, and its server, dead and empty.
fn archived(kind: Kind) -> Option<Archive> {
    let server = kind.start(&[])?;
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &[]);
    server.client().line("SET kept 1");
    server.client().wait_until_stored(DEADLINE);
    Some(archive)
}

fn password_file(archive: &Archive, name: &str, password: &str) -> String {
    let path = archive.beside(name);
    fs::write(&path, format!("{password}\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

fn a_masterauth_is_forgiven_where_no_password_is_asked_for(kind: Kind) {
    let Some(archive) = archived(kind) else {
        return;
    };
    let Some(server) = kind.start(&["--masterauth", "of the set", "--masteruser", "replica"])
    else {
        return;
    };
    let _perennial = Perennial::follow_url(&server.url(), &archive, &[]);
    until_holds(&server, "kept", "1");
}

fn a_masterauth_and_masteruser_open_the_seed_address(kind: Kind) {
    let Some(archive) = archived(kind) else {
        return;
    };
    let file = password_file(&archive, "password", "right");
    for user in [None, Some("replica")] {
        let mut config = vec!["--masterauth", "right"];
        config.extend(user.iter().flat_map(|user| ["--masteruser", user]));
        let Some(server) = kind.start(&config) else {
            return;
        };
        let mut perennial =
            Perennial::follow_url(&server.url(), &archive, &["--seed-password-file", &file]);
        until_holds(&server, "kept", "1");
        assert!(!perennial.log().contains("turned away"), "{user:?}");
        perennial.kill();
    }
}

fn a_wrong_masterauth_is_named_and_nothing_is_touched(kind: Kind) {
    let Some(archive) = archived(kind) else {
        return;
    };
    let file = password_file(&archive, "password", "right");
    let flags = ["--seed-password-file", file.as_str()];
    for (config, named) in [
        (
            &["--masterauth", "wrong"][..],
            "its masterauth is not what --seed-password-file holds",
        ),
        (&[], "it says no password"),
    ] {
        let Some(server) = kind.start(config) else {
            return;
        };
        let mut perennial = Perennial::follow_url(&server.url(), &archive, &flags);
        perennial.until_logged(&format!(
            "not ready: seed failed: a server at 127.0.0.1 came, but {named}"
        ));
        until("it was given back", DEADLINE, || {
            server.is_master() && server.keys() == Some(0)
        });
        // Mended, it is filled at the next attempt.
        server.client().line("CONFIG SET masterauth right");
        until_holds(&server, "kept", "1");
        perennial.assert_healthy();
        let log = perennial.log();
        assert!(!log.contains("right\""), "a password is in the log: {log}");
    }
}

/// A server that was born a replica is not touched either: it waits, and our log says why.
#[test]
fn a_server_born_a_replica_with_a_wrong_masterauth_waits_and_is_named() {
    let Some(archive) = archived(REDIS_7_0) else {
        return;
    };
    let seed = Port::reserve();
    let Some(server) = REDIS_7_0.start_waiting_for(&seed) else {
        return;
    };
    let file = password_file(&archive, "password", "right");
    let flags = [
        "--seed-listen",
        &seed.address(),
        "--seed-password-file",
        &file,
    ];
    let perennial = Perennial::follow_url(&server.url(), &archive, &flags);
    perennial.until_logged("it says no password");
    perennial.until_logged("not ready: seed failed");
    holds_for("it waits", Duration::from_secs(1), || !server.is_master());
    server.client().line("CONFIG SET masterauth right");
    until_holds(&server, "kept", "1");
}

#[test]
fn the_seed_address_needs_a_password_where_others_reach_it() {
    let archive = Archive::new();
    let archive = archive.url();
    let call = ["run", "--archive", &archive, "--seed-listen", "0.0.0.0:0"];
    let (code, _, err) = run_cli(&call);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("--seed-password-file"), "{err}");
}

/// The master wants a password; the user of the address and the password of the file go together.
#[test]
fn a_password_of_the_server_comes_from_a_file() {
    let Some(mut server) = REDIS_7_0.start(&["--requirepass", "secret"]) else {
        return;
    };
    let archive = Archive::new();
    let file = password_file(&archive, "password", "secret");
    let url = format!("redis://default@{}", server.address());
    let mut perennial = Perennial::follow_url(&url, &archive, &["--redis-password-file", &file]);
    archive.until_durable();
    let said = |server: &Server, words: &str| {
        let mut client = server.client();
        client.line("AUTH secret");
        let words: Vec<&str> = words.split(' ').collect();
        client.command(&words).unwrap()
    };
    let mut client = server.client();
    client.line("AUTH secret");
    client.line("SET kept 1");
    client.wait_until_stored(DEADLINE);
    server.kill();
    let _ = fs::remove_file(server.folder().join("dump.rdb"));
    server.start_again();
    until("kept is back", DEADLINE, || {
        said(&server, "GET kept") == Value::Bulk(b"1".to_vec())
    });
    perennial.assert_healthy();
}

/// Without any password the loop over a socket file: the server comes to the seed address over loopback.
fn the_loop_over_a_socket_file(kind: Kind) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("redis.sock");
    let socket = socket.to_str().unwrap();
    let Some(mut server) = kind.start(&["--unixsocket", socket]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow_url(&format!("unix://{socket}"), &archive, &[]);
    archive.until_durable();
    for round in ["1", "2"] {
        server.client().line(&format!("SET kept {round}"));
        server.client().wait_until_stored(DEADLINE);
        lose_everything(&mut server);
        until_holds(&server, "kept", round);
        server.client().wait_until_stored(DEADLINE);
    }
    archive.status().assert_chain_of(3);
    perennial.assert_healthy();
}
