//! What the benches with servers share: a data set, what processes used, and rows of medians.

use std::fs;

use super::harness::random::Random;
use super::harness::{Perennial, Server};

const MIB: f64 = 1024.0 * 1024.0;

/// Strings small and large, hashes, lists and sorted sets; `megabytes` of values, half of whose bytes repeat.
pub fn fill(server: &Server, megabytes: u64) {
    let mut client = server.client();
    let mut random = Random::fixed(7);
    let mut left = i64::try_from(megabytes * 1_000_000).unwrap();
    let mut number = 0_u64;
    while left > 0 {
        let mut commands = Vec::new();
        for _ in 0..400 {
            number += 1;
            let command = one_key(number, &mut random);
            left -= i64::try_from(command.iter().map(Vec::len).sum::<usize>()).unwrap();
            commands.push(command);
        }
        client.pipeline(&commands).unwrap();
    }
}

fn one_key(number: u64, random: &mut Random) -> Vec<Vec<u8>> {
    let name = |kind: &str| format!("{kind}:{number}").into_bytes();
    let mut command = match number % 100 {
        0..=1 => vec![b"SET".to_vec(), name("page"), text(random, 10_000)],
        2..=5 => vec![b"HSET".to_vec(), name("user")],
        6..=7 => vec![b"RPUSH".to_vec(), name("queue")],
        8..=9 => vec![b"ZADD".to_vec(), name("ranking")],
        _ => vec![b"SET".to_vec(), name("session"), text(random, 100)],
    };
    if command[0] != b"SET" {
        for element in 0..25_u64 {
            match command[0].as_slice() {
                b"HSET" => command.push(format!("field{element}").into_bytes()),
                b"ZADD" => command.push(random.below(100_000).to_string().into_bytes()),
                _ => {}
            }
            command.push(text(random, 50));
        }
    }
    command
}

fn text(random: &mut Random, bytes: usize) -> Vec<u8> {
    let mut text = String::with_capacity(bytes + 40);
    while text.len() < bytes {
        text.push_str(&format!("{:016x} of the value, ", random.bits()));
    }
    text.truncate(bytes);
    text.into_bytes()
}

/// User and system time of a process so far, in seconds.
pub fn cpu_seconds_of(pid: u32, fields: [usize; 2]) -> f64 {
    /// Clock ticks of `/proc`: always a hundredth of a second on Linux (`man 5 proc`, USER_HZ).
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field may contain anything, in parentheses.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let values: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |field: usize| -> f64 {
        let text = values.get(field - 3).copied().unwrap_or("0");
        text.parse().unwrap_or(0.0)
    };
    (ticks(fields[0]) + ticks(fields[1])) / TICKS_PER_SECOND
}

pub fn cpu_seconds(perennial: &Perennial) -> f64 {
    cpu_seconds_of(perennial.pid(), [14, 15])
}

pub fn cpu_seconds_of_server(server: &Server) -> f64 {
    let info = server.info("cpu");
    let seconds = |field: &str| info[field].parse::<f64>().unwrap();
    seconds("used_cpu_sys") + seconds("used_cpu_user")
}

#[allow(clippy::cast_precision_loss, reason = "resident bytes, far below 2^53")]
pub fn resident_mib(perennial: &Perennial) -> f64 {
    perennial.resident_bytes_peak().unwrap_or_default() as f64 / MIB
}

/// A measurement over a link that broke measured something else.
pub fn say_if_unlinked(perennial: &Perennial) {
    let log = perennial.log();
    let warnings = log.lines().filter(|line| line.contains("WARN"));
    for warning in warnings {
        println!("  ! {warning}");
    }
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

/// Medians and their ratio.
pub fn row(what: &str, ours: &[f64], peer: &[f64], bar: &str) {
    let (ours, peer) = (median(ours), median(peer));
    let ratio = ours / peer;
    println!(
        "{what:<44} {:>11} {:>11} {ratio:>7.2}  {bar}",
        number(ours),
        number(peer)
    );
}

pub fn row_alone(what: &str, ours: &[f64], bar: &str) {
    println!(
        "{what:<44} {:>11} {:>11} {:>7}  {bar}",
        number(median(ours)),
        "",
        ""
    );
}

pub fn row_of_memory(mib: &[f64]) {
    row_alone("  resident peak, MiB", mib, "< 100");
}

pub fn number(value: f64) -> String {
    if value >= 1000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}
