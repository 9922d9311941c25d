//! Compression of blocks on the blocking pool, a bounded number at a time.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::archive::block::{BlockContext, Compressor, RawBlock};
use crate::follow::budget::Reservation;

/// Blocks that are compressed at the same time. Each compressor keeps a context and two buffers.
pub const ENCODERS_MAX: usize = 2;

/// Compressors to share.
#[derive(Debug)]
pub struct Encoder {
    idle: Mutex<Vec<Compressor>>,
    running: Semaphore,
}

impl Encoder {
    /// Compressors are made when first needed.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            idle: Mutex::new(Vec::new()),
            running: Semaphore::new(ENCODERS_MAX),
        })
    }

    /// Compresses one block; `held` shrinks to what the stored bytes need.
    pub async fn encode(
        self: &Arc<Self>,
        block: RawBlock,
        context: BlockContext,
        mut held: Reservation,
    ) -> (Bytes, Reservation) {
        let _turn = self
            .running
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let encoder = Arc::clone(self);
        let encode = move || {
            let idle = encoder
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop();
            let mut compressor = idle.unwrap_or_default();
            let bytes = block.encode(&context, &mut compressor);
            encoder
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(compressor);
            held.resize(bytes.len() as u64);
            (bytes, held)
        };
        // Threads take turns by chance.
        #[cfg(feature = "simulation")]
        if crate::random::seeded::is_seeded() {
            return encode();
        }
        tokio::task::spawn_blocking(encode)
            .await
            .expect("encoding a block neither panics nor is cancelled")
    }
}
