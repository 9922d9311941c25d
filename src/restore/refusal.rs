//! What can be known of a seed before the server is touched, and what can be said of one that it did not take.

use std::sync::Arc;

use super::source::{self, SourceError};
use super::to_replica::SeedError;
use crate::archive::layout::ArchiveId;
use crate::archive::plan::Plan;
use crate::archive::snapshot::{RdbHead, leading_module_type, read_head};
use crate::decide::readable;
use crate::server::control::{Control, ControlError};
use crate::server::info::Info;
use crate::store::Store;

/// Modules that come with Valkey and hold no data.
const MODULES_WITHOUT_DATA: &[&str] = &["lua"];

/// What is known of payload and server that may matter when the seed fails.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    modules: Vec<String>,
    /// The module type that the payload begins with.
    wanted: Option<String>,
    /// Bytes that the data took when they were captured, as the payload says.
    used: Option<u64>,
    maxmemory: Option<u64>,
    machine: Option<u64>,
}

/// Tells why a seed of this plan would be refused before the server is touched.
///
/// # Errors
/// [`SeedError`].
pub async fn examine(
    store: Arc<dyn Store>,
    archive: ArchiveId,
    plan: &Plan,
    control: &mut Control,
    info: &Info,
) -> Result<(), SeedError> {
    let known = beforehand(store, archive, plan, control, info);
    known.await.map(drop)
}

/// Looks whether the server can read the plan's payload at all. Nothing is done to the server.
///
/// # Errors
/// [`SeedError::Unreadable`] and [`SeedError::NoModule`] where it cannot; [`SeedError::Source`] where the payload
/// itself cannot be read.
pub(super) async fn beforehand(
    store: Arc<dyn Store>,
    archive: ArchiveId,
    plan: &Plan,
    control: &mut Control,
    info: &Info,
) -> Result<Known, SeedError> {
    let Some((head, wanted)) = head(store, archive, plan).await? else {
        return Ok(Known::default());
    };
    let (name, version) = (info.server_name(), info.version_numbers());
    if let Err(unreadable) = readable(head.magic, head.version, name, version)
        // Valkey 8.1 and later read other versions as far as they understand them, where they are told to.
        && !matches!(control.setting("rdb-version-check").await, Ok(Some(check)) if check == "relaxed")
    {
        return Err(SeedError::Unreadable(unreadable));
    }
    let holds_data = |module: &String| !MODULES_WITHOUT_DATA.contains(&module.as_str());
    if let Some(module_type) = &wanted
        && !info.modules().iter().any(holds_data)
    {
        let module_type = module_type.clone();
        return Err(SeedError::NoModule { module_type });
    }
    let known = Known {
        modules: info.modules().to_vec(),
        wanted,
        used: head.aux("used-mem").and_then(|bytes| bytes.parse().ok()),
        maxmemory: info.number("maxmemory").filter(|bytes| *bytes > 0),
        machine: info.number("total_system_memory"),
    };
    if let (Some(used), Some(maxmemory)) = (known.used, known.maxmemory)
        && used > maxmemory
    {
        let policy = info.text("maxmemory_policy").unwrap_or("?");
        tracing::warn!(
            used,
            maxmemory,
            policy,
            "the archive's data took more memory than the server's maxmemory: it takes them all, and as a master \
             refuses writes or evicts keys, as its maxmemory-policy says; raise maxmemory"
        );
    }
    Ok(known)
}

async fn head(
    store: Arc<dyn Store>,
    archive: ArchiveId,
    plan: &Plan,
) -> Result<Option<(RdbHead, Option<String>)>, SourceError> {
    let mut payload = source::payload(store, archive, plan);
    let first = payload.next().await?;
    Ok(first.and_then(|bytes| Some((read_head(&bytes)?, leading_module_type(&bytes)))))
}

impl Known {
    /// Gives a failure its likely causes.
    pub(super) fn explain(&self, error: SeedError, asked: bool) -> SeedError {
        match error {
            SeedError::Control(
                lost @ (ControlError::Lost { .. } | ControlError::Silent { .. }),
            ) if asked => SeedError::Died {
                error: lost,
                likely: self.causes(),
            },
            SeedError::Rejected { reason, .. } if reason.contains("closed the connection") => {
                SeedError::Rejected {
                    reason,
                    likely: self.causes(),
                }
            }
            other => other,
        }
    }

    /// In the order of likelihood. A type that no module knows ends the server that loads it: measured on
    /// redis 7.0 and 8.0, valkey 8.1 and 9.1.
    fn causes(&self) -> String {
        let mut modules = match self.modules.as_slice() {
            [] => "it has none loaded".to_owned(),
            some => format!("it has {}", some.join(", ")),
        };
        if let Some(wanted) = &self.wanted {
            modules.push_str(&format!(", the payload begins with the type {wanted}"));
        }
        let mut memory = Vec::new();
        for (what, bytes) in [
            ("the data took", self.used),
            ("its maxmemory is", self.maxmemory),
            ("its machine has", self.machine),
        ] {
            memory.extend(bytes.map(|bytes| format!("{what} {}", bytesize::ByteSize(bytes))));
        }
        let memory = match memory.is_empty() {
            true => String::new(),
            false => format!(" ({})", memory.join(", ")),
        };
        format!(
            "its log tells why; most likely it lacks a module whose types are in the data ({modules}), or it was \
             killed for want of memory{memory}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_causes_name_what_is_known() {
        let nothing = Known::default().causes();
        assert!(nothing.contains("none loaded"), "{nothing}");
        assert!(nothing.ends_with("want of memory"), "{nothing}");
        let known = Known {
            modules: vec!["search".into(), "json".into()],
            wanted: Some("TestTyp-A".into()),
            used: Some(10 << 20),
            maxmemory: Some(5 << 20),
            machine: None,
        };
        let causes = known.causes();
        assert!(
            causes.contains("(it has search, json, the payload begins with the type TestTyp-A)"),
            "{causes}"
        );
        assert!(
            causes.contains("the data took 10.0 MiB, its maxmemory is 5.0 MiB"),
            "{causes}"
        );
    }
}
