//! Names and values as text, and back: what a terminal cannot show is written as `\xNN`, a backslash as two.

use std::fmt::Write;

/// As text: `\xNN` for bytes that are not UTF-8 or that steer terminals, two backslashes for one.
pub(super) fn shown(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                _ if character.is_control() => {
                    let mut buffer = [0; 4];
                    hexadecimal(character.encode_utf8(&mut buffer).as_bytes(), &mut text);
                }
                _ => text.push(character),
            }
        }
        hexadecimal(chunk.invalid(), &mut text);
    }
    text
}

fn hexadecimal(bytes: &[u8], text: &mut String) {
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "\\x{byte:02x}");
    }
}

/// The bytes that [`shown`] shows like this. `None` where a backslash is neither doubled nor before `xNN`.
pub(super) fn read(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend_from_slice(before.as_bytes());
        if let Some(after) = after.strip_prefix('\\') {
            bytes.push(b'\\');
            rest = after;
            continue;
        }
        let digits = after.strip_prefix('x')?.get(..2)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &after[3..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_again() {
        let all: Vec<u8> = (0..=255).collect();
        for bytes in [
            b"user:1".as_slice(),
            b"",
            b"a\\b\\x41",
            "Zürich \u{85}".as_bytes(),
            b"\xff\xc3",
            &all,
        ] {
            let text = shown(bytes);
            assert!(!text.chars().any(char::is_control), "{text}");
            assert_eq!(read(&text).as_deref(), Some(bytes), "{text}");
        }
        assert_eq!(shown(b"a\nb\\\xff"), "a\\x0ab\\\\\\xff");
    }

    #[test]
    fn a_lone_backslash_is_not_read() {
        for text in ["a\\", "\\x", "\\x1", "\\xzz", "\\x+1", "\\n", "\\xü"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
