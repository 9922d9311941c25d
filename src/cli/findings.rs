//! Findings as `check` and `verify` print them, for people and for programs.

use serde_json::{Value, json};

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
