//! What to do about a file that cannot be read: the same words wherever one is named.

use std::io::{self, ErrorKind};
use std::path::Path;

/// Says that a file cannot be read, why, and what to do about it.
pub fn unreadable(path: &Path, error: &io::Error) -> String {
    let advice = match error.kind() {
        ErrorKind::NotFound => "; check the path, and that its volume is mounted",
        ErrorKind::PermissionDenied => {
            "; let the user that runs perennial read it, and search its folders"
        }
        ErrorKind::IsADirectory => "; name a file in that folder",
        ErrorKind::NotADirectory => "; a part of the path is a file and no folder",
        ErrorKind::InvalidData => "; it has to be text in UTF-8",
        _ => "",
    };
    format!("{} cannot be read: {error}{advice}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_reason_and_remedy_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("binary");
        std::fs::write(&binary, [0xff, 0xfe]).unwrap();
        for (path, remedy) in [
            (folder.path().join("nothing"), "check the path"),
            (folder.path().to_owned(), "name a file"),
            (binary.join("below"), "a part of the path"),
            (binary, "UTF-8"),
        ] {
            let error = std::fs::read_to_string(&path).unwrap_err();
            let text = unreadable(&path, &error);
            assert!(text.starts_with(&path.display().to_string()), "{text}");
            assert!(text.contains(remedy), "{text}");
        }
    }
}
