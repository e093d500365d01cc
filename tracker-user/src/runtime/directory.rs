//! The names of containers, as runtimes tell them. Lookups write here, the resolver reads, and
//! nobody waits.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::names::{Names, is_engine_id};

/// The most containers that are remembered from one source, and from a source that is a user's.
pub(super) const CONTAINERS: usize = 10_000;
pub(super) const USERS_CONTAINERS: usize = 1_000;

/// The most pairs of source and result that are counted separately, because users' sockets come and
/// go.
const COUNTED: usize = 256;

/// How often each source was asked, by result.
pub type LookupCounts = Vec<(String, &'static str, u64)>;

/// The list that a source gave: names by id.
pub(super) type List = HashMap<String, Names>;

/// Names of containers by their ids, from several sources.
#[derive(Debug)]
pub struct Directory {
    lists: Mutex<Lists>,
    news: watch::Sender<u64>,
    asked: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Lists {
    /// By rank: the most reliable source first.
    by_source: BTreeMap<Key, Listed>,
    counts: BTreeMap<(String, &'static str), u64>,
}

/// A source's rank and name, and the user that it belongs to. A user's source is believed only for
/// the user's own containers.
type Key = (usize, String, Option<u32>);

#[derive(Debug, Default)]
struct Listed {
    names: List,
    /// Whether the last lookup failed, so that the list may be outdated.
    is_old: bool,
}

impl Default for Directory {
    fn default() -> Self {
        let lists = Mutex::default();
        Self { lists, news: watch::Sender::new(0), asked: watch::Sender::new(0) }
    }
}

impl Directory {
    /// Returns what is known of a container. `is_users` tells whether the container belongs to a
    /// user.
    pub(super) fn find(&self, id: &str, is_users: impl Fn(u32) -> bool) -> Option<Names> {
        if !is_engine_id(id) {
            return None;
        }
        let lists = self.lists();
        let listed = |is_old: bool| lists.by_source.iter().filter(move |(_, listed)| listed.is_old == is_old);
        let says = listed(false).chain(listed(true)).filter_map(|((.., user), listed)| {
            let names = listed.names.get(id)?;
            user.is_none_or(&is_users).then_some(names)
        });
        says.fold(None, |known: Option<Names>, names| Some(known.unwrap_or_default().or(names)))
    }

    /// Returns a number that changes whenever something new is known.
    pub(super) fn news(&self) -> u64 {
        *self.news.borrow()
    }

    /// Returns a receiver that is notified when something new is known.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Requests lookups, because there is a container without a name.
    pub(super) fn ask(&self) {
        self.asked.send_modify(|asks| *asks = asks.wrapping_add(1));
    }

    /// Returns a receiver that is notified when lookups are requested.
    pub(super) fn asks(&self) -> watch::Receiver<u64> {
        self.asked.subscribe()
    }

    /// Replaces the list of a source. The lower the rank, the more reliable the source.
    pub(super) fn replace(&self, rank: usize, source: &str, user: Option<u32>, mut names: List) {
        names.retain(|id, names| is_engine_id(id) && *names != Names::default());
        if user.is_some() {
            for names in names.values_mut() {
                *names = std::mem::take(names).without_pod();
            }
        }
        let room = user.map_or(CONTAINERS, |_| USERS_CONTAINERS);
        if names.len() > room {
            let mut ids: Vec<String> = names.keys().cloned().collect();
            ids.sort_unstable();
            ids.iter().skip(room).for_each(|id| drop(names.remove(id)));
        }
        let mut lists = self.lists();
        let listed = lists.by_source.entry((rank, source.to_owned(), user)).or_default();
        if listed.is_old || listed.names != names {
            *listed = Listed { names, is_old: false };
            drop(lists);
            self.news.send_modify(|news| *news = news.wrapping_add(1));
        }
    }

    /// Marks the list of a source that couldn't be asked as old. It is used until another source
    /// tells something else.
    pub(super) fn keep(&self, rank: usize, source: &str) {
        for (_, listed) in self.lists().by_source.iter_mut().filter(|(key, _)| is_of(key, rank, source)) {
            listed.is_old = true;
        }
    }

    /// Counts a lookup.
    pub(super) fn count(&self, source: &str, result: &'static str) {
        let mut lists = self.lists();
        let is_full = lists.counts.len() >= COUNTED;
        let key = (source.to_owned(), result);
        let key = if is_full && !lists.counts.contains_key(&key) { ("other".into(), result) } else { key };
        *lists.counts.entry(key).or_default() += 1;
    }

    /// Returns the lookups so far.
    #[must_use]
    pub fn counts(&self) -> LookupCounts {
        let lists = self.lists();
        lists.counts.iter().map(|((source, result), n)| (source.clone(), *result, *n)).collect()
    }

    fn lists(&self) -> MutexGuard<'_, Lists> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_of(key: &Key, rank: usize, source: &str) -> bool {
    key.0 == rank && key.1 == source
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> String {
        format!("{n:064x}")
    }

    fn list(name: &str) -> List {
        HashMap::from([(id(1), Names::plain(name, None))])
    }

    fn name(directory: &Directory, users: &[u32]) -> Option<String> {
        directory.find(&id(1), |user| users.contains(&user))?.name
    }

    #[test]
    fn a_users_container_is_in_no_pod() {
        let pod = Names::in_pod("shop", "front-1", "nginx", None);
        for (user, expected) in [(None, Some("front-1")), (Some(7), None)] {
            let directory = Directory::default();
            directory.replace(0, "files", user, HashMap::from([(id(1), pod.clone())]));
            let found = directory.find(&id(1), |of| Some(of) == user).unwrap();
            assert_eq!((found.name.as_deref(), found.pod.as_deref()), (Some("nginx"), expected));
        }
    }

    #[test]
    fn the_surest_goes_first_unless_it_is_old() {
        let directory = Directory::default();
        directory.replace(1, "disk", None, list("written"));
        directory.replace(0, "socket", None, list("said"));
        assert_eq!(name(&directory, &[]).as_deref(), Some("said"));
        directory.keep(0, "socket");
        assert_eq!(name(&directory, &[]).as_deref(), Some("written"));
        directory.replace(0, "socket", None, list("said"));
        assert_eq!(name(&directory, &[]).as_deref(), Some("said"));
        directory.replace(0, "socket", None, List::new());
        assert_eq!(name(&directory, &[]).as_deref(), Some("written"));
    }

    #[test]
    fn an_old_name_is_better_than_none() {
        let directory = Directory::default();
        directory.replace(0, "socket", None, list("said"));
        directory.keep(0, "socket");
        assert_eq!(name(&directory, &[]).as_deref(), Some("said"));
        directory.replace(0, "socket", None, List::new());
        assert_eq!(name(&directory, &[]), None);
    }

    #[test]
    fn a_user_has_no_say_about_others() {
        let directory = Directory::default();
        directory.replace(0, "socket", Some(1000), list("mine"));
        assert_eq!(name(&directory, &[1001]), None);
        assert_eq!(name(&directory, &[1000]).as_deref(), Some("mine"));
    }

    #[test]
    fn only_changes_are_news() {
        let directory = Directory::default();
        directory.replace(0, "socket", None, list("a"));
        let before = directory.news();
        directory.replace(0, "socket", None, list("a"));
        assert_eq!(directory.news(), before);
        directory.replace(0, "socket", None, list("b"));
        assert_ne!(directory.news(), before);
    }

    #[test]
    fn it_is_bounded() {
        let directory = Directory::default();
        let many = |n: usize| (0..n).map(|n| (id(n), Names::plain("web", None))).collect();
        directory.replace(0, "socket", None, many(CONTAINERS + 5));
        directory.replace(0, "user", Some(1), many(USERS_CONTAINERS + 5));
        let lists = directory.lists();
        let lens: Vec<usize> = lists.by_source.values().map(|listed| listed.names.len()).collect();
        drop(lists);
        assert_eq!(lens, [CONTAINERS, USERS_CONTAINERS]);
        (0..1_000).for_each(|n| directory.count(&format!("source {n}"), "ok"));
        let counts = directory.counts();
        assert_eq!(counts.iter().map(|(.., n)| n).sum::<u64>(), 1_000);
        assert!(counts.len() <= COUNTED + 10);
    }

    #[test]
    fn names_that_may_be_anybodys_arent_taken() {
        let directory = Directory::default();
        directory.replace(0, "socket", None, HashMap::from([("web".into(), Names::plain("other", None))]));
        assert_eq!(directory.find("web", |_| true), None);
    }
}
