//! What INFO and CONFIG GET say.

use std::fmt::Write;

use super::{Role, State};
use crate::{chance, clock};

impl State {
    pub(super) fn info(&self) -> String {
        let mut text = String::new();
        let uptime = chance::elapsed().saturating_sub(self.started).as_secs();
        let now = clock::unix();
        let saved = (now - u64::try_from(chance::elapsed().as_millis()).unwrap_or(0)) / 1000;
        let mut field = |name: &str, value: &dyn std::fmt::Display| {
            let _ = write!(text, "{name}:{value}\r\n");
        };
        field("redis_version", &"7.0.15");
        field("run_id", &self.run_id);
        field("tcp_port", &self.address.port());
        field("server_time_usec", &(now * 1000));
        field("uptime_in_seconds", &uptime);
        field("used_memory", &1_000_000);
        field("maxmemory", &0);
        field("loading", &u8::from(self.loading));
        field("async_loading", &0);
        field("rdb_changes_since_last_save", &self.applier.changes);
        field("rdb_saves", &self.saves);
        field("rdb_bgsave_in_progress", &0);
        field("rdb_last_bgsave_time_sec", &-1);
        field("rdb_last_save_time", &(saved + self.saved_at.as_secs()));
        field("aof_enabled", &0);
        field("unexpected_error_replies", &self.errors);
        field("total_net_repl_input_bytes", &self.replicated);
        match &self.role {
            Role::Master => field("role", &"master"),
            Role::Replica(master) => {
                field("role", &"slave");
                field("master_host", &master.ip());
                field("master_port", &master.port());
                let up = if self.link_up { "up" } else { "down" };
                field("master_link_status", &up);
                field("slave_repl_offset", &self.offset);
                field("slave_read_only", &1);
            }
        }
        field("connected_slaves", &self.subs.len());
        for (at, sub) in self.subs.values().enumerate() {
            let line = format!(
                "ip={},port={},state=online,offset={},lag=0",
                sub.ip, sub.port, sub.acknowledged
            );
            field(&format!("slave{at}"), &line);
        }
        field("master_replid", &self.id);
        let (previous, second) = match self.previous {
            Some((id, last)) => (id.to_string(), (last + 1).to_string()),
            None => ("0".repeat(40), "-1".into()),
        };
        field("master_replid2", &previous);
        field("master_repl_offset", &self.offset);
        field("second_repl_offset", &second);
        let first = self.backlog.as_ref().map_or(0, |backlog| backlog.first);
        field("repl_backlog_active", &u8::from(self.backlog.is_some()));
        field("repl_backlog_first_byte_offset", &first);
        field("cluster_enabled", &0);
        if !self.loading {
            for database in 0..4 {
                let keys = self.applier.data.keys();
                let keys = keys.filter(|(of, _)| *of == database).count();
                if keys > 0 {
                    let line = format!("keys={keys},expires=0,avg_ttl=0");
                    field(&format!("db{database}"), &line);
                }
            }
        }
        text
    }

    pub(super) fn setting(&self, name: &str) -> Option<String> {
        Some(match name {
            "port" => self.address.port().to_string(),
            "tls-port" | "replica-announce-port" | "slave-announce-port" => "0".into(),
            "tls-replication" => "no".into(),
            "save" => String::new(),
            _ => return None,
        })
    }
}
