//! S3 servers: `s3s` on a folder in the test's own process, whose answers a test can change, and `moto` as a child.
//!
//! `moto` decides races by itself, so it is evidence for conditional creates. `s3s-fs` does not (it looks, then
//! writes): requests that carry a condition go through it one at a time, and it proves only how we handle the answers.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use hyper::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use perennial::store::s3::S3Store;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, S3Result, s3_error};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::process::Process;
use super::random::Random;
use super::servers::skip;
use super::{Archive, DEADLINE, Port, until};

/// The bucket that every server has. A short name, because `s3s-fs` packs bucket, key and upload into the name of one
/// file; those of snapshots would be too long otherwise, and it answers that it broke.
pub const BUCKET: &str = "tests";
/// May do everything.
pub const WRITER: &str = "AKIAWRITER";
/// May not delete, nor give uploads up.
pub const KEEPER: &str = "AKIAKEEPER";
/// May only read and list.
pub const READER: &str = "AKIAREADER";
/// Of all three.
pub const SECRET: &str = "a-secret-that-no-message-shows";

/// The largest part that is sent.
const PART_BYTES_MAX: usize = 64 * 1024 * 1024;

/// An S3 server of the test's own, gone when dropped.
pub struct S3Server {
    port: Port,
    kind: ServerKind,
}

enum ServerKind {
    InProcess {
        folder: TempDir,
        control: Control,
        running: Option<Running>,
    },
    Moto {
        _process: Process,
        _folder: TempDir,
    },
}

struct Running {
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

/// What the server in this process is told and tells.
#[derive(Clone, Default)]
pub struct Control {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    canned: Option<(Which, Canned)>,
    troubles: Option<(When, Trouble)>,
    met: usize,
    ignores_conditions_below: Option<PathBuf>,
    requests: Vec<String>,
    headers: Vec<(String, HeaderMap)>,
}

/// Which requests are answered otherwise.
enum Which {
    /// Every so many.
    Every(u64),
    /// Those whose `METHOD /path?query` holds this.
    With(&'static str),
}

/// Which requests meet trouble.
enum When {
    /// The one of this number, counted from 1 over all that the server ever got.
    At(usize),
    /// So many in a thousand, as the seed decides.
    PerMille(u64, Random),
}

/// What goes wrong with a request, below or beside what S3 itself says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// Not done, and this status.
    Status(u16),
    /// Not done: the connection breaks before anything is read of the body.
    Cut,
    /// Not done: the connection breaks in the middle of the body.
    CutWithin,
    /// Done, and then this status.
    DoneBut(u16),
    /// Done, and of the answer comes half, or nothing where it has no body.
    DoneButCut,
    /// Done later.
    Late(Duration),
}

/// An answer given instead of the server's own.
#[derive(Clone)]
pub struct Canned {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

impl Canned {
    /// An error as S3 spells it.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>\
                 <RequestId>4442587FB7D0A2F9</RequestId><HostId>host</HostId></Error>"
            ),
        }
    }

    /// With a header.
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    fn response(&self) -> Response<Body> {
        let mut response = Response::builder()
            .status(StatusCode::from_u16(self.status).unwrap())
            .header("content-type", "application/xml");
        for (name, value) in &self.headers {
            response = response.header(*name, value);
        }
        response.body(Body::from(self.body.clone())).unwrap()
    }
}

impl Control {
    /// Every request, or every `n`-th, is answered like this.
    pub fn answer_every(&self, n: u64, canned: Canned) {
        self.state.lock().unwrap().canned = Some((Which::Every(n), canned));
    }

    /// Requests whose `METHOD /path?query` holds `text` are answered like this.
    pub fn answer_those_with(&self, text: &'static str, canned: Canned) {
        self.state.lock().unwrap().canned = Some((Which::With(text), canned));
    }

    /// The server's own answers again.
    pub fn answer_as_usual(&self) {
        self.state.lock().unwrap().canned = None;
    }

    /// The request of this number, counted from 1 over all, meets trouble.
    pub fn trouble_at(&self, number: usize, trouble: Trouble) {
        self.state.lock().unwrap().troubles = Some((When::At(number), trouble));
    }

    /// So many requests in a thousand meet trouble, as the seed decides.
    pub fn trouble_at_random(&self, per_mille: u64, seed: u64, trouble: Trouble) {
        let when = When::PerMille(per_mille, Random::fixed(seed));
        self.state.lock().unwrap().troubles = Some((when, trouble));
    }

    /// No request meets trouble any more.
    pub fn trouble_no_more(&self) {
        self.state.lock().unwrap().troubles = None;
    }

    /// Forgets what was asked so far: there are many requests in an hour.
    pub fn forget_requests(&self) {
        let mut state = self.state.lock().unwrap();
        state.requests.clear();
        state.headers.clear();
    }

    /// How many requests have met trouble.
    pub fn troubles_met(&self) -> usize {
        self.state.lock().unwrap().met
    }

    /// `METHOD /path?query` of every request so far.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    /// The trouble that the request just noted is in.
    fn trouble(&self) -> Option<Trouble> {
        let mut state = self.state.lock().unwrap();
        let number = state.requests.len();
        let (when, trouble) = state.troubles.as_mut()?;
        let is_meant = match when {
            When::At(at) => *at == number,
            When::PerMille(per_mille, random) => random.below(1000) < *per_mille,
        };
        let trouble = *trouble;
        if is_meant {
            state.met += 1;
        }
        is_meant.then_some(trouble)
    }

    /// Every request so far with its headers, and what sort of request it was: [`sort_of`].
    pub fn headers(&self) -> Vec<(String, HeaderMap)> {
        self.state.lock().unwrap().headers.clone()
    }

    /// How many requests there were of each sort: what S3 bills.
    pub fn sorts(&self) -> BTreeMap<String, usize> {
        let mut counted = BTreeMap::new();
        for (sort, _) in self.headers() {
            *counted.entry(sort).or_insert(0) += 1;
        }
        counted
    }

    fn meet(&self, request: &Request<hyper::body::Incoming>) -> Option<Response<Body>> {
        let mut state = self.state.lock().unwrap();
        let line = format!("{} {}", request.method(), request.uri());
        state.requests.push(line.clone());
        state
            .headers
            .push((sort_of(&line), request.headers().clone()));
        if let Some(root) = &state.ignores_conditions_below
            && request.headers().contains_key(IF_NONE_MATCH)
        {
            // The signature covers the header: what it speaks of goes instead.
            let _ = std::fs::remove_file(root.join(request.uri().path().trim_start_matches('/')));
        }
        let number = state.requests.len() as u64;
        let (which, canned) = state.canned.as_ref()?;
        let is_meant = match which {
            Which::Every(n) => number.is_multiple_of(*n),
            Which::With(text) => line.contains(text),
        };
        is_meant.then(|| canned.response())
    }
}

/// The action of a request, by its name in Amazon's API, as far as the line `METHOD /path?query` tells.
fn sort_of(line: &str) -> String {
    let is = |text: &str| line.contains(text);
    let sort = match line.split(' ').next().unwrap() {
        "GET" if is("list-type=2") => "ListObjectsV2",
        "GET" if is("?uploads") => "ListMultipartUploads",
        "GET" => "GetObject",
        "HEAD" => "HeadObject",
        "PUT" if is("partNumber=") => "UploadPart",
        "PUT" => "PutObject",
        "POST" if is("?uploads") => "CreateMultipartUpload",
        "POST" if is("uploadId=") => "CompleteMultipartUpload",
        "DELETE" if is("uploadId=") => "AbortMultipartUpload",
        "DELETE" => "DeleteObject",
        _ => line,
    };
    sort.to_owned()
}

impl S3Server {
    /// `s3s` on a folder, in this process.
    pub fn in_process() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let mut server = Self {
            port: Port::reserve(),
            kind: ServerKind::InProcess {
                folder,
                control: Control::default(),
                running: None,
            },
        };
        server.start_again();
        server
    }

    /// `moto`, where this machine has it: said and counted; in CI its lack is a failure.
    pub fn moto() -> Option<Self> {
        let Some(program) = moto_program() else {
            skip("no moto on this machine: run scripts/servers.sh or set PERENNIAL_MOTO");
            return None;
        };
        let port = Port::reserve();
        let folder = tempfile::tempdir().unwrap();
        let arguments = ["-H", "127.0.0.1", "-p", &port.number.to_string()].map(str::to_owned);
        let log = folder.path().join("moto.log");
        let mut process = Process::start("moto", &program, &arguments, &[], &log);
        until("moto has made the bucket", DEADLINE, || {
            assert!(process.exited().is_none(), "moto ended: {}", process.log());
            make_bucket(&port.address())
        });
        Some(Self {
            port,
            kind: ServerKind::Moto {
                _process: process,
                _folder: folder,
            },
        })
    }

    /// `moto` that looks at permissions: a user for each policy, which gets its environment. Conditions in policies
    /// are not known to it.
    pub fn moto_with_policies(policies: &[&str]) -> Option<(Self, Vec<Variables>)> {
        let server = Self::moto()?;
        let address = server.port.address();
        let iam = |parameters: &[(&str, &str)]| {
            let body: String = url::form_urlencoded::Serializer::new(String::new())
                .append_pair("Version", "2010-05-08")
                .extend_pairs(parameters)
                .finish();
            // It finds the service by the scope of a signature that nobody checks yet.
            let scope = "Authorization: AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/iam/aws4_request, \
                         SignedHeaders=host, Signature=x\r\nContent-Type: application/x-www-form-urlencoded\r\n";
            let answer = http(&address, "POST /", scope, &body).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            answer
        };
        let mut users = Vec::new();
        for (number, policy) in policies.iter().enumerate() {
            let name = format!("user-{number}");
            iam(&[("Action", "CreateUser"), ("UserName", &name)]);
            iam(&[
                ("Action", "PutUserPolicy"),
                ("UserName", &name),
                ("PolicyName", "policy"),
                ("PolicyDocument", policy),
            ]);
            let answer = iam(&[("Action", "CreateAccessKey"), ("UserName", &name)]);
            let field = |name: &str| {
                let (_, rest) = answer.split_once(&format!("<{name}>")).unwrap();
                rest.split('<').next().unwrap().to_owned()
            };
            users.push(environment(
                &field("AccessKeyId"),
                &field("SecretAccessKey"),
            ));
        }
        // From here on every request is checked.
        let plain = "Content-Type: text/plain\r\n";
        let answer = http(&address, "POST /moto-api/reset-auth", plain, "0").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Some((server, users))
    }

    /// What `HEAD` says of an object, headers in lower case; `moto` wants a signature and does not check it.
    pub fn head(&self, key: &str) -> String {
        let line = format!("HEAD /{BUCKET}/{key}");
        let signed = "Authorization: AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, \
                      SignedHeaders=host, Signature=x\r\n";
        let answer = http(&self.port.address(), &line, signed, "").unwrap();
        answer.to_lowercase()
    }

    /// `http://127.0.0.1:<port>`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.port.address())
    }

    /// `127.0.0.1:<port>`.
    pub fn address(&self) -> String {
        self.port.address()
    }

    /// The address of an archive under `prefix`.
    pub fn url(&self, prefix: &str) -> String {
        self.url_through(&self.address(), prefix)
    }

    /// The same through what stands at `address` in front of it.
    pub fn url_through(&self, address: &str, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}?region=us-east-1&endpoint=http://{address}")
    }

    /// A store under `prefix`, as the writer.
    pub fn store(&self, prefix: &str) -> S3Store {
        self.store_as(prefix, WRITER)
    }

    /// A store under `prefix`, as somebody.
    pub fn store_as(&self, prefix: &str, key: &str) -> S3Store {
        S3Store::open_as(&self.url(prefix), key, SECRET).unwrap()
    }

    /// An archive here, for the whole binary.
    pub fn archive(&self) -> Archive {
        Archive::at(self.url("a"), environment(WRITER, SECRET))
    }

    /// What the server in this process is told and tells.
    #[track_caller]
    pub fn control(&self) -> &Control {
        match &self.kind {
            ServerKind::InProcess { control, .. } => control,
            ServerKind::Moto { .. } => panic!("moto takes no orders"),
        }
    }

    /// From here on an object that is there is overwritten, as by a store that does not know conditions.
    #[track_caller]
    pub fn ignore_conditions(&self) {
        let root = self.folder().parent().unwrap().to_owned();
        self.control()
            .state
            .lock()
            .unwrap()
            .ignores_conditions_below = Some(root);
    }

    /// The folder of the bucket.
    #[track_caller]
    pub fn folder(&self) -> PathBuf {
        match &self.kind {
            ServerKind::InProcess { folder, .. } => folder.path().join(BUCKET),
            ServerKind::Moto { .. } => panic!("moto has no folder"),
        }
    }

    /// Stops listening; the objects stay.
    pub fn stop(&mut self) {
        if let ServerKind::InProcess { running, .. } = &mut self.kind
            && let Some(running) = running.take()
        {
            let _ = running.stop.send(());
            running.thread.join().unwrap();
        }
    }

    /// Listens on the same port again.
    pub fn start_again(&mut self) {
        let number = self.port.number;
        if let ServerKind::InProcess {
            folder,
            control,
            running,
        } = &mut self.kind
        {
            assert!(running.is_none(), "it still runs");
            let (stop, stopped) = oneshot::channel();
            let (root, control) = (folder.path().to_owned(), control.clone());
            let (ready, is_ready) = std::sync::mpsc::channel();
            let thread = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let listener = TcpListener::bind(("127.0.0.1", number)).await.unwrap();
                    ready.send(()).unwrap();
                    tokio::select! {
                        () = serve(listener, service(&root), control) => {}
                        _ = stopped => {}
                    }
                });
                runtime.shutdown_timeout(Duration::from_secs(1));
            });
            is_ready.recv().unwrap();
            *running = Some(Running { stop, thread });
        }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Names and values for a child's environment.
pub type Variables = Vec<(String, String)>;

/// What a child must be told: who it is, and to look nowhere else.
pub fn environment(key: &str, secret: &str) -> Variables {
    [
        ("AWS_ACCESS_KEY_ID", key),
        ("AWS_SECRET_ACCESS_KEY", secret),
        ("AWS_SESSION_TOKEN", ""),
        ("AWS_PROFILE", ""),
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

fn service(root: &Path) -> S3Service {
    let mut auth = SimpleAuth::new();
    for key in [WRITER, KEEPER, READER] {
        auth.register(key.to_owned(), SECRET.into());
    }
    let mut builder = S3ServiceBuilder::new(FileSystem::new(root).unwrap());
    builder.set_auth(auth);
    builder.set_access(Access);
    builder.build()
}

struct Access;

#[async_trait::async_trait]
impl S3Access for Access {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let Some(credentials) = context.credentials() else {
            return Err(s3_error!(AccessDenied, "Access Denied"));
        };
        let operation = context.s3_op().name();
        let deletes = matches!(operation, "DeleteObject" | "AbortMultipartUpload");
        let reads = matches!(operation, "GetObject" | "HeadObject" | "ListObjectsV2");
        let may = match credentials.access_key.as_str() {
            WRITER => true,
            KEEPER => !deletes,
            _ => reads,
        };
        if may {
            Ok(())
        } else {
            Err(s3_error!(AccessDenied, "Access Denied"))
        }
    }
}

async fn serve(listener: TcpListener, service: S3Service, control: Control) {
    let one_at_a_time = Arc::new(tokio::sync::Mutex::new(()));
    while let Ok((socket, _)) = listener.accept().await {
        let _ = socket.set_nodelay(true);
        let (service, control) = (service.clone(), control.clone());
        let one_at_a_time = Arc::clone(&one_at_a_time);
        let handler = hyper::service::service_fn(move |request| {
            let (service, control) = (service.clone(), control.clone());
            let one_at_a_time = Arc::clone(&one_at_a_time);
            async move { answer(request, &service, &control, &one_at_a_time).await }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(socket), handler);
        tokio::spawn(async move {
            let _ = connection.await;
        });
    }
}

async fn answer(
    request: Request<hyper::body::Incoming>,
    service: &S3Service,
    control: &Control,
    one_at_a_time: &tokio::sync::Mutex<()>,
) -> Result<Response<Body>, Broken> {
    if let Some(canned) = control.meet(&request) {
        // Its body is read to the end, as servers do that keep the connection.
        drain(request).await;
        return Ok(canned);
    }
    let trouble = control.trouble();
    match trouble {
        Some(Trouble::Status(status)) => {
            drain(request).await;
            return Ok(refusal(status));
        }
        Some(Trouble::Cut) => return Err(Broken),
        Some(Trouble::CutWithin) => {
            let mut body = request.into_body();
            let _ = body.frame().await;
            return Err(Broken);
        }
        Some(Trouble::Late(time)) => tokio::time::sleep(time).await,
        Some(Trouble::DoneBut(_) | Trouble::DoneButCut) | None => {}
    }
    let done = carry_out(request, service, one_at_a_time).await;
    match trouble {
        Some(Trouble::DoneBut(status)) => Ok(refusal(status)),
        Some(Trouble::DoneButCut) => half(done).await,
        _ => Ok(done),
    }
}

async fn carry_out(
    request: Request<hyper::body::Incoming>,
    service: &S3Service,
    one_at_a_time: &tokio::sync::Mutex<()>,
) -> Response<Body> {
    let _held = match has_condition(request.headers()) {
        true => Some(one_at_a_time.lock().await),
        false => None,
    };
    let answered = service.call(request.map(Body::from)).await;
    answered.unwrap_or_else(|_| Canned::error(500, "InternalError", "it broke").response())
}

/// The connection is to be closed, with whatever has been said on it.
#[derive(Debug)]
struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("made to break")
    }
}

impl std::error::Error for Broken {}

fn refusal(status: u16) -> Response<Body> {
    let code = match status {
        503 | 429 => "SlowDown",
        _ => "InternalError",
    };
    Canned::error(status, code, "made to fail").response()
}

/// The headers of an answer, half of its body, and the end of the connection.
async fn half(answer: Response<Body>) -> Result<Response<Body>, Broken> {
    let (parts, body) = answer.into_parts();
    let whole = body.collect().await.map_err(|_| Broken)?.to_bytes();
    if whole.is_empty() {
        return Err(Broken);
    }
    let first = whole.slice(..whole.len() / 2);
    let mut length = parts;
    length
        .headers
        .insert(CONTENT_LENGTH, HeaderValue::from(whole.len()));
    Ok(Response::from_parts(
        length,
        Body::http_body(Half(Some(first))),
    ))
}

/// Some bytes, and then no more of what was promised.
struct Half(Option<Bytes>);

impl hyper::body::Body for Half {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        Poll::Ready(Some(match self.0.take() {
            Some(bytes) => Ok(Frame::data(bytes)),
            None => Err(Broken),
        }))
    }
}

async fn drain(request: Request<hyper::body::Incoming>) {
    let mut body = Body::from(request.into_body());
    let _ = body.store_all_limited(PART_BYTES_MAX).await;
}

fn has_condition(headers: &HeaderMap) -> bool {
    headers.contains_key(IF_NONE_MATCH) || headers.contains_key(IF_MATCH)
}

fn moto_program() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("PERENNIAL_MOTO") {
        return Some(path.into());
    }
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/servers/moto/moto_server");
    let runs = Command::new(&unpacked)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout.starts_with(b"moto 5."));
    runs.then_some(unpacked)
}

/// Whether the server has the bucket now; moto asks for no signature.
fn make_bucket(address: &str) -> bool {
    http(address, &format!("PUT /{BUCKET}"), "", "")
        .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// One request and all of its answer.
fn http(address: &str, line: &str, headers: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
