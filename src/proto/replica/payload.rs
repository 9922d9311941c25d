//! Finds where an RDB payload ends, by its length or by its mark, in slices of what was received.

use bytes::{Bytes, BytesMut};

/// How long the mark of an `$EOF` payload is, bytes.
pub(super) const MARK_BYTES: usize = 40;

/// A payload that is being received.
#[derive(Debug)]
pub(super) struct Payload {
    /// Bytes passed on so far.
    passed: u64,
    framing: Framing,
}

#[derive(Debug)]
enum Framing {
    Length { left: u64 },
    Mark(Box<MarkSearch>),
}

impl Payload {
    pub(super) fn of_length(length: u64) -> Self {
        Self {
            passed: 0,
            framing: Framing::Length { left: length },
        }
    }

    pub(super) fn until_mark(mark: [u8; MARK_BYTES]) -> Self {
        Self {
            passed: 0,
            framing: Framing::Mark(Box::new(MarkSearch::new(mark))),
        }
    }

    /// Takes the payload's part of `input`, gives its bytes to `pass`, and tells the payload's length once it
    /// is complete; what comes after it stays in `input`.
    pub(super) fn take(&mut self, input: &mut Bytes, mut pass: impl FnMut(Bytes)) -> Option<u64> {
        let passed = &mut self.passed;
        let mut count_and_pass = |bytes: Bytes| {
            if !bytes.is_empty() {
                *passed += bytes.len() as u64;
                pass(bytes);
            }
        };
        let complete = match &mut self.framing {
            Framing::Length { left } => {
                let here = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= here as u64;
                count_and_pass(input.split_to(here));
                *left == 0
            }
            Framing::Mark(search) => search.take(input, &mut count_and_pass),
        };
        complete.then_some(self.passed)
    }
}

/// Looks for the mark, which reads may cut anywhere.
///
/// Redis looks for it at the end of a read only, which fails when stream bytes follow in the same read
/// (`protocol-facts` 4.3); this one finds its first occurrence.
#[derive(Debug)]
struct MarkSearch {
    mark: [u8; MARK_BYTES],
    /// By the byte under the mark's last one: how far the mark may move on (Horspool's rule).
    shift: [usize; 256],
    /// The end of what was received, if it may be the beginning of the mark: fewer bytes than the mark has.
    held: Bytes,
}

impl MarkSearch {
    fn new(mark: [u8; MARK_BYTES]) -> Self {
        let mut shift = [MARK_BYTES; 256];
        for (distance, &byte) in (1..).zip(mark[..MARK_BYTES - 1].iter().rev()) {
            let shift = &mut shift[usize::from(byte)];
            *shift = (*shift).min(distance);
        }
        Self {
            mark,
            shift,
            held: Bytes::new(),
        }
    }

    /// Whether the mark was found.
    fn take(&mut self, input: &mut Bytes, pass: &mut impl FnMut(Bytes)) -> bool {
        if !self.held.is_empty() {
            let held = self.held.len();
            let borrowed = input.len().min(MARK_BYTES - 1);
            let mut seam = BytesMut::with_capacity(held + borrowed);
            seam.extend_from_slice(&self.held);
            seam.extend_from_slice(&input[..borrowed]);
            let seam = seam.freeze();
            if let Some(at) = self.find(&seam)
                && at < held
            {
                pass(seam.slice(..at));
                *input = input.slice(at + MARK_BYTES - held..);
                self.held = Bytes::new();
                return true;
            }
            if borrowed == input.len() {
                self.pass_and_hold(seam, pass);
                *input = Bytes::new();
                return false;
            }
            // The mark would have ended within the borrowed bytes.
            pass(std::mem::take(&mut self.held));
        }
        let whole = std::mem::take(input);
        if let Some(at) = self.find(&whole) {
            pass(whole.slice(..at));
            *input = whole.slice(at + MARK_BYTES..);
            return true;
        }
        self.pass_and_hold(whole, pass);
        false
    }

    /// Passes all but the longest end that may be the beginning of the mark.
    fn pass_and_hold(&mut self, mut bytes: Bytes, pass: &mut impl FnMut(Bytes)) {
        let longest = bytes.len().min(MARK_BYTES - 1);
        let hold = (1..=longest)
            .rev()
            .find(|&length| bytes.ends_with(&self.mark[..length]))
            .unwrap_or(0);
        let end = bytes.split_off(bytes.len() - hold);
        // A copy, so that forty bytes do not keep a whole read alive.
        self.held = Bytes::copy_from_slice(&end);
        pass(bytes);
    }

    fn find(&self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(window) = bytes.get(at..at + MARK_BYTES) {
            let last = window[MARK_BYTES - 1];
            if last == self.mark[MARK_BYTES - 1] && window == self.mark {
                return Some(at);
            }
            at += self.shift[usize::from(last)];
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mark_of(text: &str) -> [u8; MARK_BYTES] {
        text.as_bytes().try_into().unwrap()
    }

    /// What is passed in all, the payload's length, and what is left over.
    fn run(mark: [u8; MARK_BYTES], pieces: &[&[u8]]) -> (Vec<u8>, Option<u64>, Vec<u8>) {
        let mut payload = Payload::until_mark(mark);
        let (mut passed, mut length, mut after) = (Vec::new(), None, Vec::new());
        for piece in pieces {
            let mut input = Bytes::copy_from_slice(piece);
            if length.is_none() {
                length = payload.take(&mut input, |bytes| passed.extend_from_slice(&bytes));
                assert!(length.is_some() || input.is_empty());
            }
            after.extend_from_slice(&input);
        }
        (passed, length, after)
    }

    #[test]
    fn a_mark_that_overlaps_its_own_beginning_is_found_at_every_cut() {
        let mark = mark_of("aaaaaaaaaaaaaaaaaaaabaaaaaaaaaaaaaaaaaaa");
        let mut whole = b"xaaaaaaaaaaaaaaaaaaaaaaabaaaaaaa".to_vec();
        whole.extend_from_slice(b"aaaaaaaaaaaaaaaaaaaa*1\r\n");
        let expected = whole
            .windows(MARK_BYTES)
            .position(|window| window == mark)
            .unwrap();
        for first in 0..whole.len() {
            for second in first..whole.len() {
                let pieces = [&whole[..first], &whole[first..second], &whole[second..]];
                let (passed, length, after) = run(mark, &pieces);
                assert_eq!(passed, &whole[..expected], "cut at {first} and {second}");
                assert_eq!(length, Some(expected as u64));
                assert_eq!(after, &whole[expected + MARK_BYTES..]);
            }
        }
    }

    #[test]
    fn an_empty_payload_of_known_length_is_complete_at_once() {
        let mut input = Bytes::from_static(b"*1\r\n");
        let length = Payload::of_length(0).take(&mut input, |_| panic!("nothing to pass"));
        assert_eq!((length, input.as_ref()), (Some(0), b"*1\r\n".as_slice()));
    }

    proptest! {
        #[test]
        fn the_mark_is_found_whatever_the_pieces(
            payload in proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b')], 0..300),
            mark in proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b')], MARK_BYTES),
            after in proptest::collection::vec(any::<u8>(), 0..60),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..12),
        ) {
            let mark: [u8; MARK_BYTES] = mark.try_into().unwrap();
            let whole = [payload.as_slice(), &mark, &after].concat();
            let expected = whole.windows(MARK_BYTES).position(|window| window == mark).unwrap();
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(whole.len())).collect();
            cuts.sort_unstable();
            cuts.push(whole.len());
            let mut start = 0;
            let mut pieces = Vec::new();
            for cut in cuts {
                pieces.push(&whole[start..cut]);
                start = cut;
            }
            let (passed, length, left) = run(mark, &pieces);
            prop_assert_eq!(passed, &whole[..expected]);
            prop_assert_eq!(length, Some(expected as u64));
            prop_assert_eq!(left, &whole[expected + MARK_BYTES..]);
        }
    }
}
