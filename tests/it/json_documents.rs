//! `docs/json.md` names every field of every document, and no other; those of `check`, `verify`, `status` and `inspect` are
//! looked at where they are tested.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::{Archive, DEADLINE, Perennial, REDIS_7_0, run_cli};

/// The paths of all fields: `a`, `b[]`, `b[].c`.
fn fields(prefix: &str, value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let separator = if prefix.is_empty() || prefix.ends_with(' ') {
                    ""
                } else {
                    "."
                };
                let mark = if member.is_array() { "[]" } else { "" };
                let path = format!("{prefix}{separator}{name}{mark}");
                found.insert(path.clone());
                fields(&path, member, found);
            }
        }
        Value::Array(members) => {
            for member in members {
                fields(prefix, member, found);
            }
        }
        _ => {}
    }
}

/// What the section of this title names.
#[track_caller]
fn documented(title: &str) -> BTreeSet<String> {
    let document = include_str!("../../docs/json.md");
    let title = format!("\n## `perennial {title}`\n");
    let section = document.split(&title).nth(1);
    let section = section.unwrap_or_else(|| panic!("no {title}"));
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    // One row may name several.
    rows.filter_map(|line| line.split(" | ").next())
        .flat_map(|names| names.split('`').skip(1).step_by(2).map(str::to_owned))
        .collect()
}

#[track_caller]
fn printed(arguments: &[&str]) -> Value {
    let (code, out, err) = run_cli(arguments);
    assert_eq!(code, 0, "{arguments:?}: {err}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {out}"))
}

/// Every document has the fields of its section, whether they apply or not.
#[test]
fn every_document_is_as_it_is_described() {
    let (Some(server), Some(program)) = (REDIS_7_0.start(&[]), REDIS_7_0.find()) else {
        return;
    };
    let archive = Archive::new();
    let quick = ["--flush-interval", "10ms", "--upkeep-interval", "0s"];
    let _perennial = Perennial::follow(&server, &archive, &quick);
    let mut client = server.client();
    for _ in 0..60 {
        client.line("INCR counter");
        client.wait_until_stored(DEADLINE);
    }
    let (url, redis) = (archive.url(), server.url());
    let snapshot = printed(&["snapshot", "--archive", &url, "--redis", &redis, "--json"]);
    client.line("SET behind the-snapshot");
    client.wait_until_stored(DEADLINE);
    let quick = [
        "prune",
        "--archive",
        &url,
        "--retention",
        "7d",
        "--merge-minute",
        "60ms",
        "--merge-grace",
        "1ms",
        "--json",
    ];
    let prune = |more: &[&str]| printed(&[&quick[..], more].concat());
    let is_full = |plan: &Value| {
        let mut kinds = ["merge", "delete_merged"].iter();
        kinds.all(|kind| plan[*kind].as_array().is_some_and(|them| !them.is_empty()))
    };
    // Once something is merged and something else is still to be merged, both lists have a member.
    let mut planned = prune(&["--dry-run"]);
    let mut pruned = Value::Null;
    for _ in 0..40 {
        if is_full(&planned) {
            break;
        }
        pruned = prune(&[]);
        for _ in 0..20 {
            client.line("INCR counter");
            client.wait_until_stored(DEADLINE);
        }
        planned = prune(&["--dry-run"]);
    }
    assert!(is_full(&planned), "{planned}");
    // Nothing is too old here: what such an object has is what a merged one has.
    planned["delete_old"] = serde_json::json!([{ "name": "", "bytes": 0 }]);

    let Some(empty) = REDIS_7_0.start(&[]) else {
        return;
    };
    let restore = |to: &str, more: &[&str]| {
        let given = ["restore", "--archive", &url, "--to", to, "--json"];
        printed(&[&given[..], more].concat())
    };
    let folder = |name: &str| archive.beside(name).display().to_string();
    let scratch = ["--format", "rdb", "--scratch", program.to_str().unwrap()];
    let documents = [
        ("snapshot --json", snapshot),
        ("prune --json", pruned),
        ("prune --dry-run --json", planned),
        ("ls --json", printed(&["ls", "--archive", &url, "--json"])),
        (
            "restore --dry-run --json",
            restore(&folder("plan"), &["--dry-run"]),
        ),
        ("restore --to DIR --json", restore(&folder("files"), &[])),
        (
            "restore --to DIR --json",
            restore(&folder("dump"), &scratch),
        ),
        ("restore --to URL --json", restore(&empty.url(), &[])),
    ];
    for (title, document) in documents {
        let mut found = BTreeSet::new();
        fields("", &document, &mut found);
        assert_eq!(found, documented(title), "{title}: {document:#}");
    }
}

/// An error is no document: nothing is printed, and what failed is said where people read it.
#[test]
fn an_error_prints_no_document() {
    let archive = Archive::new();
    let url = archive.url();
    for call in [
        &["status"][..],
        &["ls"],
        &["inspect"],
        &["prune", "--dry-run"],
    ] {
        let (code, out, err) = run_cli(&[call, &["--archive", &url, "--json"]].concat());
        assert!(code == 1 || code == 3, "{call:?}: {code}");
        assert_eq!(out, "", "{call:?}");
        assert!(err.starts_with("perennial: "), "{call:?}: {err}");
    }
}
