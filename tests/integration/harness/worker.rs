//! The process that runs tests. Its parent sends a line with a name over a socket, and gets a line
//! of JSON back.

use std::{
    any::Any,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use fdtracker_tests::waits_in_vain;

use super::{Outcome, Test, Tests, missing};

/// The variable that names the parent's socket.
pub(super) const SOCKET: &str = "FDTRACKER_TEST_WORKER";

/// Runs tests until the parent has no more, or has ended.
pub(super) fn work(tests: &Tests, socket: &Path) {
    let mut stream = UnixStream::connect(socket).expect("connect to the harness");
    let names = BufReader::new(stream.try_clone().expect("a second handle of the socket"));
    for name in names.lines().map_while(Result::ok) {
        let test = tests.all().find(|test| test.name == name).expect("the harness names a test");
        if writeln!(stream, "{}", run(test).to_json()).is_err() {
            return;
        }
    }
}

fn run(test: &Test) -> Outcome {
    if let Some(why) = missing(test.needs) {
        return Outcome::Skipped(why);
    }
    let before = waits_in_vain();
    match catch_unwind(AssertUnwindSafe(|| (test.run)())) {
        Ok(Ok(())) => Outcome::Passed,
        Ok(Err(why)) => Outcome::Skipped(why),
        Err(panic) => Outcome::Failed { why: message(&*panic), waited: waits_in_vain() > before },
    }
}

/// Returns the message of a panic. Its place in the source is in the output already.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it panicked".into())
}
