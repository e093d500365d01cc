//! A VNC client that goes only as far as reading the desktop's name (RFC 6143).

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

/// What a server tells about its desktop.
#[derive(Debug, PartialEq, Eq)]
pub struct Screen {
    /// In pixels.
    pub width: u16,
    /// In pixels.
    pub height: u16,
    /// Its name.
    pub name: String,
}

/// Connects to the server at a port of this machine, and returns its screen.
///
/// # Errors
/// If nobody listens there, or if it isn't a VNC server, or wants a password.
pub fn handshake(port: u16) -> io::Result<Screen> {
    const VERSION: &[u8; 12] = b"RFB 003.008\n";
    const NO_PASSWORD: u8 = 1;
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    server.set_read_timeout(Some(Duration::from_secs(10)))?;
    if read::<12>(&mut server)? != *VERSION {
        return Err(io::Error::other("it speaks another protocol"));
    }
    server.write_all(VERSION)?;
    let [count] = read(&mut server)?;
    let mut ways = vec![0; count.into()];
    server.read_exact(&mut ways)?;
    if !ways.contains(&NO_PASSWORD) {
        return Err(io::Error::other(format!("it lets nobody in without a password: {ways:?}")));
    }
    server.write_all(&[NO_PASSWORD])?;
    if read::<4>(&mut server)? != [0; 4] {
        return Err(io::Error::other("it let nobody in"));
    }
    const SHARED: u8 = 1;
    server.write_all(&[SHARED])?;
    let [width, height] = [read(&mut server)?, read(&mut server)?].map(u16::from_be_bytes);
    let _pixels: [u8; 16] = read(&mut server)?;
    let mut name = vec![0; u32::from_be_bytes(read(&mut server)?).min(1024) as usize];
    server.read_exact(&mut name)?;
    Ok(Screen { width, height, name: String::from_utf8_lossy(&name).into_owned() })
}

fn read<const N: usize>(server: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    server.read_exact(&mut bytes)?;
    Ok(bytes)
}
