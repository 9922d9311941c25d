//! Settings of the server that bite (`protocol-facts` 1.8, 3.3, 3.4, 4.6, 5.3), and what to write instead.

use super::Finding;
use super::server::ServerFacts;

const MIB: u64 = 1024 * 1024;
/// How long the backlog should outlast us, seconds: a restart, a moment without a network.
const BACKLOG_SECONDS_MIN: u64 = 60;
/// Less is too little whatever is written now, bytes: 10 MiB is valkey's default, and a burst is soon larger.
const BACKLOG_BYTES_MIN: u64 = 10 * MIB;
/// What is advised at least, bytes.
const BACKLOG_BYTES_ADVISED: u64 = 64 * MIB;
/// The hard limit that servers begin with, bytes: a command above it cannot reach us.
const OUTPUT_BUFFER_BYTES_MIN: u64 = 256 * MIB;
/// Shorter ones drop us while a snapshot or a slow moment lasts, seconds.
const REPL_TIMEOUT_SECONDS_MIN: u64 = 30;
/// An orderly stop waits so long for the last upload, seconds.
const SHUTDOWN_SECONDS_MIN: u64 = 10;

/// The settings that are asked for.
pub const ASKED: &[&str] = &[
    "repl-backlog-size",
    "repl-backlog-ttl",
    "client-output-buffer-limit",
    "repl-timeout",
    "repl-diskless-sync",
    "repl-diskless-sync-delay",
    "repl-diskless-load",
    "shutdown-timeout",
    "min-replicas-to-write",
    "min-replicas-max-lag",
    "replica-serve-stale-data",
    "replica-read-only",
    "masterauth",
    "appendonly",
    "save",
    "rdb-del-sync-files",
    "maxmemory",
    "maxmemory-policy",
    "tls-replication",
    "protected-mode",
];

/// Findings about settings.
pub(super) fn of_settings(facts: &ServerFacts, findings: &mut Vec<Finding>) {
    if let Err(refused) = &facts.settings {
        findings.push(Finding::unknown(
            "server-settings",
            format!(
                "CONFIG GET is refused ({refused}), so these were not looked at: {}; +config|get for our user shows \
                 them",
                ASKED.join(", ")
            ),
        ));
        return;
    }
    let looks: [fn(&ServerFacts) -> Option<Finding>; 16] = [
        backlog_size,
        backlog_ttl,
        output_buffer,
        repl_timeout,
        diskless_sync,
        diskless_delay,
        diskless_load,
        shutdown_timeout,
        min_replicas,
        stale_data,
        read_only,
        masterauth,
        appendonly,
        dump_files,
        maxmemory,
        tls_replication,
    ];
    findings.extend(looks.iter().filter_map(|look| look(facts)));
    findings.extend(protected_mode(facts));
}

fn number(facts: &ServerFacts, name: &str) -> Option<u64> {
    facts.setting(name)?.parse().ok()
}

fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).to_string()
}

fn backlog_size(facts: &ServerFacts) -> Option<Finding> {
    const ID: &str = "setting-repl-backlog-size";
    let backlog = number(facts, "repl-backlog-size")?;
    let rate = facts.written_per_second.unwrap_or(0);
    let wanted = rate.saturating_mul(BACKLOG_SECONDS_MIN);
    let lasts = match rate {
        0 => "nothing is written now".to_owned(),
        // What a client says and what is replicated are not the same, but near.
        _ => format!(
            "at {}/s, as now, it lasts {}",
            size(rate),
            lasting(backlog, rate)
        ),
    };
    let found = format!("repl-backlog-size {}: {lasts}", size(backlog));
    if backlog >= wanted.max(BACKLOG_BYTES_MIN) {
        return Some(Finding::ok(ID, found));
    }
    let advised = wanted.max(BACKLOG_BYTES_ADVISED).div_ceil(MIB);
    Some(Finding::warn(
        ID,
        format!("{found}; whoever is away longer leaves a gap and needs a new snapshot"),
        facts.set("repl-backlog-size", &format!("{advised}mb")),
    ))
}

fn lasting(backlog: u64, rate: u64) -> String {
    let millis = u128::from(backlog) * 1000 / u128::from(rate.max(1));
    match millis {
        0..10_000 => format!("{millis} ms"),
        _ => format!("{} s", millis / 1000),
    }
}

fn backlog_ttl(facts: &ServerFacts) -> Option<Finding> {
    const ID: &str = "setting-repl-backlog-ttl";
    let ttl = number(facts, "repl-backlog-ttl")?;
    Some(match ttl {
        1..600 => Finding::warn(
            ID,
            format!(
                "repl-backlog-ttl {ttl}: after {ttl} s without a replica it takes a new id, and a snapshot follows"
            ),
            facts.set("repl-backlog-ttl", "3600"),
        ),
        0 => Finding::ok(ID, "repl-backlog-ttl 0: the backlog is kept"),
        _ => Finding::ok(ID, format!("repl-backlog-ttl {ttl} s")),
    })
}

fn output_buffer(facts: &ServerFacts) -> Option<Finding> {
    const ID: &str = "setting-client-output-buffer-limit";
    let text = facts.setting("client-output-buffer-limit")?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words
        .iter()
        .position(|word| matches!(*word, "replica" | "slave"))?;
    let [hard, soft, seconds]: [u64; 3] = words
        .get(at + 1..at + 4)?
        .iter()
        .map(|word| word.parse().ok())
        .collect::<Option<Vec<u64>>>()?
        .try_into()
        .ok()?;
    let shown = format!(
        "client-output-buffer-limit replica: {} at once, {} for {seconds} s",
        limit(hard),
        limit(soft)
    );
    let is_small = |bytes: u64, least: u64| bytes != 0 && bytes < least;
    Some(
        if is_small(hard, OUTPUT_BUFFER_BYTES_MIN) || is_small(soft, OUTPUT_BUFFER_BYTES_MIN / 4) {
            Finding::warn(
                ID,
                format!(
                    "{shown}: less than servers begin with; a burst or one large value drops the link"
                ),
                facts.set("client-output-buffer-limit", "replica 256mb 64mb 60"),
            )
        } else {
            Finding::ok(
                ID,
                format!("{shown}; above your largest value, which is for you to know"),
            )
        },
    )
}

fn limit(bytes: u64) -> String {
    match bytes {
        0 => "no limit".to_owned(),
        _ => size(bytes),
    }
}

fn repl_timeout(facts: &ServerFacts) -> Option<Finding> {
    const ID: &str = "setting-repl-timeout";
    let seconds = number(facts, "repl-timeout")?;
    Some(if seconds < REPL_TIMEOUT_SECONDS_MIN {
        Finding::warn(
            ID,
            format!(
                "repl-timeout {seconds} s: a slow moment of network, fork or load breaks the link or a seed"
            ),
            facts.set("repl-timeout", "60"),
        )
    } else {
        Finding::ok(ID, format!("repl-timeout {seconds} s"))
    })
}

fn diskless_sync(facts: &ServerFacts) -> Option<Finding> {
    const ID: &str = "setting-repl-diskless-sync";
    let is_diskless = facts.setting("repl-diskless-sync")? == "yes";
    Some(if is_diskless {
        Finding::ok(ID, "repl-diskless-sync yes: snapshots do not pass its disk")
    } else if facts.info.version_numbers() < (7, 0) {
        Finding::warn(
            ID,
            "repl-diskless-sync no: each full sync leaves a dump.rdb, and a restart from it is suspect before 7.0",
            facts.set("repl-diskless-sync", "yes"),
        )
    } else {
        Finding::ok(
            ID,
            "repl-diskless-sync no: each snapshot is written to its disk first",
        )
    })
}

fn diskless_delay(facts: &ServerFacts) -> Option<Finding> {
    const ID: &str = "setting-repl-diskless-sync-delay";
    if facts.setting("repl-diskless-sync")? != "yes" {
        return None;
    }
    let seconds = number(facts, "repl-diskless-sync-delay")?;
    Some(if seconds > 5 {
        Finding::warn(
            ID,
            format!(
                "repl-diskless-sync-delay {seconds} s: waited twice before the first write is in the archive"
            ),
            facts.set("repl-diskless-sync-delay", "0"),
        )
    } else {
        Finding::ok(
            ID,
            format!(
                "repl-diskless-sync-delay {seconds} s, waited before each snapshot (0 makes it immediate)"
            ),
        )
    })
}

fn diskless_load(facts: &ServerFacts) -> Option<Finding> {
    const ID: &str = "setting-repl-diskless-load";
    let how = facts.setting("repl-diskless-load")?;
    Some(match how {
        "disabled" => Finding::ok(
            ID,
            "repl-diskless-load disabled: a seed passes its disk and stays there as dump.rdb",
        ),
        _ => Finding::ok(ID, format!("repl-diskless-load {how}")),
    })
}

fn shutdown_timeout(facts: &ServerFacts) -> Option<Finding> {
    const ID: &str = "setting-shutdown-timeout";
    let seconds = number(facts, "shutdown-timeout")?;
    Some(if seconds < SHUTDOWN_SECONDS_MIN {
        Finding::warn(
            ID,
            format!(
                "shutdown-timeout {seconds} s: so long an orderly stop waits for its last writes to be stored"
            ),
            facts.set("shutdown-timeout", "10"),
        )
    } else {
        Finding::ok(
            ID,
            format!(
                "shutdown-timeout {seconds} s: an orderly stop waits for its last writes to be stored"
            ),
        )
    })
}

fn min_replicas(facts: &ServerFacts) -> Option<Finding> {
    const ID: &str = "setting-min-replicas-to-write";
    let wanted = number(facts, "min-replicas-to-write")?;
    if wanted == 0 || facts.is_replica() {
        return Some(Finding::ok(ID, format!("min-replicas-to-write {wanted}")));
    }
    let advised = wanted + 1;
    Some(Finding::warn(
        ID,
        format!(
            "min-replicas-to-write {wanted}: Perennial counts as one of them, so real replicas may be one fewer than \
             you mean (fine if it is Perennial that you mean)"
        ),
        facts.set("min-replicas-to-write", &advised.to_string()),
    ))
}

fn stale_data(facts: &ServerFacts) -> Option<Finding> {
    const ID: &str = "setting-replica-serve-stale-data";
    let serves = facts.setting("replica-serve-stale-data")?;
    Some(match serves {
        "no" => Finding::ok(
            ID,
            "replica-serve-stale-data no: nothing is read from it before it is filled",
        ),
        _ => Finding::ok(
            ID,
            "replica-serve-stale-data yes: a server that waits for its seed answers reads with nothing until then \
             (no prevents it)",
        ),
    })
}

fn read_only(facts: &ServerFacts) -> Option<Finding> {
    const ID: &str = "setting-replica-read-only";
    Some(match facts.setting("replica-read-only")? {
        "no" => Finding::bad(
            ID,
            "replica-read-only no: clients could write while it is being filled, so it is not",
            facts.set("replica-read-only", "yes"),
        ),
        _ => Finding::ok(ID, "replica-read-only yes"),
    })
}

fn masterauth(facts: &ServerFacts) -> Option<Finding> {
    const ID: &str = "setting-masterauth";
    let is_set = !facts.setting("masterauth")?.is_empty();
    match (facts.seeds_with_password, is_set) {
        (true, false) => Some(Finding::bad(
            ID,
            "masterauth is empty: it must be the password of --seed-password-file, or it is turned away when it comes to be \
             filled",
            format!("{} CONFIG SET masterauth PASSWORD", facts.client),
        )),
        (true, true) => Some(Finding::ok(
            ID,
            "masterauth is set; it must be the password of --seed-password-file",
        )),
        (false, _) => None,
    }
}

fn appendonly(facts: &ServerFacts) -> Option<Finding> {
    const ID: &str = "setting-appendonly";
    Some(match facts.setting("appendonly")? {
        "yes" => Finding::warn(
            ID,
            "appendonly yes: a server that restarts from its AOF bears a new id, and nothing proves that it holds \
             everything: each restart begins a suspect timeline, until `perennial accept`",
            facts.set("appendonly", "no"),
        ),
        _ => Finding::ok(ID, "appendonly no"),
    })
}

/// Before 7.0 a dump tells nothing of its past.
fn dump_files(facts: &ServerFacts) -> Option<Finding> {
    let save = facts.setting("save")?;
    if facts.info.version_numbers() >= (7, 0) {
        return Some(Finding::ok(
            "setting-save",
            format!("save \"{save}\": a dump is recognised as an older state of the archive"),
        ));
    }
    if !save.is_empty() {
        return Some(Finding::warn(
            "setting-save",
            format!(
                "save \"{save}\": before 7.0 a restart from dump.rdb begins a suspect timeline"
            ),
            facts.set("save", ""),
        ));
    }
    match facts.setting("rdb-del-sync-files") {
        Some("yes") => Some(Finding::ok(
            "setting-rdb-del-sync-files",
            "rdb-del-sync-files yes: no dump.rdb stays behind",
        )),
        Some(_) => Some(Finding::warn(
            "setting-rdb-del-sync-files",
            "rdb-del-sync-files no: the dump.rdb of each full sync stays, and a restart from it is suspect",
            facts.set("rdb-del-sync-files", "yes"),
        )),
        None => None,
    }
}

fn maxmemory(facts: &ServerFacts) -> Option<Finding> {
    const ID: &str = "setting-maxmemory";
    let maxmemory = number(facts, "maxmemory")?;
    let policy = facts.setting("maxmemory-policy").unwrap_or("?");
    let used = facts.info.number("used_memory").unwrap_or(0);
    if maxmemory == 0 {
        return Some(Finding::ok(ID, "maxmemory 0: no limit"));
    }
    let shown = format!(
        "maxmemory {} ({policy}), {} used",
        size(maxmemory),
        size(used)
    );
    // Replicas' buffers are not counted against it, but the backlog, and the moment of a seed, want room.
    Some(if u128::from(used) * 10 > u128::from(maxmemory) * 9 {
        Finding::warn(
            ID,
            format!(
                "{shown}: less than a tenth is left; a server that is filled may refuse writes or evict keys"
            ),
            facts.set("maxmemory", &(used.saturating_mul(2)).to_string()),
        )
    } else {
        Finding::ok(ID, shown)
    })
}

fn tls_replication(facts: &ServerFacts) -> Option<Finding> {
    const ID: &str = "setting-tls-replication";
    let is_on = facts.setting("tls-replication")? == "yes";
    Some(match (is_on, facts.seeds_with_tls) {
        (true, false) => Finding::bad(
            ID,
            "tls-replication yes: it comes to the seed address by TLS, and we have no certificate to show there",
            "--seed-cert-file and --seed-key-file for `perennial run`",
        ),
        (false, true) => Finding::warn(
            ID,
            "tls-replication no: it comes to the seed address in the clear, and we expect TLS there",
            facts.set("tls-replication", "yes"),
        ),
        _ => Finding::ok(
            ID,
            if is_on {
                "tls-replication yes"
            } else {
                "tls-replication no"
            },
        ),
    })
}

fn protected_mode(facts: &ServerFacts) -> Option<Finding> {
    let mode = facts.setting("protected-mode")?;
    Some(Finding::ok(
        "setting-protected-mode",
        format!("protected-mode {mode}: it lets us in"),
    ))
}
