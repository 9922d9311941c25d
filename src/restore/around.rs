//! Plans around objects that turned out to be damaged or gone: to the very same position, from an older snapshot, or from
//! the segments that a merged one was made of. Pure.

use std::borrow::Cow;
use std::collections::HashSet;

use super::source::Unusable;
use crate::archive::layout::ObjectName;
use crate::archive::plan::{Plan, PlanError, Target, continuation, plan};
use crate::archive::timeline::Catalog;
use crate::position::Position;

/// So many objects are passed over by one restore: each costs a new beginning.
pub const PASSED_OVER_MAX: usize = 64;

/// Objects that plans pass over.
#[derive(Clone, Debug, Default)]
pub struct Around(HashSet<ObjectName>);

impl Around {
    /// Passes an object over from here on. `false` where it was passed over before, or where they are too many: then
    /// nothing is gained by trying again.
    pub fn pass_over(&mut self, name: &ObjectName) -> bool {
        self.0.len() < PASSED_OVER_MAX && self.0.insert(name.clone())
    }

    /// Whether nothing is passed over.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is left of an archive.
    pub fn rest<'a>(&self, catalog: &'a Catalog) -> Cow<'a, Catalog> {
        if self.is_empty() {
            return Cow::Borrowed(catalog);
        }
        Cow::Owned(catalog.without(&self.0))
    }

    /// What is left, where it holds every moment that was there before. Else a moment that is looked up in it may be
    /// another one.
    pub fn rest_of_all_moments(&self, catalog: &Catalog) -> Option<Catalog> {
        let rest = self.rest(catalog);
        let is_whole = catalog
            .timelines()
            .all(|timeline| catalog.windows(timeline.seq()) == rest.windows(timeline.seq()));
        is_whole.then(|| rest.into_owned())
    }

    /// Plans a restore of this very position from what is left; where a server already holds `from`, only what it lacks.
    ///
    /// # Errors
    /// [`PlanError`] where what is left does not lead there.
    pub fn plan(
        &self,
        catalog: &Catalog,
        target: Position,
        from: Option<Position>,
    ) -> Result<Plan, PlanError> {
        let rest = self.rest(catalog);
        match from {
            Some(from) => continuation(&rest, from, Target::Offset(target)),
            None => plan(&rest, Target::Offset(target)),
        }
    }
}

/// What is done about an object that cannot be used, for the log.
pub fn said(unusable: &Unusable, planned: &Plan) -> String {
    let Unusable { name, why } = unusable;
    // Whoever reads of a damaged block should not have to look for its object.
    let named = if why.contains(name.as_str()) {
        String::new()
    } else {
        format!("{name}: ")
    };
    format!(
        "{named}{why}; it is passed over: {} is restored from {} and {} segments behind it instead ({} in all), which \
         is the very same moment; `perennial verify` tells what else is damaged",
        planned.target,
        planned.snapshot.name,
        planned.segments(),
        bytesize::ByteSize(planned.stored_bytes()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::timeline::sketch::Sketch;
    use crate::position::{Offset, TimelineSeq};

    fn at(timeline: u32, offset: u64) -> Position {
        Position {
            timeline: TimelineSeq::new(timeline),
            offset: Offset::new(offset),
        }
    }

    /// Two snapshots and a merged segment beside what it was made of; then a gap, and a snapshot behind it.
    fn catalog() -> Catalog {
        Sketch::default()
            .timeline(1, 1, None, 0)
            .snapshot(0)
            .segment(1, 50)
            .segment(51, 100)
            .merged(1, 100)
            .snapshot(60)
            .segment(101, 150)
            .segment(201, 300)
            .snapshot(250)
            .catalog()
    }

    fn spans(plan: &Plan) -> Vec<(u64, u64)> {
        let segments = plan.legs.iter().flat_map(|leg| &leg.segments);
        segments
            .map(|it| (it.span.first.as_u64(), it.span.last.as_u64()))
            .collect()
    }

    fn passing_over(names: &[&ObjectName]) -> Around {
        let mut around = Around::default();
        for name in names {
            assert!(around.pass_over(name));
        }
        around
    }

    #[test]
    fn an_older_snapshot_leads_to_the_same_position() {
        let catalog = catalog();
        let newest = plan(&catalog, Target::Offset(at(1, 120))).unwrap();
        assert_eq!(newest.snapshot.offset, Offset::new(60));
        let around = passing_over(&[&newest.snapshot.name]);
        let older = around.plan(&catalog, newest.target, None).unwrap();
        assert_eq!(
            (older.target, older.snapshot.offset),
            (newest.target, Offset::ZERO)
        );
        assert_eq!(spans(&older), [(1, 100), (101, 150)]);
        assert!(around.rest_of_all_moments(&catalog).is_some());
        let both = passing_over(&[&newest.snapshot.name, &older.snapshot.name]);
        assert!(both.plan(&catalog, newest.target, None).is_err());
        assert!(both.rest_of_all_moments(&catalog).is_none());
    }

    #[test]
    fn nothing_older_is_restored_where_nothing_else_leads_there() {
        let catalog = catalog();
        let latest = plan(&catalog, Target::Latest).unwrap();
        assert_eq!(latest.target, at(1, 300));
        let around = passing_over(&[&latest.snapshot.name]);
        assert!(around.plan(&catalog, latest.target, None).is_err());
        assert!(
            around.rest_of_all_moments(&catalog).is_none(),
            "the head is another one"
        );
    }

    #[test]
    fn a_merged_segment_gives_way_to_what_it_was_made_of() {
        let catalog = catalog();
        let target = at(1, 80);
        let by_merged = plan(&catalog, Target::Offset(target)).unwrap();
        assert_eq!(spans(&by_merged), [(1, 100)]);
        let merged = &by_merged.legs[0].segments[0].name;
        let around = passing_over(&[merged]);
        let by_pieces = around.plan(&catalog, target, None).unwrap();
        assert_eq!(spans(&by_pieces), [(51, 100)]);
        assert!(around.rest_of_all_moments(&catalog).is_some());
        let goes_on = around.plan(&catalog, target, Some(at(1, 20))).unwrap();
        assert_eq!(spans(&goes_on), [(1, 50), (51, 100)]);
        let lost = passing_over(&[merged, &by_pieces.legs[0].segments[0].name]);
        assert!(lost.plan(&catalog, target, None).is_err());
    }

    #[test]
    fn nothing_is_passed_over_twice() {
        let catalog = catalog();
        let mut around = Around::default();
        assert!(around.is_empty());
        let name = plan(&catalog, Target::Latest).unwrap().snapshot.name;
        assert!(around.pass_over(&name) && !around.pass_over(&name));
    }
}
