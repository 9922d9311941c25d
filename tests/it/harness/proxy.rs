//! A TCP proxy that can cut, stall, delay and vanish, on demand or after so many bytes, and hold a connection at a byte
//! that a [`Trap`] names.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::trap::{Progress, Trap, Way};
use super::{DEADLINE, Port, until};

/// How often a waiting pump looks at what it is told.
const TICK: Duration = Duration::from_millis(5);
/// How often a pump that crawls passes something.
const CRAWL_TICK: Duration = Duration::from_millis(50);
/// The number of a trap that lets nothing go.
const ABANDONED: u64 = u64::MAX;
const BUFFER_BYTES: usize = 64 * 1024;

#[derive(Debug)]
struct Shared {
    upstream: Mutex<String>,
    end: AtomicBool,
    down: AtomicBool,
    stalled: AtomicBool,
    /// Go down at the cut that `bytes_left` makes.
    down_after_cut: AtomicBool,
    /// One way, in milliseconds.
    delay_ms: AtomicU64,
    /// Each connection's, one way; 0 for no limit.
    bytes_per_second: AtomicU64,
    /// Bytes from upstream that may still pass before all connections are cut; `u64::MAX` for no limit.
    bytes_left: AtomicU64,
    bytes_down: AtomicU64,
    accepted: AtomicU64,
    cuts: AtomicU64,
    connections: Mutex<Vec<Arc<Connection>>>,
    armed: Mutex<Option<Armed>>,
}

/// The two sockets of a connection through the proxy.
#[derive(Debug)]
struct Connection {
    client: TcpStream,
    server: TcpStream,
    /// The number of the trap that holds a direction; 0 for none.
    held_up: AtomicU64,
    held_down: AtomicU64,
    cut: AtomicBool,
    /// How far it has come through the armed trap: the number of that trap, and the progress.
    progress: Mutex<(u64, Progress)>,
}

/// A trap that waits for a connection, or has caught one.
#[derive(Debug)]
struct Armed {
    trap: Trap,
    number: u64,
    passed: u32,
    sprung: bool,
}

/// A proxy in front of one server.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    port: Port,
    listener: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a port of its own and passes everything to `upstream`.
    pub fn to(upstream: &str) -> Self {
        let port = Port::reserve();
        let listener = TcpListener::bind(("127.0.0.1", port.number)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream.to_owned()),
            end: AtomicBool::new(false),
            down: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            down_after_cut: AtomicBool::new(false),
            delay_ms: AtomicU64::new(0),
            bytes_per_second: AtomicU64::new(0),
            bytes_left: AtomicU64::new(u64::MAX),
            bytes_down: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            cuts: AtomicU64::new(0),
            connections: Mutex::default(),
            armed: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        let listener = thread::spawn(move || accepting.accept(&listener));
        Self {
            shared,
            port,
            listener: Some(listener),
        }
    }

    /// `127.0.0.1:<port>`.
    pub fn address(&self) -> String {
        self.port.address()
    }

    /// `redis://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// Passes new connections to another server, and closes those to the old one.
    pub fn switch_to(&self, upstream: &str) {
        upstream.clone_into(&mut self.shared.upstream.lock().unwrap());
        self.shared.cut();
    }

    /// Closes all connections once; new ones are welcome.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Closes all connections, and new ones as soon as they come, until [`Proxy::up`].
    pub fn down(&self) {
        self.shared.down.store(true, Ordering::SeqCst);
        self.shared.cut();
    }

    /// Ends [`Proxy::down`].
    pub fn up(&self) {
        self.shared.down.store(false, Ordering::SeqCst);
    }

    /// Passes nothing on, in either direction, with all connections open.
    pub fn stall(&self) {
        self.shared.stalled.store(true, Ordering::SeqCst);
    }

    /// Ends [`Proxy::stall`].
    pub fn flow(&self) {
        self.shared.stalled.store(false, Ordering::SeqCst);
    }

    /// Nothing passes any more on the connections that are open now, which stay so; new ones are welcome. So it looks
    /// when a machine on the way has forgotten them.
    pub fn abandon(&self) {
        for connection in self.shared.connections.lock().unwrap().iter() {
            connection.held_up.store(ABANDONED, Ordering::SeqCst);
            connection.held_down.store(ABANDONED, Ordering::SeqCst);
        }
    }

    /// Sends these bytes to every client, as if the server had said them.
    pub fn inject(&self, bytes: &[u8]) {
        for connection in self.shared.connections.lock().unwrap().iter() {
            let _ = (&connection.client).write_all(bytes);
        }
    }

    /// Lays a trap; the one before catches nothing more, and goes on holding what it has caught. Connections that are
    /// open are looked at from the next byte on. Returns the trap's number.
    pub fn arm(&self, trap: Trap) -> u64 {
        let mut armed = self.shared.armed.lock().unwrap();
        let number = armed.as_ref().map_or(1, |armed| armed.number + 1);
        *armed = Some(Armed {
            trap,
            number,
            passed: 0,
            sprung: false,
        });
        number
    }

    /// Waits until the last trap holds a connection.
    #[track_caller]
    pub fn until_caught(&self) {
        until("a connection is in the trap", DEADLINE, || {
            let armed = self.shared.armed.lock().unwrap();
            armed.as_ref().is_some_and(|armed| armed.sprung)
        });
    }

    /// Lets go what the trap of this number holds; what was held back passes.
    pub fn let_go(&self, number: u64) {
        for connection in self.shared.connections.lock().unwrap().iter() {
            for held in [&connection.held_up, &connection.held_down] {
                let _ = held.compare_exchange(number, 0, Ordering::SeqCst, Ordering::SeqCst);
            }
        }
    }

    /// Takes the trap away and lets go everything that any of them holds.
    pub fn disarm(&self) {
        let mut armed = self.shared.armed.lock().unwrap();
        if let Some(armed) = armed.as_mut() {
            armed.sprung = true;
        }
        for connection in self.shared.connections.lock().unwrap().iter() {
            connection.held_up.store(0, Ordering::SeqCst);
            connection.held_down.store(0, Ordering::SeqCst);
        }
    }

    /// Holds every piece back for so long, in each direction.
    pub fn delay(&self, delay: Duration) {
        let milliseconds = u64::try_from(delay.as_millis()).unwrap();
        self.shared.delay_ms.store(milliseconds, Ordering::SeqCst);
    }

    /// Lets only so many bytes a second pass, in each direction of each connection; 0 ends that.
    pub fn crawl(&self, bytes_per_second: u64) {
        self.shared
            .bytes_per_second
            .store(bytes_per_second, Ordering::SeqCst);
    }

    /// Cuts all connections after exactly so many more bytes from the server, once; new ones are welcome.
    pub fn cut_after_bytes(&self, bytes: u64) {
        self.shared.down_after_cut.store(false, Ordering::SeqCst);
        self.shared.bytes_left.store(bytes, Ordering::SeqCst);
    }

    /// The same, and [`Proxy::down`] in that moment.
    pub fn down_after_bytes(&self, bytes: u64) {
        self.shared.down_after_cut.store(true, Ordering::SeqCst);
        self.shared.bytes_left.store(bytes, Ordering::SeqCst);
    }

    /// Bytes passed from the server so far.
    pub fn bytes_down(&self) -> u64 {
        self.shared.bytes_down.load(Ordering::SeqCst)
    }

    /// How often connections were cut so far, on demand or at a byte.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// Connections accepted so far, those refused while down included.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::SeqCst);
        self.shared.cut();
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl Connection {
    fn close(&self) {
        self.cut.store(true, Ordering::SeqCst);
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        while !self.end.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok((client, _)) => {
                    self.accepted.fetch_add(1, Ordering::SeqCst);
                    if !self.down.load(Ordering::SeqCst) {
                        self.connect(client);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(TICK),
                Err(error) => panic!("proxy accept: {error}"),
            }
        }
    }

    fn connect(self: &Arc<Self>, client: TcpStream) {
        let upstream = self.upstream.lock().unwrap().clone();
        let Ok(server) = TcpStream::connect(upstream) else {
            return;
        };
        client.set_nonblocking(false).unwrap();
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(TICK)).unwrap();
        }
        let connection = Arc::new(Connection {
            client,
            server,
            held_up: AtomicU64::new(0),
            held_down: AtomicU64::new(0),
            cut: AtomicBool::new(false),
            progress: Mutex::default(),
        });
        {
            let mut connections = self.connections.lock().unwrap();
            connections.retain(|connection| !connection.cut.load(Ordering::SeqCst));
            connections.push(Arc::clone(&connection));
        }
        // `down` may have been called between the look in `accept` and here.
        if self.down.load(Ordering::SeqCst) || self.end.load(Ordering::SeqCst) {
            self.cut();
        }
        for way in [Way::Up, Way::Down] {
            let (shared, connection) = (Arc::clone(self), Arc::clone(&connection));
            thread::spawn(move || shared.pump(&connection, way));
        }
    }

    fn cut(&self) {
        self.cuts.fetch_add(1, Ordering::SeqCst);
        for connection in self.connections.lock().unwrap().drain(..) {
            connection.close();
        }
    }

    /// Copies one direction until either side closes.
    fn pump(&self, connection: &Connection, way: Way) {
        let (mut from, mut to) = match way {
            Way::Up => (&connection.client, &connection.server),
            Way::Down => (&connection.server, &connection.client),
        };
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            while self.stalled.load(Ordering::SeqCst) && !self.end.load(Ordering::SeqCst) {
                thread::sleep(TICK);
            }
            let count = match from.read(&mut buffer) {
                // The end is held back by a stall like anything else.
                Ok(0) => {
                    self.hold_back();
                    break;
                }
                Ok(count) => count,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    continue;
                }
                Err(_) => break,
            };
            self.hold_back();
            let Some(rest) = self.through_traps(connection, way, &mut to, &buffer[..count]) else {
                break;
            };
            let (passing, last) = match way {
                Way::Down => self.admit(rest.len()),
                Way::Up => (rest.len(), false),
            };
            if self.pass(&mut to, &rest[..passing]).is_err() {
                break;
            }
            if last {
                let down = self.down_after_cut.load(Ordering::SeqCst);
                self.down.fetch_or(down, Ordering::SeqCst);
                self.cut();
                break;
            }
        }
        connection.close();
    }

    /// Writes, slowly where that is wanted.
    fn pass(&self, to: &mut &TcpStream, bytes: &[u8]) -> std::io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let slow = self.bytes_per_second.load(Ordering::SeqCst);
            let now = match slow {
                0 => rest.len(),
                _ => {
                    thread::sleep(CRAWL_TICK);
                    let in_a_tick = slow * u64::try_from(CRAWL_TICK.as_millis()).unwrap() / 1000;
                    rest.len().min(usize::try_from(in_a_tick.max(1)).unwrap())
                }
            };
            to.write_all(&rest[..now])?;
            rest = &rest[now..];
        }
        Ok(())
    }

    /// Passes what comes before the byte at which a trap holds the connection, and waits until it is let go, as often
    /// as that happens. The bytes behind; nothing once the connection is cut.
    fn through_traps<'a>(
        &self,
        connection: &Connection,
        way: Way,
        to: &mut &TcpStream,
        bytes: &'a [u8],
    ) -> Option<&'a [u8]> {
        let mut rest = bytes;
        loop {
            if !self.until_let_go(connection, way) {
                return None;
            }
            let Some(cut) = self.caught_at(connection, way, rest) else {
                return Some(rest);
            };
            to.write_all(&rest[..cut]).ok()?;
            if way == Way::Down {
                self.bytes_down.fetch_add(cut as u64, Ordering::SeqCst);
            }
            rest = &rest[cut..];
        }
    }

    /// How many bytes may pass before the connection is held, if a trap closes on them. It is held before any of them
    /// passes, so that nothing that they bring about passes either.
    fn caught_at(&self, connection: &Connection, way: Way, bytes: &[u8]) -> Option<usize> {
        let mut armed = self.armed.lock().unwrap();
        let armed = armed.as_mut().filter(|armed| !armed.sprung)?;
        let mut progress = connection.progress.lock().unwrap();
        if progress.0 != armed.number {
            *progress = (armed.number, Progress::default());
        }
        let cut = progress.1.feed(&armed.trap, way, bytes)?;
        if armed.passed < armed.trap.skipped() {
            armed.passed += 1;
            return None;
        }
        armed.sprung = true;
        let both = armed.trap.holds_both_ways();
        for (held, this_way) in [
            (&connection.held_up, Way::Up),
            (&connection.held_down, Way::Down),
        ] {
            if both || way == this_way {
                held.store(armed.number, Ordering::SeqCst);
            }
        }
        Some(cut)
    }

    /// Waits while a trap holds the connection. Whether it still stands.
    fn until_let_go(&self, connection: &Connection, way: Way) -> bool {
        let held = match way {
            Way::Up => &connection.held_up,
            Way::Down => &connection.held_down,
        };
        while held.load(Ordering::SeqCst) != 0 {
            if self.end.load(Ordering::SeqCst) || connection.cut.load(Ordering::SeqCst) {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        !connection.cut.load(Ordering::SeqCst)
    }

    /// A stall that began during the read holds this piece as well.
    fn hold_back(&self) {
        let arrived = Instant::now();
        let delay = || Duration::from_millis(self.delay_ms.load(Ordering::SeqCst));
        while (arrived.elapsed() < delay() || self.stalled.load(Ordering::SeqCst))
            && !self.end.load(Ordering::SeqCst)
        {
            thread::sleep(TICK.min(Duration::from_millis(1)));
        }
    }

    /// How many of `count` bytes may pass, and whether the connections are to be cut behind them.
    fn admit(&self, count: usize) -> (usize, bool) {
        let wanted = u64::try_from(count).unwrap();
        let left = self
            .bytes_left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                Some(match left {
                    u64::MAX => u64::MAX,
                    left if left <= wanted => u64::MAX,
                    left => left - wanted,
                })
            })
            .unwrap();
        let passing = wanted.min(left);
        self.bytes_down.fetch_add(passing, Ordering::SeqCst);
        let last = left != u64::MAX && left <= wanted;
        (usize::try_from(passing).unwrap(), last)
    }
}
