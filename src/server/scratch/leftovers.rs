//! Scratch servers that outlived who started them, because that one was killed by force. A locked file in a server's folder
//! says that its owner lives; whoever starts another server ends those of which nobody does.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::SOCKET;
use crate::server::control::{Control, ControlError};
use crate::server::net::{Address, Endpoint};

/// How the folders of scratch servers begin.
pub(super) const PREFIX: &str = "perennial-scratch-";
/// Locked as long as the owner lives.
const OWNER: &str = "owner";
/// How long a server that was left behind may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Takes a new folder as ours, for as long as the file stays open.
pub(super) fn own(home: &Path) -> io::Result<File> {
    // Locked before it bears its name: who finds it unlocked takes its owner for dead.
    let unnamed = home.join("owner.new");
    let file = File::create(&unnamed)?;
    file.try_lock()?;
    fs::rename(&unnamed, home.join(OWNER))?;
    Ok(file)
}

/// Ends what was left behind in `place`. What cannot be ended stays: it is no reason not to begin.
pub(super) async fn end_all(place: &Path) {
    for (home, _locked) in left_behind(place) {
        let ended = tokio::time::timeout(END_TIMEOUT, end(&home)).await;
        if matches!(ended, Ok(true)) && fs::remove_dir_all(&home).is_ok() {
            tracing::info!(
                "a scratch server that a killed Perennial left in {} is gone",
                home.display()
            );
        }
    }
}

/// Folders whose owner is dead, and ours until the file is closed.
fn left_behind(place: &Path) -> Vec<(PathBuf, File)> {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .filter_map(|entry| {
            let home = entry.path();
            if !is_ours(&home) {
                return None;
            }
            let file = File::open(home.join(OWNER)).ok()?;
            file.try_lock().ok()?;
            Some((home, file))
        })
        .collect()
}

/// Whether this user made it all. In a folder that others can write to, somebody could lay out what looks like a scratch server
/// and is a link to another one.
fn is_ours(home: &Path) -> bool {
    // Where there is no /proc, nothing is ours: what was left behind stays.
    let Ok(user) = fs::metadata("/proc/self").map(|ourselves| ourselves.uid()) else {
        return false;
    };
    let has = |path: &Path, is_kind: fn(&fs::FileType) -> bool| {
        fs::symlink_metadata(path)
            .is_ok_and(|found| found.uid() == user && is_kind(&found.file_type()))
    };
    let socket = home.join(SOCKET);
    let no_socket = matches!(fs::symlink_metadata(&socket), Err(error) if error.kind() == io::ErrorKind::NotFound);
    has(home, fs::FileType::is_dir)
        && has(&home.join(OWNER), fs::FileType::is_file)
        && (no_socket || has(&socket, |kind| kind.is_socket()))
}

/// Whether it has ended.
async fn end(home: &Path) -> bool {
    let address = Address {
        endpoint: Endpoint::Unix(home.join(SOCKET).display().to_string()),
        credentials: None,
    };
    match Control::connect(&address).await {
        // It closes the connection instead of an answer.
        Ok(mut control) => !matches!(
            control.command(&[b"SHUTDOWN", b"NOSAVE"]).await,
            Ok(_) | Err(ControlError::Refused { .. } | ControlError::Silent { .. })
        ),
        Err(ControlError::Connect { error, .. }) => matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
        ),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_goes_when_its_owner_is_gone_and_not_before() {
        let place = tempfile::tempdir().unwrap();
        let home = |name: &str| {
            let home = place.path().join(format!("{PREFIX}{name}"));
            fs::create_dir(&home).unwrap();
            home
        };
        let (alive, dead, unowned) = (home("alive"), home("dead"), home("unowned"));
        let held = own(&alive).unwrap();
        drop(own(&dead).unwrap());
        // Laid out by somebody: its server is another one.
        let laid_out = home("laid-out");
        drop(own(&laid_out).unwrap());
        std::os::unix::fs::symlink("/nowhere", laid_out.join(SOCKET)).unwrap();
        end_all(place.path()).await;
        assert!(alive.is_dir(), "its owner lives");
        assert!(!dead.exists());
        assert!(unowned.is_dir(), "it may just be begun");
        assert!(laid_out.is_dir(), "it may lead to a server of others");
        drop(held);
        end_all(place.path()).await;
        assert!(!alive.exists());
    }
}
