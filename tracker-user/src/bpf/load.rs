//! Loads programs, several at once: the kernel's verifier takes most of the time of a start.

use std::{
    num::NonZero,
    sync::{Mutex, PoisonError},
    thread,
};

use aya::{
    Btf, Ebpf,
    programs::{Program, ProgramError},
};

use super::BpfError;

/// How many at once, at the most: the machine has other work, too.
const THREADS: usize = 4;

/// Loads these programs. Returns those that the kernel refuses, in alphabetical order.
///
/// # Errors
/// When the object lacks one.
pub(super) fn all<'a>(
    ebpf: &mut Ebpf,
    btf: &Btf,
    names: &[&'a str],
) -> Result<Vec<(&'a str, ProgramError)>, BpfError> {
    if let Some(missing) = names.iter().find(|name| ebpf.program(name).is_none()) {
        return Err(BpfError::Object(format!("program {missing}")));
    }
    let wanted = |of: &str| names.iter().copied().find(|name| *name == of);
    let programs = ebpf.programs_mut().filter_map(|(name, program)| Some((wanted(name)?, program)));
    let queue = Mutex::new(programs.collect::<Vec<_>>());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let refused = Mutex::new(Vec::new());
    let refuse = |name, error| refused.lock().unwrap_or_else(PoisonError::into_inner).push((name, error));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get).min(THREADS) {
            scope.spawn(|| {
                while let Some((name, program)) = next() {
                    if let Err(error) = load(name, program, btf) {
                        refuse(name, error);
                    }
                }
            });
        }
    });
    let mut refused = refused.into_inner().unwrap_or_else(PoisonError::into_inner);
    refused.sort_by_key(|(name, _)| *name);
    Ok(refused)
}

fn load(name: &str, program: &mut Program, btf: &Btf) -> Result<(), ProgramError> {
    match program {
        Program::Iter(iterator) => iterator.load(walks(name), btf),
        Program::KProbe(probe) => probe.load(),
        Program::TracePoint(probe) => probe.load(),
        Program::RawTracePoint(probe) => probe.load(),
        // The object has no others.
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// What an iterator walks. Linux: `bpf_iter_reg_target`.
fn walks(iterator: &str) -> &'static str {
    match iterator {
        "audit" | "held" | "in_flight" => "task_file",
        "mapped" => "task_vma",
        "registered" => "task",
        _ => "bpf_map_elem",
    }
}
