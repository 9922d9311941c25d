//! INFO as facts: reads the sections that decisions need, whatever the version calls them.

use std::collections::HashMap;

use crate::decide::{Role, Server};
use crate::position::{Offset, ReplicationId};

/// How far the start of a process, computed from times in whole seconds, lies off, seconds.
const START_SECONDS_OFF_MAX: u64 = 1;

/// The answer to INFO, field by field.
#[derive(Clone, Debug, Default)]
pub struct Info {
    fields: HashMap<String, String>,
    keys: u64,
    modules: Vec<String>,
}

/// INFO lacks what it must have.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "INFO has no usable {field}: is this a Redis or Valkey server, and may this user run INFO?"
)]
pub struct MissingField {
    field: &'static str,
}

impl Info {
    /// Reads the text of an answer. Unknown lines are kept, broken ones ignored.
    pub fn parse(text: &str) -> Self {
        let mut info = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.trim_end().split_once(':') else {
                continue;
            };
            if name.starts_with("db")
                && let Some(keys) = value.split(',').find_map(|part| part.strip_prefix("keys="))
            {
                info.keys = info.keys.saturating_add(keys.parse().unwrap_or(1));
            }
            if name == "module" {
                let module = value.split(',').next().unwrap_or(value);
                let module = module.strip_prefix("name=").unwrap_or(module);
                info.modules.push(module.to_owned());
            }
            info.fields.insert(name.to_owned(), value.to_owned());
        }
        info
    }

    /// One field's text.
    pub fn text(&self, field: &str) -> Option<&str> {
        self.fields.get(field).map(String::as_str)
    }

    /// One field as a number.
    pub fn number(&self, field: &str) -> Option<u64> {
        self.text(field)?.parse().ok()
    }

    /// Keys in all databases.
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// The databases that hold any, in order.
    pub fn databases(&self) -> Vec<u32> {
        let numbers = self.fields.iter().filter_map(|(name, value)| {
            let number = name.strip_prefix("db")?.parse().ok()?;
            value.starts_with("keys=").then_some(number)
        });
        let mut databases: Vec<u32> = numbers.collect();
        databases.sort_unstable();
        databases
    }

    /// Where its replicas say that they listen.
    pub fn replicas(&self) -> Vec<(String, u16)> {
        let count = self.number("connected_slaves").unwrap_or(u64::MAX);
        let lines = (0..count).map_while(|at| self.text(&format!("slave{at}")));
        let replica = |line: &str| {
            let field = |name: &str| {
                let mut parts = line.split(',');
                parts.find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
            };
            Some((field("ip")?.to_owned(), field("port")?.parse().ok()?))
        };
        lines.filter_map(replica).collect()
    }

    /// The names of the modules it has loaded.
    pub fn modules(&self) -> &[String] {
        &self.modules
    }

    /// The server is reading its own dump or a payload: its keyspace says nothing yet (`protocol-facts` 8).
    pub fn is_loading(&self) -> bool {
        self.number("loading") != Some(0) || self.number("async_loading") == Some(1)
    }

    /// "redis" or "valkey".
    pub fn server_name(&self) -> &str {
        if self.fields.contains_key("valkey_version") {
            "valkey"
        } else {
            "redis"
        }
    }

    /// The real version: valkey says 7.2.4 in `redis_version` (`protocol-facts` 1.4).
    pub fn version(&self) -> &str {
        self.text("valkey_version")
            .or_else(|| self.text("redis_version"))
            .unwrap_or("?")
    }

    /// The first two numbers of the version.
    pub fn version_numbers(&self) -> (u32, u32) {
        let mut numbers = self
            .version()
            .split('.')
            .map(|part| part.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }

    /// What a decision needs. `is_us` tells whether a master's host and port are our own seeder.
    ///
    /// # Errors
    /// [`MissingField`] where role, id or offset cannot be read.
    pub fn server(&self, is_us: impl Fn(&str, u16) -> bool) -> Result<Server, MissingField> {
        let field = |name: &'static str| self.text(name).ok_or(MissingField { field: name });
        let role = match field("role")? {
            "master" => Role::Master,
            _ => self.replica_role(is_us)?,
        };
        let id = field("master_replid")?
            .parse::<ReplicationId>()
            .map_err(|_| MissingField {
                field: "master_replid",
            })?;
        let offset = self
            .number("master_repl_offset")
            .map(Offset::new)
            .ok_or(MissingField {
                field: "master_repl_offset",
            })?;
        Ok(Server {
            role,
            run_id: self.text("run_id").unwrap_or("").to_owned(),
            id,
            offset,
            previous: self.previous(),
            empty: self.keys == 0 && self.number("number_of_libraries").unwrap_or(0) == 0,
            untouched: self.untouched(),
            // The field is cut to whole seconds on both ends: up to one second more than the truth.
            uptime_millis: self
                .number("uptime_in_seconds")
                .unwrap_or(0)
                .saturating_mul(1000)
                .saturating_sub(1000),
            replication_errors: self.number("unexpected_error_replies").unwrap_or(0),
            never_replicated: self.number("total_net_repl_input_bytes") == Some(0),
        })
    }

    fn replica_role(&self, is_us: impl Fn(&str, u16) -> bool) -> Result<Role, MissingField> {
        let host = self.text("master_host").ok_or(MissingField {
            field: "master_host",
        })?;
        let port = self.text("master_port").and_then(|port| port.parse().ok());
        let port: u16 = port.ok_or(MissingField {
            field: "master_port",
        })?;
        if is_us(host, port) {
            return Ok(Role::ReplicaOfUs);
        }
        Ok(Role::Replica {
            link_up: self.text("master_link_status") == Some("up"),
        })
    }

    fn previous(&self) -> Option<(ReplicationId, Offset)> {
        let id: ReplicationId = self.text("master_replid2")?.parse().ok()?;
        // -1 where there is none.
        let second = self.number("second_repl_offset")?;
        (!id.is_none() && second > 0).then(|| (id, Offset::new(second).previous()))
    }

    /// Nothing was written since the process started. `rdb_changes_since_last_save` alone is not enough: a
    /// save in between sets it back when it ends, so none may have ended either. Keys that expired do not count.
    fn untouched(&self) -> bool {
        let counted = match self.number("rdb_saves") {
            Some(saves) => saves > 0,
            // Before 7.0: the duration of the last background save, -1 before the first one.
            None => self.text("rdb_last_bgsave_time_sec") != Some("-1"),
        };
        self.number("rdb_changes_since_last_save") == Some(0)
            && !counted
            && !self.saved_since_start()
    }

    /// A process that never saved says that its last save was its own start, as far as a clock of whole seconds
    /// tells. The counts do not tell all of it: CONFIG RESETSTAT sets `rdb_saves` back, and before 7.0 SAVE is not
    /// counted at all.
    fn saved_since_start(&self) -> bool {
        let [now_micros, uptime, saved] = [
            "server_time_usec",
            "uptime_in_seconds",
            "rdb_last_save_time",
        ]
        .map(|field| self.number(field));
        match (now_micros, uptime, saved) {
            (Some(now_micros), Some(uptime), Some(saved)) => {
                let started = (now_micros / 1_000_000).saturating_sub(uptime);
                saved > started + START_SECONDS_OFF_MAX
            }
            // Before 6.2 the server does not tell its time: whatever it holds may have been written and saved.
            _ => self.keys > 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: &str = "# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\nuptime_in_seconds:9\r\n\
        server_time_usec:1000009900000\r\n# Persistence\r\nloading:0\r\nasync_loading:0\r\n\
        rdb_changes_since_last_save:0\r\nrdb_bgsave_in_progress:0\r\nrdb_saves:0\r\nrdb_last_save_time:1000000\r\n\
        # Replication\r\nrole:master\r\nmaster_replid:1111111111111111111111111111111111111111\r\n\
        master_replid2:0000000000000000000000000000000000000000\r\nmaster_repl_offset:0\r\nsecond_repl_offset:-1\r\n";

    fn server(extra: &str) -> Server {
        Info::parse(&format!("{FRESH}{extra}"))
            .server(|host, port| (host, port) == ("127.0.0.1", 7))
            .unwrap()
    }

    #[test]
    fn a_fresh_empty_master() {
        let server = server("");
        assert_eq!(server.role, Role::Master);
        assert!(server.empty && server.untouched);
        assert_eq!(server.previous, None);
        assert_eq!(server.uptime_millis, 8000);
    }

    #[test]
    fn keys_functions_and_writes_are_seen() {
        assert!(!server("db0:keys=1,expires=0,avg_ttl=0\r\n").empty);
        assert!(!server("number_of_libraries:1\r\n").empty);
        for touched in ["rdb_changes_since_last_save:1", "rdb_saves:1"] {
            assert!(!server(&format!("{touched}\r\n")).untouched, "{touched}");
        }
    }

    #[test]
    fn before_7_0_a_save_is_seen_by_its_duration_or_its_time() {
        let server = |more: &str| {
            let old: String = FRESH
                .lines()
                .filter(|line| !line.starts_with("rdb_saves"))
                .map(|line| format!("{line}\r\n"))
                .collect();
            let times = "rdb_last_bgsave_time_sec:-1\r\n";
            Info::parse(&format!("{old}{times}{more}"))
                .server(|_, _| false)
                .unwrap()
                .untouched
        };
        assert!(server(""));
        assert!(server("rdb_last_save_time:1000001\r\n"), "rounded");
        assert!(!server("rdb_last_save_time:1000005\r\n"), "SAVE");
        assert!(!server("rdb_last_bgsave_time_sec:0\r\n"), "BGSAVE");
        assert!(!server("rdb_changes_since_last_save:1\r\n"), "a write");
    }

    #[test]
    fn a_save_is_seen_also_where_its_count_was_set_back() {
        assert!(server("rdb_last_save_time:1000001\r\n").untouched);
        assert!(!server("rdb_last_save_time:1000005\r\n").untouched);
    }

    #[test]
    fn before_6_2_only_a_server_without_keys_is_known_to_be_untouched() {
        let old: String = FRESH
            .lines()
            .filter(|line| !line.starts_with("rdb_saves") && !line.starts_with("server_time_usec"))
            .map(|line| format!("{line}\r\n"))
            .collect();
        let untouched = |more: &str| {
            Info::parse(&format!("{old}rdb_last_bgsave_time_sec:-1\r\n{more}"))
                .server(|_, _| false)
                .unwrap()
                .untouched
        };
        assert!(untouched(""));
        assert!(!untouched("db0:keys=1,expires=0,avg_ttl=0\r\n"));
    }

    #[test]
    fn a_second_id_names_the_last_offset_it_continues_from() {
        let server = server(
            "master_replid2:2222222222222222222222222222222222222222\r\nsecond_repl_offset:101\r\n",
        );
        assert_eq!(server.previous.unwrap().1, Offset::new(100));
    }

    #[test]
    fn a_replica_knows_whose_it_is() {
        let replica = |host: &str, port, link| {
            server(&format!("role:slave\r\nmaster_host:{host}\r\nmaster_port:{port}\r\nmaster_link_status:{link}\r\n"))
                .role
        };
        assert_eq!(replica("127.0.0.1", 7, "down"), Role::ReplicaOfUs);
        assert_eq!(
            replica("127.0.0.1", 8, "down"),
            Role::Replica { link_up: false }
        );
        assert_eq!(replica("other", 7, "up"), Role::Replica { link_up: true });
    }

    #[test]
    fn loading_and_versions() {
        assert!(!Info::parse(FRESH).is_loading());
        assert!(Info::parse("loading:1\r\n").is_loading());
        assert!(
            Info::parse("").is_loading(),
            "what does not say that it has loaded may still be loading"
        );
        let valkey =
            Info::parse("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2\r\n");
        assert_eq!(
            (valkey.server_name(), valkey.version_numbers()),
            ("valkey", (9, 1))
        );
    }

    #[test]
    fn replicas_are_found_by_address_and_port() {
        let info = Info::parse(
            "role:master\r\nconnected_slaves:3\r\nslave0:ip=10.0.0.1,port=6380,state=online,offset=7,lag=0\r\n\
             slave1:ip=::1,port=0,state=wait_bgsave,offset=0,lag=0,type=replica\r\nslave2:broken\r\n\
             slave_priority:100\r\n",
        );
        let found = info.replicas();
        assert_eq!(
            found,
            [("10.0.0.1".to_owned(), 6380), ("::1".to_owned(), 0)]
        );
    }

    #[test]
    fn modules_are_named() {
        let info = Info::parse(
            "# Modules\r\nmodule:name=search,ver=1,api=1\r\nmodule:name=ReJSON,ver=2\r\n",
        );
        assert_eq!(info.modules(), ["search", "ReJSON"]);
    }

    #[test]
    fn what_is_not_a_server_is_an_error() {
        let error = Info::parse("<html>").server(|_, _| false).unwrap_err();
        assert!(error.to_string().contains("INFO"));
    }
}
