//! Asks runtimes for the names of containers, in the background: nothing waits for an answer.
//!
//! Each source, which is a socket or the files of engines, has a task of its own. It asks when a
//! container without a name has appeared, then again a few times soon after, and then at intervals,
//! because containers are renamed. The answers go into the [`Directory`]. If a source doesn't
//! answer in time, or its answer isn't understood, the failure is counted, logged once, and the
//! source is asked again.

mod cri;
mod disk;
mod docker;
mod socket;

use std::{
    collections::{BTreeSet, HashSet},
    io,
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use self::disk::{BackgroundReader, EngineFiles};
pub use self::socket::{ParseSocketError, Protocol, Socket};
use super::directory::{Directory, List};
use crate::error::chain;

/// The longest time that a lookup may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The shortest time between two lookups at one source.
const GAP: Duration = Duration::from_secs(1);

/// How often the task checks which sockets exist.
const DISCOVER: Duration = Duration::from_secs(5);

/// How long commands that ask once wait for all sources together.
const ONCE: Duration = Duration::from_secs(2);

/// Which sources to ask, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The sockets; `None` for those that are found.
    pub sockets: Option<Vec<Socket>>,
    /// The interval, if nothing requests a lookup.
    pub every: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { sockets: None, every: Duration::from_secs(30) }
    }
}

/// Why a source has no answer.
#[derive(Debug, Error)]
enum LookupError {
    #[error("connect")]
    Connect(#[source] io::Error),
    #[error("talk to it")]
    Http(#[from] hyper::Error),
    #[error("it doesn't speak this: {0}")]
    Unsupported(String),
    #[error("it says: {0}")]
    Refused(String),
    #[error("its answer isn't understood")]
    Invalid(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("no answer within {PATIENCE:?}")]
    Timeout,
}

impl LookupError {
    /// Returns the stable name of the lookup's result.
    const fn result(&self) -> &'static str {
        match self {
            Self::Connect(_) => "unreachable",
            Self::Http(_) | Self::Refused(_) => "error",
            Self::Unsupported(_) => "unsupported",
            Self::Invalid(_) => "invalid",
            Self::Timeout => "timeout",
        }
    }
}

/// Asks all sources for as long as it is polled.
pub async fn run(directory: Arc<Directory>, settings: Settings) {
    let mut tasks = JoinSet::new();
    for files in [EngineFiles::machine(), EngineFiles::users()] {
        tasks.spawn(NameSource::files(files).follow(Arc::clone(&directory), settings.every));
    }
    if let Some(given) = settings.sockets {
        for (rank, socket) in given.into_iter().enumerate() {
            tasks.spawn(
                NameSource::socket(rank.min(FILES - 1), socket)
                    .follow(Arc::clone(&directory), settings.every),
            );
        }
        // The tasks end only when this future is dropped.
        std::future::pending::<()>().await;
    }
    // A runtime that has gone may come back, so its socket stays known.
    let mut known: HashSet<Socket> = HashSet::new();
    loop {
        // An error means that the thread couldn't start, or has ended. The next round tries again.
        let there = match apart(Socket::usual) {
            Ok(answer) => answer.await.unwrap_or_default(),
            Err(_) => BTreeSet::new(),
        };
        for socket in there {
            if known.insert(socket.clone()) {
                let source = NameSource::socket(NameSource::rank_of(&socket), socket);
                tasks.spawn(source.follow(Arc::clone(&directory), settings.every));
            }
        }
        sleep(DISCOVER).await;
    }
}

/// Does work on a thread of its own, because it may wait for a file system that doesn't answer.
/// This is no task of the event loop, because the event loop couldn't end before it.
///
/// # Errors
/// When no thread can be started.
fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<oneshot::Receiver<T>> {
    let (sender, receiver) = oneshot::channel();
    // An error means that nobody waits any more.
    let work = move || drop(sender.send(work()));
    std::thread::Builder::new().name("names".into()).spawn(work)?;
    Ok(receiver)
}

/// Asks all sources once, for some seconds at most.
pub async fn once(settings: &Settings) -> Arc<Directory> {
    let directory = Arc::new(Directory::default());
    let usual = || Socket::usual().into_iter().collect();
    let sockets: Vec<Socket> = settings.sockets.clone().unwrap_or_else(usual);
    let files = [EngineFiles::machine(), EngineFiles::users()].map(NameSource::files);
    let mut tasks = JoinSet::new();
    for mut source in sockets
        .into_iter()
        .map(|socket| NameSource::socket(NameSource::rank_of(&socket), socket))
        .chain(files)
    {
        let directory = Arc::clone(&directory);
        tasks.spawn(async move { source.look_up(&directory).await });
    }
    let all = async { while tasks.join_next().await.is_some() {} };
    if timeout(ONCE, all).await.is_err() {
        tracing::warn!("a runtime doesn't answer within {ONCE:?}: its containers are shown by their ids");
    }
    directory
}

/// Ranks: sockets have priority over files, and users' sockets come after both. A user's files are
/// believed only for the user's own containers anyway.
const USERS: usize = 1_000;
const FILES: usize = 100;

/// A source of names.
struct NameSource {
    name: String,
    rank: usize,
    kind: NameSourceKind,
    /// Whether the last lookup succeeded; `None` before the first. Only changes are logged.
    is_well: Option<bool>,
}

enum NameSourceKind {
    Socket(Socket, Option<cri::Client>),
    Files(BackgroundReader),
}

impl NameSource {
    fn rank_of(socket: &Socket) -> usize {
        if socket.user().is_some() { USERS } else { 0 }
    }

    fn socket(rank: usize, socket: Socket) -> Self {
        Self { name: socket.to_string(), rank, kind: NameSourceKind::Socket(socket, None), is_well: None }
    }

    fn files(files: EngineFiles) -> Self {
        let rank = FILES;
        Self {
            name: files.name().to_owned(),
            rank,
            kind: NameSourceKind::Files(BackgroundReader::new(files)),
            is_well: None,
        }
    }

    /// Asks this source again and again.
    async fn follow(mut self, directory: Arc<Directory>, every: Duration) {
        let mut asks = directory.asks();
        let mut wait = GAP.min(every);
        loop {
            let start = Instant::now();
            self.look_up(&directory).await;
            sleep_until(start + GAP.min(every)).await;
            tokio::select! {
                // Ask again soon: a runtime may know a container a moment later than the kernel.
                asked = asks.changed() => match asked {
                    Ok(()) => wait = GAP.min(every),
                    Err(_) => return,
                },
                () = sleep_until(start + wait) => wait = (wait * 2).min(every),
            }
        }
    }

    /// Makes one lookup.
    async fn look_up(&mut self, directory: &Directory) {
        match self.list().await {
            Ok(lists) => {
                for (user, list) in lists {
                    directory.replace(self.rank, &self.name, user, list);
                }
                directory.count(&self.name, "ok");
                if self.is_well.replace(true) == Some(false) {
                    tracing::info!(source = self.name, "it tells the names of its containers again");
                }
            }
            Err(error) => {
                directory.keep(self.rank, &self.name);
                directory.count(&self.name, error.result());
                if self.is_well.replace(false) != Some(false) {
                    let quiet = matches!(error, LookupError::Unsupported(_));
                    let error = chain(error);
                    // Docker's own containerd doesn't speak CRI, which is no problem.
                    if quiet {
                        tracing::info!(error, source = self.name, "it tells no names");
                    } else {
                        tracing::warn!(
                            error,
                            source = self.name,
                            "it doesn't tell the names of its containers"
                        );
                    }
                }
            }
        }
    }

    async fn list(&mut self) -> Result<Vec<(Option<u32>, List)>, LookupError> {
        match &mut self.kind {
            NameSourceKind::Files(reader) => reader.read(PATIENCE).await,
            NameSourceKind::Socket(socket, client) => {
                let ask = async {
                    match (socket.protocol, &mut *client) {
                        (Protocol::Docker, _) => docker::list(&socket.path).await,
                        (Protocol::Cri, Some(client)) => client.list().await,
                        (Protocol::Cri, none) => none.insert(cri::Client::new(&socket.path)?).list().await,
                    }
                };
                let result = timeout(PATIENCE, ask).await.unwrap_or(Err(LookupError::Timeout));
                if result.is_err() {
                    *client = None;
                }
                Ok(vec![(socket.user(), result?)])
            }
        }
    }
}
