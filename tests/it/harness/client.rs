//! A small blocking RESP2 client: every reply as a value, errors included.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::{DEADLINE, until};

/// How long a reply may take; WAIT and big values are well below it.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Loading the largest data set of the tests.
const LOAD_DEADLINE: Duration = Duration::from_secs(120);

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Array(Vec<Self>),
    Nil,
}

impl Value {
    /// The text of a simple or bulk string.
    #[track_caller]
    pub fn text(&self) -> String {
        match self {
            Self::Simple(text) => text.clone(),
            Self::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            other => panic!("expected a string, got {other:?}"),
        }
    }

    /// The bytes of a simple or bulk string.
    #[track_caller]
    pub fn bytes(self) -> Vec<u8> {
        match self {
            Self::Simple(text) => text.into_bytes(),
            Self::Bulk(bytes) => bytes,
            other => panic!("expected a string, got {other:?}"),
        }
    }

    /// The number of an integer reply.
    #[track_caller]
    pub fn integer(&self) -> i64 {
        match self {
            Self::Integer(number) => *number,
            other => panic!("expected an integer, got {other:?}"),
        }
    }

    /// The elements of an array.
    #[track_caller]
    pub fn array(self) -> Vec<Self> {
        match self {
            Self::Array(values) => values,
            other => panic!("expected an array, got {other:?}"),
        }
    }

    /// Whether it is an error whose text begins so (without the dash).
    pub fn is_error(&self, prefix: &str) -> bool {
        matches!(self, Self::Error(text) if text.starts_with(prefix))
    }
}

/// What a server says of its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// The Redis whose commands it speaks: major and minor. Valkey says 7.2.
    pub speaks: (u32, u32),
    /// Valkey's own.
    pub valkey: Option<(u32, u32)>,
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Client {
    /// Connects.
    pub fn connect(address: &str) -> io::Result<Self> {
        let resolved = address
            .to_socket_addrs()?
            .next()
            .ok_or_else(|| io::Error::other("no address"))?;
        let writer = TcpStream::connect_timeout(&resolved, CONNECT_TIMEOUT)?;
        writer.set_nodelay(true)?;
        writer.set_read_timeout(Some(REPLY_TIMEOUT))?;
        writer.set_write_timeout(Some(REPLY_TIMEOUT))?;
        Ok(Self {
            reader: BufReader::with_capacity(64 * 1024, writer.try_clone()?),
            writer,
        })
    }

    /// Another bound on how long a reply may take.
    pub fn set_reply_timeout(&mut self, timeout: Duration) {
        self.writer.set_read_timeout(Some(timeout)).unwrap();
    }

    /// Sends one command and reads its reply.
    pub fn command<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> io::Result<Value> {
        self.writer.write_all(&encode(arguments))?;
        self.reply()
    }

    /// Sends several commands at once and reads their replies.
    pub fn pipeline<A: AsRef<[u8]>>(&mut self, commands: &[Vec<A>]) -> io::Result<Vec<Value>> {
        self.send(commands)?;
        commands.iter().map(|_| self.reply()).collect()
    }

    /// Sends several commands at once; each has a [`Client::reply`].
    pub fn send<A: AsRef<[u8]>>(&mut self, commands: &[Vec<A>]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for command in commands {
            bytes.extend_from_slice(&encode(command));
        }
        self.writer.write_all(&bytes)
    }

    /// Sends one command that must succeed.
    #[track_caller]
    pub fn ok<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> Value {
        let shown = || {
            let texts: Vec<String> = arguments
                .iter()
                .map(|argument| {
                    let bytes = argument.as_ref();
                    bytes[..bytes.len().min(60)].escape_ascii().to_string()
                })
                .collect();
            texts.join(" ")
        };
        match self.command(arguments) {
            Ok(Value::Error(error)) => panic!("{}: -{error}", shown()),
            Ok(value) => value,
            Err(error) => panic!("{}: {error}", shown()),
        }
    }

    /// Sends one command written as words, which must succeed: `line("SET key value")`.
    #[track_caller]
    pub fn line(&mut self, words: &str) -> Value {
        let arguments: Vec<&str> = words.split_whitespace().collect();
        self.ok(&arguments)
    }

    /// Connects and waits until the server has loaded its data: while it loads, INFO shows an empty keyspace and reads
    /// are refused.
    #[track_caller]
    pub fn connect_loaded(address: &str) -> Self {
        let mut client = Self::connect(address).unwrap();
        until(&format!("{address} has loaded"), LOAD_DEADLINE, || {
            let info = client.line("INFO persistence").text();
            info.contains("\nloading:0")
        });
        client
    }

    /// Its version.
    #[track_caller]
    pub fn version(&mut self) -> Version {
        let info = self.line("INFO server").text();
        let numbers = |field: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(field))?;
            let mut numbers = line.trim().split('.').map(|part| part.parse::<u32>().ok());
            Some((numbers.next()??, numbers.next()??))
        };
        Version {
            speaks: numbers("redis_version:").expect("INFO names a version"),
            valkey: numbers("valkey_version:"),
        }
    }

    /// Whether the server knows a command.
    #[track_caller]
    pub fn knows(&mut self, command: &str) -> bool {
        let reply = self.ok(&["COMMAND", "INFO", command]).array();
        reply.first().is_some_and(|info| *info != Value::Nil)
    }

    /// SAVE, once no other child of the server is at work.
    #[track_caller]
    pub fn save(&mut self) {
        until("SAVE is let through", DEADLINE, || {
            self.command(&["SAVE"])
                .is_ok_and(|answer| !matches!(answer, Value::Error(_)))
        });
    }

    /// Writes a marker and waits until a replica has acknowledged it: with Perennial as the only replica, until all
    /// that was written before is in the store. The marker is a write, so do this before taking a digest.
    #[track_caller]
    pub fn wait_until_stored(&mut self, deadline: Duration) {
        let milliseconds = deadline.as_millis().to_string();
        self.line("INCR perennial:marker");
        let confirmed = self.ok(&["WAIT", "1", &milliseconds]).integer();
        assert!(
            confirmed >= 1,
            "WAIT 1 was not confirmed within {deadline:?}"
        );
    }

    /// Reads one reply.
    pub fn reply(&mut self) -> io::Result<Value> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\r\n") {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.len() - 2);
        let (kind, rest) = line
            .split_first()
            .ok_or_else(|| io::Error::other("empty reply line"))?;
        let text = String::from_utf8_lossy(rest).into_owned();
        let number = || text.parse::<i64>().map_err(io::Error::other);
        match kind {
            b'+' => Ok(Value::Simple(text)),
            b'-' => Ok(Value::Error(text)),
            b':' => Ok(Value::Integer(number()?)),
            b'$' => {
                let Ok(length) = usize::try_from(number()?) else {
                    return Ok(Value::Nil);
                };
                let mut bytes = vec![0; length + 2];
                self.reader.read_exact(&mut bytes)?;
                bytes.truncate(length);
                Ok(Value::Bulk(bytes))
            }
            b'*' => {
                let Ok(length) = usize::try_from(number()?) else {
                    return Ok(Value::Nil);
                };
                let values: io::Result<Vec<Value>> = (0..length).map(|_| self.reply()).collect();
                Ok(Value::Array(values?))
            }
            other => Err(io::Error::other(format!("reply of unknown kind {other:?}"))),
        }
    }
}

fn encode<A: AsRef<[u8]>>(arguments: &[A]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        let argument = argument.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        bytes.extend_from_slice(argument);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}
