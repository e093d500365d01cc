//! `cargo xtask deny`: checks licences, duplicates and origins of all that is linked, by
//! `deny.toml`.

use anyhow::ensure;

use crate::{
    command::{cargo, must},
    machine::find,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also ask for known vulnerabilities: fetches RustSec's database from GitHub
    #[arg(long)]
    advisories: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(
        find("cargo-deny").is_some(),
        "cargo-deny isn't here: `cargo install --locked cargo-deny` builds it, in some minutes"
    );
    let mut deny = cargo()?;
    deny.args(["deny", "--locked", "check", "bans", "licenses", "sources"]);
    if args.advisories {
        deny.arg("advisories");
    }
    must(&mut deny)
}
