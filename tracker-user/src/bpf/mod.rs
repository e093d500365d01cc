//! The kernel side as the rest of the agent sees it: load, attach, read, audit.
//!
//! - `btf`, `offsets`: where things are in this kernel;
//! - `load`: the verifier's work;
//! - `feeder`: which probes are attached;
//! - `self_test`, `choice`: which of them count exactly on this kernel;
//! - `event`: records of the ring;
//! - `audit`: audits; `auditor`: the comparison of truth and records;
//! - `hidden`: the hidden scan;
//! - `state`: how full maps are, and what programs cost;
//! - `prerequisites`: what a kernel must offer, and what to do where it doesn't;
//! - `sys`: raw calls.
//!
//! It knows nothing of containers: cgroups are numbers here.

mod audit;
mod auditor;
mod btf;
mod choice;
mod event;
mod feeder;
mod hidden;
mod load;
mod map_reader;
mod offsets;
mod prerequisites;
mod returns;
mod self_test;
mod state;
mod sys;

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    hash::Hash,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::Arc,
};

pub use audit::Auditing;
pub use auditor::Audit;
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{HashMap as BpfHashMap, Map, MapData, MapError, RingBuf},
    programs::{Iter, ProgramError},
};
use aya_log::EbpfLogger;
pub use btf::BtfError;
pub use choice::{Choice, Trial, trials};
pub use event::{Change, Event};
pub use feeder::{CloseHook, Feeder};
pub(crate) use hidden::can_scan;
pub use hidden::{HiddenPlace, HiddenScan, Sightings, UnscannablePlace, confirmed_hidden};
pub use prerequisites::{Finding, Missing, Status, check, findings};
pub use self_test::{COMMAND as SELF_TEST, SelfTest, run_child as self_test_child};
pub use state::{Fill, Program, RingFill, count_runs};
use thiserror::Error;
use tracing_log::LogTracer;
use tracker_ebpf::{ANON_INODES, ANON_NAME_LEN, Control, Flow, Kind, Loss, Slot, Table, Tag, resync};

use self::{
    auditor::Departed,
    feeder::Probe,
    map_reader::{Calls, MapReader},
    offsets::Globals,
    prerequisites::kernel_btf,
    returns::ReturnProbe,
    sys::Mapped,
};
use crate::{error::SyscallError, host::KernelVersion, inventory::Uncounted, runtime::Hierarchy};

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
    /// The feeder that was asked for doesn't count exactly here, or can't be attached.
    #[error(
        "the {feeder} feeder can't be used on this kernel: {why} (without --feeder the best that can is chosen)"
    )]
    Feeder {
        /// The feeder.
        feeder: Feeder,
        /// What failed.
        why: String,
    },
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
    #[error(transparent)]
    Call(#[from] SyscallError),
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
    /// How often something was lost.
    pub losses: Losses,
    /// The programs' own log, at `--log-level debug`.
    pub log: Option<EbpfLogger<LogTracer>>,
}

/// How often something was lost, by stage, as the programs count it. Reading it waits for nothing.
#[derive(Clone)]
pub struct Losses(Arc<Mapped<[u64; Loss::ALL.len()]>>);

impl Losses {
    /// How often something was lost at a stage.
    #[must_use]
    pub fn of(&self, loss: Loss) -> u64 {
        self.0.get().get(loss as usize).copied().unwrap_or(0)
    }
}

/// Decodes a record of the ring; `None` for one that isn't any.
#[must_use]
pub fn decode(record: &[u8]) -> Option<Event> {
    Event::decode(record)
}

/// The loaded and attached probes. Dropping it detaches everything.
pub struct Kernel {
    ebpf: Ebpf,
    shared: Shared,
    feeder: Feeder,
    probes: Vec<Probe>,
    /// What keeps some of them attached.
    returns: Vec<ReturnProbe>,
    pass: u32,
    /// The audit under way leaves something for the next.
    unsettled: bool,
    /// Tables that the last audit found gone.
    gone: Departed,
    /// The program `read` is attached.
    follows_reads: bool,
    /// Cgroups with tables that the last audit found no room for.
    uncounted: BTreeSet<u64>,
    /// How often there was no room for a table until the last audit began, and in what it did
    /// itself. What is more than that it can't have seen.
    no_room: u64,
    /// Misses before the last audit, which has repaired what came of them.
    known_misses: u64,
    /// The places that the hidden scan can't cover on this kernel.
    unscannable: Vec<UnscannablePlace>,
}

impl Kernel {
    /// Loads the auditor, and the programs as a feeder needs them. Nothing is counted yet: that is
    /// the first [`Kernel::begin_audit`]. Returns the ring of events too.
    ///
    /// # Errors
    /// When the kernel lacks something, or refuses; the message says what, and what to do.
    pub fn load(hierarchy: &Hierarchy, sizes: Sizes, feeder: Feeder) -> Result<(Self, Rings), BpfError> {
        let kernel = check()?;
        let log = tracing::enabled!(tracing::Level::DEBUG);
        let (mut ebpf, mut unscannable) = open(hierarchy, sizes, kernel, feeder, log)?;
        let log = log.then(|| EbpfLogger::init_with_logger(&mut ebpf, LogTracer::new())).transpose()?;
        fill_anon_names(&mut ebpf)?;
        let btf = aya::Btf::from_sys_fs()?;
        let probes = feeder::probes(feeder, kernel)?;
        let mut names = vec!["audit", "resync"];
        names.extend(DUMPS.map(|(program, _)| program));
        names.extend(hidden::programs(&unscannable));
        names.extend(probes.iter().map(|probe| probe.program));
        for (name, source) in load::all(&mut ebpf, &btf, &names)? {
            let error = attach_error(name, source);
            match hidden::place_of(name) {
                Some(place) => unscannable.push((place, choice::why(error))),
                None if DUMPS.iter().any(|(program, _)| *program == name) => {
                    tracing::debug!("maps are read by system calls: {error}");
                }
                None => return Err(error),
            }
        }
        let shared = Shared::open(&mut ebpf)?;
        let events = ebpf.take_map("EVENTS").ok_or_else(|| BpfError::Object("map EVENTS".into()))?;
        let events = RingBuf::try_from(events).map_err(|source| BpfError::Map { map: "EVENTS", source })?;
        let kernel = Self {
            ebpf,
            shared,
            feeder,
            probes,
            returns: Vec::new(),
            pass: 0,
            unsettled: false,
            gone: Departed::default(),
            follows_reads: false,
            uncounted: BTreeSet::new(),
            no_room: 0,
            known_misses: 0,
            unscannable,
        };
        let losses = kernel.shared.losses.clone();
        Ok((kernel, Rings { events, losses, log }))
    }

    /// Attaches the feeder: from the next [`Kernel::begin_audit`] on counts are live.
    fn attach(&mut self) -> Result<(), BpfError> {
        self.probes.iter().try_for_each(|probe| probe.attach(&mut self.ebpf, &mut self.returns))
    }

    /// Attaches what is needed only on machines where certain files are open: whether they are is
    /// known from the last audit on. Returns whether something was attached: changes that it would
    /// have seen may have been missed.
    ///
    /// # Errors
    /// When the kernel refuses a program.
    pub fn attach_on_demand(&mut self) -> Result<bool, BpfError> {
        if self.feeder != Feeder::Tracepoint || self.follows_reads {
            return Ok(false);
        }
        let fanotify = |table: &Table| table.n.get(Kind::Fanotify.index()).is_some_and(|n| *n > 0);
        self.follows_reads = self.tables()?.iter().any(|(_, table)| fanotify(table));
        if self.follows_reads {
            feeder::attach_read(&mut self.ebpf)?;
        }
        Ok(self.follows_reads)
    }

    /// The feeder.
    #[must_use]
    pub fn feeder(&self) -> Feeder {
        self.feeder
    }

    /// All tables that have, or had, something to count.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn tables(&self) -> Result<Vec<(u64, Table)>, BpfError> {
        /// A walk takes some hundred microseconds.
        const TRIES: usize = 16;
        let mut tables = HashMap::new();
        for _ in 0..TRIES {
            let [begun, done] = self.shared.removals.get();
            tables = dump("TABLES", &self.shared.tables)?.into_iter().collect();
            let [begun_since, _] = self.shared.removals.get();
            if begun == done && begun == begun_since {
                break;
            }
        }
        Ok(tables.into_iter().collect())
    }

    /// What each cgroup's slots were filled and emptied.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn flows(&self) -> Result<Vec<(u64, Flow)>, BpfError> {
        // Nobody but `forget_flow` removes anything.
        dump("FLOWS", &self.shared.flows)
    }

    /// What is recorded slot by slot. While slots are emptied, a record may be missed: audits
    /// recheck.
    fn slots(&self) -> Result<Vec<(Slot, Tag)>, BpfError> {
        dump("SLOTS", &self.shared.slots)
    }

    /// Forgets what a cgroup counted.
    ///
    /// # Errors
    /// When the map can't be changed.
    pub fn forget_flow(&mut self, cgroup: u64) -> Result<(), BpfError> {
        self.resync(&[resync::FORGET_FLOW, cgroup]).map(drop)
    }

    /// How often something was lost at a stage.
    #[must_use]
    pub fn lost(&self, loss: Loss) -> u64 {
        self.shared.losses.of(loss)
    }

    /// Cgroups whose counts may be wrong, because a map was full or a probe was skipped since the
    /// last audit. The state of the programs must have been read after the counts.
    #[must_use]
    pub fn uncounted(&self, programs: &[Program]) -> Uncounted {
        let any = self.lost(Loss::Tables) > self.no_room || state::missed(programs) > self.known_misses;
        Uncounted { cgroups: self.uncounted.clone(), any }
    }
}

fn dump<K: sys::Plain + Eq + Hash, V: sys::Plain>(
    map: &'static str,
    reader: &MapReader,
) -> Result<Vec<(K, V)>, BpfError> {
    reader.read().map_err(|source| call("read the BPF map", map, source))
}

/// The maps, as user space sees them.
struct Shared {
    tables: MapReader,
    flows: MapReader,
    slots: MapReader,
    losses: Losses,
    removals: Mapped<[u64; 2]>,
    control: Mapped<Control>,
    measured: Mapped<[i64; Kind::COUNT]>,
    recorded: Mapped<u64>,
    ring: state::RingPositions,
}

impl Shared {
    fn open(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        let [tables, flows, slots] = DUMPS.map(|(program, map)| reader(ebpf, program, map));
        Ok(Self {
            tables: tables?,
            flows: flows?,
            slots: slots?,
            losses: Losses(Arc::new(mapped(ebpf, "LOSSES")?)),
            removals: mapped(ebpf, "REMOVALS")?,
            control: mapped(ebpf, "CONTROL")?,
            measured: mapped(ebpf, "MEASURED")?,
            recorded: mapped(ebpf, "RECORDED")?,
            ring: state::RingPositions::open(ebpf)?,
        })
    }
}

/// The programs that write what is in a map, and the maps.
const DUMPS: [(&str, &str); 3] =
    [("dump_tables", "TABLES"), ("dump_flows", "FLOWS"), ("dump_slots", "SLOTS")];

/// What reads a map: by a program, if the kernel has loaded it.
fn reader(ebpf: &mut Ebpf, name: &'static str, map: &'static str) -> Result<MapReader, BpfError> {
    let copied = |fd: BorrowedFd<'_>| {
        fd.try_clone_to_owned().map_err(|source| call("copy the fd of the BPF object", name, source))
    };
    let dump: &mut Iter = program(ebpf, name)?;
    if let Ok(program) = dump.fd() {
        let program = copied(program.as_fd())?;
        return MapReader::attach(program.as_fd(), map_data(ebpf, map)?.fd().as_fd())
            .map_err(|source| call("attach an iterator to the BPF map", map, source));
    }
    let data = map_data(ebpf, map)?;
    let info = data.info().map_err(|source| BpfError::Map { map, source })?;
    let map = copied(data.fd().as_fd())?;
    Ok(MapReader::Calls(Calls { map, key_size: info.key_size(), value_size: info.value_size() }))
}

fn mapped<T: sys::Plain>(ebpf: &Ebpf, map: &'static str) -> Result<Mapped<T>, BpfError> {
    Mapped::new(map_fd(ebpf, map)?).map_err(|source| call("map into memory the BPF map", map, source))
}

fn call(call: &'static str, object: &str, source: io::Error) -> BpfError {
    SyscallError::on(call, object)(source).into()
}

fn map_fd<'a>(ebpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>, BpfError> {
    Ok(map_data(ebpf, name)?.fd().as_fd())
}

fn map_data<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a MapData, BpfError> {
    match ebpf.map(name) {
        Some(Map::HashMap(data) | Map::Array(data)) => Ok(data),
        _ => Err(BpfError::Object(format!("map {name}"))),
    }
}

fn open(
    hierarchy: &Hierarchy,
    sizes: Sizes,
    kernel: KernelVersion,
    feeder: Feeder,
    log: bool,
) -> Result<(Ebpf, Vec<UnscannablePlace>), BpfError> {
    let btf = kernel_btf()?;
    let globals = Globals::find(&btf, hierarchy, kernel)?;
    let count_deltas = u8::from(feeder.counts_deltas());
    let (opcode, result) = feeder::io_uring_offsets();
    let mut loader = EbpfLoader::new();
    globals.set(&mut loader);
    loader
        .map_max_entries("TABLES", sizes.tables)
        .map_max_entries("SLOTS", if feeder.counts_deltas() { 1 } else { sizes.slots })
        .map_max_entries("EVENTS", sizes.ring);
    // If it is off, the verifier removes the programs' log calls, and their ring is as small as can
    // be.
    let log_level: u8 = if log { aya_log::Level::Debug as u8 } else { 0 };
    // The verifier gives its reason at any level; to log its every step takes a tenth of its time.
    loader.verifier_log_level(if log { VerifierLogLevel::DEBUG } else { VerifierLogLevel::STATS });
    loader.override_global("COUNT_DELTAS", &count_deltas, true);
    loader.override_global("OFF_URING_OPCODE", &opcode, true);
    loader.override_global("OFF_URING_RESULT", &result, true);
    loader.override_global("AYA_LOG_LEVEL", &log_level, true);
    if !log {
        loader.map_max_entries("AYA_LOGS", 4096);
    }
    let ebpf = loader.load(OBJECT).map_err(BpfError::Load)?;
    Ok((ebpf, globals.unscannable))
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

/// Opens an iterator. It walks when it is read.
fn iterator(ebpf: &mut Ebpf, name: &str) -> Result<File, BpfError> {
    let iter: &mut Iter = program(ebpf, name)?;
    let link = iter.attach().map_err(|e| attach_error(name, e))?;
    let link = iter.take_link(link).map_err(|e| attach_error(name, e))?;
    link.into_file().map_err(|e| call("open the iterator", name, io::Error::other(e)))
}

fn attach_error(program: &str, source: ProgramError) -> BpfError {
    BpfError::Program { program: program.into(), source }
}
