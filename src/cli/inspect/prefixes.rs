//! Which prefixes of names hold the most, in bounded memory.

use std::collections::HashMap;

/// How many prefixes are kept for certain. While there are no more than twice as many, every count is exact.
const PREFIXES_MAX: usize = 4096;

/// A longer prefix counts as none, bytes: whoever names keys so does not group them.
const PREFIX_BYTES_MAX: usize = 128;

/// What is known of the keys under a prefix.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Count {
    /// Keys, at least.
    pub(super) keys: u64,
    /// Their bytes, at least.
    pub(super) bytes: u64,
    /// What is compared: their bytes, without all that was taken from every prefix in turn.
    weight: u64,
}

/// Bytes and keys by prefix.
///
/// Where a table of twice [`PREFIXES_MAX`] is full, the weight of the (PREFIXES_MAX + 1)th heaviest is taken from
/// all of them, and those with nothing left go. What was taken in all is the most that a count can be too low by, and
/// never more than a share of 1/PREFIXES_MAX of all bytes: each time so much is taken from at least that many. (Misra
/// and Gries 1982, in the form of Anderson and others 2017.)
#[derive(Debug)]
pub(super) struct Prefixes {
    separator: Vec<u8>,
    counts: HashMap<Vec<u8>, Count>,
    taken: u64,
    /// Keys without a prefix: exact.
    pub(super) without: Count,
}

impl Prefixes {
    pub(super) fn new(separator: &[u8]) -> Self {
        Self {
            separator: separator.to_vec(),
            counts: HashMap::new(),
            taken: 0,
            without: Count::default(),
        }
    }

    /// Another key, of so many bytes.
    pub(super) fn add(&mut self, name: &[u8], bytes: u64) {
        let Some(prefix) = self.prefix(name) else {
            self.without.add(bytes);
            return;
        };
        if let Some(count) = self.counts.get_mut(prefix) {
            count.add(bytes);
            return;
        }
        if self.counts.len() == 2 * PREFIXES_MAX {
            self.make_room();
        }
        self.counts.entry(prefix.to_vec()).or_default().add(bytes);
    }

    /// Up to the first separator, and with it.
    fn prefix<'a>(&self, name: &'a [u8]) -> Option<&'a [u8]> {
        let within = &name[..name.len().min(PREFIX_BYTES_MAX)];
        let length = self.separator.len().max(1);
        let at = within
            .windows(length)
            .position(|window| window == self.separator)?;
        Some(&name[..at + length])
    }

    fn make_room(&mut self) {
        let mut weights: Vec<u64> = self.counts.values().map(|count| count.weight).collect();
        let (_, median, _) = weights.select_nth_unstable_by(PREFIXES_MAX, |a, b| b.cmp(a));
        let median = *median;
        self.taken += median;
        self.counts.retain(|_, count| {
            count.weight = count.weight.saturating_sub(median);
            count.weight > 0
        });
    }

    /// By how many bytes a prefix can hold more than its count says, at most; zero where all counts are exact.
    pub(super) fn missed_bytes_max(&self) -> u64 {
        self.taken
    }

    /// The heaviest, in order.
    pub(super) fn heaviest(&self, count_max: usize) -> Vec<(&[u8], Count)> {
        let mut all: Vec<(&[u8], Count)> = self
            .counts
            .iter()
            .map(|(prefix, count)| (prefix.as_slice(), *count))
            .collect();
        all.sort_unstable_by(|(a_prefix, a), (b_prefix, b)| {
            (b.weight, a_prefix).cmp(&(a.weight, b_prefix))
        });
        all.truncate(count_max);
        all
    }
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.keys += 1;
        self.bytes += bytes;
        self.weight += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_prefixes_are_counted_exactly() {
        let mut prefixes = Prefixes::new(b"::");
        for (name, bytes) in [("a::1", 10), ("b::1", 30), ("a::2::x", 15), ("none:1", 7)] {
            prefixes.add(name.as_bytes(), bytes);
        }
        let heaviest = prefixes.heaviest(10);
        let found: Vec<_> = heaviest
            .iter()
            .map(|(prefix, count)| (*prefix, count.keys, count.bytes))
            .collect();
        assert_eq!(found, [(b"b::".as_slice(), 1, 30), (b"a::", 2, 25)]);
        assert_eq!((prefixes.without.keys, prefixes.without.bytes), (1, 7));
        assert_eq!(prefixes.missed_bytes_max(), 0);
        assert_eq!(prefixes.heaviest(1).len(), 1);
    }

    /// A million prefixes, of which two are heavy: they are found, and the bounds hold.
    #[test]
    fn many_prefixes_need_no_more_memory() {
        let mut prefixes = Prefixes::new(b":");
        let mut all = 0;
        for number in 0..200_000_u64 {
            prefixes.add(format!("{number}:x").as_bytes(), 10);
            all += 10;
            if number % 4 == 0 {
                prefixes.add(b"heavy:x", 10);
                all += 10;
            }
            if number % 10 == 0 {
                prefixes.add(b"second:x", 10);
                all += 10;
            }
            assert!(prefixes.counts.len() <= 2 * PREFIXES_MAX);
        }
        let missed = prefixes.missed_bytes_max();
        assert!(
            missed > 0 && missed <= all / PREFIXES_MAX as u64,
            "{missed} of {all}"
        );
        let heaviest = prefixes.heaviest(2);
        for ((prefix, count), (name, bytes)) in heaviest
            .iter()
            .zip([(b"heavy:".as_slice(), 500_000), (b"second:", 200_000)])
        {
            assert_eq!(*prefix, name);
            assert!(
                count.bytes <= bytes && bytes <= count.bytes + missed,
                "{count:?}"
            );
        }
    }

    #[test]
    fn a_prefix_beyond_its_bound_is_none() {
        let mut prefixes = Prefixes::new(b":");
        prefixes.add(&[b"n".repeat(PREFIX_BYTES_MAX), b":".to_vec()].concat(), 1);
        assert_eq!(prefixes.without.keys, 1);
    }
}
