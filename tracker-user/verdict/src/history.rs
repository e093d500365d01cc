//! What became of containers in time: what the last inspection found, and for how long each could
//! not be dumped.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use crate::{Assessment, Verdict};

/// What is told of a history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// When the container could last be dumped, if ever while this was known.
    pub last_ok: Option<SystemTime>,
    /// For how long it could not be dumped, or only with an option, in all.
    pub blocked: Duration,
}

/// The history of a container.
#[derive(Clone, Debug, Default)]
struct History {
    /// What the last inspection found.
    assessment: Option<Arc<Assessment>>,
    /// Up to when its verdict was last noted.
    summary: Summary,
    /// Its verdict when it was last noted, and when that was.
    noted: Option<(Verdict, Instant)>,
    /// What was last told of it: whether it can be dumped.
    told: Option<bool>,
}

impl History {
    /// Notes its verdict as of now. The one before was so up to now.
    fn note(&mut self, verdict: Verdict, now: (Instant, SystemTime)) {
        if let Some((before, _)) = self.noted {
            self.summary = self.summary(before, now);
        }
        if could_be_dumped(verdict) == Some(true) {
            self.summary.last_ok = Some(now.1);
        }
        self.noted = Some((verdict, now.0));
    }

    /// What is told of it, up to now, when this is its verdict. The verdict that was noted last
    /// counts until another is noted, because a counter must not fall. But nobody is told that a
    /// container can be dumped now if that isn't known.
    fn summary(&self, verdict: Verdict, now: (Instant, SystemTime)) -> Summary {
        let mut summary = self.summary;
        let Some((noted, since)) = self.noted else { return summary };
        match (could_be_dumped(noted), could_be_dumped(verdict)) {
            (Some(true), Some(true)) => summary.last_ok = Some(now.1),
            (Some(false), _) => summary.blocked += now.0.saturating_duration_since(since),
            _ => {}
        }
        summary
    }

    /// Whether it can be dumped, if that is news: it could not before, or the other way round.
    fn change(&mut self, verdict: Verdict) -> Option<bool> {
        let now = could_be_dumped(verdict)?;
        let before = self.told.replace(now);
        // That nothing stands in the way is no news of a container that is new.
        (before.unwrap_or(true) != now).then_some(now)
    }
}

/// Whether a container can be dumped as it is; `None` if that can't be told.
const fn could_be_dumped(verdict: Verdict) -> Option<bool> {
    match verdict {
        Verdict::Ok => Some(true),
        Verdict::NeedsOption | Verdict::Blocked => Some(false),
        Verdict::Unknown => None,
    }
}

/// The histories of all containers, by their cgroups: ids are not unique.
#[derive(Debug, Default)]
pub struct Histories(BTreeMap<String, History>);

impl Histories {
    /// Takes over what an inspection found. Returns whether the container can be dumped, if that is
    /// news.
    pub fn learn(
        &mut self,
        cgroup: &str,
        assessment: Arc<Assessment>,
        now: (Instant, SystemTime),
    ) -> Option<bool> {
        let history = self.0.entry(cgroup.to_owned()).or_default();
        let verdict = assessment.verdict.unwrap_or(Verdict::Unknown);
        history.note(verdict, now);
        history.assessment = Some(assessment);
        history.change(verdict)
    }

    /// Forgets what the last inspection of a container found.
    pub fn forget_inspection(&mut self, cgroup: &str) {
        if let Some(history) = self.0.get_mut(cgroup) {
            history.assessment = None;
        }
    }

    /// Forgets what all inspections found.
    pub fn forget_inspections(&mut self) {
        self.0.values_mut().for_each(|history| history.assessment = None);
    }

    /// Notes the verdict of a container as of now.
    pub fn note(&mut self, cgroup: &str, verdict: Verdict, now: (Instant, SystemTime)) {
        self.0.entry(cgroup.to_owned()).or_default().note(verdict, now);
    }

    /// A container's history up to now, when this is its verdict. To be read changes nothing.
    #[must_use]
    pub fn summary(&self, cgroup: &str, verdict: Verdict, now: (Instant, SystemTime)) -> Summary {
        self.0.get(cgroup).map(|history| history.summary(verdict, now)).unwrap_or_default()
    }

    /// What the last inspection of a container found.
    #[must_use]
    pub fn assessment(&self, cgroup: &str) -> Option<Arc<Assessment>> {
        self.0.get(cgroup)?.assessment.clone()
    }

    /// Forgets containers that are no more.
    pub fn retain<'a>(&mut self, cgroups: impl Iterator<Item = &'a str>) {
        let cgroups: BTreeSet<&str> = cgroups.collect();
        self.0.retain(|cgroup, _| cgroups.contains(cgroup.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assessment(verdict: Verdict) -> Arc<Assessment> {
        let mut assessment = Assessment::default();
        assessment.verdict = Some(verdict);
        Arc::new(assessment)
    }

    #[test]
    fn only_changes_are_told() {
        let mut all = Histories::default();
        let now = (Instant::now(), SystemTime::UNIX_EPOCH);
        let mut learn = |verdict| all.learn("/web", assessment(verdict), now);
        assert_eq!(learn(Verdict::Ok), None);
        assert_eq!(learn(Verdict::Blocked), Some(false));
        assert_eq!(learn(Verdict::NeedsOption), None);
        assert_eq!(learn(Verdict::Unknown), None);
        assert_eq!(learn(Verdict::Ok), Some(true));
        assert_eq!(all.learn("/db", assessment(Verdict::Blocked), now), Some(false));
    }

    #[test]
    fn time_adds_up() {
        let mut all = Histories::default();
        let (start, wall) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let at = |seconds| (start + Duration::from_secs(seconds), wall + Duration::from_secs(seconds));
        let summary_with = |all: &Histories, verdict, seconds| {
            let Summary { last_ok, blocked } = all.summary("/web", verdict, at(seconds));
            (blocked.as_secs(), last_ok.map(|at| at.duration_since(wall).unwrap().as_secs()))
        };
        let summary = |all: &Histories, seconds| summary_with(all, Verdict::Ok, seconds);
        assert_eq!(summary(&all, 0), (0, None));
        all.note("/web", Verdict::Ok, at(1));
        all.note("/web", Verdict::Blocked, at(2));
        // Time passes, whether anybody reads it or not.
        assert_eq!(summary(&all, 4), (2, Some(2)));
        assert_eq!(summary(&all, 3), (1, Some(2)));
        all.note("/web", Verdict::Unknown, at(5));
        all.note("/web", Verdict::Blocked, at(9));
        assert_eq!(summary(&all, 9), (3, Some(2)));
        // An inspection is a note, too.
        all.learn("/web", assessment(Verdict::Ok), at(10));
        assert_eq!(summary(&all, 20), (4, Some(20)));
        assert_eq!(summary_with(&all, Verdict::Unknown, 20), (4, Some(10)));
        all.forget_inspection("/web");
        assert!(all.assessment("/web").is_none());
        all.learn("/web", assessment(Verdict::Unknown), at(21));
        all.forget_inspections();
        assert!(all.assessment("/web").is_none());
        assert_eq!(summary(&all, 30), (4, Some(21)));
        all.retain(["/db"].into_iter());
        assert_eq!(summary(&all, 30), (0, None));
    }
}
