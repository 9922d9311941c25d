//! Finds where commands end in the replication stream, piece by piece, without keeping what it passes;
//! decoding a command's arguments is left to [`request`](super::request).
//!
//! The stream is RESP arrays of bulk strings, nothing else (`protocol-facts` 1.7): `*<count>\r\n`, then
//! `count` times `$<length>\r\n<body>\r\n`. Bodies are skipped, not read: only the command's name, SELECT's
//! argument and REPLCONF's first are looked at.

use std::fmt;

use crate::position::Offset;

/// The longest bulk string accepted, bytes. Real servers stop at `proto-max-bulk-len`, 512 MB by default.
pub const BULK_BYTES_MAX: u64 = 1 << 40;

/// The most arguments a command may have. Real servers stop at `INT_MAX`.
pub const ARGUMENTS_MAX: u64 = 1 << 31;

/// As much of an argument as is ever looked at, bytes: ten digits of a database number.
const WORD_BYTES_MAX: usize = 10;

/// The end of a command outside MULTI: a moment at which the data set is whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Boundary {
    /// The last byte of the command.
    pub offset: Offset,
    /// The database selected there; `None` where the replication stream has not said it yet.
    pub database: Option<u32>,
}

/// The commands that matter to whoever keeps a replication stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommandKind {
    /// The master's keepalive, with an argument or without.
    Ping,
    /// `REPLCONF GETACK`: somebody waits for an acknowledgement.
    GetAck,
    /// Selects a database, if its argument is a number.
    Select,
    /// Opens a transaction.
    Multi,
    /// Ends a transaction.
    Exec,
    /// Ends a transaction without effect.
    Discard,
    /// All others, empty arrays included: a real server takes them for nothing.
    Other,
}

/// A completed command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommandEnd {
    /// Which command it was.
    pub kind: CommandKind,
    /// Its last byte.
    pub offset: Offset,
    /// Whether the replication stream is outside MULTI afterwards.
    pub boundary: bool,
}

/// What [`CommandCursor::step`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Bytes taken from the front of what was given.
    pub consumed: usize,
    /// The command that ended with the last of them; `None` where all were taken and none ended.
    pub end: Option<CommandEnd>,
}

/// What [`CommandCursor::feed`] passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fed {
    /// The last boundary outside MULTI that was reached.
    pub boundary: Option<Boundary>,
    /// The end of the last `REPLCONF GETACK`.
    pub getack: Option<Offset>,
    /// PINGs completed.
    pub pings: u64,
    /// `REPLCONF GETACK`s completed.
    pub getacks: u64,
    /// All other commands completed.
    pub others: u64,
}

/// The replication stream is not what a master sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed {
    /// The offending byte.
    pub offset: Offset,
    /// What should have been there.
    pub expected: &'static str,
    /// What was there.
    pub found: u8,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the replication stream is malformed at offset {}: expected {}, found '{}' (0x{:02x})",
            self.offset,
            self.expected,
            self.found.escape_ascii(),
            self.found
        )
    }
}

impl std::error::Error for Malformed {}

/// Where in a command the next byte falls.
///
/// ```text
///            +------------------ count <= 0 ------------------+
///            |                                                v
/// Command --*--> Count --\r--> CountLf --\n--> Argument   (command ends)
///                                               |    ^        ^
///                        LengthLf <--\r-- Length<-$--+        |
///                            |                       | more   | no more arguments
///                            \n--> Body --> BodyCr --\r--> BodyLf --\n
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Command,
    Count(Number),
    CountLf(Number),
    Argument,
    Length(Number),
    LengthLf(Number),
    Body { left: u64 },
    BodyCr,
    BodyLf,
}

/// A number that is being read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Number {
    value: u64,
    started: bool,
    negative: bool,
}

/// A command by its name alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Name {
    Ping,
    Replconf,
    Select,
    Multi,
    Exec,
    Discard,
    Other,
}

impl Name {
    /// Names come in mixed case (`protocol-facts` 1.7).
    fn of(word: &[u8]) -> Self {
        let is = |name: &[u8]| word.eq_ignore_ascii_case(name);
        match word.len() {
            4 if is(b"ping") => Self::Ping,
            4 if is(b"exec") => Self::Exec,
            5 if is(b"multi") => Self::Multi,
            6 if is(b"select") => Self::Select,
            7 if is(b"discard") => Self::Discard,
            8 if is(b"replconf") => Self::Replconf,
            _ => Self::Other,
        }
    }
}

/// The beginning of an argument that comes in several pieces.
#[derive(Clone, Copy, Debug)]
struct Word {
    bytes: [u8; WORD_BYTES_MAX],
    /// How long the argument is so far; it may be longer than what is kept.
    length: u64,
}

impl Word {
    const EMPTY: Self = Self {
        bytes: [0; WORD_BYTES_MAX],
        length: 0,
    };

    fn push(&mut self, piece: &[u8]) {
        if let Ok(start) = usize::try_from(self.length)
            && let Some(room) = self.bytes.get_mut(start..)
        {
            let kept = room.len().min(piece.len());
            room[..kept].copy_from_slice(&piece[..kept]);
        }
        self.length = self.length.saturating_add(piece.len() as u64);
    }

    /// The argument, or nothing where it is longer than any that matters.
    fn as_bytes(&self) -> &[u8] {
        usize::try_from(self.length)
            .ok()
            .and_then(|length| self.bytes.get(..length))
            .unwrap_or(&[])
    }
}

/// Follows the replication stream and knows where its commands end.
///
/// A few words of memory whatever the values' sizes; the result does not depend on how the bytes were cut.
/// After an error it stays where it is and answers every further input with the same error;
/// [`boundary`](Self::boundary) is still the last good one.
#[derive(Clone, Debug)]
pub struct CommandCursor {
    /// The last byte consumed.
    offset: Offset,
    /// As of the last byte consumed.
    database: Option<u32>,
    boundary: Boundary,
    in_transaction: bool,
    state: State,
    name: Name,
    word: Word,
    /// Arguments the command has in all, its name included.
    arguments: u64,
    /// Arguments that are complete.
    seen: u64,
    /// What SELECT's argument says.
    selected: Option<u32>,
    /// Whether REPLCONF's first argument is GETACK.
    getack: bool,
    failed: Option<Malformed>,
}

impl CommandCursor {
    /// Starts after `at`, which must be a command boundary outside MULTI, with `database` selected.
    pub fn new(at: Offset, database: Option<u32>) -> Self {
        Self {
            offset: at,
            database,
            boundary: Boundary {
                offset: at,
                database,
            },
            in_transaction: false,
            state: State::Command,
            name: Name::Other,
            word: Word::EMPTY,
            arguments: 0,
            seen: 0,
            selected: None,
            getack: false,
            failed: None,
        }
    }

    /// The last byte consumed.
    pub fn offset(&self) -> Offset {
        self.offset
    }

    /// The last boundary outside MULTI; at first, where the cursor started.
    pub fn boundary(&self) -> Boundary {
        self.boundary
    }

    /// The database selected as of the last byte consumed. A SELECT inside MULTI counts from its own end.
    pub fn database(&self) -> Option<u32> {
        self.database
    }

    /// Whether the last byte consumed is a boundary outside MULTI.
    pub fn at_boundary(&self) -> bool {
        self.boundary.offset == self.offset && self.state == State::Command
    }

    /// Consumes up to and including the first command end.
    ///
    /// # Errors
    ///
    /// [`Malformed`] where a byte is not what a master sends; the bytes before it are consumed.
    #[inline]
    pub fn step(&mut self, bytes: &[u8]) -> Result<Step, Malformed> {
        if let Some(malformed) = self.failed {
            return Err(malformed);
        }
        let (consumed, outcome) = self.advance(bytes);
        self.offset = self.offset.plus(consumed as u64);
        match outcome {
            Ok(ended) => Ok(Step {
                consumed,
                end: ended.then(|| self.end_command()),
            }),
            Err(expected) => {
                let malformed = Malformed {
                    offset: self.offset.next(),
                    expected,
                    found: bytes.get(consumed).copied().unwrap_or_default(),
                };
                self.failed = Some(malformed);
                Err(malformed)
            }
        }
    }

    /// Consumes all of `bytes`.
    ///
    /// # Errors
    ///
    /// [`Malformed`] where a byte is not what a master sends; the bytes before it are consumed, and
    /// [`boundary`](Self::boundary) tells how far they are good.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Fed, Malformed> {
        if let Some(malformed) = self.failed {
            return Err(malformed);
        }
        let mut fed = Fed::default();
        let mut rest = bytes;
        while !rest.is_empty() {
            let step = self.step(rest)?;
            rest = &rest[step.consumed..];
            let Some(end) = step.end else { continue };
            match end.kind {
                CommandKind::Ping => fed.pings += 1,
                CommandKind::GetAck => {
                    fed.getacks += 1;
                    fed.getack = Some(end.offset);
                }
                _ => fed.others += 1,
            }
            if end.boundary {
                fed.boundary = Some(self.boundary);
            }
        }
        Ok(fed)
    }

    /// Moves to the end of the command or of `bytes`. Gives how many bytes were good, and whether a command
    /// ended with them, or what should have stood after them.
    #[inline]
    fn advance(&mut self, bytes: &[u8]) -> (usize, Result<bool, &'static str>) {
        let mut at = 0;
        loop {
            at += self.skip_whole(&bytes[at..]);
            if self.state == State::Argument && self.seen == self.arguments {
                self.state = State::Command;
                return (at, Ok(true));
            }
            let Some(&byte) = bytes.get(at) else {
                return (at, Ok(false));
            };
            if let State::Body { left } = self.state {
                at += self.skip_body(&bytes[at..], left);
                continue;
            }
            match self.turn(byte) {
                Ok(next) => self.state = next,
                Err(expected) => return (at, Err(expected)),
            }
            at += 1;
        }
    }

    /// The fast way: as many whole lines and whole arguments of this command as lie at the front of `bytes`.
    /// Whatever is cut or odd is left to [`turn`](Self::turn), byte by byte.
    #[inline]
    fn skip_whole(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        if self.state == State::Command {
            let Some((arguments, used)) = whole_line(b'*', bytes) else {
                return 0;
            };
            at = used;
            self.begin_command(arguments);
        }
        if self.state != State::Argument {
            return at;
        }
        while self.seen < self.arguments {
            let Some((length, used)) = whole_line(b'$', &bytes[at..]) else {
                return at;
            };
            let body = at + used;
            let Ok(length_here) = usize::try_from(length) else {
                return at;
            };
            if bytes.get(body + length_here..body + length_here + 2) != Some(b"\r\n".as_slice()) {
                self.begin_body(length);
                return body;
            }
            if self.seen < 2 {
                self.note_argument(&bytes[body..body + length_here]);
            }
            self.seen += 1;
            at = body + length_here + 2;
        }
        at
    }

    /// As much of a body as is there.
    fn skip_body(&mut self, bytes: &[u8], left: u64) -> usize {
        let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        if self.seen < 2 {
            self.word.push(&bytes[..taken]);
        }
        self.state = match left - taken as u64 {
            0 => State::BodyCr,
            left => State::Body { left },
        };
        taken
    }

    /// The slow way, one byte: the state after it, or what should have been there.
    fn turn(&mut self, byte: u8) -> Result<State, &'static str> {
        match (self.state, byte) {
            (State::Command, b'*') => Ok(State::Count(Number::default())),
            (State::Command, _) => Err("'*' at the start of a command"),
            (State::Count(count), b'\r') if count.started => Ok(State::CountLf(count)),
            (State::Count(count), b'-') if !count.started && !count.negative => {
                Ok(State::Count(Number {
                    negative: true,
                    ..count
                }))
            }
            (State::Count(count), _) => count
                .and(byte, ARGUMENTS_MAX)
                .map(State::Count)
                .ok_or("a count of arguments of at most 2147483648 and CR LF"),
            (State::CountLf(count), b'\n') => {
                self.begin_command(if count.negative { 0 } else { count.value });
                Ok(State::Argument)
            }
            (State::Argument, b'$') => Ok(State::Length(Number::default())),
            (State::Argument, _) => Err("'$' before an argument's length"),
            (State::Length(length), b'\r') if length.started => Ok(State::LengthLf(length)),
            (State::Length(length), _) => length
                .and(byte, BULK_BYTES_MAX)
                .map(State::Length)
                .ok_or("a length of at most 1 TiB and CR LF"),
            (State::LengthLf(length), b'\n') => {
                self.begin_body(length.value);
                Ok(self.state)
            }
            (State::CountLf(_) | State::LengthLf(_), _) => Err("LF after CR"),
            (State::BodyCr, b'\r') => Ok(State::BodyLf),
            (State::BodyLf, b'\n') => {
                if self.seen < 2 {
                    let word = self.word;
                    self.note_argument(word.as_bytes());
                }
                self.seen += 1;
                Ok(State::Argument)
            }
            (State::BodyCr | State::BodyLf | State::Body { .. }, _) => {
                Err("CR LF after an argument")
            }
        }
    }

    #[inline]
    fn begin_command(&mut self, arguments: u64) {
        self.state = State::Argument;
        self.arguments = arguments;
        self.seen = 0;
        self.name = Name::Other;
        self.selected = None;
        self.getack = false;
    }

    fn begin_body(&mut self, length: u64) {
        self.word = Word::EMPTY;
        self.state = match length {
            0 => State::BodyCr,
            left => State::Body { left },
        };
    }

    /// Looks at the name or at the first argument after it.
    #[inline]
    fn note_argument(&mut self, argument: &[u8]) {
        if self.seen == 0 {
            self.name = Name::of(argument);
        } else if self.name == Name::Select {
            self.selected = database_number(argument);
        } else if self.name == Name::Replconf {
            self.getack = argument.eq_ignore_ascii_case(b"getack");
        }
    }

    /// The command whose last byte is `self.offset` is complete.
    #[inline]
    fn end_command(&mut self) -> CommandEnd {
        let kind = match self.name {
            Name::Other => CommandKind::Other,
            Name::Ping => CommandKind::Ping,
            Name::Replconf if self.getack => CommandKind::GetAck,
            Name::Replconf => CommandKind::Other,
            Name::Select => {
                // A server answers any other shape with an error and stays where it is.
                if self.arguments == 2 && self.selected.is_some() {
                    self.database = self.selected;
                }
                CommandKind::Select
            }
            Name::Multi => {
                self.in_transaction = true;
                CommandKind::Multi
            }
            Name::Exec => {
                self.in_transaction = false;
                CommandKind::Exec
            }
            Name::Discard => {
                self.in_transaction = false;
                CommandKind::Discard
            }
        };
        if !self.in_transaction {
            self.boundary = Boundary {
                offset: self.offset,
                database: self.database,
            };
        }
        CommandEnd {
            kind,
            offset: self.offset,
            boundary: !self.in_transaction,
        }
    }
}

impl Number {
    /// The number with one more digit; nothing where that is no number as servers spell them (no leading
    /// zero, no lone or negative zero) or more than `max`.
    fn and(self, byte: u8, max: u64) -> Option<Self> {
        let leading_zero = self.started && self.value == 0;
        let negative_zero = self.negative && !self.started && byte == b'0';
        if !byte.is_ascii_digit() || leading_zero || negative_zero {
            return None;
        }
        let value = self.value * 10 + u64::from(byte - b'0');
        (value <= max).then_some(Self {
            value,
            started: true,
            ..self
        })
    }
}

/// A whole line of `marker`, up to nine digits and CR LF at the front of `bytes`: the number and how many
/// bytes the line has. Nine digits are below both limits; other lines are rare and left to the slow way.
#[inline]
pub(crate) fn whole_line(marker: u8, bytes: &[u8]) -> Option<(u64, usize)> {
    const DIGITS_MAX: usize = 9;
    let (&first, rest) = bytes.split_first()?;
    if first != marker {
        return None;
    }
    let mut value = 0;
    for (digits, &byte) in rest.iter().enumerate().take(DIGITS_MAX + 1) {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            let leading_zero = digits > 1 && rest[0] == b'0';
            let whole = digits > 0 && !leading_zero && byte == b'\r';
            return (whole && rest.get(digits + 1) == Some(&b'\n')).then_some((value, digits + 3));
        }
        value = value * 10 + u64::from(digit);
    }
    None
}

/// A database number as SELECT takes it.
fn database_number(argument: &[u8]) -> Option<u32> {
    if !argument.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(argument).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
