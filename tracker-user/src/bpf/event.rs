//! Records of the ring.

use tracker_ebpf::{COMM_LEN, Header, NO_FD, SlotEvent, TableEvent, Tag, event};

use super::sys;
use crate::inventory::Counts;

/// What a probe saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Thread group of the task that caused it, in the initial pid namespace.
    pub pid: u32,
    /// Thread that caused it.
    pub tid: u32,
    /// The task's name; `None` when an audit found what a probe missed.
    pub comm: Option<String>,
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    pub time_ns: u64,
    /// Cgroup that the table is charged to.
    pub cgroup_id: u64,
    /// What happened.
    pub change: Change,
}

/// What happened to a slot, or to a whole table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A slot came to hold this file.
    Opened {
        /// The fd number.
        fd: u32,
        /// The file.
        tag: Tag,
    },
    /// A slot holds this file no more.
    Closed {
        /// The fd number, where the probe could tell.
        fd: Option<u32>,
        /// The file.
        tag: Tag,
    },
    /// A process was made that inherited these.
    Forked(Counts),
    /// A program was executed, which has these left.
    Execed(Counts),
    /// A process ended, and with it these.
    Exited(Counts),
    /// A task got a table of its own with these.
    Unshared(Counts),
    /// A process with these was moved to another cgroup.
    Moved(Counts),
    /// There may be a change that no probe can see: only an audit finds it. Nothing else is said of
    /// it.
    AuditRequested,
}

/// The head of an event that is about nobody.
const NOBODY: Header =
    Header { event: 0, tgid: 0, pid: 0, fd: 0, time_ns: 0, files: 0, cgroup_id: 0, comm: [0; COMM_LEN] };

impl Event {
    /// Whether it may be known only since this event whose the cgroup is: by the time that a
    /// container's program runs, its runtime has written that down.
    #[must_use]
    pub const fn may_tell_owner(&self) -> bool {
        matches!(self.change, Change::Execed(_) | Change::Moved(_))
    }

    /// Decodes a record of the ring; `None` for one that isn't any.
    pub(super) fn decode(record: &[u8]) -> Option<Self> {
        // The code is the first word of every record.
        let code: u32 = sys::read(record)?;
        let (header, change) = match code {
            event::AUDIT_REQUEST => return Some(Self::new(&NOBODY, Change::AuditRequested)),
            event::OPENED | event::CLOSED => {
                let SlotEvent { header, tag } = sys::read(record)?;
                tag.kind()?;
                let fd = header.fd;
                (
                    header,
                    if code == event::OPENED {
                        Change::Opened { fd, tag }
                    } else {
                        Change::Closed { fd: (fd != NO_FD).then_some(fd), tag }
                    },
                )
            }
            _ => {
                let TableEvent { header, n } = sys::read(record)?;
                let counts = Counts::from(&n);
                let change = match code {
                    event::FORKED => Change::Forked(counts),
                    event::EXECED => Change::Execed(counts),
                    event::EXITED => Change::Exited(counts),
                    event::UNSHARED => Change::Unshared(counts),
                    event::MOVED => Change::Moved(counts),
                    _ => return None,
                };
                (header, change)
            }
        };
        Some(Self::new(&header, change))
    }

    fn new(header: &Header, change: Change) -> Self {
        Self {
            pid: header.tgid,
            tid: header.pid,
            comm: comm(&header.comm),
            time_ns: header.time_ns,
            cgroup_id: header.cgroup_id,
            change,
        }
    }
}

fn comm(bytes: &[u8; COMM_LEN]) -> Option<String> {
    let name = bytes.split(|b| *b == 0).next().unwrap_or_default();
    (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use tracker_ebpf::Kind;

    use super::*;

    fn bytes<T: Copy>(value: &T) -> Vec<u8> {
        // SAFETY: the contract's types have no padding.
        unsafe { std::slice::from_raw_parts((&raw const *value).cast(), size_of::<T>()) }.to_vec()
    }

    fn header(code: u32) -> Header {
        let mut comm = [0; COMM_LEN];
        comm[..4].copy_from_slice(b"ibus");
        Header { event: code, tgid: 7, pid: 8, fd: 9, time_ns: 10, files: 11, cgroup_id: 12, comm }
    }

    #[test]
    fn slot_events() {
        let tag = Tag::new(Kind::Pidfd.index() as u64, 0xff);
        let record = bytes(&SlotEvent { header: header(event::OPENED), tag });
        let event = Event::decode(&record).unwrap();
        assert_eq!(event.change, Change::Opened { fd: 9, tag });
        assert_eq!((event.pid, event.tid, event.cgroup_id), (7, 8, 12));
        assert_eq!(event.comm.as_deref(), Some("ibus"));
        let mut header = header(event::CLOSED);
        let closed = |header| Event::decode(&bytes(&SlotEvent { header, tag })).unwrap().change;
        assert_eq!(closed(header), Change::Closed { fd: Some(9), tag });
        header.fd = NO_FD;
        assert_eq!(closed(header), Change::Closed { fd: None, tag });
    }

    #[test]
    fn table_events() {
        let mut n = [0; Kind::COUNT];
        n[Kind::Pidfd.index()] = 3;
        let record = bytes(&TableEvent { header: header(event::EXITED), n });
        let Change::Exited(counts) = Event::decode(&record).unwrap().change else { panic!() };
        assert_eq!(counts.get(Kind::Pidfd), 3);
        assert_eq!(counts.total(), 3);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let tag = Tag::new(Kind::Pidfd.index() as u64, 0xff);
        let record = bytes(&SlotEvent { header: header(event::OPENED), tag });
        for len in 0..record.len() {
            assert_eq!(Event::decode(&record[..len]), None);
        }
        assert_eq!(
            Event::decode(&bytes(&SlotEvent { header: header(event::OPENED), tag: Tag(u64::MAX) })),
            None
        );
        let request = bytes(&u64::from(event::AUDIT_REQUEST));
        assert_eq!(Event::decode(&request).map(|event| event.change), Some(Change::AuditRequested));
        assert_eq!(Event::decode(&bytes(&TableEvent { header: header(99), n: [0; Kind::COUNT] })), None);
    }
}
