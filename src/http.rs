//! A small HTTP server for pages that monitors read. What the pages say is left to others; here are the bounds, so that
//! nobody who can reach the address can harm what goes on beside it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Connections that are served at once; others wait to be accepted.
pub const CONNECTIONS_MAX: usize = 64;
/// The largest head of a request, bytes.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;
/// How long a request's head may take.
pub const HEAD_TIME_MAX: Duration = Duration::from_secs(3);
/// How long a connection may take in all. It carries one request.
pub const CONNECTION_TIME_MAX: Duration = Duration::from_secs(10);
/// The wait after an error of accepting: no file descriptor is free, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// Whether all is well: 200, or 503.
    pub ok: bool,
    /// What kind of text it is.
    pub content_type: &'static str,
    /// The text.
    pub body: String,
}

/// What there is to see.
pub trait Pages: Send + Sync + 'static {
    /// The paths that there are.
    const PATHS: &'static [&'static str];

    /// The page at a path; `None` where there is none. Called between the steps of everything else: it must be quick
    /// and never wait.
    fn page(&self, path: &str) -> Option<Page>;
}

/// Serves pages for ever.
pub async fn serve<P: Pages>(listener: TcpListener, pages: Arc<P>) -> Infallible {
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let slot = Arc::clone(&free)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                tracing::debug!("--http: accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let pages = Arc::clone(&pages);
        tokio::spawn(async move {
            let _ = tokio::time::timeout(CONNECTION_TIME_MAX, answer(connection, pages)).await;
            drop(slot);
        });
    }
}

/// One request on one connection. Whoever sends something else, or goes away, is of no interest.
async fn answer<P: Pages>(connection: TcpStream, pages: Arc<P>) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let response = respond(&*pages, request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(connection), service);
    if let Err(error) = served.await {
        tracing::debug!("--http: {error}");
    }
}

fn respond<P: Pages>(pages: &P, method: &Method, path: &str) -> Response<Full<Bytes>> {
    let readable = *method == Method::GET || *method == Method::HEAD;
    let (status, page) = match pages.page(path) {
        Some(_) if !readable => (
            StatusCode::METHOD_NOT_ALLOWED,
            plain("only GET and HEAD\n".into()),
        ),
        Some(page) if page.ok => (StatusCode::OK, page),
        Some(page) => (StatusCode::SERVICE_UNAVAILABLE, page),
        None => (
            StatusCode::NOT_FOUND,
            plain(format!("not here; there is: {}\n", P::PATHS.join(", "))),
        ),
    };
    let mut response = Response::new(Full::from(page.body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

const fn plain(body: String) -> Page {
    Page {
        ok: false,
        content_type: "text/plain; charset=utf-8",
        body,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Two;

    impl Pages for Two {
        const PATHS: &'static [&'static str] = &["/well", "/ill"];

        fn page(&self, path: &str) -> Option<Page> {
            let page = |ok| Page {
                ok,
                content_type: "text/plain",
                body: "words\n".into(),
            };
            match path {
                "/well" => Some(page(true)),
                "/ill" => Some(page(false)),
                _ => None,
            }
        }
    }

    async fn started() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Arc::new(Two)));
        address
    }

    async fn sent(address: SocketAddr, request: &[u8]) -> String {
        let mut connection = TcpStream::connect(address).await.unwrap();
        // Who is answered before all was sent may find the connection closed.
        let _ = connection.write_all(request).await;
        let mut answer = Vec::new();
        let _ = connection.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn each_page_has_its_status_and_the_rest_is_told_what_there_is() {
        let address = started().await;
        let well = sent(address, b"GET /well HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(
            well.starts_with("HTTP/1.1 200 ") && well.ends_with("\r\n\r\nwords\n"),
            "{well}"
        );
        let query = sent(address, b"GET /well?a=b HTTP/1.0\r\n\r\n").await;
        assert!(query.contains(" 200 "), "{query}");
        let ill = sent(address, b"GET /ill HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(
            ill.starts_with("HTTP/1.1 503 ") && ill.ends_with("words\n"),
            "{ill}"
        );
        let head = sent(address, b"HEAD /well HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(
            head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"),
            "{head}"
        );
        let elsewhere = sent(address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(elsewhere.starts_with("HTTP/1.1 404 "), "{elsewhere}");
        assert!(elsewhere.ends_with("/well, /ill\n"), "{elsewhere}");
        let post = sent(
            address,
            b"POST /well HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nsomething",
        )
        .await;
        assert!(post.starts_with("HTTP/1.1 405 "), "{post}");
        assert!(post.to_lowercase().contains("allow: get, head"), "{post}");
    }

    #[tokio::test]
    async fn what_is_too_large_or_no_request_is_turned_away() {
        let address = started().await;
        let long = format!(
            "GET /well HTTP/1.1\r\nA: {}\r\n\r\n",
            "a".repeat(2 * HEAD_BYTES_MAX)
        );
        let answer = sent(address, long.as_bytes()).await;
        assert!(!answer.contains(" 200 "), "{answer}");
        let answer = sent(address, b"PING\r\n\r\n").await;
        assert!(!answer.contains(" 200 "), "{answer}");
        let well = sent(address, b"GET /well HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(well.contains(" 200 "), "{well}");
    }

    #[tokio::test]
    async fn who_is_slow_loses_the_connection_and_the_next_one_is_served() {
        let address = started().await;
        let mut slow = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut connection = TcpStream::connect(address).await.unwrap();
            connection.write_all(b"GET /we").await.unwrap();
            slow.push(connection);
        }
        // Waits until one of them is given up.
        let well = sent(address, b"GET /well HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(well.contains(" 200 "), "{well}");
        for mut connection in slow {
            let mut answer = Vec::new();
            let _ = connection.read_to_end(&mut answer).await;
            assert!(!String::from_utf8_lossy(&answer).contains(" 200 "));
        }
    }
}
