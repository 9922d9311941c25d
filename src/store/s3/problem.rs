//! What S3's answers, and the lack of one, mean in plain words. The first half takes the SDK's error apart, the
//! second, a pure function, knows what to say. No header, signature or key of ours comes into a text.

use std::error::Error;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::address::S3Address;
use crate::store::StoreErrorKind;

/// How much of a server's own message is repeated, in characters.
const MESSAGE_CHARACTERS_MAX: usize = 400;

/// What a request needs to be allowed, as policies of Amazon spell it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// Put an object or a part of one.
    Put,
    /// Read an object.
    Get,
    /// List names.
    List,
    /// Delete an object.
    Delete,
    /// Give an upload up.
    Abort,
    /// List uploads that were not completed.
    ListUploads,
}

impl Action {
    const fn permission(self) -> &'static str {
        match self {
            Self::Put => "s3:PutObject",
            Self::Get => "s3:GetObject",
            Self::List => "s3:ListBucket",
            Self::Delete => "s3:DeleteObject",
            Self::Abort => "s3:AbortMultipartUpload",
            Self::ListUploads => "s3:ListBucketMultipartUploads",
        }
    }
}

/// An answer that is none of the good ones, or what came instead of an answer.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Problem {
    /// The HTTP status, where there was an answer.
    pub(super) status: Option<u16>,
    /// S3's own word for it.
    pub(super) code: Option<String>,
    /// The server's message.
    message: Option<String>,
    /// The region that the answer names.
    region: Option<String>,
    /// What happened where there was no answer, or none that could be read.
    failure: Option<Failure>,
}

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Failure {
    /// It took too long.
    Slow,
    /// The connection could not be made or broke; with the causes.
    Connection(String),
    /// The request was never sent; with the causes.
    NotSent(String),
    /// Something answered, but not as S3 does; with the causes.
    Unreadable(String),
}

impl Problem {
    /// Takes an error of the SDK apart.
    pub(super) fn of<E>(error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let mut problem = Self::default();
        if let Some(response) = error.raw_response() {
            problem.status = Some(response.status().as_u16());
            problem.region = response
                .headers()
                .get("x-amz-bucket-region")
                .map(str::to_owned);
        }
        match error {
            SdkError::ServiceError(context) => {
                let meta = context.err().meta();
                problem.code = meta.code().map(str::to_owned);
                problem.message = meta.message().and_then(presentable);
                let is_known = problem.code.is_some();
                if !is_known && problem.status.is_some_and(|status| status < 300) {
                    problem.failure = Some(Failure::Unreadable(causes(context.err())));
                }
            }
            SdkError::TimeoutError(_) => problem.failure = Some(Failure::Slow),
            SdkError::DispatchFailure(failure) if failure.is_timeout() => {
                problem.failure = Some(Failure::Slow);
            }
            SdkError::DispatchFailure(failure) => {
                let text = failure
                    .as_connector_error()
                    .map_or_else(String::new, |error| causes(error));
                problem.failure = Some(if failure.is_io() {
                    Failure::Connection(text)
                } else {
                    Failure::NotSent(text)
                });
            }
            SdkError::ResponseError(_) => {
                problem.failure = Some(Failure::Unreadable(causes(error)));
            }
            _ => problem.failure = Some(Failure::NotSent(causes(error))),
        }
        problem
    }

    /// A body that broke off, or that is not what was promised.
    pub(super) fn of_body(error: &(dyn Error + 'static)) -> Self {
        Self {
            failure: Some(Failure::Connection(causes(error))),
            ..Self::default()
        }
    }

    /// It took longer than we wait.
    pub(super) fn too_slow() -> Self {
        Self {
            failure: Some(Failure::Slow),
            ..Self::default()
        }
    }

    /// Good, but without what must be in it.
    pub(super) fn unreadable() -> Self {
        Self {
            failure: Some(Failure::Unreadable(
                "a part of the answer is missing".to_owned(),
            )),
            ..Self::default()
        }
    }

    /// More bytes than S3 takes in one object.
    pub(super) fn too_large() -> Self {
        Self {
            status: Some(400),
            code: Some("EntityTooLarge".to_owned()),
            message: Some("more than 10,000 parts".to_owned()),
            ..Self::default()
        }
    }

    /// Whether S3 said one of these words.
    pub(super) fn is(&self, codes: &[&str]) -> bool {
        self.code
            .as_deref()
            .is_some_and(|code| codes.contains(&code))
    }

    /// Whether the condition of the request did not hold: the object is there.
    pub(super) fn is_present(&self) -> bool {
        self.status == Some(412) || self.is(&["PreconditionFailed"])
    }

    /// Whether another conditional request for the same name was under way.
    pub(super) fn is_conflict(&self) -> bool {
        self.is(&["ConditionalRequestConflict"])
            || (self.status == Some(409) && self.is(&["OperationAborted", "Conflict"]))
    }

    /// Whether the range lies behind the object's end.
    pub(super) fn is_past_the_end(&self) -> bool {
        self.status == Some(416) || self.is(&["InvalidRange"])
    }

    /// The kind of it, and a text that says what to do.
    pub(super) fn explain(&self, action: Action, address: &S3Address) -> (StoreErrorKind, String) {
        match &self.failure {
            Some(failure) => failure.explain(address),
            None => self.explain_answer(action, address),
        }
    }

    fn explain_answer(&self, action: Action, address: &S3Address) -> (StoreErrorKind, String) {
        if self.is_other_region() {
            return self.other_region(address);
        }
        if let Some(text) = self.who_we_are() {
            return (StoreErrorKind::Denied, self.with_message(text));
        }
        self.missing(action, address)
            .or_else(|| self.unusable(action))
            .or_else(|| self.passing())
            .unwrap_or_else(|| self.never(action, address))
    }

    /// What is not there.
    fn missing(&self, action: Action, address: &S3Address) -> Option<(StoreErrorKind, String)> {
        let no_object = "there is no such object";
        let (kind, text) = match self.code.as_deref() {
            Some("NoSuchBucket") => (
                StoreErrorKind::NotFound,
                format!(
                    "there is no bucket {}: create it, or correct the address",
                    address.bucket
                ),
            ),
            Some("NoSuchKey") => (StoreErrorKind::NotFound, no_object.to_owned()),
            None if self.status == Some(404) && matches!(action, Action::Get) => {
                (StoreErrorKind::NotFound, no_object.to_owned())
            }
            Some("NoSuchUpload") => (
                StoreErrorKind::Unavailable,
                "the upload is gone: a rule of the bucket or another process gave it up; it begins again"
                    .to_owned(),
            ),
            _ => return None,
        };
        Some((kind, text))
    }

    /// What somebody must change in the store, refusals by permissions aside.
    fn unusable(&self, action: Action) -> Option<(StoreErrorKind, String)> {
        let (kind, text) = match (self.code.as_deref().unwrap_or_default(), self.status) {
            ("InvalidObjectState", _) => (
                StoreErrorKind::Denied,
                "the object lies in an archive class of the store: restore it there first",
            ),
            ("NotImplemented", _) if matches!(action, Action::Put) => (
                StoreErrorKind::Invalid,
                "the store does not know what an archive needs, most likely conditional writes (If-None-Match): \
                 choose another one",
            ),
            (code, _) if code.starts_with("KMS.") => (
                StoreErrorKind::Denied,
                "the encryption key cannot be used: look at kms-key-id and at the key's policy",
            ),
            (
                "XMinioStorageFull"
                | "XMinioAdminBucketQuotaExceeded"
                | "QuotaExceeded"
                | "StorageFull"
                | "InsufficientStorage",
                _,
            )
            | (_, Some(507)) => (
                StoreErrorKind::Full,
                "no space is left: make room, it goes on by itself",
            ),
            _ => return None,
        };
        Some((kind, self.with_message(text)))
    }

    /// What passes by itself.
    fn passing(&self) -> Option<(StoreErrorKind, String)> {
        let code = self.code.as_deref().unwrap_or_default();
        let words = self.words();
        let text = match (code, self.status.unwrap_or_default()) {
            // A refusal, whatever its word.
            (_, 401 | 403) => return None,
            ("SlowDown" | "TooManyRequests" | "Throttling" | "RequestLimitExceeded", _)
            | (_, 429 | 503) => {
                format!("it asks us to slow down ({words}): it goes on by itself")
            }
            (
                "BadDigest"
                | "XAmzContentSHA256Mismatch"
                | "InvalidDigest"
                | "IncompleteBody"
                | "RequestTimeout",
                _,
            ) => format!("the bytes did not arrive whole ({words})"),
            // The words as well: an upload is completed with status 200 before it is known whether that went well.
            ("InternalError" | "ServiceUnavailable" | "ServiceFailure", _) | (_, 500..) => {
                format!("it cannot now ({words}): see the store's own status")
            }
            ("OperationAborted" | "ConditionalRequestConflict", _) | (_, 408 | 409 | 425) => {
                format!("it cannot now ({words})")
            }
            _ => return None,
        };
        Some((StoreErrorKind::Unavailable, text))
    }

    /// What the same request will meet again.
    fn never(&self, action: Action, address: &S3Address) -> (StoreErrorKind, String) {
        let is_refusal = self.is(&["AccessDenied", "AllAccessDisabled", "AccountProblem"])
            || matches!(self.status, Some(401 | 403));
        if is_refusal {
            return (StoreErrorKind::Denied, self.denied(action, address));
        }
        let text = match self.code {
            Some(_) => self.refused(address),
            None => not_s3(&self.words(), address),
        };
        (StoreErrorKind::Invalid, text)
    }

    /// What is wrong with our credentials or our clock, if that is it.
    fn who_we_are(&self) -> Option<&'static str> {
        Some(match self.code.as_deref()? {
            "InvalidAccessKeyId" | "InvalidAccessKey" | "NotSignedUp" => {
                "the store does not know the access key: check AWS_ACCESS_KEY_ID or the profile, and that they \
                 belong to this store"
            }
            "SignatureDoesNotMatch" => {
                "the secret key does not belong to the access key: check AWS_SECRET_ACCESS_KEY or the profile"
            }
            "ExpiredToken"
            | "ExpiredTokenException"
            | "TokenRefreshRequired"
            | "RequestExpired" => {
                "the credentials have expired: renew them (a role or a web identity renews them by itself)"
            }
            "InvalidToken" | "InvalidClientTokenId" => {
                "the session token is wrong: check AWS_SESSION_TOKEN, or remove it where the keys need none"
            }
            "RequestTimeTooSkewed" => {
                "the clock of this machine and the store's are too far apart: set the clock (NTP)"
            }
            _ => return None,
        })
    }

    fn is_other_region(&self) -> bool {
        let is_redirect = matches!(self.status, Some(301 | 307 | 308));
        let says_so = self.is(&[
            "PermanentRedirect",
            "TemporaryRedirect",
            "AuthorizationHeaderMalformed",
            "IllegalLocationConstraintException",
        ]);
        is_redirect || says_so
    }

    fn other_region(&self, address: &S3Address) -> (StoreErrorKind, String) {
        let ours = match &address.region {
            Some(region) => format!("not in {region}"),
            None => "not in the region that the environment names".to_owned(),
        };
        // "the region 'us-east-1' is wrong; expecting 'eu-west-1'"
        let said = || {
            let message = self.message.as_deref()?;
            let after = message.split("expecting '").nth(1)?;
            Some(after.split('\'').next()?.to_owned())
        };
        let text = match self.region.clone().or_else(said) {
            Some(region) => {
                format!("the bucket is in {region}, {ours}: write region={region} in the address")
            }
            None => format!(
                "the bucket is in another region, {ours} ({}): write region=… in the address",
                self.words()
            ),
        };
        (StoreErrorKind::Invalid, text)
    }

    fn denied(&self, action: Action, address: &S3Address) -> String {
        let permission = action.permission();
        let resource = match action {
            Action::List | Action::ListUploads => format!("arn:aws:s3:::{}", address.bucket),
            _ => format!("arn:aws:s3:::{}/{}*", address.bucket, address.prefix),
        };
        let who = if address.anonymous {
            "requests without credentials (anonymous=true)"
        } else {
            "these credentials"
        };
        self.with_message(&format!(
            "the store refuses {who}: allow {permission} on {resource}"
        ))
    }

    fn refused(&self, address: &S3Address) -> String {
        let message = self.message.as_deref().unwrap_or_default().to_lowercase();
        let is_checksum = ["checksum", "trailer", "aws-chunked", "x-amz-sdk"]
            .iter()
            .any(|word| message.contains(word));
        let advice = if is_checksum && address.endpoint.is_some() {
            "; try checksums=when-required in the address"
        } else {
            ""
        };
        format!("the store refuses the request ({}){advice}", self.words())
    }

    fn with_message(&self, text: &str) -> String {
        match (&self.message, &self.code) {
            (Some(_), _) | (None, Some(_)) => format!("{text} ({})", self.words()),
            (None, None) => text.to_owned(),
        }
    }

    /// The answer in the server's own words.
    fn words(&self) -> String {
        let status = self.status.unwrap_or_default();
        match (&self.code, &self.message) {
            (Some(code), Some(message)) => format!("{code}: {message}"),
            (Some(code), None) => code.clone(),
            (None, Some(message)) => format!("{status}: {message}"),
            (None, None) => format!("HTTP status {status}"),
        }
    }
}

impl Failure {
    fn explain(&self, address: &S3Address) -> (StoreErrorKind, String) {
        let whom = address.endpoint.as_deref().unwrap_or("Amazon S3");
        match self {
            Self::Slow => (
                StoreErrorKind::Unavailable,
                format!("no answer in time from {whom}: look at the network and at the store"),
            ),
            Self::Connection(text) | Self::NotSent(text) if is_certificate(text) => (
                StoreErrorKind::Invalid,
                format!(
                    "the certificate of {whom} is not trusted: {text}; SSL_CERT_FILE may name a file with the \
                     authority's certificate"
                ),
            ),
            Self::Connection(text) | Self::NotSent(text) if text.contains("dns error") => (
                StoreErrorKind::Unavailable,
                format!("the name of {whom} cannot be resolved: {text}; check the address and DNS"),
            ),
            Self::NotSent(text) if text.to_lowercase().contains("credential") => (
                StoreErrorKind::Denied,
                format!(
                    "no credentials: {text}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, give a profile or a \
                     role, or write anonymous=true"
                ),
            ),
            Self::Connection(text) => (
                StoreErrorKind::Unavailable,
                format!("{whom} cannot be reached: {text}"),
            ),
            Self::NotSent(text) => (
                StoreErrorKind::Unavailable,
                format!("the request could not be sent to {whom}: {text}"),
            ),
            Self::Unreadable(text) => (StoreErrorKind::Unavailable, not_s3(text, address)),
        }
    }
}

fn is_certificate(text: &str) -> bool {
    let text = text.to_lowercase();
    text.contains("certificate") || text.contains("unknownissuer")
}

fn not_s3(words: &str, address: &S3Address) -> String {
    match &address.endpoint {
        Some(endpoint) => {
            format!("{endpoint} does not answer as S3 does ({words}): check the endpoint")
        }
        None => format!("the answer is not S3's ({words}): is there a proxy in between?"),
    }
}

/// An error and its causes on one line, without what a cause only repeats.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        let is_new = !parts.iter().any(|part| part.contains(&text));
        if is_new && !text.is_empty() {
            parts.push(text);
        }
        next = error.source();
    }
    presentable(&parts.join(": ")).unwrap_or_else(|| "no reason is given".to_owned())
}

/// A text from outside on one line, cut; nothing where it may hold a signature.
fn presentable(text: &str) -> Option<String> {
    if text.contains("Signature=") || text.contains("Credential=") {
        return None;
    }
    let line: String = text
        .chars()
        .map(|character| match character {
            character if character.is_control() => ' ',
            character => character,
        })
        .take(MESSAGE_CHARACTERS_MAX)
        .collect();
    let line = line.trim().trim_end_matches('.').to_owned();
    (!line.is_empty()).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(status: u16, code: &str, message: &str) -> Problem {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Problem {
            status: Some(status),
            code: some(code),
            message: some(message),
            ..Problem::default()
        }
    }

    fn address(parameters: &str) -> S3Address {
        S3Address::parse(&format!("s3://bucket/a{parameters}")).unwrap()
    }

    /// What the end-to-end tests do not meet.
    #[test]
    fn answers_have_a_kind_and_an_advice() {
        use StoreErrorKind::{Denied, Full, Invalid, NotFound, Unavailable};
        let here = address("?endpoint=http://minio:9000");
        for (action, status, code, message, kind, words) in [
            (
                Action::Get,
                404,
                "NoSuchKey",
                "",
                NotFound,
                "no such object",
            ),
            (Action::Get, 404, "", "", NotFound, "no such object"),
            (Action::Put, 404, "", "", Invalid, "check the endpoint"),
            (
                Action::Put,
                404,
                "NoSuchUpload",
                "",
                Unavailable,
                "begins again",
            ),
            (Action::Put, 507, "XMinioStorageFull", "", Full, "make room"),
            (Action::Put, 400, "QuotaExceeded", "", Full, "make room"),
            (
                Action::Put,
                501,
                "NotImplemented",
                "A header",
                Invalid,
                "conditional writes",
            ),
            (
                Action::Put,
                400,
                "KMS.DisabledException",
                "",
                Denied,
                "kms-key-id",
            ),
            (
                Action::Get,
                403,
                "InvalidObjectState",
                "",
                Denied,
                "restore it there",
            ),
            (
                Action::Put,
                400,
                "BadDigest",
                "",
                Unavailable,
                "did not arrive whole",
            ),
            (
                Action::Put,
                400,
                "RequestTimeout",
                "",
                Unavailable,
                "did not arrive whole",
            ),
            (
                Action::Put,
                409,
                "OperationAborted",
                "",
                Unavailable,
                "cannot now",
            ),
            (Action::Put, 502, "", "", Unavailable, "HTTP status 502"),
            (
                Action::Put,
                200,
                "InternalError",
                "",
                Unavailable,
                "cannot now",
            ),
            (
                Action::Put,
                400,
                "InvalidRequest",
                "Unsupported x-amz-sdk-checksum-algorithm",
                Invalid,
                "try checksums=when-required",
            ),
            (
                Action::List,
                403,
                "",
                "",
                Denied,
                "allow s3:ListBucket on arn:aws:s3:::bucket",
            ),
            (
                Action::Abort,
                403,
                "AccessDenied",
                "",
                Denied,
                "s3:AbortMultipartUpload",
            ),
        ] {
            let (found, text) = problem(status, code, message).explain(action, &here);
            assert_eq!(found, kind, "{code}: {text}");
            assert!(text.contains(words), "{code}: {text}");
        }
    }

    #[test]
    fn no_answer_has_a_reason() {
        let here = address("");
        let failed = |failure| Problem {
            failure: Some(failure),
            ..Problem::default()
        };
        let text = "invalid peer certificate: UnknownIssuer".to_owned();
        let (kind, text) = failed(Failure::Connection(text)).explain(Action::Get, &here);
        assert_eq!(kind, StoreErrorKind::Invalid);
        assert!(text.contains("SSL_CERT_FILE"), "{text}");
        let (kind, text) = Problem::too_slow().explain(Action::Get, &here);
        assert_eq!(kind, StoreErrorKind::Unavailable);
        assert!(text.contains("no answer in time from Amazon S3"), "{text}");
    }

    #[test]
    fn texts_from_outside_are_cut_and_hold_no_signature() {
        assert_eq!(presentable("one\ntwo.").as_deref(), Some("one two"));
        assert_eq!(presentable("... Credential=AKIA/2026, Signature=ab"), None);
        let long = "x".repeat(5000);
        assert_eq!(
            presentable(&long).map(|text| text.len()),
            Some(MESSAGE_CHARACTERS_MAX)
        );
    }
}
