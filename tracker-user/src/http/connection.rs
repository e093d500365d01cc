//! Accepts connections. Their number and their times are limited.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

use super::{
    access::Peer,
    answer,
    routes::{Caller, Routes},
};

/// The most connections over the unix socket; and over TCP, the most besides those with requests.
/// Further ones wait.
pub(super) const MAX_CONNECTIONS: usize = 64;

/// How long a client may take to send a request, or for the TLS handshake; and how long a
/// connection without a request stays open.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take to receive more of an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Finds out that a client has gone without closing the connection, even if there is nothing to
/// send to it.
const KEEP_ALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_mins(1)).with_interval(Duration::from_secs(15));

/// The most bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;

/// How long to wait when no connection can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections over TCP.
pub(super) async fn accept_tcp(listener: TcpListener, slots: Arc<Semaphore>, routes: Arc<Routes>) {
    while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(tcp(stream, Arc::clone(&routes), slot))),
            Err(error) => pause(&error).await,
        }
    }
}

/// Accepts connections over the unix socket.
pub(super) async fn accept_unix(listener: UnixListener, routes: Arc<Routes>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let caller = Caller { peer: Peer::Socket, encrypted: false, certified: false };
                let routes = Arc::clone(&routes);
                tokio::spawn(async move {
                    serve(stream, routes, caller).await;
                    drop(slot);
                });
            }
            Err(error) => pause(&error).await,
        }
    }
}

/// Waits after an error, which most likely means that there are no free fds. This may pass.
async fn pause(error: &io::Error) {
    tracing::warn!(%error, "accept a connection");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

async fn tcp(stream: TcpStream, routes: Arc<Routes>, _slot: OwnedSemaphorePermit) {
    // An error means that the client has already gone.
    let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { return };
    if let Err(error) = SockRef::from(&stream).set_tcp_keepalive(&KEEP_ALIVE) {
        tracing::debug!(%error, %peer, "set TCP keep-alive");
    }
    let config = routes.protection.current().await;
    let caller = Caller {
        peer: Peer::of(peer, local),
        encrypted: config.tls.is_some(),
        certified: config.wants_certificates,
    };
    let Some(tls) = &config.tls else {
        return serve(stream, routes, caller).await;
    };
    match timeout(HEADER_TIMEOUT, TlsAcceptor::from(Arc::clone(tls)).accept(stream)).await {
        Ok(Ok(stream)) => serve(stream, routes, caller).await,
        Ok(Err(error)) => tracing::debug!(%error, %peer, "agree on TLS"),
        Err(_) => tracing::debug!(%peer, "TLS handshake: the client takes too long"),
    }
}

async fn serve<S: AsyncRead + AsyncWrite>(stream: S, routes: Arc<Routes>, caller: Caller) {
    let answer = service_fn(|request| {
        let routes = Arc::clone(&routes);
        // If the client closes the connection, only the waiting ends. The work goes on, and still
        // counts as a request.
        let work = tokio::spawn(async move { routes.answer(&request, caller).await });
        async { Ok::<_, Infallible>(work.await.unwrap_or_else(|panic| answer::failed(&panic.to_string()))) }
    });
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(Box::pin(stream)), answer);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection ended early");
    }
}
