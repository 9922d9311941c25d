//! A server as a replica: of another server, or of a Perennial that fills it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use perennial::position::ReplicationId;
use perennial::server::net::simulated::Wire;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Server, State};
use crate::data::{command, from_rdb};
use crate::truth;
use crate::wire;
use crate::{chance, streamer, trace};

/// How often it acknowledges, and tries again.
const EVERY: Duration = Duration::from_secs(1);
/// How long it hears nothing before it gives up.
const SILENCE: Duration = Duration::from_secs(60);

/// Follows `master` as long as that is what the server was told last.
pub(super) async fn replicate(server: Server, master: SocketAddr, epoch: u64) {
    while is_current(&server, epoch) && !server.is_dead() {
        let ended = follow(&server, master, epoch).await;
        {
            let mut state = server.lock();
            if state.epoch != epoch {
                return;
            }
            state.link_up = false;
            state.loading = false;
        }
        if let Err(error) = ended {
            trace::line(&format!(
                "{} lost its master {master}: {error}",
                server.name
            ));
        }
        tokio::time::sleep(EVERY).await;
    }
}

struct Link {
    wire: Wire,
    received: Vec<u8>,
}

impl Link {
    async fn more(&mut self) -> io::Result<()> {
        let read = self.wire.stream.read_buf(&mut self.received);
        match tokio::time::timeout(SILENCE, read).await {
            Ok(Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => read.map(drop),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            while self.received.first() == Some(&b'\n') {
                self.received.remove(0);
            }
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            self.more().await?;
        }
    }

    async fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.received.len() < count {
            self.more().await?;
        }
        Ok(self.received.drain(..count).collect())
    }

    async fn ask(&mut self, arguments: &[&[u8]]) -> io::Result<String> {
        self.wire.stream.write_all(&command(arguments)).await?;
        self.line().await
    }
}

fn other(text: impl Into<String>) -> io::Error {
    io::Error::other(text.into())
}

async fn follow(server: &Server, master: SocketAddr, epoch: u64) -> io::Result<()> {
    let process = server.process();
    let wire = wire::connect(process, master).await?;
    let mut link = Link {
        wire,
        received: Vec::new(),
    };
    let pong = link.ask(&[b"PING"]).await?;
    if pong != "+PONG" {
        return Err(other(pong));
    }
    let port = server.address().port().to_string();
    link.ask(&[b"REPLCONF", b"listening-port", port.as_bytes()])
        .await?;
    link.ask(&[b"REPLCONF", b"capa", b"eof", b"capa", b"psync2"])
        .await?;
    let (id, next) = {
        let state = server.lock();
        (state.id.to_string(), (state.offset + 1).to_string())
    };
    let answer = link
        .ask(&[b"PSYNC", id.as_bytes(), next.as_bytes()])
        .await?;
    let words: Vec<&str> = answer.split(' ').collect();
    match words.as_slice() {
        ["+FULLRESYNC", id, offset] => {
            let (Ok(id), Ok(offset)) = (id.parse(), offset.parse()) else {
                return Err(other(answer));
            };
            load(server, &mut link, epoch, id, offset, master).await?;
        }
        ["+CONTINUE"] => go_on(server, epoch, None, master)?,
        ["+CONTINUE", id] => go_on(server, epoch, id.parse().ok(), master)?,
        _ => return Err(other(answer)),
    }
    stream(server, &mut link, epoch).await
}

/// In a function of its own: the lock is not held beyond it.
fn is_current(server: &Server, epoch: u64) -> bool {
    server.lock().epoch == epoch
}

fn current(server: &Server, epoch: u64) -> io::Result<std::sync::MutexGuard<'_, State>> {
    let state = server.lock();
    if state.epoch == epoch {
        Ok(state)
    } else {
        Err(other("the server was told something else"))
    }
}

fn go_on(
    server: &Server,
    epoch: u64,
    id: Option<ReplicationId>,
    master: SocketAddr,
) -> io::Result<()> {
    let mut state = current(server, epoch)?;
    if let Some(id) = id.filter(|id| *id != state.id) {
        state.previous = Some((state.id, state.offset));
        state.id = id;
        state.subs.clear();
    }
    if state.backlog.is_none() {
        state.open_backlog();
    }
    state.forget_unfinished();
    state.link_up = true;
    if streamer::is_at(master.ip()) {
        state.filled = true;
        trace::count("seeds continued");
    }
    Ok(())
}

async fn load(
    server: &Server,
    link: &mut Link,
    epoch: u64,
    id: ReplicationId,
    offset: u64,
    master: SocketAddr,
) -> io::Result<()> {
    let head = link.line().await?;
    let payload = match (head.strip_prefix("$EOF:"), head.strip_prefix('$')) {
        (Some(mark), _) => {
            let end = loop {
                let found = link
                    .received
                    .windows(mark.len())
                    .position(|window| window == mark.as_bytes());
                match found {
                    Some(end) => break end,
                    None => link.more().await?,
                }
            };
            let payload = link.take(end).await?;
            link.take(mark.len()).await?;
            payload
        }
        (None, Some(length)) => {
            let length = length.parse().map_err(|_| other(head.clone()))?;
            link.take(length).await?
        }
        _ => return Err(other(head)),
    };
    {
        let mut state = current(server, epoch)?;
        state.loading = true;
        state.replicated += payload.len() as u64;
        state.applier.data.clear();
    }
    tokio::time::sleep(chance::millis(0, 200)).await;
    let read = from_rdb(&payload).map_err(other)?;
    let mut state = current(server, epoch)?;
    if let Some(truth) = truth::at((id, offset))
        && truth.data != read.data
    {
        trace::violation(format!(
            "{} was given a payload under {id} at {offset} that is not what stood there",
            server.name
        ));
    }
    let changes = state.applier.changes;
    state.applier = read;
    state.applier.changes = changes;
    state.id = id;
    state.offset = offset;
    state.previous = None;
    state.open_backlog();
    state.subs.clear();
    state.loading = false;
    state.link_up = true;
    state.filled = streamer::is_at(master.ip());
    state.lossy = truth::is_lossy(id);
    if truth::knows(id) && !state.lossy && !state.filled {
        // What its master has is what counts from here on.
        state.last = Some((id, offset));
    }
    trace::count("payloads loaded");
    Ok(())
}

async fn stream(server: &Server, link: &mut Link, epoch: u64) -> io::Result<()> {
    let base = current(server, epoch)?.offset;
    let mut received = base;
    let mut waiting = Vec::new();
    let mut heard = chance::now();
    acknowledge(server, link).await?;
    let mut acknowledged = chance::now();
    loop {
        if !link.received.is_empty() {
            let bytes = std::mem::take(&mut link.received);
            heard = chance::now();
            let asked = {
                let mut state = current(server, epoch)?;
                check_bytes(&state, server.name, received, &bytes);
                received += bytes.len() as u64;
                state.replicated += bytes.len() as u64;
                apply(&mut state, base, &mut waiting, &bytes)?
            };
            if asked {
                acknowledge(server, link).await?;
            }
        }
        let read = link.wire.stream.read_buf(&mut link.received);
        match tokio::time::timeout(EVERY, read).await {
            Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => drop(read?),
            Err(_) => {}
        }
        if chance::now() - acknowledged >= EVERY {
            acknowledged = chance::now();
            acknowledge(server, link).await?;
        }
        if chance::now() - heard > SILENCE {
            return Err(io::ErrorKind::TimedOut.into());
        }
        drop(current(server, epoch)?);
    }
}

async fn acknowledge(server: &Server, link: &mut Link) -> io::Result<()> {
    let offset = server.lock().offset.to_string();
    let ack = command(&[b"REPLCONF", b"ACK", offset.as_bytes()]);
    link.wire.stream.write_all(&ack).await
}

/// Not one invented byte under an id that a master counted under.
fn check_bytes(state: &State, name: &str, received: u64, bytes: &[u8]) {
    if !truth::knows(state.id) {
        return;
    }
    let upto = received + bytes.len() as u64;
    if truth::bytes(state.id, received, upto).as_deref() != Some(bytes) {
        trace::violation(format!(
            "{name} was sent bytes under {} behind {received} that its master never fed",
            state.id
        ));
    }
}

/// Applies what is whole of what came, and passes it on. Whether an acknowledgement was asked for.
fn apply(state: &mut State, base: u64, waiting: &mut Vec<u8>, bytes: &[u8]) -> io::Result<bool> {
    let asked = state.applier.getacks;
    waiting.extend_from_slice(bytes);
    state.applier.feed(bytes).map_err(other)?;
    let reached = base + state.applier.applied - state.offset;
    let count = usize::try_from(reached).unwrap_or(usize::MAX);
    let applied: Vec<u8> = waiting.drain(..count).collect();
    state.pass_on(&applied);
    Ok(state.applier.getacks > asked)
}
