//! The part of a block of the replication stream behind an offset, as a block of its own: where two segments overlap,
//! only one of them gives the bytes.

use super::block::{Block, Content, RawBlock};
use crate::position::Offset;

/// The part of a commands block behind `reached`, before which `database` is selected. `None` where nothing is left, or
/// the block is no piece of a replication stream.
pub fn behind(block: Block, reached: Offset, database: Option<u32>) -> Option<RawBlock> {
    let Block {
        header,
        mut marks,
        mut payload,
    } = block;
    let Content::Commands { first, last } = header.content else {
        return None;
    };
    let skip = usize::try_from(reached.next().bytes_since(first)).ok()?;
    if skip >= payload.len() {
        return None;
    }
    marks.retain(|mark| mark.offset > reached);
    Some(RawBlock {
        content: Content::Commands {
            first: first.plus(skip as u64),
            last,
        },
        pieces: payload.split_off(skip).into(),
        boundary: header.boundary.filter(|at| at.offset > reached),
        database_start: database,
        database_end: header.database_end,
        // At that time its first bytes were there, and perhaps more.
        first_at: marks.first().map_or(header.last_at, |mark| mark.at),
        last_at: header.last_at,
        marks,
    })
}
