//! What a running Perennial shows: readiness through a seed and without a store, metrics that a Prometheus can read, logs
//! without secrets, and pages that nobody can use to harm what is followed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

#[cfg(feature = "s3")]
use crate::harness::S3Server;
use crate::harness::servers::skip;
use crate::harness::workload::write_everything;
use crate::harness::{Archive, DEADLINE, Kind, Perennial, REDIS_7_0, Server, run_cli, until};
use crate::on_every_server;

on_every_server! {
    it_is_ready_only_with_the_data_back,
}

/// How long an answer may take: more than the pages' own limits.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The pages of a running Perennial, at a port that its log names.
pub(crate) struct Pages(String);

impl Pages {
    #[track_caller]
    pub(crate) fn of(perennial: &Perennial) -> Self {
        Self(until("the pages' address is logged", DEADLINE, || {
            let log = perennial.log();
            let (_, rest) = log.split_once("http://")?;
            let (address, _) = rest.split_once("/metrics")?;
            Some(address.to_owned())
        }))
    }

    /// Status and body; `None` where nobody answers.
    fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut connection = TcpStream::connect(&self.0).ok()?;
        connection.set_read_timeout(Some(ANSWER_TIMEOUT)).ok()?;
        write!(connection, "GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").ok()?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    pub(crate) fn ready(&self) -> Option<(bool, Json)> {
        let (status, body) = self.get("/readyz")?;
        let body: Json = serde_json::from_str(&body).unwrap();
        assert_eq!(body["ready"], status == 200, "{status} {body}");
        Some((status == 200, body))
    }

    #[track_caller]
    pub(crate) fn until_ready(&self) {
        until("it is ready", DEADLINE, || {
            self.ready().is_some_and(|(ready, _)| ready)
        });
    }

    #[track_caller]
    pub(crate) fn until_not_ready(&self, why: &str) {
        until(&format!("it is not ready: {why}"), DEADLINE, || {
            let (ready, body) = self.ready()?;
            (!ready && body["reason"].as_str()?.contains(why)).then_some(())
        });
    }

    #[track_caller]
    pub(crate) fn metrics(&self) -> BTreeMap<String, f64> {
        let (status, text) = self.get("/metrics").unwrap();
        assert_eq!(status, 200, "{text}");
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').unwrap();
                (name.to_owned(), value.parse().unwrap())
            })
            .collect()
    }

    #[track_caller]
    fn until_metric(&self, name: &str, wish: impl Fn(f64) -> bool) -> f64 {
        until(&format!("{name} is as wished"), DEADLINE, || {
            self.metrics()
                .get(name)
                .copied()
                .filter(|value| wish(*value))
        })
    }
}

const HTTP: [&str; 2] = ["--http", "127.0.0.1:0"];

fn follow(server: &Server, archive: &Archive) -> (Perennial, Pages) {
    let perennial = Perennial::follow_url(&server.url(), archive, &HTTP);
    let pages = Pages::of(&perennial);
    (perennial, pages)
}

fn it_is_ready_only_with_the_data_back(kind: Kind) {
    let Some(mut server) = kind.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    server.kill();
    let (mut perennial, pages) = follow(&server, &archive);
    pages.until_not_ready("cannot connect");
    assert_eq!(
        pages.get("/healthz").unwrap().0,
        200,
        "a restart would not help"
    );
    server.start_again();
    pages.until_ready();
    write_everything(&mut server.client(), 0);
    server.client().wait_until_stored(DEADLINE);
    let keys = server.keys();
    for _ in 0..3 {
        server.kill();
        pages.until_not_ready("");
        server.remove_dump();
        server.start_again();
        pages.until_ready();
        // Not a moment earlier: the very first answer that says so finds everything there.
        assert!(server.is_master());
        assert_eq!(server.keys(), keys);
    }
    let metrics = pages.metrics();
    assert_eq!(metrics[r#"perennial_seeds_total{result="done"}"#], 3.0);
    assert_eq!(metrics["perennial_ready"], 1.0);
    assert_eq!(metrics["perennial_link_up"], 1.0);
    perennial.assert_healthy();
}

/// The bucket dies: Redis goes on serving, and alerts have something to see.
#[cfg(feature = "s3")]
#[test]
fn a_dead_bucket_leaves_it_ready_and_is_shown() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let mut bucket = S3Server::in_process();
    let archive = bucket.archive();
    let (mut perennial, pages) = follow(&server, &archive);
    pages.until_ready();
    // Else pieces that the snapshot holds already may still be on their way when the bucket goes.
    pages.until_metric(r#"perennial_snapshots_total{result="done"}"#, |done| {
        done == 1.0
    });
    server.client().line("SET before 1");
    server.client().wait_until_stored(DEADLINE);
    bucket.stop();
    server.client().line("SET meanwhile 1");
    pages.until_metric("perennial_store_failing", |failing| failing == 1.0);
    pages.until_metric("perennial_durable_lag_seconds", |lag| lag > 1.0);
    let metrics = pages.metrics();
    assert!(metrics["perennial_durable_lag_bytes"] > 0.0, "{metrics:#?}");
    assert!(
        metrics["perennial_uploads_in_flight"] >= 1.0,
        "{metrics:#?}"
    );
    let (ready, body) = pages.ready().unwrap();
    assert!(ready && body["store_failing"] == true, "{body}");
    assert_eq!(pages.get("/healthz").unwrap().0, 200);
    bucket.start_again();
    server.client().wait_until_stored(DEADLINE);
    pages.until_metric("perennial_store_failing", |failing| failing == 0.0);
    pages.until_metric("perennial_durable_lag_seconds", |lag| lag == 0.0);
    perennial.assert_healthy();
}

#[test]
fn metrics_say_what_happened_and_prometheus_can_read_them() {
    let Some(mut server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let (mut perennial, pages) = follow(&server, &archive);
    pages.until_metric(r#"perennial_snapshots_total{result="done"}"#, |done| {
        done == 1.0
    });
    write_everything(&mut server.client(), 0);
    server.client().wait_until_stored(DEADLINE);
    let durable = pages.metrics()["perennial_durable_offset"];
    assert_eq!(archive.status().durable_offset.unwrap() as f64, durable);
    server.lose_everything();
    server.until_master_with_data();
    pages.until_metric("perennial_links_total", |links| links == 2.0);
    let metrics = pages.metrics();
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs_f64();
    let is = |name: &str, value: f64| assert_eq!(metrics[name], value, "{name} in {metrics:#?}");
    is(r#"perennial_seeds_total{result="done"}"#, 1.0);
    is(r#"perennial_seeds_total{result="failed"}"#, 0.0);
    is(r#"perennial_syncs_total{kind="full"}"#, 1.0);
    is(r#"perennial_syncs_total{kind="partial"}"#, 1.0);
    is("perennial_suspect_roots", 0.0);
    is("perennial_archive_gaps", 0.0);
    is("perennial_gaps_total", 0.0);
    is("perennial_links_closed_full_total", 0.0);
    is("perennial_buffer_limit_bytes", 32.0 * 1024.0 * 1024.0);
    is(
        r#"perennial_store_operation_duration_seconds_count{operation="prepare"}"#,
        1.0,
    );
    assert!(metrics["perennial_received_offset"] >= durable);
    assert!(metrics["perennial_snapshot_bytes"] > 100.0);
    assert!(metrics[r#"perennial_store_operations_total{operation="create",result="ok"}"#] >= 3.0);
    for moment in [
        "perennial_snapshot_timestamp_seconds",
        "perennial_restorable_from_timestamp_seconds",
        "perennial_restorable_to_timestamp_seconds",
    ] {
        let ago = now - metrics[moment];
        assert!((-5.0..300.0).contains(&ago), "{moment} is {ago} s ago");
    }
    let took: Vec<Duration> = (0..20)
        .map(|_| {
            let began = Instant::now();
            pages.metrics();
            began.elapsed()
        })
        .collect();
    eprintln!(
        "/metrics took {:?} at most, of 20",
        took.iter().max().unwrap()
    );
    promtool_is_content(&pages.get("/metrics").unwrap().1);
    perennial.assert_healthy();
}

fn promtool_is_content(text: &str) {
    // Fetched before the tests where the system has none.
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/files/usr/bin/promtool");
    let program = if fetched.is_file() {
        fetched
    } else {
        "promtool".into()
    };
    let tool = Command::new(program)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut tool) = tool else {
        return skip(
            "no promtool on this machine: run scripts/tools.sh promtool, or apt-get install prometheus",
        );
    };
    tool.stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = tool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.trim().is_empty(),
        "promtool: {said}"
    );
}

#[test]
fn a_suspect_timeline_is_not_ready_until_it_is_accepted() {
    let Some(mut server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let (mut perennial, pages) = follow(&server, &archive);
    server.client().line("SET the head");
    archive.until_durable();
    server.client().wait_until_stored(DEADLINE);
    perennial.kill();
    server.kill();
    server.remove_dump();
    server.start_again();
    server.client().line("SET somebody else");
    drop(pages);
    perennial.start_again();
    let pages = until("it listens again", DEADLINE, || {
        // The log goes on behind that of the first start.
        let log = perennial.log();
        let (_, rest) = log.rsplit_once("http://")?;
        let pages = Pages(rest.split_once("/metrics")?.0.to_owned());
        pages.ready().map(|_| pages)
    });
    pages.until_not_ready("suspect");
    pages.until_metric("perennial_suspect_roots", |roots| roots == 1.0);
    // Not before its snapshot is complete.
    until("it is accepted", DEADLINE, || {
        run_cli(&["accept", "--archive", &archive.url()]).0 == 0
    });
    pages.until_ready();
    perennial.assert_healthy();
}

/// More than may connect at once, each of them sending a byte now and then or never reading its answer.
#[test]
fn who_is_slow_to_ask_or_to_read_harms_nobody() {
    let Some(server) = REDIS_7_0.start(&[]) else {
        return;
    };
    let archive = Archive::new();
    let (mut perennial, pages) = follow(&server, &archive);
    archive.until_durable();
    let mut slow: Vec<TcpStream> = (0..200)
        .map(|_| TcpStream::connect(&pages.0).unwrap())
        .collect();
    for (number, connection) in slow.iter_mut().enumerate() {
        let request: &[u8] = match number % 3 {
            0 => b"GET /met",
            1 => b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
            _ => &[b'a'; 100_000],
        };
        // Whoever sends too much may be cut off.
        let _ = connection.set_nonblocking(true);
        let _ = connection.write(request);
    }
    for number in 0..50 {
        server.client().line(&format!("SET slow{number} 1"));
        server.client().wait_until_stored(DEADLINE);
    }
    until("a page is served behind them", DEADLINE, || {
        pages
            .get("/healthz")
            .is_some_and(|(status, _)| status == 200)
    });
    let open = pages.metrics()["process_open_fds"];
    assert!(
        open < 150.0,
        "{open} open files: the connections are bounded"
    );
    perennial.assert_healthy();
}

/// Passwords in addresses, in files and in variables, right and wrong: no line and no page repeats one.
#[test]
fn no_secret_is_written_anywhere() {
    const RIGHT: &str = "sesame-that-opens";
    const WRONG: &str = "sesame-that-does-not";
    let Some(server) = REDIS_7_0.start(&["--requirepass", RIGHT]) else {
        return;
    };
    let archive = Archive::new();
    let file = archive.beside("password");
    fs::write(&file, format!("{RIGHT}\n")).unwrap();
    let config = archive.beside("perennial.toml");
    let address = server.address();
    fs::write(
        &config,
        format!("redis = \"redis://:{WRONG}@{address}\"\nhttp = \"127.0.0.1:0\"\nlog-format = \"json\"\n"),
    )
    .unwrap();
    let config = config.to_str().unwrap();
    let url = archive.url();
    let in_file = [
        "--archive",
        &url,
        "--config",
        config,
        "--redis-password-file",
        file.to_str().unwrap(),
    ];
    let loud = ("PERENNIAL_LOG", "trace");
    let alone = &in_file[..4];
    let wrong_url = format!("redis://user:{WRONG}@{address}");
    let mut all = Vec::new();
    for (arguments, environment, followed) in [
        (&in_file[..], vec![loud], true),
        (alone, vec![loud], false),
        (alone, vec![loud, ("PERENNIAL_REDIS_PASSWORD", RIGHT)], true),
        (
            alone,
            vec![loud, ("PERENNIAL_REDIS", wrong_url.as_str())],
            false,
        ),
    ] {
        let mut perennial = Perennial::run_with(arguments, &environment);
        let pages = Pages::of(&perennial);
        if followed {
            pages.until_ready();
        } else {
            pages.until_not_ready("refused");
        }
        let shown: Vec<String> = ["/metrics", "/readyz", "/healthz"]
            .iter()
            .map(|path| pages.get(path).unwrap().1)
            .collect();
        perennial.terminate();
        perennial.wait(DEADLINE);
        let log = perennial.log();
        assert!(!log.is_empty());
        for line in log.lines() {
            let line: Json = serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{error}: not a line of JSON: {line}"));
            assert!(
                line["level"].is_string() && line["message"].is_string(),
                "{line}"
            );
        }
        all.push(log);
        all.extend(shown);
    }
    // Complaints about what was typed, too.
    let bad = format!("rediss://:{WRONG}@{address}?what");
    for call in [
        &[
            "run",
            "--archive",
            &url,
            "--redis",
            &bad,
            "--redis-ca-file",
            "/nowhere",
        ][..],
        &[
            "run",
            "--archive",
            &url,
            "--redis",
            &format!("http://:{WRONG}@{address}"),
        ],
        &["run", "--archive", &format!("ftp://:{WRONG}@host")],
        &["run", "--help"],
    ] {
        let (_, out, err) = crate::harness::run_cli_with(call, &[("PERENNIAL_REDIS", &wrong_url)]);
        all.extend([out, err]);
    }
    for text in all {
        assert!(!text.contains("sesame"), "a password is in: {text}");
    }
}

/// A flag goes before its variable, the variable before the file; complaints name whichever it was.
#[test]
fn the_file_of_settings_is_checked_like_flags() {
    let archive = Archive::new();
    let file = archive.beside("perennial.toml");
    let path = file.to_str().unwrap();
    let refused = |text: &str, more: &[&str], environment: &[(&str, &str)]| {
        fs::write(&file, text).unwrap();
        let call = [&["run", "--config", path], more].concat();
        let (code, _, err) = crate::harness::run_cli_with(&call, environment);
        assert_eq!(code, 2, "{err}");
        err
    };
    let archive = format!("archive = \"{}\"\n", archive.url());
    let interval = |value: &str| format!("{archive}flush-interval = \"{value}\"\n");
    let by_file = refused(&interval("soon"), &[], &[]);
    assert!(
        by_file.contains(&format!("{path}: flush-interval: \"soon\" is not a time")),
        "{by_file}"
    );
    let late = ("PERENNIAL_FLUSH_INTERVAL", "late");
    let by_variable = refused(&interval("1s"), &[], &[late]);
    assert!(
        by_variable.contains("--flush-interval: \"late\""),
        "{by_variable}"
    );
    let by_flag = refused(&interval("soon"), &["--flush-interval", "never"], &[late]);
    assert!(by_flag.contains("--flush-interval: \"never\""), "{by_flag}");
    let unknown = refused(&format!("{archive}flush-intervall = \"1s\"\n"), &[], &[]);
    assert!(
        unknown.contains("did you mean `flush-interval`?"),
        "{unknown}"
    );
    let missing = refused("", &[], &[]);
    assert!(missing.contains("--archive"), "{missing}");
    let (code, _, err) = run_cli(&["run", "--config", "/nowhere/perennial.toml"]);
    assert!(
        code == 2 && err.contains("--config: /nowhere/perennial.toml cannot be read: "),
        "{err}"
    );
}

#[test]
fn completions_and_man_pages_know_every_flag() {
    let (_, help, _) = run_cli(&["run", "--help"]);
    let flags: Vec<&str> = help
        .lines()
        .filter_map(|line| {
            line.trim_start()
                .strip_prefix("--")?
                .split([' ', '\n'])
                .next()
        })
        .collect();
    assert!(flags.len() > 15, "{flags:?}");
    let shells = ["bash", "zsh", "fish"].map(|shell| {
        let (code, out, err) = run_cli(&["completions", shell]);
        assert_eq!(code, 0, "{err}");
        (shell, out)
    });
    let (code, page, err) = run_cli(&["man", "run"]);
    assert_eq!(code, 0, "{err}");
    for flag in flags {
        for (shell, out) in &shells {
            assert!(out.contains(flag), "{shell} does not complete --{flag}");
        }
        let written = flag.replace('-', "\\-");
        assert!(page.contains(&written), "the page of run lacks --{flag}");
    }
    let (_, whole, _) = run_cli(&["man"]);
    assert!(whole.contains("perennial\\-run(1)"), "{whole}");
    let (code, _, err) = run_cli(&["man", "nothing"]);
    assert!(code == 2 && err.contains("no command nothing"), "{err}");
}

#[test]
fn the_unit_of_systemd_is_in_order() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/systemd/perennial.service");
    let unit = fs::read_to_string(path).unwrap();
    let seconds = |text: &str| text.trim_end_matches('s').parse::<u64>().unwrap();
    let stop = unit
        .lines()
        .find_map(|line| line.strip_prefix("TimeoutStopSec="))
        .unwrap();
    let (_, help, _) = run_cli(&["run", "--help"]);
    let (_, ours) = help.split_once("--shutdown-timeout").unwrap();
    let (_, ours) = ours.split_once("[default: ").unwrap();
    let (ours, _) = ours.split_once(']').unwrap();
    assert!(
        seconds(stop) > seconds(ours) + 5,
        "{stop} is not longer than {ours}"
    );
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("perennial.service");
    let settings = folder.path().join("environment");
    fs::write(&settings, "PERENNIAL_ARCHIVE=file:///var/lib/perennial\n").unwrap();
    let program = env!("CARGO_BIN_EXE_perennial");
    let here = unit
        .replace("/usr/local/bin/perennial", program)
        .replace("/etc/perennial/environment", settings.to_str().unwrap())
        .replace("Documentation=man:perennial(1)\n", "");
    assert!(here.contains(program));
    fs::write(&copy, here).unwrap();
    let verified = Command::new("systemd-analyze")
        .args(["verify", "--recursive-errors=no"])
        .arg(&copy)
        .output();
    let Ok(output) = verified else {
        return skip(
            "systemd-analyze is not installed (apt-get install systemd): its check is left out",
        );
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && !said.contains("perennial.service"),
        "{said}"
    );
}
