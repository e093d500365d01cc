//! Keeps the totals of cgroups that have gone, because a counter must not decrease when a cgroup is
//! removed.

use std::collections::BTreeMap;

use tracker_ebpf::Flow;

use super::Totals;
use crate::runtime::Owner;

/// Identifies an owner, without what else is known of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OwnerKey {
    /// The host.
    Host,
    /// An owner that isn't known.
    Unknown,
    /// A container, by its cgroup.
    Container(String),
}

impl OwnerKey {
    /// Returns the key of an owner.
    #[must_use]
    pub fn of(owner: &Owner) -> Self {
        match owner {
            Owner::Host => Self::Host,
            Owner::Unknown => Self::Unknown,
            Owner::Container(container) => Self::Container(container.cgroup.clone()),
        }
    }
}

/// Totals of cgroups that have gone, by owner.
#[derive(Debug, Default)]
pub struct Ledger {
    retired: BTreeMap<OwnerKey, Totals>,
}

impl Ledger {
    /// Keeps the totals of a cgroup that has gone.
    pub fn retire(&mut self, owner: &Owner, flow: &Flow) {
        self.retired.entry(OwnerKey::of(owner)).or_default().add(flow);
    }

    /// Returns what was kept for an owner.
    #[must_use]
    pub fn retired(&self, key: &OwnerKey) -> Totals {
        self.retired.get(key).copied().unwrap_or_default()
    }

    /// Forgets containers that have gone, whose series end.
    pub fn retain_containers(&mut self, is_there: impl Fn(&str) -> bool) {
        self.retired.retain(|key, _| match key {
            OwnerKey::Host | OwnerKey::Unknown => true,
            OwnerKey::Container(cgroup) => is_there(cgroup),
        });
    }
}

#[cfg(test)]
mod tests {
    use tracker_ebpf::Kind;

    use super::*;

    #[test]
    fn what_is_retired_adds_up_until_its_container_goes() {
        let mut flow = Flow { opened: [0; Kind::COUNT], closed: [0; Kind::COUNT] };
        flow.opened[Kind::Pidfd.index()] = 2;
        let mut ledger = Ledger::default();
        ledger.retire(&Owner::Host, &flow);
        ledger.retire(&Owner::Host, &flow);
        assert_eq!(ledger.retired(&OwnerKey::Host).opened.get(Kind::Pidfd), 4);
        let gone = OwnerKey::Container("/gone".into());
        ledger.retired.insert(gone.clone(), Totals::default());
        ledger.retain_containers(|_| false);
        assert!(!ledger.retired.contains_key(&gone));
        assert_eq!(ledger.retired(&OwnerKey::Host).opened.get(Kind::Pidfd), 4);
    }
}
