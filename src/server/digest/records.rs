//! The items of a digest in scratch files, spread over them by their names, so that two digests are compared a small
//! part at a time.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};

use super::hash_of;

/// Scratch files of one digest.
const FILES: usize = 64;
/// Bytes of a name that are kept for messages. Longer ones are told apart by a hash of all of it.
const NAME_BYTES_KEPT: usize = 512;
/// Differences that are described.
const DESCRIBED_MAX: usize = 10;
/// Bytes of the longest part of an item that is read back; a damaged scratch file must not ask for more.
const PART_BYTES_MAX: u32 = 64 * 1024;

/// What an item is of.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Name {
    /// Of everything, long names too.
    hash: u64,
    /// For people.
    shown: String,
}

impl Name {
    pub(super) fn key(database: u32, name: &[u8]) -> Self {
        Self::of(
            &[&database.to_le_bytes(), b"k", name],
            format!("db{database} key \"{}\"", cut(name)),
        )
    }

    pub(super) fn field(database: u32, key: &[u8], field: &[u8]) -> Self {
        Self::of(
            &[&database.to_le_bytes(), b"f", key, field],
            format!("db{database} key \"{}\" field \"{}\"", cut(key), cut(field)),
        )
    }

    pub(super) fn library(name: &[u8]) -> Self {
        Self::of(&[b"l", name], format!("library \"{}\"", cut(name)))
    }

    fn of(parts: &[&[u8]], shown: String) -> Self {
        let mut hasher = DefaultHasher::new();
        for part in parts {
            hasher.write_u64(hash_of(part));
        }
        Self {
            hash: hasher.finish(),
            shown,
        }
    }
}

fn cut(name: &[u8]) -> String {
    let kept = &name[..name.len().min(NAME_BYTES_KEPT)];
    match kept.len() < name.len() {
        true => format!("{}…", kept.escape_ascii()),
        false => kept.escape_ascii().to_string(),
    }
}

/// A key, a field that expires, or a function library.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Item {
    pub(super) name: Name,
    pub(super) kind: String,
    /// Milliseconds since 1970; negative where it does not expire.
    pub(super) expires_at: i64,
    /// When it goes: with its key, where it is a field.
    pub(super) gone_at: i64,
    /// Of its value.
    pub(super) hash: u64,
}

impl Item {
    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&self.name.hash.to_le_bytes())?;
        write_text(to, &self.name.shown)?;
        write_text(to, &self.kind)?;
        to.write_all(&self.expires_at.to_le_bytes())?;
        to.write_all(&self.gone_at.to_le_bytes())?;
        to.write_all(&self.hash.to_le_bytes())
    }

    /// `None` at the end.
    fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut first = [0; 8];
        match from.read_exact(&mut first) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let name = Name {
            hash: u64::from_le_bytes(first),
            shown: read_text(from)?,
        };
        let kind = read_text(from)?;
        let mut number = || -> io::Result<[u8; 8]> {
            let mut number = [0; 8];
            from.read_exact(&mut number)?;
            Ok(number)
        };
        Ok(Some(Self {
            name,
            kind,
            expires_at: i64::from_le_bytes(number()?),
            gone_at: i64::from_le_bytes(number()?),
            hash: u64::from_le_bytes(number()?),
        }))
    }
}

fn write_text(to: &mut impl Write, text: &str) -> io::Result<()> {
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(text.as_bytes())
}

fn read_text(from: &mut impl Read) -> io::Result<String> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > PART_BYTES_MAX {
        return Err(io::Error::other("a scratch file is damaged"));
    }
    let mut text = vec![0; length as usize];
    from.read_exact(&mut text)?;
    String::from_utf8(text).map_err(io::Error::other)
}

/// Items in scratch files without names: nothing is left of them.
#[derive(Debug)]
pub struct Records {
    files: Vec<BufWriter<File>>,
}

impl Records {
    pub(super) fn create() -> io::Result<Self> {
        let files = (0..FILES).map(|_| Ok(BufWriter::new(tempfile::tempfile()?)));
        Ok(Self {
            files: files.collect::<io::Result<_>>()?,
        })
    }

    pub(super) fn put(&mut self, item: &Item) -> io::Result<()> {
        let files = self.files.len() as u64;
        let place = usize::try_from(item.name.hash % files).unwrap_or(0);
        item.write(&mut self.files[place])
    }

    pub(super) fn finish(mut self) -> io::Result<Self> {
        self.files.iter_mut().try_for_each(BufWriter::flush)?;
        Ok(self)
    }

    fn part(&self, place: usize) -> io::Result<BTreeMap<u64, Item>> {
        let mut file = self.files[place].get_ref().try_clone()?;
        file.rewind()?;
        let mut file = BufReader::new(file);
        let mut items = BTreeMap::new();
        // SCAN may give a key twice while a table is being resized.
        while let Some(item) = Item::read(&mut file)? {
            items.insert(item.name.hash, item);
        }
        Ok(items)
    }

    /// What differs. Items that are gone at `read_at`, the server's time when the later of both was read, are passed
    /// over: one of them may have been read before and the other after that. Times of expiry may lie `tolerance`
    /// milliseconds apart.
    ///
    /// # Errors
    /// What the system says of the scratch files.
    pub fn compare(&self, other: &Self, read_at: i64, tolerance: u64) -> io::Result<Differences> {
        let mut differences = Differences::default();
        let until = read_at.saturating_add_unsigned(tolerance);
        let is_gone = |item: &Item| (0..=until).contains(&item.gone_at);
        for place in 0..self.files.len() {
            let here = self.part(place)?;
            let mut there = other.part(place)?;
            for (hash, item) in here {
                let same = there.remove(&hash);
                if is_gone(&item) && same.as_ref().is_none_or(is_gone) {
                    differences.passed_over += 1;
                    continue;
                }
                differences.compared += 1;
                differences.note(&item, same.as_ref(), tolerance);
            }
            for item in there.into_values() {
                if is_gone(&item) {
                    differences.passed_over += 1;
                } else {
                    differences.compared += 1;
                    differences.add(&item.name, Difference::OnlyRight);
                }
            }
        }
        Ok(differences)
    }
}

/// How an item differs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Difference {
    /// The right one lacks it.
    OnlyLeft,
    /// The left one lacks it.
    OnlyRight,
    /// Another type.
    Kind(String, String),
    /// Another value.
    Value,
    /// Another time of expiry, milliseconds since 1970; negative where it does not expire.
    Expiry(i64, i64),
}

/// What two digests differ in.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Differences {
    /// Keys, fields that expire, and function libraries that were compared.
    pub compared: u64,
    /// Those whose time had run out.
    pub passed_over: u64,
    /// How many of those compared differ.
    pub count: u64,
    /// The first of them: what, and how.
    pub first: Vec<(String, Difference)>,
}

impl Differences {
    fn note(&mut self, left: &Item, right: Option<&Item>, tolerance: u64) {
        let Some(right) = right else {
            return self.add(&left.name, Difference::OnlyLeft);
        };
        let expiries = (left.expires_at, right.expires_at);
        let same_expiry = (expiries.0 < 0) == (expiries.1 < 0)
            && (expiries.0 < 0 || expiries.0.abs_diff(expiries.1) <= tolerance);
        if left.kind != right.kind {
            let kinds = Difference::Kind(left.kind.clone(), right.kind.clone());
            self.add(&left.name, kinds);
        } else if left.hash != right.hash {
            self.add(&left.name, Difference::Value);
        } else if !same_expiry {
            self.add(&left.name, Difference::Expiry(expiries.0, expiries.1));
        }
    }

    fn add(&mut self, name: &Name, difference: Difference) {
        self.count += 1;
        if self.first.len() < DESCRIBED_MAX {
            self.first.push((name.shown.clone(), difference));
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnlyLeft => f.write_str("is not in the later snapshot"),
            Self::OnlyRight => f.write_str("is only in the later snapshot"),
            Self::Kind(left, right) => write!(f, "is a {left}, in the later snapshot a {right}"),
            Self::Value => f.write_str("has another value in the later snapshot"),
            Self::Expiry(left, right) => {
                write!(
                    f,
                    "expires at {left}, in the later snapshot at {right} (Unix ms, negative: never)"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str, expires_at: i64, hash: u64) -> Item {
        Item {
            name: Name::key(0, name.as_bytes()),
            kind: "string".into(),
            expires_at,
            gone_at: expires_at,
            hash,
        }
    }

    fn records(items: &[Item]) -> Records {
        let mut records = Records::create().unwrap();
        for item in items {
            records.put(item).unwrap();
        }
        records.finish().unwrap()
    }

    fn compared(left: &[Item], right: &[Item], tolerance: u64) -> Differences {
        records(left)
            .compare(&records(right), 1000, tolerance)
            .unwrap()
    }

    #[test]
    fn equal_ones_have_no_difference() {
        let items: Vec<Item> = (0..1000).map(|n| item(&format!("k{n}"), -1, n)).collect();
        let mut twice = items.clone();
        twice.extend(items[..10].iter().cloned());
        let differences = compared(&items, &twice, 0);
        assert_eq!((differences.count, differences.compared), (0, 1000));
    }

    #[test]
    fn each_kind_of_difference_is_named() {
        let mut list = item("kind", -1, 1);
        list.kind = "list".into();
        let left = [
            item("left", -1, 1),
            item("value", -1, 1),
            item("kind", -1, 1),
            item("ttl", 5000, 1),
        ];
        let right = [
            item("right", -1, 1),
            item("value", -1, 2),
            list,
            item("ttl", 5001, 1),
        ];
        let differences = compared(&left, &right, 0);
        assert_eq!(differences.count, 5);
        let mut said: Vec<String> = differences
            .first
            .iter()
            .map(|(name, difference)| format!("{name} {difference}"))
            .collect();
        said.sort();
        assert!(
            said[0].contains("\"kind\" is a string, in the later snapshot a list"),
            "{said:?}"
        );
        assert!(said[1].contains("\"left\" is not in"), "{said:?}");
        assert!(said[2].contains("\"right\" is only in"), "{said:?}");
        assert!(said[3].contains("\"ttl\" expires at 5000"), "{said:?}");
        assert!(said[4].contains("\"value\" has another value"), "{said:?}");
        assert_eq!(
            compared(&left[3..], &right[3..], 1).count,
            0,
            "within the tolerance"
        );
    }

    #[test]
    fn what_lapses_between_two_readings_is_no_difference() {
        let gone = [item("a", 900, 1), item("b", 1000, 1)];
        let differences = compared(&gone, &[], 0);
        assert_eq!((differences.count, differences.passed_over), (0, 2));
        assert_eq!(compared(&[], &gone, 0).count, 0);
        assert_eq!(compared(&[item("a", 1001, 1)], &[], 0).count, 1);
        assert_eq!(compared(&[item("a", 1001, 1)], &[], 60).count, 0);
        assert_eq!(
            compared(&[item("a", 900, 1)], &[item("a", -1, 1)], 0).count,
            1,
            "one of them never expires"
        );
    }

    #[test]
    fn long_names_are_told_apart() {
        let long = "x".repeat(2 * NAME_BYTES_KEPT);
        let (one, other) = (
            item(&format!("{long}1"), -1, 1),
            item(&format!("{long}2"), -1, 1),
        );
        assert_eq!(compared(&[one], &[other], 0).count, 2);
    }
}
