//! The command `fdtracker`: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    fdtracker::cli::main()
}
