//! What Google Cloud Storage and its library say when something fails, in plain words that say what to change.
//!
//! An upload's session address works like a password, and the library's own texts may hold it: nothing with an
//! address in it is passed on.

use std::error::Error as _;
use std::time::Duration;

use google_cloud_gax::client_builder;
use google_cloud_gax::error::{CredentialsError, Error, rpc::Code};
use google_cloud_storage::error::{ReadError, WriteError};

use super::address::GcsAddress;
use crate::store::StoreErrorKind;

/// The longest that is repeated of what the service said, in characters.
const SAID_CHARACTERS_MAX: usize = 300;
/// Causes behind an error that are looked through.
const CAUSES_MAX: usize = 16;

/// Something failed: of what kind, and what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Problem {
    /// What kind of thing it is.
    pub(super) kind: StoreErrorKind,
    /// What came back, and what to do.
    pub(super) detail: String,
}

/// What was asked for: it decides which permission may be missing, and what is missing when it is "not found".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asked {
    /// To write an object.
    Create,
    /// To read an object.
    Read,
    /// To list objects.
    List,
    /// To delete an object.
    Delete,
}

impl Asked {
    const fn permission(self) -> &'static str {
        match self {
            Self::Create => "storage.objects.create",
            Self::Read => "storage.objects.get",
            Self::List => "storage.objects.list",
            Self::Delete => "storage.objects.delete",
        }
    }
}

impl Problem {
    /// An answer took too long.
    pub(super) fn slow(time_max: Duration) -> Self {
        Self::unavailable(format!(
            "no answer within {}s: the endpoint or the way to it is slow or cut",
            time_max.as_secs()
        ))
    }

    /// Something that may pass by itself.
    pub(super) const fn unavailable(detail: String) -> Self {
        Self {
            kind: StoreErrorKind::Unavailable,
            detail,
        }
    }

    /// Something that can never work.
    pub(super) const fn invalid(detail: String) -> Self {
        Self {
            kind: StoreErrorKind::Invalid,
            detail,
        }
    }

    /// Whether the same may work a moment later.
    pub(super) fn is_worth_another_attempt(&self) -> bool {
        self.kind == StoreErrorKind::Unavailable
    }
}

/// The clients cannot be made.
pub(super) fn unusable_endpoint(error: &client_builder::Error) -> Problem {
    Problem::invalid(format!(
        "the endpoint cannot be used: {}",
        root_cause(error)
    ))
}

/// No credentials were found, or they cannot be read.
pub(super) fn no_credentials(error: &dyn std::error::Error) -> Problem {
    credentials(root_cause(error), false)
}

/// There is no token for the credentials.
pub(super) fn no_token(error: &CredentialsError) -> Problem {
    credentials(said_by_credentials(error), error.is_transient())
}

/// A token takes too long.
pub(super) fn token_too_late(time_max: Duration) -> Problem {
    credentials(format!("none within {}s", time_max.as_secs()), true)
}

/// Explains why a request failed.
pub(super) fn explain(error: &Error, asked: Asked, address: &GcsAddress) -> Problem {
    // The library wraps some errors in less specific ones.
    if let Some(inner) = cause::<Error>(error) {
        return explain(inner, asked, address);
    }
    if let Some(error) = cause::<CredentialsError>(error) {
        return no_token(error);
    }
    if let Some(error) = cause::<ReadError>(error) {
        return explain_read(error);
    }
    if let Some(error) = cause::<WriteError>(error) {
        return Problem::unavailable(format!(
            "the upload went wrong: {}",
            without_addresses(&error.to_string())
        ));
    }
    match status(error) {
        Some(status) => explain_status(status, &said(error), asked, address),
        None => explain_connection(error),
    }
}

/// The status of an answer as HTTP spells it, whichever way it came.
pub(super) fn status(error: &Error) -> Option<u16> {
    if let Some(status) = error.http_status_code()
        && status != 200
    {
        return Some(status);
    }
    let code = error.status()?.code;
    Some(match code {
        Code::InvalidArgument => 400,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::Aborted | Code::AlreadyExists => 409,
        Code::FailedPrecondition => 412,
        Code::OutOfRange => 416,
        Code::ResourceExhausted => 429,
        Code::Unimplemented => 501,
        Code::Unavailable | Code::Cancelled => 503,
        Code::DeadlineExceeded => 504,
        _ => 500,
    })
}

fn explain_status(status: u16, said: &str, asked: Asked, address: &GcsAddress) -> Problem {
    let bucket = &address.bucket;
    let problem = |kind, detail: String| Problem {
        kind,
        detail: format!("{detail} (the service says {status}: {said})"),
    };
    let lower = said.to_ascii_lowercase();
    match status {
        401 if address.anonymous => problem(
            StoreErrorKind::Denied,
            format!(
                "the bucket {bucket} is not open to everybody: take anonymous=true out of the address and give \
                 credentials"
            ),
        ),
        401 => problem(
            StoreErrorKind::Denied,
            "the credentials are expired, revoked or not valid here: renew them (a key file, `gcloud auth \
             application-default login`, or the workload identity of the pod)"
                .to_owned(),
        ),
        403 if lower.contains("ratelimit") || lower.contains("rate limit") => problem(
            StoreErrorKind::Unavailable,
            "too many requests".to_owned(),
        ),
        403 if lower.contains("kms") => problem(
            StoreErrorKind::Denied,
            format!(
                "the encryption key cannot be used: give the service agent of the project of bucket {bucket} the role \
                 roles/cloudkms.cryptoKeyEncrypterDecrypter on it"
            ),
        ),
        403 => problem(
            StoreErrorKind::Denied,
            format!(
                "access denied: whoever we are needs the permission {} on the bucket {bucket}, see docs/operations.md",
                asked.permission()
            ),
        ),
        404 if asked == Asked::Read && !lower.contains("bucket does not exist") => {
            problem(StoreErrorKind::NotFound, "there is no such object".to_owned())
        }
        404 => problem(
            StoreErrorKind::NotFound,
            format!(
                "there is no bucket {bucket}: create it, or correct the address; Perennial makes no buckets"
            ),
        ),
        408 | 409 | 500 | 502..=599 => problem(
            StoreErrorKind::Unavailable,
            "the service cannot answer now".to_owned(),
        ),
        410 => problem(
            StoreErrorKind::Unavailable,
            "the upload's session has ended: it has to begin anew".to_owned(),
        ),
        429 => problem(
            StoreErrorKind::Unavailable,
            "too many requests, or too many at a time for this prefix".to_owned(),
        ),
        400 if lower.contains("crc32c") || lower.contains("checksum") => problem(
            StoreErrorKind::Unavailable,
            "the bytes arrived damaged and were refused".to_owned(),
        ),
        300..=399 => problem(
            StoreErrorKind::Invalid,
            "the endpoint sends us elsewhere: it is no Google Cloud Storage, correct endpoint=".to_owned(),
        ),
        _ => problem(
            StoreErrorKind::Invalid,
            "the request was refused; check the address, and that its endpoint is Google Cloud Storage"
                .to_owned(),
        ),
    }
}

fn explain_connection(error: &Error) -> Problem {
    let cause = root_cause(error);
    let lower = cause.to_ascii_lowercase();
    if lower.contains("certificate") {
        return Problem::invalid(format!(
            "the endpoint's certificate is not accepted: {cause}; check endpoint=, this machine's clock and its CA \
             certificates"
        ));
    }
    if lower.contains("failed to lookup")
        || lower.contains("dns")
        || lower.contains("name or service")
    {
        return Problem::unavailable(format!(
            "the endpoint's name cannot be resolved: {cause}; check endpoint= and the DNS of this machine"
        ));
    }
    if lower.contains("corrupt message") {
        return Problem::unavailable(format!(
            "the endpoint does not speak TLS: {cause}; check endpoint="
        ));
    }
    if error.is_timeout() {
        return Problem::unavailable(format!("no answer in time: {cause}"));
    }
    if error.is_connect() || lower.contains("refused") || lower.contains("unreachable") {
        return Problem::unavailable(format!(
            "the endpoint cannot be reached: {cause}; check endpoint= and the network"
        ));
    }
    Problem::unavailable(format!("the connection broke: {cause}"))
}

fn explain_read(error: &ReadError) -> Problem {
    let said = without_addresses(&error.to_string());
    match error {
        ReadError::MissingHeader(_)
        | ReadError::BadHeaderFormat(..)
        | ReadError::UnexpectedSuccessCode(_) => Problem::invalid(format!(
            "the endpoint does not answer like Google Cloud Storage: {said}; correct endpoint="
        )),
        _ => Problem::unavailable(format!("the bytes did not arrive whole: {said}")),
    }
}

fn credentials(cause: String, passes: bool) -> Problem {
    const WAYS: &str = "set GOOGLE_APPLICATION_CREDENTIALS to a key file, run `gcloud auth application-default \
                        login`, or run with a service account (GKE workload identity); for a public bucket write \
                        ?anonymous=true";
    if passes {
        Problem::unavailable(format!(
            "no token for the credentials at the moment: {cause}; if this machine has none: {WAYS}"
        ))
    } else {
        Problem {
            kind: StoreErrorKind::Denied,
            detail: format!("no usable credentials: {cause}; {WAYS}"),
        }
    }
}

/// The library's own words, which may be a whole answer of the token service, cut short.
fn said_by_credentials(error: &CredentialsError) -> String {
    let root = root_cause(error);
    let own = tidy(&without_addresses(&error.to_string()));
    match own.contains(&root) {
        true => own,
        false => tidy(&format!("{own}: {root}")),
    }
}

/// What the service itself says: the message of a JSON error, or the first words of whatever else it sent.
pub(super) fn said(error: &Error) -> String {
    if let Some(status) = error.status() {
        return tidy(&without_addresses(&status.message));
    }
    let payload = error.http_payload().map(|payload| payload.as_ref());
    let payload = payload.unwrap_or_default();
    let message = serde_json::from_slice::<serde_json::Value>(payload)
        .ok()
        .and_then(|json| Some(json.get("error")?.get("message")?.as_str()?.to_owned()));
    let message = message.unwrap_or_else(|| String::from_utf8_lossy(payload).into_owned());
    tidy(&without_addresses(&message))
}

/// Whether the service refuses a write because it would replace an object: the missing permission that it names
/// is the one to delete, or a retention policy keeps the object that is there.
pub(super) fn is_refused_to_replace(said: &str) -> bool {
    said.contains("storage.objects.delete") || said.contains("deleted or overwritten")
}

/// The last cause of an error, which is the plainest and holds no address of a session.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut root = error;
    for _ in 0..CAUSES_MAX {
        match root.source() {
            Some(source) => root = source,
            None => break,
        }
    }
    tidy(&without_addresses(&root.to_string()))
}

/// The first cause of type `T`.
pub(super) fn cause<T: std::error::Error + 'static>(error: &Error) -> Option<&T> {
    let mut source = error.source();
    for _ in 0..CAUSES_MAX {
        match source?.downcast_ref::<T>() {
            Some(found) => return Some(found),
            None => source = source?.source(),
        }
    }
    None
}

/// Cuts every URL down to its scheme and host.
fn without_addresses(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + "://".len());
        kept.push_str(before);
        let end = |part: &str, stops: &[char]| part.find(stops).unwrap_or(part.len());
        let stop = |character: char| character.is_whitespace() || "\"'<>()`,;".contains(character);
        let whole = after.find(stop).unwrap_or(after.len());
        let authority = end(&after[..whole], &['/', '?', '#']);
        let host = after[..authority].rsplit('@').next().unwrap_or_default();
        kept.push_str(host);
        if authority < whole {
            kept.push_str("/…");
        }
        rest = &after[whole..];
    }
    kept.push_str(rest);
    kept
}

/// One line, not too long.
fn tidy(text: &str) -> String {
    let words: Vec<&str> = text
        .split(|character: char| character.is_whitespace() || character.is_control())
        .filter(|word| !word.is_empty())
        .collect();
    let line = words.join(" ");
    if line.is_empty() {
        return "nothing more".to_owned();
    }
    match line.char_indices().nth(SAID_CHARACTERS_MAX) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use google_cloud_gax::error::rpc::Status;

    fn address() -> GcsAddress {
        GcsAddress::parse("bucket/p").unwrap()
    }

    fn http(status: u16, payload: &'static str) -> Error {
        Error::http(status, Default::default(), payload.into())
    }

    #[test]
    fn each_answer_says_what_to_change() {
        for (status, payload, kind, expected) in [
            (
                401,
                "Invalid Credentials",
                StoreErrorKind::Denied,
                "renew them",
            ),
            (
                403,
                "does not have access",
                StoreErrorKind::Denied,
                "storage.objects.create",
            ),
            (
                403,
                "userRateLimitExceeded",
                StoreErrorKind::Unavailable,
                "too many",
            ),
            (
                403,
                "Permission denied on Cloud KMS key",
                StoreErrorKind::Denied,
                "roles/cloudkms",
            ),
            (
                404,
                "The specified bucket does not exist.",
                StoreErrorKind::NotFound,
                "no bucket bucket",
            ),
            (
                400,
                "Provided CRC32C \"x\" doesn't match",
                StoreErrorKind::Unavailable,
                "damaged",
            ),
            (
                400,
                "Invalid argument.",
                StoreErrorKind::Invalid,
                "Invalid argument.",
            ),
            (307, "", StoreErrorKind::Invalid, "endpoint="),
            (429, "slow down", StoreErrorKind::Unavailable, "too many"),
            (
                503,
                "<html>\n<b>Backend  Error</b>",
                StoreErrorKind::Unavailable,
                "<b>Backend Error</b>",
            ),
        ] {
            let problem = explain(&http(status, payload), Asked::Create, &address());
            assert_eq!(problem.kind, kind, "{status} {payload}");
            assert!(problem.detail.contains(expected), "{}", problem.detail);
        }
        let mut open = address();
        open.anonymous = true;
        let problem = explain(&http(401, ""), Asked::Read, &open);
        assert!(
            problem.detail.contains("anonymous=true"),
            "{}",
            problem.detail
        );
        let missing = explain(&http(404, "No such object: b/p/x"), Asked::Read, &address());
        assert_eq!(missing.kind, StoreErrorKind::NotFound);
        assert!(missing.detail.contains("no such object"));
    }

    #[test]
    fn answers_over_grpc_mean_the_same() {
        let answer = |code| Error::service(Status::default().set_code(code).set_message("words"));
        for (code, expected) in [
            (Code::NotFound, 404),
            (Code::PermissionDenied, 403),
            (Code::ResourceExhausted, 429),
            (Code::Unavailable, 503),
            (Code::Internal, 500),
        ] {
            assert_eq!(status(&answer(code)), Some(expected));
        }
        let problem = explain(&answer(Code::PermissionDenied), Asked::List, &address());
        assert!(problem.detail.contains("storage.objects.list"));
        assert!(problem.detail.contains("words"));
        // A proxy that knows no gRPC.
        let problem = explain(&answer(Code::Unimplemented), Asked::List, &address());
        assert_eq!(problem.kind, StoreErrorKind::Invalid);
    }

    #[test]
    fn a_json_error_is_cut_down_to_its_message() {
        let payload = r#"{"error": {"code": 403, "message": "robot@x.iam does not have access.", "errors": []}}"#;
        let said = said(&http(403, payload));
        assert_eq!(said, "robot@x.iam does not have access.");
    }

    #[test]
    fn addresses_never_reach_a_message() {
        for (text, expected) in [
            (
                "error sending request for url (https://user:pw@host:1/upload?upload_id=secret): reset",
                "error sending request for url (https://host:1/…): reset",
            ),
            ("a://b c://d?e", "a://b c://d/…"),
            ("none", "none"),
            ("ends in ://", "ends in ://"),
        ] {
            assert_eq!(without_addresses(text), expected);
        }
        let io = std::io::Error::other("broken https://host/upload?upload_id=secret");
        let problem = explain(&Error::io(io), Asked::Create, &address());
        assert!(!problem.detail.contains("secret"), "{}", problem.detail);
        assert_eq!(problem.kind, StoreErrorKind::Unavailable);
    }

    #[test]
    fn credentials_that_are_missing_say_where_they_may_come_from() {
        let error = Error::authentication(CredentialsError::from_msg(false, "none found"));
        let problem = explain(&error, Asked::Read, &address());
        assert_eq!(problem.kind, StoreErrorKind::Denied);
        assert!(problem.detail.contains("GOOGLE_APPLICATION_CREDENTIALS"));
        let error = Error::authentication(CredentialsError::from_msg(true, "try later"));
        let problem = explain(&error, Asked::Read, &address());
        assert_eq!(problem.kind, StoreErrorKind::Unavailable);
    }

    #[test]
    fn what_is_said_stays_on_one_short_line() {
        assert_eq!(tidy(" a\r\n\tb "), "a b");
        assert_eq!(
            tidy(&"x".repeat(1000)).chars().count(),
            SAID_CHARACTERS_MAX + 1
        );
    }
}
