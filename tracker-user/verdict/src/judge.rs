//! Rules, applied to what is known of a file.

use std::{array, collections::BTreeSet};

use tracker_ebpf::Kind;

use crate::{
    FileKind, NOT_KNOWN, Pass, Profile, Reason, Verdict, fact,
    facts::{Fact, Facts, Value},
    rules::{Matches, Message, Rule, Rules},
};

/// What says what CRIU would make of files: rules, and the CRIU that they are asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judge {
    rules: Rules,
    profile: Profile,
    /// What follows from a kind alone.
    by_kind: [Verdict; Kind::COUNT],
}

/// Why a file isn't dumped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// `needs_option`, `unknown` or `blocked`.
    pub verdict: Verdict,
    /// The rule's reason, or [`NOT_KNOWN`].
    pub reason: Reason,
    /// When CRIU finds it out.
    pub pass: Pass,
    /// What CRIU says; nothing if it can't be told.
    pub message: String,
    /// What to do.
    pub remedy: String,
    /// Options, one of which would help.
    pub options: Vec<String>,
}

impl Judge {
    /// Makes a judge for this CRIU.
    #[must_use]
    pub fn new(rules: Rules, profile: Profile) -> Self {
        let mut judge = Self { rules, profile, by_kind: [Verdict::Unknown; Kind::COUNT] };
        let nothing = Facts::default();
        judge.by_kind = array::from_fn(|index| {
            Kind::from_index(index).map_or(Verdict::Unknown, |kind| judge.worst(kind.into(), &nothing))
        });
        judge
    }

    /// Returns the CRIU that it judges for.
    #[must_use]
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Returns its rules.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Makes a judge with the same rules for another CRIU.
    #[must_use]
    pub fn with_profile(&self, profile: Profile) -> Self {
        Self::new(self.rules.clone(), profile)
    }

    /// Says what CRIU would make of a file of which only the kind is known. An fd in flight is to
    /// be judged by what it is.
    #[must_use]
    pub fn kind(&self, kind: Kind) -> Verdict {
        self.by_kind.get(kind.index()).copied().unwrap_or(Verdict::Unknown)
    }

    /// Says the worst that CRIU would make of a file.
    #[must_use]
    pub fn worst(&self, kind: FileKind, facts: &Facts) -> Verdict {
        self.file(kind, facts).iter().map(|judgement| judgement.verdict).max().unwrap_or(Verdict::Ok)
    }

    /// Says why CRIU wouldn't dump a file, in the order in which it would find out: at most one
    /// reason of each pass. An empty list means that it would.
    #[must_use]
    pub fn file(&self, kind: FileKind, facts: &Facts) -> Vec<Judgement> {
        let mut passes: BTreeSet<Pass> = self.rules.of_kind(kind).map(|rule| rule.pass).collect();
        passes.insert(Pass::File);
        passes.into_iter().filter_map(|pass| self.pass(kind, facts, pass)).collect()
    }

    fn pass(&self, kind: FileKind, facts: &Facts, pass: Pass) -> Option<Judgement> {
        let lookup = |fact| self.lookup(facts, fact);
        let mut possible: Vec<&Rule> = Vec::new();
        let mut missing: BTreeSet<Fact> = BTreeSet::new();
        let mut decided = false;
        for rule in self.rules.of_kind(kind).filter(|rule| rule.pass == pass) {
            match rule.matches(lookup, &self.profile) {
                Matches::No => continue,
                Matches::Yes => decided = true,
                Matches::Unknown(facts) => missing.extend(facts),
            }
            possible.push(rule);
            if decided {
                break;
            }
        }
        // Where no rule decides, CRIU has nothing to say, but in the pass that every file goes
        // through.
        let otherwise = (!decided).then_some(if pass == Pass::File { Verdict::Unknown } else { Verdict::Ok });
        let verdicts: BTreeSet<Verdict> = possible.iter().map(|rule| rule.verdict).chain(otherwise).collect();
        match (verdicts.len(), verdicts.first(), possible.last()) {
            (1, Some(Verdict::Ok), _) => None,
            (1, _, Some(rule)) => Some(by_rule(rule, lookup)),
            _ => Some(not_known(pass, &missing, facts)),
        }
    }

    /// Looks up what is known of a file, or of CRIU.
    fn lookup<'a>(&'a self, facts: &'a Facts, fact: Fact) -> Option<&'a Value> {
        const NO: &Value = &Value::Bool(false);
        let known = facts.value(fact).or_else(|| self.profile.build.value(fact));
        // Where nothing is external this file isn't.
        let nothing = fact == fact::EXTERNAL && self.profile.options.external.is_empty();
        known.or(nothing.then_some(NO))
    }
}

fn by_rule<'a>(rule: &Rule, lookup: impl Fn(Fact) -> Option<&'a Value>) -> Judgement {
    let fill = |message: &Message| message.fill(&lookup);
    Judgement {
        verdict: rule.verdict,
        reason: rule.reason.clone(),
        pass: rule.pass,
        message: fill(&rule.message),
        remedy: fill(&rule.remedy),
        options: rule.options.iter().map(fill).collect(),
    }
}

fn not_known(pass: Pass, missing: &BTreeSet<Fact>, facts: &Facts) -> Judgement {
    let why = facts.get(fact::WHY).map(|why| format!(": {why}")).unwrap_or_default();
    let remedy = if missing.is_empty() && !why.is_empty() {
        format!("it could not be looked at{why}")
    } else if missing.is_empty() {
        "no rule is about such a file".to_owned()
    } else {
        let meanings: Vec<&str> = missing.iter().map(|fact| fact.meaning().trim_end_matches('.')).collect();
        format!("it depends on what isn't known{why} ({})", meanings.join("; "))
    };
    Judgement {
        verdict: Verdict::Unknown,
        reason: NOT_KNOWN,
        pass,
        message: String::new(),
        remedy,
        options: Vec::new(),
    }
}
