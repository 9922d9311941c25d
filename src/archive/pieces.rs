//! Bytes that wait to become a block: kept as they came, copied only where they are small.

use bytes::{Bytes, BytesMut};

/// Pieces below this length, in bytes, are copied together. A `Bytes` of fourteen bytes costs more than it
/// holds and keeps its whole receive buffer alive.
const SMALL_PIECE_BYTES: usize = 4096;

/// A sequence of bytes in pieces.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    whole: Vec<Bytes>,
    /// Small pieces since the last of `whole`.
    small: BytesMut,
    bytes: usize,
}

impl Pieces {
    pub(super) fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        if piece.len() < SMALL_PIECE_BYTES {
            self.small.extend_from_slice(&piece);
        } else {
            self.close_small();
            self.whole.push(piece);
        }
    }

    /// The number of bytes.
    pub(super) const fn len(&self) -> usize {
        self.bytes
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// All bytes in a row: as they are where there is one piece, else gathered in `scratch`.
    pub(super) fn contiguous(mut self, scratch: &mut Vec<u8>) -> Contiguous<'_> {
        self.close_small();
        if self.whole.len() == 1
            && let Some(only) = self.whole.pop()
        {
            return Contiguous::Whole(only);
        }
        scratch.clear();
        scratch.reserve(self.bytes);
        for piece in &self.whole {
            scratch.extend_from_slice(piece);
        }
        Contiguous::Gathered(scratch)
    }

    fn close_small(&mut self) {
        if !self.small.is_empty() {
            self.whole.push(self.small.split().freeze());
        }
    }
}

impl From<Bytes> for Pieces {
    fn from(bytes: Bytes) -> Self {
        Self {
            bytes: bytes.len(),
            whole: vec![bytes],
            small: BytesMut::new(),
        }
    }
}

/// What [`Pieces::contiguous`] yields.
pub(super) enum Contiguous<'a> {
    Whole(Bytes),
    Gathered(&'a [u8]),
}

impl std::ops::Deref for Contiguous<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Whole(bytes) => bytes,
            Self::Gathered(bytes) => bytes,
        }
    }
}
