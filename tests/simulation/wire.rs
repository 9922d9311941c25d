//! The network: pipes that delay and split what is said, that can be cut, and whose ends die with their processes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use perennial::server::net::simulated::{self, Connecting, Listening, Network, Wire};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use crate::{chance, trace};

/// As much waits in one direction, bytes.
const WINDOW: usize = 64 * 1024;

/// A process. A server or a Perennial that is started again is another one.
pub type Process = u64;

thread_local! {
    static NET: RefCell<Net> = RefCell::new(Net::default());
}

#[derive(Default)]
struct Net {
    last: Process,
    dead: BTreeSet<Process>,
    ips: BTreeMap<Process, IpAddr>,
    /// What a name in an address means.
    names: BTreeMap<String, SocketAddr>,
    listeners: BTreeMap<SocketAddr, (Process, mpsc::UnboundedSender<Wire>)>,
    links: Vec<Weak<Mutex<Link>>>,
    next_port: u16,
    /// How long a message takes at most, milliseconds.
    delay_max: u64,
}

struct Simulated;

impl Network for Simulated {
    /// `host` is a name, a dot, `o` and the number of the process that calls.
    fn connect(&self, host: &str, port: u16) -> Connecting {
        let called = host.rsplit_once(".o");
        let found = called.and_then(|(name, process)| {
            let address = NET.with_borrow(|net| net.names.get(name).copied())?;
            Some((process.parse().ok()?, address))
        });
        trace::bytes(&port.to_le_bytes());
        Box::pin(async move {
            match found {
                Some((process, address)) => connect(process, address).await,
                None => Err(io::ErrorKind::NotFound.into()),
            }
        })
    }

    fn bind(&self, mut address: SocketAddr) -> io::Result<Listening> {
        let process = NET.with_borrow_mut(|net| {
            if address.port() == 0 {
                net.next_port += 1;
                address.set_port(net.next_port);
            }
            let of_ip =
                |(process, ip): (&Process, &IpAddr)| (*ip == address.ip()).then_some(*process);
            net.ips.iter().filter_map(of_ip).next_back()
        });
        listen(process.ok_or(io::ErrorKind::AddrNotAvailable)?, address)
    }
}

/// Begins a run with a network of its own.
pub fn begin(delay_max: u64) {
    NET.set(Net {
        next_port: 40_000,
        delay_max,
        ..Net::default()
    });
    simulated::install(Some(Rc::new(Simulated)));
}

/// The address of a machine.
pub fn ip(network: u8, machine: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, network, machine).into()
}

/// A process begins on a machine; whatever ran there before is dead.
pub fn process(ip: IpAddr) -> Process {
    NET.with_borrow_mut(|net| {
        net.last += 1;
        net.ips.insert(net.last, ip);
        net.last
    })
}

/// `name` in an address means this from here on.
pub fn name(name: &str, address: SocketAddr) {
    NET.with_borrow_mut(|net| net.names.insert(name.to_owned(), address));
}

/// Whether a process is dead.
pub fn is_dead(process: Process) -> bool {
    NET.with_borrow(|net| net.dead.contains(&process))
}

/// Listens.
pub fn listen(process: Process, address: SocketAddr) -> io::Result<Listening> {
    NET.with_borrow_mut(|net| {
        if net.listeners.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (sender, incoming) = mpsc::unbounded_channel();
        net.listeners.insert(address, (process, sender));
        Ok(Listening {
            local: address,
            incoming,
        })
    })
}

/// Kills a process: nothing that is left of it is heard again, and it hears nothing. With `silently` its peers are not told,
/// as when a machine vanishes.
pub fn kill(process: Process, silently: bool) {
    let links = NET.with_borrow_mut(|net| {
        net.dead.insert(process);
        net.listeners.retain(|_, (owner, _)| *owner != process);
        net.links()
    });
    for link in links {
        let mut link = lock(&link);
        for side in 0..2 {
            if link.owners[side] == process {
                link.dead[side] = true;
                if !silently {
                    link.end_behind_what_was_sent(side);
                }
            }
        }
    }
}

/// Breaks some connections, and lets others stand still for a while.
pub fn disturb(percent_cut: u64, stall: Duration) {
    let until = chance::now() + stall;
    for link in NET.with_borrow_mut(Net::links) {
        let mut link = lock(&link);
        if chance::percent(percent_cut) {
            link.cut = true;
            link.wake();
        } else if chance::percent(percent_cut) {
            link.stalled_until = Some(until);
        }
    }
}

/// Connects a process to an address, in the time that takes.
pub async fn connect(process: Process, address: SocketAddr) -> io::Result<Wire> {
    tokio::time::sleep(delay()).await;
    if is_dead(process) {
        std::future::pending::<()>().await;
    }
    let made = NET.with_borrow_mut(|net| {
        let (owner, sender) = net.listeners.get(&address)?;
        let (owner, sender) = (*owner, sender.clone());
        let ip = *net.ips.get(&process)?;
        net.next_port = net.next_port.wrapping_add(1).max(20_000);
        let local = SocketAddr::new(ip, net.next_port);
        let link = Arc::new(Mutex::new(Link::new([process, owner])));
        net.links.push(Arc::downgrade(&link));
        let end = |side, local, peer| Wire {
            stream: Box::new(End {
                link: Arc::clone(&link),
                side,
                sleep: None,
            }),
            local,
            peer,
        };
        let _ = sender.send(end(1, address, local));
        Some(end(0, local, address))
    });
    made.ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
}

impl Net {
    fn links(&mut self) -> Vec<Arc<Mutex<Link>>> {
        self.links.retain(|link| link.strong_count() > 0);
        self.links.iter().filter_map(Weak::upgrade).collect()
    }
}

fn delay() -> Duration {
    let longest = NET.with_borrow(|net| net.delay_max);
    // Mostly quick, now and then not.
    let longest = if chance::percent(5) {
        longest * 10
    } else {
        longest
    };
    Duration::from_micros(chance::below(longest * 1000 + 1))
}

fn lock(link: &Mutex<Link>) -> MutexGuard<'_, Link> {
    link.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

struct Link {
    owners: [Process; 2],
    dead: [bool; 2],
    dropped: [bool; 2],
    cut: bool,
    stalled_until: Option<Instant>,
    /// What was said by each side.
    said: [Way; 2],
}

#[derive(Default)]
struct Way {
    chunks: VecDeque<(Instant, Vec<u8>)>,
    queued: usize,
    ended: bool,
    last_due: Option<Instant>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Link {
    fn new(owners: [Process; 2]) -> Self {
        Self {
            owners,
            dead: [false; 2],
            dropped: [false; 2],
            cut: false,
            stalled_until: None,
            said: [Way::default(), Way::default()],
        }
    }

    fn wake(&mut self) {
        for way in &mut self.said {
            wake(&mut way.reader);
            wake(&mut way.writer);
        }
    }

    fn end_behind_what_was_sent(&mut self, side: usize) {
        self.said[side].ended = true;
        wake(&mut self.said[1 - side].writer);
        wake(&mut self.said[side].reader);
    }

    fn say(&mut self, side: usize, bytes: &[u8]) {
        // Also in pieces, of which the second comes later.
        let at = match chance::percent(20) {
            true => usize::try_from(chance::below(bytes.len() as u64)).unwrap_or(0),
            false => 0,
        };
        for piece in [&bytes[..at], &bytes[at..]] {
            if piece.is_empty() {
                continue;
            }
            let way = &mut self.said[side];
            let earliest = way.last_due.max(self.stalled_until);
            let due = (chance::now() + delay()).max(earliest.unwrap_or_else(chance::now));
            way.last_due = Some(due);
            way.queued += piece.len();
            way.chunks.push_back((due, piece.to_vec()));
        }
        wake(&mut self.said[side].reader);
    }
}

struct End {
    link: Arc<Mutex<Link>>,
    side: usize,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl std::fmt::Debug for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("End").field("side", &self.side).finish()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut link = lock(&self.link);
        link.dropped[self.side] = true;
        if !link.dead[self.side] {
            link.end_behind_what_was_sent(self.side);
        }
    }
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut link = lock(&this.link);
        if link.dead[this.side] {
            return Poll::Pending;
        }
        if link.cut {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let way = &mut link.said[1 - this.side];
        way.reader = Some(cx.waker().clone());
        let Some((due, chunk)) = way.chunks.front_mut() else {
            return match way.ended {
                true => Poll::Ready(Ok(())),
                false => Poll::Pending,
            };
        };
        if *due > chance::now() {
            let mut sleep = Box::pin(tokio::time::sleep_until(*due));
            if sleep.as_mut().poll(cx).is_pending() {
                this.sleep = Some(sleep);
                return Poll::Pending;
            }
        }
        this.sleep = None;
        let taken = chunk.len().min(buf.remaining());
        buf.put_slice(&chunk[..taken]);
        chunk.drain(..taken);
        if chunk.is_empty() {
            way.chunks.pop_front();
        }
        way.queued -= taken;
        wake(&mut way.writer);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut link = lock(&self.link);
        let side = self.side;
        if link.dead[side] {
            return Poll::Pending;
        }
        if link.cut || link.said[1 - side].ended || link.dropped[1 - side] {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = WINDOW.saturating_sub(link.said[side].queued);
        if room == 0 {
            link.said[side].writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = bytes.len().min(room);
        link.say(side, &bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.link).end_behind_what_was_sent(self.side);
        Poll::Ready(Ok(()))
    }
}
