//! What is found of an archive.

use super::Finding;
use crate::archive::layout::is_name_right;
use crate::decide::UnreadablePayload;

/// What was seen of an archive.
#[derive(Clone, Default, Debug)]
pub struct ArchiveFacts {
    /// Its name.
    pub name: Option<String>,
    /// The name that was asked for.
    pub wanted: Option<String>,
    /// How far it reaches, in words.
    pub head: Option<String>,
    /// How many timelines it has.
    pub timelines: usize,
    /// What `perennial status` has to say.
    pub problems: Vec<String>,
    /// Objects at the ends of timelines that are damaged.
    pub damaged: Vec<String>,
    /// Whether the server that was looked at reads the newest snapshot; nothing where there is none of either.
    pub readable: Option<Result<(), UnreadablePayload>>,
}

/// Findings about an archive; `None` is a store without one.
pub fn of_archive(facts: Option<&ArchiveFacts>) -> Vec<Finding> {
    let Some(facts) = facts else {
        let found = "there is none yet: the first `perennial run` begins it";
        return vec![Finding::ok("archive", found)];
    };
    let name = facts.name.as_deref();
    let wanted = facts.wanted.as_deref();
    // What `perennial run` refuses is bad.
    let is_right = is_name_right(name, wanted);
    let mut findings = vec![match (name, wanted) {
        (Some(found), Some(wanted)) if !is_right => Finding::bad(
            "archive-name",
            format!("it belongs to the data set {found}, not to {wanted}"),
            format!(
                "--name {}, or an archive of its own for {wanted}",
                crate::shell::quoted(found)
            ),
        ),
        (Some(found), _) => Finding::ok(
            "archive-name",
            format!("it belongs to the data set {found}"),
        ),
        (None, Some(wanted)) => Finding::bad(
            "archive-name",
            format!("it has no name, so nothing says that it is that of {wanted}"),
            "no --name, if it is the right one (an archive gets its name when it begins); else an archive of its own",
        ),
        (None, None) => Finding::ok("archive-name", "it has no name, and none is asked for"),
    }];
    let timelines = match facts.timelines {
        1 => "1 timeline".to_owned(),
        count => format!("{count} timelines"),
    };
    findings.push(match &facts.head {
        Some(head) => Finding::ok("archive-head", format!("{timelines}; latest is {head}")),
        None => Finding::warn_as_said(
            "archive-head",
            format!("{timelines}, and nothing that can be restored yet"),
        ),
    });
    for damaged in &facts.damaged {
        findings.push(Finding::bad_as_said("archive-damaged", damaged.clone()));
    }
    for problem in &facts.problems {
        findings.push(Finding::warn_as_said("archive-problem", problem.clone()));
    }
    match &facts.readable {
        Some(Ok(())) => findings.push(Finding::ok(
            "archive-payload",
            "this server reads the archive's snapshots",
        )),
        Some(Err(unreadable)) => findings.push(Finding::bad_as_said(
            "archive-payload",
            format!("this server could not be filled: {unreadable}"),
        )),
        None => {}
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Level, count};

    #[test]
    fn names_are_compared_where_both_are_known() {
        for (name, wanted, level) in [
            (None, None, Level::Ok),
            (Some("a"), None, Level::Ok),
            (Some("a"), Some("a"), Level::Ok),
            (Some("a"), Some("b"), Level::Bad),
            (None, Some("b"), Level::Bad),
        ] {
            let facts = ArchiveFacts {
                name: name.map(str::to_owned),
                wanted: wanted.map(str::to_owned),
                ..ArchiveFacts::default()
            };
            let findings = of_archive(Some(&facts));
            assert_eq!(findings[0].id, "archive-name");
            assert_eq!(findings[0].level, level, "{name:?} {wanted:?}");
            assert_eq!(is_name_right(name, wanted), level == Level::Ok);
        }
    }

    #[test]
    fn damage_is_bad_and_problems_are_warnings() {
        let facts = ArchiveFacts {
            head: Some("timeline 1 offset 7".into()),
            timelines: 2,
            problems: vec!["a".into(), "b".into()],
            damaged: vec!["c".into()],
            readable: Some(Ok(())),
            ..ArchiveFacts::default()
        };
        let findings = of_archive(Some(&facts));
        assert_eq!(count(&findings, Level::Warn), 2);
        assert_eq!(count(&findings, Level::Bad), 1);
        assert_eq!(of_archive(None)[0].level, Level::Ok);
    }
}
