//! How long `run` waits before it looks again, and what it says meanwhile: each thing once until it changes.

use std::time::Duration;

use crate::follow::{backoff, jittered};
use crate::store::catalog::CatalogError;

/// The first wait before looking again.
const LOOK_FIRST: Duration = Duration::from_millis(50);
/// The longest wait before looking again at a server that cannot be reached: an empty one should not be left
/// alone for long.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// The longest wait after something that a person must change.
const SLOW_MAX: Duration = Duration::from_secs(30);

/// What is said before waiting.
pub(super) struct Said {
    pub(super) text: String,
    /// Somebody must change something; looked at again all the same, slowly.
    pub(super) slow: bool,
    /// It worked for a while: the waits begin anew.
    pub(super) fresh: bool,
    /// It does not pass by itself.
    pub(super) error: bool,
}

impl Said {
    pub(super) fn new(text: String) -> Self {
        Self {
            text,
            slow: false,
            fresh: false,
            error: false,
        }
    }

    /// Without what only a line in a log needs.
    pub(super) fn reason(&self) -> &str {
        self.text.trim_start_matches("not ready: ")
    }

    pub(super) fn slow(text: String) -> Self {
        Self {
            slow: true,
            ..Self::new(text)
        }
    }

    /// Of an archive that cannot be opened or read.
    pub(super) fn of_archive(text: String, error: &CatalogError) -> Self {
        Self {
            error: matches!(error, CatalogError::Store(store) if !store.is_retryable()),
            ..Self::slow(text)
        }
    }
}

/// Waits that grow, and each thing said once until it changes or long after.
#[derive(Default)]
pub(super) struct Pace {
    attempts: u32,
    same: u32,
    last: String,
}

impl Pace {
    pub(super) fn next(&mut self, said: &Said) -> Duration {
        if said.fresh {
            *self = Self::default();
        }
        self.attempts += 1;
        self.same = if said.text == self.last {
            self.same + 1
        } else {
            1
        };
        // Waits are half a minute by then, and whoever looks must not find an empty page.
        let is_said = self.same.is_power_of_two() || (said.error && self.same.is_multiple_of(2));
        if is_said && said.error {
            tracing::error!(
                attempt = self.same,
                "{}; trying again, but somebody must change something",
                said.text
            );
        } else if is_said {
            tracing::warn!(attempt = self.same, "{}; trying again", said.text);
        }
        self.last.clone_from(&said.text);
        jittered(backoff(
            LOOK_FIRST,
            if said.slow { SLOW_MAX } else { LOOK_MAX },
            self.attempts,
        ))
    }
}
