//! A connection that somebody opened to a server: commands, and the replication stream.

use std::future::pending;
use std::net::SocketAddr;
use std::time::Duration;

use perennial::server::net::simulated::Wire;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::{Role, Server, State, Sub};
use crate::data::{command, parse, to_rdb};
use crate::{chance, streamer, trace, truth, verdict};

/// The mark behind a payload.
const MARK: &[u8; 40] = b"0123456789abcdef0123456789abcdef01234567";

/// What a connection has said of itself.
#[derive(Default)]
struct Peer {
    is_perennial: bool,
    ip: String,
    port: u16,
    /// No keys are wanted.
    filtered: bool,
    payload_only: bool,
    queued: Option<Vec<Vec<Vec<u8>>>>,
    sub: Option<u64>,
    /// The stream waits for the first acknowledgement.
    waits: bool,
}

/// What comes of a command.
enum Answer {
    Bytes(Vec<u8>),
    /// It becomes a replica: this first, then a payload perhaps, then the stream.
    Stream(
        Vec<u8>,
        Option<Vec<u8>>,
        Option<mpsc::UnboundedReceiver<Vec<u8>>>,
    ),
    /// It acknowledges.
    Acknowledged(u64),
    /// A Perennial has filled this server and makes it a master.
    Promoted(Vec<u8>),
}

/// Serves one connection until it ends.
pub(super) async fn serve(server: Server, wire: Wire) {
    let mut peer = Peer {
        is_perennial: streamer::is_at(wire.peer.ip()),
        ip: wire.peer.ip().to_string(),
        ..Peer::default()
    };
    let _ = converse(&server, wire, &mut peer).await;
    if let Some(sub) = peer.sub {
        server.lock().subs.remove(&sub);
    }
}

async fn converse(server: &Server, mut wire: Wire, peer: &mut Peer) -> std::io::Result<()> {
    let mut received = Vec::new();
    let mut stream: Option<mpsc::UnboundedReceiver<Vec<u8>>> = None;
    loop {
        while let Ok(Some((arguments, length))) = parse(&received) {
            received.drain(..length);
            if arguments.is_empty() {
                continue;
            }
            let answer = answer(server, peer, &arguments);
            match answer {
                Answer::Bytes(bytes) => wire.stream.write_all(&bytes).await?,
                Answer::Stream(head, payload, behind) => {
                    wire.stream.write_all(&head).await?;
                    if let Some(payload) = payload {
                        send_payload(server, &mut wire, peer, &payload).await?;
                    }
                    if behind.is_none() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        return Ok(());
                    }
                    stream = behind;
                }
                Answer::Acknowledged(offset) => {
                    peer.waits = false;
                    acknowledged(server, peer, offset).await;
                }
                Answer::Promoted(bytes) => {
                    let (place, data) = {
                        let state = server.lock();
                        (state.previous, state.applier.data.clone())
                    };
                    if let Some(place) = place {
                        verdict::seeded(place, &data).await;
                    }
                    wire.stream.write_all(&bytes).await?;
                }
            }
        }
        let next = async {
            match &mut stream {
                Some(stream) if !peer.waits => stream.recv().await,
                _ => pending().await,
            }
        };
        tokio::select! {
            biased;
            bytes = next => match bytes {
                Some(bytes) => wire.stream.write_all(&bytes).await?,
                // The server turned to something else.
                None => return Ok(()),
            },
            read = wire.stream.read_buf(&mut received) => if read? == 0 {
                return Ok(());
            },
        }
    }
}

async fn send_payload(
    server: &Server,
    wire: &mut Wire,
    peer: &mut Peer,
    payload: &[u8],
) -> std::io::Result<()> {
    let (forks, marks) = {
        let state = server.lock();
        (state.forks_max, state.marks)
    };
    tokio::time::sleep(chance::millis(0, forks)).await;
    if marks {
        peer.waits = !peer.payload_only;
        let head = [b"$EOF:", MARK.as_slice(), b"\r\n"].concat();
        wire.stream.write_all(&head).await?;
        wire.stream.write_all(payload).await?;
        return wire.stream.write_all(MARK).await;
    }
    if forks > 100 {
        wire.stream.write_all(b"\n").await?;
    }
    let head = format!("${}\r\n", payload.len());
    wire.stream.write_all(head.as_bytes()).await?;
    wire.stream.write_all(payload).await
}

async fn acknowledged(server: &Server, peer: &Peer, offset: u64) {
    let place = {
        let mut state = server.lock();
        let id = state.id;
        let Some(sub) = peer.sub.and_then(|sub| state.subs.get_mut(&sub)) else {
            return;
        };
        sub.acknowledged = offset;
        (id, offset)
    };
    // What it holds itself counts from where it began; nothing is told by an acknowledgement of that.
    if peer.is_perennial && offset > 0 && truth::acknowledge(place) {
        trace::count("acknowledgements");
        verdict::acknowledged(place).await;
    }
}

fn answer(server: &Server, peer: &mut Peer, arguments: &[Vec<u8>]) -> Answer {
    let name = arguments[0].to_ascii_uppercase();
    let mut state = server.lock();
    if let Some(queued) = &mut peer.queued
        && name != b"EXEC"
    {
        queued.push(arguments.to_vec());
        return Answer::Bytes(b"+QUEUED\r\n".to_vec());
    }
    match name.as_slice() {
        b"PING" if state.loading => loading(),
        b"PING" => Answer::Bytes(b"+PONG\r\n".to_vec()),
        b"REPLCONF" => replconf(peer, arguments),
        b"PSYNC" => psync(&mut state, peer, arguments),
        b"MULTI" => {
            peer.queued = Some(Vec::new());
            Answer::Bytes(b"+OK\r\n".to_vec())
        }
        b"EXEC" => {
            let queued = peer.queued.take().unwrap_or_default();
            let mut bytes = format!("*{}\r\n", queued.len()).into_bytes();
            for arguments in queued {
                bytes.extend(plain(server, &mut state, peer, &arguments).0);
            }
            Answer::Bytes(bytes)
        }
        _ => {
            let (bytes, promoted) = plain(server, &mut state, peer, arguments);
            if promoted {
                Answer::Promoted(bytes)
            } else {
                Answer::Bytes(bytes)
            }
        }
    }
}

fn loading() -> Answer {
    Answer::Bytes(b"-LOADING Redis is loading the dataset in memory\r\n".to_vec())
}

/// The answer, and whether a Perennial made a master of what it had filled.
fn plain(
    server: &Server,
    state: &mut State,
    peer: &Peer,
    arguments: &[Vec<u8>],
) -> (Vec<u8>, bool) {
    let words: Vec<String> = arguments
        .iter()
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let name = words[0].to_ascii_uppercase();
    match (name.as_str(), &words[1..]) {
        ("INFO", _) => (bulk(&state.info()), false),
        ("CONFIG", [_, setting]) => {
            let answer = match state.setting(setting) {
                Some(value) => command(&[setting.as_bytes(), value.as_bytes()]),
                None => b"*0\r\n".to_vec(),
            };
            (answer, false)
        }
        ("REPLICAOF", _) if state.loading => (
            b"-LOADING Redis is loading the dataset in memory\r\n".to_vec(),
            false,
        ),
        ("REPLICAOF", ["NO", "ONE"]) => {
            let filled = peer.is_perennial && state.role != Role::Master && state.filled;
            state.promote();
            (b"+OK\r\n".to_vec(), filled)
        }
        ("REPLICAOF", [host, port]) => {
            let master = format!("{host}:{port}").parse::<SocketAddr>();
            let Ok(master) = master else {
                return (b"-ERR no such address\r\n".to_vec(), false);
            };
            if state.role != Role::Replica(master) {
                trace::count("takeovers");
                state.become_replica(master);
                let epoch = state.epoch;
                tokio::spawn(super::replica::replicate(server.clone(), master, epoch));
            }
            (b"+OK\r\n".to_vec(), false)
        }
        _ => {
            trace::line(&format!("the server does not know {words:?}"));
            (b"-ERR unknown command\r\n".to_vec(), false)
        }
    }
}

fn bulk(text: &str) -> Vec<u8> {
    format!("${}\r\n{text}\r\n", text.len()).into_bytes()
}

fn replconf(peer: &mut Peer, arguments: &[Vec<u8>]) -> Answer {
    let word = |at: usize| {
        let word = arguments.get(at).map(Vec::as_slice).unwrap_or_default();
        String::from_utf8_lossy(word).to_ascii_lowercase()
    };
    match word(1).as_str() {
        "ack" => {
            let at = if streamer::trusts_fack() { 4 } else { 2 };
            return Answer::Acknowledged(word(at).parse().unwrap_or(0));
        }
        "listening-port" => peer.port = word(2).parse().unwrap_or(0),
        "rdb-filter-only" => peer.filtered = true,
        "rdb-only" => peer.payload_only = true,
        "version" => {
            let refused = b"-ERR Unrecognized REPLCONF option: version\r\n";
            return Answer::Bytes(refused.to_vec());
        }
        _ => {}
    }
    Answer::Bytes(b"+OK\r\n".to_vec())
}

fn psync(state: &mut State, peer: &mut Peer, arguments: &[Vec<u8>]) -> Answer {
    if state.loading {
        return loading();
    }
    if state.role != Role::Master && !state.link_up {
        return Answer::Bytes(
            b"-NOMASTERLINK Can't SYNC while not connected with my master\r\n".to_vec(),
        );
    }
    let word = |at: usize| {
        let word = arguments.get(at).map(Vec::as_slice).unwrap_or_default();
        String::from_utf8_lossy(word).into_owned()
    };
    let after = word(2)
        .parse::<u64>()
        .ok()
        .and_then(|next| next.checked_sub(1));
    if let Some(after) = after.filter(|after| state.continues(&word(1), *after)) {
        trace::count("partial resyncs");
        let head = format!("+CONTINUE {}\r\n", state.id);
        let receiver = subscribe(state, peer, state.backlog_behind(after));
        return Answer::Stream(head.into_bytes(), None, Some(receiver));
    }
    trace::count("full resyncs");
    state.begin_to_count();
    if state.role == Role::Master {
        state.selected = None;
    }
    let head = format!("+FULLRESYNC {} {}\r\n", state.id, state.offset);
    let database = (state.role != Role::Master).then_some(state.applier.selected);
    let payload = match peer.filtered {
        true => to_rdb(&Default::default(), database),
        false => to_rdb(&state.applier.data, database),
    };
    let receiver = (!peer.payload_only).then(|| subscribe(state, peer, Vec::new()));
    Answer::Stream(head.into_bytes(), Some(payload), receiver)
}

fn subscribe(
    state: &mut State,
    peer: &mut Peer,
    first: Vec<u8>,
) -> mpsc::UnboundedReceiver<Vec<u8>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    if !first.is_empty() {
        let _ = sender.send(first);
    }
    state.last_sub += 1;
    peer.sub = Some(state.last_sub);
    let sub = Sub {
        sender,
        ip: peer.ip.clone(),
        port: peer.port,
        acknowledged: 0,
    };
    state.subs.insert(state.last_sub, sub);
    receiver
}
