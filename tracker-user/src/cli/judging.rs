//! Flags that describe the CRIU to judge for.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use super::values::ValueError;
use crate::{
    criu::{self, Wanted},
    host::{self, KernelVersion},
    verdict::{self, CriuVersion, DumpOption, Judge, Profile},
};

/// The CRIU to judge for, and how it is used.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "The CRIU to judge for")]
pub(super) struct Judging {
    /// Its version [default: that of the criu in PATH, else the newest known]
    #[arg(long, value_name = "VERSION")]
    pub(super) criu: Option<CriuVersion>,

    /// The program [default: the criu in PATH]
    #[arg(long, value_name = "PATH")]
    criu_path: Option<PathBuf>,

    /// The program that runs it: decides which options are always set, and which configuration file
    /// is read [default: runc for containers, else criu]
    #[arg(long, value_name = "ENGINE")]
    engine: Option<Runner>,

    /// Its configuration file, instead of the default one, and of one that a container asks for
    /// (annotation org.criu.config)
    #[arg(long, value_name = "FILE")]
    criu_config: Option<PathBuf>,

    /// A file with more rules about what it dumps, which have priority over the built-in ones; can
    /// be given several times
    #[arg(long, value_name = "FILE")]
    rules: Vec<PathBuf>,

    #[command(flatten)]
    options: DumpOptions,
}

/// Options of `criu dump`.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Options of the dump")]
struct DumpOptions {
    /// Connected TCP sockets are dumped
    #[arg(long)]
    tcp_established: bool,

    /// Connected TCP sockets are dumped as closed ones
    #[arg(long)]
    tcp_close: bool,

    /// Connections that aren't accepted yet are left out
    #[arg(long)]
    skip_in_flight: bool,

    /// Datagram sockets whose peer is outside are dumped
    #[arg(long)]
    ext_unix_sk: bool,

    /// File locks are dumped
    #[arg(long)]
    file_locks: bool,

    /// Files whose name was deleted are dumped with a temporary link
    #[arg(long)]
    link_remap: bool,

    /// The processes use the terminal of the shell that runs criu
    #[arg(long)]
    shell_job: bool,

    /// Any path to the same device is accepted
    #[arg(long)]
    evasive_devices: bool,

    /// Processes with uprobes are dumped
    #[arg(long)]
    allow_uprobes: bool,

    /// The size of the largest deleted file that is dumped: bytes, or with K, M or G
    #[arg(long, value_name = "SIZE", value_parser = ghost_limit)]
    ghost_limit: Option<u64>,

    /// A resource that is given at restore instead, as criu takes it, such as unix[INODE]; can be
    /// given several times
    #[arg(long, value_name = "RESOURCE")]
    external: Vec<String>,

    /// A directory where criu searches for watched files; can be given several times
    #[arg(long, value_name = "PATH")]
    irmap_scan_path: Vec<PathBuf>,
}

/// The program that runs CRIU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Runner {
    /// A user at a terminal
    Criu,
    /// runc, also for docker, containerd and Kubernetes
    Runc,
    Crun,
    Podman,
}

fn ghost_limit(text: &str) -> Result<u64, ValueError> {
    verdict::size(text).ok_or_else(|| ValueError::Size(text.to_owned()))
}

impl Judging {
    /// Whether a flag is one of these.
    pub(super) fn has_flag(name: &str) -> bool {
        Self::augment_args(clap::Command::new("")).get_arguments().any(|arg| arg.get_long() == Some(name))
    }

    /// Creates the judge. `runner` runs CRIU unless another was given.
    pub(super) fn judge(&self, runner: criu::CriuRunner) -> anyhow::Result<Judge> {
        self.judge_of(runner, None)
    }

    /// Creates the judge for a container that may have an
    /// [annotation](crate::runtime::Container::criu_config).
    pub(super) fn judge_of(
        &self,
        runner: criu::CriuRunner,
        annotation: Option<String>,
    ) -> anyhow::Result<Judge> {
        Ok(criu::judge(&Wanted { annotation, ..self.wanted(runner) }, kernel()?)?)
    }

    /// Finds the profile of the CRIU to judge for.
    pub(super) fn profile(&self) -> anyhow::Result<Profile> {
        Ok(criu::profile(&self.wanted(criu::CriuRunner::default()), kernel()?)?)
    }

    fn wanted(&self, runner: criu::CriuRunner) -> Wanted {
        let runner = match self.engine {
            None => runner,
            Some(Runner::Criu) => criu::CriuRunner::Criu,
            Some(Runner::Runc) => criu::CriuRunner::Runc,
            Some(Runner::Crun) => criu::CriuRunner::Crun,
            Some(Runner::Podman) => criu::CriuRunner::Podman,
        };
        Wanted {
            version: self.criu,
            program: self.criu_path.clone(),
            runner,
            config: self.criu_config.clone(),
            annotation: None,
            options: self.options.arguments(),
            rules: self.rules.clone(),
        }
    }
}

fn kernel() -> anyhow::Result<KernelVersion> {
    host::running_kernel().context("tell the kernel's version")
}

impl DumpOptions {
    fn arguments(&self) -> Vec<String> {
        let switches = [
            (self.tcp_established, DumpOption::TcpEstablished),
            (self.tcp_close, DumpOption::TcpClose),
            (self.skip_in_flight, DumpOption::SkipInFlight),
            (self.ext_unix_sk, DumpOption::ExtUnixSk),
            (self.file_locks, DumpOption::FileLocks),
            (self.link_remap, DumpOption::LinkRemap),
            (self.shell_job, DumpOption::ShellJob),
            (self.evasive_devices, DumpOption::EvasiveDevices),
            (self.allow_uprobes, DumpOption::AllowUprobes),
        ];
        let on = switches.into_iter().filter(|(is_on, _)| *is_on).map(|(_, option)| option.to_string());
        let limit = self.ghost_limit.map(|limit| format!("--ghost-limit {limit}"));
        let external = self.external.iter().map(|what| format!("--external {what}"));
        let paths = self.irmap_scan_path.iter().map(|path| format!("--irmap-scan-path {}", path.display()));
        on.chain(limit).chain(external).chain(paths).collect()
    }
}
