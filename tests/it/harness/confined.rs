//! Circumstances that only root, or a privileged container, can make: a disk that is small, a server whose random
//! numbers are always the same. Where that is not permitted the test is skipped, loudly.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::servers::{skip, skip_in_ci_too};
use super::{Kind, Perennial};

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
        skip_in_ci_too("mounting a small file system is not permitted here: run as root");
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
            skip_in_ci_too("a mount namespace of its own is not permitted here: run as root");
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

/// Another time of day for a Perennial, by libfaketime; how long things take stays as it is. The files' dates are the
/// true ones, as those of a store are.
#[derive(Debug)]
pub struct FakeTime {
    library: PathBuf,
    folder: TempDir,
}

impl FakeTime {
    /// Shifted so many seconds, days or years: `"-600"`, `"+10y"`.
    pub fn at(shift: &str) -> Option<Self> {
        let Some(library) = faketime() else {
            skip("no libfaketime on this machine: run scripts/servers.sh");
            return None;
        };
        let faked = Self {
            library,
            folder: tempfile::tempdir().unwrap(),
        };
        faked.jump(shift);
        Some(faked)
    }

    /// From now on it is this time.
    pub fn jump(&self, shift: &str) {
        let next = self.folder.path().join("next");
        fs::write(&next, shift).unwrap();
        fs::rename(next, self.file()).unwrap();
    }

    /// `perennial run` by this time.
    pub fn run(&self, arguments: &[&str]) -> Perennial {
        let file = self.file();
        let environment = [
            ("LD_PRELOAD", self.library.to_str().unwrap()),
            ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("NO_FAKE_STAT", "1"),
        ];
        Perennial::run_with(arguments, &environment)
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("time")
    }
}

/// The library for programs with several threads, as `scripts/servers.sh` or the system has it.
fn faketime() -> Option<PathBuf> {
    let unpacked =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("target/servers/libfaketime/files/usr/lib");
    [unpacked, PathBuf::from("/usr/lib")]
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .filter_map(Result::ok)
        .map(|machine| machine.path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.is_file())
}

/// A limit of memory as containers have it, by a control group of version 2 or 1. Dropped, the group goes.
#[derive(Debug)]
pub struct MemoryLimit {
    group: PathBuf,
    limit: &'static str,
    peak: &'static str,
}

impl MemoryLimit {
    /// So many MiB, where control groups may be made.
    pub fn of(mebibytes: u64) -> Option<Self> {
        let name = format!(
            "perennial-test-{}",
            RandomState::new().build_hasher().finish()
        );
        let root = Path::new("/sys/fs/cgroup");
        let versions = [
            (root.join(&name), "memory.max", "memory.peak"),
            (
                root.join("memory").join(&name),
                "memory.limit_in_bytes",
                "memory.max_usage_in_bytes",
            ),
        ];
        for (group, limit, peak) in versions {
            if fs::create_dir(&group).is_err() {
                continue;
            }
            // Beside groups of version 1 there is a plain folder where version 2 has its own.
            let is_group = group.join("cgroup.procs").exists();
            let limited = Self { group, limit, peak };
            if is_group && limited.set(mebibytes) {
                return Some(limited);
            }
        }
        skip_in_ci_too("a control group with a limit of memory is not permitted here: run as root");
        None
    }

    fn set(&self, mebibytes: u64) -> bool {
        let bytes = (mebibytes * 1024 * 1024).to_string();
        fs::write(self.group.join(self.limit), bytes).is_ok()
    }

    /// Another limit from now on.
    #[track_caller]
    pub fn change(&self, mebibytes: u64) {
        assert!(self.set(mebibytes), "{}", self.group.display());
    }

    /// As little as is in use now, or less: version 1 refuses what would have to be taken away.
    pub fn squeeze(&self) {
        let _ = (1..64)
            .rev()
            .take_while(|mebibytes| self.set(*mebibytes))
            .count();
    }

    /// A command that enters the group and becomes the program given behind it.
    pub fn before(&self) -> Vec<String> {
        let enter = format!(
            "echo $$ >{}/cgroup.procs && exec \"$@\"",
            self.group.display()
        );
        ["sh", "-c", &enter, "sh"].map(ToOwned::to_owned).to_vec()
    }

    /// The most that was counted, where the system tells.
    pub fn peak_mebibytes(&self) -> Option<u64> {
        let text = fs::read_to_string(self.group.join(self.peak)).ok()?;
        text.trim().parse::<u64>().ok().map(|bytes| bytes >> 20)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.group);
    }
}
