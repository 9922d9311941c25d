//! One server, one Perennial, a proxy on each of their two links, clients that never stop, and the blows.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

use crate::harness::workload::write_everything;
use crate::harness::{
    Archive, DEADLINE, Digest, Kind, Load, Perennial, Port, Proxy, Server, Trap, Value, Writers,
    assert_same, until,
};

/// After so many seconds of silence the server gives a replica, or its master, up.
const REPL_TIMEOUT_SECONDS: u64 = 4;
/// How long a process is stopped: longer than anything takes that it interrupts, shorter than what gives it up.
const SHORT_STOP: Duration = Duration::from_millis(600);

/// Few enough to leave two cores to what is tested.
const LOAD: Load = Load {
    plain: 2,
    confirming: 2,
    value_bytes: 16,
    pause: Duration::from_millis(2),
};

/// How the server is kept from taking writes before it has been looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Birth {
    /// Its configuration names the seed port as its master.
    Replica,
    /// It is a master that takes no write while nobody follows it (`min-replicas-to-write 1`): taken over for a seed.
    Master,
}

/// Who is struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    Perennial,
    Master,
    PerennialThenMaster,
    MasterThenPerennial,
    /// Nobody but the connections between them.
    Links,
}

impl Victim {
    fn perennial(self) -> bool {
        !matches!(self, Self::Master | Self::Links)
    }

    fn master(self) -> bool {
        !matches!(self, Self::Perennial | Self::Links)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Perennial => "perennial",
            Self::Master => "master",
            Self::PerennialThenMaster => "perennial+master",
            Self::MasterThenPerennial => "master+perennial",
            Self::Links => "links",
        }
    }
}

/// How.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// `kill -9`; the server starts again with the `dump.rdb` that happens to lie in its folder, or without.
    Kill { keep_dump: bool },
    /// SIGSTOP for a moment.
    Stop,
    /// SIGSTOP until the others have given it up.
    LongStop,
    /// Closed.
    Cut,
}

impl Blow {
    fn name(self) -> &'static str {
        match self {
            Self::Kill { keep_dump: false } => "kill -9",
            Self::Kill { keep_dump: true } => "kill -9, dump kept",
            Self::Stop => "SIGSTOP",
            Self::LongStop => "SIGSTOP past repl-timeout",
            Self::Cut => "cut",
        }
    }
}

/// Everything that a cell needs.
#[derive(Debug)]
pub struct Stage {
    // Dropped first: they must not outlive the server.
    pub writers: Writers,
    pub server: Server,
    pub perennial: Perennial,
    /// Between Perennial and the server.
    pub link: Proxy,
    /// Between the server and Perennial's seed port.
    pub seed: Proxy,
    pub archive: Archive,
    /// Keys that the store held when a blow came, confirmed or not.
    pub stored: Vec<String>,
    /// Pairs of keys that were written in one transaction each.
    pub pairs: Vec<[String; 2]>,
    round: u64,
    _seeder: Port,
}

impl Stage {
    /// Starts everything, with data of every kind in the store. Nothing where the machine has no such server.
    pub fn start(kind: Kind, birth: Birth, backlog: &str) -> Option<Self> {
        Self::start_with(kind, birth, backlog, None)
    }

    /// Starts everything with an empty server and an empty archive; the trap waits for Perennial on the link.
    pub fn start_trapped(kind: Kind, birth: Birth, backlog: &str, trap: Trap) -> Option<Self> {
        Self::start_with(kind, birth, backlog, Some(trap))
    }

    fn start_with(kind: Kind, birth: Birth, backlog: &str, trap: Option<Trap>) -> Option<Self> {
        let seeder = Port::reserve();
        let seed = Proxy::to(&seeder.address());
        let (host, port) = ("127.0.0.1", seed.address());
        let port = port.rsplit(':').next().unwrap();
        let timeout = REPL_TIMEOUT_SECONDS.to_string();
        let mut config = vec![
            "--repl-timeout",
            &timeout,
            "--repl-ping-replica-period",
            "1",
        ];
        config.extend(["--repl-backlog-size", backlog]);
        config.extend(match birth {
            Birth::Replica => vec![
                "--replicaof",
                host,
                port,
                "--replica-serve-stale-data",
                "no",
            ],
            Birth::Master => vec!["--min-replicas-to-write", "1"],
        });
        let server = kind.start(&config)?;
        let link = Proxy::to(&server.address());
        let filled = trap.is_none();
        if let Some(trap) = trap {
            link.arm(trap);
        }
        let archive = Archive::new();
        let (listen, announce) = (seeder.address(), seed.address());
        let flags = ["--seed-listen", &listen, "--seed-announce", &announce];
        let mut perennial = Perennial::follow_url(&link.url(), &archive, &flags);
        if filled {
            archive.until_durable();
            let mut client = server.client();
            write_everything(&mut client, 0);
            client.wait_until_stored(DEADLINE);
            // Anew, so that the data lie in the snapshot.
            perennial.kill();
            std::fs::remove_dir_all(archive.path()).unwrap();
            perennial.start_again();
            archive.until_durable();
        } else {
            // What is written before anybody follows, WAIT confirms without meaning it.
            link.until_caught();
        }
        let writers = Writers::start(&server.address(), LOAD);
        Some(Self {
            writers,
            server,
            perennial,
            link,
            seed,
            archive,
            stored: Vec::new(),
            pairs: Vec::new(),
            round: 0,
            _seeder: seeder,
        })
    }

    /// A number that no other call returns.
    pub fn number(&mut self) -> u64 {
        self.round += 1;
        self.round
    }

    /// Holds the next connection on the link that meets the trap, after the present ones are cut.
    #[track_caller]
    pub fn hold_next_link(&self, trap: Trap) {
        self.link.arm(trap);
        self.link.cut();
        self.link.until_caught();
    }

    /// Kills the server and starts it again, with its dump or empty, so that it is seeded.
    pub fn lose(&mut self, keep_dump: bool) {
        self.server.kill();
        self.link.cut();
        self.seed.cut();
        self.start_server(keep_dump);
    }

    fn start_server(&mut self, keep_dump: bool) {
        if !keep_dump {
            let _ = std::fs::remove_file(self.server.folder().join("dump.rdb"));
        }
        self.server.start_again_without_waiting();
    }

    /// Lets the blow fall while a trap holds, takes the trap away, and starts again who was killed.
    pub fn strike(&mut self, victim: Victim, blow: Blow) {
        match blow {
            Blow::Kill { keep_dump } => self.kill(victim, keep_dump),
            Blow::Cut => self.kill(victim, false),
            Blow::Stop => self.stop(victim, Some(SHORT_STOP)),
            Blow::LongStop => self.stop(victim, None),
        }
    }

    fn kill(&mut self, victim: Victim, keep_dump: bool) {
        let perennial_last = victim == Victim::MasterThenPerennial;
        if victim.perennial() && !perennial_last {
            self.perennial.kill();
        }
        if victim.master() {
            self.server.kill();
        }
        if perennial_last {
            self.perennial.kill();
        }
        // What the dead had not sent yet is not sent by the proxies either.
        for proxy in [&self.link, &self.seed] {
            proxy.cut();
            proxy.disarm();
            proxy.flow();
        }
        if victim.master() {
            self.start_server(keep_dump);
        }
        if victim.perennial() {
            self.perennial.start_again();
        }
    }

    fn stop(&mut self, victim: Victim, span: Option<Duration>) {
        let perennial_last = victim == Victim::MasterThenPerennial;
        if victim.perennial() && !perennial_last {
            self.perennial.pause();
        }
        if victim.master() {
            self.server.pause();
        }
        if perennial_last {
            self.perennial.pause();
        }
        for proxy in [&self.link, &self.seed] {
            proxy.disarm();
            proxy.flow();
        }
        // The length of the stop is the blow itself, nothing is waited for.
        match span {
            Some(span) => std::thread::sleep(span),
            None if victim == Victim::Perennial => self.until_given_up(),
            None => std::thread::sleep(Duration::from_secs(REPL_TIMEOUT_SECONDS + 1)),
        }
        if victim.master() {
            self.server.resume();
        }
        if victim.perennial() {
            self.perennial.resume();
        }
    }

    /// Waits until the server neither has a replica nor hears a master.
    fn until_given_up(&self) {
        let span = Duration::from_secs(REPL_TIMEOUT_SECONDS);
        std::thread::sleep(span);
        until("the server has given Perennial up", DEADLINE, || {
            let info = self.server.try_info("replication").unwrap_or_default();
            let is = |name: &str, value: &str| info.get(name).is_some_and(|text| text == value);
            is("connected_slaves", "0")
                && (is("role", "master") || is("master_link_status", "down"))
        });
    }

    /// Waits until the server is a master that is followed, which WAIT shows.
    #[track_caller]
    pub fn until_at_rest(&self) {
        until("the server is a master", DEADLINE, || {
            self.server.is_master()
        });
        self.writers.until_confirmed_more(6);
    }

    /// From rest.
    #[track_caller]
    pub fn cell(&mut self, step: &Step, victim: Victim, blow: Blow) {
        self.until_at_rest();
        self.cell_at_once(step, victim, blow);
    }

    /// Reaches a step, strikes, and looks whether everything is there that was confirmed, or seen in the store, before.
    #[track_caller]
    pub fn cell_at_once(&mut self, step: &Step, victim: Victim, blow: Blow) {
        let what = format!(
            "{} {} {} {}",
            step.name,
            self.server.kind().name,
            victim.name(),
            blow.name()
        );
        eprintln!("begin {what}");
        (step.reach)(self);
        let confirmed = self.writers.ledger();
        self.strike(victim, blow);
        self.until_at_rest();
        confirmed.assert_all_in(&self.server.address());
        self.assert_whole();
        self.perennial.assert_healthy();
        report(&format!(
            "cell {what}: {} confirmed, 0 lost",
            confirmed.0.len()
        ));
    }

    /// What the store held is there, and of each transaction all or nothing.
    #[track_caller]
    fn assert_whole(&self) {
        let mut client = self.server.client();
        for key in &self.stored {
            assert_eq!(client.ok(&["EXISTS", key]), Value::Integer(1), "{key}");
        }
        for [first, second] in &self.pairs {
            let found = client.ok(&["EXISTS", first, second]).integer();
            assert!(
                found == 0 || found == 2,
                "half of a transaction: {first} {second}"
            );
        }
    }

    /// The last look: master, restored files and a seeded server have the same data, and `status` finds no fault.
    #[track_caller]
    pub fn finish(self, gaps_allowed: bool) {
        let Self {
            writers,
            mut server,
            mut perennial,
            archive,
            link: _link,
            seed: _seed,
            _seeder,
            ..
        } = self;
        let ledger = writers.stop();
        server.client().wait_until_stored(DEADLINE);
        let before = Digest::of(&server.address());
        let folder = archive.restore("restored", &[]);
        let restored = server.kind().start_on(&folder).unwrap();
        ledger.assert_all_in(&restored.address());
        assert_same(&before, &Digest::of(&restored.address()));

        server.kill();
        let _ = std::fs::remove_file(server.folder().join("dump.rdb"));
        server.start_again();
        server.until_master_with_data();
        ledger.assert_all_in(&server.address());
        assert_same(&before, &Digest::of(&server.address()));

        let status = archive.status();
        assert_eq!(status.suspects(), Vec::<u64>::new(), "{status:#?}");
        // Each gap is among the problems.
        let is_expected = |problem: &String| gaps_allowed && problem.contains("has a gap");
        assert!(status.problems.iter().all(is_expected), "{status:#?}");
        perennial.assert_healthy();
    }
}

/// A moment that can be reached.
pub struct Step {
    pub name: String,
    pub reach: Box<dyn Fn(&mut Stage)>,
}

impl Step {
    /// The step of this name.
    pub fn new(name: &str, reach: impl Fn(&mut Stage) + 'static) -> Self {
        Self {
            name: name.to_owned(),
            reach: Box::new(reach),
        }
    }
}

/// Says a line, and appends it to `$PERENNIAL_MATRIX_REPORT`.
pub fn report(line: &str) {
    eprintln!("{line}");
    if let Some(file) = std::env::var_os("PERENNIAL_MATRIX_REPORT") {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(file)
            .unwrap();
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}
