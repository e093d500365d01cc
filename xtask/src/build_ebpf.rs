//! `cargo xtask build-ebpf`: builds the BPF object from source.
//!
//! The object is checked in, so that users need no BPF toolchain. It is reproducible: the same
//! compiler and linker give the same bytes wherever the workspace is, because paths are remapped.
//! With another compiler at least the code must be the same, because bpf-linker's LLVM makes it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use object::{
    Object as _, ObjectSection as _,
    build::elf::{Builder, SectionData},
};

use crate::{
    cache,
    command::{cargo, fetch, must, output},
    machine::{Package, find, install, is_installed},
    paths::{target, workspace},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Compare with what is checked in, and write nothing
    #[arg(long)]
    pub(crate) check: bool,

    /// Refuse to install anything; say what is needed instead
    #[arg(long)]
    pub(crate) no_install: bool,
}

/// The linker of BPF objects, and the LLVM that it is built with: at least as new as the
/// compiler's.
const LINKER: (&str, &str) = ("0.13.0", "22");

const OBJECT: &str = "tracker-ebpf/prebuilt/tracker.bpf.o";

/// The file that names the compiler and the linker of the object.
const MADE_BY: &str = "tracker-ebpf/prebuilt/MADE_BY";

/// A compiler with the sources of `core`.
struct Toolchain {
    rustc: PathBuf,
    cargo: PathBuf,
    sources: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    install(&missing_packages(), !args.no_install)?;
    let Some(toolchain) = toolchain() else {
        bail!(
            "no rustc with the sources of core: `rustup toolchain install nightly --component rust-src`, or on Debian \
             `apt-get install rustc-web cargo-web rust-web-src`"
        );
    };
    let linker = linker(args.no_install)?;
    let made_by = format!(
        "{}\n{}\n",
        output(Command::new(&toolchain.rustc).arg("-V"))?,
        output(Command::new(&linker).arg("--version"))?
    );
    eprint!("building the BPF object with\n{made_by}");
    let built = strip(&build(&toolchain, &linker)?)?;
    if args.check { compare(&built, &made_by) } else { write(&built, &made_by) }
}

/// Returns the packages that must be installed before the object can be built.
pub(crate) fn missing_packages() -> Vec<Package> {
    let mut packages = Vec::new();
    if toolchain().is_none() {
        packages.extend(["rustc-web", "cargo-web", "rust-web-src"].map(Package::Install));
    }
    // The linker in the cache needs LLVM to run, and a new linker needs it to be built.
    if find("bpf-linker").is_none() && llvm().is_none() && !is_installed("libllvm22") {
        packages.push(Package::Install("libllvm22"));
    }
    packages
}

/// Returns the first compiler that has the sources: one that is named, rustup's nightly, rustup's
/// default, the distribution's.
fn toolchain() -> Option<Toolchain> {
    let named = || Some((std::env::var_os("BPF_RUSTC")?.into(), std::env::var_os("BPF_CARGO")?.into()));
    let rustup = |toolchain: &[&str]| {
        let which = |tool| {
            let mut rustup = Command::new("rustup");
            output(rustup.arg("which").args(toolchain).arg(tool)).ok().map(PathBuf::from)
        };
        Some((which("rustc")?, which("cargo")?))
    };
    let distribution = || Some((PathBuf::from("/usr/bin/rustc"), PathBuf::from("/usr/bin/cargo")));
    [named(), rustup(&["--toolchain", "nightly"]), rustup(&[]), distribution()]
        .into_iter()
        .flatten()
        .find_map(|(rustc, cargo)| with_sources(rustc, cargo))
}

fn with_sources(rustc: PathBuf, cargo: PathBuf) -> Option<Toolchain> {
    let sysroot = output(Command::new(&rustc).args(["--print", "sysroot"])).ok()?;
    let sources = Path::new(&sysroot).join("lib/rustlib/src/rust");
    let whole = sources.join("library/Cargo.lock").exists() && cargo.exists();
    whole.then_some(Toolchain { rustc, cargo, sources })
}

/// Returns the distribution's LLVM library, which bpf-linker needs.
fn llvm() -> Option<PathBuf> {
    let name = format!("libLLVM.so.{}.1", LINKER.1);
    let libraries = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"];
    libraries.iter().map(|dir| Path::new(dir).join(&name)).find(|file| file.exists())
}

/// Returns the bpf-linker in `PATH`, or the one in the cache.
fn found_linker() -> anyhow::Result<Option<PathBuf>> {
    match find("bpf-linker") {
        Some(linker) => Ok(Some(linker)),
        None => Ok(cache::get(TOOLS, &linker_name())?.map(|dir| dir.join("bin/bpf-linker"))),
    }
}

/// The directory of tools in the cache.
const TOOLS: &str = "tools";

/// Returns the linker's name in the cache. It has the version of LLVM too: with another LLVM,
/// `0.13.0` is another program.
fn linker_name() -> String {
    let (version, llvm) = LINKER;
    format!("bpf-linker-{version}-llvm-{llvm}")
}

/// Returns a bpf-linker. Builds one against the distribution's LLVM if there is none.
fn linker(no_install: bool) -> anyhow::Result<PathBuf> {
    if let Some(linker) = found_linker()? {
        return Ok(linker);
    }
    let (version, llvm_version) = LINKER;
    if no_install {
        bail!("bpf-linker {version} is needed (without --no-install cargo installs it into the cache)");
    }
    let llvm =
        llvm().with_context(|| format!("libLLVM.so.{llvm_version}.1 isn't here: bpf-linker needs it"))?;
    let feature = format!("llvm-{llvm_version}");
    let dir = cache::get_or_make(TOOLS, &linker_name(), |dir| {
        // Its build script needs PREFIX/lib/libLLVM.so, and nothing else of LLVM's development
        // files.
        let (prefix, building) = (dir.join("llvm"), dir.join("building"));
        let link = prefix.join("lib/libLLVM.so");
        fs::create_dir_all(prefix.join("lib")).with_context(|| format!("make {}", prefix.display()))?;
        std::os::unix::fs::symlink(&llvm, &link).with_context(|| format!("link {}", link.display()))?;
        let mut install = cargo()?;
        install.args(["install", "bpf-linker", "--version", version, "--locked", "--no-default-features"]);
        // LLVM does most of the work, so that an unoptimised linker is fast enough.
        install.args(["--profile", "dev", "--features", &feature, "--root"]).arg(dir);
        install.arg("--target-dir").arg(&building);
        install.env("LLVM_PREFIX", &prefix);
        fetch(install.env_remove("RUSTFLAGS"))?;
        fs::remove_dir_all(&building).with_context(|| format!("remove {}", building.display()))
    })?;
    Ok(dir.join("bin/bpf-linker"))
}

/// Builds the object, and returns its path.
fn build(toolchain: &Toolchain, linker: &Path) -> anyhow::Result<PathBuf> {
    let workspace = workspace()?;
    let target_dir = target()?.join("bpf");
    let mut path = vec![linker.parent().unwrap_or(Path::new("/")).to_owned()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut cargo = Command::new(&toolchain.cargo);
    cargo
        .current_dir(&workspace)
        .args([
            "build",
            "--package",
            "tracker-ebpf",
            "--bin",
            "tracker",
            "--features",
            "programs",
            "--release",
        ])
        .args(["--locked", "--target", "bpfel-unknown-none", "-Z", "build-std=core", "--target-dir"])
        .arg(&target_dir)
        .env("PATH", std::env::join_paths(path)?)
        .env("RUSTC", &toolchain.rustc)
        // This lets a stable compiler build the sources of `core`.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(toolchain, &workspace)?);
    // rustup and an outer cargo set these. They would interfere with the compiler that was chosen
    // here.
    for variable in
        ["RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO_BUILD_TARGET"]
    {
        cargo.env_remove(variable);
    }
    must(&mut cargo)?;
    Ok(target_dir.join("bpfel-unknown-none/release/tracker"))
}

fn rustflags(toolchain: &Toolchain, workspace: &Path) -> anyhow::Result<String> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cargo_home = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let flags = [
        "--cfg=bpf_target_arch=\"x86_64\"".into(),
        // BTF is made from debug information.
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        remap(&toolchain.sources, "/rust"),
        remap(&fs::canonicalize(&toolchain.sources)?, "/rust"),
        remap(workspace, "/src"),
        remap(&fs::canonicalize(workspace)?, "/src"),
        remap(&cargo_home, "/cargo"),
    ];
    Ok(flags.join("\u{1f}"))
}

/// Returns the object without DWARF. The kernel needs only BTF.
fn strip(object: &Path) -> anyhow::Result<Vec<u8>> {
    let data = fs::read(object).with_context(|| format!("read {}", object.display()))?;
    let mut builder = Builder::read(&*data).context("parse the BPF object")?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete |= name.starts_with(b".debug") || name.starts_with(b".rel.debug");
    }
    // Deletes the symbols of sections that were removed.
    builder.delete_orphans();
    // LLVM keeps the names of sections and symbols in one table. The writer needs two.
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("write the BPF object")?;
    Ok(stripped)
}

fn write(built: &[u8], made_by: &str) -> anyhow::Result<()> {
    let workspace = workspace()?;
    fs::write(workspace.join(OBJECT), built).with_context(|| format!("write {OBJECT}"))?;
    fs::write(workspace.join(MADE_BY), made_by).with_context(|| format!("write {MADE_BY}"))?;
    eprintln!("wrote {OBJECT}: {} bytes", built.len());
    Ok(())
}

fn compare(built: &[u8], made_by: &str) -> anyhow::Result<()> {
    const REMEDY: &str = "`cargo xtask build-ebpf` makes it anew";
    let workspace = workspace()?;
    let checked_in = fs::read(workspace.join(OBJECT)).with_context(|| format!("read {OBJECT}; {REMEDY}"))?;
    if built == checked_in {
        eprintln!("{OBJECT} is, byte by byte, what the sources give");
        return Ok(());
    }
    let by =
        fs::read_to_string(workspace.join(MADE_BY)).with_context(|| format!("read {MADE_BY}; {REMEDY}"))?;
    if by == made_by {
        bail!("{OBJECT} is not what the sources give; {REMEDY}");
    }
    let (ours, theirs) = (code(built)?, code(&checked_in)?);
    let differs = |name: &&String| ours.get(*name) != theirs.get(*name);
    let different: Vec<_> = ours.keys().chain(theirs.keys()).filter(differs).map(String::as_str).collect();
    if different.is_empty() {
        eprintln!("{OBJECT} was made by another compiler; its code is what the sources give");
        return Ok(());
    }
    bail!("{OBJECT} has other code than the sources give, in {}; {REMEDY}", different.join(", "))
}

/// Returns programs, maps and data: all sections except those that describe the source.
fn code(object: &[u8]) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let file = object::File::parse(object).context("parse the BPF object")?;
    let mut sections = BTreeMap::new();
    for section in file.sections() {
        let name = section.name().context("the name of a section")?;
        let describes =
            [".BTF", ".rel", ".strtab", ".symtab", ".shstrtab"].iter().any(|prefix| name.starts_with(prefix));
        if !describes && !name.is_empty() {
            sections.insert(name.to_owned(), section.data().context("the data of a section")?.to_vec());
        }
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_object_is_stripped_and_names_no_path() {
        let data = fs::read(workspace().unwrap().join(OBJECT)).unwrap();
        let file = object::File::parse(&*data).unwrap();
        let names: Vec<&str> = file.sections().filter_map(|section| section.name().ok()).collect();
        assert!(names.contains(&".BTF") && !names.iter().any(|name| name.starts_with(".debug")), "{names:?}");
        let workspace = workspace().unwrap();
        for path in [workspace.to_str().unwrap(), "/root/", "/home/"] {
            let found = data.windows(path.len()).any(|window| window == path.as_bytes());
            assert!(!found, "the object names {path}");
        }
    }
}
