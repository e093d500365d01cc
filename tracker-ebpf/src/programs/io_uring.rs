//! io_uring, which fills and empties slots without a system call: in task work, in kernel threads.
//! All of these share the ring owner's table, so `current` has the right one.

use aya_ebpf::{Global, macros::tracepoint, programs::TracePointContext};
use tracker_ebpf::{TABLE_STALE, TABLE_URING, TABLE_URING_CLOSES};

use crate::{
    kernel::{Plain, current_files},
    maps::TABLES,
    slots::follow,
    value::Find as _,
};

/// Where the opcode is in the record of a submission; 0 if this kernel doesn't tell it.
#[unsafe(no_mangle)]
static OFF_URING_OPCODE: Global<u64> = Global::new(0);

/// Where the result is in the record of a completion; 0 if this kernel doesn't tell it.
#[unsafe(no_mangle)]
static OFF_URING_RESULT: Global<u64> = Global::new(0);

/// Runs when a request is submitted, and remembers that the table's completions matter from now on.
#[tracepoint]
fn io_uring_submit(ctx: TracePointContext) -> u32 {
    // enum io_uring_op, include/uapi/linux/io_uring.h
    const ACCEPT: u8 = 13;
    const OPENAT: u8 = 18;
    const CLOSE: u8 = 19;
    const OPENAT2: u8 = 28;
    const SOCKET: u8 = 45;
    const FIXED_FD_INSTALL: u8 = 54;
    let Ok(opcode) = field::<u8>(&ctx, &OFF_URING_OPCODE) else { return 0 };
    let flag = match opcode {
        ACCEPT | OPENAT | OPENAT2 | SOCKET | FIXED_FD_INSTALL => TABLE_URING,
        CLOSE => TABLE_URING_CLOSES,
        _ => return 0,
    };
    if let Some(table) = TABLES.find(current_files()) {
        table.mark(flag);
    }
    0
}

/// Runs when a request is done. Which request that was isn't told: a result may be an fd, and 0 may
/// be a close, of which an audit finds the slot.
#[tracepoint]
fn io_uring_complete(ctx: TracePointContext) -> u32 {
    let files = current_files();
    let Some(table) = TABLES.find(files) else { return 0 };
    let flags = table.flags().get();
    let result = field::<i32>(&ctx, &OFF_URING_RESULT).unwrap_or(-1);
    if result > 0 && flags & TABLE_URING != 0 {
        follow(files, result as u32, 0);
    }
    if result == 0 && flags & TABLE_URING_CLOSES != 0 && flags & TABLE_STALE == 0 {
        table.request_audit();
    }
    0
}

/// A field of a tracepoint's record.
#[inline(always)]
fn field<T: Plain>(ctx: &TracePointContext, offset: &Global<u64>) -> Result<T, i32> {
    // SAFETY: the helper that reads it checks the address, and any bytes are a value of a plain
    // type.
    unsafe { ctx.read_at(offset.load() as usize) }
}
