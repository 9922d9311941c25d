//! How fast a dump is scanned, checksum included, and in how much memory; beside the `rdb` crate, which decodes every
//! value, or skips it, without a checksum.
//!
//! Expectation: the checksum runs at some 9 GB/s, a copy out of the page cache at some 5, and a text costs some 10 ns.
//! The bars are 1 GB/s over a mix of small and large values and 10 MiB resident.
//!
//! `PERENNIAL_DUMP_MB` (500) sets the dump's size.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench measures real time and prints what it found"
)]

#[path = "common/cpu.rs"]
mod cpu;

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::time::Instant;

use crc_fast::{CrcAlgorithm, Digest};
use perennial::proto::rdb::{Checksum, Event, Scanner};
use rdb::{Filter, RdbDecoder, Simple};

use cpu::cpu_seconds;

/// As much as is read at once, bytes.
const PIECE_BYTES: usize = 1024 * 1024;
const ROUNDS: usize = 5;

/// Writes, and computes the checksum on the way.
struct Summed {
    out: BufWriter<File>,
    digest: Digest,
    bytes: u64,
}

impl Summed {
    fn put(&mut self, bytes: &[u8]) {
        self.out.write_all(bytes).unwrap();
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    fn text(&mut self, text: &[u8]) {
        match u32::try_from(text.len()).unwrap() {
            short @ 0..64 => self.put(&[u8::try_from(short).unwrap()]),
            long => {
                self.put(&[0x80]);
                self.put(&long.to_be_bytes());
            }
        }
        self.put(text);
    }
}

/// Sessions of 100 bytes, pages of 10 KB, hashes, lists, sets and sorted sets, and one value of a tenth of it all.
fn write_dump(file: File, bytes: u64) -> u64 {
    let mut dump = Summed {
        out: BufWriter::new(file),
        digest: Digest::new(CrcAlgorithm::Crc64Redis),
        bytes: 0,
    };
    dump.put(b"REDIS0011\xfe\0");
    let value = vec![b'v'; usize::try_from(bytes / 10).unwrap()];
    dump.put(&[0]);
    dump.text(b"one");
    dump.text(&value);
    let mut number = 0_u64;
    while dump.bytes < bytes {
        number += 1;
        if number.is_multiple_of(5) {
            dump.put(&[0xfc]);
            dump.put(&(4_000_000_000_000 + number).to_le_bytes());
        }
        one_key(&mut dump, number, &value);
    }
    dump.put(&[0xff]);
    let checksum = dump.digest.finalize();
    dump.put(&checksum.to_le_bytes());
    dump.out.flush().unwrap();
    dump.bytes
}

fn one_key(dump: &mut Summed, number: u64, value: &[u8]) {
    let (code, kind) = match number % 100 {
        0..=1 => (0, "page"),
        2..=5 => (4, "user"),
        6..=7 => (18, "queue"),
        8..=9 => (5, "ranking"),
        10..=11 => (2, "tags"),
        _ => (0, "session"),
    };
    dump.put(&[code]);
    dump.text(format!("{kind}:{number}").as_bytes());
    match kind {
        "page" => return dump.text(&value[..10_000]),
        "session" => return dump.text(&value[..100]),
        _ => dump.put(&[25]),
    }
    for element in 0..25_u64 {
        match kind {
            "user" => {
                dump.text(format!("field{element}").as_bytes());
                dump.text(&value[..50]);
            }
            "queue" => {
                dump.put(&[1]);
                dump.text(&value[..50]);
            }
            "ranking" => {
                dump.text(format!("member{element}").as_bytes());
                dump.put(&1.5_f64.to_le_bytes());
            }
            _ => dump.text(format!("tag{element}").as_bytes()),
        }
    }
}

/// The number of keys.
fn scan(mut file: &File) -> u64 {
    file.rewind().unwrap();
    let mut piece = vec![0; PIECE_BYTES];
    let mut scanner = Scanner::new();
    let (mut keys, mut checksum) = (0, None);
    loop {
        let length = file.read(&mut piece).unwrap();
        if length == 0 {
            break;
        }
        scanner
            .scan(&piece[..length], &mut |event| match event {
                Event::Key(_) => keys += 1,
                Event::End { checksum: said, .. } => checksum = Some(said),
                _ => {}
            })
            .unwrap();
    }
    scanner.finish().unwrap();
    assert_eq!(checksum, Some(Checksum::Verified));
    keys
}

/// No key is wanted.
struct Nothing;

impl Filter for Nothing {
    fn matches_key(&self, _key: &[u8]) -> bool {
        false
    }
}

fn crate_reads<F: Filter>(mut file: &File, filter: F) -> u64 {
    file.rewind().unwrap();
    let decoder = RdbDecoder::new(BufReader::with_capacity(PIECE_BYTES, file), filter).unwrap();
    decoder.inspect(|item| assert!(item.is_ok())).count() as u64
}

/// Medians of bytes per second and per second of processor time, in GB/s. On a machine that does other work only the
/// second means something.
#[allow(clippy::cast_precision_loss, reason = "bytes, far below 2^53")]
fn measure(what: &str, bytes: u64, bar: &str, mut run: impl FnMut() -> u64) {
    let mut rates: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let (began, cpu) = (Instant::now(), cpu_seconds());
        std::hint::black_box(run());
        let spent = [began.elapsed().as_secs_f64(), cpu_seconds() - cpu];
        for (rates, seconds) in rates.iter_mut().zip(spent) {
            rates.push(bytes as f64 / seconds / 1e9);
        }
    }
    let [wall, cpu] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[ROUNDS / 2]
    });
    println!("{what:<40} {wall:>8.2} GB/s, {cpu:>5.2} a CPU second  {bar}");
}

/// The most that this process has had resident, MiB.
fn resident_peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.map_or(0, |kib| kib.trim().parse::<u64>().unwrap() / 1024)
}

/// Forgets that peak (`man 5 proc`, clear_refs).
fn forget_resident_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn main() {
    let megabytes: u64 = std::env::var("PERENNIAL_DUMP_MB").map_or(500, |text| {
        text.parse().expect("PERENNIAL_DUMP_MB is a number")
    });
    let file = tempfile::tempfile().unwrap();
    let bytes = write_dump(file.try_clone().unwrap(), megabytes * 1_000_000);
    forget_resident_peak();
    let keys = scan(&file);
    println!("a dump of {bytes} bytes, {keys} keys");
    measure("scan with checksum", bytes, ">= 1", || scan(&file));
    println!(
        "{:<40} {:>8} MiB   < 10",
        "  resident peak",
        resident_peak_mib()
    );
    measure("rdb crate, values skipped, no checksum", bytes, "", || {
        crate_reads(&file, Nothing)
    });
    measure("rdb crate, decoding, no checksum", bytes, "", || {
        crate_reads(&file, Simple::new())
    });
    println!("{:<40} {:>8} MiB", "  resident peak", resident_peak_mib());
}
