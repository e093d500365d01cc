//! What an event leads to, once its owner is known.

use std::sync::Arc;

use tokio::sync::{Notify, watch};

use super::inspections::Changed;
use crate::{
    api::{Details, Feed, Notice},
    bpf::{Change, Event},
    runtime::Owner,
    verdict::Judge,
};
use tracker_ebpf::Kind;

/// Hands events on: to subscribers, and to those tasks that have work to do because of them.
#[derive(Clone)]
pub(super) struct Delivery {
    pub(super) feed: Feed,
    pub(super) judge: watch::Receiver<Arc<Judge>>,
    /// Containers that are to be inspected.
    pub(super) changed: Arc<Changed>,
    /// Told when a verdict may be another.
    pub(super) verdicts: Arc<Notify>,
}

impl Delivery {
    /// Whether more must be known of an event than it says itself.
    pub(super) fn needs_details(&self, event: &Event) -> bool {
        self.feed.is_followed() && (event.comm.is_none() || has_link(event).is_some())
    }

    /// Hands an event on.
    pub(super) fn deliver(&self, event: &Event, owner: &Owner, details: Details) {
        if let Owner::Container(container) = owner {
            self.changed.add(container);
            self.verdicts.notify_one();
        }
        if self.feed.is_followed()
            && let Some(notice) = Notice::new(event, owner, details, &self.judge.borrow())
        {
            self.feed.publish(notice);
        }
    }
}

/// The fd whose link tells what was opened, if its kind has no name of its own.
pub(super) fn has_link(event: &Event) -> Option<u32> {
    match event.change {
        Change::Opened { fd, tag } if tag.kind() == Some(Kind::AnonOther) => Some(fd),
        _ => None,
    }
}
