//! What `status` and `ls` say, as scripts rely on it.

use crate::harness::{Archive, DEADLINE, Perennial, REDIS_7_0, run_cli};

#[test]
fn status_tells_what_was_archived() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let mut perennial = Perennial::follow(&server, &archive, &["--name", "orders"]);
    server.client().line("SET a b");
    server.client().wait_until_stored(DEADLINE);
    let info = server.info("replication");
    let status = archive.status();
    assert_eq!(status.archive, archive.url());
    assert_eq!(status.archive_id.len(), 32);
    assert_eq!(status.name.as_deref(), Some("orders"));
    assert!(status.problems.is_empty(), "{:?}", status.problems);
    status.assert_chain_of(1);
    let timeline = &status.timelines[0];
    assert_eq!(timeline.id, info["master_replid"]);
    assert!(timeline.head && !timeline.accepted);
    assert!(timeline.segments >= 1 && timeline.bytes > 0);
    assert_eq!(timeline.start, timeline.snapshots[0].offset);
    let head = status.head.unwrap();
    assert_eq!(Some(head.offset), timeline.end);
    assert_eq!(Some(head.offset), status.durable_offset);
    let offset: u64 = info["master_repl_offset"].parse().unwrap();
    assert!(
        head.offset <= offset && offset - head.offset < 1000,
        "{head:?} of {offset}"
    );
    assert!(timeline.snapshots[0].at <= head.at);

    // The same without Perennial: the state lives in the archive alone.
    perennial.kill();
    assert_eq!(archive.status().head, status.head);
}

#[test]
fn status_and_ls_have_a_form_for_people_and_one_for_programs() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &[]);
    server.client().wait_until_stored(DEADLINE);
    let url = archive.url();
    for verb in ["status", "ls"] {
        let (code, out, err) = run_cli(&[verb, "--archive", &url]);
        assert_eq!(code, 0, "{verb}: {err}");
        assert!(!out.trim().is_empty(), "{verb} says nothing");
        let (code, out, err) = run_cli(&[verb, "--archive", &url, "--json"]);
        assert_eq!(code, 0, "{verb}: {err}");
        serde_json::from_str::<serde_json::Value>(&out)
            .unwrap_or_else(|error| panic!("{verb} --json: {error}: {out}"));
    }
}

/// `docs/json.md` names every field, and no other.
#[test]
fn the_fields_of_the_json_are_those_of_the_document() {
    let document = include_str!("../../docs/json.md");
    let section = document
        .split("## `perennial status --json`")
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
    let names = |value: &serde_json::Value| -> Vec<String> {
        let mut names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names
    };
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let _perennial = Perennial::follow(&server, &archive, &[]);
    server.client().line("SET a b");
    server.client().wait_until_stored(DEADLINE);
    let (_, out, _) = run_cli(&["status", "--archive", &archive.url(), "--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(names(&json), documented(""));
    for part in ["head", "restorable", "stored"] {
        assert_eq!(names(&json[part]), documented(&format!("{part}.")));
    }
    for field in names(&json["timelines"][0]) {
        assert!(section.contains(&format!("`{field}")), "{field}");
    }
    let timeline = &json["timelines"][0];
    assert_eq!(
        json["restorable"]["from"]["offset"],
        timeline["snapshots"][0]["offset"]
    );
    assert_eq!(json["restorable"]["to"]["offset"], json["head"]["offset"]);
    assert!(json["stored"]["stream_bytes"].as_u64() > Some(0));
}
