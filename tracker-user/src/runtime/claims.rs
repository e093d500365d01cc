//! Decides which cgroup an id belongs to. Pure.
//!
//! An id stands in a cgroup's name, and whoever may make cgroups (a container below its own cgroup,
//! a user below theirs) may give them any name. So they could write the id of another's container,
//! and would then be shown under that container's name.

use std::collections::HashMap;

use super::{names::is_engine_id, path::Identity};

/// How good a cgroup's claim to an id is: the least rank has the best claim.
///
/// No engine gives the id of one container to another. So the rightful cgroup existed before the
/// others, unless its container was restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) is_gone: bool,
    /// The number of containers that it is in, including itself.
    pub(super) depth: usize,
    pub(super) is_users: bool,
    /// The cgroup's id: the kernel numbers cgroups in the order in which they are made.
    pub(super) number: u64,
}

/// The cgroups with the best claims to ids, of those seen so far.
#[derive(Debug, Default)]
pub(super) struct Claims(HashMap<String, String>);

impl Claims {
    /// Forgets all claims.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether a cgroup rightfully has the id in its name, as far as is known now.
    pub(super) fn claim(&mut self, identity: &Identity, rank: impl Fn(&str) -> Rank) -> bool {
        let Identity { id, cgroup, .. } = identity;
        // Names that people chose may be the same as those of containers inside other containers.
        if !is_engine_id(id) {
            return true;
        }
        match self.0.get(id) {
            Some(holder) if is_in(cgroup, holder) || is_in(holder, cgroup) => return true,
            Some(holder) if rank(holder) <= rank(cgroup) => return false,
            _ => {}
        }
        self.0.insert(id.clone(), cgroup.clone());
        true
    }
}

/// Whether one cgroup is the other, or is below it: a container may use its own id there.
fn is_in(cgroup: &str, other: &str) -> bool {
    cgroup.strip_prefix(other).is_some_and(|below| below.is_empty() || below.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::path::{candidates, identify};

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    /// Takes all cgroups, in the order in which they were made. Returns those that have their ids,
    /// in whatever order they are seen.
    fn have(cgroups: &[(&str, bool)]) -> Vec<bool> {
        let cgroups: Vec<_> =
            cgroups.iter().map(|(path, user)| (path.replace('A', A).replace('B', B), *user)).collect();
        let rank = |path: &str| {
            let number = cgroups.iter().position(|(known, _)| known == path);
            let is_users = number.is_some_and(|at| cgroups[at].1);
            let number = number.unwrap_or_default() as u64;
            Rank { is_gone: false, depth: candidates(path).count(), is_users, number }
        };
        let found = |is_reversed: bool| {
            let mut claims = Claims::default();
            let mut ids: Vec<Identity> = cgroups.iter().map(|(path, _)| identify(path).unwrap()).collect();
            if is_reversed {
                ids.reverse();
            }
            for id in &ids {
                claims.claim(id, rank);
            }
            let mut have: Vec<bool> = ids.iter().map(|id| claims.claim(id, rank)).collect();
            if is_reversed {
                have.reverse();
            }
            have
        };
        assert_eq!(found(false), found(true));
        found(false)
    }

    #[test]
    fn a_container_cant_take_anothers_id() {
        assert_eq!(have(&[("/docker/B", false), ("/docker/A/docker-B.scope", false)]), [true, false]);
        // The same if it was restarted.
        assert_eq!(have(&[("/docker/A/docker-B.scope", false), ("/docker/B", false)]), [false, true]);
        let inner = "/docker/B/kubepods/podx/A";
        assert_eq!(have(&[(inner, false), ("/lxc/web/docker-A.scope", false)]), [true, false]);
    }

    #[test]
    fn a_user_cant_either() {
        let users = "/user.slice/user-1000.slice/docker-B.scope";
        assert_eq!(have(&[(users, true), ("/system.slice/docker-B.scope", false)]), [false, true]);
        assert_eq!(
            have(&[(users, true), ("/user.slice/user-1001.slice/docker-B.scope", true)]),
            [true, false]
        );
    }

    #[test]
    fn nested_ones_have_theirs() {
        assert_eq!(have(&[("/docker/A", false), ("/docker/A/docker/B", false)]), [true, true]);
        let scope = "/machine.slice/libpod-B.scope";
        assert_eq!(have(&[(scope, false), (&format!("{scope}/container"), false)]), [true, true]);
        assert_eq!(have(&[("/lxc/web", false), ("/lxc/web/lxc/web", false)]), [true, true]);
    }

    #[test]
    fn what_has_gone_has_none() {
        let rank = |path: &str| Rank {
            is_gone: path.starts_with("/docker"),
            depth: 1,
            is_users: false,
            number: path.len() as u64,
        };
        let mut claims = Claims::default();
        let [old, new] = ["/docker/", "/a.slice/libpod-payload-"].map(|path| format!("{path}{B}"));
        for path in [old, new] {
            assert!(claims.claim(&identify(&path).unwrap(), rank));
        }
    }
}
