//! What `inspect` tells of dumps and archives, and what it says of damage.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::random::Random;
use crate::harness::servers::{REDIS_8_0, VALKEY_9_1};
use crate::harness::{Archive, DEADLINE, Kind, Perennial, run_cli};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("proto-fixtures/rdb/valid")
}

fn fixture(server: &str) -> PathBuf {
    fixtures().join(format!("every-type-{server}.rdb"))
}

/// Inspects a file that can be read, and gives the JSON.
#[track_caller]
fn inspected(path: &Path, more: &[&str]) -> Value {
    let path = path.display().to_string();
    let call = [&["inspect", "--file", &path, "--json"], more].concat();
    let (code, out, err) = run_cli(&call);
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).unwrap()
}

/// Inspects a file that cannot be read, and gives the exit code and the message.
#[track_caller]
fn refused(path: &Path, more: &[&str]) -> (i32, String) {
    let path = path.display().to_string();
    let (code, out, err) = run_cli(&[&["inspect", "--file", &path], more].concat());
    assert_eq!(out, "", "{err}");
    (code, err)
}

#[test]
fn the_counts_are_those_that_the_servers_told() {
    let mut files = 0;
    for entry in fs::read_dir(fixtures()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|it| it != "rdb") {
            continue;
        }
        files += 1;
        let told = fs::read_to_string(path.with_extension("keys.json")).unwrap();
        let told: Value = serde_json::from_str(&told).unwrap();
        let found = inspected(&path, &[]);
        let databases = told["keys"].as_object().unwrap();
        let keys = || {
            databases
                .values()
                .flat_map(|it| it.as_object().unwrap().values())
        };
        let expiring = keys().filter(|it| it["ttl"] == true).count();
        assert_eq!(found["keys"], keys().count());
        assert_eq!(found["expiring"], expiring);
        let hashes = databases["0"].as_object().unwrap().values();
        let hashes = hashes.filter(|it| it["type"] == "hash").count();
        let rows = found["types"].as_array().unwrap();
        let row = rows
            .iter()
            .find(|it| it["database"] == 0 && it["type"] == "hash");
        assert_eq!(row.unwrap()["keys"], hashes, "{}", path.display());
        assert_eq!(found["checksum"], "verified");
        let sum =
            |field: &str| -> u64 { rows.iter().map(|row| row[field].as_u64().unwrap()).sum() };
        assert_eq!(found["bytes"], sum("bytes"));
        assert_eq!(found["keys"], sum("keys"));
    }
    assert!(files >= 10, "{files}");
}

/// A server of each numbering of types: through the archive, every value comes out as it went in.
#[test]
fn an_archive_is_inspected_and_values_are_shown() {
    for kind in [REDIS_8_0, VALKEY_9_1] {
        an_archive_of(&kind);
    }
}

fn an_archive_of(kind: &Kind) {
    let Some(server) = kind.start(&[]) else {
        return;
    };
    let mut client = server.client();
    client.line("SET user:1 hello EX 100000");
    client.ok(&[b"SET".as_slice(), b"raw\n\\\xff", b"bytes"]);
    client.line("RPUSH list a b 3");
    client.line("SADD numbers 1 2 3");
    client.line("HSET user:2 name Ada age 36");
    client.line("ZADD ranking 1.5 a +inf b");
    client.line("XADD stream 1-1 f v");
    client.line("SELECT 3");
    client.line("SET other elsewhere");
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &[]);
    client.wait_until_stored(DEADLINE);
    let url = archive.url();
    let inspect = |more: &[&str]| -> Value {
        let call = [&["inspect", "--archive", &url, "--json"], more].concat();
        let (code, out, err) = run_cli(&call);
        assert_eq!(code, 0, "{err}");
        serde_json::from_str(&out).unwrap()
    };
    let found = inspect(&[]);
    assert_eq!(found["source"]["archive"], url.as_str());
    assert_eq!(found["source"]["timeline"], 1);
    assert_eq!((&found["keys"], &found["expiring"]), (&json!(8), &json!(1)));
    assert_eq!(found["prefixes"][0]["prefix"], "user:");
    assert_eq!(found["prefixes"][0]["keys"], 2);
    assert_eq!(found["without_prefix"]["keys"], 6);

    let value = |key: &str| inspect(&["--key", key])["value"].clone();
    assert_eq!(value("user:1"), "hello");
    assert_eq!(value("raw\\x0a\\\\\\xff"), "bytes");
    assert_eq!(value("list"), json!(["a", "b", "3"]));
    assert_eq!(value("numbers"), json!(["1", "2", "3"]));
    assert_eq!(
        value("user:2"),
        json!([{"field": "name", "value": "Ada"}, {"field": "age", "value": "36"}])
    );
    assert_eq!(
        value("ranking"),
        json!([{"member": "a", "score": 1.5}, {"member": "b", "score": "inf"}])
    );
    let stream = inspect(&["--key", "stream"]);
    assert_eq!(stream["value"], Value::Null);
    assert_eq!(stream["not_decoded"], "streams are not decoded");
    let other = inspect(&["--key", "other", "--database", "3"]);
    assert_eq!(other["value"], "elsewhere");

    let (code, text, err) = run_cli(&["inspect", "--archive", &url]);
    assert_eq!(code, 0, "{err}");
    for wanted in ["8 keys", "heaviest prefixes", "user:", "checksum verified"] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let (code, text, err) = run_cli(&["inspect", "--archive", &url, "--key", "list"]);
    assert_eq!(code, 0, "{err}");
    assert!(text.ends_with("no TTL\n  a\n  b\n  3\n"), "{text}");
}

#[test]
fn nothing_to_inspect_has_an_exit_code_of_its_own() {
    let (code, message) = refused(&fixture("redis-7.0.15"), &["--key", "nobody"]);
    assert_eq!(code, 3, "{message}");
    assert!(
        message.contains("database 0 has no key nobody"),
        "{message}"
    );
    let archive = Archive::new();
    let (code, _, err) = run_cli(&["inspect", "--archive", &archive.url()]);
    assert_eq!(code, 3, "{err}");
}

#[test]
fn wrong_usage_is_told() {
    let file = fixture("redis-7.0.15");
    for more in [
        ["--key", "a\\"].as_slice(),
        &["--prefix-separator", ""],
        &["--top", "10001"],
    ] {
        let (code, message) = refused(&file, more);
        assert_eq!(code, 2, "{more:?}: {message}");
        assert!(message.contains(more[0]), "{more:?}: {message}");
    }
    let (code, _, err) = run_cli(&["inspect"]);
    assert_eq!(code, 2, "{err}");
    let (code, _, err) = run_cli(&["inspect", "--archive", "file:///nowhere", "--at", "teatime"]);
    assert_eq!(code, 2, "{err}");
}

#[test]
fn damage_is_named_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dump.rdb");
    let good = fs::read(fixture("valkey-9.1.2")).unwrap();
    let told = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let (code, message) = refused(&path, &[]);
        assert_eq!(code, 1, "{message}");
        message
    };
    let message = told(&good[..5000]);
    assert!(message.contains("it ends at byte 5000"), "{message}");

    let mut flipped = good.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    let message = told(&flipped);
    let place = format!("byte {}: ", good.len() - 8);
    assert!(
        message.contains(&place) && message.contains("checksum"),
        "{message}"
    );

    let message = told(b"*1\r\n$4\r\nPING\r\n");
    assert!(message.contains("not an RDB dump"), "{message}");

    let message = told(&[good.as_slice(), b"*1\r\n"].concat());
    assert!(message.contains("something follows the end"), "{message}");

    let message = told(b"VALKEY080\x1f\x01kvalue");
    assert!(message.contains("byte 9: unknown type 31"), "{message}");
}

/// Without a checksum nothing says whether a value is whole, and the decoder of values trusts what it gets.
#[test]
fn values_of_a_dump_without_checksum_are_not_decoded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dump.rdb");
    let mut bytes = fs::read(fixture("redis-7.2.6")).unwrap();
    let trailer = bytes.len() - 8;
    bytes[trailer..].fill(0);
    fs::write(&path, &bytes).unwrap();
    assert_eq!(inspected(&path, &[])["checksum"], "disabled");
    let found = inspected(&path, &["--key", "bits"]);
    assert_eq!(
        (&found["type"], &found["value"]),
        (&json!("string"), &Value::Null)
    );
    let why = found["not_decoded"].as_str().unwrap();
    assert!(why.contains("no checksum"), "{why}");
}

/// More keys, prefixes and value than the process may have memory.
#[test]
fn memory_does_not_depend_on_the_dump() {
    const KEYS: u32 = 400_000;
    const VALUE_BYTES: u32 = 200_000_000;
    const DATA_KIB_MAX: u32 = 48 * 1024;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dump.rdb");
    let mut random = Random::fixed(11);
    let mut dump = std::io::BufWriter::new(fs::File::create(&path).unwrap());
    dump.write_all(b"REDIS0011\xfe\0").unwrap();
    for _ in 0..KEYS {
        // Of 80 bytes or so, each with a prefix of its own.
        let name = format!(
            "{:016x}{:016x}{:016x}:{:016x}",
            random.bits(),
            random.bits(),
            random.bits(),
            1
        );
        dump.write_all(&[0, 0x40, u8::try_from(name.len()).unwrap()])
            .unwrap();
        dump.write_all(name.as_bytes()).unwrap();
        dump.write_all(&[0xc0, 1]).unwrap();
    }
    dump.write_all(b"\0\x03big\x80").unwrap();
    dump.write_all(&VALUE_BYTES.to_be_bytes()).unwrap();
    let mut file = dump.into_inner().unwrap();
    // A hole in the file: zeros that take no place.
    let length = file.metadata().unwrap().len() + u64::from(VALUE_BYTES);
    file.set_len(length).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).unwrap();
    file.write_all(&[0xff, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();

    let output = std::process::Command::new("sh")
        .arg("-c")
        .arg(format!(
            "ulimit -d {DATA_KIB_MAX} && exec \"$0\" inspect --json --top 3 --file \"$1\""
        ))
        .arg(env!("CARGO_BIN_EXE_perennial"))
        .arg(&path)
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["keys"], KEYS + 1);
    assert_eq!(found["biggest"][0]["key"], "big");
    // Every prefix is there once: at most one 4096th of all can be missing of any.
    let missed = found["prefixes_missed_bytes"].as_u64().unwrap();
    assert!(missed > 0, "some prefixes had to go");
    assert!(
        missed <= found["bytes"].as_u64().unwrap() / 4096,
        "{missed}"
    );

    // The limit is one: a value that is kept does not fit.
    let output = std::process::Command::new("sh")
        .arg("-c")
        .arg(format!(
            "ulimit -d {DATA_KIB_MAX} && exec \"$0\" inspect --key big --file \"$1\""
        ))
        .arg(env!("CARGO_BIN_EXE_perennial"))
        .arg(&path)
        .output()
        .unwrap();
    assert!(
        !output.status.success(),
        "200 MB fit into {DATA_KIB_MAX} KiB"
    );
}

/// `docs/json.md` names every field, and no other.
#[test]
fn the_fields_of_the_json_are_those_of_the_document() {
    let document = include_str!("../../docs/json.md");
    let path = fixture("redis-8.0.6");
    for (title, json) in [
        ("## `perennial inspect --json`", inspected(&path, &[])),
        (
            "## `perennial inspect --key KEY --json`",
            inspected(&path, &["--key", "bits"]),
        ),
    ] {
        let section = document.split(title).nth(1).expect(title);
        let section = section.split("\n## ").next().unwrap();
        let mut documented: Vec<String> = section
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .map(str::to_owned)
            .collect();
        documented.sort();
        let mut found = Vec::new();
        fields("", &json, &mut found);
        found.sort();
        found.dedup();
        assert_eq!(found, documented, "{title}");
    }
}

/// The paths of all fields: `a`, `b[]`, `b[].c`.
fn fields(prefix: &str, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let path = match prefix {
                    "" => name.clone(),
                    _ => format!("{prefix}.{name}"),
                };
                let path = match member {
                    Value::Array(_) => format!("{path}[]"),
                    _ => path,
                };
                found.push(path.clone());
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
