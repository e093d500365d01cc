//! `cargo xtask test`: tests everything on this machine; with `--everything`, on others too.

mod integration;
mod programs;
mod steps;
pub(crate) mod tries;

pub(crate) use self::{
    integration::{Choice, run as integration, run_with as integration_with},
    programs::provide,
    steps::{Step, Steps},
};
use crate::{build, build_ebpf, command::must, vm, whole};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Refuse to install or download anything; say what is needed instead
    #[arg(long)]
    no_install: bool,

    /// Also test on other kernels and against several CRIUs, in emulated machines, and with a whole
    /// desktop
    #[arg(long, conflicts_with = "filter")]
    everything: bool,

    /// Write the documents that show what came of everything
    #[arg(long, requires = "everything")]
    write_docs: bool,

    /// Run only tests whose name contains this
    filter: Option<String>,
}

/// The steps on this machine.
const HERE: [Step; 5] = [
    Step { name: "packages", about: "install what the tests start", seconds: (40, 2) },
    Step {
        name: "programs",
        about: "build the BPF programs, and compare them with prebuilt/",
        seconds: (60, 3),
    },
    Step { name: "build", about: "build the product and all tests", seconds: (190, 5) },
    Step { name: "unit tests", about: "run the unit tests", seconds: (5, 5) },
    Step { name: "integration", about: "run the integration tests of this machine", seconds: (200, 200) },
];

/// The steps on emulated machines.
const ELSEWHERE: [Step; 2] = [
    Step {
        name: "CRIU",
        about: "have each CRIU dump every fixture, and the oldest a desktop, in emulated machines",
        seconds: (600, 600),
    },
    Step { name: "kernels", about: "run the integration tests on all kernels", seconds: (1500, 1500) },
];

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let commit = args.write_docs.then(whole::commit).transpose()?;
    let mut plan = HERE.to_vec();
    if args.everything {
        plan.extend(ELSEWHERE);
    }
    let mut steps = Steps::begin(plan, args.filter.is_none())?;
    if !args.everything {
        eprintln!("Left out: other kernels, several CRIUs, a desktop (cargo xtask test --everything).");
    }
    let desktop = args.everything || args.filter.as_ref().is_some_and(|name| is_of_desktop(name));
    steps.next(|| prepare(desktop, args.no_install))?;
    steps.next(|| build_ebpf::run(&build_ebpf::Args { check: true, no_install: args.no_install }))?;
    steps.next(|| build::all().map(drop))?;
    steps.next(|| unit_tests(args.filter.as_deref()))?;
    let choice = Choice { filter: args.filter.as_deref(), desktop };
    let record = vm::desktop::new_record()?;
    let counts =
        steps.next(|| integration_with(&choice, |command| vm::desktop::record_in(command, &record)))?;
    if args.everything {
        steps.next(|| {
            vm::compare(commit.as_deref().map(|commit| (commit, record.as_path())), args.no_install)
        })?;
        steps.next(|| vm::run(&vm::Args::everything(commit, args.no_install)))?;
    }
    eprintln!("all passed in {}; {counts}", steps.end()?);
    Ok(())
}

fn is_of_desktop(name: &str) -> bool {
    name.starts_with(vm::desktop::TESTS.trim_end_matches(':'))
}

fn prepare(desktop: bool, no_install: bool) -> anyhow::Result<()> {
    let more = if desktop { vm::desktop::needed_packages()? } else { Vec::new() };
    provide(more, no_install)?;
    if desktop { vm::desktop::prepare(no_install) } else { Ok(()) }
}

fn unit_tests(filter: Option<&str>) -> anyhow::Result<()> {
    must(build::cargo_of_all("test")?.args(["--lib", "--bins", "--test", "rooms", "--"]).args(filter))?;
    // Runs the examples in the documentation, including those that must not compile.
    must(build::cargo_of_all("test")?.args(["--doc", "--"]).args(filter))
}
