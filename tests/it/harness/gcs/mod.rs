//! A Google Cloud Storage in the test process: what Perennial's client asks of the real one, and switches for what
//! can go wrong. Objects over JSON and HTTP/1, lists and deletions over gRPC, both on one port in clear text.
//!
//! It uses nothing of Perennial, so that the unit tests can include it as well.

use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use tokio::sync::oneshot;

mod grpc;
mod json;
mod state;

use state::Shared;

/// The one bucket.
pub const BUCKET: &str = "bucket";
/// The token that `/token` gives out.
pub const TOKEN: &str = "a-token-of-the-fake";

/// What may be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// Create an object in one request.
    Create,
    /// Begin a resumable session.
    Begin,
    /// Send a part of it, or ask how far it is.
    Part,
    /// Read an object.
    Read,
    /// List objects, one page.
    List,
    /// Delete an object.
    Delete,
    /// Get a token for credentials.
    Token,
}

/// What happens instead of the ordinary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Not done, and refused with this HTTP status or its like in gRPC.
    Refuse(u16),
    /// Done, and yet this status.
    DoneBut(u16),
    /// Done later.
    Late(Duration),
    /// Never an answer.
    Never,
    /// Done with a byte changed on the way.
    Damaged,
    /// Of a part only the first half is kept.
    Half,
    /// Not done, and no answer: the connection breaks.
    Cut,
    /// Done, and the answer breaks off.
    DoneButCut,
}

/// A running fake. Dropped, it ends.
pub struct Gcs {
    shared: Arc<Shared>,
    address: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Gcs {
    /// Starts it with an empty bucket.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::new(address.clone()));
        let (stop, stopped) = oneshot::channel();
        let router = Router::new()
            .fallback(json::answer)
            .with_state(Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    served = axum::serve(listener, router) => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self {
            shared,
            address,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Where it listens.
    pub fn endpoint(&self) -> &str {
        &self.address
    }

    /// The address of an archive in it, without credentials.
    pub fn url(&self, prefix: &str) -> String {
        self.url_of(BUCKET, prefix)
    }

    /// The same in a bucket of another name, which is not there.
    pub fn url_of(&self, bucket: &str, prefix: &str) -> String {
        format!(
            "gs://{bucket}/{prefix}?endpoint={}&anonymous=true",
            self.address
        )
    }

    /// The next `times` requests of this kind are answered so, after those that were planned before.
    pub fn plan(&self, asked: Asked, answer: Answer, times: usize) {
        self.shared.lock().plan(asked, answer, times);
    }

    /// The request of this number, counted from 1 over all kinds, is answered so.
    pub fn plan_at(&self, number: usize, answer: Answer) {
        self.shared.lock().at = Some((number, answer));
    }

    /// Requests are answered so where `chosen` says so.
    pub fn plan_where(&self, mut chosen: impl FnMut() -> bool + Send + 'static, answer: Answer) {
        self.shared.lock().chosen = Some(Box::new(move || chosen().then_some(answer)));
    }

    /// How many requests there were, of all kinds.
    pub fn requests(&self) -> usize {
        self.shared.lock().requests()
    }

    /// How many requests met what was planned by number or by choice.
    pub fn met(&self) -> usize {
        self.shared.lock().met
    }

    /// Where it listens, without a scheme.
    pub fn socket(&self) -> &str {
        self.address.trim_start_matches("http://")
    }

    /// The address of an archive through what stands at `address` in front of the fake. Sessions of large uploads go
    /// to the fake itself.
    pub fn url_through(&self, address: &str, prefix: &str) -> String {
        format!("gs://{BUCKET}/{prefix}?endpoint=http://{address}&anonymous=true")
    }

    /// Nothing unusual any more.
    pub fn forget_plans(&self) {
        self.shared.lock().forget_plans();
    }

    /// Conditions of writes are ignored from here on, as some stores do.
    pub fn ignore_conditions(&self) {
        self.shared.lock().ignore_conditions = true;
    }

    /// We may not delete from here on, nor replace: the service says so before it looks at conditions.
    pub fn forbid_deleting(&self) {
        self.shared.lock().forbid_deleting = true;
    }

    /// Requests without the token are refused from here on.
    pub fn want_token(&self) {
        self.shared.lock().want_token = true;
    }

    /// How often this was asked.
    pub fn count(&self, asked: Asked) -> usize {
        self.shared.lock().count(asked)
    }

    /// The names of all objects, sorted, and how many bytes they have.
    pub fn objects(&self) -> Vec<(String, usize)> {
        let state = self.shared.lock();
        let objects = state.objects.iter();
        objects
            .map(|(name, object)| (name.clone(), object.bytes.len()))
            .collect()
    }

    /// What the last write of an object asked for: its storage class and its key.
    pub fn class_and_key(&self, name: &str) -> Option<(String, String)> {
        let state = self.shared.lock();
        let object = state.objects.get(name)?;
        Some((object.class.clone(), object.key.clone()))
    }

    /// Puts an object there, or other bytes into one.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        self.shared.lock().put(name, bytes.to_vec().into());
    }
}

impl Drop for Gcs {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
