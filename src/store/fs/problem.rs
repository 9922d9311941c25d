//! What the system's errors mean for a directory, in plain words.

use std::io::{self, ErrorKind};
use std::path::Path;

use crate::store::StoreErrorKind;

/// The kind of an error, and a text that says what to do.
pub(super) fn explain(error: &io::Error, root: &Path) -> (StoreErrorKind, String) {
    let (kind, advice) = match error.kind() {
        ErrorKind::NotFound if !root.exists() => (
            StoreErrorKind::NotFound,
            "the directory is not there: check the path, and that its volume is mounted".to_owned(),
        ),
        ErrorKind::NotFound => (
            StoreErrorKind::NotFound,
            "there is no such object".to_owned(),
        ),
        ErrorKind::PermissionDenied if is_operation_not_permitted(error) => (
            StoreErrorKind::Denied,
            "the file system forbids it (hard links are needed: not on FAT, some network and FUSE file systems)"
                .to_owned(),
        ),
        ErrorKind::PermissionDenied => (
            StoreErrorKind::Denied,
            format!("make the directory readable and writable for {}", whoami()),
        ),
        ErrorKind::ReadOnlyFilesystem => (
            StoreErrorKind::Denied,
            "the file system is mounted read-only: mount it writable".to_owned(),
        ),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => (
            StoreErrorKind::Full,
            "no space is left: make room, it goes on by itself".to_owned(),
        ),
        ErrorKind::NotADirectory | ErrorKind::IsADirectory => (
            StoreErrorKind::Invalid,
            "a file is where a directory should be, or the other way round: choose another path".to_owned(),
        ),
        ErrorKind::Unsupported | ErrorKind::CrossesDevices | ErrorKind::TooManyLinks => (
            StoreErrorKind::Invalid,
            "the file system cannot create a name only where there is none (hard links are needed): choose another one"
                .to_owned(),
        ),
        ErrorKind::InvalidFilename => (
            StoreErrorKind::Invalid,
            "the path is too long: choose a shorter one".to_owned(),
        ),
        _ if is_out_of_files(error) => (
            StoreErrorKind::Unavailable,
            "raise how many files may be open (`ulimit -n`, LimitNOFILE= of systemd); it goes on by itself"
                .to_owned(),
        ),
        _ => (StoreErrorKind::Unavailable, "see the system's log".to_owned()),
    };
    let detail = match error.get_ref() {
        // Worded here, with its advice.
        Some(ours) => ours.to_string(),
        None => format!("{error}: {advice}"),
    };
    (kind, detail)
}

/// EMFILE and ENFILE: no descriptor is free, ours or the machine's.
fn is_out_of_files(error: &io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

/// EPERM, which says that nobody may, rather than EACCES, which says that we may not.
fn is_operation_not_permitted(error: &io::Error) -> bool {
    const EPERM: i32 = 1;
    error.raw_os_error() == Some(EPERM)
}

/// Who we are, for advice: the owner of a file that we would make.
fn whoami() -> String {
    use std::os::unix::fs::MetadataExt;
    // The only way to the user id without unsafe code or another crate; where there is no /proc it is left out.
    match std::fs::metadata("/proc/self") {
        Ok(metadata) => format!("uid {}", metadata.uid()),
        Err(_) => "the user that Perennial runs as".to_owned(),
    }
}
