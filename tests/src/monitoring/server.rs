//! What both servers share: how Prometheus' programs start, log and answer.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{deadline, eventually, same};

/// A running server. When dropped, it is killed and its directory is removed: nobody needs its
/// data.
pub(super) struct Server {
    child: Child,
    log: Arc<Mutex<String>>,
    pub(super) address: SocketAddr,
    _dir: TempDir,
}

impl Server {
    /// Starts a server with its data in a directory, and waits until it is ready.
    pub(super) fn start(mut command: Command, dir: TempDir) -> Self {
        command.args(["--web.listen-address", "127.0.0.1:0"]).current_dir(dir.path());
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let log = follow(child.stderr.take().expect("its standard error"));
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut server = Self { child, log, address: nowhere, _dir: dir };
        server.address = eventually("the server listens", || server.listening_address());
        eventually("the server is ready", || same(server.get("/-/ready")?.0, 200));
        server
    }

    fn listening_address(&mut self) -> Result<SocketAddr, String> {
        if let Ok(Some(status)) = self.child.try_wait() {
            panic!("the server ended, {status}:\n{}", self.log());
        }
        let log = self.log();
        let line = log.lines().find(|line| line.contains(r#"msg="Listening on""#));
        let address = line.and_then(|line| line.split_once(" address=")?.1.split(' ').next()?.parse().ok());
        address.ok_or_else(|| format!("it said:\n{log}"))
    }

    /// Returns all that it has logged.
    pub(super) fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a GET, and returns status and body.
    pub(super) fn get(&self, path: &str) -> Result<(u16, String), String> {
        let answer = request(self.address, path).map_err(|error| format!("GET {path}: {error}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no head and body")?;
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or("no status")?;
        Ok((status, body.to_owned()))
    }

    /// Sends a GET, whose body must be JSON.
    pub(super) fn json(&self, path: &str) -> Result<Value, String> {
        let (_, body) = self.get(path)?;
        serde_json::from_str(&body).map_err(|error| format!("GET {path}: {error}: {body}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes a configuration with this name into a server's directory.
pub(super) fn configure(dir: &TempDir, name: &str, configuration: &Value) {
    write(&dir.path().join(name), &configuration.to_string());
}

pub(super) fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
}

/// Sends a request by HTTP/1.0, so that the answer isn't in chunks.
fn request(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(deadline()))?;
    write!(stream, "GET {path} HTTP/1.0\r\nhost: test\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Keeps reading the log, so that the server never blocks.
fn follow(log: impl std::io::Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let seen = Arc::clone(&text);
    std::thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            let mut text = seen.lock().unwrap_or_else(PoisonError::into_inner);
            text.push_str(&line);
            text.push('\n');
        }
    });
    text
}
