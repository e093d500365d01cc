//! How full the maps are, and what the kernel tells of the programs.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use aya::{
    maps::Map,
    sys::{Stats, enable_stats},
};

use super::{BpfError, Kernel, call, sys};

/// A BPF program that is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// How often the kernel skipped a run of it. A kernel before 5.12 doesn't tell, and one before
    /// 6.7 not of kprobes and perf-style tracepoints.
    pub missed: u64,
    /// How often it ran; 0 if the kernel doesn't count.
    pub runs: u64,
    /// For how long; 0 if the kernel doesn't count.
    pub run_time: Duration,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// The map.
    pub map: &'static str,
    /// Entries that it has.
    pub entries: u64,
    /// Entries that it has room for.
    pub capacity: u32,
}

/// How full the ring of events is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFill {
    /// What waits for the agent.
    pub waiting: u64,
    /// What there is room for.
    pub capacity: u64,
}

/// Has the kernel count how often, and for how long, every BPF program of the machine runs, for as
/// long as what is returned is kept. It costs each run some tens of nanoseconds.
///
/// # Errors
/// When the kernel refuses: it needs `CAP_SYS_ADMIN` and Linux 5.8.
pub fn count_runs() -> Result<OwnedFd, BpfError> {
    enable_stats(Stats::RunTime).map_err(|error| {
        call("enable", "statistics of BPF programs (CAP_SYS_ADMIN, Linux 5.8)", error.io_error)
    })
}

/// How often a run of these was skipped, in all.
pub(super) fn missed(programs: &[Program]) -> u64 {
    programs.iter().map(|program| program.missed).sum()
}

impl Kernel {
    /// What the kernel tells of each program that is loaded.
    ///
    /// # Errors
    /// When the kernel doesn't tell of a program.
    pub fn programs(&self) -> Result<Vec<Program>, BpfError> {
        let mut programs = Vec::new();
        for (name, program) in self.ebpf.programs() {
            // Not loaded: the other feeder's.
            let Ok(fd) = program.fd() else { continue };
            let state = sys::program_state(fd.as_fd())
                .map_err(|source| call("ask for the state of the BPF program", name, source))?;
            let mut missed = state.recursion_misses;
            for probe in self.returns.iter().filter(|probe| probe.function() == name) {
                missed += probe.missed().map_err(|source| call("read the profile of", name, source))?;
            }
            let run_time = Duration::from_nanos(state.run_time_ns);
            programs.push(Program { name: name.to_owned(), missed, runs: state.run_count, run_time });
        }
        programs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(programs)
    }

    /// How often the kernel skipped a run of a program, in all.
    ///
    /// # Errors
    /// When the kernel doesn't tell of a program.
    pub fn missed(&self) -> Result<u64, BpfError> {
        Ok(missed(&self.programs()?))
    }

    /// How full the maps are, of which two have just been read.
    ///
    /// # Errors
    /// When the kernel doesn't tell of a map.
    pub fn fills(&self, tables: usize, flows: usize) -> Result<Vec<Fill>, BpfError> {
        let mut fills = vec![
            Fill { map: "tables", entries: tables as u64, capacity: self.capacity("TABLES")? },
            Fill { map: "flows", entries: flows as u64, capacity: self.capacity("FLOWS")? },
        ];
        if !self.feeder.counts_deltas() {
            let entries = self.shared.recorded.get();
            fills.push(Fill { map: "slots", entries, capacity: self.capacity("SLOTS")? });
        }
        Ok(fills)
    }

    fn capacity(&self, name: &'static str) -> Result<u32, BpfError> {
        let Some(Map::HashMap(data)) = self.ebpf.map(name) else {
            return Err(BpfError::Object(format!("map {name}")));
        };
        let info = data.info().map_err(|source| BpfError::Map { map: name, source })?;
        Ok(info.max_entries())
    }

    /// How full the ring is.
    #[must_use]
    pub fn ring(&self) -> RingFill {
        self.shared.ring.fill()
    }
}

/// The positions in the ring, which the kernel keeps in its first two pages (`struct bpf_ringbuf`).
pub(super) struct RingPositions {
    consumer: sys::Mapped<u64>,
    producer: sys::Mapped<u64>,
    capacity: u64,
}

impl RingPositions {
    pub(super) fn open(ebpf: &aya::Ebpf) -> Result<Self, BpfError> {
        let Some(Map::RingBuf(data)) = ebpf.map("EVENTS") else {
            return Err(BpfError::Object("map EVENTS".into()));
        };
        let fd = data.fd().as_fd();
        let page = |n| {
            sys::Mapped::page(fd, n).map_err(|source| call("map into memory the BPF map", "EVENTS", source))
        };
        let info = data.info().map_err(|source| BpfError::Map { map: "EVENTS", source })?;
        Ok(Self { consumer: page(0)?, producer: page(1)?, capacity: info.max_entries().into() })
    }

    fn fill(&self) -> RingFill {
        // The consumer first: what comes meanwhile makes it look fuller, not emptier than empty.
        let consumed = self.consumer.get();
        let waiting = self.producer.get().saturating_sub(consumed).min(self.capacity);
        RingFill { waiting, capacity: self.capacity }
    }
}
