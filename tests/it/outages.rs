//! A store that is down, hangs, crawls or refuses for a while under load: the master does not notice, WAIT says so, and
//! afterwards everything is stored.
//!
//! `PERENNIAL_OUTAGE_SECONDS` is the length of an outage, [`SECONDS`] unless given. The full run (`make outage`, 60)
//! compares the master's throughput with a healthy store and with a broken one, window by window, and asserts it.

use std::time::{Duration, Instant};

use perennial::archive::layout::ObjectName;
use perennial::store::s3::S3Store;
use perennial::store::{Store, open};

use crate::harness::gcs::{Answer, Asked, Gcs};
use crate::harness::s3::{Canned, SECRET, WRITER, environment};
use crate::harness::{
    Archive, Churn, ClientLink, DEADLINE, Digest, Mix, Perennial, Proxy, REDIS_7_0,
    RESIDENT_BYTES_MAX, S3Server, Server, assert_same, holds_for, until,
};

/// How long a store is broken unless told otherwise.
const SECONDS: u64 = 8;
/// From here on the run is a full one.
const SECONDS_FULL: u64 = 30;
/// Broken windows of a full run.
const WINDOWS_FULL: usize = 3;
/// A full run asserts that the master is at least so fast while the store is broken, in thousandths of its speed.
const RATIO_PER_MILLE_MIN: u64 = 900;
/// What the master holds for us, at most, while there is room for what it sends.
const OUTPUT_BUFFER_BYTES_MAX: u64 = 1024 * 1024;
/// What passes in a second while the store crawls.
const CRAWL_BYTES_PER_SECOND: u64 = 200;
/// Until all is stored behind an outage: what hung is given up, and waits have grown.
pub const RECOVERY: Duration = Duration::from_secs(180);

/// What is wrong with the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Connections are closed at once.
    Down,
    /// Connections are accepted and nothing comes.
    Hangs,
    /// Everything is slow.
    Crawls,
    /// Every request is answered with this status.
    Refuses(u16),
}

/// A store behind a proxy.
pub struct Place {
    proxy: Proxy,
    archive: Archive,
    server: Behind,
}

enum Behind {
    S3(S3Server),
    Gcs(Gcs),
}

impl Place {
    pub fn s3() -> Self {
        let server = S3Server::in_process();
        let proxy = Proxy::to(&server.address());
        let url = server.url_through(&proxy.address(), "a");
        Self {
            proxy,
            archive: Archive::at(url, environment(WRITER, SECRET)),
            server: Behind::S3(server),
        }
    }

    pub fn gcs() -> Self {
        let fake = Gcs::start();
        let proxy = Proxy::to(fake.socket());
        let url = fake.url_through(&proxy.address(), "a");
        Self {
            proxy,
            archive: Archive::at(url, Vec::new()),
            server: Behind::Gcs(fake),
        }
    }

    /// Where archives are followed into.
    pub fn archive(&self) -> &Archive {
        &self.archive
    }

    pub fn breaks(&self, way: Way) {
        match (way, &self.server) {
            (Way::Down, _) => self.proxy.down(),
            (Way::Hangs, _) => self.proxy.stall(),
            (Way::Crawls, _) => self.proxy.crawl(CRAWL_BYTES_PER_SECOND),
            (Way::Refuses(status), Behind::S3(server)) => {
                let canned = Canned::error(status, "SlowDown", "Please reduce your request rate.");
                server.control().answer_every(1, canned);
            }
            (Way::Refuses(status), Behind::Gcs(fake)) => {
                for asked in [Asked::Create, Asked::Read, Asked::List, Asked::Begin] {
                    fake.plan(asked, Answer::Refuse(status), usize::MAX);
                }
            }
        }
    }

    pub fn heals(&self, way: Way) {
        match (way, &self.server) {
            (Way::Down, _) => self.proxy.up(),
            (Way::Hangs, _) => self.proxy.flow(),
            (Way::Crawls, _) => self.proxy.crawl(0),
            (Way::Refuses(_), Behind::S3(server)) => server.control().answer_as_usual(),
            (Way::Refuses(_), Behind::Gcs(fake)) => fake.forget_plans(),
        }
    }
}

fn seconds() -> u64 {
    std::env::var("PERENNIAL_OUTAGE_SECONDS").map_or(SECONDS, |text| text.parse().unwrap())
}

macro_rules! outages {
    ($($name:ident: $place:expr, $way:expr;)+) => {
        $(#[test] fn $name() { the_master_does_not_notice(&$place, $way, &[], Mix::MOSTLY_READS); })+
    };
}

outages! {
    s3_is_down: Place::s3(), Way::Down;
    s3_hangs: Place::s3(), Way::Hangs;
    s3_crawls: Place::s3(), Way::Crawls;
    s3_refuses_with_503: Place::s3(), Way::Refuses(503);
    s3_refuses_with_429: Place::s3(), Way::Refuses(429);
    gcs_is_down: Place::gcs(), Way::Down;
    gcs_hangs: Place::gcs(), Way::Hangs;
    gcs_refuses_with_503: Place::gcs(), Way::Refuses(503);
}

/// What a window of a run showed.
#[derive(Clone, Copy, Default, Debug)]
struct Window {
    /// Commands that the master answered, per second.
    rate: u64,
    /// The most that it held for us at any look, in bytes.
    output_bytes: u64,
}

/// Lets clients work for so long, and looks at the link meanwhile.
fn window(server: &Server, churn: &Churn, time: Duration) -> Window {
    let (began, before) = (Instant::now(), churn.done());
    let mut output_bytes = 0;
    holds_for("clients are served", time, || {
        let links = ClientLink::of_replicas(server);
        let held = links.iter().map(|link| link.output_bytes).sum::<u64>();
        output_bytes = output_bytes.max(held);
        true
    });
    let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap();
    Window {
        rate: (churn.done() - before) * 1000 / milliseconds,
        output_bytes,
    }
}

/// What comes finds room in memory, or wherever `flags` say, for as long as the store is broken.
pub fn the_master_does_not_notice(place: &Place, way: Way, flags: &[&str], mix: Mix) {
    let Some(server) = REDIS_7_0.start(&["--repl-backlog-size", "64mb"]) else {
        return;
    };
    let (seconds, archive) = (seconds(), &place.archive);
    let is_full = seconds >= SECONDS_FULL;
    let mut perennial = Perennial::follow(&server, archive, flags);
    let syncs = server.info_number("stats", "sync_full");
    let churn = Churn::start(&server.address(), mix);
    let (mut healthy, mut broken) = (Vec::new(), Vec::new());
    for _ in 0..if is_full { WINDOWS_FULL } else { 1 } {
        let time = Duration::from_secs(if is_full { seconds / 4 } else { 2 });
        healthy.push(window(&server, &churn, time));
        place.breaks(way);
        let mut client = server.client();
        client.line("INCR unconfirmed");
        assert_eq!(
            client.line("WAIT 1 1000").integer(),
            0,
            "confirmed without a store"
        );
        broken.push(window(&server, &churn, Duration::from_secs(seconds - 1)));
        let linked = server.info_number("replication", "connected_slaves");
        assert_eq!(linked, 1, "{}", perennial.log());
        place.heals(way);
        let healed = Instant::now();
        until("it is confirmed", RECOVERY, || {
            client.line("INCR confirmed");
            client.line("WAIT 1 1000").integer() == 1
        });
        eprintln!("{way:?}: confirmed again {:?} after it", healed.elapsed());
    }
    churn.stop();
    let highest = broken.iter().map(|window| window.output_bytes).max();
    let ratio = median(&broken) * 1000 / median(&healthy).max(1);
    eprintln!(
        "{way:?} for {seconds} s: commands/s {healthy:?} healthy, {broken:?} broken; ratio {}.{:03}; {:?} bytes at most \
         in the output buffer; {:?} MiB resident at most",
        ratio / 1000,
        ratio % 1000,
        highest.unwrap(),
        perennial.resident_bytes_peak().map(|bytes| bytes >> 20),
    );
    assert!(highest < Some(OUTPUT_BUFFER_BYTES_MAX), "{broken:?}");
    let peak = server.info_number("clients", "client_recent_max_output_buffer");
    assert!(peak < OUTPUT_BUFFER_BYTES_MAX, "{peak}");
    if is_full {
        assert!(ratio >= RATIO_PER_MILLE_MIN, "{healthy:?} {broken:?}");
    }
    assert_eq!(server.info_number("stats", "sync_full"), syncs);
    nothing_is_lost(&server, archive);
    let resident = perennial.resident_bytes_peak().unwrap();
    assert!(resident < RESIDENT_BYTES_MAX, "{resident} bytes resident");
    perennial.assert_healthy();
}

fn median(windows: &[Window]) -> u64 {
    let mut rates: Vec<u64> = windows.iter().map(|window| window.rate).collect();
    rates.sort_unstable();
    rates[rates.len() / 2]
}

/// What is stored is what the master holds: one stretch without a gap, and files that say the same.
#[track_caller]
fn nothing_is_lost(server: &Server, archive: &Archive) {
    server.client().wait_until_stored(RECOVERY);
    let before = Digest::of(&server.address());
    let status = archive.status();
    assert!(status.problems.is_empty(), "{status:#?}");
    assert!(
        status
            .timelines
            .iter()
            .all(|timeline| timeline.gaps.is_empty()),
        "{status:#?}"
    );
    status.assert_chain_of(1);
    let folder = archive.restore("restored", &[]);
    let restored = REDIS_7_0.start_on(&folder).unwrap();
    assert_same(&before, &Digest::of(&restored.address()));
}

/// Connections on which nothing comes any more, because something on the way has forgotten them, are not waited for
/// until the system gives them up: what is asked next goes over new ones.
#[track_caller]
fn goes_on_over_new_connections(place: &Place, store: &dyn Store) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (first, second) = (name("first"), name("second"));
        store.prepare().await.unwrap();
        store.create(&first, vec!["1".into()]).await.unwrap();
        assert_eq!(store.list("", None).await.unwrap().len(), 1);
        let accepted = place.proxy.accepted();
        place.proxy.abandon();
        let again = async {
            assert_eq!(store.list("", None).await.unwrap().len(), 1);
            assert_eq!(store.read(&first, None).await.unwrap(), "1");
            store.create(&second, vec!["2".into()]).await.unwrap();
        };
        tokio::time::timeout(RECOVERY, again)
            .await
            .expect("it goes on");
        assert!(place.proxy.accepted() > accepted);
    });
}

#[test]
fn s3_goes_on_over_new_connections() {
    let place = Place::s3();
    let store = S3Store::open_as(&place.archive.url(), WRITER, SECRET).unwrap();
    goes_on_over_new_connections(&place, &store);
}

#[test]
fn gcs_goes_on_over_new_connections() {
    let place = Place::gcs();
    let store = open(&place.archive.url()).unwrap();
    goes_on_over_new_connections(&place, &*store);
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

/// More than fits into memory comes while the store is down: the link is closed, the backlog is the next buffer, and
/// when there is room again it goes on where it was.
#[test]
fn what_does_not_fit_waits_in_the_backlog() {
    let Some(server) = REDIS_7_0.start(&["--repl-backlog-size", "512mb"]) else {
        return;
    };
    let place = Place::s3();
    let mut perennial = Perennial::follow(&server, &place.archive, &[]);
    let syncs = server.info_number("stats", "sync_full");
    let offset = || server.info_number("replication", "master_repl_offset");
    place.breaks(Way::Down);
    let begin = offset();
    let churn = Churn::start(&server.address(), Mix::RANDOM_WRITES);
    until("the link is closed", 2 * DEADLINE, || {
        server.info_number("replication", "connected_slaves") == 0
    });
    let sent = offset() - begin;
    assert!(sent > 32 << 20, "closed after {sent} bytes");
    perennial.assert_healthy();
    // The master goes on, and holds nothing for us but its backlog.
    let before = churn.done();
    until("clients are served", DEADLINE, || {
        churn.done() > before + 1000
    });
    assert!(ClientLink::of_replicas(&server).is_empty());
    churn.stop();
    assert!(offset() - begin < 512 << 20, "more than the backlog holds");
    place.heals(Way::Down);
    until("it is followed again", RECOVERY, || {
        server.info_number("replication", "connected_slaves") == 1
    });
    nothing_is_lost(&server, &place.archive);
    assert_eq!(server.info_number("stats", "sync_full"), syncs);
    let resident = perennial.resident_bytes_peak().unwrap();
    eprintln!(
        "{} MiB came, {} MiB resident at most",
        sent >> 20,
        resident >> 20
    );
    assert!(resident < RESIDENT_BYTES_MAX, "{resident} bytes resident");
    perennial.assert_healthy();
}
