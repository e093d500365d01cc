//! Measures how late `fdtracker tail` shows an event, with many containers, with and without
//! scrapes of `/metrics`. `cargo xtask bench latency` runs it.
//!
//! Call: `fdlatency CONTAINERS EVENTS SECONDS ROUNDS PROGRAM…`, where each PROGRAM is an fdtracker.
//! In each container, one process has an eventfd open. In one more container, a process opens and
//! closes a pidfd at an even pace: EVENTS a second in all. The latency of an event is the time from
//! its probe's clock in the kernel to the moment when this process has read the line from `tail -o
//! json`.

use std::{
    error::Error,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use fdtracker_tests::{
    Agent, Cgroup,
    kinds::{close, open},
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The time between two scrapes.
const SCRAPES: Duration = Duration::from_millis(100);

/// The time at the start of each round that isn't measured.
const WARM_UP: Duration = Duration::from_secs(1);

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [containers, events, seconds, rounds, programs @ ..] = words.as_slice() else {
        return Err("usage: fdlatency CONTAINERS EVENTS SECONDS ROUNDS PROGRAM…".into());
    };
    let (events, time) = (events.parse()?, Duration::from_secs(seconds.parse()?));
    // This comes before any thread, because these processes are forks.
    let watched = Watched::new(containers.parse()?, events)?;
    println!(
        "{:<7}{:<10}{:>10}{:>10}{:>10}{:>11}{:>9}{:>9}",
        "round", "scrapes", "p50 ms", "p99 ms", "worst ms", "events/s", "lost", "program"
    );
    for round in 1..=rounds.parse::<u32>()? {
        for scrapes in [false, true] {
            for (number, program) in programs.iter().enumerate() {
                let figures = measure(Path::new(program), &watched, time, scrapes)?;
                let scraped = if scrapes { format!("{}/s", figures.scrapes) } else { "none".into() };
                println!("{round:<7}{scraped:<10}{figures}{:>9}", number + 1);
            }
        }
    }
    Ok(())
}

/// Containers with one process each, and one in which events happen.
struct Watched {
    busy: Cgroup,
    _idle: Vec<Cgroup>,
}

impl Watched {
    fn new(containers: usize, events: u32) -> Result<Self> {
        let idle: Vec<Cgroup> = (0..containers).map(|_| Cgroup::docker()).collect();
        for cgroup in &idle {
            fork_into(cgroup, || {
                open("eventfd")?;
                Ok(pause())
            })?;
        }
        let busy = Cgroup::docker();
        fork_into(&busy, || open_and_close(events))?;
        Ok(Self { busy, _idle: idle })
    }
}

/// Runs a function in a child in this cgroup. The cgroup kills the child in the end.
fn fork_into(
    cgroup: &Cgroup,
    work: impl FnOnce() -> std::io::Result<std::convert::Infallible>,
) -> Result<()> {
    // SAFETY: this process has no other thread whose locks the child could miss.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error().into()),
        0 => {
            cgroup.add(std::process::id());
            let Err(error) = work();
            eprintln!("fdlatency: {error}");
            std::process::exit(1)
        }
        _ => Ok(()),
    }
}

fn pause() -> std::convert::Infallible {
    loop {
        // SAFETY: the call has no precondition.
        unsafe { libc::pause() };
    }
}

/// Opens and closes a pidfd again and again. After a delay it goes faster until it is on time
/// again.
fn open_and_close(events: u32) -> std::io::Result<std::convert::Infallible> {
    let step = Duration::from_secs(1) / events.max(1);
    let mut next = Instant::now();
    let mut wait = || {
        next += step;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    };
    loop {
        let fd = open("pidfd")?;
        wait();
        close(fd);
        wait();
    }
}

struct Figures {
    /// Sorted.
    latencies: Vec<Duration>,
    lost: u64,
    time: Duration,
    scrapes: u32,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = self.latencies.len();
        let at = |part: f64| {
            let index = ((count as f64 * part) as usize).min(count.saturating_sub(1));
            self.latencies.get(index).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
        };
        let rate = count as f64 / self.time.as_secs_f64();
        write!(f, "{:>10.3}{:>10.3}{:>10.3}{rate:>11.0}{:>9}", at(0.5), at(0.99), at(1.0), self.lost)
    }
}

fn measure(program: &Path, watched: &Watched, time: Duration, scrapes: bool) -> Result<Figures> {
    let arguments = ["--criu", "4.0", "--runtime-socket", "none"];
    let agent = Agent::start_in(tempfile::tempdir()?, Command::new(program), &arguments);
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let scraper = scope.spawn(|| scrape(&agent, &ended, scrapes));
        let mut tail = Tail::start(program, &agent, &watched.busy.id)?;
        let figures = tail.follow(time);
        ended.store(true, Ordering::Relaxed);
        let done = scraper.join().map_err(|_| "the scraper has panicked")?;
        let seconds = (time + WARM_UP).as_secs() as u32;
        Ok(Figures { scrapes: done / seconds, ..figures? })
    })
}

/// Scrapes until the end. Returns how many scrapes there were.
fn scrape(agent: &Agent, ended: &AtomicBool, scrapes: bool) -> u32 {
    let (mut done, mut next) = (0, Instant::now());
    while scrapes && !ended.load(Ordering::Relaxed) {
        agent.metrics();
        done += 1;
        next += SCRAPES;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    done
}

struct Tail {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Tail {
    fn start(program: &Path, agent: &Agent, container: &str) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(["tail", "-o", "json", "--container", container, "--socket"]).arg(&agent.socket);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().ok_or("tail has no standard output")?);
        Ok(Self { child, lines })
    }

    fn follow(&mut self, time: Duration) -> Result<Figures> {
        let mut figures = Figures { latencies: Vec::new(), lost: 0, time, scrapes: 0 };
        let (start, mut line) = (Instant::now(), String::new());
        while start.elapsed() < time + WARM_UP {
            line.clear();
            if self.lines.read_line(&mut line)? == 0 {
                return Err("tail has ended".into());
            }
            let now = SystemTime::now();
            if start.elapsed() < WARM_UP {
                continue;
            }
            let event: serde_json::Value = serde_json::from_str(&line)?;
            match event["lost"].as_u64() {
                Some(lost) => figures.lost += lost,
                None if event["fd"].is_u64() => {
                    let time = event["time"].as_str().ok_or("an event without a time")?;
                    figures.latencies.push(age(time, now)?);
                }
                None => {}
            }
        }
        figures.latencies.sort();
        Ok(figures)
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns how long before `now` an RFC 3339 time is. Compares only the time of day.
fn age(time: &str, now: SystemTime) -> Result<Duration> {
    let clock = time.split(['T', 'Z']).nth(1).ok_or("no time of day")?;
    let parts = clock.split(':').map(str::parse).collect::<std::result::Result<Vec<f64>, _>>()?;
    let at = parts.iter().fold(0.0, |sum, part| sum * 60.0 + part);
    let now = now.duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64() % 86_400.0;
    Ok(Duration::from_secs_f64((now - at).rem_euclid(86_400.0)))
}
