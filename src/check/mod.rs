//! What `perennial check` finds: facts of a server, a store and an archive go in, findings come out. Pure: gathering
//! the facts is `server::examine`'s and `store::examine`'s.

pub mod archive;
pub mod server;
pub mod settings;
pub mod store;

pub use archive::{ArchiveFacts, of_archive};
pub use server::{Allowed, Permission, ServerFacts, of_server};
pub use store::{ProbeFacts, StoreFacts, of_store};

/// How a finding stands. In the order of gravity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Level {
    /// As it should be.
    Ok,
    /// It could not be looked at.
    Unknown,
    /// It works, and bites some day.
    Warn,
    /// It does not work, or does not keep what is promised.
    Bad,
}

impl Level {
    /// Every level.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Unknown, Self::Warn, Self::Bad];

    /// The word for it, in text and JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Its name, which stays what it is from version to version.
    pub id: &'static str,
    /// How it stands.
    pub level: Level,
    /// What was seen, and what it means.
    pub found: String,
    /// What to change: a command or a setting to paste, or a sentence where there is none.
    pub change: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(id: &'static str, found: impl Into<String>) -> Self {
        Self {
            id,
            level: Level::Ok,
            found: found.into(),
            change: None,
        }
    }

    /// It works, and bites some day.
    pub fn warn(id: &'static str, found: impl Into<String>, change: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            change: Some(change.into()),
            ..Self::ok(id, found)
        }
    }

    /// It does not work.
    pub fn bad(id: &'static str, found: impl Into<String>, change: impl Into<String>) -> Self {
        Self {
            level: Level::Bad,
            ..Self::warn(id, found, change)
        }
    }

    /// It works, and bites some day; the text says itself what to do.
    pub fn warn_as_said(id: &'static str, found: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            ..Self::ok(id, found)
        }
    }

    /// It does not work; the text says itself what to do.
    pub fn bad_as_said(id: &'static str, found: impl Into<String>) -> Self {
        Self {
            level: Level::Bad,
            ..Self::ok(id, found)
        }
    }

    /// It could not be looked at.
    pub fn unknown(id: &'static str, found: impl Into<String>) -> Self {
        Self {
            level: Level::Unknown,
            ..Self::ok(id, found)
        }
    }
}

/// How many findings stand at `level`.
pub fn count(findings: &[Finding], level: Level) -> usize {
    findings
        .iter()
        .filter(|finding| finding.level == level)
        .count()
}
