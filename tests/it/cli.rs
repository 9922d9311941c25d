//! What the command line says for itself, word for word: `UPDATE_FIXTURES=1` rewrites `tests/fixtures/cli/`.

use std::fs;
use std::path::Path;

use crate::harness::run_cli;

#[test]
fn help_teaches() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cli");
    let calls: [(&str, &[&str]); 13] = [
        ("help", &["--help"]),
        ("run", &["run", "--help"]),
        ("check", &["check", "--help"]),
        ("restore", &["restore", "--help"]),
        ("verify", &["verify", "--help"]),
        ("snapshot", &["snapshot", "--help"]),
        ("status", &["status", "--help"]),
        ("ls", &["ls", "--help"]),
        ("inspect", &["inspect", "--help"]),
        ("accept", &["accept", "--help"]),
        ("prune", &["prune", "--help"]),
        ("completions", &["completions", "--help"]),
        ("man", &["man", "--help"]),
    ];
    let update = std::env::var_os("UPDATE_FIXTURES").is_some();
    for (name, call) in calls {
        let (code, out, err) = run_cli(call);
        assert_eq!(code, 0, "{err}");
        let path = folder.join(format!("{name}.txt"));
        if update {
            fs::write(&path, &out).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            out,
            expected,
            "{}: UPDATE_FIXTURES=1 rewrites it",
            path.display()
        );
    }
}

/// Every flag can be set by the environment, and says by which name.
#[test]
fn every_flag_names_its_variable() {
    for call in [
        "run", "check", "restore", "verify", "snapshot", "status", "ls", "inspect", "accept",
        "prune",
    ] {
        let (_, out, _) = run_cli(&[call, "--help"]);
        for flag in out
            .split_whitespace()
            .filter(|word| word.starts_with("--") && word.len() > 2)
        {
            let flag = flag.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != '-');
            if matches!(flag, "--help" | "--version") || !out.contains(&format!("\n      {flag}")) {
                continue;
            }
            // Not what `run` in the same environment listens on.
            let name = match call {
                "restore" => flag.replace("--seed-listen", "--copy-listen"),
                _ => flag.to_owned(),
            };
            let name = match call {
                "restore" => name.replace("--seed-announce", "--copy-announce"),
                _ => name,
            };
            let variable = format!("PERENNIAL_{}", name[2..].replace('-', "_").to_uppercase());
            assert!(
                out.contains(&variable),
                "{call} {flag} does not name {variable}"
            );
        }
    }
}
