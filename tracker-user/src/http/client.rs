//! The client for the agent's socket, which the other commands use.

use std::{
    io,
    path::{Path, PathBuf},
};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;

use crate::{
    api::{Filter, Listing, Notice},
    error::SyscallError,
};

/// Why a request to the agent failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The socket can't be opened.
    #[error(transparent)]
    Connect(#[from] SyscallError),
    /// The connection failed.
    #[error("talk to the agent at {}", .path.display())]
    Http {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// The agent refused.
    #[error("the agent says: {0}")]
    Refused(String),
    /// The agent's answer isn't understood.
    #[error("the agent's answer isn't understood: is it another version?")]
    Answer(#[source] serde_json::Error),
}

/// A running agent.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// Finds the agent; `None` if none runs.
    ///
    /// # Errors
    /// When the agent can't be connected to, for example because this user may not open the socket.
    pub async fn find(path: &Path) -> Result<Option<Self>, ClientError> {
        match UnixStream::connect(path).await {
            Ok(_) => Ok(Some(Self { path: path.to_owned() })),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                Ok(None)
            }
            Err(error) => Err(unreachable(path)(error).into()),
        }
    }

    /// Asks what the agent counts.
    ///
    /// # Errors
    /// When the agent has gone, or refuses.
    pub async fn listing(&self, processes: bool) -> Result<Listing, ClientError> {
        let answer = self.get(&format!("/v1/containers?processes={processes}")).await?;
        let body = answer.collect().await.map_err(|source| self.http_error(source))?.to_bytes();
        serde_json::from_slice(&body).map_err(ClientError::Answer)
    }

    /// Follows the agent's events.
    ///
    /// # Errors
    /// When the agent has gone, or refuses.
    pub async fn events(&self, filter: &Filter) -> Result<Events, ClientError> {
        let body = self.get(&format!("/v1/events?{}", filter.query())).await?;
        Ok(Events { body, pending: BytesMut::new(), path: self.path.clone() })
    }

    async fn get(&self, path_and_query: &str) -> Result<Incoming, ClientError> {
        let stream = UnixStream::connect(&self.path).await.map_err(unreachable(&self.path))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|source| self.http_error(source))?;
        tokio::spawn(connection);
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = path_and_query.parse().unwrap_or_default();
        request.headers_mut().insert("host", hyper::header::HeaderValue::from_static("fdtracker"));
        let response: Response<Incoming> =
            sender.send_request(request).await.map_err(|source| self.http_error(source))?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response.into_body());
        }
        let body = response.collect().await.map_err(|source| self.http_error(source))?.to_bytes();
        Err(ClientError::Refused(format!("{} ({status})", String::from_utf8_lossy(&body).trim())))
    }

    fn http_error(&self, source: hyper::Error) -> ClientError {
        ClientError::Http { path: self.path.clone(), source }
    }
}

fn unreachable(path: &Path) -> impl FnOnce(io::Error) -> SyscallError {
    SyscallError::on("connect to the agent at", path.display())
}

/// Events of a running agent.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    pending: BytesMut,
    path: PathBuf,
}

impl Events {
    /// Returns the next event; `None` when the agent has ended.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn next(&mut self) -> Result<Option<Notice>, ClientError> {
        loop {
            if let Some(line) = take_line(&mut self.pending) {
                return serde_json::from_slice(&line).map(Some).map_err(ClientError::Answer);
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.pending.extend_from_slice(data);
                    }
                }
                // The agent ended while it sent.
                Some(Err(error)) if error.is_incomplete_message() || error.is_body_write_aborted() => {
                    return Ok(None);
                }
                Some(Err(source)) => return Err(ClientError::Http { path: self.path.clone(), source }),
            }
        }
    }
}

/// Removes a whole line from the front, and returns it without its end.
fn take_line(pending: &mut BytesMut) -> Option<BytesMut> {
    let end = pending.iter().position(|b| *b == b'\n')?;
    let line = pending.split_to(end);
    pending.advance(1);
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_whole() {
        let mut pending = BytesMut::from(&b"one\ntw"[..]);
        assert_eq!(take_line(&mut pending).as_deref(), Some(&b"one"[..]));
        assert_eq!(take_line(&mut pending), None);
        pending.extend_from_slice(b"o\n\n");
        assert_eq!(take_line(&mut pending).as_deref(), Some(&b"two"[..]));
        assert_eq!(take_line(&mut pending).as_deref(), Some(&b""[..]));
        assert_eq!(take_line(&mut pending), None);
    }
}
