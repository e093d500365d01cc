//! io_uring fills and empties slots without a system call of its own: in task work, in kernel threads. All of these share the
//! ring owner's table, so `current` has the right one.

use aya_ebpf::{Global, macros::tracepoint, programs::TracePointContext};
use tracker_ebpf::{TABLE_STALE, TABLE_URING, TABLE_URING_CLOSES};

use crate::{kernel::current_files, maps::TABLES, slots::follow, tables::doubt};

/// Where the opcode is in a submission's record, and the result in a completion's: 0 where this kernel tells neither.
#[unsafe(no_mangle)]
static OFF_URING_OPCODE: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static OFF_URING_RESULT: Global<u64> = Global::new(0);

/// A request is submitted: remembers that the table's completions matter from now on.
#[tracepoint]
fn io_uring_submit(ctx: TracePointContext) -> u32 {
    // enum io_uring_op, include/uapi/linux/io_uring.h
    const ACCEPT: u8 = 13;
    const OPENAT: u8 = 18;
    const CLOSE: u8 = 19;
    const OPENAT2: u8 = 28;
    const SOCKET: u8 = 45;
    const FIXED_FD_INSTALL: u8 = 54;
    // SAFETY: the record is plain data.
    let Ok(opcode) = (unsafe { ctx.read_at::<u8>(OFF_URING_OPCODE.load() as usize) }) else { return 0 };
    let flag = match opcode {
        ACCEPT | OPENAT | OPENAT2 | SOCKET | FIXED_FD_INSTALL => TABLE_URING,
        CLOSE => TABLE_URING_CLOSES,
        _ => return 0,
    };
    if let Some(table) = TABLES.get_ptr_mut(current_files()) {
        // SAFETY: the pointer comes from the map.
        unsafe { (*table).flags |= flag };
    }
    0
}

/// A request is done. What it was isn't told: a result may be an fd, and 0 may be a close, of which an audit finds the slot.
#[tracepoint]
fn io_uring_complete(ctx: TracePointContext) -> u32 {
    let files = current_files();
    let Some(table) = TABLES.get_ptr_mut(files) else { return 0 };
    // SAFETY: the pointer comes from the map; the record is plain data.
    let (flags, result) =
        unsafe { ((*table).flags, ctx.read_at::<i32>(OFF_URING_RESULT.load() as usize).unwrap_or(-1)) };
    if result > 0 && flags & TABLE_URING != 0 {
        follow(files, result as u32, 0);
    }
    if result == 0 && flags & TABLE_URING_CLOSES != 0 && flags & TABLE_STALE == 0 {
        doubt(table);
    }
    0
}
