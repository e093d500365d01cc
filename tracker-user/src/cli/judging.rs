//! The CRIU to judge for, as it is typed.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use super::values::ValueError;
use crate::{
    criu::{self, Wanted},
    host::{self, KernelVersion},
    verdict::{self, CriuVersion, DumpOption, Judge, Profile},
};

/// Which CRIU, and how it is used.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "The CRIU to judge for")]
pub(super) struct Judging {
    /// Its version [default: that of the criu in PATH, else the newest known]
    #[arg(long, value_name = "VERSION")]
    pub(super) criu: Option<CriuVersion>,

    /// The program [default: the criu in PATH]
    #[arg(long, value_name = "PATH")]
    criu_path: Option<PathBuf>,

    /// Who runs it: what it is always told, and which configuration file is read [default: runc for containers, else criu]
    #[arg(long, value_name = "ENGINE")]
    engine: Option<Engine>,

    /// Its configuration file, instead of the engine's, or of the one that a container names (annotation org.criu.config)
    #[arg(long, value_name = "FILE")]
    criu_config: Option<PathBuf>,

    /// More rules about what it dumps, which go before those of this build; can be given several times
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

    /// Files whose name was deleted are dumped by a temporary link
    #[arg(long)]
    link_remap: bool,

    /// The terminal is that of the shell that runs criu
    #[arg(long)]
    shell_job: bool,

    /// Any path to a device will do
    #[arg(long)]
    evasive_devices: bool,

    /// Processes with uprobes are dumped
    #[arg(long)]
    allow_uprobes: bool,

    /// The largest deleted file that is dumped: bytes, or with K, M or G
    #[arg(long, value_name = "SIZE", value_parser = ghost_limit)]
    ghost_limit: Option<u64>,

    /// Given at restore instead, as criu takes it, such as unix[INODE]; can be given several times
    #[arg(long, value_name = "RESOURCE")]
    external: Vec<String>,

    /// Where criu looks for watched files; can be given several times
    #[arg(long, value_name = "PATH")]
    irmap_scan_path: Vec<PathBuf>,
}

/// Who runs CRIU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// Somebody at a terminal
    Criu,
    /// Docker, containerd and Kubernetes too
    Runc,
    Crun,
    Podman,
}

fn ghost_limit(text: &str) -> Result<u64, ValueError> {
    verdict::size(text).ok_or_else(|| ValueError::Size(text.to_owned()))
}

impl Judging {
    /// Whether this flag is one of these.
    pub(super) fn has_flag(name: &str) -> bool {
        Self::augment_args(clap::Command::new("")).get_arguments().any(|arg| arg.get_long() == Some(name))
    }

    /// The judge. `engine` runs CRIU unless another was given.
    pub(super) fn judge(&self, engine: criu::Engine) -> anyhow::Result<Judge> {
        self.judge_of(engine, None)
    }

    /// As [`judge`](Self::judge), for a container with an [annotation](crate::runtime::Container::criu_config).
    pub(super) fn judge_of(&self, engine: criu::Engine, annotation: Option<String>) -> anyhow::Result<Judge> {
        Ok(criu::judge(&Wanted { annotation, ..self.wanted(engine) }, kernel()?)?)
    }

    /// The CRIU that it is about.
    pub(super) fn profile(&self) -> anyhow::Result<Profile> {
        Ok(criu::profile(&self.wanted(criu::Engine::default()), kernel()?)?)
    }

    fn wanted(&self, engine: criu::Engine) -> Wanted {
        let engine = match self.engine {
            None => engine,
            Some(Engine::Criu) => criu::Engine::Criu,
            Some(Engine::Runc) => criu::Engine::Runc,
            Some(Engine::Crun) => criu::Engine::Crun,
            Some(Engine::Podman) => criu::Engine::Podman,
        };
        Wanted {
            version: self.criu,
            program: self.criu_path.clone(),
            engine,
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
