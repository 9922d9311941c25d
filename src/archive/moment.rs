//! Where a moment lies on the way to a position, as far as object names tell: which segment's marks have to be looked
//! into, or which moments on either side can be restored instead. `restore::moment` reads that segment.

use std::fmt;

use super::plan::segments_over;
use super::timeline::{Catalog, SegmentEntry};
use super::times::Times;
use crate::position::{Offset, Position, TimelineSeq, UnixMillis};

/// A position, and when its last byte was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// The position.
    pub position: Position,
    /// The time that counts for it.
    pub at: UnixMillis,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.at, self.position)
    }
}

/// Why nothing can be restored as of a moment, or at an offset.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OutsideWindow {
    /// There is nothing at all on this way.
    #[error("nothing on the way to timeline {0} can be restored")]
    Nothing(TimelineSeq),
    /// Before everything.
    #[error(
        "{wanted} lies before what the archive can restore; the nearest restorable moment is {first}"
    )]
    Before {
        /// What was asked for.
        wanted: String,
        /// The first.
        first: Moment,
    },
    /// Between two restorable stretches.
    #[error(
        "{wanted} lies in a gap of the archive; the nearest restorable moments are {before} and {after}"
    )]
    Gap {
        /// What was asked for.
        wanted: String,
        /// The last one before the gap.
        before: Moment,
        /// The first one behind it.
        after: Moment,
    },
    /// Behind everything.
    #[error("{wanted} {}; the nearest restorable moment is {last}", if *future { "lies in the future" } else { "lies behind what the archive can restore" })]
    Behind {
        /// What was asked for.
        wanted: String,
        /// The last.
        last: Moment,
        /// It has not come yet.
        future: bool,
    },
}

/// A stretch of a timeline in which every boundary can be restored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// The timeline.
    pub timeline: TimelineSeq,
    /// Its first restorable position: a snapshot's, or the start of the timeline.
    pub after: Offset,
    /// Its last one that counts on this way.
    pub to: Offset,
    /// When the data were at `after`.
    pub begins_at: UnixMillis,
    /// When its last byte was received.
    pub ends_at: UnixMillis,
    /// It goes on exactly where the stretch before it ends.
    pub continues: bool,
    /// Its segments in order, each with the times that count for its first and its last byte.
    pub segments: Vec<(SegmentEntry, UnixMillis, UnixMillis)>,
}

impl Stretch {
    fn position(&self, offset: Offset) -> Position {
        Position {
            timeline: self.timeline,
            offset,
        }
    }

    fn first(&self) -> Moment {
        Moment {
            position: self.position(self.after),
            at: self.begins_at,
        }
    }

    fn last(&self) -> Moment {
        Moment {
            position: self.position(self.to),
            at: self.ends_at,
        }
    }
}

/// Everything restorable between the root and a position, in order.
#[derive(Clone, Debug)]
pub struct Way {
    tip: Position,
    /// Bytes are stored behind the tip that nothing leads to: what lies between is lost, and the tip is not the state of
    /// any later time.
    is_broken_off: bool,
    stretches: Vec<Stretch>,
    /// Begun for the first stretch.
    times: Times,
}

/// What the names tell of a moment.
#[derive(Clone, Debug)]
pub struct Located {
    /// Which stretch, of [`Way::stretches`].
    pub stretch: usize,
    /// Which of its segments; nothing where the moment is that of the stretch's first position.
    pub segment: Option<usize>,
    /// The times of that segment's marks are asked of this.
    pub times: Times,
}

impl Way {
    /// The way from the root to `tip`.
    pub fn new(catalog: &Catalog, tip: Position) -> Self {
        let mut stretches: Vec<Stretch> = Vec::new();
        for step in catalog.lineage(tip).into_iter().rev() {
            for window in catalog.windows(step.timeline) {
                if window.after > step.offset {
                    continue;
                }
                let to = window.last.min(step.offset);
                stretches.extend(stretch(catalog, step.timeline, window.after, to));
            }
        }
        let mut way = Self {
            tip,
            is_broken_off: is_end(catalog, tip) && catalog.holds_beyond(tip),
            times: Times::new(times_told(&stretches).collect::<Vec<_>>().into_iter()),
            stretches,
        };
        way.settle_times();
        way
    }

    /// All of them, in order.
    pub fn stretches(&self) -> &[Stretch] {
        &self.stretches
    }

    /// Whether bytes are stored behind its end that nothing leads to.
    pub const fn is_broken_off(&self) -> bool {
        self.is_broken_off
    }

    /// From the first restorable moment to the last, gaps between them aside.
    pub fn window(&self) -> Option<(Moment, Moment)> {
        let first = self.stretches.first()?;
        let last = self.stretches.last()?;
        Some((first.first(), last.last()))
    }

    /// Replaces the times of the names by those that count.
    fn settle_times(&mut self) {
        let mut times = self.times.clone();
        let mut reached = UnixMillis(0);
        for stretch in &mut self.stretches {
            times.begin();
            let named = if stretch.continues {
                reached
            } else {
                stretch.begins_at
            };
            stretch.begins_at = times.at(named);
            stretch.ends_at = stretch.begins_at;
            for (segment, first_at, last_at) in &mut stretch.segments {
                times.begin();
                *first_at = times.at(segment.span.first_at);
                let is_cut = stretch.to < segment.span.last;
                *last_at = times.at(if is_cut {
                    times.no_later_than_next(segment.span.last_at)
                } else {
                    segment.span.last_at
                });
                stretch.ends_at = *last_at;
            }
            reached = stretch.ends_at;
        }
    }

    /// The last piece of the way that begins at or before `moment`.
    ///
    /// # Errors
    /// [`OutsideWindow`]: before the first, in a gap, or later than `now`.
    pub fn at_time(&self, moment: UnixMillis, now: UnixMillis) -> Result<Located, OutsideWindow> {
        let (Some(first), Some(last)) = (self.stretches.first(), self.stretches.last()) else {
            return Err(OutsideWindow::Nothing(self.tip.timeline));
        };
        let wanted = || moment.to_string();
        if moment > now {
            return Err(OutsideWindow::Behind {
                wanted: wanted(),
                last: last.last(),
                future: true,
            });
        }
        let index = self
            .stretches
            .iter()
            .rposition(|stretch| stretch.begins_at <= moment)
            .ok_or_else(|| OutsideWindow::Before {
                wanted: wanted(),
                first: first.first(),
            })?;
        let here = &self.stretches[index];
        if let Some(next) = self.stretches.get(index + 1)
            && !next.continues
            && moment > here.ends_at
        {
            return Err(OutsideWindow::Gap {
                wanted: wanted(),
                before: here.last(),
                after: next.first(),
            });
        }
        if self.is_broken_off && moment > last.ends_at {
            return Err(OutsideWindow::Behind {
                wanted: wanted(),
                last: last.last(),
                future: false,
            });
        }
        let segment = here
            .segments
            .iter()
            .rposition(|(_, first_at, _)| *first_at <= moment);
        Ok(self.located(index, segment))
    }

    /// The stretch that holds an offset of a timeline.
    ///
    /// # Errors
    /// [`OutsideWindow`].
    pub fn at_offset(&self, position: Position) -> Result<Located, OutsideWindow> {
        let is_before = |stretch: &Stretch| {
            (stretch.timeline, stretch.after) <= (position.timeline, position.offset)
        };
        let wanted = || position.to_string();
        let Some(index) = self.stretches.iter().rposition(is_before) else {
            let first = self.stretches.first().map(Stretch::first);
            return Err(
                first.map_or(OutsideWindow::Nothing(self.tip.timeline), |first| {
                    OutsideWindow::Before {
                        wanted: wanted(),
                        first,
                    }
                }),
            );
        };
        let here = &self.stretches[index];
        if here.timeline == position.timeline && position.offset <= here.to {
            let segment = here
                .segments
                .iter()
                .position(|(segment, ..)| segment.span.last >= position.offset);
            let segment = segment.filter(|_| here.after < position.offset);
            return Ok(self.located(index, segment));
        }
        let before = here.last();
        Err(match self.stretches.get(index + 1).map(Stretch::first) {
            Some(after) => OutsideWindow::Gap {
                wanted: wanted(),
                before,
                after,
            },
            None => OutsideWindow::Behind {
                wanted: wanted(),
                last: before,
                future: false,
            },
        })
    }

    /// With the times as they stand in front of the segment's marks.
    fn located(&self, stretch: usize, segment: Option<usize>) -> Located {
        let mut times = self.times.clone();
        for (index, passed) in self.stretches.iter().enumerate().take(stretch + 1) {
            times.begin();
            times.at(passed.begins_at);
            let here = index == stretch;
            let before = if here {
                segment.unwrap_or(0)
            } else {
                passed.segments.len()
            };
            for (_, _, last_at) in passed.segments.iter().take(before) {
                times.begin();
                times.at(*last_at);
            }
        }
        if segment.is_some() {
            times.begin();
        }
        Located {
            stretch,
            segment,
            times,
        }
    }
}

/// The timelines off the way to `tip` that hold something of a time: what they received by then is later than
/// `later_than`, where that is given.
pub fn elsewhere(
    catalog: &Catalog,
    tip: Position,
    moment: UnixMillis,
    later_than: Option<UnixMillis>,
) -> Vec<TimelineSeq> {
    let way = catalog.lineage(tip);
    let is_on_the_way = |end: &Position| {
        let step = way.iter().find(|step| step.timeline == end.timeline);
        step.is_some_and(|step| step.offset >= end.offset)
    };
    let holds = |end: &Position| {
        Way::new(catalog, *end).stretches.iter().any(|stretch| {
            stretch.timeline == end.timeline
                && stretch.begins_at <= moment
                && later_than.is_none_or(|later_than| stretch.ends_at > later_than)
        })
    };
    let ends = catalog.timelines().filter_map(|timeline| {
        let timeline = timeline.seq();
        let offset = catalog.end(timeline)?;
        Some(Position { timeline, offset })
    });
    ends.filter(|end| !is_on_the_way(end) && holds(end))
        .map(|end| end.timeline)
        .collect()
}

/// Whether a position is the end of its timeline, as far as it can be restored.
fn is_end(catalog: &Catalog, position: Position) -> bool {
    catalog.end(position.timeline) == Some(position.offset)
}

/// When the pieces of some stretches begin and end, in order, as their names say.
fn times_told(stretches: &[Stretch]) -> impl Iterator<Item = (UnixMillis, UnixMillis)> + '_ {
    stretches.iter().flat_map(|stretch| {
        let segments = stretch
            .segments
            .iter()
            .map(|(segment, ..)| (segment.span.first_at, segment.span.last_at));
        // What goes on from the stretch before it says nothing of when.
        let own = if stretch.continues {
            UnixMillis(u64::MAX)
        } else {
            stretch.begins_at
        };
        std::iter::once((own, own)).chain(segments)
    })
}

fn stretch(catalog: &Catalog, seq: TimelineSeq, after: Offset, to: Offset) -> Option<Stretch> {
    let timeline = catalog.timeline(seq)?;
    let snapshot = timeline
        .snapshots
        .iter()
        .find(|snapshot| snapshot.offset == after);
    let inherited = after == timeline.document.start && catalog.is_inherited(seq);
    let begins_at = snapshot.map_or(timeline.document.created_at, |snapshot| snapshot.at);
    Some(Stretch {
        timeline: seq,
        after,
        to,
        begins_at,
        ends_at: begins_at,
        continues: inherited,
        segments: segments_over(timeline, after, to)
            .into_iter()
            .map(|segment| {
                let span = segment.span;
                (segment, span.first_at, span.last_at)
            })
            .collect(),
    })
}

#[cfg(test)]
mod tests;
