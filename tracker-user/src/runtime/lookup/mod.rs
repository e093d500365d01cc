//! Asks runtimes how containers are called, in the background: nothing waits for an answer.
//!
//! Each source, a socket or the files that runtimes keep, has a task of its own, which looks when a container without a name has
//! shown up, soon again a few times, and then now and then, because containers are renamed. What it learns goes into the
//! [`Directory`]. A source that doesn't answer in time, or answers nonsense, is counted, told once, and asked again later and later.

mod cri;
mod disk;
mod docker;
mod source;

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

use self::disk::{Disk, Reader};
pub use self::source::{ParseSocketError, Protocol, Socket};
use super::directory::{Directory, List};
use crate::error::chain;

/// No lookup takes longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two lookups at one source.
const GAP: Duration = Duration::from_secs(1);

/// How often it is looked which sockets there are.
const DISCOVER: Duration = Duration::from_secs(5);

/// Commands that look once wait no longer for all sources together.
const ONCE: Duration = Duration::from_secs(2);

/// Whom to ask, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Sockets; `None`: those that are found.
    pub sockets: Option<Vec<Socket>>,
    /// How often without a cause.
    pub every: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { sockets: None, every: Duration::from_secs(30) }
    }
}

/// Why a source says nothing.
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
    /// The stable name of what came of the lookup.
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
    for disk in [Disk::machine(), Disk::users()] {
        tasks.spawn(Source::disk(disk).follow(Arc::clone(&directory), settings.every));
    }
    if let Some(given) = settings.sockets {
        for (rank, socket) in given.into_iter().enumerate() {
            tasks.spawn(
                Source::socket(rank.min(DISKS - 1), socket).follow(Arc::clone(&directory), settings.every),
            );
        }
        // They end only with this.
        std::future::pending::<()>().await;
    }
    // A machine's runtime that has gone may come back.
    let mut known: HashSet<Socket> = HashSet::new();
    loop {
        // An error means that its thread couldn't start or has ended: then another may.
        let there = match apart(Socket::usual) {
            Ok(answer) => answer.await.unwrap_or_default(),
            Err(_) => BTreeSet::new(),
        };
        for socket in there {
            if known.insert(socket.clone()) {
                let source = Source::socket(Source::rank_of(&socket), socket);
                tasks.spawn(source.follow(Arc::clone(&directory), settings.every));
            }
        }
        sleep(DISCOVER).await;
    }
}

/// Does what may wait for a file system that doesn't answer on a thread of its own. It is no task of the event loop, which couldn't end
/// before it.
fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<oneshot::Receiver<T>> {
    let (sender, receiver) = oneshot::channel();
    // An error means that nobody waits any more.
    let work = move || drop(sender.send(work()));
    std::thread::Builder::new().name("names".into()).spawn(work)?;
    Ok(receiver)
}

/// Asks all sources once, for no longer than some seconds.
pub async fn once(settings: &Settings) -> Arc<Directory> {
    let directory = Arc::new(Directory::default());
    let usual = || Socket::usual().into_iter().collect();
    let sockets: Vec<Socket> = settings.sockets.clone().unwrap_or_else(usual);
    let disks = [Disk::machine(), Disk::users()].map(Source::disk);
    let mut tasks = JoinSet::new();
    for mut source in
        sockets.into_iter().map(|socket| Source::socket(Source::rank_of(&socket), socket)).chain(disks)
    {
        let directory = Arc::clone(&directory);
        tasks.spawn(async move { source.look(&directory).await });
    }
    let all = async { while tasks.join_next().await.is_some() {} };
    if timeout(ONCE, all).await.is_err() {
        tracing::warn!("a runtime doesn't answer within {ONCE:?}: its containers go by their ids");
    }
    directory
}

/// Ranks: sockets go before files, and users' sockets after both. What a user's files say is taken only of the user's own anyway.
const USERS: usize = 1_000;
const DISKS: usize = 100;

/// One whom to ask.
struct Source {
    name: String,
    rank: usize,
    origin: Origin,
    /// What it said last wasn't told yet, or was: only changes are.
    is_well: Option<bool>,
}

enum Origin {
    Socket(Socket, Option<cri::Client>),
    Disk(Reader),
}

impl Source {
    fn rank_of(socket: &Socket) -> usize {
        if socket.user().is_some() { USERS } else { 0 }
    }

    fn socket(rank: usize, socket: Socket) -> Self {
        Self { name: socket.to_string(), rank, origin: Origin::Socket(socket, None), is_well: None }
    }

    fn disk(disk: Disk) -> Self {
        let rank = DISKS;
        Self { name: disk.name().to_owned(), rank, origin: Origin::Disk(Reader::new(disk)), is_well: None }
    }

    /// Looks again and again.
    async fn follow(mut self, directory: Arc<Directory>, every: Duration) {
        let mut asks = directory.asks();
        let mut wait = GAP.min(every);
        loop {
            let start = Instant::now();
            self.look(&directory).await;
            sleep_until(start + GAP.min(every)).await;
            tokio::select! {
                // Soon again: a runtime may know a container a moment later than the kernel.
                asked = asks.changed() => match asked {
                    Ok(()) => wait = GAP.min(every),
                    Err(_) => return,
                },
                () = sleep_until(start + wait) => wait = (wait * 2).min(every),
            }
        }
    }

    /// One lookup.
    async fn look(&mut self, directory: &Directory) {
        match self.list().await {
            Ok(lists) => {
                for (user, list) in lists {
                    directory.replace(self.rank, &self.name, user, list);
                }
                directory.count(&self.name, "ok");
                if self.is_well.replace(true) == Some(false) {
                    tracing::info!(source = self.name, "it tells again what its containers are called");
                }
            }
            Err(error) => {
                directory.keep(self.rank, &self.name);
                directory.count(&self.name, error.result());
                if self.is_well.replace(false) != Some(false) {
                    let quiet = matches!(error, LookupError::Unsupported(_));
                    let error = chain(error);
                    // Docker's own containerd speaks no CRI, which is nothing to worry about.
                    if quiet {
                        tracing::info!(error, source = self.name, "it tells no names");
                    } else {
                        tracing::warn!(
                            error,
                            source = self.name,
                            "it doesn't tell what its containers are called"
                        );
                    }
                }
            }
        }
    }

    async fn list(&mut self) -> Result<Vec<(Option<u32>, List)>, LookupError> {
        match &mut self.origin {
            Origin::Disk(reader) => reader.read(PATIENCE).await,
            Origin::Socket(socket, client) => {
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
