//! Packages of Debian suites that the system itself doesn't use, from the archive that it uses.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};

use crate::{
    cache,
    command::{fetch, output},
    machine::unpack,
};

/// An apt with its own sources and lists.
pub(super) struct Archive {
    dir: PathBuf,
    may_download: bool,
    /// Another run has to wait with its own archive while this exists.
    _lock: fs::File,
}

/// How old lists of packages may be before they are updated.
const FRESH: Duration = Duration::from_hours(24);

impl Archive {
    /// Opens these suites. apt's files for them are in the cache under this name.
    pub(super) fn open(name: &str, suites: &[&str], may_download: bool) -> anyhow::Result<Self> {
        let dir = cache::get_or_make("apt", name, |dir| {
            fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))
        })?;
        let lock = dir.join("in-use");
        let lock = fs::File::create(&lock).with_context(|| format!("make {}", lock.display()))?;
        lock.lock().with_context(|| format!("lock {}", dir.display()))?;
        let archive = Self { dir, may_download, _lock: lock };
        // This happens each time, because the system may use another archive now.
        archive.configure(suites)?;
        match archive.age() {
            Some(age) if age < FRESH || !may_download => {}
            None if !may_download => {
                bail!("Debian's lists of packages are needed (without --no-install they are downloaded)")
            }
            // Most of what was there the last time is still there.
            Some(age) => {
                if let Err(error) = archive.update(suites) {
                    eprintln!("going on with lists that are {} hours old: {error:#}", age.as_secs() / 3600);
                }
            }
            None => archive.update(suites)?,
        }
        Ok(archive)
    }

    /// Returns the age of the lists, if there are any.
    fn age(&self) -> Option<Duration> {
        let updated = fs::metadata(self.updated()).ok()?.modified().ok()?;
        SystemTime::now().duration_since(updated).ok()
    }

    fn update(&self, suites: &[&str]) -> anyhow::Result<()> {
        eprintln!("asking Debian's archive for packages in {}", suites.join(", "));
        // By default apt only warns about lists that it couldn't get.
        fetch(self.apt("apt-get").args(["update", "-qq", "--error-on=any"]))?;
        write(&self.updated(), "")
    }

    /// Tells apt where all its files are.
    fn configure(&self, suites: &[&str]) -> anyhow::Result<()> {
        for dir in ["lists/partial", "cache/archives/partial"] {
            let dir = self.dir.join(dir);
            fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        }
        let site = site()?;
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let sources = suites.iter().map(|suite| format!("deb [signed-by={keys}] {site} {suite} main\n"));
        write(&self.dir.join("sources.list"), &sources.collect::<String>())?;
        // What is installed on the system is ignored: it may be newer than what the suites have.
        write(&self.dir.join("status"), "")?;
        let dir = self.dir.display();
        // As root, apt would download as a user who may have no access to this directory.
        let config = format!(
            "Dir::Etc::sourcelist \"{dir}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
             Dir::State::lists \"{dir}/lists\";\nDir::State::status \"{dir}/status\";\nDir::Cache \"{dir}/cache\";\n\
             APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n"
        );
        write(&self.config(), &config)
    }

    /// Returns the file that is written when the lists have been updated.
    fn updated(&self) -> PathBuf {
        self.dir.join("updated")
    }

    fn config(&self) -> PathBuf {
        self.dir.join("apt.conf")
    }

    /// Returns an apt program that sees only this archive.
    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        apt.env("APT_CONFIG", self.config());
        apt
    }

    /// Returns the names of all packages that match a regular expression.
    pub(super) fn names(&self, pattern: &str) -> anyhow::Result<Vec<String>> {
        let found = output(self.apt("apt-cache").args(["search", "--names-only", pattern]))?;
        Ok(found.lines().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect())
    }

    /// Returns the packages that these depend on, with the alternatives.
    pub(super) fn needs(&self, packages: &[String]) -> anyhow::Result<Vec<String>> {
        let listed = output(self.apt("apt-cache").args(["depends", "--important"]).args(packages))?;
        let needed = listed.lines().filter_map(|line| line.split_once("Depends: "));
        Ok(needed.map(|(_, name)| name.trim().to_owned()).filter(|name| !name.starts_with('<')).collect())
    }

    /// Does the same as [`Self::unpack`] for several packages. Each goes into the cache by the name
    /// of its file, unless it is there. Returns their directories.
    pub(super) fn unpacked(&self, packages: &[String], kind: &str) -> anyhow::Result<Vec<PathBuf>> {
        let files = self.file_names(packages)?;
        let unpacked = packages.iter().zip(files).map(|(package, file)| {
            cache::get_or_make(kind, file.trim_end_matches(".deb"), |dir| self.unpack(package, dir))
        });
        unpacked.collect()
    }

    /// Returns the name of the newest file of a package.
    pub(super) fn file_name(&self, package: &str) -> anyhow::Result<String> {
        let names = self.file_names(&[package.to_owned()])?;
        names.into_iter().next().context("apt-get tells no file")
    }

    /// Returns the same for several packages at once: apt takes seconds each time.
    fn file_names(&self, packages: &[String]) -> anyhow::Result<Vec<String>> {
        let uris = output(self.apt("apt-get").args(["download", "--print-uris", "-qq"]).args(packages))?;
        let names: Vec<&str> = uris.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
        let name = |package: &String| {
            let name = names.iter().find(|name| name.split('_').next() == Some(package));
            let name = name.with_context(|| format!("apt-get tells no file of {package}: {uris:?}"))?;
            Ok((*name).to_owned())
        };
        packages.iter().map(name).collect()
    }

    /// Downloads the newest file of a package and unpacks it into a directory.
    pub(super) fn unpack(&self, package: &str, dir: &Path) -> anyhow::Result<()> {
        if !self.may_download {
            bail!("{} is needed (without --no-install it is downloaded)", self.file_name(package)?);
        }
        unpack(self.apt("apt-get"), package, dir)
    }
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

/// Returns the URL from which the system gets Debian's packages.
pub(super) fn site() -> anyhow::Result<String> {
    let sites = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(SITE)",
        "Created-By: Packages",
    ]))?;
    let site = sites.lines().find(|site| site.ends_with("/debian"));
    site.map(str::to_owned).context("apt has no source of Debian's packages, from which these come")
}
