//! Lists and deletions over gRPC: one message in, one out, with the five bytes before each and the status behind.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use http_body_util::{BodyExt, Full};
use prost::Message;

use super::BUCKET;
use super::json::Call;
use super::state::{State, words};

/// Objects in one page, fewer than anybody asks for: the service may always give fewer.
const PAGE_OBJECTS: usize = 5;
/// A list has about so many pages at most. With small ones for ever, whoever creates objects quicker than pages are
/// asked for would make a list endless.
const PAGES: usize = 8;

#[derive(Clone, PartialEq, Message)]
struct ListObjectsRequest {
    #[prost(string, tag = "1")]
    parent: String,
    #[prost(int32, tag = "2")]
    page_size: i32,
    #[prost(string, tag = "3")]
    page_token: String,
    #[prost(string, tag = "6")]
    prefix: String,
    #[prost(string, tag = "10")]
    lexicographic_start: String,
}

#[derive(Clone, PartialEq, Message)]
struct ListObjectsResponse {
    #[prost(message, repeated, tag = "1")]
    objects: Vec<Listed>,
    #[prost(string, tag = "3")]
    next_page_token: String,
}

/// `google.storage.v2.Object`, as far as anybody reads it.
#[derive(Clone, PartialEq, Message)]
struct Listed {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    bucket: String,
    #[prost(int64, tag = "3")]
    generation: i64,
    #[prost(int64, tag = "4")]
    metageneration: i64,
    #[prost(int64, tag = "6")]
    size: i64,
    #[prost(message, optional, tag = "14")]
    create_time: Option<Timestamp>,
}

#[derive(Clone, PartialEq, Message)]
struct Timestamp {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
struct DeleteObjectRequest {
    #[prost(string, tag = "1")]
    bucket: String,
    #[prost(string, tag = "2")]
    object: String,
    #[prost(int64, optional, tag = "5")]
    if_generation_match: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

/// Whether a request came over gRPC.
pub fn is(call: &Call) -> bool {
    call.path.starts_with("/google.storage.v2.")
}

/// One page of a list.
pub fn list(call: &Call, state: &State) -> Response {
    let Some(request) = message::<ListObjectsRequest>(call) else {
        return failure(400);
    };
    if !is_there(&request.parent) {
        return failure(404);
    }
    let first = request.lexicographic_start.max(request.prefix.clone());
    let mut names = state
        .objects
        .range(first..)
        .filter(|(name, _)| **name > request.page_token)
        .take_while(|(name, _)| name.starts_with(&request.prefix))
        .peekable();
    let size = usize::try_from(request.page_size)
        .unwrap_or(0)
        .min(PAGE_OBJECTS.max(state.objects.len() / PAGES));
    let mut response = ListObjectsResponse::default();
    while let Some((name, object)) = names.next() {
        response.objects.push(Listed {
            name: name.clone(),
            bucket: request.parent.clone(),
            generation: i64::try_from(object.generation).unwrap(),
            metageneration: 1,
            size: i64::try_from(object.bytes.len()).unwrap(),
            create_time: Some(Timestamp {
                seconds: i64::try_from(object.created.as_secs()).unwrap(),
                nanos: i32::try_from(object.created.subsec_nanos()).unwrap(),
            }),
        });
        if response.objects.len() == size && names.peek().is_some() {
            response.next_page_token = name.clone();
            break;
        }
    }
    success(&response)
}

/// Deletes an object.
pub fn delete(call: &Call, state: &mut State) -> Response {
    let Some(request) = message::<DeleteObjectRequest>(call) else {
        return failure(400);
    };
    if !is_there(&request.bucket) {
        return failure(404);
    }
    if state.forbid_deleting {
        return failure(403);
    }
    let Some(object) = state.objects.get(&request.object) else {
        return failure(404);
    };
    let generation = i64::try_from(object.generation).unwrap();
    if request
        .if_generation_match
        .is_some_and(|wanted| wanted != generation)
    {
        return failure(412);
    }
    state.objects.remove(&request.object);
    success(&Empty {})
}

fn is_there(bucket: &str) -> bool {
    bucket == format!("projects/_/buckets/{BUCKET}")
}

fn message<T: Message + Default>(call: &Call) -> Option<T> {
    let (head, message) = call.body.split_first_chunk::<5>()?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    if head[0] != 0 || message.len() != usize::try_from(length).ok()? {
        return None;
    }
    T::decode(message).ok()
}

fn success(message: &impl Message) -> Response {
    let message = message.encode_to_vec();
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend(message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(Bytes::from(framed)).with_trailers(std::future::ready(Some(Ok(trailers))));
    Response::builder()
        .header("content-type", "application/grpc")
        .body(Body::new(body))
        .unwrap()
}

/// The status alone, in the place of the headers.
pub fn failure(status: u16) -> Response {
    let code = match status {
        400 => 3,
        401 => 16,
        403 => 7,
        404 => 5,
        412 => 9,
        429 => 8,
        503 => 14,
        _ => 13,
    };
    Response::builder()
        .header("content-type", "application/grpc")
        .header("grpc-status", code)
        .header("grpc-message", words(status))
        .body(Body::empty())
        .unwrap()
}
