//! The replication stream as a later replay needs it: what was spelled relative to the moment of the write gets
//! its absolute time behind it. Which bytes those are, and when they were received, is left to the caller.
//!
//! Nothing is taken out or changed, so no value is ever held: commands are only added.
//!
//! - Masters before 7.0 spell TTLs relative (`protocol-facts` 6.1). Behind each such command comes
//!   `PEXPIREAT key <time received + TTL>`. The command itself gives the key a TTL that ends too late, and
//!   whoever replays, a replica or a server that reads its AOF, expires nothing by itself in between
//!   (`protocol-facts` 6.2). Every server since 2.6 knows PEXPIREAT.
//! - Redis 7.4 and later pass over `HPERSIST` once the TTL of the field has run out (`protocol-facts` 6.3). In
//!   front of it comes an `HPEXPIREAT` of the same fields, far in the future. Only this command is held until it
//!   is complete, up to [`HELD_BYTES_MAX`].

#[cfg(test)]
mod tests;

use bytes::Bytes;

use crate::archive::plan::Rewriting;
use crate::position::UnixMillis;
use crate::proto::handshake::command;
use crate::proto::resp::whole_line;

/// The longest key that is kept for the command behind its own, bytes. A longer one stays as it is.
pub const KEY_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The longest HPERSIST that is held until it is complete, bytes. A longer one stays as it is.
pub const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The longest name of a command that matters, bytes: `RESTORE-ASKING`.
const NAME_BYTES_MAX: u64 = 14;
/// The longest number or option that is looked at, bytes: the digits and sign of a 64-bit number.
const WORD_BYTES_MAX: u64 = 20;
/// When a field expires that is about to lose its expiry, Unix milliseconds: the year 2286, below the highest
/// time that servers take for a field.
const FAR_FUTURE_MILLIS: &[u8] = b"9999999999999";

/// What was found on the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Bytes given.
    pub bytes: u64,
    /// Relative TTLs that got their absolute time.
    pub ttls: u64,
    /// HPERSISTs that were made to work.
    pub field_persists: u64,
    /// Scripts as text, as 4.0 and older send them: a TTL inside cannot be seen, and counts from the replay.
    pub scripts: u64,
    /// Commands left as they are because of their length.
    pub too_long: u64,
}

impl Tally {
    /// Whether anything differs from what was pushed.
    pub const fn is_changed(&self) -> bool {
        self.ttls + self.field_persists > 0
    }

    /// What was rewritten, for people.
    pub fn said(&self) -> String {
        let parts = [
            (self.ttls, "relative TTLs made absolute"),
            (self.field_persists, "HPERSISTs put right"),
        ];
        let said: Vec<String> = parts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{what}: {count}"))
            .collect();
        said.join(", ")
    }

    /// What could not be put right, as a person should know it.
    pub fn warning(&self) -> Option<String> {
        let mut parts = Vec::new();
        if self.scripts > 0 {
            parts.push(format!(
                "{} scripts were archived as their text: a TTL that one sets counts from now, not from when it ran",
                self.scripts
            ));
        }
        if self.too_long > 0 {
            parts.push(format!(
                "{} commands with a key or fields beyond {} were left as they are: their TTL counts from now",
                self.too_long,
                bytesize::ByteSize(KEY_BYTES_MAX)
            ));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// Where in the replication stream the next byte falls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// At the start of a command.
    Command,
    /// In the line that counts its arguments.
    Count(u64),
    /// In the line before an argument.
    Length(u64),
    /// In an argument.
    Body { left: u64 },
    /// In the line end behind an argument.
    Tail { left: u8 },
    /// In something else: passed as it is. Finding that is `proto::resp`'s work.
    Lost,
}

/// Milliseconds in the unit of a TTL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unit {
    Seconds,
    Millis,
}

/// Which command it is, as far as that matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Passes.
    Other,
    /// `EXPIRE key n`, `SETEX key n value`: the number is the second argument.
    Number(Unit),
    /// `SET key value options`.
    Set,
    /// `RESTORE key ttl payload options`.
    Restore,
    /// `HPERSIST key FIELDS n field…`.
    FieldPersist,
    /// `EVAL text …`.
    Script,
}

impl Kind {
    /// Names come in mixed case (`protocol-facts` 1.7). A command of another shape than a server would take
    /// passes.
    fn of(name: &[u8], arguments: u64, rewriting: Rewriting) -> Self {
        let is = |text: &str| name.eq_ignore_ascii_case(text.as_bytes());
        if rewriting.field_persist && arguments >= 5 && is("HPERSIST") {
            return Self::FieldPersist;
        }
        if !rewriting.relative_ttl {
            return Self::Other;
        }
        match arguments {
            3 if is("EXPIRE") => Self::Number(Unit::Seconds),
            3 if is("PEXPIRE") => Self::Number(Unit::Millis),
            4 if is("SETEX") => Self::Number(Unit::Seconds),
            4 if is("PSETEX") => Self::Number(Unit::Millis),
            5.. if is("SET") => Self::Set,
            4.. if is("RESTORE") || is("RESTORE-ASKING") => Self::Restore,
            3.. if is("EVAL") || is("EVALSHA") => Self::Script,
            _ => Self::Other,
        }
    }
}

/// What the next option of SET or RESTORE is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Option,
    Ttl(Unit),
    /// The value of an option that does not matter.
    Value,
}

/// What happened at the end of an advance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Event {
    /// All bytes were taken.
    More,
    /// The command's name is known.
    Named,
    /// The command is complete.
    Ended,
}

/// Rewrites the replication stream, piece by piece. The result does not depend on how it was cut.
#[derive(Clone, Debug)]
pub struct Rewriter {
    rewriting: Rewriting,
    place: Place,
    kind: Kind,
    /// When the first byte of the command was received: the nearest to when it was executed.
    at: UnixMillis,
    arguments: u64,
    /// Arguments that are complete.
    seen: u64,
    /// Whether the argument is kept in `word`.
    kept: bool,
    word: Vec<u8>,
    /// The command's key, where it is kept.
    key: Option<Vec<u8>>,
    next: Next,
    /// The relative TTL in milliseconds.
    ttl: Option<u64>,
    holding: bool,
    held: Vec<u8>,
    tally: Tally,
}

impl Rewriter {
    /// Begins between two commands.
    pub const fn new(rewriting: Rewriting) -> Self {
        Self {
            rewriting,
            place: Place::Command,
            kind: Kind::Other,
            at: UnixMillis(0),
            arguments: 0,
            seen: 0,
            kept: false,
            word: Vec::new(),
            key: None,
            next: Next::Option,
            ttl: None,
            holding: false,
            held: Vec::new(),
            tally: Tally {
                bytes: 0,
                ttls: 0,
                field_persists: 0,
                scripts: 0,
                too_long: 0,
            },
        }
    }

    /// Another server's bytes follow: from the next command on.
    pub const fn set_rewriting(&mut self, rewriting: Rewriting) {
        self.rewriting = rewriting;
    }

    /// What was found so far.
    pub const fn tally(&self) -> Tally {
        self.tally
    }

    /// Takes bytes that were received at `at`, and appends what is to be sent in their place.
    pub fn push(&mut self, bytes: &Bytes, at: UnixMillis, out: &mut Vec<Bytes>) {
        let before = out.len();
        self.pass(bytes, at, out);
        let given: usize = out[before..].iter().map(Bytes::len).sum();
        self.tally.bytes += given as u64;
    }

    fn pass(&mut self, bytes: &Bytes, at: UnixMillis, out: &mut Vec<Bytes>) {
        let (mut given, mut next) = (0, 0);
        // Where the command that is held begins in these bytes.
        let mut held_from = 0;
        while next < bytes.len() {
            if self.place == Place::Command {
                next += plain(&bytes[next..], self.rewriting);
                if next == bytes.len() {
                    break;
                }
                self.at = at;
                self.holding = self.rewriting.field_persist;
                held_from = next;
            }
            let (used, event) = self.advance(&bytes[next..]);
            next += used;
            match event {
                Event::Named if self.kind != Kind::FieldPersist => self.release(out),
                Event::Ended if self.holding && self.kind == Kind::FieldPersist => {
                    give(out, bytes, given, held_from);
                    self.held.extend_from_slice(&bytes[held_from..next]);
                    given = next;
                    out.extend(far_future(&self.held));
                    self.tally.field_persists += 1;
                    self.release(out);
                }
                Event::Ended => {
                    self.release(out);
                    if let Some(deadline) = self.deadline() {
                        give(out, bytes, given, next);
                        given = next;
                        out.push(deadline);
                        self.tally.ttls += 1;
                    }
                }
                Event::Named | Event::More => {}
            }
        }
        if !self.holding {
            return give(out, bytes, given, bytes.len());
        }
        give(out, bytes, given, held_from);
        self.held.extend_from_slice(&bytes[held_from..]);
        if self.held.len() > HELD_BYTES_MAX {
            self.tally.too_long += u64::from(self.kind == Kind::FieldPersist);
            self.release(out);
        }
    }

    /// What was held goes out as it is. Whatever is held of the bytes at hand has not been given either way.
    fn release(&mut self, out: &mut Vec<Bytes>) {
        self.holding = false;
        if !self.held.is_empty() {
            out.push(std::mem::take(&mut self.held).into());
        }
    }

    /// The command that makes the TTL of the one that has just ended absolute.
    fn deadline(&mut self) -> Option<Bytes> {
        let ttl = self.ttl.take()?;
        let Some(key) = self.key.take() else {
            self.tally.too_long += 1;
            return None;
        };
        let highest = i64::MAX.unsigned_abs();
        let deadline = self.at.0.saturating_add(ttl).min(highest);
        let line = command(&[b"PEXPIREAT", &key, deadline.to_string().as_bytes()]);
        self.key = Some(key);
        Some(line)
    }

    /// Moves to the end of the command's name, of the command, or of `bytes`.
    fn advance(&mut self, bytes: &[u8]) -> (usize, Event) {
        let mut at = 0;
        while at < bytes.len() {
            match self.place {
                Place::Lost => return (bytes.len(), Event::Named),
                Place::Body { left } => {
                    let here = bytes.len() - at;
                    let taken = usize::try_from(left).map_or(here, |left| left.min(here));
                    if self.kept {
                        self.word.extend_from_slice(&bytes[at..at + taken]);
                    }
                    at += taken;
                    self.place = match left - taken as u64 {
                        0 => Place::Tail { left: 2 },
                        left => Place::Body { left },
                    };
                }
                Place::Tail { left: 2.. } => {
                    at += 1;
                    self.place = Place::Tail { left: 1 };
                }
                Place::Tail { .. } => {
                    at += 1;
                    self.end_argument();
                    if self.seen == self.arguments {
                        return (at, self.end_command());
                    }
                    self.place = Place::Length(0);
                    if self.seen == 1 {
                        return (at, Event::Named);
                    }
                }
                Place::Command | Place::Count(_) | Place::Length(_) => {
                    let ended = self.line(bytes[at]);
                    at += 1;
                    if ended {
                        return (at, self.end_command());
                    }
                }
            }
        }
        (at, Event::More)
    }

    /// One byte of a line; whether it ends an empty command.
    fn line(&mut self, byte: u8) -> bool {
        let digit = u64::from(byte.wrapping_sub(b'0'));
        let more = |number: u64| number.saturating_mul(10).saturating_add(digit);
        self.place = match (self.place, byte) {
            (Place::Command, b'*') => {
                self.begin_command();
                Place::Count(0)
            }
            (Place::Count(count), b'0'..=b'9') => Place::Count(more(count)),
            // Servers take `*-1` for nothing, like `*0`.
            (Place::Count(_), b'-') => Place::Count(0),
            (Place::Count(count), b'\n') => {
                self.arguments = count;
                if count == 0 {
                    return true;
                }
                Place::Length(0)
            }
            (Place::Length(length), b'0'..=b'9') => Place::Length(more(length)),
            (Place::Length(length), b'\n') => {
                self.begin_argument(length);
                match length {
                    0 => Place::Tail { left: 2 },
                    left => Place::Body { left },
                }
            }
            (Place::Count(_), b'\r') | (Place::Length(_), b'$' | b'\r') => self.place,
            _ => {
                self.kind = Kind::Other;
                Place::Lost
            }
        };
        false
    }

    fn begin_command(&mut self) {
        self.kind = Kind::Other;
        self.seen = 0;
        self.next = Next::Option;
        self.ttl = None;
    }

    fn end_command(&mut self) -> Event {
        self.place = Place::Command;
        if self.kind == Kind::Script {
            self.tally.scripts += 1;
        }
        Event::Ended
    }

    fn begin_argument(&mut self, length: u64) {
        let longest = match (self.seen, self.kind) {
            (0, _) => NAME_BYTES_MAX,
            (_, Kind::Other | Kind::FieldPersist | Kind::Script) => 0,
            (1, _) => KEY_BYTES_MAX,
            (2, Kind::Set) | (3, Kind::Number(_) | Kind::Restore) => 0,
            (_, Kind::Number(_) | Kind::Set | Kind::Restore) => WORD_BYTES_MAX,
        };
        self.word.clear();
        self.kept = longest > 0 && length <= longest;
    }

    fn end_argument(&mut self) {
        let number = self.seen;
        self.seen += 1;
        let word = std::mem::take(&mut self.word);
        match (number, self.kind) {
            (0, _) => self.kind = Kind::of(&word, self.arguments, self.rewriting),
            (_, Kind::Other | Kind::FieldPersist | Kind::Script) => {}
            (1, _) => {
                // Swapped, so that neither buffer is made anew for each command.
                self.word = self.key.take().unwrap_or_default();
                self.key = self.kept.then_some(word);
                return;
            }
            (2, Kind::Number(unit)) => self.ttl = positive(&word, unit),
            (2, Kind::Restore) => self.ttl = positive(&word, Unit::Millis),
            (2, Kind::Set) | (3, Kind::Number(_) | Kind::Restore) => {}
            (_, Kind::Number(_) | Kind::Set | Kind::Restore) => self.option(&word),
        }
        self.word = word;
    }

    /// An option of SET or RESTORE, or its value.
    fn option(&mut self, word: &[u8]) {
        let is = |text: &str| word.eq_ignore_ascii_case(text.as_bytes());
        self.next = match (self.next, self.kind) {
            (Next::Ttl(unit), _) => {
                self.ttl = positive(word, unit);
                Next::Option
            }
            (Next::Value, _) => Next::Option,
            (Next::Option, Kind::Set) if is("EX") => Next::Ttl(Unit::Seconds),
            (Next::Option, Kind::Set) if is("PX") => Next::Ttl(Unit::Millis),
            (Next::Option, Kind::Set) if is("EXAT") || is("PXAT") || is("IFEQ") => Next::Value,
            (Next::Option, Kind::Restore) if is("IDLETIME") || is("FREQ") => Next::Value,
            (Next::Option, Kind::Restore) if is("ABSTTL") => {
                self.ttl = None;
                Next::Option
            }
            (Next::Option, _) => Next::Option,
        };
    }
}

/// The fast way: how many bytes at the front are whole commands that pass.
fn plain(bytes: &[u8], rewriting: Rewriting) -> usize {
    let mut passed = 0;
    while let Some(length) = plain_command(&bytes[passed..], rewriting) {
        passed += length;
    }
    passed
}

/// The length of the command at the front, where it is whole and passes.
fn plain_command(bytes: &[u8], rewriting: Rewriting) -> Option<usize> {
    let (count, mut at) = whole_line(b'*', bytes)?;
    for number in 0..count {
        let (length, line) = whole_line(b'$', bytes.get(at..)?)?;
        let body = at + line;
        at = body + usize::try_from(length).ok()?;
        let argument = bytes.get(body..at)?;
        if number == 0 && Kind::of(argument, count, rewriting) != Kind::Other {
            return None;
        }
        at += 2;
    }
    (at <= bytes.len()).then_some(at)
}

/// Bytes `from..to`, if there are any.
fn give(out: &mut Vec<Bytes>, bytes: &Bytes, from: usize, to: usize) {
    if from < to {
        out.push(bytes.slice(from..to));
    }
}

/// A TTL that a server takes, in milliseconds: a positive number as servers spell them that does not overflow.
fn positive(word: &[u8], unit: Unit) -> Option<u64> {
    if word
        .first()
        .is_none_or(|digit| !(b'1'..=b'9').contains(digit))
    {
        return None;
    }
    let number: i64 = std::str::from_utf8(word).ok()?.parse().ok()?;
    let millis = match unit {
        Unit::Seconds => number.checked_mul(1000)?,
        Unit::Millis => number,
    };
    Some(millis.unsigned_abs())
}

/// `HPEXPIREAT key <far future> FIELDS n field…` for a complete `HPERSIST key FIELDS n field…`.
fn far_future(persist: &[u8]) -> Option<Bytes> {
    let mut arguments = arguments(persist)?;
    *arguments.first_mut()? = b"HPEXPIREAT";
    arguments.insert(2, FAR_FUTURE_MILLIS);
    Some(command(&arguments))
}

/// The arguments of one complete command.
fn arguments(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    fn line<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
        let (line, rest) = bytes.split_at(end);
        *bytes = rest.get(2..)?;
        line.get(1..)
    }
    fn number(line: &[u8]) -> Option<usize> {
        std::str::from_utf8(line).ok()?.parse().ok()
    }
    let count = number(line(&mut bytes)?)?;
    // Each argument has six bytes at least: the count may be taken for what it is only that far.
    let mut arguments = Vec::with_capacity(count.min(bytes.len() / 6 + 1));
    for _ in 0..count {
        let length = number(line(&mut bytes)?)?;
        let (argument, rest) = bytes.split_at_checked(length)?;
        arguments.push(argument);
        bytes = rest.get(2..)?;
    }
    Some(arguments)
}
