//! Tests trees of several processes, and processes that end, are elsewhere, or don't exist.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use fdtracker::{
    inspect::InspectError,
    verdict::{
        fact,
        tree::{Process, Relation},
        word::Leads,
    },
};
use fdtracker_tests::{Cgroup, Zoo, eventually, fdzoo};

use super::{fd, first, has, inspect, is_related, me};

pub(super) fn a_tree() {
    // The cgroup kills children that had no time yet to ask for a signal when the parent dies.
    let cgroup = Cgroup::docker();
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let file = zoo.must("open eventfd");
    let first_child = zoo.must("fork") as u32;
    let second = zoo.must("vfork_exec") as u32;
    let third = zoo.must("fork") as u32;
    // SAFETY: the child is the fixture's, which doesn't wait for it yet.
    unsafe { libc::kill(first_child as i32, libc::SIGKILL) };
    let tree = eventually("the child is a zombie", || {
        let tree = inspect(zoo.pid()).expect("the fixture can be inspected");
        if tree.processes.iter().any(|process| process.zombie) { Ok(tree) } else { Err("it isn't") }
    });
    let pids: Vec<_> = tree.processes.iter().map(|process| process.pid).collect();
    assert_eq!(pids, [zoo.pid(), first_child, second, third]);
    assert!(tree.processes[1..].iter().all(|process| process.parent == zoo.pid()));
    assert!(tree.processes[1].zombie && tree.processes[1].files.is_empty());
    assert_eq!(tree.processes[0].comm, "fdzoo");
    let has_file = |process: &Process| process.files.iter().any(|f| f.fd == Some(file as u32));
    assert_eq!(tree.processes.iter().map(has_file).collect::<Vec<_>>(), [true, false, true, true]);
    let numbers: Vec<_> = tree.processes[0].files.iter().filter_map(|file| file.fd).collect();
    assert!(numbers.is_sorted());
    assert_eq!(tree.unreadable, [""; 0]);
}

pub(super) fn a_shared_table() {
    // The cgroup kills children that had no time yet to ask for a signal when the parent dies.
    let cgroup = Cgroup::docker();
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let sharer = zoo.must("sharer 2") as u32;
    let other = zoo.must("fork") as u32;
    let tree = inspect(zoo.pid()).expect("the fixture can be inspected");
    let shares: Vec<_> = tree.processes.iter().map(|p| (p.pid, p.shares_files_with)).collect();
    assert_eq!(shares, [(zoo.pid(), None), (sharer, Some(zoo.pid())), (other, None)]);
    assert!(tree.processes[1].files.is_empty());
}

pub(super) fn a_dying_target() {
    for _ in 0..30 {
        let cgroup = Cgroup::docker();
        let mut zoo = Zoo::in_cgroup(&cgroup);
        for _ in 0..5 {
            zoo.must("fork");
        }
        zoo.must("open_many tcp 50");
        zoo.must("open_many eventfd 50");
        let pid = zoo.pid();
        let looks = std::thread::spawn(move || {
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(5) {
                match inspect(pid) {
                    Ok(tree) if tree.processes[0].zombie => return Ok(()),
                    Ok(tree) if tree.processes[0].unreadable.is_some() => return Err(format!("{tree:#?}")),
                    Ok(_) => {}
                    Err(InspectError::NoProcess(_)) => return Ok(()),
                    Err(error) => return Err(error.to_string()),
                }
            }
            Err("it never ended".into())
        });
        std::thread::sleep(Duration::from_millis(2));
        zoo.end();
        assert_eq!(looks.join().expect("no panic"), Ok(()));
    }
}

pub(super) fn what_is_no_tree() {
    assert!(matches!(inspect(2), Err(InspectError::KernelThread(2) | InspectError::NoProcess(2))));
    assert!(matches!(inspect(u32::MAX), Err(InspectError::NoProcess(u32::MAX))));
    assert!(matches!(inspect(0), Err(InspectError::NoProcess(0))));
    let (tell, told) = std::sync::mpsc::channel();
    let (end, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        // SAFETY: the call has no precondition.
        tell.send(unsafe { libc::gettid() } as u32).expect("tell");
        let _ = wait.recv();
    });
    let id = told.recv().expect("a thread");
    let expected = std::process::id();
    match inspect(id) {
        Err(InspectError::Thread { thread, process }) => assert_eq!((thread, process), (id, expected)),
        other => panic!("{other:?}"),
    }
    drop(end);
    thread.join().expect("the thread ends");
}

pub(super) fn other_namespaces() -> Result<(), String> {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--net", "--uts", "--"]).arg(fdzoo());
    let mut zoo = Zoo::start(command);
    let unix = zoo.must("open unix");
    let tcp = zoo.must("open tcp");
    let dir = zoo.must("open dir");
    let tree = inspect(zoo.pid()).expect("the fixture can be inspected");
    assert_eq!(tree.unreadable, [""; 0]);
    let namespaces = &first(&tree).namespaces;
    assert_ne!(namespaces["net"], tree.host["net"]);
    is_related(fd(&tree, tcp as i32), &Relation::SocketNamespace(namespaces["net"]));
    let inode = fd(&tree, unix as i32).facts.get(fact::INODE).expect("an inode") as u64;
    is_related(fd(&tree, unix as i32), &Relation::Unix(inode));
    assert!(tree.unix.contains_key(&inode));
    assert!(tree.mounts.contains_key(&namespaces["mnt"]));
    has(fd(&tree, dir as i32), fact::LEADS, Leads::Same);
    Ok(())
}

/// Prints how long an inspection takes. It can't fail on time: the machine may be busy.
pub(super) fn many_files() {
    let cgroup = Cgroup::docker();
    let mut zoos: Vec<Zoo> = (0..20).map(|_| Zoo::in_cgroup(&cgroup)).collect();
    for zoo in &mut zoos {
        for kind in ["eventfd", "tcp", "unix", "null", "dir", "memfd"] {
            zoo.must(&format!("open_many {kind} 50"));
        }
    }
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        let tree = me();
        best = best.min(start.elapsed());
        let files: usize = tree.processes.iter().map(|process| process.files.len()).sum();
        assert!(
            tree.processes.len() > 20 && files > 6000,
            "{} processes, {files} files",
            tree.processes.len()
        );
    }
    println!("20 processes with 300 fds: {best:?}");
    assert!(best < Duration::from_secs(5), "{best:?}");
}
