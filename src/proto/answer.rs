//! Answers of a server, as far as the library that decodes them has to be kept from harm.

/// So many arrays inside each other are looked into. The deepest answer that we ask for, XINFO STREAM FULL, has six.
pub const ANSWER_DEPTH_MAX: usize = 32;

/// Whether more than [`ANSWER_DEPTH_MAX`] arrays lie inside each other in the answer that `bytes` begin with, as far as
/// they are there: the decoder goes down into each, and its stack does not survive a million of them.
pub fn is_too_deep(bytes: &[u8]) -> bool {
    // How many items each open array still waits for.
    let mut open: Vec<u64> = Vec::new();
    let mut rest = bytes;
    while let Some((kind, line, behind)) = line(rest) {
        rest = behind;
        let number = || std::str::from_utf8(line).ok()?.parse::<u64>().ok();
        match (kind, number()) {
            (b'*', Some(items @ 1..)) => {
                open.push(items);
                if open.len() > ANSWER_DEPTH_MAX {
                    return true;
                }
                continue;
            }
            (b'$', Some(length)) => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                match rest.get(length.saturating_add(2)..) {
                    Some(behind) => rest = behind,
                    None => return false,
                }
            }
            _ => {}
        }
        while let Some(items) = open.last_mut() {
            *items -= 1;
            if *items > 0 {
                break;
            }
            open.pop();
        }
        if open.is_empty() {
            return false;
        }
    }
    false
}

/// The kind of an item, the rest of its first line, and what follows that.
fn line(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (kind, rest) = bytes.split_first()?;
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    Some((*kind, &rest[..end], &rest[end + 2..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_answers_are_seen_before_they_are_whole() {
        let nested = |depth: usize| "*1\r\n".repeat(depth) + ":1\r\n";
        assert!(!is_too_deep(nested(ANSWER_DEPTH_MAX).as_bytes()));
        assert!(is_too_deep(nested(ANSWER_DEPTH_MAX + 1).as_bytes()));
        assert!(is_too_deep("*9\r\n".repeat(1_000_000).as_bytes()));
        assert!(is_too_deep(
            format!("*2\r\n$3\r\na\r\n\r\n{}", nested(40)).as_bytes()
        ));
    }

    #[test]
    fn wide_ones_are_not() {
        let wide = "*1\r\n*2\r\n*0\r\n$-1\r\n".repeat(100);
        let answer = format!("*300\r\n{wide}");
        assert!(!is_too_deep(answer.as_bytes()));
        let strings = "$4\r\n*1\r\n\r\n".repeat(100);
        assert!(!is_too_deep(format!("*100\r\n{strings}").as_bytes()));
    }

    #[test]
    fn only_the_first_answer_counts() {
        let next = format!("+OK\r\n{}", "*1\r\n".repeat(100));
        assert!(!is_too_deep(next.as_bytes()));
        for bytes in [
            "",
            "*",
            "*1",
            "*1\r",
            "$",
            "$5\r\nab",
            "*x\r\n",
            "$99999999999999999999\r\n",
        ] {
            assert!(!is_too_deep(bytes.as_bytes()), "{bytes:?}");
        }
    }
}
