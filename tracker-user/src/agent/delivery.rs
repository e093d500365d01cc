//! Delivers events, once their owner is known.

use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tracker_ebpf::Kind;

use super::inspections::Changed;
use crate::{
    api::{Details, Feed, Notice},
    bpf::{Change, Event},
    runtime::Owner,
    verdict::Judge,
};

/// Delivers events to subscribers, and notifies the tasks that have work to do because of them.
#[derive(Clone)]
pub(super) struct Delivery {
    pub(super) feed: Feed,
    pub(super) judge: watch::Receiver<Arc<Judge>>,
    /// Containers that must be inspected.
    pub(super) changed: Arc<Changed>,
    /// Notified when a verdict may have changed.
    pub(super) verdicts: Arc<Notify>,
}

impl Delivery {
    /// Whether the event lacks something that subscribers are shown.
    pub(super) fn needs_details(&self, event: &Event) -> bool {
        self.feed.is_followed() && (event.comm.is_none() || has_link(event).is_some())
    }

    /// Delivers an event.
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

/// Returns the fd whose link in `/proc` tells what was opened, if its kind has no name of its own.
pub(super) fn has_link(event: &Event) -> Option<u32> {
    match event.change {
        Change::Opened { fd, tag } if tag.kind() == Some(Kind::AnonOther) => Some(fd),
        _ => None,
    }
}
