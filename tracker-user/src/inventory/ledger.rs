//! What cgroups that have gone had counted: a counter must not fall because a cgroup was removed.

use std::collections::BTreeMap;

use tracker_ebpf::Flow;

use super::Totals;
use crate::runtime::Owner;

/// Who is meant, without what is known of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The host.
    Host,
    /// Nobody that can be told.
    Unknown,
    /// A container, by its cgroup.
    Container(String),
}

impl Key {
    /// The key of an owner.
    #[must_use]
    pub fn of(owner: &Owner) -> Self {
        match owner {
            Owner::Host => Self::Host,
            Owner::Unknown => Self::Unknown,
            Owner::Container(container) => Self::Container(container.cgroup.clone()),
        }
    }
}

/// Totals of cgroups that have gone, by whom they belonged to.
#[derive(Debug, Default)]
pub struct Ledger {
    retired: BTreeMap<Key, Totals>,
}

impl Ledger {
    /// Keeps what a cgroup counted, which is no more.
    pub fn retire(&mut self, owner: &Owner, flow: &Flow) {
        self.retired.entry(Key::of(owner)).or_default().add(flow);
    }

    /// What was kept for an owner.
    #[must_use]
    pub fn retired(&self, key: &Key) -> Totals {
        self.retired.get(key).copied().unwrap_or_default()
    }

    /// Forgets containers that have gone: their series end.
    pub fn retain_containers(&mut self, is_there: impl Fn(&str) -> bool) {
        self.retired.retain(|key, _| match key {
            Key::Host | Key::Unknown => true,
            Key::Container(cgroup) => is_there(cgroup),
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
        assert_eq!(ledger.retired(&Key::Host).opened.get(Kind::Pidfd), 4);
        let gone = Key::Container("/gone".into());
        ledger.retired.insert(gone.clone(), Totals::default());
        ledger.retain_containers(|_| false);
        assert!(!ledger.retired.contains_key(&gone));
        assert_eq!(ledger.retired(&Key::Host).opened.get(Kind::Pidfd), 4);
    }
}
