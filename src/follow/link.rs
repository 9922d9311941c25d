//! The socket around the replica core: bytes in, events out, acknowledgements on time.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use crate::clock::Clock;
use crate::position::{Offset, Ticks};
use crate::proto::replica::{Event, Output, Replica, ReplicaOptions};
use crate::server::net::{Connection, Endpoint};

/// Bytes that one read may bring.
pub const READ_BYTES: usize = 256 * 1024;
/// A new read buffer is begun when less than this is left of the last one.
const READ_BYTES_MIN: usize = 32 * 1024;

/// A link to a master.
#[derive(Debug)]
pub struct Link {
    reader: ReadHalf<Connection>,
    writer: WriteHalf<Connection>,
    core: Replica,
    clock: Arc<dyn Clock>,
    buffer: BytesMut,
    outgoing: BytesMut,
    /// Something was to be sent and is not known to have left the connection.
    unsent: bool,
    events: VecDeque<Event>,
    wait_until: Ticks,
    closed: bool,
    muted: bool,
}

impl Link {
    /// Connects and begins the handshake.
    ///
    /// # Errors
    /// What the system says of the connection.
    pub async fn open(
        endpoint: &Endpoint,
        listening_port: impl FnOnce(&Connection) -> Option<u16>,
        mut options: ReplicaOptions,
        clock: Arc<dyn Clock>,
    ) -> io::Result<Self> {
        let connection = Connection::open(endpoint).await?;
        options.listening_port = listening_port(&connection);
        let core = Replica::new(options, clock.ticks());
        let (reader, writer) = tokio::io::split(connection);
        let mut link = Self {
            reader,
            writer,
            core,
            clock,
            buffer: BytesMut::new(),
            outgoing: BytesMut::new(),
            unsent: false,
            events: VecDeque::new(),
            wait_until: Ticks(0),
            closed: false,
            muted: false,
        };
        link.drain();
        Ok(link)
    }

    fn drain(&mut self) {
        loop {
            match self.core.poll_output() {
                Output::Send(bytes) if !self.muted => {
                    self.outgoing.extend_from_slice(&bytes);
                    self.unsent = true;
                }
                Output::Send(_) => {}
                Output::Event(event) => self.events.push_back(event),
                Output::Wait { until } => {
                    self.wait_until = until;
                    return;
                }
            }
        }
    }

    /// Sets what is acknowledged; it goes out with the next [`Self::next`].
    pub fn acknowledge(&mut self, ack: Offset, fack: Offset) {
        self.core.acknowledge(self.clock.ticks(), ack, Some(fack));
        self.drain();
    }

    /// The next event; never comes back without one. Cancel safe. While `read` is false nothing more is read
    /// from the socket, but acknowledgements go on.
    pub async fn next(&mut self, read: bool) -> Event {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            if self.buffer.capacity() - self.buffer.len() < READ_BYTES_MIN {
                self.buffer.reserve(READ_BYTES);
            }
            if !read {
                self.core.held_back(self.clock.ticks());
                self.drain();
            }
            let until = Duration::from_millis(self.wait_until.since(self.clock.ticks()));
            tokio::select! {
                biased;
                sent = send(&mut self.writer, &mut self.outgoing), if self.unsent => match sent {
                    Ok(()) => self.unsent = false,
                    Err(_) => self.mute(),
                },
                received = self.reader.read_buf(&mut self.buffer), if read && !self.closed => {
                    match received {
                        Ok(bytes) if bytes > 0 => {
                            let bytes = self.buffer.split().freeze();
                            self.core.receive(self.clock.ticks(), bytes);
                        }
                        _ => self.lost(),
                    }
                },
                () = tokio::time::sleep(until) => self.core.time_passed(self.clock.ticks()),
            }
            self.drain();
        }
    }

    /// The end of the connection, orderly or not: all closes of real masters are orderly (facts 1.7).
    fn lost(&mut self) {
        self.closed = true;
        self.unsent = false;
        self.outgoing.clear();
        self.core.closed();
    }

    /// The server reads no more. What it sent before can still be read (`protocol-facts` 2.7).
    fn mute(&mut self) {
        self.muted = true;
        self.unsent = false;
        self.outgoing.clear();
    }

    /// Sends what is still to be sent, for a moment, before the link is closed.
    pub async fn flush(&mut self) {
        let sending = send(&mut self.writer, &mut self.outgoing);
        let _ = tokio::time::timeout(Duration::from_secs(1), sending).await;
    }
}

/// Sends all of `outgoing`, out of the connection's own buffer as well. Cancel safe: what is left stays there.
async fn send(writer: &mut WriteHalf<Connection>, outgoing: &mut BytesMut) -> io::Result<()> {
    while !outgoing.is_empty() {
        let bytes = writer.write(outgoing).await?;
        if bytes == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        outgoing.advance(bytes);
    }
    writer.flush().await
}
