//! Losses: what had no room, or could not be followed.

use tracker_ebpf::Loss;

use crate::{maps::LOSSES, value::Find as _};

/// Counts a loss.
#[inline(always)]
pub(crate) fn lose(loss: Loss) {
    if let Some(counter) = LOSSES.find(loss as u32) {
        counter.add(1);
    }
}
