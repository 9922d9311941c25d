//! How far the store alone can rebuild: computed from what was confirmed, never assumed.

use std::collections::BTreeMap;

use crate::archive::block::Boundary;
use crate::archive::layout::Span;
use crate::position::Offset;

/// Tracks one timeline. Pieces are confirmed in any order; [`Durable::boundary`] moves only over contiguous
/// ones behind a base: a complete snapshot, or the position the timeline began at.
#[derive(Debug, Default)]
pub struct Durable {
    /// The last byte up to which everything can be rebuilt. `None` before the first base.
    end: Option<Offset>,
    /// The last command boundary at or below `end`: what may be acknowledged.
    boundary: Option<Boundary>,
    /// Confirmed stretches beyond `end`, by the offset before their first byte, disjoint.
    beyond: BTreeMap<Offset, Offset>,
    /// Boundaries beyond `boundary`, confirmed but perhaps not yet contiguous.
    boundaries: BTreeMap<Offset, Option<u32>>,
}

impl Durable {
    /// Begins where the archive already reaches; `None` for a new root.
    pub fn new(known: Option<Boundary>) -> Self {
        let mut durable = Self::default();
        if let Some(boundary) = known {
            durable.base(boundary);
        }
        durable
    }

    /// The last command boundary up to which everything can be rebuilt.
    pub fn boundary(&self) -> Option<Boundary> {
        self.boundary
    }

    /// A snapshot at `at` is complete in the store, or a parent reaches up to it.
    pub fn base(&mut self, at: Boundary) {
        if self.end.is_none_or(|end| end < at.offset) {
            self.end = Some(at.offset);
        }
        self.boundaries.entry(at.offset).or_insert(at.database);
        self.advance();
    }

    /// A segment is in the store. `boundary` is the last one inside it.
    pub fn confirm(&mut self, span: Span, boundary: Option<Boundary>) {
        let (mut after, mut last) = (span.first.previous(), span.last);
        // Join it with the stretches that it touches.
        let touching: Vec<Offset> = self
            .beyond
            .range(..=last)
            .filter(|(_, reach)| **reach >= after)
            .map(|(start, _)| *start)
            .collect();
        for start in touching {
            if let Some(reach) = self.beyond.remove(&start) {
                after = after.min(start);
                last = last.max(reach);
            }
        }
        self.beyond.insert(after, last);
        if let Some(boundary) = boundary {
            self.boundaries.insert(boundary.offset, boundary.database);
        }
        self.advance();
    }

    fn advance(&mut self) {
        let Some(mut end) = self.end else { return };
        while let Some((&after, &last)) = self.beyond.first_key_value()
            && after <= end
        {
            self.beyond.remove(&after);
            end = end.max(last);
        }
        self.end = Some(end);
        let unreached = self.boundaries.split_off(&end.next());
        if let Some((offset, database)) = self.boundaries.pop_last()
            && self
                .boundary
                .is_none_or(|boundary| boundary.offset <= offset)
        {
            self.boundary = Some(Boundary { offset, database });
        }
        self.boundaries = unreached;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::UnixMillis;

    fn span(first: u64, last: u64) -> Span {
        Span {
            first: Offset::new(first),
            last: Offset::new(last),
            first_at: UnixMillis(0),
            last_at: UnixMillis(0),
        }
    }

    fn boundary(offset: u64) -> Boundary {
        Boundary {
            offset: Offset::new(offset),
            database: Some(0),
        }
    }

    fn confirm(durable: &mut Durable, first: u64, last: u64) {
        durable.confirm(span(first, last), Some(boundary(last)));
    }

    fn reached(durable: &Durable) -> Option<u64> {
        durable.boundary().map(|boundary| boundary.offset.as_u64())
    }

    #[test]
    fn nothing_is_durable_before_the_snapshot_is_complete() {
        let mut durable = Durable::new(None);
        confirm(&mut durable, 101, 200);
        confirm(&mut durable, 201, 300);
        assert_eq!(reached(&durable), None);
        durable.base(boundary(150));
        assert_eq!(reached(&durable), Some(300));
    }

    #[test]
    fn a_hole_holds_everything_behind_it_back() {
        let mut durable = Durable::new(Some(boundary(100)));
        confirm(&mut durable, 201, 300);
        confirm(&mut durable, 301, 400);
        assert_eq!(reached(&durable), Some(100));
        confirm(&mut durable, 101, 200);
        assert_eq!(reached(&durable), Some(400));
    }

    #[test]
    fn behind_a_gap_only_a_new_snapshot_moves_it() {
        let mut durable = Durable::new(Some(boundary(100)));
        confirm(&mut durable, 501, 600);
        confirm(&mut durable, 601, 700);
        assert_eq!(reached(&durable), Some(100));
        durable.base(boundary(650));
        assert_eq!(reached(&durable), Some(700));
    }

    #[test]
    fn an_open_piece_is_durable_but_acknowledged_only_up_to_the_last_boundary() {
        let mut durable = Durable::new(Some(boundary(0)));
        durable.confirm(span(1, 100), Some(boundary(40)));
        assert_eq!(reached(&durable), Some(40));
        durable.confirm(span(101, 200), None);
        assert_eq!(reached(&durable), Some(40));
        durable.confirm(span(201, 300), Some(boundary(300)));
        assert_eq!(reached(&durable), Some(300));
    }

    #[test]
    fn overlapping_pieces_after_a_resume_count_once_and_nothing_goes_back() {
        let mut durable = Durable::new(Some(boundary(100)));
        confirm(&mut durable, 101, 200);
        confirm(&mut durable, 151, 180);
        assert_eq!(reached(&durable), Some(200));
        confirm(&mut durable, 151, 260);
        assert_eq!(reached(&durable), Some(260));
        durable.base(boundary(120));
        assert_eq!(reached(&durable), Some(260));
    }

    #[test]
    fn any_order_of_any_cut_reaches_the_same_end() {
        let mut order: Vec<u64> = (0..40).collect();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..200 {
            for i in (1..order.len()).rev() {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                order.swap(i, usize::try_from(state >> 33).unwrap() % (i + 1));
            }
            let mut durable = Durable::new(Some(boundary(0)));
            for (confirmed, piece) in order.iter().enumerate() {
                confirm(&mut durable, piece * 10 + 1, piece * 10 + 10);
                let mut contiguous = 0;
                while order[..=confirmed].contains(&contiguous) {
                    contiguous += 1;
                }
                assert_eq!(reached(&durable), Some(contiguous * 10));
            }
            assert!(durable.beyond.is_empty());
        }
    }
}
