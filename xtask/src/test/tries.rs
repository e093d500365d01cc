//! Collects what had to be tried more than once during a run, so that also somebody who reads only
//! the last line sees it.

use std::sync::{Mutex, PoisonError};

/// Names, each with the reason for another try.
static TRIES: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// Notes that something is tried again, and why.
pub(crate) fn note(name: &str, why: &str) {
    lock().push((name.to_owned(), why.to_owned()));
}

/// Returns all of them in a few words, if there are any.
pub(crate) fn summary() -> Option<String> {
    let tries = lock();
    (!tries.is_empty()).then(|| told(&tries))
}

fn lock() -> std::sync::MutexGuard<'static, Vec<(String, String)>> {
    TRIES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn told(tries: &[(String, String)]) -> String {
    let each: Vec<String> = tries.iter().map(|(name, why)| format!("{name} ({why})")).collect();
    format!("{} tried again: {}", tries.len(), each.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_reasons_and_their_number_are_told() {
        let tries = [("a::b".into(), "busy".into()), ("7 with kprobe".into(), "its kernel panicked".into())];
        assert_eq!(told(&tries), "2 tried again: a::b (busy); 7 with kprobe (its kernel panicked)");
    }
}
