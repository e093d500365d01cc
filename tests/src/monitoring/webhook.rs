//! The webhook to which Alertmanager sends alerts.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use serde_json::Value;

use crate::deadline;

/// A server that keeps all alerts that it gets, in order.
pub struct Webhook {
    /// Where it listens.
    pub address: SocketAddr,
    alerts: Arc<Mutex<Vec<Value>>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Webhook {
    /// Starts it.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port for the webhook");
        let address = listener.local_addr().expect("its address");
        let (alerts, ends) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (told, end) = (Arc::clone(&alerts), Arc::clone(&ends));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::Relaxed) {
                    break;
                }
                // Alertmanager sends again what was not answered.
                if let Ok(mut notification) = stream.and_then(receive) {
                    let alerts = notification["alerts"].as_array_mut();
                    told.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .append(alerts.expect("a list of alerts"));
                }
            }
        });
        Self { address, alerts, ends, thread: Some(thread) }
    }

    /// Returns all alerts so far.
    pub fn alerts(&self) -> Vec<Value> {
        self.alerts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // This connection ends the server's wait for one.
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Reads one notification, and confirms it.
fn receive(mut stream: TcpStream) -> std::io::Result<Value> {
    stream.set_read_timeout(Some(deadline()))?;
    let mut reader = BufReader::new(&stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim().to_lowercase().split_once("content-length:") {
            Some((_, number)) => length = number.trim().parse().map_err(std::io::Error::other)?,
            None if line.trim().is_empty() => break,
            None => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
    serde_json::from_slice(&body).map_err(std::io::Error::other)
}
