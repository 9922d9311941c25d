//! Reads the sources and checks the layer table of the design, so that the picture stays true as the code grows.

use std::fs;
use std::path::Path;

/// What a module may use.
enum Rule {
    /// None of these paths.
    Never(&'static [&'static str]),
    /// Of our own modules only these (its own is always allowed), and none of the other paths.
    Only(&'static [&'static str], &'static [&'static str]),
}
use Rule::{Never, Only};

/// The table. A module may stand in several lines.
const TABLE: &[(&str, Rule)] = &[
    (
        "position",
        Only(&["clock"], &["tokio", "std::net", "std::fs"]),
    ),
    (
        "clock",
        Only(&["position"], &["tokio", "std::net", "std::fs"]),
    ),
    ("random", Only(&[], &["tokio", "std::net", "std::fs"])),
    ("advice", Only(&[], &["tokio", "std::net"])),
    (
        "proto",
        Only(
            &["position"],
            &[
                "tokio",
                "std::net",
                "std::fs",
                "std::time::Instant",
                "std::time::SystemTime",
            ],
        ),
    ),
    ("archive", Never(&["crate::proto", "crate::store", "tokio"])),
    ("decide", Only(&["position", "archive"], &["tokio"])),
    (
        "store",
        Never(&[
            "crate::proto",
            "crate::follow",
            "crate::restore",
            "crate::cli",
        ]),
    ),
    (
        "server",
        Never(&["crate::follow", "crate::restore", "crate::cli"]),
    ),
    (
        // Of `server` and `store` values alone: INFO and errors.
        "check",
        Never(&[
            "tokio",
            "std::net",
            "std::fs",
            "crate::clock",
            "crate::proto",
            "crate::follow",
            "crate::restore",
            "crate::cli",
            "crate::config",
            "crate::server::control",
            "crate::server::examine",
            "crate::server::net",
            "crate::store::catalog",
            "crate::store::examine",
            "crate::store::Store",
        ]),
    ),
    // A type that the scanner of dumps does not know must never end a backup or a restore.
    (
        "follow",
        Never(&["crate::restore", "crate::cli", "crate::proto::rdb"]),
    ),
    (
        "restore",
        Never(&["crate::follow", "crate::cli", "crate::proto::rdb"]),
    ),
    (
        "restore::rewrite",
        Only(
            &["position", "proto", "archive"],
            &["tokio", "std::net", "std::fs"],
        ),
    ),
    (
        "upkeep",
        Never(&["crate::proto", "crate::follow", "crate::restore"]),
    ),
    (
        "replay",
        Never(&["crate::proto", "crate::cli", "crate::config"]),
    ),
    ("metrics", Only(&["http", "position", "clock"], &[])),
    ("http", Only(&["metrics", "position", "clock"], &[])),
    ("config", Never(&["clap", "tokio"])),
];

/// Identifiers and punctuation of a source, without comments, strings and the tests at its end.
fn tokens(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]\nmod tests").next().unwrap();
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let word = |character: char| character.is_alphanumeric() || character == '_';
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(hashes) = raw_string(rest) {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = hashes + 2;
            rest[body..]
                .find(&end)
                .map_or(rest.len(), |at| body + at + end.len())
        } else if first == '"' {
            string_length(rest)
        } else if let Some(length) = character_literal(rest) {
            length
        } else if word(first) {
            let length = rest
                .find(|character| !word(character))
                .unwrap_or(rest.len());
            tokens.push(rest[..length].to_owned());
            length
        } else if rest.starts_with("::") {
            tokens.push("::".to_owned());
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

/// The number of `#` of a raw string that begins here.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a character literal; a lifetime is none.
fn character_literal(text: &str) -> Option<usize> {
    let after = text.strip_prefix('\'')?;
    if let Some(escape) = after.strip_prefix('\\') {
        // The escaped character itself may be a quote.
        let quote = escape.char_indices().skip(1).find(|(_, c)| *c == '\'');
        return Some(2 + quote.map_or(escape.len(), |(at, _)| at + 1));
    }
    let character = after.chars().next()?;
    after[character.len_utf8()..]
        .starts_with('\'')
        .then(|| character.len_utf8() + 2)
}

/// Every path in the tokens, with the groups of `use` opened: `a::{b, c::d}` gives `a::b` and `a::c::d`.
fn paths(tokens: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if is_word(&tokens[at]) {
            at = path(tokens, at, "", &mut found);
        } else {
            at += 1;
        }
    }
    found
}

fn is_word(token: &str) -> bool {
    token.starts_with(|character: char| character.is_alphanumeric() || character == '_')
}

/// Reads one path, whose beginning is `prefix`, from `at` on; returns where it ends.
fn path(tokens: &[String], mut at: usize, prefix: &str, found: &mut Vec<String>) -> usize {
    let mut whole = prefix.to_owned();
    loop {
        match tokens.get(at).map(String::as_str) {
            Some("{") if !whole.is_empty() => {
                at += 1;
                while at < tokens.len() && tokens[at] != "}" {
                    at = if is_word(&tokens[at]) || tokens[at] == "{" {
                        path(tokens, at, &whole, found)
                    } else {
                        at + 1
                    };
                }
                return at + 1;
            }
            Some(word) if is_word(word) => {
                if !whole.is_empty() {
                    whole.push_str("::");
                }
                whole.push_str(word);
                at += 1;
            }
            // `*`, and the `<` of a turbofish.
            _ => break,
        }
        if tokens.get(at).map(String::as_str) == Some("::") {
            at += 1;
        } else {
            break;
        }
    }
    found.push(whole);
    at
}

/// `super::…` and `self::…` of a file as `crate::…`.
fn absolute(path: &str, module: &[&str]) -> String {
    let parts: Vec<&str> = path.split("::").collect();
    let up = parts.iter().take_while(|part| **part == "super").count();
    let rest = match parts[0] {
        "self" => &parts[1..],
        "super" => &parts[up..],
        _ => return path.to_owned(),
    };
    let base = &module[..module.len().saturating_sub(up)];
    [&["crate"], base, rest].concat().join("::")
}

/// What a file breaks: one line for each forbidden path. `file` is relative to `src`.
fn violations(file: &str, source: &str) -> Vec<String> {
    let module = file.trim_end_matches(".rs").trim_end_matches("/mod");
    let module: Vec<&str> = module.split('/').collect();
    let under =
        |path: &str, prefix: &str| path == prefix || path.starts_with(&format!("{prefix}::"));
    let mut broken = Vec::new();
    for path in paths(&tokens(source)) {
        let path = absolute(&path, &module);
        let own = path
            .strip_prefix("crate::")
            .and_then(|rest| rest.split("::").next());
        let whole = module.join("::");
        for (_, rule) in TABLE.iter().filter(|(name, _)| under(&whole, name)) {
            let forbidden = match rule {
                Never(never) => never.iter().any(|prefix| under(&path, prefix)),
                Only(only, never) => {
                    own.is_some_and(|own| own != module[0] && !only.contains(&own))
                        || never.iter().any(|prefix| under(&path, prefix))
                }
            };
            if forbidden {
                broken.push(format!("src/{file} uses {path}"));
            }
        }
    }
    broken
}

fn sources(folder: &Path, root: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, root, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path
                .strip_prefix(root)
                .unwrap()
                .to_string_lossy()
                .into_owned();
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn the_sources_keep_to_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &root, &mut files);
    assert!(files.len() > 5, "{files:?}");
    let broken: Vec<String> = files
        .iter()
        .flat_map(|(name, source)| violations(name, source))
        .collect();
    assert!(
        broken.is_empty(),
        "the layer table is broken:\n{}",
        broken.join("\n")
    );
}

#[test]
fn a_planted_violation_is_found() {
    let planted = [
        ("proto/replica.rs", "use tokio::net::TcpStream;"),
        (
            "proto/replica.rs",
            "use std::{collections::BTreeMap, net::{IpAddr, TcpStream}};",
        ),
        ("proto/mod.rs", "fn f() { let _ = std::fs::read(\"a\"); }"),
        (
            "proto/resp.rs",
            "use crate::{position::Offset, clock::Clock};",
        ),
        ("proto/rdb/mod.rs", "use super::super::store::Store;"),
        ("archive/block.rs", "use crate::proto::resp;"),
        (
            "archive/plan.rs",
            "fn f(s: &dyn super::super::store::Store) {}",
        ),
        (
            "store/fs.rs",
            "pub use crate::{archive::layout, follow::{self, Uploader}};",
        ),
        (
            "follow/mod.rs",
            "impl T { fn f<'a>(x: &'a u8) { crate::restore::source::open::<u8>() } }",
        ),
        (
            "restore/mod.rs",
            "use crate::{\n    archive,\n    cli as c,\n};",
        ),
        ("restore/rewrite.rs", "use crate::store::Store;"),
        (
            "follow/snapshots.rs",
            "use crate::proto::{handshake, rdb::Scanner};",
        ),
        ("restore/rewrite.rs", "use crate::clock::Clock;"),
        ("metrics.rs", "use crate::store::Store;"),
        ("config.rs", "#[derive(clap::Parser)] struct A;"),
        ("decide.rs", "use crate::server::control;"),
        ("clock.rs", "use crate::archive;"),
        (
            "proto/mod.rs",
            "const A: char = '\"'; use tokio::io; const B: char = '\"';",
        ),
        ("proto/mod.rs", "const A: char = '\\''; use tokio::io;"),
        ("proto/mod.rs", "const A: &str = \"a\\\"\"; use tokio::io;"),
        ("proto/mod.rs", "const A: &str = r#\"\"\"#; use tokio::io;"),
    ];
    for (file, source) in planted {
        assert!(!violations(file, source).is_empty(), "{file}: {source}");
    }
}

#[test]
fn what_is_allowed_is_not_reported() {
    let fine = [
        (
            "proto/replica.rs",
            "use crate::position::Offset; use super::resp; use std::time::Duration;",
        ),
        (
            "proto/mod.rs",
            "// use tokio::net;\n/* crate::store */ const A: &str = \"tokio::net \\\" std::fs\";",
        ),
        (
            "proto/mod.rs",
            "fn f() {}\n#[cfg(test)]\nmod tests { use std::fs; use tokio::net; }",
        ),
        ("proto/mod.rs", "const A: &str = r#\"use \"tokio::net\"\"#;"),
        (
            "store/fs.rs",
            "use crate::archive::layout::ObjectName; use tokio::fs;",
        ),
        (
            "follow/mod.rs",
            "use crate::{archive, store, proto, server, position, metrics};",
        ),
        ("cli/run.rs", "use crate::{follow, restore, config};"),
        ("main.rs", "use perennial::cli; use tokio::runtime;"),
        (
            "decide.rs",
            "use crate::{archive::timeline::Timeline, position::Offset};",
        ),
    ];
    for (file, source) in fine {
        assert!(
            violations(file, source).is_empty(),
            "{file}: {:?}",
            violations(file, source)
        );
    }
}
