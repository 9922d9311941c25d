//! What is found of a store.

use super::Finding;
use crate::store::{StoreError, StoreErrorKind};

/// Clocks further apart are bad: upkeep refuses to delete then, and times of restores are wrong. Milliseconds.
pub const SKEW_MILLIS_MAX: u64 = 5 * 60 * 1000;
/// A single small object that takes longer makes a slow `WAIT`, milliseconds.
const SLOW_PUT_MILLIS: u64 = 500;

/// What was seen of a store.
#[derive(Clone, Debug)]
pub struct StoreFacts {
    /// What `prepare` said.
    pub prepared: Result<(), StoreError>,
    /// What a listing said.
    pub listed: Result<(), StoreError>,
    /// What the probe showed; nothing where `prepare` failed.
    pub probe: Option<ProbeFacts>,
}

/// What the probe, a small object that is created and deleted, showed.
#[derive(Clone, Default, Debug)]
pub struct ProbeFacts {
    /// What ended it early.
    pub error: Option<StoreError>,
    /// Whether it was read back, whole, at once after it was created.
    pub read_back: Option<bool>,
    /// How far our clock is ahead of the store's, milliseconds; negative where it is behind.
    pub clock_ahead_millis: Option<i64>,
    /// Whether it could be deleted.
    pub deleted: Option<Result<(), StoreError>>,
    /// Whether an upload in parts found that its name was taken.
    pub upload_conditional: Option<bool>,
    /// How long each create took, milliseconds.
    pub create_millis: Vec<u64>,
}

/// Findings about a store.
pub fn of_store(facts: &StoreFacts) -> Vec<Finding> {
    let mut findings = vec![access(facts)];
    if facts.listed.is_err() && facts.prepared.is_err() {
        return findings;
    }
    if let Err(error) = &facts.prepared {
        findings.push(unprepared(error));
    } else {
        findings.push(Finding::ok("store-write", "objects can be created"));
        findings.push(Finding::ok(
            "store-conditional-create",
            "an object that is there is not overwritten",
        ));
    }
    findings.push(match &facts.listed {
        Ok(()) => Finding::ok("store-list", "objects can be listed"),
        Err(error) => Finding::bad_as_said("store-list", error.detail.clone()),
    });
    if let Some(probe) = &facts.probe {
        of_probe(probe, &mut findings);
    }
    findings
}

fn access(facts: &StoreFacts) -> Finding {
    match (&facts.prepared, &facts.listed) {
        (Err(error), Err(_)) => Finding::bad_as_said("store-reachable", error.detail.clone()),
        _ => Finding::ok("store-reachable", "it answers, and lets us in"),
    }
}

/// Listing works and preparing does not: what is lacking is the right to write, or the store's own honesty.
fn unprepared(error: &StoreError) -> Finding {
    match error.kind {
        StoreErrorKind::Invalid => {
            Finding::bad_as_said("store-conditional-create", error.detail.clone())
        }
        _ => Finding::bad(
            "store-write",
            error.detail.clone(),
            "to read alone (status, ls, restore) this is enough; `perennial run` must create objects",
        ),
    }
}

fn of_probe(probe: &ProbeFacts, findings: &mut Vec<Finding>) {
    match probe.read_back {
        Some(true) => findings.push(Finding::ok(
            "store-read-after-write",
            "an object can be read as soon as it is created",
        )),
        Some(false) => findings.push(Finding::bad(
            "store-read-after-write",
            "an object that was just created could not be read back as it was written",
            "choose a store (or a setting of this one) where what was written is read at once, and by everybody",
        )),
        None => {}
    }
    if let Some(conditional) = probe.upload_conditional {
        findings.push(match conditional {
            true => Finding::ok(
                "store-conditional-upload",
                "nor does an upload in parts overwrite it",
            ),
            false => Finding::warn(
                "store-conditional-upload",
                "an upload in parts overwrites an object that is there: two writers of one archive could replace \
                 each other's snapshots, though two snapshots of one name hold the same data",
                "a newer version of this store; see to it that only one `perennial run` writes to this archive",
            ),
        });
    }
    match &probe.deleted {
        Some(Ok(())) => findings.push(Finding::ok("store-delete", "objects can be deleted")),
        Some(Err(error)) => findings.push(Finding::warn(
            "store-delete",
            format!("objects cannot be deleted: {}", error.detail),
            "nothing, where that is meant (it protects the archive); without it the archive only grows, unless a \
             rule of the store or somebody else's credentials clear it",
        )),
        None => findings.push(Finding::unknown(
            "store-delete",
            "a probe was there already and is not ours to delete: run this once more in a minute",
        )),
    }
    match probe.clock_ahead_millis {
        Some(ahead) if ahead.unsigned_abs() > SKEW_MILLIS_MAX => findings.push(Finding::bad(
            "store-clock",
            format!(
                "the clock of this machine is {} s {} the store's",
                ahead.unsigned_abs() / 1000,
                if ahead > 0 { "ahead of" } else { "behind" },
            ),
            "timedatectl set-ntp true",
        )),
        Some(_) => findings.push(Finding::ok(
            "store-clock",
            "the store's clock and ours agree",
        )),
        None => {}
    }
    findings.extend(speed(&probe.create_millis));
    if let Some(error) = &probe.error {
        findings.push(Finding::bad_as_said(
            "store-probe",
            format!("the probe ended early: {error}"),
        ));
    }
}

/// What one small object costs is what a `WAIT` costs.
fn speed(create_millis: &[u64]) -> Option<Finding> {
    const ID: &str = "store-latency";
    let mut sorted = create_millis.to_vec();
    sorted.sort_unstable();
    let median = *sorted.get(sorted.len() / 2)?;
    let found = match median {
        0 => "a small object takes less than 1 ms: so much does a WAIT take, and the way to the server".to_owned(),
        _ => format!(
            "a small object takes {median} ms (median of {}): so much does a WAIT take, and the way to the server",
            sorted.len()
        ),
    };
    Some(if median > SLOW_PUT_MILLIS {
        let change = "a store nearer to this machine; clients that say WAIT need a longer timeout";
        Finding::warn(ID, found, change)
    } else {
        Finding::ok(ID, found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    fn error(kind: StoreErrorKind) -> StoreError {
        StoreError::about_store(kind, "prepare", "somewhere".into(), "said".into())
    }

    fn facts(probe: ProbeFacts) -> StoreFacts {
        StoreFacts {
            prepared: Ok(()),
            listed: Ok(()),
            probe: Some(probe),
        }
    }

    fn good() -> ProbeFacts {
        ProbeFacts {
            error: None,
            read_back: Some(true),
            clock_ahead_millis: Some(-2000),
            deleted: Some(Ok(())),
            upload_conditional: Some(true),
            create_millis: vec![20, 900, 10],
        }
    }

    fn level(facts: &StoreFacts, id: &str) -> Option<Level> {
        let findings = of_store(facts);
        let mut found = findings.iter().filter(|finding| finding.id == id);
        let level = found.next().map(|finding| finding.level);
        assert!(found.next().is_none(), "{id} twice");
        level
    }

    #[test]
    fn a_good_store_is_ok_throughout() {
        let findings = of_store(&facts(good()));
        assert!(
            findings.iter().all(|finding| finding.level == Level::Ok),
            "{findings:?}"
        );
        assert!(findings.last().unwrap().found.contains("20 ms"));
        assert_eq!(findings.len(), 9);
    }

    #[test]
    fn each_fault_has_a_finding_of_its_own() {
        type Fault = fn(&mut ProbeFacts);
        let cases: [(&str, Level, Fault); 8] = [
            ("store-read-after-write", Level::Bad, |probe| {
                probe.read_back = Some(false)
            }),
            ("store-conditional-upload", Level::Warn, |probe| {
                probe.upload_conditional = Some(false)
            }),
            ("store-delete", Level::Warn, |probe| {
                probe.deleted = Some(Err(error(StoreErrorKind::Denied)))
            }),
            ("store-delete", Level::Unknown, |probe| probe.deleted = None),
            ("store-clock", Level::Bad, |probe| {
                probe.clock_ahead_millis = Some(300_001)
            }),
            ("store-clock", Level::Bad, |probe| {
                probe.clock_ahead_millis = Some(-300_001)
            }),
            ("store-latency", Level::Warn, |probe| {
                probe.create_millis = vec![501]
            }),
            ("store-probe", Level::Bad, |probe| {
                probe.error = Some(error(StoreErrorKind::Unavailable))
            }),
        ];
        for (id, expected, fault) in cases {
            let mut probe = good();
            fault(&mut probe);
            let facts = facts(probe);
            assert_eq!(level(&facts, id), Some(expected), "{id}");
            let others = of_store(&facts);
            let others = others.iter().filter(|finding| finding.id != id);
            for other in others {
                assert_eq!(other.level, Level::Ok, "{id}: {other:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_prepared_is_unreachable_or_read_only_or_dishonest() {
        use StoreErrorKind::{Denied, Invalid, NotFound};
        let failed = |prepared, listed: Option<StoreErrorKind>| StoreFacts {
            prepared: Err(error(prepared)),
            listed: listed.map_or(Ok(()), |kind| Err(error(kind))),
            probe: None,
        };
        for (facts, id) in [
            (failed(NotFound, Some(NotFound)), "store-reachable"),
            (failed(Denied, Some(Denied)), "store-reachable"),
            (failed(Denied, None), "store-write"),
            (failed(Invalid, None), "store-conditional-create"),
        ] {
            assert_eq!(level(&facts, id), Some(Level::Bad), "{id}");
            let bad = of_store(&facts);
            assert_eq!(super::super::count(&bad, Level::Bad), 1, "{bad:?}");
        }
    }
}
