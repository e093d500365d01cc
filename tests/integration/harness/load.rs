//! How busy the machine was while a test ran.

use std::{fs, time::Instant};

/// The beginning of a time that is looked at.
pub(super) struct Load {
    start: Instant,
    /// For how long some task had waited for a processor since boot, in microseconds, if the kernel
    /// tells.
    waited: Option<u64>,
    /// For how long the machine's host had kept processors from it, in clock ticks.
    stolen: Option<u64>,
}

/// A share of time from which on a test may have had too little of it: of tasks that wait for a
/// processor, in percent.
const MUCH_WAITING: u64 = 50;

/// The same of what a host keeps from its machines.
const MUCH_STOLEN: u64 = 10;

impl Load {
    pub(super) fn start() -> Self {
        Self { start: Instant::now(), waited: waited(), stolen: stolen() }
    }

    /// If the machine was busy since then, how busy.
    pub(super) fn since(&self) -> Option<String> {
        let milliseconds = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        let share = |now: Option<u64>, then: Option<u64>, per_millisecond: u64| {
            Some(now?.checked_sub(then?)? * 100 / (milliseconds * per_millisecond).max(1))
        };
        let waited = share(waited(), self.waited, 1000).unwrap_or(0);
        // There are 100 ticks in a second.
        let stolen = share(stolen().map(|ticks| ticks * 10), self.stolen.map(|ticks| ticks * 10), processors);
        let stolen = stolen.unwrap_or(0);
        let busy = waited >= MUCH_WAITING || stolen >= MUCH_STOLEN;
        busy.then(|| format!("tasks waited for a processor in {waited} % of the time, {stolen} % was stolen"))
    }
}

/// Pressure stall information: `some avg10=… avg60=… avg300=… total=MICROSECONDS`. Minimum kernel:
/// 4.20, if it isn't switched off.
fn waited() -> Option<u64> {
    let text = fs::read_to_string("/proc/pressure/cpu").ok()?;
    text.lines().find(|line| line.starts_with("some "))?.rsplit_once("total=")?.1.parse().ok()
}

/// `cpu user nice system idle iowait irq softirq steal …`
fn stolen() -> Option<u64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().next()?.split_whitespace().nth(8)?.parse().ok()
}
