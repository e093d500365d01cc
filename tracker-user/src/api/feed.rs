//! Sends events to subscribers.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::broadcast::{self, error::RecvError};
use tracker_ebpf::Kind;

use super::{EventName, Notice};

/// An event as subscribers get it: encoded once for all of them.
#[derive(Clone, Debug)]
pub struct Line {
    /// The notice.
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

    /// Returns the line for a subscriber who may not see paths of files.
    #[must_use]
    pub fn without_paths(self) -> Bytes {
        if self.notice.has_paths() {
            let mut notice = self.notice.as_ref().clone();
            notice.hide_paths();
            Self::new(notice).json
        } else {
            self.json
        }
    }
}

/// Sends every event to all subscribers. Clones share the subscribers.
#[derive(Clone, Debug)]
pub struct Feed {
    lines: broadcast::Sender<Line>,
    /// Events that subscribers were too slow for, added up.
    missed: Arc<AtomicU64>,
    /// Events that were lost before they could be sent, because there was no room.
    dropped: Arc<AtomicU64>,
}

impl Default for Feed {
    fn default() -> Self {
        let lines = broadcast::channel(Self::BACKLOG).0;
        Self { lines, missed: Arc::default(), dropped: Arc::default() }
    }
}

impl Feed {
    /// The number of lines that are kept for the slowest subscriber. If one falls further behind,
    /// it is told how many events it missed.
    pub const BACKLOG: usize = 8_192;

    /// Whether there are subscribers.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        self.lines.receiver_count() > 0
    }

    /// Sends an event.
    pub fn publish(&self, notice: Notice) {
        if self.is_followed() {
            // An error means that the last subscriber has just gone.
            let _ = self.lines.send(Line::new(notice));
        }
    }

    /// Creates a subscription to all events from now on.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        Subscription { lines: self.lines.subscribe(), missed: Arc::clone(&self.missed) }
    }

    /// Returns how many lines the slowest subscriber has not taken yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lines.len()
    }

    /// Counts events that are lost before they could be sent.
    pub fn count_dropped(&self, events: u64) {
        self.dropped.fetch_add(events, Ordering::Relaxed);
    }

    /// Returns how many events were lost before they could be sent.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Returns how many events subscribers were too slow for.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}

/// One subscriber's end of a [`Feed`].
#[derive(Debug)]
pub struct Subscription {
    lines: broadcast::Receiver<Line>,
    missed: Arc<AtomicU64>,
}

impl Subscription {
    /// Returns the next event; `None` when there are no more. A subscriber that was too slow is
    /// told how many it missed.
    pub async fn next(&mut self) -> Option<Line> {
        match self.lines.recv().await {
            Ok(line) => Some(line),
            Err(RecvError::Lagged(missed)) => {
                self.missed.fetch_add(missed, Ordering::Relaxed);
                Some(Line::new(Notice::lost(missed)))
            }
            Err(RecvError::Closed) => None,
        }
    }
}

/// Selects the events that one subscriber gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// A container's full id, or its name; all if `None`.
    pub container: Option<String>,
    /// Kinds; all if empty.
    pub kinds: Vec<Kind>,
}

/// A query names an unknown kind.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("no such kind: {wrong:?}; there are {}", names())]
pub struct FilterError {
    wrong: String,
}

fn names() -> String {
    Kind::ALL.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
}

impl Filter {
    /// Parses a query. Ignores other parameters.
    ///
    /// # Errors
    /// When it names an unknown kind.
    pub fn parse(query: &str) -> Result<Self, FilterError> {
        let mut filter = Self::default();
        for (name, value) in parameters(query) {
            match name {
                "container" => filter.container = Some(value.to_owned()),
                "kind" => {
                    let kind = Kind::from_name(value);
                    filter.kinds.push(kind.ok_or_else(|| FilterError { wrong: value.to_owned() })?);
                }
                _ => {}
            }
        }
        Ok(filter)
    }

    /// Returns the query for this filter. Ids and names of kinds contain no character that must be
    /// escaped.
    #[must_use]
    pub fn query(&self) -> String {
        let container = self.container.iter().map(|id| format!("container={id}"));
        let kinds = self.kinds.iter().map(|kind| format!("kind={}", kind.name()));
        container.chain(kinds).collect::<Vec<_>>().join("&")
    }

    /// Whether a notice matches. Losses always match. `unblocked` matches every kind, because the
    /// subscriber may have been told of the blocker.
    #[must_use]
    pub fn matches(&self, notice: &Notice) -> bool {
        notice.lost.is_some()
            || self.container.as_ref().is_none_or(|c| [&notice.container_id, &notice.container].contains(&c))
                && (self.kinds.is_empty()
                    || notice.event == EventName::Unblocked
                    || self.kinds.iter().any(|kind| notice.is_about(*kind)))
    }
}

/// Returns the parameters of a query.
pub fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter_map(|pair| pair.split_once('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(container: &str, kind: &str) -> Notice {
        Notice {
            event: EventName::Opened,
            container_id: container.into(),
            kind: Some(Kind::from_name(kind).unwrap().into()),
            lost: None,
            ..Notice::lost(0)
        }
    }

    #[test]
    fn filters() {
        let filter = Filter::parse("container=web&kind=pidfd&kind=io_uring&other=1").unwrap();
        assert!(filter.matches(&notice("web", "pidfd")));
        assert!(filter.matches(&notice("web", "io_uring")));
        assert!(!filter.matches(&notice("web", "eventfd")));
        assert!(!filter.matches(&notice("db", "pidfd")));
        assert!(filter.matches(&Notice::lost(1)));
        assert!(Filter::parse("").unwrap().matches(&notice("db", "eventfd")));
        assert_eq!(Filter::parse(&filter.query()).as_ref(), Ok(&filter));
        assert!(Filter::parse("kind=pidfds").unwrap_err().to_string().contains("io_uring"));
    }

    #[test]
    fn a_line_ends() {
        let line = Line::new(notice("web", "pidfd"));
        assert_eq!(line.json.last(), Some(&b'\n'));
        assert!(!line.json.trim_ascii_end().contains(&b'\n'));
    }

    #[test]
    fn paths_are_left_out() {
        let mut secret = notice("web", "anon_other");
        secret.link = Some("/home/me/secret (deleted)".into());
        let line = Line::new(secret);
        assert!(String::from_utf8_lossy(&line.json).contains("secret"));
        let line = line.without_paths();
        assert!(!String::from_utf8_lossy(&line).contains("secret"));
        assert_eq!(line.last(), Some(&b'\n'));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_slow_subscriber_is_told_what_it_missed() {
        let feed = Feed::default();
        feed.publish(Notice::lost(0));
        let mut slow = feed.subscribe();
        (0..Feed::BACKLOG + 3).for_each(|_| feed.publish(notice("web", "pidfd")));
        assert_eq!(slow.next().await.unwrap().notice.lost, Some(3));
        assert_eq!((feed.missed(), feed.waiting()), (3, Feed::BACKLOG));
        assert_eq!(slow.next().await.unwrap().notice.container_id, "web");
    }
}
