//! Whether the targets of an epoll are open in its own process (eventpoll.c:flush_eventpoll_dinfo_queue).

use std::{cmp::Ordering, collections::BTreeMap, io};

use super::{
    files::{Looker, Open},
    parse::Target,
    sys::{self, Compare},
};
use crate::verdict::{fact, tree::File, word::Targets};

/// So many comparisons are made for one epoll, and no more: a process may have any number of targets, each a copy of many fds.
const MAX_COMPARED: usize = 50_000;

pub(super) fn look(looker: &mut Looker<'_>, open: &Open, file: &mut File) {
    let Some(info) = looker.fdinfo_or_why(open.fd, file) else { return };
    if info.incomplete {
        file.facts.set(fact::WHY, "its fdinfo isn't understood".into());
        return;
    }
    // Several targets may have been added by one fd, when it was closed and used again.
    let mut seen = BTreeMap::<u32, u32>::new();
    let mut left = MAX_COMPARED;
    for target in &info.targets {
        let offset = *seen.entry(target.fd).and_modify(|n| *n += 1).or_insert(0);
        match is_open(looker, open.fd, target, offset, &mut left) {
            Ok(true) => {}
            // What was closed meanwhile looks like that too.
            Ok(false) => {
                let again =
                    looker.fdinfo_or_why(open.fd, file).is_some_and(|again| again.targets == info.targets);
                return if again {
                    file.facts.set(fact::TARGETS, Targets::Escaped);
                } else {
                    file.facts.set(fact::WHY, "it changed while it was looked at".into());
                };
            }
            Err(error) => {
                return file.facts.set(fact::WHY, format!("compare with its targets: {error}").into());
            }
        }
    }
    file.facts.set(fact::TARGETS, Targets::Found);
}

/// Whether any fd of the process is a target: most likely the one by which it was added, else one with its inode.
fn is_open(
    looker: &mut Looker<'_>,
    epoll: u32,
    target: &Target,
    offset: u32,
    left: &mut usize,
) -> io::Result<bool> {
    let pid = looker.seen.process.pid;
    let mut is = |file: u32| {
        *left = left.checked_sub(1).ok_or_else(|| io::Error::other("they are too many"))?;
        let what = Compare::EpollTarget { file, epoll, target: target.fd, offset };
        match sys::compare(pid, pid, what) {
            Ok(order) => Ok(order == Ordering::Equal),
            // No file has this number.
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => Ok(false),
            Err(error) => Err(error),
        }
    };
    if is(target.fd)? {
        return Ok(true);
    }
    let inodes = looker.inodes();
    let possible = inodes.iter().filter(|(_, inode)| target.inode.is_none_or(|wanted| wanted == **inode));
    for (fd, _) in possible {
        if is(*fd)? {
            return Ok(true);
        }
    }
    Ok(false)
}
