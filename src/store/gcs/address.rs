//! `gs://bucket/prefix?…`: what a person writes, checked before anything is sent anywhere.

use std::fmt;

use url::{Host, Url};

use crate::archive::layout::OBJECT_NAME_BYTES_MAX;

/// The longest object name that Google Cloud Storage takes, in bytes.
const STORED_NAME_BYTES_MAX: usize = 1024;
/// The longest prefix, in bytes: what is left when every name of an archive is to fit behind it.
const PREFIX_BYTES_MAX: usize = STORED_NAME_BYTES_MAX - OBJECT_NAME_BYTES_MAX - 1;
/// What a bucket's name may have, in bytes (dots make room for a domain).
const BUCKET_BYTES: std::ops::RangeInclusive<usize> = 3..=222;
/// Typing errors between a parameter and the one that is suggested instead.
const TYPING_ERRORS_MAX: usize = 3;

const ENDPOINT: &str = "endpoint";
const ANONYMOUS: &str = "anonymous";
const KMS_KEY_NAME: &str = "kms-key-name";
const SNAPSHOT_STORAGE_CLASS: &str = "snapshot-storage-class";
const PARAMETERS: [&str; 4] = [ENDPOINT, ANONYMOUS, KMS_KEY_NAME, SNAPSHOT_STORAGE_CLASS];
const STORAGE_CLASSES: [&str; 4] = ["STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"];

/// Where an archive lies in Google Cloud Storage, and how to get there. Holds no secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GcsAddress {
    /// The bucket's name.
    pub bucket: String,
    /// What every object's name begins with: empty, or without a slash at either end.
    pub prefix: String,
    /// Another endpoint than Google's own: `https://host`, perhaps with a port.
    pub endpoint: Option<String>,
    /// Ask without credentials.
    pub anonymous: bool,
    /// The Cloud KMS key that objects are encrypted with, instead of the bucket's default.
    pub kms_key_name: Option<String>,
    /// The storage class of snapshots, instead of the bucket's default.
    pub snapshot_storage_class: Option<String>,
}

impl GcsAddress {
    /// Reads what follows `gs://`.
    ///
    /// # Errors
    /// Says in words what is wrong and what to write. Never repeats a part that may hold a password.
    pub fn parse(rest: &str) -> Result<Self, String> {
        if rest.contains('#') {
            return Err("has a '#': write it as %23".to_owned());
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let mut address = Self {
            bucket: checked_bucket(bucket)?,
            prefix: checked_prefix(prefix)?,
            endpoint: None,
            anonymous: false,
            kms_key_name: None,
            snapshot_storage_class: None,
        };
        let mut seen = Vec::new();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            if seen.contains(&name) {
                return Err(format!("the parameter {} is there twice", shown(&name)));
            }
            address.set(&name, &value)?;
            seen.push(name);
        }
        if !address.anonymous
            && let Some(endpoint) = &address.endpoint
            && !may_carry_credentials(endpoint)
        {
            return Err(format!(
                "{ENDPOINT}={endpoint} would send credentials in clear text over the network: write https://, or \
                 {ANONYMOUS}=true where the store wants none"
            ));
        }
        Ok(address)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            ENDPOINT => self.endpoint = Some(checked_endpoint(value)?),
            ANONYMOUS => {
                self.anonymous = match value {
                    "true" => true,
                    "false" => false,
                    _ => return Err(format!("{ANONYMOUS} is true or false")),
                }
            }
            KMS_KEY_NAME => {
                if !is_kms_key_name(value) {
                    return Err(format!(
                        "{KMS_KEY_NAME} is written projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY"
                    ));
                }
                self.kms_key_name = Some(value.to_owned());
            }
            SNAPSHOT_STORAGE_CLASS => {
                let class = value.to_ascii_uppercase();
                if !STORAGE_CLASSES.contains(&class.as_str()) {
                    return Err(format!(
                        "{SNAPSHOT_STORAGE_CLASS} is one of {}",
                        STORAGE_CLASSES.join(", ")
                    ));
                }
                self.snapshot_storage_class = Some(class);
            }
            _ => return Err(unknown_parameter(name)),
        }
        Ok(())
    }

    /// The bucket as the interface of Google Cloud Storage spells it.
    pub fn bucket_resource(&self) -> String {
        format!("projects/_/buckets/{}", self.bucket)
    }

    /// The full name of what is called `name` inside the archive.
    pub fn object(&self, name: &str) -> String {
        match self.prefix.as_str() {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        }
    }
}

/// As it was written, so that it can be copied into a command.
impl fmt::Display for GcsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gs://{}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        let parameters = [
            (ENDPOINT, self.endpoint.as_deref()),
            (ANONYMOUS, self.anonymous.then_some("true")),
            (KMS_KEY_NAME, self.kms_key_name.as_deref()),
            (
                SNAPSHOT_STORAGE_CLASS,
                self.snapshot_storage_class.as_deref(),
            ),
        ];
        let given = parameters
            .iter()
            .filter_map(|(name, value)| Some((name, (*value)?)));
        for (at, (name, value)) in given.enumerate() {
            let before = if at == 0 { '?' } else { '&' };
            write!(f, "{before}{name}={value}")?;
        }
        Ok(())
    }
}

fn checked_bucket(bucket: &str) -> Result<String, String> {
    const RULE: &str = "write gs://BUCKET/PREFIX; a bucket's name has lower-case letters, digits, '-', '_' and '.', and \
                        begins and ends with a letter or a digit";
    let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if bucket.contains('@') {
        return Err(
            "an address of a bucket holds neither a user nor a password: credentials come from the environment"
                .to_owned(),
        );
    }
    if bucket.contains(':') {
        return Err(format!(
            "a bucket has no port: another endpoint is written ?{ENDPOINT}=https://host:port"
        ));
    }
    let ends_well =
        bucket.bytes().next().is_some_and(fine) && bucket.bytes().last().is_some_and(fine);
    let all_well = bucket
        .bytes()
        .all(|byte| fine(byte) || matches!(byte, b'-' | b'_' | b'.'));
    if !BUCKET_BYTES.contains(&bucket.len()) || !ends_well || !all_well {
        return Err(format!("no bucket's name: {RULE}"));
    }
    Ok(bucket.to_owned())
}

/// The prefix is taken as it is written, without percent-decoding: so it reads the same here, in the console of
/// Google Cloud and in a command that is copied.
fn checked_prefix(prefix: &str) -> Result<String, String> {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    if prefix.is_empty() {
        return Ok(String::new());
    }
    if prefix.len() > PREFIX_BYTES_MAX {
        return Err(format!(
            "the prefix is longer than {PREFIX_BYTES_MAX} bytes"
        ));
    }
    let fine = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._=+~,!@$:".contains(&byte))
    };
    if !prefix.split('/').all(fine) {
        return Err(
            "the prefix has parts of letters, digits and any of -._=+~,!@$: between single slashes"
                .to_owned(),
        );
    }
    Ok(prefix.to_owned())
}

fn checked_endpoint(value: &str) -> Result<String, String> {
    let wrong = || format!("{ENDPOINT} is written https://HOST or https://HOST:PORT");
    let url = Url::parse(value).map_err(|_| wrong())?;
    let plain = url.username().is_empty()
        && url.password().is_none()
        && url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none()
        && url.host().is_some();
    if !plain || !matches!(url.scheme(), "http" | "https") {
        return Err(wrong());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// Whether a token may be sent there: not in clear text, except to this machine.
fn may_carry_credentials(endpoint: &str) -> bool {
    let Ok(url) = Url::parse(endpoint) else {
        return false;
    };
    let local = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    url.scheme() == "https" || local
}

fn is_kms_key_name(value: &str) -> bool {
    let parts: Vec<&str> = value.split('/').collect();
    let words = ["projects", "locations", "keyRings", "cryptoKeys"];
    let fine = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
    };
    parts.len() == 2 * words.len()
        && parts
            .chunks(2)
            .zip(words)
            .all(|(pair, word)| pair[0] == word && fine(pair[1]))
}

fn unknown_parameter(name: &str) -> String {
    let suggested = PARAMETERS
        .iter()
        .map(|known| (typing_errors(&name.to_ascii_lowercase(), known), known))
        .filter(|(errors, _)| *errors <= TYPING_ERRORS_MAX)
        .min();
    match suggested {
        Some((_, known)) => format!("unknown parameter {}: is {known} meant?", shown(name)),
        None => format!(
            "unknown parameter {}: known are {}",
            shown(name),
            PARAMETERS.join(", ")
        ),
    }
}

/// A parameter's name, short enough for a message.
fn shown(name: &str) -> String {
    format!("{:?}", name.chars().take(40).collect::<String>())
}

/// How many letters have to be put in, taken out or replaced to make one word of the other.
fn typing_errors(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (at, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, other) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(rest: &str) -> GcsAddress {
        GcsAddress::parse(rest).unwrap_or_else(|error| panic!("{rest}: {error}"))
    }

    #[test]
    fn what_is_written_is_understood_and_can_be_copied() {
        for rest in [
            "bucket",
            "my-bucket.example.org/redis/cache-1",
            "bucket/env=prod/a@b?endpoint=http://127.0.0.1:4443",
            "bucket/p?endpoint=https://storage.example.org&anonymous=true",
            "bucket/p?kms-key-name=projects/p/locations/eu/keyRings/r/cryptoKeys/k&snapshot-storage-class=NEARLINE",
        ] {
            assert_eq!(parsed(rest).to_string(), format!("gs://{rest}"));
        }
        let address = parsed("bucket/a/b/?snapshot-storage-class=coldline&anonymous=false");
        assert_eq!(address.prefix, "a/b");
        assert_eq!(address.object("archive.json"), "a/b/archive.json");
        assert_eq!(address.bucket_resource(), "projects/_/buckets/bucket");
        assert_eq!(address.snapshot_storage_class.as_deref(), Some("COLDLINE"));
        assert_eq!(parsed("bucket/").object("archive.json"), "archive.json");
        let escaped = parsed("bucket?endpoint=https%3A%2F%2Fhost%3A8443%2F");
        assert_eq!(escaped.endpoint.as_deref(), Some("https://host:8443"));
    }

    #[test]
    fn what_cannot_work_says_what_to_write() {
        for (rest, expected) in [
            ("", "gs://BUCKET/PREFIX"),
            ("/prefix", "gs://BUCKET/PREFIX"),
            ("Bucket/p", "lower-case"),
            ("ab", "no bucket's name"),
            ("bucket-/p", "begins and ends"),
            ("user:secret@bucket/p", "neither a user nor a password"),
            ("bucket:443/p", "?endpoint=https://host:port"),
            ("bucket//p", "between single slashes"),
            ("bucket/a//b", "between single slashes"),
            ("bucket/../b", "between single slashes"),
            ("bucket/a b", "between single slashes"),
            ("bucket/a%20b", "between single slashes"),
            ("bucket/a#b", "%23"),
            ("bucket?endpiont=https://x", "is endpoint meant?"),
            ("bucket?Anonymous=true", "is anonymous meant?"),
            ("bucket?kms_key_name=x", "is kms-key-name meant?"),
            ("bucket?storage-class=x", "known are endpoint, anonymous"),
            ("bucket?anonymous=yes", "true or false"),
            ("bucket?anonymous=true&anonymous=false", "twice"),
            ("bucket?endpoint=host", "https://HOST"),
            ("bucket?endpoint=ftp://host", "https://HOST"),
            ("bucket?endpoint=https://u:secret@host", "https://HOST"),
            ("bucket?endpoint=https://host/path", "https://HOST"),
            ("bucket?endpoint=http://host", "clear text"),
            (
                "bucket?endpoint=http://10.0.0.1&anonymous=false",
                "clear text",
            ),
            ("bucket?kms-key-name=key", "projects/PROJECT"),
            ("bucket?snapshot-storage-class=GLACIER", "NEARLINE"),
        ] {
            let error = GcsAddress::parse(rest).unwrap_err();
            assert!(error.contains(expected), "{rest}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let long = format!("bucket/{}", "x".repeat(PREFIX_BYTES_MAX + 1));
        assert!(GcsAddress::parse(&long).unwrap_err().contains("longer"));
    }
}
