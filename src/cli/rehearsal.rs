//! `perennial restore --dry-run`: what would be read, and why it would be refused, if it would. Nothing is written, and
//! nothing is done to a server.

use std::sync::Arc;

use anyhow::Result;
use serde_json::json;

use super::flags::RestoreArguments;
use super::restore::{Archived, folder_options, needs_scratch};
use super::seed_once::Destination;
use super::stored::counted;
use super::when::Planned;
use super::{say, tell, through_scratch};
use crate::clock::Clock;
use crate::restore::to_dir;
use crate::server::scratch::{ScratchError, ScratchPlace};

/// Prints what would be read.
///
/// # Errors
/// That the restore would be refused, and why.
pub(super) async fn run(
    archived: &Archived,
    planned: &Planned,
    to: &Destination,
    arguments: &RestoreArguments,
    clock: &dyn Clock,
) -> Result<()> {
    let examined = examine(archived, planned, to, arguments, clock).await;
    if arguments.json {
        let refused = examined.as_ref().err().map(|error| format!("{error:#}"));
        let mut summary = json!(planned.plan.summary());
        summary["received_until_ms"] = json!(planned.received_until().map(|at| at.0));
        summary["next_by_ms"] = json!(planned.next_by().map(|at| at.0));
        summary["refused"] = json!(refused);
        say(&serde_json::to_string_pretty(&summary)?);
    } else {
        tell(&text(planned));
    }
    examined.map_err(|error| error.context("this restore would be refused"))
}

async fn examine(
    archived: &Archived,
    planned: &Planned,
    to: &Destination,
    arguments: &RestoreArguments,
    clock: &dyn Clock,
) -> Result<()> {
    match to {
        Destination::Folder(folder) => {
            let options = folder_options(planned, arguments, clock);
            if needs_scratch(planned, options) {
                if let ScratchPlace::Server(address) = through_scratch::scratch_for_dump(arguments)?
                {
                    let address = address.to_string();
                    return Err(ScratchError::NoFolder { address }.into());
                }
                return Ok(to_dir::examine_folder(folder, arguments.force)?);
            }
            let (store, archive) = (Arc::clone(&archived.store), archived.archive);
            Ok(to_dir::examine(store, archive, &planned.plan, folder, options).await?)
        }
        Destination::Server(target) => target.examine(archived, planned, arguments.force).await,
        Destination::Commands => Ok(through_scratch::scratch_for_commands(arguments).map(drop)?),
    }
}

fn text(planned: &Planned) -> String {
    let plan = &planned.plan;
    let mut lines = vec![
        format!("would restore {} (replication id {})", plan.target, plan.id),
        format!(
            "  last byte received  {}",
            planned.received_until().unwrap_or(plan.until)
        ),
        format!(
            "  objects             {} ({})",
            plan.objects(),
            bytesize::ByteSize(plan.stored_bytes())
        ),
        format!(
            "  replication stream  {}",
            bytesize::ByteSize(plan.stream_bytes())
        ),
        format!("  snapshot            {}", plan.snapshot.name),
    ];
    lines.extend(plan.legs.iter().map(|leg| {
        format!(
            "  then timeline {}: offsets {} to {} from {}",
            leg.timeline,
            leg.after.next(),
            leg.to,
            counted(leg.segments.len() as u64, "segment"),
        )
    }));
    lines.extend(planned.said().iter().map(|line| format!("  {line}")));
    lines.join("\n")
}
