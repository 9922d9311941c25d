//! The world that things go wrong in: a master and a real replica, one or two Perennials that follow whoever is the
//! master, an archive in a bucket, and the clients. What is broken here is mended here.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::clients::Clients;
use super::judge::{Expected, open_accounts};
use super::schedule::{Failover, Fault, Step};
use crate::harness::process::run_to_end;
use crate::harness::random::Random;
use crate::harness::s3::{SECRET, WRITER, environment};
use crate::harness::{
    Archive, Client, DEADLINE, Digest, Kind, Perennial, Port, Proxy, S3Server, Server, Value,
    assert_same, run_cli_when_it_can, until,
};

/// Until writes are confirmed again when everything has come back. The store in this process lists slowly.
const WELL: Duration = Duration::from_secs(240);
/// Reading everything that an hour left.
const VERIFY: Duration = Duration::from_secs(1200);
/// So many confirmations show that all is well.
const CONFIRMATIONS: u64 = 5;
/// Questions to somebody who may be stopped.
const SHORT: Duration = Duration::from_millis(500);
/// A replica that lacks something is promoted only when its process is older than whatever the archive got last: a
/// younger one might have come from a file, and is suspect until a person accepts it.
const REPLICA_AGE: Duration = Duration::from_secs(12);
/// How long whoever wants a failover waits for a replica that can be promoted.
const PATIENCE: Duration = Duration::from_secs(3);
/// When no writes are confirmed for so long, a person looks why.
const LOOKED_INTO: Duration = Duration::from_secs(10);
/// How far a master gets while the replica that will be promoted lags.
const LAG: Duration = Duration::from_millis(1500);
/// What passes a delayed link, one way.
const DELAY: Duration = Duration::from_millis(150);

/// Long enough for whoever was away to go on from where it stood.
const SERVER_CONFIG: [&str; 2] = ["--repl-backlog-size", "64mb"];
/// Everything that an hour of operation brings, within minutes; no more objects than the store in this process, which
/// reads all names for each thousand that it lists, can bear.
const FLAGS: [&str; 8] = [
    "--snapshot-interval",
    "40s",
    "--snapshot-min-interval",
    "10s",
    "--uploads-per-second",
    "8",
    "--shutdown-timeout",
    "3s",
];

/// What brings something back.
#[derive(Debug, Clone, Copy)]
enum Undo {
    StartServer(usize),
    ResumeServer(usize),
    /// A master that hung while another one was promoted becomes its replica.
    Rejoin(usize),
    StartPerennial(usize),
    ResumePerennial(usize),
    LinkFlows(usize),
    LinkIsFast(usize),
    StoreUp,
    StoreFlows,
    StoreIsFine,
}

/// A Perennial and its way to the server.
struct Follower {
    perennial: Perennial,
    link: Proxy,
    told_to_stop: bool,
    // Reserved until the end.
    _seeder: Port,
}

/// What was confirmed by a branch that a failover has left: it is not what clients see, and can be restored by name.
struct LeftBehind {
    timeline: u64,
    expected: Expected,
}

/// Everything.
pub struct World {
    kind: Kind,
    clients: Clients,
    servers: [Server; 2],
    /// Since when each server's process runs; None while it is down.
    up_since: [Option<Instant>; 2],
    master: usize,
    followers: Vec<Follower>,
    archive: Archive,
    store_link: Proxy,
    store: S3Server,
    due: Vec<(Instant, Undo)>,
    left_behind: Vec<LeftBehind>,
    began: Instant,
    /// Where everything is kept if it ends badly.
    keep: PathBuf,
    audits: u32,
    failovers: u32,
    /// Servers that came up with the wrong data, and were started empty.
    emptied: usize,
    /// The suspect timeline whose server was emptied last.
    refused: Option<u64>,
}

impl World {
    /// Starts all of it, with the accounts open and stored. None where this machine has no such server.
    pub fn start(kind: Kind, random: &mut Random, keep: PathBuf) -> Option<Self> {
        let store = S3Server::in_process();
        let store_link = Proxy::to(&store.address());
        let url = store.url_through(&store_link.address(), "a");
        let archive = Archive::at(url, environment(WRITER, SECRET));
        let seeders: Vec<Port> = (0..=random.below(2)).map(|_| Port::reserve()).collect();
        let first = kind.start_waiting_with(&seeders[0], &SERVER_CONFIG)?;
        let second = kind.start_waiting_with(&seeders[0], &SERVER_CONFIG)?;
        let followers: Vec<Follower> = seeders
            .into_iter()
            .map(|seeder| Follower::start(&first, &archive, seeder))
            .collect();
        until("the empty server is promoted", DEADLINE, || {
            first.is_master()
        });
        // Whoever writes before a server has a backlog has its WAIT answered by any replica that is attached.
        archive.until_durable();
        open_accounts(&first.address());
        until_stored(&first, followers.len());
        let clients = Clients::start(&first.address(), kind.speaks >= (7, 0), random);
        let world = Self {
            kind,
            clients,
            servers: [first, second],
            up_since: [Some(Instant::now()); 2],
            master: 0,
            followers,
            archive,
            store_link,
            store,
            due: Vec::new(),
            left_behind: Vec::new(),
            began: Instant::now(),
            keep,
            audits: 0,
            failovers: 0,
            emptied: 0,
            refused: None,
        };
        world.follow_the_master(1);
        world.tell(&format!(
            "{} with {} Perennials",
            kind.name,
            world.followers.len()
        ));
        Some(world)
    }

    /// How many Perennials there are.
    pub fn perennials(&self) -> usize {
        self.followers.len()
    }

    /// Says what happens, and when.
    pub fn tell(&self, what: &str) {
        eprintln!("{:9.3} {what}", self.began.elapsed().as_secs_f64());
    }

    /// Waits for its time, and does it.
    pub fn carry_out(&mut self, step: Step) {
        self.undo_until(Instant::now() + step.after);
        self.tell(&format!("{:?}", step.fault));
        match step.fault {
            Fault::KillMaster { empty, down } => self.kill_server(self.master, empty, down),
            Fault::KillReplica { empty, down } => self.kill_server(self.replica(), empty, down),
            Fault::KillPerennial { which, down } => self.kill_perennial(which, down),
            Fault::KillAll {
                servers_first,
                empty,
                down,
            } => self.kill_all(servers_first, empty, down),
            Fault::TerminateMaster { down } => self.terminate_master(down),
            Fault::TerminatePerennial { which, down } => {
                self.followers[which].terminate();
                self.later(down, Undo::StartPerennial(which));
            }
            Fault::StopMaster { span } => self.stop_server(self.master, span),
            Fault::StopReplica { span } => self.stop_server(self.replica(), span),
            Fault::StopPerennial { which, span } => {
                self.followers[which].perennial.pause();
                self.later(span, Undo::ResumePerennial(which));
            }
            Fault::Save => drop(self.ask(self.master, &["BGSAVE"])),
            Fault::Failover(how) => self.fail_over(how),
            link_or_store => self.break_way(link_or_store),
        }
    }

    fn break_way(&mut self, fault: Fault) {
        match fault {
            Fault::CutLink { which } => self.followers[which].link.cut(),
            Fault::CutLinkAfter { which, bytes } => {
                self.followers[which].link.cut_after_bytes(bytes);
            }
            Fault::StallLink { which, span } => {
                self.followers[which].link.stall();
                self.later(span, Undo::LinkFlows(which));
            }
            Fault::DelayLink { which, span } => {
                self.followers[which].link.delay(DELAY);
                self.later(span, Undo::LinkIsFast(which));
            }
            Fault::StoreDown { span } => {
                self.store_link.down();
                self.later(span, Undo::StoreUp);
            }
            Fault::StoreHangs { span } => {
                self.store_link.stall();
                self.later(span, Undo::StoreFlows);
            }
            Fault::StoreTrouble {
                per_mille,
                seed,
                trouble,
                span,
            } => {
                let control = self.store.control();
                control.trouble_at_random(per_mille, seed, trouble);
                self.later(span, Undo::StoreIsFine);
            }
            other => unreachable!("{other:?} concerns no way"),
        }
    }

    fn replica(&self) -> usize {
        1 - self.master
    }

    fn later(&mut self, span: Duration, undo: Undo) {
        self.due.push((Instant::now() + span, undo));
    }

    /// Brings back what is due until then, each at its time. The waiting is the schedule's, not a synchronisation.
    fn undo_until(&mut self, end: Instant) {
        loop {
            self.due.sort_by_key(|(at, _)| *at);
            match self.due.first() {
                Some((at, _)) if *at <= end => {
                    let (at, undo) = self.due.remove(0);
                    thread::sleep(at.saturating_duration_since(Instant::now()));
                    self.undo(undo);
                }
                _ => break,
            }
        }
        thread::sleep(end.saturating_duration_since(Instant::now()));
    }

    fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::StartServer(slot) => self.start_server(slot),
            Undo::ResumeServer(slot) => self.servers[slot].resume(),
            Undo::Rejoin(slot) => {
                self.servers[slot].resume();
                if slot != self.master && self.up_since[slot].is_some() {
                    self.follow_the_master(slot);
                }
            }
            Undo::StartPerennial(which) => self.followers[which].start_again(),
            Undo::ResumePerennial(which) => self.followers[which].perennial.resume(),
            Undo::LinkFlows(which) => self.followers[which].link.flow(),
            Undo::LinkIsFast(which) => self.followers[which].link.delay(Duration::ZERO),
            Undo::StoreUp => self.store_link.up(),
            Undo::StoreFlows => self.store_link.flow(),
            Undo::StoreIsFine => self.store.control().trouble_no_more(),
        }
    }

    fn kill_server(&mut self, slot: usize, empty: bool, down: Duration) {
        self.servers[slot].kill();
        self.up_since[slot] = None;
        if slot != self.master {
            self.clients.expect_replicas(0);
        }
        if empty {
            self.servers[slot].remove_dump();
        }
        self.later(down, Undo::StartServer(slot));
    }

    fn kill_perennial(&mut self, which: usize, down: Duration) {
        self.followers[which].perennial.kill();
        self.later(down, Undo::StartPerennial(which));
    }

    fn kill_all(&mut self, servers_first: bool, empty: bool, down: Duration) {
        for servers_now in [servers_first, !servers_first] {
            if servers_now {
                self.kill_server(self.master, empty, down);
                self.kill_server(self.replica(), empty, down);
            } else {
                for which in 0..self.followers.len() {
                    self.kill_perennial(which, down);
                }
            }
        }
    }

    fn terminate_master(&mut self, down: Duration) {
        if self.up_since[self.master].is_some() {
            self.servers[self.master].begin_to_terminate();
            self.up_since[self.master] = None;
            self.later(down, Undo::StartServer(self.master));
        }
    }

    fn stop_server(&mut self, slot: usize, span: Duration) {
        self.servers[slot].pause();
        self.later(span, Undo::ResumeServer(slot));
    }

    /// What is up already, because it died twice, stays as it is.
    fn start_server(&mut self, slot: usize) {
        if self.up_since[slot].is_some() {
            return;
        }
        self.servers[slot].resume();
        self.servers[slot].until_ended();
        self.servers[slot].start_again();
        self.up_since[slot] = Some(Instant::now());
        if slot != self.master {
            self.follow_the_master(slot);
        }
    }

    /// Makes a server the master's replica.
    fn follow_the_master(&self, slot: usize) {
        self.clients.expect_replicas(1);
        let port = self.servers[self.master].port().to_string();
        self.until_it_obeys(slot, &["REPLICAOF", "127.0.0.1", &port]);
    }

    #[track_caller]
    fn until_it_obeys(&self, slot: usize, command: &[&str]) {
        until(&format!("{command:?} is obeyed"), DEADLINE, || {
            matches!(self.ask(slot, command), Some(Value::Simple(_)))
        });
    }

    /// The answer, if one comes soon.
    fn ask(&self, slot: usize, command: &[&str]) -> Option<Value> {
        let mut client = Client::connect(&self.servers[slot].address()).ok()?;
        client.set_reply_timeout(SHORT);
        client.command(command).ok()
    }

    /// Whether a server's `INFO replication` holds this line.
    fn says(&self, slot: usize, line: &str) -> bool {
        let info = self.ask(slot, &["INFO", "replication"]);
        info.is_some_and(|info| match info {
            Value::Bulk(text) => String::from_utf8_lossy(&text).contains(line),
            _ => false,
        })
    }

    /// Whether anybody in his senses would promote the replica; he waits a moment for it.
    fn replica_fits(&mut self, how: Failover) -> bool {
        let (old, new) = (self.master, self.replica());
        let age = match how {
            Failover::Lagging => REPLICA_AGE,
            _ => Duration::ZERO,
        };
        let asked = Instant::now();
        while asked.elapsed() < PATIENCE {
            let old_enough = self.up_since[new].is_some_and(|since| since.elapsed() >= age);
            if old_enough
                && self.says(new, "master_link_status:up")
                && self.says(old, "role:master")
            {
                return true;
            }
            self.undo_until(Instant::now() + SHORT / 5);
        }
        false
    }

    /// Makes the replica the master, if it is one that somebody in his senses would promote.
    fn fail_over(&mut self, how: Failover) {
        if !self.replica_fits(how) {
            self.tell("no failover: the replica has no link, or is too young");
            return;
        }
        let (old, new) = (self.master, self.replica());
        self.failovers += 1;
        match how {
            Failover::Killed => self.servers[old].kill(),
            Failover::Hanging => self.servers[old].pause(),
            Failover::Lagging => self.kill_the_master_behind_a_lagging_replica(),
            Failover::Agreed => {
                if !self.agree() {
                    return;
                }
            }
        }
        if how != Failover::Agreed {
            self.clients.expect_replicas(0);
        }
        self.clients.go_to(None);
        self.until_it_obeys(new, &["REPLICAOF", "NO", "ONE"]);
        self.note_what_is_left_behind(new);
        self.master = new;
        let address = self.servers[new].address();
        for follower in &self.followers {
            follower.link.switch_to(&address);
        }
        self.clients.go_to(Some(address));
        match how {
            Failover::Killed | Failover::Lagging => {
                self.up_since[old] = None;
                self.later(SHORT, Undo::StartServer(old));
            }
            Failover::Hanging => self.later(SHORT, Undo::Rejoin(old)),
            Failover::Agreed => {}
        }
    }

    /// The replica stands still and is no longer counted; what Perennial alone confirms now, it will not have.
    fn kill_the_master_behind_a_lagging_replica(&mut self) {
        let (old, new) = (self.master, self.replica());
        self.servers[new].pause();
        // Perennial comes again.
        let _ = self.ask(old, &["CLIENT", "KILL", "TYPE", "replica"]);
        self.clients.expect_replicas(0);
        let (began, (_, before)) = (Instant::now(), self.clients.counts());
        while began.elapsed() < LAG && self.clients.counts().1 < before + CONFIRMATIONS {
            thread::sleep(Duration::from_millis(10));
        }
        self.servers[old].kill();
        self.servers[new].resume();
    }

    /// Whether both servers have agreed that the replica is the master from now on.
    fn agree(&mut self) -> bool {
        let (old, new) = (self.master, self.replica());
        let port = self.servers[new].port().to_string();
        let command = ["FAILOVER", "TO", "127.0.0.1", &port, "TIMEOUT", "3000"];
        let begun = self.ask(old, &command);
        let asked = Instant::now();
        while asked.elapsed() < DEADLINE {
            if self.says(old, "role:slave") && self.says(new, "role:master") {
                return true;
            }
            if self.says(old, "master_failover_state:no-failover") && self.says(old, "role:master")
            {
                self.tell(&format!("no failover: {begun:?}"));
                // A 6.2 that was refused by its peer in the middle of this falls back to SYNC, and acknowledges nothing more on that
                // link: it comes again.
                let _ = self.ask(old, &["CLIENT", "KILL", "TYPE", "replica"]);
                return false;
            }
            // One that was being stopped in order when it was asked has ended, and waits for its start.
            self.undo_until(Instant::now() + Duration::from_millis(20));
        }
        panic!("the servers agree on nothing");
    }

    /// A failover loses what only the old master had: that is Redis. What Perennial confirmed of it stays in the archive,
    /// on the branch that ended.
    fn note_what_is_left_behind(&mut self, new: usize) {
        let expected = self.clients.expected();
        let address = self.servers[new].address();
        let (kept, left) = expected.divided_by(&address);
        let Some(left) = left else {
            return;
        };
        self.mend_the_store();
        let timeline = self.archive.status_with_mapped().head_timeline();
        self.tell(&format!(
            "{} confirmed writes stay behind on timeline {timeline}",
            left.writes.len()
        ));
        self.clients.replace_expected(kept);
        self.left_behind.push(LeftBehind {
            timeline,
            expected: left,
        });
    }

    fn mend_the_store(&self) {
        self.store_link.up();
        self.store_link.flow();
        self.store.control().trouble_no_more();
    }

    /// Waits until everything has come back by itself and writes are confirmed, and looks for the latest of them.
    #[track_caller]
    pub fn until_well(&mut self) {
        let last = self.due.iter().map(|(at, _)| *at).max();
        self.undo_until(last.unwrap_or_else(Instant::now));
        for follower in &mut self.followers {
            follower.link.cut_after_bytes(u64::MAX);
            let ended = follower.perennial.exited();
            assert!(ended.is_none(), "perennial has ended by itself: {ended:?}");
        }
        self.store.control().forget_requests();
        let began = Instant::now();
        let mut looked_into = began;
        let before = self.clients.counts().1;
        while self.clients.counts().1 < before + CONFIRMATIONS {
            assert!(
                began.elapsed() < WELL,
                "waited {WELL:?} in vain until writes are confirmed again; {:#?}",
                self.archive.try_status()
            );
            if looked_into.elapsed() > LOOKED_INTO {
                self.look_into_it();
                looked_into = Instant::now();
            }
            thread::sleep(Duration::from_millis(20));
        }
        let expected = self.clients.expected();
        let address = self.servers[self.master].address();
        expected.latest().assert_in(&address);
        self.tell(&format!(
            "well after {:.1} s; {} writes confirmed",
            began.elapsed().as_secs_f64(),
            expected.writes.len()
        ));
        for left in std::mem::take(&mut self.left_behind) {
            let at = format!("timeline:{}", left.timeline);
            drop(self.restored(&["--at", &at], &left.expected));
        }
    }

    /// What a person does who finds a suspect timeline: accepts it if its server is right, else starts that server empty.
    ///
    /// A replica that was promoted young and lacked something is suspect, and so is whoever bears an id that was never
    /// seen, because the next failover came before the first was looked at, or comes up with a dump from that time.
    #[track_caller]
    fn look_into_it(&mut self) {
        let status = self.archive.status_with_mapped();
        let newest = status.timelines.last().map(|timeline| timeline.seq);
        let Some(suspect) = status.suspects().pop().filter(|seq| Some(*seq) == newest) else {
            return;
        };
        // What its server holds by now it was given from the head.
        if self.refused == Some(suspect) {
            return;
        }
        assert!(
            self.failovers > 0,
            "a suspect timeline without a failover: {status:#?}"
        );
        let address = self.servers[self.master].address();
        if self.clients.expected().divided_by(&address).1.is_some() {
            self.tell(&format!("emptying the server of timeline {suspect}"));
            self.emptied += 1;
            self.refused = Some(suspect);
            self.kill_server(self.master, true, Duration::ZERO);
            return self.start_server(self.master);
        }
        self.tell(&format!("accepting timeline {suspect}"));
        let (url, suspect) = (self.archive.url(), suspect.to_string());
        let arguments = ["accept", &suspect, "--archive", &url];
        let (code, out, err) = run_cli_when_it_can(&arguments, &self.archive.environment());
        assert_eq!(code, 0, "{out}\n{err}");
    }

    /// Restores while everybody writes on: everything that was confirmed until now must be there.
    #[track_caller]
    pub fn audit(&mut self) {
        let expected = self.clients.expected();
        drop(self.restored(&[], &expected));
        self.tell(&format!(
            "restored with {} confirmed writes",
            expected.writes.len()
        ));
    }

    /// A server on restored files, in which these are.
    #[track_caller]
    fn restored(&mut self, at: &[&str], expected: &Expected) -> Restored {
        self.audits += 1;
        let folder = self
            .archive
            .restore(&format!("restored-{}", self.audits), at);
        let server = self.kind.start_on(&folder).unwrap();
        let restored = Restored { server, folder };
        expected.assert_in(&restored.server.address());
        restored
    }

    /// The clients rest: master, replica and a server on restored files hold the same, the archive is whole, and nobody
    /// has panicked.
    #[track_caller]
    pub fn end_well(mut self) {
        self.clients.pause();
        let master = &self.servers[self.master];
        until_stored(master, self.followers.len() + 1);
        let digest = Digest::of(&master.address());
        let expected = self.clients.expected();
        expected.assert_in(&master.address());
        let replica = &self.servers[self.replica()];
        assert_same(&digest, &Digest::of(&replica.address()));
        let restored = self.restored(&[], &expected);
        assert_same(&digest, &Digest::of(&restored.server.address()));
        let status = self.archive.status();
        assert!(status.problems.len() <= self.emptied, "{status:#?}");
        assert!(status.suspects().len() <= self.emptied, "{status:#?}");
        let url = self.archive.url();
        let verify = ["verify", "--archive", &url];
        let program = Path::new(env!("CARGO_BIN_EXE_perennial"));
        let environment = self.archive.environment();
        let (code, out, err) = run_to_end(program, &verify, &environment, VERIFY);
        assert_eq!(code, 0, "{out}\n{err}");
        for follower in &mut self.followers {
            follower.perennial.assert_healthy();
        }
        let (answered, _) = self.clients.counts();
        self.tell(&format!(
            "{}: {answered} writes answered, {} confirmed, lost 0; {} timelines, {} failovers, {} emptied by hand, \
             {} restores",
            self.kind.name,
            expected.writes.len(),
            status.timelines.len(),
            self.failovers,
            self.emptied,
            self.audits
        ));
    }
}

impl Drop for World {
    /// What a person needs who looks for the reason.
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        eprintln!("it went wrong after {:?}", self.began.elapsed());
        copy_tree(&self.store.folder(), &self.keep.join("bucket"));
        for (number, server) in self.servers.iter().enumerate() {
            copy_tree(server.folder(), &self.keep.join(format!("server-{number}")));
        }
        for (number, follower) in self.followers.iter().enumerate() {
            let log = self.keep.join(format!("perennial-{number}.log"));
            let _ = std::fs::write(log, follower.perennial.log());
        }
        eprintln!(
            "the archive, the servers' folders and all logs are kept in {}",
            self.keep.display()
        );
    }
}

impl Follower {
    fn start(server: &Server, archive: &Archive, seeder: Port) -> Self {
        let link = Proxy::to(&server.address());
        let listen = seeder.address();
        let flags = [&["--seed-listen", listen.as_str()], FLAGS.as_slice()].concat();
        Self {
            perennial: Perennial::follow_url(&link.url(), archive, &flags),
            link,
            told_to_stop: false,
            _seeder: seeder,
        }
    }

    fn terminate(&mut self) {
        if self.perennial.exited().is_none() {
            self.perennial.terminate();
            self.told_to_stop = true;
        }
    }

    /// What is up already, because it died twice, stays as it is; who was told to stop may still be at it.
    fn start_again(&mut self) {
        if std::mem::take(&mut self.told_to_stop) {
            self.perennial.resume();
            self.perennial.wait(DEADLINE);
        }
        if self.perennial.exited().is_some() {
            self.perennial.start_again();
        }
    }
}

/// A server on restored files; dropped, both go.
struct Restored {
    server: Server,
    folder: PathBuf,
}

impl Drop for Restored {
    fn drop(&mut self) {
        self.server.kill();
        if !thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// Waits until so many have acknowledged everything, all Perennials among them.
#[track_caller]
fn until_stored(master: &Server, count: usize) {
    let mut client = master.client();
    let count = count.to_string();
    until("all that was written is stored", WELL, || {
        client.line("INCR marker");
        let acknowledged = client.line(&format!("WAIT {count} 1000")).integer();
        acknowledged.to_string() == count
    });
}

/// Copies what can be copied: somebody may still be writing there.
fn copy_tree(from: &Path, to: &Path) {
    let Ok(entries) = std::fs::read_dir(from) else {
        return;
    };
    let _ = std::fs::create_dir_all(to);
    for entry in entries.flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            let _ = std::fs::copy(path, target);
        }
    }
}
