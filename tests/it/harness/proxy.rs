//! A TCP proxy that can cut, stall, delay and vanish, on demand or after so many bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Port;

/// How often a waiting pump looks at what it is told.
const TICK: Duration = Duration::from_millis(5);
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
    /// Bytes from upstream that may still pass before all connections are cut; `u64::MAX` for no limit.
    bytes_left: AtomicU64,
    bytes_down: AtomicU64,
    accepted: AtomicU64,
    cuts: AtomicU64,
    connections: Mutex<Vec<TcpStream>>,
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
            bytes_left: AtomicU64::new(u64::MAX),
            bytes_down: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            cuts: AtomicU64::new(0),
            connections: Mutex::default(),
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

    /// Sends these bytes to every client, as if the server had said them.
    pub fn inject(&self, bytes: &[u8]) {
        // Pairs of (client, server), see `connect`.
        for mut client in self.shared.connections.lock().unwrap().iter().step_by(2) {
            let _ = client.write_all(bytes);
        }
    }

    /// Holds every piece back for so long, in each direction.
    pub fn delay(&self, delay: Duration) {
        let milliseconds = u64::try_from(delay.as_millis()).unwrap();
        self.shared.delay_ms.store(milliseconds, Ordering::SeqCst);
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
        {
            let mut connections = self.connections.lock().unwrap();
            connections.push(client.try_clone().unwrap());
            connections.push(server.try_clone().unwrap());
        }
        // `down` may have been called between the look in `accept` and here.
        if self.down.load(Ordering::SeqCst) || self.end.load(Ordering::SeqCst) {
            self.cut();
        }
        let pairs = [
            (
                client.try_clone().unwrap(),
                server.try_clone().unwrap(),
                false,
            ),
            (server, client, true),
        ];
        for (from, to, from_server) in pairs {
            let shared = Arc::clone(self);
            thread::spawn(move || shared.pump(from, to, from_server));
        }
    }

    fn cut(&self) {
        self.cuts.fetch_add(1, Ordering::SeqCst);
        for stream in self.connections.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Copies one direction until either side closes.
    fn pump(&self, mut from: TcpStream, mut to: TcpStream, from_server: bool) {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            while self.stalled.load(Ordering::SeqCst) && !self.end.load(Ordering::SeqCst) {
                thread::sleep(TICK);
            }
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    continue;
                }
                Err(_) => break,
            };
            self.hold_back();
            let (passing, last) = if from_server {
                self.admit(count)
            } else {
                (count, false)
            };
            if to.write_all(&buffer[..passing]).is_err() {
                break;
            }
            if last {
                let down = self.down_after_cut.load(Ordering::SeqCst);
                self.down.fetch_or(down, Ordering::SeqCst);
                self.cut();
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
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
