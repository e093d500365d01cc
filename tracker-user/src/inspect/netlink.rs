//! `sock_diag(7)`: what the kernel tells of all sockets of a network namespace. Messages are built and read here; pure but for [`ask`].

use std::{collections::BTreeMap, io, os::fd::BorrowedFd};

use super::sys;
use crate::verdict::tree::UnixSocket;

// include/uapi/linux/netlink.h, sock_diag.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
/// The list changed while it was written: some may be missing.
const NLM_F_DUMP_INTR: u16 = 0x10;
const HEADER: usize = 16;

// include/uapi/linux/unix_diag.h
const UDIAG_SHOW_NAME: u32 = 0x01;
const UDIAG_SHOW_PEER: u32 = 0x04;
const UDIAG_SHOW_ICONS: u32 = 0x08;
const UDIAG_SHOW_RQLEN: u32 = 0x10;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_ICONS: u16 = 3;
const UNIX_DIAG_RQLEN: u16 = 4;
const UNIX_DIAG_SHUTDOWN: u16 = 6;
/// struct unix_diag_msg
const UNIX_MESSAGE: usize = 16;

// include/uapi/linux/packet_diag.h
const PACKET_SHOW_MCLIST: u32 = 0x02;
const PACKET_DIAG_MCLIST: u16 = 1;
/// struct packet_diag_msg
const PACKET_MESSAGE: usize = 16;

/// All unix sockets, by inode.
pub(super) fn unix_sockets(socket: BorrowedFd<'_>) -> io::Result<BTreeMap<u64, UnixSocket>> {
    let mut request = vec![libc::AF_UNIX as u8, 0, 0, 0];
    let show = UDIAG_SHOW_NAME | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN;
    // struct unix_diag_req: states, inode, what to show, cookie
    request.extend([u32::MAX, 0, show, u32::MAX, u32::MAX].into_iter().flat_map(u32::to_ne_bytes));
    let mut found = BTreeMap::new();
    ask(socket, &request, |message| found.extend(unix_socket(message)))?;
    Ok(found)
}

/// Packet sockets, by inode: whether one has joined a group several times (sk-packet.c:dump_mreqs).
pub(super) fn packet_sockets(socket: BorrowedFd<'_>) -> io::Result<BTreeMap<u64, bool>> {
    let mut request = vec![libc::AF_PACKET as u8, 0, 0, 0];
    // struct packet_diag_req: inode, what to show, cookie
    request.extend([0, PACKET_SHOW_MCLIST, u32::MAX, u32::MAX].into_iter().flat_map(u32::to_ne_bytes));
    let mut found = BTreeMap::new();
    ask(socket, &request, |message| found.extend(packet_socket(message)))?;
    Ok(found)
}

/// Sends a request, and reads messages until the last.
fn ask(socket: BorrowedFd<'_>, request: &[u8], mut take: impl FnMut(&[u8])) -> io::Result<()> {
    sys::send(socket, &with_header(request))?;
    // As large as the kernel writes them (net/netlink/af_netlink.c:netlink_dump).
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let length = sys::receive(socket, &mut buffer)?;
        let received = buffer.get(..length).unwrap_or_default();
        if received.is_empty() || read_messages(received, &mut take)? {
            return Ok(());
        }
    }
}

/// struct nlmsghdr: length, type, flags, sequence number, port.
fn with_header(request: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + request.len());
    message.extend(((HEADER + request.len()) as u32).to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(request);
    message
}

/// Takes the messages of a datagram; whether the last was among them.
fn read_messages(mut bytes: &[u8], take: &mut impl FnMut(&[u8])) -> io::Result<bool> {
    while let (Some(length), Some(kind), Some(flags)) = (u32_at(bytes, 0), u16_at(bytes, 4), u16_at(bytes, 6))
    {
        if flags & NLM_F_DUMP_INTR != 0 {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "the list changed while it was read"));
        }
        let length = length as usize;
        let Some(message) = bytes.get(HEADER..length) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is cut off"));
        };
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let number = u32_at(message, 0).map_or(0, |n| (n as i32).wrapping_neg());
                return Err(io::Error::from_raw_os_error(number));
            }
            SOCK_DIAG_BY_FAMILY => take(message),
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn unix_socket(message: &[u8]) -> Option<(u64, UnixSocket)> {
    let inode = u32_at(message, 4)?;
    let mut socket = UnixSocket {
        socket_type: (*message.get(1)?).into(),
        state: (*message.get(2)?).into(),
        ..UnixSocket::default()
    };
    attributes(message.get(UNIX_MESSAGE..)?, |kind, value| match kind {
        UNIX_DIAG_NAME => socket.name = name(value),
        UNIX_DIAG_PEER => socket.peer = u32_at(value, 0).filter(|inode| *inode != 0).map(u64::from),
        UNIX_DIAG_ICONS => {
            socket.pending =
                value.chunks_exact(4).filter_map(|four| u32_at(four, 0)).map(u64::from).collect();
        }
        UNIX_DIAG_RQLEN => {
            socket.receive_queue = u32_at(value, 0).unwrap_or(0).into();
            socket.send_queue = u32_at(value, 4).unwrap_or(0).into();
        }
        UNIX_DIAG_SHUTDOWN => socket.shutdown = value.first().copied().unwrap_or(0).into(),
        _ => {}
    });
    Some((inode.into(), socket))
}

/// A path, which may end with NUL, or after a NUL an abstract name.
fn name(value: &[u8]) -> Option<String> {
    match value.split_first()? {
        (0, rest) => Some(format!("@{}", String::from_utf8_lossy(rest))),
        _ => {
            let path = value.split(|byte| *byte == 0).next().unwrap_or(value);
            Some(String::from_utf8_lossy(path).into_owned())
        }
    }
}

fn packet_socket(message: &[u8]) -> Option<(u64, bool)> {
    let inode = u32_at(message, 4)?;
    let mut several = false;
    attributes(message.get(PACKET_MESSAGE..)?, |kind, value| {
        if kind == PACKET_DIAG_MCLIST {
            // struct packet_diag_mclist: the interface's index, a count, type, length of the address, address
            several |= value.chunks_exact(44).any(|group| u32_at(group, 4) != Some(1));
        }
    });
    Some((inode.into(), several))
}

/// The attributes of a message: type and value.
fn attributes(mut bytes: &[u8], mut take: impl FnMut(u16, &[u8])) {
    while let (Some(length), Some(kind)) = (u16_at(bytes, 0), u16_at(bytes, 2)) {
        let length = usize::from(length);
        let Some(value) = bytes.get(4..length) else { return };
        take(kind, value);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn a_listening_socket() {
        let mut message = vec![1, 1, 10, 0];
        message.extend(words(&[77, 1, 0]));
        message.extend(attribute(UNIX_DIAG_NAME, b"/run/x.sock\0"));
        message.extend(attribute(UNIX_DIAG_ICONS, &words(&[0, 78])));
        message.extend(attribute(UNIX_DIAG_RQLEN, &words(&[2, 128])));
        message.extend(attribute(UNIX_DIAG_SHUTDOWN, &[0]));
        message.extend(attribute(99, &[1, 2, 3, 4]));
        let (inode, socket) = unix_socket(&message).unwrap();
        assert_eq!((inode, socket.state, socket.name.as_deref()), (77, 10, Some("/run/x.sock")));
        assert_eq!((socket.pending.as_slice(), socket.receive_queue), ([0, 78].as_slice(), 2));
    }

    #[test]
    fn names() {
        assert_eq!(name(b"\0/tmp/.X11-unix/X0").as_deref(), Some("@/tmp/.X11-unix/X0"));
        assert_eq!(name(b"relative").as_deref(), Some("relative"));
        assert_eq!(name(b""), None);
    }

    #[test]
    fn groups_of_packet_sockets() {
        let group = |count: u32| [words(&[2, count]), vec![0; 36]].concat();
        let message = |list: &[u8]| {
            let mut message = vec![17, 3, 0, 0];
            message.extend(words(&[9, 0, 0]));
            message.extend(attribute(PACKET_DIAG_MCLIST, list));
            message
        };
        assert_eq!(packet_socket(&message(&group(1))), Some((9, false)));
        assert_eq!(packet_socket(&message(&[group(1), group(2)].concat())), Some((9, true)));
        assert_eq!(packet_socket(&message(&[])), Some((9, false)));
    }

    #[test]
    fn messages_end() {
        let message = |kind: u16, body: &[u8]| {
            let mut bytes = with_header(body);
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            bytes[6..8].copy_from_slice(&2_u16.to_ne_bytes());
            bytes
        };
        let mut taken = 0;
        let two = [message(SOCK_DIAG_BY_FAMILY, &[0; 8]), message(SOCK_DIAG_BY_FAMILY, &[])].concat();
        assert!(!read_messages(&two, &mut |_| taken += 1).unwrap());
        assert_eq!(taken, 2);
        assert!(read_messages(&message(NLMSG_DONE, &[0; 4]), &mut |_| ()).unwrap());
        let error = read_messages(&message(NLMSG_ERROR, &words(&[-2_i32 as u32])), &mut |_| ()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        assert!(read_messages(&[255, 0, 0, 0, 20, 0, 0, 0], &mut |_| ()).is_err());
        assert!(read_messages(&[0; 16], &mut |_| ()).is_err());
        assert!(!read_messages(&[1, 2], &mut |_| ()).unwrap());
    }
}
