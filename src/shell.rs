//! Words of the commands that messages print, written so that a shell takes them as they are.

use std::borrow::Cow;

/// `text` as one word of a POSIX shell: as it is where that is safe, else in single quotes.
pub fn quoted(text: &str) -> Cow<'_, str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"%+,-./:=@_".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return Cow::Borrowed(text);
    }
    // Within single quotes nothing has a meaning but the next one: it ends them, and stands escaped outside.
    Cow::Owned(format!("'{}'", text.replace('\'', r"'\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_would_read_otherwise_is_quoted() {
        for (text, word) in [
            ("file:///var/lib/perennial", "file:///var/lib/perennial"),
            ("gs://bucket/prefix", "gs://bucket/prefix"),
            (
                "s3://bucket/prefix?region=eu-west-1&endpoint=http://localhost:9000",
                "'s3://bucket/prefix?region=eu-west-1&endpoint=http://localhost:9000'",
            ),
            ("file:///with space", "'file:///with space'"),
            ("file:///o'clock", r"'file:///o'\''clock'"),
            ("file:///größe", "'file:///größe'"),
            ("~/x", "'~/x'"),
            ("$(x) `y` \\ \"z\"\n", "'$(x) `y` \\ \"z\"\n'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(text), word);
        }
    }

    #[test]
    fn a_shell_gives_back_what_was_quoted() {
        let every_character: String = (1_u8..128).map(char::from).collect();
        for text in [
            "",
            "a",
            "s3://b/p?x=1&y=*",
            "'",
            "''a''",
            "-n",
            &every_character,
        ] {
            let output = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", quoted(text))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
        }
    }
}
