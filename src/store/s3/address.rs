//! What an `s3://` address says, checked. Nothing here connects anywhere.

use url::Url;

use crate::archive::layout::OBJECT_NAME_BYTES_MAX;
use crate::store::fs::percent_decoded;

/// The longest key that S3 takes, in bytes.
const KEY_BYTES_MAX: usize = 1024;

/// The longest prefix, in bytes: whatever follows it still fits into a key.
const PREFIX_BYTES_MAX: usize = KEY_BYTES_MAX - OBJECT_NAME_BYTES_MAX - 1;

/// The longest name of a bucket, in characters; old ones may be that long.
const BUCKET_CHARACTERS_MAX: usize = 255;

/// Up to how many changed letters a parameter's name is taken for a slip of the pen.
const SLIP_LETTERS_MAX: usize = 3;

/// Every parameter, with the values it takes.
const PARAMETERS: [(&str, &str); 9] = [
    ("region", "eu-west-1"),
    ("endpoint", "https://minio.example:9000"),
    ("force-path-style", "true or false"),
    ("checksums", "when-required or when-supported"),
    ("anonymous", "true or false"),
    ("sse", "AES256 or aws:kms"),
    (
        "kms-key-id",
        "the key's id or ARN, together with sse=aws:kms",
    ),
    ("snapshot-storage-class", "STANDARD_IA"),
    (
        "profile",
        "the name of a profile in the AWS configuration files",
    ),
];

/// When requests carry checksums beside the signature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Checksums {
    /// Only where S3 demands one: for servers that choke on the newer headers.
    WhenRequired,
    /// Wherever S3 knows one.
    WhenSupported,
}

/// Encryption that the store is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Encryption {
    /// As the bucket is set.
    BucketDefault,
    /// SSE-S3.
    Aes256,
    /// SSE-KMS, with the bucket's key or this one.
    Kms(Option<String>),
}

/// An archive's address on S3, as typed and checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct S3Address {
    /// The bucket.
    pub(super) bucket: String,
    /// What every key begins with: empty, or ending in a slash.
    pub(super) prefix: String,
    /// The region; otherwise the SDK's usual places are asked.
    pub(super) region: Option<String>,
    /// Another server than Amazon's.
    pub(super) endpoint: Option<String>,
    /// `endpoint/bucket/key` instead of `bucket.endpoint/key`.
    pub(super) path_style: bool,
    /// Checksums beside the signature.
    pub(super) checksums: Checksums,
    /// Requests without a signature.
    pub(super) anonymous: bool,
    /// Encryption of new objects.
    pub(super) encryption: Encryption,
    /// The storage class of new snapshots.
    pub(super) snapshot_storage_class: Option<String>,
    /// The profile in the AWS configuration files.
    pub(super) profile: Option<String>,
    /// The address as it is shown; it holds no secret.
    pub(super) shown: String,
}

impl S3Address {
    /// Reads an address.
    ///
    /// # Errors
    /// Says in words what is wrong with it and what to write, without repeating what may be a secret.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let url = Url::parse(url).map_err(|error| {
            format!("not an address ({error}): write s3://bucket/prefix?region=eu-west-1")
        })?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(
                "credentials do not belong into the address: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, \
                 a profile or a role"
                    .to_owned(),
            );
        }
        if url.port().is_some() {
            return Err(
                "a port does not belong behind the bucket: write s3://bucket/prefix?endpoint=http://host:port"
                    .to_owned(),
            );
        }
        if url.fragment().is_some() {
            return Err("write '#' as %23".to_owned());
        }
        let bucket = bucket(url.host_str().unwrap_or_default())?;
        let prefix = prefix(url.path())?;
        // As it was typed, so that it can be used again.
        let query = url.query().filter(|query| !query.is_empty());
        let shown = format!(
            "s3://{bucket}{}{}{}",
            url.path().trim_end_matches('/'),
            query.map_or("", |_| "?"),
            query.unwrap_or_default()
        );
        let mut address = Self {
            shown,
            bucket,
            prefix,
            region: None,
            endpoint: None,
            path_style: false,
            checksums: Checksums::WhenSupported,
            anonymous: false,
            encryption: Encryption::BucketDefault,
            snapshot_storage_class: None,
            profile: None,
        };
        address.take_parameters(&url)?;
        Ok(address)
    }

    fn take_parameters(&mut self, url: &Url) -> Result<(), String> {
        let mut seen: Vec<String> = Vec::new();
        let (mut path_style, mut checksums, mut kms_key) = (None, None, None);
        for (name, value) in url.query_pairs() {
            let example = PARAMETERS
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, example)| *example)
                .ok_or_else(|| unknown(&name))?;
            if seen.iter().any(|before| *before == name) {
                return Err(format!("the parameter {name} is given twice"));
            }
            seen.push(name.to_string());
            let wrong = || format!("{name}={value} is not understood: write {example}");
            let value = value.as_ref();
            if value.is_empty() || value.chars().any(char::is_control) {
                return Err(wrong());
            }
            match name.as_ref() {
                "region" => self.region = Some(value.to_owned()),
                "endpoint" => self.endpoint = Some(endpoint(value)?),
                "force-path-style" => path_style = Some(yes_or_no(value).ok_or_else(wrong)?),
                "checksums" => {
                    checksums = Some(match value {
                        "when-required" => Checksums::WhenRequired,
                        "when-supported" => Checksums::WhenSupported,
                        _ => return Err(wrong()),
                    });
                }
                "anonymous" => self.anonymous = yes_or_no(value).ok_or_else(wrong)?,
                "sse" => {
                    self.encryption = match value {
                        "AES256" => Encryption::Aes256,
                        "aws:kms" => Encryption::Kms(None),
                        _ => return Err(wrong()),
                    };
                }
                "kms-key-id" => kms_key = Some(value.to_owned()),
                "snapshot-storage-class" => {
                    self.snapshot_storage_class = Some(storage_class(value)?);
                }
                // The last one of the table.
                _ => self.profile = Some(value.to_owned()),
            }
        }
        if let Some(key) = kms_key {
            if !matches!(self.encryption, Encryption::Kms(_)) {
                return Err("kms-key-id needs sse=aws:kms beside it".to_owned());
            }
            self.encryption = Encryption::Kms(Some(key));
        }
        if self.anonymous && self.profile.is_some() {
            return Err("anonymous=true and profile exclude each other".to_owned());
        }
        // Other servers seldom have a name for each bucket, and some choke on the newer checksums.
        self.path_style = path_style.unwrap_or(self.endpoint.is_some());
        self.checksums = checksums.unwrap_or(if self.endpoint.is_some() {
            Checksums::WhenRequired
        } else {
            Checksums::WhenSupported
        });
        Ok(())
    }

    /// The key of an object, or of a prefix of names.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

fn yes_or_no(value: &str) -> Option<bool> {
    match value {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

fn bucket(host: &str) -> Result<String, String> {
    if host.is_empty() {
        return Err("the bucket is missing: write s3://bucket/prefix".to_owned());
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if host.len() > BUCKET_CHARACTERS_MAX || !host.bytes().all(fits) {
        return Err(format!(
            "{host:?} is not a bucket's name: letters, digits, '.', '-' and '_' (for an access point give its alias)"
        ));
    }
    Ok(host.to_owned())
}

/// The prefix of all keys from the path of the address.
fn prefix(path: &str) -> Result<String, String> {
    let decoded = percent_decoded(path).ok_or("a '%' is not followed by two digits: write %25")?;
    let trimmed = decoded.trim_matches('/');
    if trimmed.is_empty() {
        return Ok(String::new());
    }
    if trimmed
        .split('/')
        .any(|part| part.is_empty() || part == "." || part == "..")
        || trimmed.chars().any(char::is_control)
    {
        return Err(
            "the prefix has an empty part, a part of dots or a control character".to_owned(),
        );
    }
    if trimmed.len() > PREFIX_BYTES_MAX {
        return Err(format!(
            "the prefix is longer than {PREFIX_BYTES_MAX} bytes"
        ));
    }
    Ok(format!("{trimmed}/"))
}

fn endpoint(value: &str) -> Result<String, String> {
    let example = "write endpoint=https://host:port";
    let url = Url::parse(value)
        .map_err(|error| format!("the endpoint is no address ({error}): {example}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(format!(
            "the endpoint begins neither with http:// nor with https://: {example}"
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!(
            "credentials do not belong into the endpoint: {example}"
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("the endpoint takes no parameters: {example}"));
    }
    Ok(value.trim_end_matches('/').to_owned())
}

fn storage_class(value: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    if !value.bytes().all(fits) {
        return Err(format!(
            "snapshot-storage-class={value} is not understood: write STANDARD_IA or another class in capitals"
        ));
    }
    if matches!(value, "GLACIER" | "DEEP_ARCHIVE") {
        return Err(format!(
            "snapshot-storage-class={value} cannot be read at once: a restore would wait for hours; GLACIER_IR can"
        ));
    }
    Ok(value.to_owned())
}

fn unknown(name: &str) -> String {
    let nearest = PARAMETERS
        .iter()
        .map(|(known, _)| (letters_changed(name, known), *known))
        .min()
        .filter(|(letters, _)| *letters <= SLIP_LETTERS_MAX);
    // A parameter that we do not know may hold a secret: its value is not repeated.
    match nearest {
        Some((_, known)) => format!("unknown parameter {name:?}: did you mean {known}?"),
        None => {
            let known: Vec<&str> = PARAMETERS.iter().map(|(known, _)| *known).collect();
            format!("unknown parameter {name:?}: known are {}", known.join(", "))
        }
    }
}

/// How many letters must be put in, taken out or replaced to make one word of the other.
fn letters_changed(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, against) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *against);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_and_the_most() {
        let least = S3Address::parse("s3://backups").unwrap();
        assert_eq!(
            (least.bucket.as_str(), least.prefix.as_str()),
            ("backups", "")
        );
        assert_eq!(least.key("archive.json"), "archive.json");
        assert_eq!(least.checksums, Checksums::WhenSupported);
        assert!(!least.path_style && !least.anonymous);
        assert_eq!(least.shown, "s3://backups");

        let text = "s3://my.bucket/redis/orders%20eu/?region=eu-west-1&endpoint=http://127.0.0.1:9000/\
                    &force-path-style=false&checksums=when-supported&anonymous=false&sse=aws:kms&kms-key-id=arn:aws:kms:1\
                    &snapshot-storage-class=STANDARD_IA&profile=backup";
        let most = S3Address::parse(text).unwrap();
        assert_eq!(most.prefix, "redis/orders eu/");
        assert_eq!(most.key("a/b"), "redis/orders eu/a/b");
        assert_eq!(most.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
        assert!(!most.path_style);
        assert_eq!(most.checksums, Checksums::WhenSupported);
        assert_eq!(
            most.encryption,
            Encryption::Kms(Some("arn:aws:kms:1".into()))
        );
        assert_eq!(most.snapshot_storage_class.as_deref(), Some("STANDARD_IA"));
        assert_eq!(most.profile.as_deref(), Some("backup"));
        // What is shown can be used again.
        let again = S3Address::parse(&most.shown).unwrap();
        assert_eq!(again, most);
    }

    #[test]
    fn another_server_gets_path_style_and_no_newer_checksums() {
        let minio = S3Address::parse("s3://b/p?endpoint=https://minio:9000").unwrap();
        assert!(minio.path_style);
        assert_eq!(minio.checksums, Checksums::WhenRequired);
    }

    #[test]
    fn what_is_wrong_says_what_to_write() {
        for (url, expected) in [
            ("s3://", "the bucket is missing"),
            ("s3:///prefix", "the bucket is missing"),
            ("s3://a:secret@bucket/p", "do not belong into the address"),
            ("s3://bucket:9000/p", "endpoint=http://host:port"),
            ("s3://bu%20cket/p", "not a bucket's name"),
            ("s3://bucket/a//b", "empty part"),
            ("s3://bucket/a%00b", "control character"),
            ("s3://bucket/100%", "%25"),
            ("s3://bucket/p#x", "%23"),
            ("s3://bucket/p?regoin=x", "did you mean region?"),
            (
                "s3://bucket/p?path-style=true",
                "known are region, endpoint",
            ),
            (
                "s3://bucket/p?force_path_style=true",
                "did you mean force-path-style?",
            ),
            ("s3://bucket/p?force-path-style=yes", "write true or false"),
            ("s3://bucket/p?secret-key=hidden", "unknown parameter"),
            ("s3://bucket/p?region=", "write eu-west-1"),
            ("s3://bucket/p?region=a&region=b", "given twice"),
            (
                "s3://bucket/p?checksums=never",
                "when-required or when-supported",
            ),
            ("s3://bucket/p?endpoint=minio:9000", "neither with http://"),
            (
                "s3://bucket/p?endpoint=http://u:secret@h",
                "into the endpoint",
            ),
            (
                "s3://bucket/p?endpoint=http://h/?x=hidden",
                "takes no parameters",
            ),
            ("s3://bucket/p?sse=aes", "AES256 or aws:kms"),
            ("s3://bucket/p?kms-key-id=k", "needs sse=aws:kms"),
            (
                "s3://bucket/p?snapshot-storage-class=DEEP_ARCHIVE",
                "GLACIER_IR",
            ),
            (
                "s3://bucket/p?snapshot-storage-class=standard",
                "in capitals",
            ),
            (
                "s3://bucket/p?anonymous=true&profile=x",
                "exclude each other",
            ),
        ] {
            let error = S3Address::parse(url).unwrap_err();
            assert!(error.contains(expected), "{url}: {error}");
            assert!(
                !error.contains("secret@") && !error.contains("hidden"),
                "{url}: {error}"
            );
        }
        let long = format!("s3://bucket/{}", "x".repeat(PREFIX_BYTES_MAX + 1));
        assert!(S3Address::parse(&long).unwrap_err().contains("longer than"));
    }

    #[test]
    fn letters_are_counted() {
        for (one, other, letters) in [
            ("", "abc", 3),
            ("regoin", "region", 2),
            ("a", "a", 0),
            ("ab", "ba", 2),
        ] {
            assert_eq!(letters_changed(one, other), letters, "{one} {other}");
        }
    }
}
