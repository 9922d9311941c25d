//! What `verify` finds: every object that is damaged or lost; and what a drill proves.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use perennial::archive::block::{BlockContext, Compressor, RawBlock};
use perennial::archive::layout::{
    AcceptedDocument, ArchiveId, DOCUMENT_FORMAT, Object, ObjectName,
};
use perennial::archive::segment::{Chunk, SegmentBuilder, SegmentReader};
use perennial::archive::snapshot::SnapshotBuilder;
use perennial::check::Level;
use perennial::position::{Offset, UnixMillis};
use perennial::restore::verify::verify;
use perennial::store::fs::FsStore;
use serde_json::Value;

use crate::harness::archive::{objects_in, url_of};
use crate::harness::random::Random;
use crate::harness::workload::write_everything;
use crate::harness::{Archive, DEADLINE, Kind, Perennial, REDIS_7_0, Server, run_cli};

crate::on_every_server!(oldest, usual and newest; a_drill_proves_a_restore_and_catches_a_lie);

/// `perennial verify --json` of an archive.
fn verified(url: &str, more: &[&str]) -> (i32, Value) {
    let arguments = [&["verify", "--archive", url, "--json"], more].concat();
    let (code, out, err) = run_cli(&arguments);
    let json = serde_json::from_str(&out);
    let json = json.unwrap_or_else(|error| panic!("{error}: {out} {err}"));
    (code, json)
}

/// What a finding says, where there is one of this identifier and level.
fn finding<'a>(json: &'a Value, id: &str, level: &str) -> Option<&'a str> {
    let findings = json["findings"].as_array().unwrap();
    findings
        .iter()
        .find(|finding| finding["id"] == id && finding["level"] == level)
        .and_then(|finding| finding["found"].as_str())
}

fn encoded(blocks: Vec<RawBlock>, context: &BlockContext) -> Vec<u8> {
    let mut compressor = Compressor::new();
    let blocks = blocks.into_iter();
    blocks
        .flat_map(|block| block.encode(context, &mut compressor))
        .collect()
}

/// What the blocks of timeline 1 say that they belong to.
fn context(archive: &Archive) -> BlockContext {
    let status = archive.status();
    BlockContext {
        archive: status.archive_id.parse::<ArchiveId>().unwrap(),
        timeline: "1"
            .parse()
            .map(perennial::position::TimelineSeq::new)
            .unwrap(),
        id: status.timelines[0].id.parse().unwrap(),
    }
}

/// Puts another snapshot into timeline 1: what the server itself saves, at an offset that is stored.
fn add_snapshot(server: &Server, archive: &Archive) {
    let mut client = server.client();
    let offset = loop {
        let before = server.info_number("replication", "master_repl_offset");
        client.save();
        // A PING may come in between.
        if server.info_number("replication", "master_repl_offset") == before {
            break before;
        }
    };
    archive.until("everything up to it is stored", DEADLINE, |status| {
        status.head.is_some_and(|head| head.offset >= offset)
    });
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let at = UnixMillis(u64::try_from(now.as_millis()).unwrap());
    let context = context(archive);
    let mut builder = SnapshotBuilder::new(Offset::new(offset), at);
    let name = builder.name(context.timeline, context.id);
    builder.push(fs::read(server.folder().join("dump.rdb")).unwrap().into());
    let sealed = builder.finish().unwrap();
    fs::write(
        archive.path().join(name.as_str()),
        encoded(sealed.blocks, &context),
    )
    .unwrap();
}

/// The segment of a copy in which `truth` lies, with `lie` in its place: as valid as before.
fn lie(context: &BlockContext, folder: &Path, truth: &[u8], lie: &[u8]) -> (String, Vec<u8>) {
    for (name, path) in objects_in(folder) {
        let Some(
            object @ Object::Segment {
                span,
                merged: false,
                ..
            },
        ) = Object::parse(&name)
        else {
            continue;
        };
        let mut reader = SegmentReader::new(&object).unwrap();
        reader.push(fs::read(&path).unwrap().into());
        let (mut payload, mut last) = (Vec::new(), None);
        while let Some(block) = reader.next().unwrap() {
            payload.extend_from_slice(&block.payload);
            last = Some(block.header);
        }
        let Some(at) = payload.windows(truth.len()).position(|here| here == truth) else {
            continue;
        };
        payload[at..at + truth.len()].copy_from_slice(lie);
        let last = last.unwrap();
        let mut builder = SegmentBuilder::new(span.first.previous(), None);
        let rest = payload.split_off(1);
        builder.push(Chunk {
            bytes: Bytes::from(payload),
            at: span.first_at,
            boundary: None,
            database_at_end: None,
        });
        builder.push(Chunk {
            bytes: Bytes::from(rest),
            at: span.last_at,
            boundary: last
                .boundary
                .map(|boundary| (boundary.offset, boundary.database)),
            database_at_end: last.database_end,
        });
        let sealed = builder.finish().unwrap();
        assert_eq!(sealed.name(context.timeline, context.id).as_str(), name);
        return (name, encoded(sealed.blocks, context));
    }
    panic!("no segment holds {}", truth.escape_ascii());
}

fn a_drill_proves_a_restore_and_catches_a_lie(kind: Kind) {
    let Some(server) = kind.start(&["--hz", "100"]) else {
        return;
    };
    let program = kind.find().unwrap();
    let program = program.to_str().unwrap();
    let mut client = server.client();
    // In the first snapshot, and gone before the second one; and in both, and gone before the drill.
    client.line("PSETEX lapses:soon 300 x");
    client.line("PSETEX lapses:later 4000 x");
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &[]);
    let url = archive.url();
    write_everything(&mut client, 1);
    client.wait_until_stored(DEADLINE);

    let drill = ["--drill", "--scratch", program];
    let (code, alone) = verified(&url, &drill);
    assert_eq!(code, 0, "{alone:#}");
    assert!(
        finding(&alone, "drill-oracle", "unknown").is_some(),
        "{alone:#}"
    );
    assert!(finding(&alone, "drill-latest", "ok").is_some(), "{alone:#}");

    client.line("SET told truth");
    client.line("PEXPIRE told 86400000");
    write_everything(&mut client, 2);
    for number in 0..200 {
        client.line(&format!("PSETEX lapses:{number} {} x", 500 + 20 * number));
    }
    client.wait_until_stored(DEADLINE);
    add_snapshot(&server, &archive);
    client.line("SET behind 1");
    client.wait_until_stored(DEADLINE);
    perennial.kill();

    let (code, proven) = verified(&url, &drill);
    assert_eq!(code, 0, "{proven:#}");
    let compared = &proven["drill"]["compared"];
    assert_eq!(compared["same"], true, "{proven:#}");
    assert!(compared["keys"].as_u64().unwrap() > 20, "{proven:#}");
    assert_eq!(
        proven["drill"]["latest"]["offset"],
        archive.status().head.unwrap().offset
    );

    let (copy_url, copy) = archive.copy("lying");
    let (name, bytes) = lie(&context(&archive), &copy, b"truth", b"false");
    fs::write(copy.join(name), bytes).unwrap();
    let (code, fine) = verified(&copy_url, &[]);
    assert_eq!(code, 0, "its bytes are whole: {fine:#}");
    let (code, caught) = verified(&copy_url, &drill);
    assert_eq!(code, 1, "{caught:#}");
    let said = finding(&caught, "drill-oracle", "bad").unwrap();
    assert!(said.contains("key \"told\" has another value"), "{said}");
}

#[test]
fn a_server_that_is_lent_serves_a_drill_and_is_left_empty() {
    let (Some(server), Some(lent)) = (
        REDIS_7_0.start(&[]),
        REDIS_7_0.start(&["--masterauth", "own"]),
    ) else {
        return;
    };
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &[]);
    server.client().line("SET a b");
    server.client().wait_until_stored(DEADLINE);
    let (code, json) = verified(&archive.url(), &["--drill", "--scratch", &lent.url()]);
    assert_eq!(code, 0, "{json:#}");
    assert_eq!(json["drill"]["keys"].as_u64(), server.keys());
    assert_eq!((lent.is_master(), lent.keys()), (true, Some(0)));
    let masterauth = lent.client().line("CONFIG GET masterauth").array();
    assert_eq!(masterauth[1].text(), "own");
}

/// An archive with every kind of object, all of them old: nothing is on its way.
fn every_kind() -> Option<(Archive, PathBuf)> {
    let server = REDIS_7_0.start(&[])?;
    let mut client = server.client();
    for number in 0..6 {
        let bytes = Random::fixed(number).bytes(1024 * 1024);
        client.ok(&[
            b"SET".as_slice(),
            format!("large:{number}").as_bytes(),
            &bytes,
        ]);
    }
    let archive = Archive::new();
    let parts = ["--snapshot-part-bytes", "1MiB", "--name", "orders"];
    let mut perennial = Perennial::follow(&server, &archive, &parts);
    for round in 0..3 {
        write_everything(&mut client, round);
        client.wait_until_stored(DEADLINE);
    }
    perennial.kill();
    let BlockContext { timeline, id, .. } = context(&archive);
    let accepted = Object::Accepted {
        seq: timeline,
        id,
        rank: timeline,
        order: 1,
    };
    let document = AcceptedDocument {
        format: DOCUMENT_FORMAT,
        accepted_at: UnixMillis(1_700_000_000_000),
        by: "a test".into(),
        reason: "to have one".into(),
    };
    fs::write(
        archive.path().join(accepted.name().as_str()),
        document.encode(),
    )
    .unwrap();
    let (_, copy) = archive.copy("damaged");
    let names: Vec<String> = objects_in(&copy)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    for kind in [
        "archive.json",
        "timeline.json",
        "/accepted-",
        "-0001.rdb.",
        "-end.rdb.",
        "/segments/",
    ] {
        assert!(
            names.iter().any(|name| name.contains(kind)),
            "{kind}: {names:?}"
        );
    }
    let old = SystemTime::now() - Duration::from_secs(3600);
    for (name, path) in objects_in(&copy) {
        if name != "archive.json" {
            fs::File::open(path).unwrap().set_modified(old).unwrap();
        }
    }
    Some((archive, copy))
}

/// The identifiers of what is bad in a folder.
fn bad(folder: &Path) -> Vec<&'static str> {
    let store = Arc::new(FsStore::new(folder.to_owned()));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let report = runtime
        .block_on(verify(store, None, UnixMillis(0), |_, _| ()))
        .unwrap();
    let bad = report.findings.iter();
    let bad = bad.filter(|finding| finding.level == Level::Bad);
    bad.map(|finding| finding.id).collect()
}

#[test]
fn a_flipped_bit_in_any_object_is_found() {
    let Some((_archive, copy)) = every_kind() else {
        return;
    };
    assert_eq!(bad(&copy), Vec::<&str>::new());
    let mut random = Random::new();
    for (name, path) in objects_in(&copy) {
        let whole = fs::read(&path).unwrap();
        let tries = if whole.len() < 100_000 { 20 } else { 3 };
        for _ in 0..tries {
            let mut damaged = whole.clone();
            let at = usize::try_from(random.below(whole.len() as u64)).unwrap();
            damaged[at] ^= 1 << random.below(8);
            fs::write(&path, &damaged).unwrap();
            assert!(
                !bad(&copy).is_empty(),
                "{name}: byte {at} of {}",
                whole.len()
            );
        }
        fs::write(&path, &whole).unwrap();
    }
    assert_eq!(bad(&copy), Vec::<&str>::new());
}

#[test]
fn a_lost_object_is_found_wherever_something_leads_on_from_it() {
    let Some((archive, copy)) = every_kind() else {
        return;
    };
    let objects = objects_in(&copy);
    let last_segment = objects
        .iter()
        .rev()
        .find(|(name, _)| name.contains("/segments/"));
    let last_segment = &last_segment.unwrap().0;
    for (name, path) in &objects {
        let away = archive.beside("away");
        fs::rename(path, &away).unwrap();
        // Nothing else speaks of an acceptance, or of the last bytes: without them it is a history that ends earlier.
        let is_told = !name.contains("/accepted-") && name != last_segment;
        assert_eq!(!bad(&copy).is_empty(), is_told, "{name}");
        fs::rename(&away, path).unwrap();
    }
    let damaged = url_of(&copy);
    fs::remove_file(copy.join(last_segment)).unwrap();
    assert_eq!(verified(&damaged, &[]).0, 0);
    let (name, path) = objects
        .iter()
        .find(|(name, _)| name.contains("/segments/"))
        .unwrap();
    fs::write(path, b"nonsense").unwrap();
    let (code, json) = verified(&damaged, &[]);
    assert_eq!(code, 1, "{json:#}");
    assert!(
        finding(&json, "segment", "bad")
            .unwrap()
            .contains(name.as_str()),
        "{json:#}"
    );
}

/// However long ago the last object came: what lies behind a gap is not on its way.
#[test]
fn a_gap_in_an_archive_that_nobody_writes_to_is_bad() {
    let Some((_archive, copy)) = every_kind() else {
        return;
    };
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    for (_, path) in objects_in(&copy) {
        fs::File::open(path)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
    }
    let objects = objects_in(&copy);
    let mut segments = objects.iter().filter(|it| it.0.contains("/segments/"));
    fs::remove_file(&segments.nth(1).unwrap().1).unwrap();
    let (code, json) = verified(&url_of(&copy), &[]);
    assert_eq!(code, 1, "{json:#}");
    assert!(finding(&json, "gap", "bad").is_some(), "{json:#}");
}

#[test]
fn bytes_that_are_stored_twice_must_be_the_same() {
    let Some((archive, copy)) = every_kind() else {
        return;
    };
    let segments: Vec<(Object, PathBuf)> = objects_in(&copy)
        .into_iter()
        .filter_map(|(name, path)| Some((Object::parse(&name)?, path)))
        .filter(|(object, _)| matches!(object, Object::Segment { .. }))
        .collect();
    let span_of = |at: usize| match segments[at].0 {
        Object::Segment { span, .. } => span,
        _ => panic!("a segment"),
    };
    let (first, last) = (span_of(0), span_of(segments.len() - 1));
    let context = context(&archive);
    let merged: ObjectName = Object::Segment {
        seq: context.timeline,
        id: context.id,
        span: perennial::archive::layout::Span {
            last: last.last,
            last_at: last.last_at,
            ..first
        },
        merged: true,
    }
    .name();
    let whole: Vec<u8> = segments
        .iter()
        .flat_map(|(_, path)| fs::read(path).unwrap())
        .collect();
    let path = copy.join(merged.as_str());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, whole).unwrap();
    assert_eq!(
        bad(&copy),
        Vec::<&str>::new(),
        "put together they are a segment"
    );
    let (name, lying) = lie(&context, &copy, b"SELECT", b"SELECT");
    fs::write(copy.join(&name), &lying).unwrap();
    assert_eq!(
        bad(&copy),
        Vec::<&str>::new(),
        "the same bytes in another block"
    );
    let (name, lying) = lie(&context, &copy, b"SELECT", b"SELEKT");
    fs::write(copy.join(name), lying).unwrap();
    assert_eq!(bad(&copy), ["overlap"]);
}

#[test]
fn a_monitor_is_told_when_it_last_succeeded() {
    let Some((archive, copy)) = every_kind() else {
        return;
    };
    let file = archive.beside("perennial.prom");
    let flags = ["--metrics-file", file.to_str().unwrap()];
    let value = |name: &str| -> u64 {
        let text = fs::read_to_string(&file).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
    };
    fs::write(copy.join("archive.json"), "{}").unwrap();
    assert_eq!(verified(&url_of(&copy), &flags).0, 1);
    assert_eq!(value("perennial_last_verified_timestamp_seconds"), 0);
    assert!(value("perennial_last_verified_bad_findings") > 0);
    assert_eq!(verified(&archive.url(), &flags).0, 0);
    let succeeded = value("perennial_last_verified_timestamp_seconds");
    assert!(succeeded > 1_600_000_000);
    assert_eq!(verified(&url_of(&copy), &flags).0, 1);
    assert_eq!(
        value("perennial_last_verified_timestamp_seconds"),
        succeeded
    );
}

#[test]
fn wrong_usage_is_said() {
    for (arguments, said) in [
        (&["--drill"][..], "--scratch"),
        (&["--since", "soon"], "--since soon"),
        (&["--drill", "--scratch", "http://here"], "--scratch"),
    ] {
        let call = [&["verify", "--archive", "file:///nowhere"], arguments].concat();
        let (code, _, err) = run_cli(&call);
        assert_eq!(code, 2, "{err}");
        assert!(err.contains(said), "{err}");
    }
}

/// `docs/json.md` names every field, and no other; and every identifier.
#[test]
fn the_fields_of_the_json_are_those_of_the_document() {
    let document = include_str!("../../docs/json.md");
    let section = document
        .split("## `perennial verify --json`")
        .nth(1)
        .unwrap();
    let section = section.split("\n## ").next().unwrap();
    let documented = |prefix: &str| -> Vec<String> {
        let names = section
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .filter_map(|name| name.strip_prefix(prefix))
            .filter(|name| !name.contains('.'));
        let mut names: Vec<String> = names
            .map(|name| name.trim_end_matches("[]").to_owned())
            .collect();
        names.sort();
        names
    };
    let names = |value: &Value| -> Vec<String> {
        let mut names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names
    };
    let Some((archive, _)) = every_kind() else {
        return;
    };
    let program = REDIS_7_0.find().unwrap();
    let (_, json) = verified(
        &archive.url(),
        &["--drill", "--scratch", program.to_str().unwrap()],
    );
    assert_eq!(names(&json), documented(""));
    assert_eq!(names(&json["read"]), documented("read."));
    assert_eq!(names(&json["drill"]), documented("drill."));
    assert_eq!(names(&json["findings"][0]), documented("findings[]."));
    assert_eq!(names(&json["summary"]), documented("summary."));
    let sources = [
        include_str!("../../src/restore/verify/mod.rs"),
        include_str!("../../src/restore/verify/structure.rs"),
        include_str!("../../src/cli/verify.rs"),
    ];
    for source in sources {
        let source = source.split("mod tests").next().unwrap();
        for word in source.split("Finding::").skip(1) {
            let Some(id) = word.split('"').nth(1) else {
                continue;
            };
            assert!(
                section.contains(&format!("`{id}`")),
                "{id} is not in docs/json.md"
            );
        }
    }
}
