//! The processor time of a bench: on a machine that does other work as well, the only time that says something.

/// User and system time of this process so far, in seconds (`man 5 proc`; the second field may contain anything).
pub(crate) fn cpu_seconds() -> f64 {
    /// Always a hundredth of a second on Linux (USER_HZ).
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: f64 = ticks
        .map(|field| field.parse::<f64>().expect("a number"))
        .sum();
    ticks / TICKS_PER_SECOND
}
