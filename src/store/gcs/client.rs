//! The clients of Google's library, made when they are first needed, and the one policy for retries.
//!
//! The library's own retries are off: it gives requests over JSON no time limit of their own, so one that hangs
//! would hang for ever. Large uploads are the exception (see [`super::upload`]), because only the library can
//! go on with a session that broke.

use std::future::Future;
use std::time::Duration;

use google_cloud_auth::credentials::{self, Credentials, anonymous};
use google_cloud_gax::retry_policy::NeverRetry;
use google_cloud_storage::client::{Storage, StorageControl};
use google_cloud_storage::read_resume_policy::NeverResume;

use super::address::GcsAddress;
use super::problem::{Problem, no_credentials, no_token, token_too_late, unusable_endpoint};

/// How often one operation is tried. Whoever asked decides what then: the uploader goes on for ever.
pub(super) const ATTEMPTS_MAX: u32 = 3;
/// The longest that an attempt may take before any bytes of objects are counted.
pub(super) const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(30);
/// The longest that getting a first token may take.
const CREDENTIALS_TIME_MAX: Duration = Duration::from_secs(15);
/// The slowest that bytes may move, in bytes per second: an attempt is given more time for more of them.
pub(super) const BYTES_PER_SECOND_MIN: u64 = 64 * 1024;
/// The wait before the second attempt, doubled for each further one.
const RETRY_FIRST: Duration = Duration::from_millis(200);

/// The two clients: objects travel over JSON, lists and deletions over gRPC.
#[derive(Clone, Debug)]
pub(super) struct Clients {
    /// Reads and writes objects.
    pub(super) objects: Storage,
    /// Lists and deletes them.
    pub(super) control: StorageControl,
}

impl Clients {
    /// Finds the credentials, gets a first token for them, and makes both clients. Connections are made when
    /// they are needed.
    pub(super) async fn new(address: &GcsAddress) -> Result<Self, Problem> {
        let credentials = match address.anonymous {
            true => anonymous::Builder::new().build(),
            false => found().await?,
        };
        let mut objects = Storage::builder()
            .with_credentials(credentials.clone())
            .with_retry_policy(NeverRetry)
            .with_read_resume_policy(NeverResume);
        let mut control = StorageControl::builder()
            .with_credentials(credentials)
            .with_retry_policy(NeverRetry);
        if let Some(endpoint) = &address.endpoint {
            objects = objects.with_endpoint(endpoint);
            control = control.with_endpoint(endpoint);
        }
        let unusable = |error| unusable_endpoint(&error);
        Ok(Self {
            objects: objects.build().await.map_err(unusable)?,
            control: control.build().await.map_err(unusable)?,
        })
    }
}

/// The credentials that Google's own tools would find, with a first token: so that what is wrong with them is
/// said as such, and not as a bucket that does not answer.
async fn found() -> Result<Credentials, Problem> {
    let built = credentials::Builder::default().build();
    let credentials = built.map_err(|error| no_credentials(&error))?;
    let token = credentials.headers(Default::default());
    match tokio::time::timeout(CREDENTIALS_TIME_MAX, token).await {
        Ok(Ok(_)) => Ok(credentials),
        Ok(Err(error)) => Err(no_token(&error)),
        Err(_) => Err(token_too_late(CREDENTIALS_TIME_MAX)),
    }
}

/// How long an attempt may take that moves `bytes` bytes.
pub(super) fn time_for(bytes: u64) -> Duration {
    ATTEMPT_TIME_MAX + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN)
}

/// Runs `attempt`, which bounds its own time, until it succeeds, until trying again cannot help, or
/// [`ATTEMPTS_MAX`] times.
pub(super) async fn attempts<T, F>(mut attempt: impl FnMut() -> F) -> Result<T, Problem>
where
    F: Future<Output = Result<T, Problem>>,
{
    let mut wait = RETRY_FIRST;
    for _ in 1..ATTEMPTS_MAX {
        match attempt().await {
            Err(problem) if problem.is_worth_another_attempt() => {}
            done => return done,
        }
        tokio::time::sleep(jittered(wait)).await;
        wait *= 2;
    }
    attempt().await
}

/// Runs `work`, and says so when it takes too long, after `when_late`.
pub(super) async fn within<T>(
    time_max: Duration,
    work: impl Future<Output = Result<T, Problem>>,
    when_late: impl FnOnce(),
) -> Result<T, Problem> {
    tokio::time::timeout(time_max, work)
        .await
        .unwrap_or_else(|_| {
            when_late();
            Err(Problem::slow(time_max))
        })
}

/// Between half of `wait` and all of it, so that many processes do not retry in step.
fn jittered(wait: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX);
    wait.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX) / 2.0)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::store::StoreErrorKind;

    #[tokio::test(start_paused = true)]
    async fn attempts_end_with_success_a_hopeless_answer_or_the_limit() {
        let problem = |kind| Problem {
            kind,
            detail: String::new(),
        };
        let tried = Cell::new(0);
        let run = async |answers: &[Result<(), StoreErrorKind>]| {
            tried.set(0);
            attempts(|| {
                let answer = answers[tried.get()];
                tried.set(tried.get() + 1);
                async move { answer.map_err(problem) }
            })
            .await
            .map_err(|problem| problem.kind)
        };
        let (down, denied) = (StoreErrorKind::Unavailable, StoreErrorKind::Denied);
        assert_eq!(run(&[Err(down), Ok(())]).await, Ok(()));
        assert_eq!(tried.get(), 2);
        assert_eq!(run(&[Err(denied), Ok(())]).await, Err(denied));
        assert_eq!(tried.get(), 1);
        assert_eq!(run(&[Err(down); 9]).await, Err(down));
        assert_eq!(tried.get(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_hangs_is_given_up() {
        let (tried, late) = (Cell::new(0), Cell::new(0));
        let hanging = attempts(|| {
            tried.set(tried.get() + 1);
            within(
                Duration::from_secs(9),
                std::future::pending::<Result<(), Problem>>(),
                || late.set(late.get() + 1),
            )
        });
        let problem = hanging.await.unwrap_err();
        assert_eq!(problem.kind, StoreErrorKind::Unavailable);
        assert!(problem.detail.contains("9s"), "{}", problem.detail);
        assert_eq!((tried.get(), late.get()), (3, 3));
    }

    #[test]
    fn more_bytes_are_given_more_time() {
        assert_eq!(time_for(0), ATTEMPT_TIME_MAX);
        assert_eq!(
            time_for(8 << 20),
            ATTEMPT_TIME_MAX + Duration::from_secs(128)
        );
    }
}
