//! Which payloads a server can read, by version (`protocol-facts` 4.1b). A server that cannot read one closes
//! the link and asks again for ever, so it is not even taken over.

use std::fmt;

use crate::archive::snapshot::RdbMagic;

/// A version, major and minor.
type Version = (u32, u32);

/// The first version of Redis that reads each RDB version.
const REDIS: [(Version, u32); 10] = [
    ((2, 8), 6),
    ((3, 2), 7),
    ((4, 0), 8),
    ((5, 0), 9),
    ((7, 0), 10),
    ((7, 2), 11),
    ((7, 4), 12),
    ((8, 6), 13),
    ((8, 8), 14),
    ((8, 10), 15),
];
/// The last version of Redis's RDB that Valkey shares. Later numbers mean other things to it.
const VALKEY_READS_REDIS: u32 = 11;
/// The first version of Valkey that reads each of its own RDB versions.
const VALKEY: [(Version, u32); 2] = [((9, 0), 80), ((9, 2), 81)];

/// A payload that a server cannot read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the archive's payload is {payload}, and {server} {major}.{minor} cannot read it: start {wanted}",
    payload = Name(*magic, *version), major = version_of_server.0, minor = version_of_server.1,
    wanted = wanted(*magic, *version)
)]
pub struct UnreadablePayload {
    magic: RdbMagic,
    version: u32,
    server: String,
    version_of_server: Version,
}

/// Whether a server (`"redis"` or `"valkey"`, and its version) reads a payload. Servers newer than the tables
/// are let through: they say themselves what they cannot read.
///
/// # Errors
/// [`UnreadablePayload`].
pub fn readable(
    magic: RdbMagic,
    version: u32,
    server: &str,
    version_of_server: Version,
) -> Result<(), UnreadablePayload> {
    let valkey = server == "valkey";
    let reads = match (valkey, magic) {
        (false, RdbMagic::Redis) => up_to(&REDIS, version_of_server),
        (false, RdbMagic::Valkey) => Some(0),
        (true, RdbMagic::Redis) if version_of_server.0 <= 9 => Some(VALKEY_READS_REDIS),
        (true, RdbMagic::Redis) => None,
        (true, RdbMagic::Valkey) => up_to(&VALKEY, version_of_server),
    };
    if reads.is_none_or(|reads| version <= reads) {
        return Ok(());
    }
    Err(UnreadablePayload {
        magic,
        version,
        server: server.to_owned(),
        version_of_server,
    })
}

/// The last RDB version that a server reads; nothing where it is newer than the table.
fn up_to(table: &[(Version, u32)], server: Version) -> Option<u32> {
    if table.last().is_some_and(|(newest, _)| server > *newest) {
        return None;
    }
    let known = table.iter().rev().find(|(first, _)| server >= *first);
    Some(known.map_or(0, |(_, reads)| *reads))
}

/// Which servers read it.
fn wanted(magic: RdbMagic, version: u32) -> String {
    let (name, table): (_, &[_]) = match magic {
        RdbMagic::Redis => ("Redis", &REDIS),
        RdbMagic::Valkey => ("Valkey", &VALKEY),
    };
    match table.iter().find(|(_, reads)| *reads >= version) {
        Some(((major, minor), _)) if magic == RdbMagic::Redis && version <= VALKEY_READS_REDIS => {
            format!("Redis {major}.{minor} or later, or Valkey")
        }
        Some(((major, minor), _)) => format!("{name} {major}.{minor} or later"),
        None => format!("a newer {name}"),
    }
}

/// `REDIS0010`, as the payload begins.
struct Name(RdbMagic, u32);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = match self.0 {
            RdbMagic::Redis => 4,
            RdbMagic::Valkey => 3,
        };
        write!(f, "{}{:0digits$}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was recorded from whom, and the servers that were tried with it: (name, version, loads).
    const SERVERS: [(&str, Version); 14] = [
        ("redis", (2, 8)),
        ("redis", (3, 2)),
        ("redis", (4, 0)),
        ("redis", (5, 0)),
        ("redis", (6, 0)),
        ("redis", (6, 2)),
        ("redis", (7, 0)),
        ("redis", (7, 2)),
        ("redis", (7, 4)),
        ("redis", (8, 0)),
        ("redis", (8, 4)),
        ("valkey", (8, 0)),
        ("valkey", (8, 1)),
        ("valkey", (9, 1)),
    ];

    #[test]
    fn the_table_of_the_facts() {
        let redis = |first: Version| {
            move |name: &str, version: Version| name == "valkey" || version >= first
        };
        type Loads = Box<dyn Fn(&str, Version) -> bool>;
        let rows: [(RdbMagic, u32, Loads); 8] = [
            (RdbMagic::Redis, 6, Box::new(|_, _| true)),
            (RdbMagic::Redis, 7, Box::new(redis((3, 2)))),
            (RdbMagic::Redis, 8, Box::new(redis((4, 0)))),
            (RdbMagic::Redis, 9, Box::new(redis((5, 0)))),
            (RdbMagic::Redis, 10, Box::new(redis((7, 0)))),
            (RdbMagic::Redis, 11, Box::new(redis((7, 2)))),
            (
                RdbMagic::Redis,
                12,
                Box::new(|name, version| name == "redis" && version >= (7, 4)),
            ),
            (
                RdbMagic::Valkey,
                80,
                Box::new(|name, version| name == "valkey" && version >= (9, 0)),
            ),
        ];
        for (magic, version, loads) in rows {
            for (name, server) in SERVERS {
                assert_eq!(
                    readable(magic, version, name, server).is_ok(),
                    loads(name, server),
                    "{magic}{version} into {name} {server:?}"
                );
            }
        }
    }

    #[test]
    fn a_server_newer_than_the_table_speaks_for_itself() {
        assert!(readable(RdbMagic::Redis, 99, "redis", (8, 12)).is_ok());
        assert!(readable(RdbMagic::Valkey, 99, "valkey", (10, 0)).is_ok());
        assert!(readable(RdbMagic::Redis, 12, "valkey", (10, 0)).is_ok());
        assert!(readable(RdbMagic::Valkey, 81, "valkey", (9, 1)).is_err());
    }

    #[test]
    fn the_refusal_names_both_and_what_would_do() {
        let said = |magic, version, server, at| {
            readable(magic, version, server, at)
                .unwrap_err()
                .to_string()
        };
        let old = said(RdbMagic::Redis, 10, "redis", (6, 2));
        assert_eq!(
            old,
            "the archive's payload is REDIS0010, and redis 6.2 cannot read it: start Redis 7.0 or later, or Valkey"
        );
        let other = said(RdbMagic::Redis, 12, "valkey", (9, 1));
        assert!(
            other.ends_with("REDIS0012, and valkey 9.1 cannot read it: start Redis 7.4 or later"),
            "{other}"
        );
        let valkey = said(RdbMagic::Valkey, 80, "redis", (8, 0));
        assert!(
            valkey.contains("VALKEY080") && valkey.ends_with("start Valkey 9.0 or later"),
            "{valkey}"
        );
    }
}
