//! Gathers one reply line, whatever the pieces it comes in.

use bytes::{Buf, Bytes};

use super::refusal::HEAD_BYTES_MAX;

/// The longest reply line accepted, bytes.
const REPLY_BYTES_MAX: usize = 64 * 1024;

/// A reply line of which some may have come.
#[derive(Debug, Default)]
pub(super) struct LineReader {
    gathered: Vec<u8>,
}

impl LineReader {
    /// Takes bytes up to and including a line end. `Ok` is a whole line without its end, `Err` the beginning
    /// of one that is too long. A line that begins with none of `markers` is too long early: what is not
    /// Redis need not end its lines.
    ///
    /// Lone `\n` are skipped: a master sends them to keep a link alive, before `+FULLRESYNC` and before the
    /// payload (`protocol-facts` 1.5).
    pub(super) fn take(
        &mut self,
        bytes: &mut Bytes,
        markers: &[u8],
    ) -> Option<Result<Vec<u8>, Vec<u8>>> {
        if self.gathered.is_empty() {
            let blank = bytes.iter().take_while(|&&byte| byte == b'\n').count();
            bytes.advance(blank);
        }
        let first = *self.gathered.first().or(bytes.first())?;
        let bytes_max = match markers.contains(&first) {
            true => REPLY_BYTES_MAX,
            false => HEAD_BYTES_MAX,
        };
        let room = bytes.len().min(bytes_max - self.gathered.len());
        let end = bytes[..room].iter().position(|&byte| byte == b'\n');
        self.gathered
            .extend_from_slice(&bytes[..end.unwrap_or(room)]);
        bytes.advance(end.map_or(room, |end| end + 1));
        if end.is_some() {
            let mut line = std::mem::take(&mut self.gathered);
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            return Some(Ok(line));
        }
        (self.gathered.len() == bytes_max).then(|| Err(std::mem::take(&mut self.gathered)))
    }

    /// How a line that is not complete begins.
    pub(super) fn first(&self) -> Option<&u8> {
        self.gathered.first()
    }

    /// What has come of a line that is not complete.
    pub(super) fn pending(&self) -> &[u8] {
        &self.gathered
    }
}
