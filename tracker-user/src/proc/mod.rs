//! Reads those files of `/proc` that several rooms need: one reader for each file. They depend on
//! no room.
//!
//! A process that is described there may have chosen the bytes. So names and paths that are no
//! UTF-8 are replaced, and what is missing or not understood is left out. Neither is an error.

mod mountinfo;
mod status;

use std::{fs, io};

pub(crate) use mountinfo::{MountLine, mounts, own_mountinfo};
pub(crate) use status::Status;

/// Reads a whole file as text.
fn read(path: &str) -> io::Result<String> {
    fs::read(path).map(|bytes| {
        String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    })
}
