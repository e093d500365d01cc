//! Whose an id is. A cgroup's name has it, and whoever may make cgroups, a container below its own or a user below theirs, gives them any name:
//! also one with the id of another's container, and with it would be called as that is. Pure.

use std::collections::HashMap;

use super::{names::is_engine_id, path::Identity};

/// By what one of several cgroups has the better claim to an id; the least has. No container is given the id of another, so the one that
/// has it by right was there before the others, unless it was started anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) is_gone: bool,
    /// Containers that it is in, itself among them.
    pub(super) depth: usize,
    pub(super) is_users: bool,
    /// The kernel numbers cgroups as they come.
    pub(super) number: u64,
}

/// The cgroups that have the best claims to ids, of those seen so far.
#[derive(Debug, Default)]
pub(super) struct Claims(HashMap<String, String>);

impl Claims {
    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether a cgroup has the id that its name says, as far as is known by now.
    pub(super) fn claim(&mut self, identity: &Identity, rank: impl Fn(&str) -> Rank) -> bool {
        let Identity { id, cgroup, .. } = identity;
        // Names that people give may well be those of other containers' inner ones.
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

/// A container's id is its own also below its cgroup.
fn is_in(cgroup: &str, other: &str) -> bool {
    cgroup.strip_prefix(other).is_some_and(|below| below.is_empty() || below.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::path::{candidates, identify};

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    /// All cgroups there are, in the order in which they came. Returns which have their ids, whichever is seen first.
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
        // Also if it was started anew.
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
