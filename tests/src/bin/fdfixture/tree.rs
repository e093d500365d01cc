//! Several processes, tables and threads: which of them CRIU dumps, and in which order.

use std::io;

use fdtracker_tests::{kinds::open, sys::call};

use crate::{
    Fixture, here,
    os::zoo,
    process::{ended, inside, outside, sharing_files},
    there,
};

pub(crate) fn fixtures() -> Vec<Fixture> {
    let mut all = order();
    all.extend(relations());
    all.extend(states());
    all
}

fn pidfd(pid: i64) -> io::Result<()> {
    call(libc::SYS_pidfd_open, &[pid, 0]).map(drop)
}

fn order() -> Vec<Fixture> {
    vec![
        here("tree.children", "two children with nothing", || {
            inside(|| Ok(()))?;
            inside(|| Ok(())).map(drop)
        }),
        here("tree.bad_in_child", "a file that CRIU doesn't dump, in a child", || {
            inside(|| zoo("char_device")).map(drop)
        }),
        here("tree.bad_in_grandchild", "one in a child's child", || {
            inside(|| inside(|| zoo("char_device")).map(drop)).map(drop)
        }),
        here(
            "tree.bad_in_parent_and_child",
            "a device in a process, and a page fault file in its child",
            || {
                inside(|| zoo("userfaultfd"))?;
                zoo("char_device")
            },
        ),
        here("tree.bad_in_two_children", "a page fault file in a child, and a device in the next", || {
            inside(|| zoo("userfaultfd"))?;
            inside(|| zoo("char_device")).map(drop)
        }),
        here(
            "tree.bad_in_nephew",
            "a device in a child's child, and a page fault file in the next child",
            || {
                inside(|| inside(|| zoo("char_device")).map(drop))?;
                inside(|| zoo("userfaultfd")).map(drop)
            },
        ),
        here("tree.two_bad_files", "a device, and a page fault file after it", || {
            zoo("char_device")?;
            zoo("userfaultfd")
        }),
        here("tree.bad_and_lock", "a locked file, and a device after it", || {
            let file = crate::os::file("locked", 10)?;
            call(libc::SYS_flock, &[crate::os::keep(file), libc::LOCK_EX.into()])?;
            zoo("char_device")
        })
        .with(&[&["--file-locks"]]),
        here("tree.ring_and_device", "a device in a process, and a mapped ring in its child", || {
            inside(|| fdtracker_tests::sys::map(open("io_uring")?, 0, 4096).map(drop))?;
            zoo("char_device")
        }),
    ]
}

fn relations() -> Vec<Fixture> {
    vec![
        here("tree.pidfd_between", "a child's pidfd of the next child", || {
            let first = inside(|| Ok(()))?;
            inside(|| pidfd(first)).map(drop)
        }),
        here("tree.pidfd_of_parent", "a child's pidfd of its parent", || {
            let me = i64::from(std::process::id());
            inside(|| pidfd(me)).map(drop)
        }),
        there("tree.pidfd_of_parent_outside", "a pidfd of the parent, which isn't dumped", || {
            let me = i64::from(std::process::id());
            inside(|| pidfd(me))
        }),
        here(
            "tree.shared_table",
            "two processes with one table, and a file in it that CRIU doesn't dump",
            || {
                zoo("char_device")?;
                sharing_files().map(drop)
            },
        ),
        here("tree.shared_table_good", "two processes with one table, and a pipe in it", || {
            crate::os::pipe(0)?;
            sharing_files().map(drop)
        }),
        here("tree.inherited", "a device that a process and its child have", || {
            zoo("char_device")?;
            inside(|| Ok(())).map(drop)
        }),
        here("tree.thread", "a thread", || thread(|| Ok(()))),
        here("tree.thread_table", "a thread with a table of its own, in which is a device", || {
            thread(|| {
                call(libc::SYS_unshare, &[libc::CLONE_FILES.into()])?;
                zoo("char_device")
            })
        }),
    ]
}

/// Starts a thread that does this and then waits.
fn thread(act: fn() -> io::Result<()>) -> io::Result<()> {
    let (say, said) = std::sync::mpsc::channel();
    std::thread::Builder::new().spawn(move || {
        let _ = say.send(act());
        loop {
            std::thread::park();
        }
    })?;
    said.recv().map_err(io::Error::other)?
}

fn states() -> Vec<Fixture> {
    const PTRACE_SEIZE: i64 = 0x4206;
    vec![
        here("tree.zombie", "a child that has ended and isn't reaped", || ended().map(drop)),
        here("tree.stopped_child", "a child that is stopped", || {
            let child = inside(|| Ok(()))?;
            call(libc::SYS_kill, &[child, libc::SIGSTOP.into()]).map(drop)
        }),
        here("tree.traced", "a process that a process outside traces", || {
            let me = i64::from(std::process::id());
            outside(|| call(libc::SYS_ptrace, &[PTRACE_SEIZE, me, 0, 0]).map(drop)).map(drop)
        }),
        here("tree.traced_child", "a child that its parent traces", || {
            let child = inside(|| Ok(()))?;
            call(libc::SYS_ptrace, &[PTRACE_SEIZE, child, 0, 0]).map(drop)
        }),
        here("tree.uprobe", "a process in which a uprobe was hit, which is gone", uprobe)
            .with(&[&["--allow-uprobes"]]),
        here("tree.aio", "a context of asynchronous I/O, which is memory and no file", || {
            let mut context = 0_u64;
            call(libc::SYS_io_setup, &[4, &raw mut context as i64]).map(drop)
        }),
    ]
}

/// Does nothing: the probe is put on it.
#[inline(never)]
extern "C" fn probed() {
    std::hint::black_box(());
}

/// Puts a uprobe on a function, and calls it. The kernel then maps a page, which stays after the
/// probe is gone (kernel: `xol_add_vma`).
fn uprobe() -> io::Result<()> {
    let kind = std::fs::read_to_string("/sys/bus/event_source/devices/uprobe/type")?;
    let kind: u64 = kind.trim().parse().map_err(io::Error::other)?;
    // struct perf_event_attr: type and size; …; config1, the path; config2, the offset
    let mut event = [0_u64; 16];
    let (path, offset) = (crate::os::c(std::env::current_exe()?)?, offset_of(probed as *const () as usize)?);
    for (at, word) in [(0, kind | 128 << 32), (7, path.as_ptr() as u64), (8, offset)] {
        event.get_mut(at).into_iter().for_each(|to| *to = word);
    }
    let event = fdtracker_tests::sys::address(&event);
    let probe = call(libc::SYS_perf_event_open, &[event, 0, -1, -1, 0])?;
    probed();
    fdtracker_tests::kinds::close(probe);
    Ok(())
}

/// Returns the offset of an address in this program's file.
fn offset_of(address: usize) -> io::Result<u64> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let hex = |text: &str| usize::from_str_radix(text, 16).ok();
    let offset = maps.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (start, end) = words.next()?.split_once('-')?;
        let (start, end, offset) = (hex(start)?, hex(end)?, hex(words.nth(1)?)?);
        (start..end).contains(&address).then(|| address - start + offset)
    });
    offset.map(|offset| offset as u64).ok_or_else(|| io::Error::other("the function is in no mapping"))
}
