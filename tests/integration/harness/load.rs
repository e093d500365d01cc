//! Measures how busy the machine was while a test ran.

use std::{fs, time::Instant};

/// The beginning of a period that is measured.
pub(super) struct Load {
    start: Instant,
    /// How long some task had waited for a processor since boot, in microseconds. `None` if the
    /// kernel doesn't tell.
    waited: Option<u64>,
    /// How long the machine's host had given its processors to others, in clock ticks.
    stolen: Option<u64>,
}

/// If tasks wait for a processor in this share of the time or more, in percent, a test may have had
/// too little of it.
const MUCH_WAITING: u64 = 50;

/// The same for the time that the host gives to others.
const MUCH_STOLEN: u64 = 10;

impl Load {
    pub(super) fn start() -> Self {
        Self { start: Instant::now(), waited: waited(), stolen: stolen() }
    }

    /// Returns how busy the machine was since then, if it was busy.
    pub(super) fn since(&self) -> Option<String> {
        let milliseconds = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        let share = |now: Option<u64>, then: Option<u64>, per_millisecond: u64| {
            Some(now?.checked_sub(then?)? * 100 / (milliseconds * per_millisecond).max(1))
        };
        let waited = share(waited(), self.waited, 1000).unwrap_or(0);
        // A second has 100 ticks.
        let stolen = share(stolen().map(|ticks| ticks * 10), self.stolen.map(|ticks| ticks * 10), processors);
        let stolen = stolen.unwrap_or(0);
        let busy = waited >= MUCH_WAITING || stolen >= MUCH_STOLEN;
        busy.then(|| format!("tasks waited for a processor in {waited} % of the time, {stolen} % was stolen"))
    }
}

/// Reads pressure stall information: `some avg10=… avg60=… avg300=… total=MICROSECONDS`.
///
/// # Minimum kernel
/// 4.20, unless it is switched off.
fn waited() -> Option<u64> {
    let text = fs::read_to_string("/proc/pressure/cpu").ok()?;
    text.lines().find(|line| line.starts_with("some "))?.rsplit_once("total=")?.1.parse().ok()
}

/// Reads the time that the host took: `cpu user nice system idle iowait irq softirq steal …`.
fn stolen() -> Option<u64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().next()?.split_whitespace().nth(8)?.parse().ok()
}
