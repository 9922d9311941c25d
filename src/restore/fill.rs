//! Fills a scratch server with a plan, as a seed would, and leaves it our replica: what expires stays where it is.
//! Nothing is written to the archive.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::refusal;
use super::seeder::{Approved, Offering, SeedProgress, Seeder, SeederOptions, Serving};
use super::source::Spelling;
use super::to_replica::{SeedError, applied};
use crate::archive::layout::ArchiveId;
use crate::archive::plan::Plan;
use crate::clock::Clock;
use crate::position::{Offset, ReplicationId};
use crate::proto::handshake::Auth;
use crate::server::info::Info;
use crate::server::scratch::{Scratch, ScratchError};
use crate::store::Store;

/// The time between two looks at the server.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long nothing may happen: a large payload is emptied and loaded in one go.
const SILENCE_MILLIS: u64 = 600_000;

/// Why a scratch server could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The server itself.
    #[error("{0}")]
    Scratch(#[from] ScratchError),
    /// It does not read the payload, or the payload cannot be read.
    #[error("{0}")]
    Seed(#[from] SeedError),
    /// No listener for it.
    #[error("listen for the scratch server: {0}")]
    Listen(std::io::Error),
    /// The system gives no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(crate::random::Error),
    /// It did not take the data.
    #[error("the scratch server did not take the data: {0}")]
    Rejected(String),
    /// Nothing happens.
    #[error("the scratch server made no progress for ten minutes: it {0}; look at its log")]
    Silent(String),
    /// It answered commands with errors.
    #[error(
        "the scratch server answered {0} commands of the archive with errors: a restore would lack them; is it as new \
         as the server that wrote them?"
    )]
    Errors(u64),
}

/// What was put into it. Its link stays up until this is dropped: a replica whose link is down has no replicas.
#[derive(Debug)]
pub struct Filled {
    /// Bytes of RDB payload.
    pub payload_bytes: u64,
    /// Bytes of replication stream, as it was rewritten.
    pub stream_bytes: u64,
    /// Under which id.
    pub id: ReplicationId,
    /// The offset at which it stands under that id.
    pub end: Offset,
    _seeder: Seeder,
}

/// Fills the server with what `plan` restores: as it is `approved`, or else under an id that nobody knows, with whatever a
/// later replay needs. `told` hears bytes and of how many.
///
/// # Errors
/// [`FillError`].
pub async fn fill(
    scratch: &mut Scratch,
    store: &Arc<dyn Store>,
    archive: ArchiveId,
    plan: &Plan,
    approved: Option<Approved>,
    clock: &Arc<dyn Clock>,
    told: &mut (impl FnMut(u64, u64) + Send),
) -> Result<Filled, FillError> {
    scratch.empty().await?;
    let info = scratch.info().clone();
    refusal::beforehand(Arc::clone(store), archive, plan, scratch.control(), &info).await?;
    let password = random::<16>()?.map(|byte| format!("{byte:02x}")).concat();
    // A link that has ended must not keep the data from being read, nor anybody else on this machine get them.
    scratch.set("replica-serve-stale-data", "yes").await?;
    scratch.set("masterauth", &password).await?;
    let auth = Auth {
        user: None,
        password,
    };
    let options = SeederOptions {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        announce: None,
        auth: Some(auth),
        tls: None,
    };
    let seeder = Seeder::open(options, Arc::clone(clock));
    let seeder = seeder.await.map_err(FillError::Listen)?;
    let (progress, mut seen) = watch::channel(SeedProgress::default());
    let offering = Arc::new(Offering {
        store: Arc::clone(store),
        archive,
        plan: plan.clone(),
        continue_at: None,
        listening_port: None,
        busy: AtomicBool::new(false),
        approved: watch::Sender::new(None),
        epilogue: Bytes::new(),
        progress,
    });
    seeder.serve(Serving::Plan(Arc::clone(&offering)));
    let (host, port) = seeder.address_for(None);
    let taken = scratch.control().take_over(&host, port).await;
    let before = taken.map_err(|error| scratch.explained(error))?;
    let approved = match approved {
        Some(approved) => approved,
        None => Approved {
            id: ReplicationId::from_raw(random::<20>()?),
            spelling: Spelling::Rewritten,
        },
    };
    wait(
        scratch, &seeder, &offering, approved, &mut seen, &**clock, told,
    )
    .await?;
    let progress = seen.borrow().clone();
    let after = scratch.control().info().await;
    let after = after.map_err(|error| scratch.explained(error))?;
    let errors = errors(&after).saturating_sub(errors(&before));
    match errors {
        0 => Ok(Filled {
            payload_bytes: progress.payload_sent,
            stream_bytes: progress.stream_sent,
            id: approved.id,
            end: plan.snapshot.offset.plus(progress.stream_sent),
            _seeder: seeder,
        }),
        errors => Err(FillError::Errors(errors)),
    }
}

fn random<const N: usize>() -> Result<[u8; N], FillError> {
    let mut bytes = [0; N];
    crate::random::fill(&mut bytes).map_err(FillError::Random)?;
    Ok(bytes)
}

/// Commands of its master that it answered with an error.
fn errors(info: &Info) -> u64 {
    info.number("unexpected_error_replies").unwrap_or(0)
}

async fn wait(
    scratch: &mut Scratch,
    seeder: &Seeder,
    offering: &Offering,
    approved: Approved,
    seen: &mut watch::Receiver<SeedProgress>,
    clock: &dyn Clock,
    told: &mut (impl FnMut(u64, u64) + Send),
) -> Result<(), FillError> {
    let plan = &offering.plan;
    let mut last_moved = clock.ticks();
    let mut answered = 0;
    loop {
        let progress = seen.borrow_and_update().clone();
        told(
            progress.payload_sent + progress.stream_sent,
            progress.payload_bytes + plan.stream_bytes(),
        );
        if progress.question != answered {
            answered = progress.question;
            let answer = Some((answered, Some(approved)));
            offering.approved.send_replace(answer);
        }
        if let Some(reason) = &progress.failed {
            let alive = scratch.control().info().await;
            alive.map_err(|error| scratch.explained(error))?;
            return Err(FillError::Rejected(reason.clone()));
        }
        let turned = seeder.turned_away();
        if turned.times > 0 {
            return Err(FillError::Rejected(turned.last));
        }
        let asked = scratch.control().ask().await;
        asked.map_err(|error| scratch.explained(error))?;
        tokio::select! {
            changed = seen.changed() => {
                if changed.is_ok() && seen.borrow().moved_since(&progress) {
                    last_moved = clock.ticks();
                }
            }
            // One that empties itself, or loads from its disk, answers nothing for a while.
            info = scratch.control().heard() => {
                let info = info.map_err(|error| scratch.explained(error))?;
                let end = plan.snapshot.offset.plus(progress.stream_sent);
                if progress.all_sent && applied(&info, end) {
                    return Ok(());
                }
                if info.number("loading") == Some(1) {
                    last_moved = clock.ticks();
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        }
        if clock.ticks().since(last_moved) > SILENCE_MILLIS {
            let state = match progress.asked {
                0 => "does not connect to us",
                _ => "does not go on",
            };
            return Err(FillError::Silent(state.into()));
        }
    }
}
