//! What aya doesn't offer: arrays in shared memory, records of iterators, what the kernel knows of
//! a program.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    ptr::NonNull,
};

use tracker_ebpf::{Control, FileRecord, Flow, Sighting, Slot, SlotEvent, Table, TableEvent, Tag};

/// Types that any bytes are a value of, so that they may be read from the kernel.
///
/// # Safety
/// The type must have no padding, no pointer, and no invalid value.
pub(super) unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($ty:ty),+) => { $(
        // SAFETY: integers, or `repr(C)` structs of integers without padding (tested in
        // tracker-ebpf).
        unsafe impl Plain for $ty {}
    )+ };
}

// SAFETY: so is an array of them.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

plain!(u32, u64, i64, Control, FileRecord, Flow, Sighting, Slot, SlotEvent, Table, TableEvent, Tag);

/// Reads a value from the start of some bytes.
pub(super) fn read<T: Plain>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: there are enough bytes, any bytes are a value, and the read needs no alignment.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

// enum bpf_cmd, include/uapi/linux/bpf.h
const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;

/// Reads the records that an iterator writes.
pub(super) fn read_records<T: Plain>(mut iterator: impl io::Read, mut take: impl FnMut(T)) -> io::Result<()> {
    let size = size_of::<T>();
    let mut buffer = vec![0; size * 4096];
    let mut filled = 0;
    loop {
        let read = match iterator.by_ref().read(buffer.get_mut(filled..).unwrap_or_default()) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            // A million objects of which nothing was written: the kernel yields. Linux:
            // bpf_seq_read, MAX_ITER_OBJECTS.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        filled += read;
        let whole = filled - filled % size;
        for record in buffer.get(..whole).unwrap_or_default().chunks_exact(size) {
            if let Some(record) = self::read(record) {
                take(record);
            }
        }
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
    }
}

/// `struct perf_event_attr`, as far as it is used: its first version, and all else 0.
type PerfEvent = [u64; 8];

/// Has a program run whenever an event of tracefs happens, as long as what is returned is open.
pub(super) fn run_at_event(program: BorrowedFd<'_>, event: u64) -> io::Result<OwnedFd> {
    // include/uapi/linux/perf_event.h
    const PERF_TYPE_TRACEPOINT: u64 = 2;
    const PERF_FLAG_FD_CLOEXEC: u64 = 8;
    const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;
    const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;
    const SIZE: u64 = size_of::<PerfEvent>() as u64;
    let sample_period = 1;
    let attributes: PerfEvent = [PERF_TYPE_TRACEPOINT | SIZE << 32, event, sample_period, 0, 0, 0, 0, 0];
    // A program runs on all CPUs, whichever its event is opened on (kernel: trace_call_bpf).
    let (all_tasks, cpu, no_group) = (-1, 0, -1);
    // SAFETY: the kernel reads the attributes, which say how long they are, and returns a new fd or
    // -1.
    let fd = unsafe {
        let attributes = attributes.as_ptr();
        libc::syscall(libc::SYS_perf_event_open, attributes, all_tasks, cpu, no_group, PERF_FLAG_FD_CLOEXEC)
    };
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the fd is new, so nobody else owns it.
    let event = unsafe { OwnedFd::from_raw_fd(fd) };
    for (request, argument) in [(PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()), (PERF_EVENT_IOC_ENABLE, 0)] {
        // SAFETY: both requests take a number.
        if unsafe { libc::ioctl(event.as_raw_fd(), request, argument) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(event)
}

/// The value of an array map that is shared with the programs.
pub(super) struct Mapped<T: Plain> {
    at: NonNull<T>,
}

// SAFETY: the memory belongs to the mapping, not to a thread.
unsafe impl<T: Plain> Send for Mapped<T> {}
// SAFETY: it is read and written as volatile words, which the programs change at any time as well.
unsafe impl<T: Plain> Sync for Mapped<T> {}

impl<T: Plain> Mapped<T> {
    /// Maps an array that was made with `BPF_F_MMAPABLE` (Linux 5.5) and is at least as large as
    /// `T`.
    pub(super) fn new(map: BorrowedFd<'_>) -> io::Result<Self> {
        Self::map(map, 0, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// Maps the start of a page of a map that has pages for user space, to be read. There must be
    /// such a page, and `T` fits in it.
    pub(super) fn page(map: BorrowedFd<'_>, page: i64) -> io::Result<Self> {
        Self::map(map, page * rustix::param::page_size() as i64, libc::PROT_READ)
    }

    fn map(map: BorrowedFd<'_>, offset: i64, protection: i32) -> io::Result<Self> {
        // SAFETY: a new mapping, of which nobody else knows.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<T>(),
                protection,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                offset,
            )
        };
        match NonNull::new(at.cast()) {
            Some(mapped) if at != libc::MAP_FAILED => Ok(Self { at: mapped }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// What it is now. The programs may be changing it: each word is whole.
    pub(super) fn get(&self) -> T {
        // SAFETY: the mapping is as large as `T`, begins with a page, and any bytes are a value.
        unsafe { self.at.as_ptr().read_volatile() }
    }

    pub(super) fn set(&self, value: T) {
        // SAFETY: as above.
        unsafe { self.at.as_ptr().write_volatile(value) }
    }
}

impl<T: Plain> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { libc::munmap(self.at.as_ptr().cast(), size_of::<T>()) };
    }
}

/// The first words of `struct bpf_prog_info`. What a kernel doesn't tell stays 0.
#[derive(Default)]
#[repr(C)]
pub(super) struct ProgramState {
    before: [u64; 24],
    /// For how long it ran, while the kernel counted that.
    pub(super) run_time_ns: u64,
    /// How often it ran, while the kernel counted that.
    pub(super) run_count: u64,
    /// How often the kernel didn't run it because its CPU was running one already (Linux 5.12).
    pub(super) recursion_misses: u64,
}

/// `union bpf_attr`, as `BPF_OBJ_GET_INFO_BY_FD` sees it.
#[repr(C)]
struct Info {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// What the kernel tells of a program.
pub(super) fn program_state(program: BorrowedFd<'_>) -> io::Result<ProgramState> {
    let mut answer = ProgramState::default();
    let mut info = Info {
        bpf_fd: program.as_raw_fd() as u32,
        info_len: size_of::<ProgramState>() as u32,
        info: (&raw mut answer) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut info)?;
    Ok(answer)
}

/// A command of `bpf(2)`, and what it returns.
pub(super) fn bpf<T>(command: i32, attributes: &mut T) -> io::Result<i64> {
    // SAFETY: the attributes are those of the command, and what they point to lives through the
    // call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A command that returns a new fd.
pub(super) fn bpf_fd<T>(command: i32, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the kernel has just made it for this caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_whole_whatever_the_reads_return() {
        struct Dribble(Vec<u8>);
        impl io::Read for Dribble {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let n = self.0.len().min(7).min(buffer.len());
                for (to, from) in buffer.iter_mut().zip(self.0.drain(..n)) {
                    *to = from;
                }
                Ok(n)
            }
        }
        let bytes = (0..1000_u64).flat_map(u64::to_ne_bytes).collect();
        let mut found = Vec::new();
        read_records(Dribble(bytes), |n: u64| found.push(n)).unwrap();
        assert_eq!(found, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn short_records_are_refused() {
        assert_eq!(read::<u32>(&[1, 0, 0]), None);
        assert_eq!(read::<u32>(&1_u32.to_ne_bytes()), Some(1));
        assert!(read::<SlotEvent>(&[0; 8]).is_none());
    }
}
