//! `perennial accept`: a person says that a suspect timeline is right.

use anyhow::bail;

use super::flags::AcceptArguments;
use super::{open_store, tell};
use crate::archive::layout::{AcceptedDocument, DOCUMENT_FORMAT};
use crate::archive::timeline::Timeline;
use crate::clock::Clock;
use crate::position::TimelineSeq;
use crate::store::catalog;

/// Accepts.
///
/// # Errors
/// Where there is nothing to accept, or the archive cannot be read or written.
pub async fn run(arguments: &AcceptArguments, clock: &dyn Clock) -> anyhow::Result<()> {
    let store = open_store(&arguments.archive)?;
    let loaded = catalog::load(&*store, &[]).await?;
    let catalog = &loaded.catalog;
    let newest_suspect = || {
        let suspects = catalog
            .timelines()
            .rev()
            .filter(|timeline| catalog.suspect(timeline.seq()).is_some());
        suspects
            .map(|timeline| timeline.seq())
            .find(|seq| catalog.end(*seq).is_some())
    };
    let Some(seq) = arguments
        .timeline
        .map(TimelineSeq::new)
        .or_else(newest_suspect)
    else {
        let waiting = catalog
            .timelines()
            .rev()
            .find(|timeline| catalog.suspect(timeline.seq()).is_some());
        match waiting.map(Timeline::seq) {
            Some(seq) => bail!(
                "timeline {seq} is suspect, but nothing on it can be restored yet: wait until `perennial run` says \
                 `snapshot complete`"
            ),
            None => bail!(
                "no timeline in {} is suspect: nothing to accept",
                store.address()
            ),
        }
    };
    let Some(id) = catalog.timeline(seq).map(Timeline::id) else {
        bail!(
            "there is no timeline {seq} in {}; `perennial status` lists them",
            store.address()
        );
    };
    let contested = catalog.rival(clock.unix()).is_some();
    if catalog.head().is_some_and(|head| head.timeline == seq) && !contested {
        tell(&format!(
            "timeline {seq} is the head already: nothing changed"
        ));
        return Ok(());
    }
    if catalog.end(seq).is_none() {
        bail!("nothing on timeline {seq} can be restored yet: wait until its snapshot is complete");
    }
    if let Some(newest) = catalog.goes_on_as(seq).filter(|_| !arguments.force) {
        bail!(
            "timeline {newest} goes on from the end of timeline {seq} and is suspect with it: accept {newest}, which holds all \
             of {seq} as well. To leave out what came on it, add --force"
        );
    }
    let before = catalog.head();
    if let Some(head) = before
        && !arguments.force
        && catalog
            .lineage(head)
            .iter()
            .any(|step| step.timeline == seq)
        && head.timeline != seq
    {
        bail!(
            "timeline {seq} is an ancestor of the head, {head}: accepted, everything written since then would be left out of \
             the next seed. If that is meant, add --force; to look at it, `perennial restore --at timeline:{seq}`"
        );
    }
    let document = AcceptedDocument {
        format: DOCUMENT_FORMAT,
        accepted_at: clock.unix(),
        by: std::env::var("USER").unwrap_or_else(|_| "unknown".into()),
        reason: arguments.reason.clone(),
    };
    catalog::accept(&*store, catalog, seq, id, document).await?;
    tell(&format!(
        "timeline {seq} is the head now{}",
        before.map_or_else(String::new, |before| format!(
            "; before it was {before}, which stays and can be restored by --at timeline:{}",
            before.timeline
        ))
    ));
    Ok(())
}
