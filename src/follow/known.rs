//! What a server's INFO says of how to ask it for its stream.

use super::replicas;
use crate::position::Offset;
use crate::server::info::Info;

/// The first version that leaves the keys out of a full resync on request (`protocol-facts` 1.2).
const FILTERS_SINCE: (u32, u32) = (7, 0);

/// What the last INFO said of how to ask.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// What to announce.
    pub(super) version: Option<String>,
    /// Which server it is.
    pub(super) server: Option<replicas::Version>,
    /// Every full resync comes with all keys: the server is older than 7.0.
    pub(super) always_with_keys: bool,
    /// The first byte in the backlog; `None` where INFO does not tell or there is no backlog.
    backlog_first: Option<Offset>,
    /// INFO says that there is no backlog.
    no_backlog: bool,
}

impl Known {
    pub(super) fn learn(&mut self, info: &Info) {
        let active = info.number("repl_backlog_active");
        let first = info.number("repl_backlog_first_byte_offset");
        *self = Self {
            version: (info.server_name() == "valkey").then(|| info.version().to_owned()),
            server: Some((info.server_name().to_owned(), info.version_numbers())),
            always_with_keys: info.version_numbers() < FILTERS_SINCE,
            backlog_first: first.filter(|_| active == Some(1)).map(Offset::new),
            no_backlog: active == Some(0),
        };
    }

    /// Whether the server still has the byte after `offset`, as far as INFO tells.
    pub(super) fn continues_after(&self, offset: Offset) -> bool {
        !self.no_backlog
            && self
                .backlog_first
                .is_none_or(|first| first <= offset.next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(backlog: &str) -> bool {
        let mut known = Known::default();
        known.learn(&Info::parse(backlog));
        known.continues_after(Offset::new(100))
    }

    #[test]
    fn what_the_backlog_holds_can_be_continued() {
        let active = "repl_backlog_active:1\r\nrepl_backlog_first_byte_offset:";
        assert!(known(&format!("{active}1")));
        assert!(known(&format!("{active}101")));
        assert!(!known(&format!("{active}102")));
        assert!(!known(
            "repl_backlog_active:0\r\nrepl_backlog_first_byte_offset:0"
        ));
        assert!(known(""), "what INFO does not tell is asked");
    }

    #[test]
    fn only_valkey_is_told_a_version_and_only_old_servers_send_keys_unasked() {
        let learned = |info: &str| {
            let mut known = Known::default();
            known.learn(&Info::parse(info));
            (known.version, known.always_with_keys)
        };
        assert_eq!(learned("redis_version:6.2.14"), (None, true));
        assert_eq!(learned("redis_version:7.0.15"), (None, false));
        assert_eq!(
            learned("redis_version:7.2.4\r\nvalkey_version:9.1.2"),
            (Some("9.1.2".into()), false)
        );
    }
}
