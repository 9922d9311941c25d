//! Circumstances that only root, or a privileged container, can make: a disk that is small, a server whose random
//! numbers are always the same. Where that is not permitted the test is skipped, loudly.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::Kind;
use super::servers::skip;

/// Whether the command succeeds.
fn succeeds(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A file system of its own, in memory, of a few MiB. Dropped, it goes.
#[derive(Debug)]
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// Mounts one of so many MiB, where that is permitted.
    pub fn mount(mebibytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={mebibytes}m");
        let at = folder.path().to_str().unwrap();
        if succeeds("mount", &["-t", "tmpfs", "-o", &size, "perennial-test", at]) {
            return Some(Self { folder });
        }
        skip("mounting a small file system is not permitted here: run as root");
        None
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Makes it this large.
    pub fn resize(&self, mebibytes: u64) {
        let size = format!("remount,size={mebibytes}m");
        let at = self.path().to_str().unwrap();
        assert!(succeeds("mount", &["-o", &size, at]), "remount {at}");
    }

    /// Fills what is free of it, to the last byte.
    pub fn fill(&self) {
        let _ = fs::write(self.ballast(), vec![0; 64 * 1024 * 1024]);
    }

    /// Gives up what [`SmallDisk::fill`] took.
    pub fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let at = self.path().to_str().unwrap();
        let unmounted = succeeds("umount", &["--lazy", at]);
        assert!(unmounted || std::thread::panicking(), "umount {at}");
    }
}

/// A program that becomes a server of this kind which draws the same random numbers at each start. Whatever it does in
/// the same order gets the same names: its replication id, its run id.
#[derive(Debug)]
pub struct SameNumbers {
    folder: TempDir,
}

impl SameNumbers {
    /// Of this kind, where the machine has it and permits it.
    pub fn of(kind: Kind) -> Option<Self> {
        if !succeeds(
            "unshare",
            &["--mount", "mount", "--bind", "/dev/null", "/dev/urandom"],
        ) {
            skip("a mount namespace of its own is not permitted here: run as root");
            return None;
        }
        let Some(server) = kind.find() else {
            skip(&format!("no {} on this machine", kind.name));
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let numbers = folder.path().join("numbers");
        fs::write(&numbers, [7; 4096]).unwrap();
        let script = format!(
            "#!/bin/sh\nexec unshare --mount sh -c 'mount --bind {} /dev/urandom && exec {} \"$@\"' sh \"$@\"\n",
            numbers.display(),
            server.display()
        );
        let program = folder.path().join("server");
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Some(Self { folder })
    }

    /// The program.
    pub fn program(&self) -> PathBuf {
        self.folder.path().join("server")
    }
}
