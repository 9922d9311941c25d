//! Findings as `check` and `verify` print them, for people and for programs.

use serde_json::{Value, json};

use super::Exit;
use crate::check::{Finding, Level, count};

/// A line for each, and one for what to change.
pub(super) fn lines(findings: &[Finding]) -> Vec<String> {
    let mut lines = Vec::new();
    for finding in findings {
        let level = finding.level.word();
        lines.push(format!("  {level:<9}{}: {}", finding.id, finding.found));
        if let Some(change) = &finding.change {
            lines.push(format!("           -> {change}"));
        }
    }
    lines
}

/// How many stand at each level, in words.
pub(super) fn summary(findings: &[Finding]) -> String {
    let counted = Level::ALL.map(|level| format!("{} {}", count(findings, level), level.word()));
    counted.join(", ")
}

/// Whether nothing is bad; else what to exit with.
///
/// # Errors
/// How many findings are.
pub(super) fn verdict(findings: &[Finding]) -> Result<(), Exit> {
    let (bad, all) = (count(findings, Level::Bad), findings.len());
    match bad {
        0 => Ok(()),
        1 => Err(format!("1 of {all} findings is bad")),
        _ => Err(format!("{bad} of {all} findings are bad")),
    }
    .map_err(|message| Exit { message, code: 1 })
}

/// The fields `findings` and `summary`.
pub(super) fn json(findings: &[Finding]) -> (Value, Value) {
    let all = findings.iter().map(|finding| {
        json!({
            "id": finding.id,
            "level": finding.level.word(),
            "found": finding.found,
            "change": finding.change,
        })
    });
    let levels = Level::ALL
        .iter()
        .map(|level| (level.word().to_owned(), json!(count(findings, *level))));
    (Value::Array(all.collect()), Value::Object(levels.collect()))
}
