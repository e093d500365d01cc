//! The command line's commands and flags.

use std::{path::PathBuf, time::Duration};

use caps::Capability;
use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValuesParser, RangedI64ValueParser, TypedValueParser as _},
};
use tracing::level_filters::LevelFilter;
use tracker_ebpf::Kind;

use crate::{
    agent::Pace,
    bpf::{Choice, SELF_TEST, Sizes},
    criu,
    freeze::COMMAND as THAW,
    privileges,
    target::Target,
    verdict::Judge,
};

use super::{
    judging::Judging,
    load::Config,
    runtimes::Runtimes,
    values::{capability, duration},
    web::Web,
};

/// Live, exact counts of the file descriptors that stop a CRIU checkpoint, for every container.
#[derive(Debug, Parser)]
#[command(name = "fdtracker", version, max_term_width = 100, subcommand_required = true)]
#[command(
    after_help = "Exit codes: 0 as expected, 1 doctor found something missing or check a blocker, 2 an error, 3 check can't tell."
)]
pub struct Cli {
    /// How much to log on standard error: off, error, warn, info, debug or trace [default: info for
    /// agent, else warn]
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<LevelFilter>,

    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Count fds and answer /metrics, until the process is stopped
    Agent(Box<Agent>),
    /// Print fds as they are opened and closed
    Tail(Tail),
    /// List containers with their open fds of each kind
    Ls(Ls),
    /// Say what criu dump would say about a container or a process tree, before it runs
    ///
    /// Lists everything that would stop the dump at once, in CRIU's own words, with remedies; then
    /// the process tree with the parts that could be dumped alone, and the shortest way to a dump
    /// of the whole tree. No process is changed or stopped.
    #[command(
        after_help = "Exit codes: 0 it could be dumped, 1 it could not, 2 an error, 3 it can't be told."
    )]
    Check(Box<Check>),
    /// Explain a kind of file, a reason, or a message in CRIU's log
    Explain(Explain),
    /// List what each release of CRIU does with each kind of file
    Rules(Rules),
    /// Check what fdtracker can do on this machine, and how to allow more
    Doctor(Doctor),
    /// Wait for the end of standard input, and then thaw a cgroup
    #[command(name = THAW, hide = true)]
    Thaw {
        /// The freezer's file
        file: PathBuf,
        /// The word that thaws
        word: String,
    },
    /// Run as the process whose fds the self-test of a feeder watches
    #[command(name = SELF_TEST, hide = true)]
    SelfTest {
        /// What an earlier program in this process left open
        #[arg(num_args = 0..=2)]
        inherited: Vec<i64>,
    },
}

impl Cli {
    /// Returns how much to log.
    pub(super) fn log_level(&self) -> LevelFilter {
        self.log_level.unwrap_or_else(|| self.command.default_log_level())
    }
}

impl Command {
    fn default_log_level(&self) -> LevelFilter {
        match self {
            Self::Agent(_) => LevelFilter::INFO,
            Self::Tail(_)
            | Self::Ls(_)
            | Self::Check(_)
            | Self::Explain(_)
            | Self::Rules(_)
            | Self::Doctor(_)
            | Self::Thaw { .. }
            | Self::SelfTest { .. } => LevelFilter::WARN,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Agent {
    /// Let the kernel measure how often and for how long BPF programs run, for fdtracker_program_*;
    /// costs each run some tens of nanoseconds, and needs CAP_SYS_ADMIN
    #[arg(long)]
    pub(super) bpf_stats: bool,

    /// The capabilities that the agent keeps once its probes are attached; docs/operations.md says
    /// what is lost without each
    #[arg(long = "capabilities.keep", value_name = "CAP_NAME", value_delimiter = ',', default_values_t = privileges::USES.map(|used| used.capability), value_parser = capability)]
    pub(super) keep: Vec<Capability>,

    /// Print containers, and then fds as they are opened and closed, on standard output
    #[arg(long)]
    pub(super) live: bool,

    #[command(flatten)]
    pub(super) config: Config,

    #[command(flatten)]
    pub(super) socket: Socket,

    #[command(flatten)]
    pub(super) counting: Counting,

    #[command(flatten)]
    pub(super) web: Web,
}

#[derive(Debug, Args)]
pub(super) struct Tail {
    /// Only this container: its name, or the beginning of its id; `host` for processes in no
    /// container
    #[arg(long, value_name = "CONTAINER")]
    pub(super) container: Option<String>,

    /// Only this kind; can be given several times
    #[arg(long, value_name = "KIND", hide_possible_values = true, value_parser = kind())]
    pub(super) kind: Vec<Kind>,

    /// Output format: text, or json with one object per line
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(super) output: TailFormat,

    #[command(flatten)]
    pub(super) socket: Socket,

    #[command(flatten)]
    pub(super) counting: Counting,
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    /// List processes, too
    #[arg(long)]
    pub(super) processes: bool,

    /// Output format: table, or json as one document
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub(super) output: LsFormat,

    #[command(flatten)]
    pub(super) socket: Socket,

    #[command(flatten)]
    pub(super) counting: Counting,
}

#[derive(Debug, Args)]
pub(super) struct Check {
    /// A container's name or the beginning of its id, pod/NAMESPACE/NAME, pid:N for the tree under
    /// a process, or cgroup:/PATH
    #[arg(value_name = "TARGET", required_unless_present = "log", conflicts_with = "log")]
    pub(super) target: Option<Target>,

    /// Instead, read the log of a dump that failed: say which file was the reason, and what to do
    #[arg(long, value_name = "FILE")]
    pub(super) log: Option<PathBuf>,

    /// Freeze the processes during the inspection, so that the result is exact; they are thawed in
    /// any case
    #[arg(long, conflicts_with = "log")]
    pub(super) freeze: bool,

    /// Repeat the inspection until the target can be dumped, for at most this long
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "log")]
    pub(super) wait: Option<Duration>,

    /// Output format: table, or json as one document
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub(super) output: LsFormat,

    #[command(flatten)]
    pub(super) runtimes: Runtimes,

    #[command(flatten)]
    pub(super) judging: Judging,
}

#[derive(Debug, Args)]
pub(super) struct Explain {
    /// A kind such as pidfd, a reason such as pidfd_unsupported, or a line of CRIU's log
    #[arg(value_name = "KIND|REASON|MESSAGE")]
    pub(super) what: String,

    /// Output format: table, or json as one document
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub(super) output: LsFormat,

    #[command(flatten)]
    pub(super) judging: Judging,
}

#[derive(Debug, Args)]
pub(super) struct Rules {
    /// Output format: table, json as one document, or markdown
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub(super) output: RulesFormat,

    #[command(flatten)]
    pub(super) judging: Judging,
}

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Output format: table, or json as one document
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub(super) output: LsFormat,

    #[command(flatten)]
    pub(super) judging: Judging,
}

#[derive(Debug, Args)]
pub(super) struct Socket {
    /// The agent's unix socket
    #[arg(long, value_name = "PATH", default_value = "/run/fdtracker/agent.sock")]
    pub(super) socket: PathBuf,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "How it counts")]
pub(super) struct Counting {
    /// The probes to count with [default: the best ones that pass their self-test on this kernel]
    #[arg(long, value_name = "FEEDER")]
    pub(super) feeder: Option<Feeder>,

    /// How often all counts are compared with the kernel's own list of open files
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub(super) audit_interval: Duration,

    /// How often each container is inspected, besides soon after a change of its fds: some facts
    /// change without an event
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub(super) judge_interval: Duration,

    /// How many fd tables can be counted that have, or had, something to count; each takes about
    /// 400 bytes of kernel memory
    #[arg(long, value_name = "TABLES", default_value_t = Sizes::default().tables, value_parser = size(16))]
    pub(super) max_tables: u32,

    /// How many open fds can be counted; each takes about 80 bytes of kernel memory
    #[arg(long, value_name = "FDS", default_value_t = Sizes::default().slots, value_parser = size(64))]
    pub(super) max_fds: u32,

    /// Bytes of kernel memory for events on their way to the agent, rounded up to a power of two of
    /// pages; if an event finds no room, tail misses it, but no count does
    #[arg(long, value_name = "BYTES", default_value_t = Sizes::default().ring, value_parser = size(1))]
    pub(super) ring_size: u32,

    #[command(flatten)]
    judging: Judging,

    #[command(flatten)]
    pub(super) runtimes: Runtimes,
}

impl Counting {
    pub(super) fn sizes(&self) -> Sizes {
        Sizes { tables: self.max_tables, slots: self.max_fds, ring: self.ring_size }
    }

    pub(super) fn pace(&self) -> Pace {
        Pace { audit: self.audit_interval, inspect: self.judge_interval }
    }

    pub(super) fn judge(&self) -> anyhow::Result<Judge> {
        self.judging.judge(criu::CriuRunner::Runc)
    }

    pub(super) fn choice(&self) -> Choice {
        match self.feeder {
            None => Choice::Best,
            Some(Feeder::Kprobe) => Choice::Kprobe,
            Some(Feeder::Tracepoint) => Choice::Tracepoint,
            Some(Feeder::Audit) => Choice::Audit,
        }
    }
}

/// The probes to count with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Feeder {
    /// Probes in the kernel functions that open and close every fd
    Kprobe,
    /// Probes at the exits of system calls, for kernels without kprobes
    Tracepoint,
    /// No probes: counts are read again every few seconds
    Audit,
}

fn size(least: i64) -> RangedI64ValueParser<u32> {
    RangedI64ValueParser::new().range(least..=1 << 24)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum TailFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LsFormat {
    Table,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum RulesFormat {
    Table,
    Json,
    Markdown,
}

fn kind() -> impl clap::builder::TypedValueParser<Value = Kind> {
    PossibleValuesParser::new(Kind::ALL.iter().map(|kind| kind.name()))
        .try_map(|name| Kind::from_name(&name).ok_or("no such kind"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_wrong_is_told_with_what_is_right() {
        let error = |line| parse(line).unwrap_err().to_string();
        assert!(error("fdtracker tail --kind pidfds").contains("io_uring"));
        assert!(error("fdtracker tail -o xml").contains("json"));
        assert!(error("fdtracker ls --criu four").contains("4.1.1"));
        assert!(error("fdtracker agent --web.listen-address nowhere").contains("invalid socket address"));
        assert!(error("fdtracker tails").contains("tail"));
    }

    #[test]
    fn capabilities_are_those_in_use() {
        let kept = |line| match parse(line).unwrap().command {
            Command::Agent(agent) => agent.keep,
            _ => panic!(),
        };
        assert_eq!(kept("fdtracker agent"), privileges::USES.map(|used| used.capability));
        let two = [Capability::CAP_BPF, Capability::CAP_PERFMON];
        assert_eq!(kept("fdtracker agent --capabilities.keep CAP_BPF,CAP_PERFMON"), two);
        let wrong = parse("fdtracker agent --capabilities.keep CAP_KILL").unwrap_err().to_string();
        assert!(wrong.contains("CAP_SYS_PTRACE"), "{wrong}");
    }

    #[test]
    fn several_addresses_and_kinds() {
        let cli =
            parse("fdtracker agent --web.listen-address 127.0.0.1:1 --web.listen-address [::1]:2").unwrap();
        let Command::Agent(agent) = cli.command else { panic!() };
        assert_eq!(agent.web.listen.len(), 2);
        for (line, is_sound) in [
            ("fdtracker agent --web.systemd-socket", true),
            ("fdtracker agent --web.systemd-socket --web.listen-address :1", false),
        ] {
            let Command::Agent(agent) = parse(line).unwrap().command else { panic!() };
            assert_eq!(agent.web.check().is_ok(), is_sound, "{line}");
        }
        let cli = parse("fdtracker tail --kind pidfd --kind io_uring").unwrap();
        let Command::Tail(tail) = cli.command else { panic!() };
        assert_eq!(tail.kind, [Kind::Pidfd, Kind::IoUring]);
    }
}
