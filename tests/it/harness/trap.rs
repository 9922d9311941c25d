//! Traps for a proxy: a sequence of marks that a connection passes, and the byte at which it is held. Without I/O.

/// A direction through a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From whoever connected.
    Up,
    /// From whom the proxy stands in front of.
    Down,
}

/// One mark in one direction; the next mark is looked for behind it.
#[derive(Debug, Clone)]
pub struct Mark {
    way: Way,
    wanted: Wanted,
}

#[derive(Debug, Clone)]
enum Wanted {
    /// The end of these bytes.
    Text(Vec<u8>),
    /// So many line ends more.
    Lines(u64),
    /// So many bytes more.
    Bytes(u64),
    /// An RDB payload, `$<length>` or `$EOF:<mark>`, without its last so many bytes.
    Payload { short: u64 },
}

impl Way {
    /// The end of the next `text` this way.
    pub fn text(self, text: &str) -> Mark {
        self.mark(Wanted::Text(text.as_bytes().to_vec()))
    }

    /// The end of the `count`-th line from here.
    pub fn lines(self, count: u64) -> Mark {
        self.mark(Wanted::Lines(count))
    }

    /// `count` bytes from here.
    pub fn bytes(self, count: u64) -> Mark {
        self.mark(Wanted::Bytes(count))
    }

    /// The end of the RDB payload that begins here, or `short` bytes before it: of one that ends with a mark, inside
    /// that mark.
    pub fn payload(self, short: u64) -> Mark {
        self.mark(Wanted::Payload { short })
    }

    fn mark(self, wanted: Wanted) -> Mark {
        Mark { way: self, wanted }
    }
}

/// Where to hold a connection.
#[derive(Debug, Clone)]
pub struct Trap {
    marks: Vec<Mark>,
    skip: u32,
    before: bool,
    one_way: bool,
}

impl Trap {
    /// Behind the last of these marks, which one connection passes in this order: both directions are held.
    pub fn behind(marks: impl IntoIterator<Item = Mark>) -> Self {
        Self {
            marks: marks.into_iter().collect(),
            skip: 0,
            before: false,
            one_way: false,
        }
    }

    /// Before the text that is the last mark, as far as it came in one piece.
    pub fn before(marks: impl IntoIterator<Item = Mark>) -> Self {
        Self {
            before: true,
            ..Self::behind(marks)
        }
    }

    /// Holds only the direction of the last mark.
    pub fn one_way(self) -> Self {
        Self {
            one_way: true,
            ..self
        }
    }

    /// Lets so many connections pass that meet all the marks.
    pub fn skip(self, skip: u32) -> Self {
        Self { skip, ..self }
    }

    /// Whether both directions are to be held.
    pub fn holds_both_ways(&self) -> bool {
        !self.one_way
    }

    /// How many connections pass first.
    pub fn skipped(&self) -> u32 {
        self.skip
    }
}

/// How far one connection has come through the marks of a trap.
#[derive(Debug, Default)]
pub struct Progress {
    mark: usize,
    /// Counted, or the position in the payload's own bytes.
    count: u64,
    /// The last bytes, as many as the text that is looked for has.
    tail: Vec<u8>,
    payload: Payload,
}

#[derive(Debug, Default)]
enum Payload {
    #[default]
    Header,
    Length(u64),
    Mark(Vec<u8>),
}

impl Progress {
    /// Takes bytes that are about to pass `way`. How many of them may, once the last mark is met.
    pub fn feed(&mut self, trap: &Trap, way: Way, bytes: &[u8]) -> Option<usize> {
        for (index, byte) in bytes.iter().enumerate() {
            let mark = trap.marks.get(self.mark)?;
            if mark.way != way {
                return None;
            }
            if !self.met(&mark.wanted, *byte) {
                continue;
            }
            let next = Self {
                mark: self.mark + 1,
                ..Self::default()
            };
            *self = next;
            if self.mark == trap.marks.len() {
                let text = match &mark.wanted {
                    Wanted::Text(text) if trap.before => text.len(),
                    _ => 0,
                };
                return Some((index + 1).saturating_sub(text));
            }
        }
        None
    }

    fn met(&mut self, wanted: &Wanted, byte: u8) -> bool {
        match wanted {
            Wanted::Text(text) => self.ends_with(text, byte),
            Wanted::Lines(count) => {
                self.count += u64::from(byte == b'\n');
                self.count == *count
            }
            Wanted::Bytes(count) => {
                self.count += 1;
                self.count == *count
            }
            Wanted::Payload { short } => self.payload(*short, byte),
        }
    }

    fn ends_with(&mut self, text: &[u8], byte: u8) -> bool {
        if self.tail.len() == text.len() {
            self.tail.remove(0);
        }
        self.tail.push(byte);
        self.tail == text
    }

    fn payload(&mut self, short: u64, byte: u8) -> bool {
        self.count += 1;
        match &self.payload {
            Payload::Header if byte == b'\n' => {
                let line = std::mem::take(&mut self.tail);
                self.count = 0;
                self.payload = payload_of(&line, short);
                matches!(self.payload, Payload::Length(0))
            }
            Payload::Header => {
                self.tail.push(byte);
                false
            }
            Payload::Length(length) => self.count == *length,
            Payload::Mark(mark) => {
                let mark = mark.clone();
                self.ends_with(&mark, byte)
            }
        }
    }
}

/// A lone line end may come before the header.
fn payload_of(line: &[u8], short: u64) -> Payload {
    let line = String::from_utf8_lossy(line);
    let line = line.trim_end();
    if line.is_empty() {
        return Payload::Header;
    }
    if let Some(mark) = line.strip_prefix("$EOF:") {
        let end = mark.len() - usize::try_from(short).unwrap();
        return Payload::Mark(mark.as_bytes()[..end].to_vec());
    }
    let length = line
        .strip_prefix('$')
        .and_then(|length| length.parse().ok());
    let length: u64 = length.unwrap_or_else(|| panic!("a payload begins with {line:?}"));
    assert!(short < length, "the payload has {length} bytes only");
    Payload::Length(length - short)
}

#[cfg(test)]
mod tests {
    use super::Way::{Down, Up};
    use super::*;

    /// Feeds pieces and tells how many bytes of which piece may pass.
    fn held(trap: &Trap, pieces: &[(Way, &[u8])]) -> Option<(usize, usize)> {
        let mut progress = Progress::default();
        pieces.iter().enumerate().find_map(|(index, (way, bytes))| {
            let cut = progress.feed(trap, *way, bytes)?;
            Some((index, cut))
        })
    }

    #[test]
    fn marks_are_met_in_their_order_and_their_direction() {
        let trap = Trap::behind([
            Up.text("PSYNC\r\n"),
            Down.text("+FULLRESYNC"),
            Down.lines(1),
        ]);
        let pieces: [(Way, &[u8]); 4] = [
            (Down, b"+FULLRESYNC too early\r\n"),
            (Up, b"$5\r\nPSYNC\r\n"),
            (Up, b"+FULLRESYNC the wrong way\r\n"),
            (Down, b"+FULLRESYNC id 7\r\n$EOF"),
        ];
        assert_eq!(held(&trap, &pieces), Some((3, 18)));
        assert_eq!(held(&trap, &pieces[..3]), None);
    }

    #[test]
    fn a_mark_may_come_in_pieces() {
        let trap = Trap::behind([Down.text("aab"), Down.bytes(2)]);
        let pieces: [(Way, &[u8]); 4] = [(Down, b"xaa"), (Up, b"b"), (Down, b"ab1"), (Down, b"23")];
        assert_eq!(held(&trap, &pieces), Some((3, 1)));
    }

    #[test]
    fn before_a_text_nothing_of_it_passes() {
        let trap = Trap::before([Up.text("ACK")]);
        assert_eq!(held(&trap, &[(Up, b"REPLCONF ACK 5")]), Some((0, 9)));
        // As far as it came in one piece.
        assert_eq!(held(&trap, &[(Up, b"A"), (Up, b"CK 5")]), Some((1, 0)));
    }

    #[test]
    fn payloads_of_both_kinds_are_measured() {
        let mark = "m".repeat(40);
        let marked = format!("\n$EOF:{mark}\r\nREDIS{mark}stream");
        let end = marked.len() - "stream".len();
        for (bytes, end) in [(marked.as_str(), end), ("$5\r\nREDISstream", 9)] {
            for short in [0, 1, 3] {
                let trap = Trap::behind([Down.payload(short)]);
                let expected = end - usize::try_from(short).unwrap();
                let found = held(&trap, &[(Down, bytes.as_bytes())]);
                assert_eq!(found, Some((0, expected)), "{bytes:?} without {short}");
            }
        }
    }
}
