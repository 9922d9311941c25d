//! Objects over JSON: `/upload/storage/v1/b/…`, `/storage/v1/b/…`, and sessions.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State as Extracted};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use hyper::body::Frame;
use url::form_urlencoded;

use super::state::{NO_REPLACING, Object, Session, Shared, State, Wish, crc32c, words};
use super::{Answer, Asked, BUCKET, TOKEN, grpc};

/// A request as it is dealt with here.
pub struct Call {
    pub path: String,
    pub query: HashMap<String, String>,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Call {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn crc_header(&self) -> Option<u32> {
        let text = self.header("x-goog-hash")?.strip_prefix("crc32c=")?;
        Some(u32::from_be_bytes(base64_decoded(text).try_into().ok()?))
    }
}

/// Answers everything.
pub async fn answer(Extracted(shared): Extracted<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let query = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
    let call = Call {
        path: percent_decoded(parts.uri.path()),
        query: query.into_owned().collect(),
        headers: parts.headers,
        body: axum::body::to_bytes(body, usize::MAX)
            .await
            .unwrap_or_default(),
    };
    let Some(asked) = asked(&parts.method, &call) else {
        return failure(501, &call.path);
    };
    let plan = {
        let mut state = shared.lock();
        let plan = state.planned(asked);
        let authorized = call.header("authorization") == Some(&format!("Bearer {TOKEN}"));
        match state.want_token && !authorized && asked != Asked::Token {
            true => Some(Answer::Refuse(401)),
            false => plan,
        }
    };
    let refuse = |status| match grpc::is(&call) {
        true => grpc::failure(status),
        false => failure(status, words(status)),
    };
    let mut call = call.clone_for(plan);
    match plan {
        Some(Answer::Refuse(status)) => return refuse(status),
        Some(Answer::Never) => std::future::pending().await,
        Some(Answer::Cut) => return broken_off(Bytes::new()),
        Some(Answer::Late(time)) => tokio::time::sleep(time).await,
        Some(Answer::Damaged) if asked != Asked::Read => call.body = damaged(&call.body),
        _ => {}
    }
    let mut done = carry_out(asked, &call, &shared, plan);
    if plan == Some(Answer::Damaged) && asked == Asked::Read {
        let (parts, body) = done.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        done = Response::from_parts(parts, Body::from(damaged(&body)));
    }
    match plan {
        Some(Answer::DoneBut(status)) => refuse(status),
        Some(Answer::DoneButCut) => {
            let body = axum::body::to_bytes(done.into_body(), usize::MAX).await;
            let body = body.unwrap();
            broken_off(body.slice(..body.len() / 2))
        }
        _ => done,
    }
}

/// An answer that promises more than comes: some bytes, and the connection, or HTTP/2's stream, breaks.
fn broken_off(begin: Bytes) -> Response {
    Response::new(Body::new(BrokenOff(Some(begin))))
}

struct BrokenOff(Option<Bytes>);

impl axum::body::HttpBody for BrokenOff {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let broken = || std::io::Error::other("made to break");
        Poll::Ready(Some(match self.0.take() {
            Some(bytes) if !bytes.is_empty() => Ok(Frame::data(bytes)),
            _ => Err(broken()),
        }))
    }
}

impl Call {
    /// Of a part only half is taken, in whole quanta, where that is planned.
    fn clone_for(&self, plan: Option<Answer>) -> Self {
        const QUANTUM: usize = 256 * 1024;
        let kept = match plan {
            Some(Answer::Half) => self.body.len() / 2 / QUANTUM * QUANTUM,
            _ => self.body.len(),
        };
        Self {
            path: self.path.clone(),
            query: self.query.clone(),
            headers: self.headers.clone(),
            body: self.body.slice(..kept),
        }
    }
}

fn asked(method: &Method, call: &Call) -> Option<Asked> {
    let kind = call.query.get("uploadType").map(String::as_str);
    Some(match (method, call.path.as_str()) {
        (&Method::POST, "/google.storage.v2.Storage/ListObjects") => Asked::List,
        (&Method::POST, "/google.storage.v2.Storage/DeleteObject") => Asked::Delete,
        (&Method::POST, "/token") => Asked::Token,
        (&Method::POST, path) if path.starts_with("/upload/storage/v1/b/") => match kind? {
            "multipart" => Asked::Create,
            "resumable" => Asked::Begin,
            _ => return None,
        },
        (&Method::PUT, path) if path.starts_with("/session/") => Asked::Part,
        (&Method::GET, path) if path.starts_with("/storage/v1/b/") => Asked::Read,
        _ => return None,
    })
}

fn carry_out(asked: Asked, call: &Call, shared: &Shared, plan: Option<Answer>) -> Response {
    let mut state = shared.lock();
    match asked {
        Asked::List => grpc::list(call, &state),
        Asked::Delete => grpc::delete(call, &mut state),
        Asked::Create => create(call, &mut state),
        Asked::Begin => begin(call, &mut state, &shared.address),
        Asked::Part => part(call, &mut state, plan == Some(Answer::Half)),
        Asked::Read => read(call, &state),
        Asked::Token => json(
            StatusCode::OK,
            format!(r#"{{"access_token": "{TOKEN}", "expires_in": 3600, "token_type": "Bearer"}}"#),
        ),
    }
}

/// What a write asks for, from its address and its metadata.
fn wish(call: &Call, metadata: &[u8]) -> Option<Wish> {
    let bucket = call
        .path
        .strip_prefix("/upload/storage/v1/b/")?
        .strip_suffix("/o")?;
    if bucket != BUCKET {
        return None;
    }
    let metadata: serde_json::Value = serde_json::from_slice(metadata).unwrap_or_default();
    let field = |name: &str| metadata.get(name).and_then(|value| value.as_str());
    Some(Wish {
        name: call.query.get("name")?.clone(),
        only_if_absent: call
            .query
            .get("ifGenerationMatch")
            .is_some_and(|g| g == "0"),
        crc: field("crc32c")
            .map(|text| u32::from_be_bytes(base64_decoded(text).try_into().unwrap_or_default())),
        class: field("storageClass").unwrap_or_default().to_owned(),
        key: call.query.get("kmsKeyName").cloned().unwrap_or_default(),
    })
}

fn create(call: &Call, state: &mut State) -> Response {
    let Some([metadata, data]) = two_parts(call) else {
        return failure(400, "not two parts");
    };
    let Some(wish) = wish(call, &metadata) else {
        return failure(404, words(404));
    };
    match state.create(&wish, data) {
        Ok(_) => object_json(&wish.name, &state.objects[&wish.name]),
        Err(status) => refused(status),
    }
}

/// Why an object was not created.
fn refused(status: u16) -> Response {
    failure(
        status,
        if status == 403 {
            NO_REPLACING
        } else {
            words(status)
        },
    )
}

/// The first two parts of a multipart body.
fn two_parts(call: &Call) -> Option<[Bytes; 2]> {
    let kind = call.header("content-type")?;
    let boundary = kind.split("boundary=").nth(1)?.trim_matches('"');
    let mark = format!("--{boundary}");
    let mut parts = Vec::new();
    let mut at = find(&call.body, mark.as_bytes(), 0)? + mark.len();
    while parts.len() < 2 {
        let begin = find(&call.body, b"\r\n\r\n", at)? + 4;
        let end = find(&call.body, format!("\r\n{mark}").as_bytes(), begin)?;
        parts.push(call.body.slice(begin..end));
        at = end + 2 + mark.len();
    }
    parts.try_into().ok()
}

fn find(bytes: &[u8], wanted: &[u8], from: usize) -> Option<usize> {
    // The last byte first finds candidates quickly; payloads here are large.
    let first = *wanted.first()?;
    let mut at = from;
    loop {
        at += bytes.get(at..)?.iter().position(|byte| *byte == first)?;
        if bytes[at..].starts_with(wanted) {
            return Some(at);
        }
        at += 1;
    }
}

fn begin(call: &Call, state: &mut State, address: &str) -> Response {
    let Some(wish) = wish(call, &call.body) else {
        return failure(404, words(404));
    };
    let id = state.next();
    let session = Session {
        wish,
        bytes: Vec::new(),
        done: None,
    };
    state.sessions.insert(id, session);
    Response::builder()
        .header(header::LOCATION, format!("{address}/session/{id}"))
        .body(Body::empty())
        .unwrap()
}

/// `bytes A-B/*`, `bytes A-B/TOTAL`, `bytes */TOTAL` for the end, and `bytes */*` to ask how far it is.
fn part(call: &Call, state: &mut State, half: bool) -> Response {
    let id = call
        .path
        .trim_start_matches("/session/")
        .parse()
        .unwrap_or(0);
    let Some(mut session) = state.sessions.remove(&id) else {
        return failure(410, "There is no such session.");
    };
    let range = call.header("content-range").unwrap_or_default();
    let (span, total) = range
        .trim_start_matches("bytes ")
        .split_once('/')
        .unwrap_or(("*", "*"));
    if let Some(begin) = span
        .split('-')
        .next()
        .and_then(|begin| begin.parse::<usize>().ok())
    {
        if begin != session.bytes.len() {
            return failure(400, "It does not begin where the session stands.");
        }
        session.bytes.extend_from_slice(&call.body);
    }
    let whole = total.parse() == Ok(session.bytes.len()) && !half;
    if whole && session.done.is_none() {
        let bytes = Bytes::from(std::mem::take(&mut session.bytes));
        session.wish.crc = call.crc_header().or(session.wish.crc);
        match state.create(&session.wish, bytes) {
            Ok(generation) => session.done = Some(generation),
            Err(status) => return refused(status),
        }
    }
    let response = match session.done {
        Some(_) => object_json(&session.wish.name, &state.objects[&session.wish.name]),
        None => incomplete(session.bytes.len()),
    };
    state.sessions.insert(id, session);
    response
}

fn incomplete(kept: usize) -> Response {
    let mut response = Response::builder().status(308);
    if kept > 0 {
        response = response.header(header::RANGE, format!("bytes=0-{}", kept - 1));
    }
    response.body(Body::empty()).unwrap()
}

fn read(call: &Call, state: &State) -> Response {
    let path = call.path.trim_start_matches("/storage/v1/b/");
    let Some((bucket, name)) = path.split_once("/o/") else {
        return failure(501, path);
    };
    if bucket != BUCKET {
        return failure(404, words(404));
    }
    let Some(object) = state.objects.get(name) else {
        return failure(404, &format!("No such object: {bucket}/{name}"));
    };
    let size = object.bytes.len();
    let mut response = Response::builder()
        .header("x-goog-generation", object.generation)
        .header("x-goog-metageneration", 1)
        .header("x-goog-stored-content-length", size)
        .header(
            "x-goog-hash",
            format!("crc32c={}", base64(&object.crc.to_be_bytes())),
        );
    let Some(range) = call.header("range") else {
        return response.body(Body::from(object.bytes.clone())).unwrap();
    };
    let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    let end = to
        .parse::<usize>()
        .map_or(size, |last| size.min(last.saturating_add(1)));
    if from >= size {
        return failure(416, "The requested range cannot be satisfied.");
    }
    response = response.status(StatusCode::PARTIAL_CONTENT).header(
        header::CONTENT_RANGE,
        format!("bytes {from}-{}/{size}", end - 1),
    );
    response
        .body(Body::from(object.bytes.slice(from..end)))
        .unwrap()
}

fn object_json(name: &str, object: &Object) -> Response {
    let crc = base64(&object.crc.to_be_bytes());
    debug_assert_eq!(object.crc, crc32c(&object.bytes));
    json(
        StatusCode::OK,
        format!(
            r#"{{"name": "{name}", "bucket": "{BUCKET}", "generation": "{}", "metageneration": "1", "size": "{}", "crc32c": "{crc}"}}"#,
            object.generation,
            object.bytes.len(),
        ),
    )
}

fn failure(status: u16, words: &str) -> Response {
    json(
        StatusCode::from_u16(status).unwrap(),
        format!(r#"{{"error": {{"code": {status}, "message": "{words}"}}}}"#),
    )
}

fn json(status: StatusCode, text: String) -> Response {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(text))
        .unwrap()
}

fn damaged(bytes: &Bytes) -> Bytes {
    let mut bytes = bytes.to_vec();
    // In the middle: at the ends of a request there are words, not data.
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    bytes.into()
}

fn percent_decoded(path: &str) -> String {
    let mut decoded = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let digits = after
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let value = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match value.filter(|_| *byte == b'%') {
            Some(value) => {
                decoded.push(value);
                rest = &after[2..];
            }
            None => {
                decoded.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8(decoded).unwrap()
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk
            .iter()
            .chain([&0, &0])
            .take(3)
            .fold(0, |bits: u32, byte| bits << 8 | u32::from(*byte));
        for at in 0..4 {
            let index = bits >> (18 - 6 * at) & 63;
            let letter = char::from(ALPHABET[index as usize]);
            let _ = text.write_char(if at <= chunk.len() { letter } else { '=' });
        }
    }
    text
}

fn base64_decoded(text: &str) -> Vec<u8> {
    let values: Vec<u32> = text
        .bytes()
        .filter_map(|letter| ALPHABET.iter().position(|known| *known == letter))
        .map(|value| u32::try_from(value).unwrap())
        .collect();
    let mut bytes = Vec::new();
    for chunk in values.chunks(4) {
        let bits = (0..4).fold(0, |bits, at| {
            bits << 6 | chunk.get(at).copied().unwrap_or(0)
        });
        let three = bits.to_be_bytes();
        bytes.extend_from_slice(&three[1..chunk.len()]);
    }
    bytes
}

#[test]
fn base64_there_and_back() {
    assert_eq!(base64(b"perennial"), "cGVyZW5uaWFs");
    assert_eq!(base64(b"four"), "Zm91cg==");
    for length in 0..9_u8 {
        let bytes: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(77)).collect();
        assert_eq!(base64_decoded(&base64(&bytes)), bytes);
    }
}
