//! Opens the addresses and the socket that the agent listens on.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::{
            fs::{DirBuilderExt as _, FileTypeExt as _},
            net::UnixStream as StdUnixStream,
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{fs::Mode, process::umask};
use socket2::Socket;
use thiserror::Error;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{Mutex, Semaphore},
};

use super::{
    access::Policy,
    connection::{self, MAX_CONNECTIONS},
    protection::Protection,
    routes::{Routes, Service},
    web_config::WebConfigError,
};
use crate::{error::SyscallError, host};

/// Options of the service over TCP.
#[derive(Clone, Debug)]
pub struct Options {
    /// The addresses to listen on.
    pub addresses: Vec<SocketAddr>,
    /// Whether to listen on the sockets that systemd has opened instead.
    pub systemd_socket: bool,
    /// The path of the metrics.
    pub telemetry_path: String,
    /// How many requests are answered at a time.
    pub max_requests: usize,
    /// The web config, if there is one.
    pub config_file: Option<PathBuf>,
    /// Whether to tell everybody about processes.
    pub serve_processes: bool,
}

/// Why the agent can't listen.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Another process has the port.
    #[error("{address} is taken{}: choose another with --web.listen-address", .holder.as_ref().map(|h| format!(" by {h}")).unwrap_or_default())]
    Taken {
        /// The address.
        address: SocketAddr,
        /// The process that has it, if known.
        holder: Option<String>,
    },
    /// Another agent has the socket.
    #[error("another fdtracker agent answers at {}: stop it, or choose another path with --socket", .0.display())]
    Running(PathBuf),
    /// The address can't be used, or the socket can't be made.
    #[error(transparent)]
    Call(#[from] SyscallError),
    /// systemd gave nothing to listen on.
    #[error(
        "--web.systemd-socket: systemd has opened nothing for this process (LISTEN_FDS): start it by a .socket unit"
    )]
    NothingOpened,
    /// systemd gave something else than a listening TCP socket.
    #[error(
        "--web.systemd-socket: fd {fd} is no TCP socket that listens: the .socket unit needs ListenStream=PORT"
    )]
    NoListener {
        /// The fd.
        fd: i32,
    },
    /// The sockets that systemd gave can't be used.
    #[error("--web.systemd-socket: listen on what systemd has opened")]
    Inherit(#[source] io::Error),
    /// The web config can't be used.
    #[error("--web.config.file")]
    WebConfig(#[from] WebConfigError),
}

/// The open addresses and the open socket.
pub struct Listeners {
    tcp: Vec<TcpListener>,
    unix: UnixListener,
    guard: SocketGuard,
    protection: Arc<Protection>,
    options: Options,
}

/// Removes the socket when it is dropped.
pub struct SocketGuard(PathBuf);

impl Drop for SocketGuard {
    fn drop(&mut self) {
        // It is fine if it has already gone.
        let _ = fs::remove_file(&self.0);
    }
}

impl Listeners {
    /// Listens on TCP addresses, and on a unix socket of mode 0600.
    ///
    /// # Errors
    /// When an address or the socket is taken or can't be used, or when the web config can't be
    /// used.
    pub async fn bind(options: Options, socket: &Path) -> Result<Self, ServeError> {
        let protection = Arc::new(Protection::open(options.config_file.clone())?);
        let unix = bind_unix(socket)?;
        let guard = SocketGuard(socket.to_owned());
        let tcp = if options.systemd_socket { inherited()? } else { bind_all(&options.addresses).await? };
        let listeners = Self { tcp, unix, guard, protection, options };
        listeners.warn_if_open();
        Ok(listeners)
    }

    fn warn_if_open(&self) {
        let open = self.addresses().find(|address| !address.ip().to_canonical().is_loopback());
        if let Some(address) = open
            && !self.protection.last().authenticates()
        {
            let whom = if self.options.serve_processes { "metrics and processes" } else { "metrics" };
            tracing::warn!(
                "anybody who can connect to {address} can read {whom}: --web.config.file can require a password"
            );
        }
    }

    /// Returns the URLs of the metrics, with the real ports if port 0 was given.
    pub fn urls(&self) -> Vec<String> {
        let scheme = if self.protection.last().tls.is_some() { "https" } else { "http" };
        let path = &self.options.telemetry_path;
        self.addresses().map(|address| format!("{scheme}://{address}{path}")).collect()
    }

    fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.tcp.iter().filter_map(|listener| listener.local_addr().ok())
    }

    /// Answers requests from now on, until the event loop ends. The socket is removed when the
    /// returned guard is dropped.
    #[must_use]
    pub fn serve(self, service: Service) -> SocketGuard {
        let policy =
            Policy { serve_processes: self.options.serve_processes, hidepid: host::hides_processes() };
        let routes = Arc::new(Routes {
            service,
            protection: self.protection,
            policy,
            telemetry_path: self.options.telemetry_path,
            requests: Arc::new(Semaphore::new(self.options.max_requests)),
            rendered: Mutex::default(),
            namesakes: Arc::default(),
        });
        // There may be more connections than requests, so that clients can be told that there are
        // too many.
        let connections = Arc::new(Semaphore::new(self.options.max_requests + MAX_CONNECTIONS));
        for listener in self.tcp {
            tokio::spawn(connection::accept_tcp(listener, Arc::clone(&connections), Arc::clone(&routes)));
        }
        tokio::spawn(connection::accept_unix(self.unix, routes));
        self.guard
    }
}

async fn bind_all(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, ServeError> {
    let mut listeners = Vec::new();
    for address in addresses {
        listeners.push(bind_tcp(*address).await?);
    }
    Ok(listeners)
}

/// Takes the sockets that systemd has opened.
fn inherited() -> Result<Vec<TcpListener>, ServeError> {
    let fds = sd_notify::listen_fds().map_err(ServeError::Inherit)?;
    let listener = |fd| {
        // SAFETY: systemd gave the fd to this process, in which nothing else knows of it: this is
        // called once.
        let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let address = socket.local_addr().ok().and_then(|address| address.as_socket());
        if address.is_none() || !socket.is_listener().unwrap_or(false) {
            return Err(ServeError::NoListener { fd });
        }
        socket.set_nonblocking(true).map_err(ServeError::Inherit)?;
        TcpListener::from_std(socket.into()).map_err(ServeError::Inherit)
    };
    let listeners = fds.map(listener).collect::<Result<Vec<_>, _>>()?;
    if listeners.is_empty() { Err(ServeError::NothingOpened) } else { Ok(listeners) }
}

async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let bound = match TcpListener::bind(address).await {
        // If all addresses are meant, on a machine without IPv6, use those of IPv4.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) && address.ip().is_unspecified() => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    bound.map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            ServeError::Taken { address, holder: host::listener_of(address.port()) }
        } else {
            SyscallError::on("listen on", address)(source).into()
        }
    })
}

fn bind_unix(path: &Path) -> Result<UnixListener, ServeError> {
    let error = |source| SyscallError::on("make the socket", path.display())(source);
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(error)?;
    }
    match StdUnixStream::connect(path) {
        Ok(_) => return Err(ServeError::Running(path.to_owned())),
        // The socket is left over from an agent that was killed.
        Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
            if !fs::symlink_metadata(path).map_err(error)?.file_type().is_socket() {
                return Err(error(io::Error::other("there is a file that is no socket")).into());
            }
            fs::remove_file(path).map_err(error)?;
        }
        Err(_) => {}
    }
    // The mask is the whole process's. Nothing else makes files meanwhile, because the agent runs
    // its tasks on one thread.
    let mask = umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    umask(mask);
    Ok(listener.map_err(error)?)
}
