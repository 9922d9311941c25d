//! Expands texts that the servers compressed with LZF, up to a bound.

/// The compressed bytes are none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Corrupt;

/// Expands as much of `compressed` as gives `bytes_max` bytes, or ends where it is cut.
///
/// A control byte below 32 is followed by so many bytes and one; any other stands for earlier bytes: its upper three
/// bits for how many (with another byte, where they are all set), its lower five and one more byte for how far back.
pub(super) fn expand(
    compressed: &[u8],
    bytes_max: usize,
    out: &mut Vec<u8>,
) -> Result<(), Corrupt> {
    out.clear();
    let mut rest = compressed;
    while let Some((control, after)) = rest.split_first() {
        if out.len() >= bytes_max {
            break;
        }
        let control = usize::from(*control);
        if control < 32 {
            let (plain, after) = after.split_at(after.len().min(control + 1));
            out.extend_from_slice(plain);
            rest = after;
            continue;
        }
        let Some((length, back, after)) = reference(control, after) else {
            break;
        };
        let from = out.len().checked_sub(back).ok_or(Corrupt)?;
        // What is copied may reach into what it becomes.
        for at in from..from + length {
            out.push(out[at]);
        }
        rest = after;
    }
    out.truncate(bytes_max);
    Ok(())
}

/// How many bytes, from how far back, and what follows. `None` where it is cut.
fn reference(control: usize, mut rest: &[u8]) -> Option<(usize, usize, &[u8])> {
    let mut length = control >> 5;
    if length == 7 {
        let (more, after) = rest.split_first()?;
        length += usize::from(*more);
        rest = after;
    }
    let (low, after) = rest.split_first()?;
    let back = ((control & 0x1f) << 8 | usize::from(*low)) + 1;
    Some((length + 2, back, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(compressed: &[u8], bytes_max: usize) -> Result<Vec<u8>, Corrupt> {
        let mut out = vec![1];
        expand(compressed, bytes_max, &mut out).map(|()| out)
    }

    #[test]
    fn texts_and_references_are_joined() {
        // "ab", then eight bytes from two back.
        let short = [1, b'a', b'b', 0xc0, 1];
        assert_eq!(expanded(&short, 100).unwrap(), b"ababababab");
        // The same with the longest reference there is.
        let long = [1, b'a', b'b', 0xe0, 255, 1];
        assert_eq!(expanded(&long, 1000).unwrap(), b"ab".repeat(133));
        assert_eq!(expanded(&long, 5).unwrap(), b"ababa");
        assert_eq!(expanded(&[], 5).unwrap(), b"");
    }

    #[test]
    fn what_is_cut_gives_what_there_is() {
        assert_eq!(expanded(&[4, b'a', b'b'], 100).unwrap(), b"ab");
        assert_eq!(expanded(&[0, b'a', 0xe0, 1], 100).unwrap(), b"a");
    }

    #[test]
    fn a_reference_before_the_beginning_is_corrupt() {
        assert_eq!(expanded(&[0, b'a', 0x20, 1], 100), Err(Corrupt));
    }
}
