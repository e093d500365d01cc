//! The kernel side as the rest of the agent sees it: load, attach, read, audit.
//!
//! - `btf`, `offsets`: where things are in this kernel;
//! - `feeder`: which probes are attached;
//! - `event`: records of the ring;
//! - `auditor`: the comparison of truth and records;
//! - `prerequisites`: what a kernel must offer, and what to do where it doesn't;
//! - `sys`: raw calls.
//!
//! It knows nothing of containers: cgroups are numbers here.

mod auditor;
mod btf;
mod event;
mod feeder;
mod offsets;
mod prerequisites;
mod sys;

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::fd::{AsFd as _, BorrowedFd},
    time::{Duration, Instant},
};

pub use auditor::Audit;
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap as BpfHashMap, Map, MapData, MapError, PerCpuArray, RingBuf},
    programs::{Iter, ProgramError, RawTracePoint, RawTracePointRunOptions, TestRun as _},
};
use aya_log::EbpfLogger;
pub use btf::BtfError;
pub use event::{Change, Event};
pub use feeder::Feeder;
pub use prerequisites::{Finding, Missing, Status, check, findings};
use thiserror::Error;
use tracing_log::LogTracer;
use tracker_ebpf::{ANON_INODES, ANON_NAME_LEN, Flow, Loss, MAX_SCANNED_FDS, Slot, Table, Tag, mode, resync};

use self::{
    auditor::{Doubt, Plan},
    feeder::Extent,
    offsets::Globals,
    prerequisites::{kernel_btf, tracefs},
};
use crate::{host::KernelVersion, inventory::Uncounted, runtime::Hierarchy};

/// The BPF object, built by `cargo xtask build-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tracker-ebpf/prebuilt/tracker.bpf.o"
));

/// Why the kernel side can't run.
#[derive(Debug, Error)]
pub enum BpfError {
    /// Something that must be there isn't.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The kernel's type information can't be used.
    #[error("the kernel's type information (/sys/kernel/btf/vmlinux)")]
    Btf(#[from] BtfError),
    /// aya can't use the kernel's type information.
    #[error("the kernel's type information (/sys/kernel/btf/vmlinux)")]
    AyaBtf(#[from] aya::BtfError),
    /// The object can't be loaded.
    #[error("load the BPF object")]
    Load(#[source] aya::EbpfError),
    /// A program can't be loaded or attached.
    #[error("load and attach the BPF program {program}")]
    Program {
        /// The program.
        program: String,
        /// What was refused.
        #[source]
        source: ProgramError,
    },
    /// The object lacks something: it isn't the one that belongs to this build.
    #[error("the BPF object has no {0}: it doesn't belong to this build (cargo xtask build-ebpf makes it)")]
    Object(String),
    /// The programs' log can't be read.
    #[error("read the log of the BPF programs")]
    Log(#[from] aya_log::Error),
    /// A map can't be used.
    #[error("use the BPF map {map}")]
    Map {
        /// The map.
        map: &'static str,
        /// What was refused.
        #[source]
        source: MapError,
    },
    /// A call failed.
    #[error("{call} {object}")]
    Call {
        /// What was called.
        call: &'static str,
        /// On what.
        object: String,
        /// What was refused.
        #[source]
        source: io::Error,
    },
}

/// How large the bounded maps are.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// fd tables that have had something to count.
    pub tables: u32,
    /// Slots that hold something to count.
    pub slots: u32,
    /// Bytes of the ring.
    pub ring: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { tables: 16_384, slots: 131_072, ring: 1 << 20 }
    }
}

/// What the kernel side tells user space as it happens. Kept for as long as the programs are.
pub struct Rings {
    /// Records for [`decode`].
    pub events: RingBuf<MapData>,
    /// The programs' own log, at `--log-level debug`.
    pub log: Option<EbpfLogger<LogTracer>>,
}

/// Decodes a record of the ring; `None` for one that isn't any.
#[must_use]
pub fn decode(record: &[u8]) -> Option<Event> {
    Event::decode(record)
}

/// The loaded and attached probes. Dropping it detaches everything.
pub struct Kernel {
    ebpf: Ebpf,
    kernel: KernelVersion,
    feeder: Feeder,
    pass: u32,
    /// Cgroups with tables that the last audit found no room for.
    uncounted: BTreeSet<u64>,
    /// How often there was no room for a table when the last audit began, and in what it did itself: more is what it can't
    /// have seen.
    no_room: u64,
}

impl Kernel {
    /// Loads the auditor. Nothing is counted yet: that is the first [`Kernel::audit`]. Returns the ring of events too.
    ///
    /// # Errors
    /// When the kernel lacks something, or refuses; the message says what, and what to do.
    pub fn load(hierarchy: &Hierarchy, sizes: Sizes) -> Result<(Self, Rings), BpfError> {
        let kernel = check()?;
        let log = tracing::enabled!(tracing::Level::DEBUG);
        let mut ebpf = load(hierarchy, sizes, kernel, log)?;
        let log = log.then(|| EbpfLogger::init_with_logger(&mut ebpf, LogTracer::new())).transpose()?;
        fill_anon_names(&mut ebpf)?;
        let btf = aya::Btf::from_sys_fs()?;
        let audit: &mut Iter = program(&mut ebpf, "audit")?;
        audit.load("task_file", &btf).map_err(|e| attach_error("audit", e))?;
        let resync: &mut RawTracePoint = program(&mut ebpf, "resync")?;
        resync.load().map_err(|e| attach_error("resync", e))?;
        let events = ebpf.take_map("EVENTS").ok_or_else(|| BpfError::Object("map EVENTS".into()))?;
        let events = RingBuf::try_from(events).map_err(|source| BpfError::Map { map: "EVENTS", source })?;
        Ok((
            Self { ebpf, kernel, feeder: Feeder::None, pass: 0, uncounted: BTreeSet::new(), no_room: 0 },
            Rings { events, log },
        ))
    }

    /// Attaches the feeder: from now on counts are live.
    ///
    /// # Errors
    /// When the kernel refuses a program.
    pub fn attach_feeder(&mut self) -> Result<(), BpfError> {
        feeder::attach(&mut self.ebpf, self.kernel, &tracefs()?, Extent::Whole)?;
        self.feeder = Feeder::Tracepoint;
        Ok(())
    }

    /// Attaches each program of the feeder once, and so finds out whether the kernel takes it.
    fn try_feeder(&mut self) -> Result<Feeder, BpfError> {
        feeder::attach(&mut self.ebpf, self.kernel, &tracefs()?, Extent::Sample)?;
        Ok(Feeder::Tracepoint)
    }

    /// The feeder that is attached.
    #[must_use]
    pub fn feeder(&self) -> Feeder {
        self.feeder
    }

    /// All tables that have, or had, something to count.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn tables(&self) -> Result<Vec<(u64, Table)>, BpfError> {
        self.read("TABLES")
    }

    /// What each cgroup's slots were filled and emptied.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn flows(&self) -> Result<Vec<(u64, Flow)>, BpfError> {
        self.read("FLOWS")
    }

    /// Forgets what a cgroup counted.
    ///
    /// # Errors
    /// When the map can't be changed.
    pub fn forget_flow(&self, cgroup: u64) -> Result<(), BpfError> {
        self.delete("FLOWS", &cgroup)
    }

    /// How often something was lost at a stage.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn lost(&self, loss: Loss) -> Result<u64, BpfError> {
        let map_error = |source| BpfError::Map { map: "LOSSES", source };
        let losses: PerCpuArray<_, u64> = PerCpuArray::try_from(self.map("LOSSES")?).map_err(map_error)?;
        Ok(losses.get(&(loss as u32), 0).map_err(map_error)?.iter().sum())
    }

    /// Cgroups whose counts are too small, because a map was full.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn uncounted(&self) -> Result<Uncounted, BpfError> {
        let any = self.lost(Loss::Tables)? > self.no_room;
        Ok(Uncounted { cgroups: self.uncounted.clone(), any })
    }

    /// Compares what is recorded with the kernel's own list of files, and puts right what differs.
    ///
    /// The first audit adopts what was open before the probes were attached.
    ///
    /// # Errors
    /// When the iterator or a map can't be read.
    pub fn audit(&mut self) -> Result<Audit, BpfError> {
        /// Longer than a probe is behind the change that it sees, unless its task waits for a CPU.
        const ANOTHER_LOOK: Duration = Duration::from_millis(20);
        /// Looks at what may be different at each: a slot that is opened and closed all the time.
        const LOOKS: usize = 5;
        let start = Instant::now();
        let adopt = self.pass == 0;
        let mut no_room = self.lost(Loss::Tables)?;
        let mut plan = self.compare()?;
        for _ in 1..LOOKS {
            if adopt || !plan.needs_another_look() {
                break;
            }
            std::thread::sleep(ANOTHER_LOOK);
            plan = plan.confirmed_by(&self.compare()?);
        }
        let mut audit = Audit::default();
        let mut uncounted = BTreeSet::new();
        for (files, doubt) in &plan.scan {
            let before = self.lost(Loss::Tables)?;
            let changed = self.put_right(*files, doubt, adopt)?;
            let failed = self.lost(Loss::Tables)? - before;
            if failed > 0 {
                uncounted.insert(doubt.cgroup_id);
                no_room += failed;
            }
            tracing::debug!(changed, ?doubt, "re-read the table {files:#x}");
            audit.corrections += u64::from(changed);
        }
        for (files, generation, left) in plan.forget {
            tracing::debug!(left, "forget the table {files:#x}: no task has it");
            self.resync(&[resync::FORGET, files, generation])?;
            audit.corrections += left;
        }
        for slot in &plan.drop {
            self.delete("SLOTS", slot)?;
        }
        (self.uncounted, self.no_room) = (uncounted, no_room);
        audit.took = start.elapsed();
        Ok(audit)
    }

    /// Has a table, or those of its slots that differ, read again. Returns how many slots weren't as recorded.
    fn put_right(&mut self, files: u64, doubt: &Doubt, adopt: bool) -> Result<u32, BpfError> {
        let mode = match (adopt, doubt.needs_recount()) {
            (true, _) => mode::QUIET | mode::ADOPT,
            (false, true) => mode::QUIET | mode::ADOPT | mode::RECOUNT,
            (false, false) => 0,
        };
        let (generation, seq) = doubt.recorded;
        let table = [files, doubt.tgid.into(), doubt.cgroup_id, mode.into(), generation, seq];
        let mut changed = 0;
        if adopt || doubt.needs_scan() {
            changed += self.resync(&[&[resync::SCAN], &table[..]].concat())?;
        }
        // What a scan of a very large table doesn't reach, too.
        for fd in doubt.slots().filter(|fd| !adopt || *fd >= MAX_SCANNED_FDS) {
            let slot_mode = mode & !mode::RECOUNT;
            let table = [files, doubt.tgid.into(), doubt.cgroup_id, slot_mode.into(), 0, 0, fd.into()];
            changed += self.resync(&[&[resync::SLOT], &table[..]].concat())?;
        }
        Ok(changed)
    }

    /// One pass of the iterator, and what it found.
    fn compare(&mut self) -> Result<Plan, BpfError> {
        self.pass = self.pass.wrapping_add(1).max(1);
        self.announce_pass()?;
        let before: HashMap<u64, Table> = self.tables()?.into_iter().collect();
        let seen = self.iterate()?;
        let slots: Vec<(Slot, Tag)> = self.read("SLOTS")?;
        let tables: HashMap<u64, Table> = self.tables()?.into_iter().collect();
        Ok(auditor::compare(self.pass, &seen, &before, &slots, &tables))
    }

    fn announce_pass(&mut self) -> Result<(), BpfError> {
        let map_error = |source| BpfError::Map { map: "CONTROL", source };
        let pass = self.pass;
        let map = self.ebpf.map_mut("CONTROL").ok_or_else(|| BpfError::Object("map CONTROL".into()))?;
        let mut control: Array<_, u32> = Array::try_from(map).map_err(map_error)?;
        control.set(0, pass, 0).map_err(map_error)
    }

    fn iterate(&mut self) -> Result<HashMap<u64, auditor::Seen>, BpfError> {
        let iter: &mut Iter = program(&mut self.ebpf, "audit")?;
        let link = iter.attach().map_err(|e| attach_error("audit", e))?;
        let link = iter.take_link(link).map_err(|e| attach_error("audit", e))?;
        let file = link.into_file().map_err(|e| BpfError::Call {
            call: "open",
            object: "the iterator over all files".into(),
            source: io::Error::other(e),
        })?;
        auditor::read_records(file).map_err(|source| BpfError::Call {
            call: "read",
            object: "the iterator over all files".into(),
            source,
        })
    }

    fn resync(&mut self, arguments: &[u64]) -> Result<u32, BpfError> {
        let program: &mut RawTracePoint = program(&mut self.ebpf, "resync")?;
        let mut options = RawTracePointRunOptions::new();
        for (to, from) in options.args.iter_mut().zip(arguments) {
            *to = *from;
        }
        program.test_run(options).map(|run| run.return_value).map_err(|e| attach_error("resync", e))
    }

    fn read<K: sys::Plain, V: sys::Plain>(&self, name: &'static str) -> Result<Vec<(K, V)>, BpfError> {
        sys::read_hash(hash_fd(self.map(name)?, name)?)
            .map_err(|source| call("read the BPF map", name, source))
    }

    fn delete<K: sys::Plain>(&self, name: &'static str, key: &K) -> Result<(), BpfError> {
        sys::delete(hash_fd(self.map(name)?, name)?, key)
            .map_err(|source| call("delete from the BPF map", name, source))
    }

    fn map(&self, name: &'static str) -> Result<&Map, BpfError> {
        self.ebpf.map(name).ok_or_else(|| BpfError::Object(format!("map {name}")))
    }
}

fn call(call: &'static str, object: &str, source: io::Error) -> BpfError {
    BpfError::Call { call, object: object.into(), source }
}

fn hash_fd<'a>(map: &'a Map, name: &str) -> Result<BorrowedFd<'a>, BpfError> {
    match map {
        Map::HashMap(data) => Ok(data.fd().as_fd()),
        _ => Err(BpfError::Object(format!("hash map {name}"))),
    }
}

fn load(hierarchy: &Hierarchy, sizes: Sizes, kernel: KernelVersion, log: bool) -> Result<Ebpf, BpfError> {
    let btf = kernel_btf()?;
    let globals = Globals::find(&btf, hierarchy, kernel)?;
    let mut loader = EbpfLoader::new();
    globals.set(&mut loader);
    loader
        .map_max_entries("TABLES", sizes.tables)
        .map_max_entries("SLOTS", sizes.slots)
        .map_max_entries("EVENTS", sizes.ring);
    // Off, the programs' log calls are removed before the verifier looks at them, and their ring is as small as can be.
    let log_level: u8 = if log { aya_log::Level::Debug as u8 } else { 0 };
    loader.override_global("AYA_LOG_LEVEL", &log_level, true);
    if !log {
        loader.map_max_entries("AYA_LOGS", 4096);
    }
    loader.load(OBJECT).map_err(BpfError::Load)
}

/// Tells the programs which names of anonymous inodes stand for which kind.
fn fill_anon_names(ebpf: &mut Ebpf) -> Result<(), BpfError> {
    let map_error = |source| BpfError::Map { map: "ANON_NAMES", source };
    let map = ebpf.map_mut("ANON_NAMES").ok_or_else(|| BpfError::Object("map ANON_NAMES".into()))?;
    let mut names: BpfHashMap<_, [u8; ANON_NAME_LEN], u64> = BpfHashMap::try_from(map).map_err(map_error)?;
    for (name, kind) in ANON_INODES {
        let mut key = [0; ANON_NAME_LEN];
        for (to, from) in key.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        names.insert(key, kind.index() as u64, 0).map_err(map_error)?;
    }
    Ok(())
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, BpfError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| BpfError::Object(format!("program {name}")))?;
    program.try_into().map_err(|source| attach_error(name, source))
}

fn attach_error(program: &str, source: ProgramError) -> BpfError {
    BpfError::Program { program: program.into(), source }
}
