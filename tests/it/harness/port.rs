//! Ports that stay ours while a server on them is dead.

use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher};
use std::net::TcpListener;

/// Below the range from which systems give out ports by themselves (32768 and up on Linux): a port there could be
/// taken, by anybody's outgoing connection, between a kill and the restart.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// A free port of 127.0.0.1, reserved among all test processes of this user until dropped.
#[derive(Debug)]
pub struct Port {
    /// The port's number.
    pub number: u16,
    _lock: File,
}

impl Port {
    /// Reserves a port on which nobody listens. The lock is one on a file, so it goes with the process.
    pub fn reserve() -> Self {
        let folder = std::env::temp_dir().join(format!(
            "perennial-test-ports-{}",
            rustix::process::getuid().as_raw()
        ));
        fs::create_dir_all(&folder).unwrap();
        let count = u64::from(PORTS.end - PORTS.start);
        let first = RandomState::new().build_hasher().finish() % count;
        for step in 0..count {
            let number = PORTS.start + u16::try_from((first + step) % count).unwrap();
            let lock = File::create(folder.join(number.to_string())).unwrap();
            if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Self {
                    number,
                    _lock: lock,
                };
            }
        }
        panic!("no free port in {PORTS:?}");
    }

    /// `127.0.0.1:<port>`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}

#[test]
fn ports_are_given_once() {
    let ports: Vec<Port> = (0..50).map(|_| Port::reserve()).collect();
    let mut numbers: Vec<u16> = ports.iter().map(|port| port.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), ports.len());
}
