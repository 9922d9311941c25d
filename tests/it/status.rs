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
