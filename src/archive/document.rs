//! The JSON documents of an archive: its own, one per timeline, one per acceptance. Which of them follow
//! from each other is left to `archive::timeline`.
//!
//! Readers pass over fields they do not know; a format number above [`DOCUMENT_FORMAT`] is an error.

use std::fmt;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::block::crc32c;
use super::layout::ArchiveId;
use crate::position::{Offset, Position, ReplicationId, TimelineSeq, UnixMillis};

/// The format number of the documents written here.
pub const DOCUMENT_FORMAT: u32 = 1;

/// The longest document that is read, in bytes.
pub const DOCUMENT_BYTES_MAX: usize = 64 * 1024;

/// A document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// A later version changed the meaning of the fields.
    #[error("written by a newer Perennial (format {found}), this one reads {known}: upgrade")]
    Newer {
        /// The document's format number.
        found: u32,
        /// The highest format number read here.
        known: u32,
    },
    /// Far longer than any document written here.
    #[error("{bytes} bytes are too many for a document (at most {max}): not written by Perennial")]
    TooLong {
        /// The document's length in bytes.
        bytes: usize,
        /// The longest that is read, in bytes.
        max: usize,
    },
    /// Not JSON, or not with the fields that are needed.
    #[error("not a {what}: {source}")]
    Malformed {
        /// What it should have been.
        what: &'static str,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Its checksum is not that of its bytes.
    #[error(
        "the {what} is damaged: its checksum is {found:08x}, it says {expected}; put an undamaged copy in its place"
    )]
    Damaged {
        /// What it should have been.
        what: &'static str,
        /// What it says.
        expected: String,
        /// What its bytes give.
        found: u32,
    },
}

/// What begins the last field of a document, its checksum. Documents of older versions have none.
const CHECKSUM_FIELD: &[u8] = b",\n  \"crc32c\": \"";
/// What ends a document behind it.
const CHECKSUM_END: &[u8] = b"\"\n}\n";

/// `archive.json`: what the archive is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ArchiveDocument {
    /// [`DOCUMENT_FORMAT`].
    pub format: u32,
    /// Names the archive in every block.
    pub archive: ArchiveId,
    /// The data set's name, where one was given.
    #[serde(default)]
    pub name: Option<String>,
    /// When it was created.
    #[serde(with = "unix_millis")]
    pub created_at: UnixMillis,
}

/// Whether an archive that bears this name may be used by somebody who asks for that one. Whoever asks for none takes any;
/// an archive without a name is nobody's who asks for one.
pub fn is_name_right(found: Option<&str>, wanted: Option<&str>) -> bool {
    wanted.is_none() || wanted == found
}

/// `timeline.json`: where a timeline comes from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TimelineDocument {
    /// [`DOCUMENT_FORMAT`].
    pub format: u32,
    /// Its number.
    #[serde(with = "timeline_seq")]
    pub seq: TimelineSeq,
    /// Its replication id.
    #[serde(with = "replication_id")]
    pub id: ReplicationId,
    /// The position it continues; none for a root, which starts with a snapshot.
    #[serde(default, with = "optional_position")]
    pub parent: Option<Position>,
    /// The offset before its own first byte, which is `start + 1`. It differs from the parent's offset where
    /// a seed had to use an id of its own.
    #[serde(with = "offset")]
    pub start: Offset,
    /// It stands for a seed whose bytes were rewritten: a server filled under `id` holds at offset `start` what the
    /// parent holds at its own. Before that it holds less, and nothing is ever stored here.
    #[serde(default, skip_serializing_if = "is_false")]
    pub mapped: bool,
    /// Why it is never chosen as the head until it is accepted; none where nothing is wrong.
    #[serde(default)]
    pub suspect: Option<String>,
    /// When it was created.
    #[serde(with = "unix_millis")]
    pub created_at: UnixMillis,
    /// Which Perennial created it.
    pub created_by: String,
    /// The server it was taken from.
    pub source: Source,
}

/// The server a timeline was taken from.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Source {
    /// `redis` or `valkey`.
    pub server: String,
    /// Its version.
    pub version: String,
    /// Its run id: another one means that it was started again.
    #[serde(default)]
    pub run_id: String,
    /// Its address, without secrets.
    #[serde(default)]
    pub address: String,
    /// It was a replica itself, or had been one until later than the start: the replication stream is spelled as its
    /// master does, whose version is unknown.
    #[serde(default, skip_serializing_if = "is_false")]
    pub replica: bool,
}

impl Source {
    /// The first two numbers of its version, where it has such.
    pub fn version_numbers(&self) -> Option<(u32, u32)> {
        let mut numbers = self.version.split('.').map(|part| part.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// `accepted-….json`: the note that makes a suspect timeline eligible as the head.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AcceptedDocument {
    /// [`DOCUMENT_FORMAT`].
    pub format: u32,
    /// When it was accepted.
    #[serde(with = "unix_millis")]
    pub accepted_at: UnixMillis,
    /// Who accepted it.
    pub by: String,
    /// Why.
    pub reason: String,
}

macro_rules! document {
    ($type:ty, $what:literal) => {
        impl $type {
            /// The document as it is stored: indented JSON that ends with a line feed.
            pub fn encode(&self) -> Bytes {
                encode(self)
            }

            /// Reads a stored document.
            ///
            /// # Errors
            /// [`DocumentError`]: written by a newer version, too long, or not such a document.
            pub fn decode(bytes: &[u8]) -> Result<Self, DocumentError> {
                decode(bytes, $what)
            }

            /// Whether `bytes` are, byte for byte, how this document is stored, with a checksum or, by an older
            /// version, without.
            pub fn is_stored_as(&self, bytes: &[u8]) -> bool {
                has_checksum(bytes) || *bytes == *without_checksum(self)
            }
        }
    };
}

document!(ArchiveDocument, "archive document");
document!(TimelineDocument, "timeline document");
document!(AcceptedDocument, "acceptance");

fn without_checksum(document: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(document)
        .expect("documents have only text keys and are written to memory");
    bytes.push(b'\n');
    bytes
}

fn encode(document: &impl Serialize) -> Bytes {
    let mut bytes = without_checksum(document);
    bytes.truncate(bytes.len() - b"\n}\n".len());
    let checksum = crc32c(&bytes);
    bytes.extend_from_slice(CHECKSUM_FIELD);
    bytes.extend_from_slice(format!("{checksum:08x}").as_bytes());
    bytes.extend_from_slice(CHECKSUM_END);
    bytes.into()
}

/// What the checksum covers, and what it says. `None` for a document without.
fn split_checksum(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = bytes.strip_suffix(CHECKSUM_END)?;
    let (rest, said) = rest.split_at_checked(rest.len().checked_sub(8)?)?;
    Some((rest.strip_suffix(CHECKSUM_FIELD)?, said))
}

fn has_checksum(bytes: &[u8]) -> bool {
    split_checksum(bytes).is_some()
}

fn check(bytes: &[u8], what: &'static str) -> Result<(), DocumentError> {
    let Some((covered, said)) = split_checksum(bytes) else {
        return Ok(());
    };
    let found = crc32c(covered);
    match said == format!("{found:08x}").as_bytes() {
        true => Ok(()),
        false => Err(DocumentError::Damaged {
            what,
            expected: said.escape_ascii().to_string(),
            found,
        }),
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8], what: &'static str) -> Result<T, DocumentError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    if bytes.len() > DOCUMENT_BYTES_MAX {
        return Err(DocumentError::TooLong {
            bytes: bytes.len(),
            max: DOCUMENT_BYTES_MAX,
        });
    }
    let malformed = |source| DocumentError::Malformed { what, source };
    // First the number alone: a newer format may lack or change every other field.
    let Format { format } = serde_json::from_slice(bytes).map_err(malformed)?;
    if format > DOCUMENT_FORMAT {
        return Err(DocumentError::Newer {
            found: format,
            known: DOCUMENT_FORMAT,
        });
    }
    check(bytes, what)?;
    serde_json::from_slice(bytes).map_err(malformed)
}

/// How the words of `position` are spelled in documents, in one line each.
macro_rules! spelled_as_number {
    ($module:ident, $type:ty, $number:ty, $from:expr, $to:expr) => {
        mod $module {
            use super::*;

            pub(super) fn serialize<S: serde::Serializer>(
                value: &$type,
                serializer: S,
            ) -> Result<S::Ok, S::Error> {
                let to: fn(&$type) -> $number = $to;
                to(value).serialize(serializer)
            }

            pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(
                deserializer: D,
            ) -> Result<$type, D::Error> {
                <$number>::deserialize(deserializer).map($from)
            }
        }
    };
}

spelled_as_number!(unix_millis, UnixMillis, u64, UnixMillis, |at| at.0);
spelled_as_number!(offset, Offset, u64, Offset::new, |offset| offset.as_u64());
spelled_as_number!(timeline_seq, TimelineSeq, u32, TimelineSeq::new, |seq| seq
    .as_u32());

mod replication_id {
    use super::*;

    pub(super) fn serialize<S: serde::Serializer>(
        id: &ReplicationId,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<ReplicationId, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

pub(super) mod optional_position {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Spelled {
        #[serde(with = "super::timeline_seq")]
        timeline: TimelineSeq,
        #[serde(with = "super::offset")]
        offset: Offset,
    }

    pub(in crate::archive) fn serialize<S: serde::Serializer>(
        position: &Option<Position>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        position
            .map(|Position { timeline, offset }| Spelled { timeline, offset })
            .serialize(serializer)
    }

    pub(in crate::archive) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Position>, D::Error> {
        let spelled = Option::<Spelled>::deserialize(deserializer)?;
        Ok(spelled.map(|Spelled { timeline, offset }| Position { timeline, offset }))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} at {}", self.server, self.version, self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline() -> TimelineDocument {
        TimelineDocument {
            format: DOCUMENT_FORMAT,
            seq: TimelineSeq::new(4),
            id: ReplicationId::from_raw([0xab; 20]),
            parent: Some(Position {
                timeline: TimelineSeq::new(3),
                offset: Offset::new(u64::MAX - 1),
            }),
            start: Offset::new(77),
            mapped: false,
            suspect: None,
            created_at: UnixMillis(1_700_000_000_000),
            created_by: "perennial 0.1.0".to_owned(),
            source: Source {
                server: "redis".to_owned(),
                version: "7.0.15".to_owned(),
                run_id: "f00d".to_owned(),
                address: "127.0.0.1:6379".to_owned(),
                replica: false,
            },
        }
    }

    fn said(text: &str) -> String {
        let (covered, _) = split_checksum(text.as_bytes()).unwrap();
        format!("{:08x}", crc32c(covered))
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let whole = timeline().encode();
        assert!(timeline().is_stored_as(&whole));
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let noticed = TimelineDocument::decode(&damaged)
                .map_or(true, |document| !document.is_stored_as(&damaged));
            assert!(noticed, "bit {bit}: {}", damaged.escape_ascii());
        }
    }

    #[test]
    fn documents_of_older_versions_have_no_checksum() {
        let older = without_checksum(&timeline());
        let document = TimelineDocument::decode(&older).unwrap();
        assert_eq!(document, timeline());
        assert!(document.is_stored_as(&older));
    }

    #[test]
    fn documents_are_spelled_as_documented() {
        let text = String::from_utf8(timeline().encode().to_vec()).unwrap();
        assert_eq!(
            text,
            r#"{
  "format": 1,
  "seq": 4,
  "id": "abababababababababababababababababababab",
  "parent": {
    "timeline": 3,
    "offset": 18446744073709551614
  },
  "start": 77,
  "suspect": null,
  "created_at": 1700000000000,
  "created_by": "perennial 0.1.0",
  "source": {
    "server": "redis",
    "version": "7.0.15",
    "run_id": "f00d",
    "address": "127.0.0.1:6379"
  },
  "crc32c": "CHECKSUM"
}
"#
            .replace("CHECKSUM", &said(&text))
        );
        assert_eq!(
            TimelineDocument::decode(text.as_bytes()).unwrap(),
            timeline()
        );
    }

    #[test]
    fn what_is_rare_is_spelled_only_where_it_is_so() {
        let mut rare = timeline();
        (rare.mapped, rare.source.replica) = (true, true);
        let text = String::from_utf8(rare.encode().to_vec()).unwrap();
        assert!(
            text.contains("  \"start\": 77,\n  \"mapped\": true,\n"),
            "{text}"
        );
        assert!(text.contains("    \"replica\": true\n"), "{text}");
        assert_eq!(TimelineDocument::decode(text.as_bytes()).unwrap(), rare);
    }

    #[test]
    fn the_smaller_documents_are_read_as_they_are_written() {
        let archive = ArchiveDocument {
            format: DOCUMENT_FORMAT,
            archive: ArchiveId::from_raw([7; 16]),
            name: Some("orders \"eu\"".to_owned()),
            created_at: UnixMillis(5),
        };
        assert_eq!(ArchiveDocument::decode(&archive.encode()).unwrap(), archive);
        let accepted = AcceptedDocument {
            format: DOCUMENT_FORMAT,
            accepted_at: UnixMillis(6),
            by: "ops".to_owned(),
            reason: "the old head is gone".to_owned(),
        };
        assert_eq!(
            AcceptedDocument::decode(&accepted.encode()).unwrap(),
            accepted
        );
    }

    #[test]
    fn unknown_fields_are_passed_over_and_missing_ones_are_not() {
        let known = r#"{"format":1,"archive":"07070707070707070707070707070707","created_at":5"#;
        let read = ArchiveDocument::decode(format!("{known},\"later\":[1]}}").as_bytes()).unwrap();
        assert_eq!(read.name, None);
        let missing = ArchiveDocument::decode(br#"{"format":1,"name":"x"}"#).unwrap_err();
        assert!(
            matches!(missing, DocumentError::Malformed { .. }),
            "{missing}"
        );
    }

    #[test]
    fn a_newer_format_says_so_whatever_else_it_holds() {
        let error = TimelineDocument::decode(br#"{"format":2,"seq":"four"}"#).unwrap_err();
        assert_eq!(
            error.to_string(),
            "written by a newer Perennial (format 2), this one reads 1: upgrade"
        );
    }

    #[test]
    fn what_is_no_document_is_an_error() {
        for bytes in [&b""[..], b"{}", b"[]", b"\xff", b"{\"format\":-1}", b"null"] {
            let error = ArchiveDocument::decode(bytes).unwrap_err();
            assert!(matches!(error, DocumentError::Malformed { .. }), "{error}");
        }
        let deep = "[".repeat(DOCUMENT_BYTES_MAX);
        assert!(ArchiveDocument::decode(deep.as_bytes()).is_err());
        let long = vec![b' '; DOCUMENT_BYTES_MAX + 1];
        let error = ArchiveDocument::decode(&long).unwrap_err();
        assert!(matches!(error, DocumentError::TooLong { .. }), "{error}");
    }
}
