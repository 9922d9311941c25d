//! The scanner of dumps on arbitrary bytes: no panic, no endless loop, and the same events for every way of cutting
//! them; what it keeps of names stays within its bound.
//!
//! The first byte chooses what stands before the input, the second seeds the cuts, the rest is the dump or its body.

#![no_main]

use libfuzzer_sys::fuzz_target;
use perennial::proto::rdb::{Event, NAME_BYTES_MAX, ScanError, Scanner};

fuzz_target!(|data: &[u8]| {
    let [choice, seed, bytes @ ..] = data else {
        return;
    };
    // Most inputs should not have to find the magic first.
    let head: &[u8] = match choice % 4 {
        0 => b"",
        1 => b"REDIS0004",
        2 => b"REDIS0012",
        _ => b"VALKEY080",
    };
    let dump = [head, bytes].concat();
    let whole = scan(&[&dump]);
    let size = usize::from(seed % 67) + 1;
    let pieces: Vec<&[u8]> = dump.chunks(size).collect();
    assert_eq!(whole, scan(&pieces));
});

/// Every event as text, and how it ended.
fn scan(pieces: &[&[u8]]) -> (Vec<String>, Result<(), ScanError>) {
    let mut said = Vec::new();
    let mut scanner = Scanner::new();
    for piece in pieces {
        let outcome = scanner.scan(piece, &mut |event| {
            if let Event::Key(key) = &event {
                assert!(
                    key.name.len() <= NAME_BYTES_MAX && key.name.len() as u64 <= key.name_bytes
                );
                assert!(key.at < key.value_at);
            }
            said.push(format!("{event:?}"));
        });
        if outcome.is_err() {
            return (said, outcome);
        }
    }
    (said, scanner.finish())
}
