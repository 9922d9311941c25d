//! `--at`: a moment as it is typed, and the plan that it comes to.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::bail;

use super::Exit;
use super::flags::{RestoreArguments, TtlFlag};
use crate::archive::layout::{ArchiveId, Object, ObjectName};
use crate::archive::moment::{self, OutsideWindow, Way};
use crate::archive::plan::{Plan, PlanError, Target, plan};
use crate::archive::timeline::Catalog;
use crate::clock::Clock;
use crate::position::{Offset, Position, TimelineSeq, UnixMillis};
use crate::restore::moment::{Found, MomentError, Moments, Next};
use crate::restore::ttl::Ttl;
use crate::store::Store;
use crate::store::catalog::Loaded;

/// `--at`, read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// The head.
    Latest,
    /// The end of a timeline.
    Timeline(TimelineSeq),
    /// A place on a way: the head's where no timeline is named.
    On(Place, Option<TimelineSeq>),
}

/// What has to be looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The last boundary at or before an offset.
    Offset(Offset),
    /// The last boundary received at or before a time.
    Time(UnixMillis),
}

impl When {
    /// Reads what was typed at `now`.
    ///
    /// # Errors
    /// What can be written instead: a usage error.
    pub fn read(text: &str, now: UnixMillis) -> Result<Self, Exit> {
        Self::parse(text, now).ok_or_else(|| Exit {
            message: format!(
                "--at {text}: write latest, a time with its zone like 2026-11-21T14:30:00Z or 2026-11-21T15:30:00+01:00, \
                 \"10m ago\", offset:N or timeline:SEQ; behind a time or an offset, @SEQ names a timeline. `perennial ls` \
                 shows what there is"
            ),
            code: 2,
        })
    }

    fn parse(text: &str, now: UnixMillis) -> Option<Self> {
        if text == "latest" {
            return Some(Self::Latest);
        }
        let seq = |text: &str| text.parse().map(TimelineSeq::new).ok();
        if let Some(number) = text.strip_prefix("timeline:") {
            return seq(number).map(Self::Timeline);
        }
        let (moment, timeline) = match text.split_once('@') {
            Some((moment, number)) => (moment.trim_end(), Some(seq(number)?)),
            None => (text, None),
        };
        if let Some(offset) = moment.strip_prefix("offset:") {
            let offset = Offset::new(offset.parse().ok()?);
            return Some(Self::On(Place::Offset(offset), timeline));
        }
        let time = ago(moment, now).or_else(|| rfc3339(moment))?;
        Some(Self::On(Place::Time(time), timeline))
    }
}

/// "10m ago"
fn ago(text: &str, now: UnixMillis) -> Option<UnixMillis> {
    let span = humantime::parse_duration(text.strip_suffix("ago")?.trim_end()).ok()?;
    let millis = u64::try_from(span.as_millis()).ok()?;
    now.0.checked_sub(millis).map(UnixMillis)
}

/// A time with its zone: one without could mean two different moments.
fn rfc3339(text: &str) -> Option<UnixMillis> {
    let upper = text.to_ascii_uppercase();
    let (local, ahead_minutes) = match upper.strip_suffix('Z') {
        Some(local) => (local, 0),
        None => {
            let sign_at = upper.len().checked_sub("+00:00".len())?;
            let (local, zone) = upper.split_at_checked(sign_at)?;
            (local, minutes_ahead(zone)?)
        }
    };
    let since = humantime::parse_rfc3339_weak(local)
        .ok()?
        .duration_since(UNIX_EPOCH)
        .ok()?;
    let millis = i64::try_from(since.as_millis()).ok()?;
    let ahead = i64::try_from(Duration::from_secs(60).as_millis()).ok()? * ahead_minutes;
    u64::try_from(millis - ahead).ok().map(UnixMillis)
}

/// Of "+01:00": 60.
fn minutes_ahead(zone: &str) -> Option<i64> {
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let number = |digits: &str| {
        digits
            .bytes()
            .all(|it| it.is_ascii_digit())
            .then(|| digits.parse::<i64>().ok())
    };
    let (hours, minutes) = (number(hours)??, number(minutes)??);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 60 + minutes))
}

/// A plan, and how its end was found.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What to read.
    pub plan: Plan,
    /// Where a boundary was looked for: what it stands for.
    pub found: Option<Found>,
    /// What was asked for.
    pub when: When,
    /// Timelines off the way to the head that hold something of the time that was asked for, where the way does not.
    pub elsewhere: Vec<TimelineSeq>,
}

impl Planned {
    /// Everything received up to then is included, where that was looked up.
    pub fn received_until(&self) -> Option<UnixMillis> {
        self.found.map(|found| found.received_until)
    }

    /// What comes next was received by then, where that was looked up and something is there.
    pub fn next_by(&self) -> Option<UnixMillis> {
        self.found.and_then(|found| found.next_by())
    }

    /// Which moment the plan's end stands for, in words.
    pub fn said(&self) -> Vec<String> {
        let Some(found) = self.found else {
            return Vec::new();
        };
        let mut lines = Vec::new();
        if let When::On(Place::Offset(offset), _) = self.when
            && offset != found.position.offset
        {
            lines.push(format!(
                "offset {offset} lies inside a command or transaction: cut at the last whole one before it, {}",
                found.position.offset
            ));
        }
        let (position, from) = (found.position, found.received_until);
        lines.push(match found.next {
            Next::By(to) => format!(
                "{position} stands for every moment from {from} to {to} (receive times; resolution {} ms)",
                to.0.saturating_sub(from.0)
            ),
            Next::Missing => format!(
                "{position} stands for {from}: what came next is missing from the archive, so until when it does cannot \
                 be told (`perennial verify` names the gap)"
            ),
            Next::Nothing if self.elsewhere.is_empty() => format!(
                "{position} stands for every moment from {from} on: the archive has nothing later"
            ),
            Next::Nothing => format!(
                "{position} stands for every moment from {from} on: there is nothing later on the way to it"
            ),
        });
        lines
    }
}

/// What `--ttl` comes to: as much is left of each time as there was at the planned moment.
pub fn ttl(planned: &Planned, arguments: &RestoreArguments, clock: &dyn Clock) -> Ttl {
    let moment = match planned.when {
        When::On(Place::Time(time), _) => time,
        _ => planned.received_until().unwrap_or(planned.plan.until),
    };
    match arguments.ttl {
        TtlFlag::Keep => Ttl::Keep,
        TtlFlag::Shift => Ttl::Shift(clock.unix().0.saturating_sub(moment.0)),
        TtlFlag::None => Ttl::Drop,
    }
}

/// Finds the moment and plans. Looks into the end of the timeline that is asked for, and for a time or an offset into
/// the one segment where it lies.
///
/// # Errors
/// What cannot be read, or why the moment cannot be restored; the inner one where there is no plan at all.
pub async fn plan_for(
    when: When,
    loaded: &mut Loaded,
    store: &Arc<dyn Store>,
    archive: ArchiveId,
    now: UnixMillis,
) -> anyhow::Result<Result<Planned, PlanError>> {
    let mut elsewhere = Vec::new();
    let (found, target) = match when {
        When::Latest => (None, Target::Latest),
        When::Timeline(seq) => (None, Target::Timeline(seq)),
        When::On(place, timeline) => {
            let tip = match tip_of(loaded, &**store, timeline).await? {
                Ok(tip) => tip,
                Err(error) => return Ok(Err(error)),
            };
            let way = Way::new(&loaded.catalog, tip);
            let moments = Moments {
                store,
                archive,
                way: &way,
            };
            let found = match place {
                Place::Time(time) => {
                    let found = moments.at_time(time, now).await;
                    if timeline.is_none() {
                        elsewhere = off_the_way(&loaded.catalog, tip, time, &found);
                        warn_of(&elsewhere, time);
                    }
                    found?
                }
                Place::Offset(offset) => {
                    let timeline = on_the_way(&loaded.catalog, tip, offset);
                    moments.at_offset(Position { timeline, offset }).await?
                }
            };
            (Some(found), Target::Offset(found.position))
        }
    };
    if let Target::Timeline(seq) = target {
        loaded.resolve(&**store, seq).await?;
    }
    let plan = plan(&loaded.catalog, target);
    if let Ok(plan) = &plan {
        refuse_damaged_end(loaded, plan, found, when)?;
    }
    Ok(plan.map(|plan| Planned {
        plan,
        found,
        when,
        elsewhere,
    }))
}

/// Where the way to the head holds nothing of a time: the timelines that do.
fn off_the_way(
    catalog: &Catalog,
    tip: Position,
    time: UnixMillis,
    found: &Result<Found, MomentError>,
) -> Vec<TimelineSeq> {
    match found {
        Ok(found) if found.next_by().is_none() => {
            moment::elsewhere(catalog, tip, time, Some(found.received_until))
        }
        Err(MomentError::Outside(OutsideWindow::Before { .. })) => {
            moment::elsewhere(catalog, tip, time, None)
        }
        _ => Vec::new(),
    }
}

fn warn_of(elsewhere: &[TimelineSeq], time: UnixMillis) {
    if elsewhere.is_empty() {
        return;
    }
    let named: Vec<String> = elsewhere
        .iter()
        .map(|seq| format!("--at \"{time}@{seq}\""))
        .collect();
    tracing::warn!(
        "the way to the head holds nothing of {time}, and another timeline does: {} (`perennial status` tells of them)",
        named.join(", ")
    );
}

/// Where the way ends on which a moment is looked for.
async fn tip_of(
    loaded: &mut Loaded,
    store: &dyn Store,
    timeline: Option<TimelineSeq>,
) -> anyhow::Result<Result<Position, PlanError>> {
    let target = timeline.map_or(Target::Latest, Target::Timeline);
    if let Some(seq) = timeline {
        loaded.resolve(store, seq).await?;
    }
    Ok(plan(&loaded.catalog, target).map(|plan| plan.target))
}

/// An offset counts on the way to the tip: before a failover or a seed, on an ancestor.
fn on_the_way(catalog: &Catalog, tip: Position, offset: Offset) -> TimelineSeq {
    let starts_before = |step: &&Position| {
        catalog
            .timeline(step.timeline)
            .is_some_and(|timeline| timeline.document.start <= offset)
    };
    let way = catalog.lineage(tip);
    let step = way.iter().find(starts_before).or(way.last());
    step.map_or(tip.timeline, |step| step.timeline)
}

/// Where the very end of a timeline is damaged, what lies before it is a shorter history: not restored for the whole.
fn refuse_damaged_end(
    loaded: &Loaded,
    plan: &Plan,
    found: Option<Found>,
    when: When,
) -> anyhow::Result<()> {
    let target = plan.target;
    let is_end = found.is_none_or(|found| match found.next {
        Next::By(_) => false,
        Next::Missing => loaded.catalog.end(target.timeline) == Some(target.offset),
        Next::Nothing => true,
    });
    if is_end
        && let Some(damaged) = loaded.damaged(plan.target.timeline)
        && !is_before(when, &damaged.name)
    {
        bail!("{damaged}; or restore what lies before it with --at offset:N");
    }
    Ok(())
}

/// Whether what is asked for lies before everything in a segment.
fn is_before(when: When, name: &ObjectName) -> bool {
    let Some(Object::Segment { span, .. }) = Object::parse(name.as_str()) else {
        return false;
    };
    match when {
        When::On(Place::Time(time), _) => time < span.first_at,
        When::On(Place::Offset(offset), _) => offset < span.first,
        When::Latest | When::Timeline(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::archive::timeline::sketch::Sketch;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_123);

    /// Whichever timeline's end was named, what lies before a fork lies on an ancestor.
    #[test]
    fn an_offset_lies_on_the_way_to_the_timeline_that_was_named() {
        let catalog = Sketch::default()
            .timeline(1, 1, None, 10)
            .snapshot(10)
            .segment(11, 100)
            .timeline(2, 2, Some((1, 80)), 80)
            .segment(81, 130)
            .timeline(3, 3, Some((1, 100)), 100)
            .segment(101, 140)
            .catalog();
        let on = |tip: u32, end, offset| {
            let tip = Position {
                timeline: TimelineSeq::new(tip),
                offset: Offset::new(end),
            };
            let timeline = on_the_way(&catalog, tip, Offset::new(offset));
            let position = Position {
                timeline,
                offset: Offset::new(offset),
            };
            let is_found = Way::new(&catalog, tip).at_offset(position).is_ok();
            (timeline.as_u32(), is_found)
        };
        assert_eq!(on(2, 130, 120), (2, true));
        assert_eq!(on(2, 130, 80), (2, true));
        assert_eq!(on(2, 130, 79), (1, true));
        assert_eq!(on(3, 140, 99), (1, true), "of another branch");
        assert_eq!(on(2, 130, 131), (2, false), "behind its end");
        assert_eq!(on(2, 130, 9), (1, false), "before everything");
    }

    #[test]
    fn moments_are_read_as_written() {
        let seq = TimelineSeq::new(3);
        let read = |text| When::read(text, NOW).unwrap();
        assert_eq!(read("latest"), When::Latest);
        assert_eq!(read("timeline:3"), When::Timeline(seq));
        assert_eq!(
            read("offset:17"),
            When::On(Place::Offset(Offset::new(17)), None)
        );
        assert_eq!(
            read("offset:17@3"),
            When::On(Place::Offset(Offset::new(17)), Some(seq))
        );
    }

    #[test]
    fn times_are_read_with_their_zone() {
        for (text, millis) in [
            ("2023-11-14T22:13:20Z", 1_700_000_000_000),
            ("2023-11-14 22:13:20z", 1_700_000_000_000),
            ("2023-11-14T22:13:20.125Z", 1_700_000_000_125),
            ("2023-11-14T23:43:20+01:30", 1_700_000_000_000),
            ("2023-11-14T14:13:20.5-08:00", 1_700_000_000_500),
            ("10m ago", NOW.0 - 600_000),
            ("1h 30s ago", NOW.0 - 3_630_000),
            ("0s ago", NOW.0),
        ] {
            let expected = When::On(Place::Time(UnixMillis(millis)), None);
            assert_eq!(When::read(text, NOW).unwrap(), expected, "{text}");
        }
        assert_eq!(
            When::read("10m ago@2", NOW).unwrap(),
            When::On(
                Place::Time(UnixMillis(NOW.0 - 600_000)),
                Some(TimelineSeq::new(2))
            )
        );
        assert_eq!(
            When::read("2023-11-14T22:13:20Z@2", NOW).unwrap(),
            When::On(
                Place::Time(UnixMillis(1_700_000_000_000)),
                Some(TimelineSeq::new(2))
            )
        );
    }

    #[test]
    fn what_is_no_moment_says_what_is() {
        for text in [
            "teatime",
            "offset:",
            "offset:x",
            "offset:1@",
            "timeline:",
            "timeline:3@4",
            "",
            "@",
            "ago",
            "10 parsecs ago",
            "90y ago",
            "2023-11-14T22:13:20",
            "2023-11-14",
            "2023-13-14T22:13:20Z",
            "2023-11-14T22:13:20+0100",
            "2023-11-14T22:13:20+25:00",
            "1969-12-31T23:59:59Z",
            "\u{20ac}\u{20ac}\u{20ac}",
        ] {
            let error = When::read(text, NOW).unwrap_err();
            assert_eq!(error.code, 2, "{text}");
            assert!(error.message.contains("timeline:SEQ"), "{text}");
        }
    }
}
