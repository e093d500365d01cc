//! Events on their way to whoever follows them.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::Frame;
use tokio::sync::{
    OwnedSemaphorePermit,
    broadcast::{self, error::RecvError},
    mpsc,
};

use tracker_ebpf::Kind;

use super::{
    protection::{EVERY, Pass},
    routes::Admitted,
};
use crate::{
    report::{Notice, UNBLOCKED},
    tracker::Tracker,
};

/// Events on their way to readers; a reader that falls further behind is told how many it missed.
pub const BACKLOG: usize = 8_192;

/// Lines on their way to one reader of events.
const READER_QUEUE: usize = 256;

/// An event, as readers get it: encoded once for all.
#[derive(Clone, Debug)]
pub struct Line {
    /// What it says.
    pub notice: Arc<Notice>,
    /// A line of JSON.
    pub json: Bytes,
}

impl Line {
    /// Encodes a notice.
    #[must_use]
    pub fn new(notice: Notice) -> Self {
        let mut json = serde_json::to_vec(&notice).unwrap_or_default();
        json.push(b'\n');
        Self { notice: Arc::new(notice), json: json.into() }
    }

    /// The next event; `None` once there are no more. A reader that was too slow is told how many it missed.
    pub async fn next(lines: &mut broadcast::Receiver<Self>, tracker: &Tracker) -> Option<Self> {
        match lines.recv().await {
            Ok(line) => Some(line),
            Err(RecvError::Lagged(missed)) => {
                tracker.count_late_reader(missed);
                Some(Self::new(Notice::lost(missed)))
            }
            Err(RecvError::Closed) => None,
        }
    }

    /// The line for a reader who is told no paths of files.
    fn without_paths(self) -> Bytes {
        if self.notice.has_paths() {
            let mut notice = self.notice.as_ref().clone();
            notice.hide_paths();
            Self::new(notice).json
        } else {
            self.json
        }
    }
}

/// Where events are sent to, for every reader that follows them.
pub type Lines = broadcast::Sender<Line>;

/// What one reader wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// A container's full id, or its name; all if `None`.
    pub container: Option<String>,
    /// Names of kinds; all if there is none.
    pub kinds: Vec<String>,
}

impl Filter {
    /// What a query asks for; or why it can't be.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut filter = Self::default();
        for (name, value) in parameters(query) {
            match name {
                "container" => filter.container = Some(value.to_owned()),
                "kind" if Kind::from_name(value).is_some() => filter.kinds.push(value.to_owned()),
                "kind" => {
                    let known: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
                    return Err(format!("no such kind; there are {}\n", known.join(", ")));
                }
                _ => {}
            }
        }
        Ok(filter)
    }

    /// The query that asks for this. Ids and names of kinds have no character that would need escaping.
    #[must_use]
    pub fn query(&self) -> String {
        let container = self.container.iter().map(|id| format!("container={id}"));
        let kinds = self.kinds.iter().map(|kind| format!("kind={kind}"));
        container.chain(kinds).collect::<Vec<_>>().join("&")
    }

    /// Whether a notice is wanted. What was lost, everybody is told; and whoever may have heard of a blocker, that there is none any more.
    #[must_use]
    pub fn lets(&self, notice: &Notice) -> bool {
        notice.lost.is_some()
            || self.container.as_ref().is_none_or(|c| [&notice.container_id, &notice.container].contains(&c))
                && (self.kinds.is_empty()
                    || notice.event == UNBLOCKED
                    || self.kinds.iter().any(|kind| notice.is_about(kind)))
    }
}

/// The parts of a query.
pub(super) fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter_map(|pair| pair.split_once('='))
}

/// A body that goes on for as long as there is something to send. It counts as a request all the while.
pub(super) struct Stream {
    queue: mpsc::Receiver<Bytes>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.queue.poll_recv(context).map(|data| data.map(|data| Ok(Frame::data(data))))
    }
}

/// One reader of events.
pub(super) struct Reader {
    /// What it wants to see.
    pub(super) filter: Filter,
    /// Whether it may see paths of files.
    pub(super) paths: bool,
    /// By what it was let in, if it had to be.
    pub(super) admitted: Option<Admitted>,
}

impl Reader {
    /// Sends it events from now on.
    pub(super) fn follow(self, lines: &Lines, tracker: Arc<Tracker>) -> Stream {
        let Self { filter, paths, admitted } = self;
        let (permit, pass) = admitted.map(|Admitted { permit, pass }| (permit, pass)).unzip();
        let (sender, queue) = mpsc::channel(READER_QUEUE);
        let mut lines = lines.subscribe();
        tokio::spawn(async move {
            let ended = ended(pass);
            tokio::pin!(ended);
            loop {
                let line = tokio::select! {
                    line = Line::next(&mut lines, &tracker) => line,
                    () = sender.closed() => None,
                    () = &mut ended => None,
                };
                let Some(line) = line else { return };
                if !filter.lets(&line.notice) {
                    continue;
                }
                let json = if paths { line.json } else { line.without_paths() };
                if sender.send(json).await.is_err() {
                    return;
                }
            }
        });
        Stream { queue, _permit: permit }
    }
}

/// Waits until what a reader has shown isn't enough any more.
async fn ended(pass: Option<Pass>) {
    match pass {
        Some(pass) => {
            while pass.holds().await {
                tokio::time::sleep(EVERY).await;
            }
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(container: &str, kind: &str) -> Notice {
        Notice {
            event: "opened".into(),
            container_id: container.into(),
            kind: Some(kind.into()),
            lost: None,
            ..Notice::lost(0)
        }
    }

    #[test]
    fn filters() {
        let filter = Filter::parse("container=web&kind=pidfd&kind=io_uring&other=1").unwrap();
        assert!(filter.lets(&notice("web", "pidfd")));
        assert!(filter.lets(&notice("web", "io_uring")));
        assert!(!filter.lets(&notice("web", "eventfd")));
        assert!(!filter.lets(&notice("db", "pidfd")));
        assert!(filter.lets(&Notice::lost(1)));
        assert!(Filter::parse("").unwrap().lets(&notice("db", "eventfd")));
        assert_eq!(Filter::parse(&filter.query()).as_ref(), Ok(&filter));
        assert!(Filter::parse("kind=pidfds").unwrap_err().contains("io_uring"));
    }

    #[test]
    fn a_line_ends() {
        let line = Line::new(notice("web", "pidfd"));
        assert_eq!(line.json.last(), Some(&b'\n'));
        assert_eq!(line.json.iter().filter(|b| **b == b'\n').count(), 1);
    }

    #[test]
    fn paths_are_left_out() {
        let mut secret = notice("web", "regular");
        secret.link = Some("/home/me/secret (deleted)".into());
        let line = Line::new(secret);
        assert!(String::from_utf8_lossy(&line.json).contains("secret"));
        let line = line.without_paths();
        assert!(!String::from_utf8_lossy(&line).contains("secret"));
        assert_eq!(line.last(), Some(&b'\n'));
    }
}
