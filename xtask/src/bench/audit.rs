//! `cargo xtask bench audit`: how long a start and an audit take, with many fds open.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use super::{expect_ok, print_header, print_row};
use crate::machine::{find, mount_tracefs};

#[derive(clap::Args)]
pub(super) struct Audit {
    /// fds to hold open, one half eventfds, one half pidfds
    #[arg(long, default_value_t = 100_000)]
    fds: usize,

    /// Processes that hold them
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    processes: u32,

    /// How often each figure is taken
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
}

const START_BAR: Duration = Duration::from_millis(500);
const AUDIT_BAR: Duration = Duration::from_millis(40);

/// How long to wait at most. Nothing that is measured takes as long.
const PATIENCE: Duration = Duration::from_mins(1);

pub(super) fn run(args: &Audit, binaries: &Path) -> anyhow::Result<()> {
    mount_tracefs()?;
    let _fixture = Fixture::open(&binaries.join("fdzoo"), args)?;
    println!("{} fds in {} processes, {} runs of a release build", args.fds, args.processes, args.runs);
    println!("start: from the agent's start until GET /readyz says 200");
    println!("adoption: the part of it in which what was open already is counted, as the agent logs it");
    println!("audit: fdtracker_audit_duration_seconds of later audits, 100 ms apart");
    println!("lsof, lsfd: from start to end, with the output thrown away\n");
    print_header();
    for feeder in ["kprobe", "tracepoint"] {
        bench_feeder(&binaries.join("fdtracker"), feeder, args)?;
    }
    for tool in [&["lsof", "-n"][..], &["lsfd"]] {
        bench_tool(tool, args.runs)?;
    }
    Ok(())
}

fn bench_feeder(binary: &Path, feeder: &str, args: &Audit) -> anyhow::Result<()> {
    let (mut starts, mut adoptions, mut audits) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.runs {
        let start = Instant::now();
        let Some(agent) = Agent::start(binary, feeder)? else {
            println!("{feeder}: can't be used on this machine; `fdtracker doctor` says why");
            return Ok(());
        };
        agent.await_ready()?;
        starts.push(start.elapsed());
        adoptions.push(agent.adoption()?);
        audits.extend(agent.audits(3)?);
        let counted = agent.counted()?;
        ensure!(counted >= args.fds, "the agent counts {counted} of {} fds", args.fds);
    }
    print_row(&format!("{feeder}: start"), starts, Some(START_BAR));
    print_row(&format!("{feeder}: adoption"), adoptions, None);
    print_row(&format!("{feeder}: audit"), audits, Some(AUDIT_BAR));
    Ok(())
}

fn bench_tool(command: &[&str], runs: u32) -> anyhow::Result<()> {
    let name = command.join(" ");
    let [program, arguments @ ..] = command else { return Ok(()) };
    let Some(program) = find(program) else {
        println!("{name:<22}not installed");
        return Ok(());
    };
    let mut times = Vec::new();
    for _ in 0..runs {
        let start = Instant::now();
        let mut tool = Command::new(&program);
        tool.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        tool.status().with_context(|| format!("start {name}"))?;
        times.push(start.elapsed());
    }
    print_row(&name, times, None);
    Ok(())
}

/// Processes that hold fds open. They end when their standard input is closed.
struct Fixture(Vec<Child>);

impl Fixture {
    fn open(fdzoo: &Path, args: &Audit) -> anyhow::Result<Self> {
        let mut fixture = Self(Vec::new());
        let processes = args.processes as usize;
        for i in 0..processes {
            let fds = args.fds * (i + 1) / processes - args.fds * i / processes;
            let mut child = Command::new(fdzoo)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .with_context(|| format!("start {}", fdzoo.display()))?;
            let (commands, answers) = (child.stdin.as_ref(), child.stdout.take());
            let mut commands = commands.context("its standard input")?;
            writeln!(commands, "open_many eventfd {}\nopen_many pidfd {}", fds / 2, fds - fds / 2)?;
            let mut answers = BufReader::new(answers.context("its standard output")?);
            fixture.0.push(child);
            expect_ok(&mut answers)?;
            expect_ok(&mut answers)?;
        }
        Ok(fixture)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(|child| drop(child.stdin.take()));
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}

/// An agent with its own port and socket.
struct Agent {
    child: Child,
    log: Receiver<String>,
    address: String,
    socket: PathBuf,
}

impl Agent {
    /// Starts it. Returns `None` if the feeder can't be used.
    fn start(binary: &Path, feeder: &str) -> anyhow::Result<Option<Self>> {
        let socket = std::env::temp_dir().join(format!("fdtracker-bench-{}.sock", std::process::id()));
        let mut child = Command::new(binary)
            .args(["agent", "--feeder", feeder, "--audit-interval", "100ms"])
            .args(["--web.listen-address", "127.0.0.1:0", "--socket"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        let stderr = child.stderr.take().context("its standard error")?;
        let (say, log) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(stderr).lines().map_while(Result::ok);
            lines.for_each(|line| drop(say.send(line)));
        });
        let mut agent = Self { child, log, address: String::new(), socket };
        agent.address = agent.logged("listening on http://")?.trim_end_matches("/metrics").to_owned();
        // An agent that can't use the feeder says so and ends at once.
        Ok(agent.get("/readyz").is_ok().then_some(agent))
    }

    /// Returns what the agent's log says after these words.
    fn logged(&self, words: &str) -> anyhow::Result<String> {
        loop {
            let line =
                self.log.recv_timeout(PATIENCE).with_context(|| format!("the agent logs no {words:?}"))?;
            if let Some((_, rest)) = line.split_once(words) {
                return Ok(rest.split(' ').next().unwrap_or_default().to_owned());
            }
        }
    }

    /// Sends a GET, and returns status and body.
    fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
        Ok((status, body.to_owned()))
    }

    fn await_ready(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        while self.get("/readyz")?.0 != 200 {
            ensure!(start.elapsed() < PATIENCE, "the agent doesn't become ready");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn adoption(&self) -> anyhow::Result<Duration> {
        let took = self.logged(" took=")?;
        duration(&took).with_context(|| format!("{took:?} is no duration"))
    }

    /// Waits for this many audits, and returns how long each took.
    fn audits(&self, count: usize) -> anyhow::Result<Vec<Duration>> {
        let (start, mut times) = (Instant::now(), Vec::new());
        let mut known = None;
        while times.len() < count {
            ensure!(start.elapsed() < PATIENCE, "the agent doesn't audit");
            let (_, metrics) = self.get("/metrics")?;
            let finished = sum(&metrics, "fdtracker_audits_total");
            // The first audit is the adoption.
            if known.replace(finished).is_some_and(|known| finished > known) {
                times.push(Duration::from_secs_f64(sum(&metrics, "fdtracker_audit_duration_seconds")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(times)
    }

    /// Returns how many fds are counted.
    fn counted(&self) -> anyhow::Result<usize> {
        Ok(sum(&self.get("/metrics")?.1, "fdtracker_open_fds") as usize)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // This returns when the kernel has detached every probe.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

/// Returns the sum of a metric's series.
fn sum(metrics: &str, name: &str) -> f64 {
    let values = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with(['{', ' ']).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
    });
    values.sum()
}

/// Reads a duration as Rust's `Debug` writes it.
fn duration(text: &str) -> Option<Duration> {
    let units = [("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9), ("s", 1.0)];
    let (number, unit) = units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * unit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_they_are_written() {
        for time in [Duration::from_nanos(17), Duration::from_micros(1_500), Duration::from_millis(2_250)] {
            assert_eq!(duration(&format!("{time:?}")), Some(time));
        }
        assert_eq!(duration("soon"), None);
    }

    #[test]
    fn the_series_of_a_metric_add_up() {
        let text = "# HELP a b\na{kind=\"x\"} 2\na{kind=\"y\"} 3\na_total 9\nb 1.5\n";
        assert_eq!((sum(text, "a"), sum(text, "b"), sum(text, "c")), (5.0, 1.5, 0.0));
    }
}
