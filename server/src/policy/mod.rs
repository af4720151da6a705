//! What is kept for how long: classes with floor and ceiling, which stream is of which class, and legal holds.
//!
//! Invariants:
//! 1. `floor_days <= keep_days <= ceiling_days` for every class, whoever asks for what.
//! 2. Age counts from the day of receipt on the server's time ([`crate::time`]), never from a time that a log line
//!    claims, and never from a clock that nobody confirmed.

mod law;
pub(crate) mod waiting;

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use anyhow::{Context as _, Result, bail, ensure};
use globset::{GlobBuilder, GlobMatcher};
use scrinium_protocol::identity::{AgentId, StreamKind};

pub(crate) use self::law::check_hold;
use self::law::{DAYS_MAX, check_bounds, check_rules};
use self::waiting::Waiting;
use crate::agents::{Agents, check_name};
use crate::archive::container::parse_recipient;
use crate::archive::retention::Reason;
use crate::audit::STATISTICS;
use crate::catalogue::Catalogue;
use crate::catalogue::records::{
    ClassChange, ClassRecord, ContractRecord, FIRST_TENANT, Group, HoldRecord, OfficerRecord,
    PolicySettings, RuleRecord, RulesRecord, StreamRecord, operations_days,
};
use crate::clock::Day;
use crate::core::OWN_NAME;
use crate::said::Said;
use crate::waits;

/// Every class, rule and hold.
pub(crate) struct Policy {
    catalogue: Arc<Catalogue>,
    agents: Arc<Agents>,
    /// What is done after a delay.
    pub(crate) waiting: Waiting,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    classes: BTreeMap<String, ClassRecord>,
    rules: Vec<(RuleRecord, GlobMatcher)>,
    holds: BTreeMap<String, (HoldRecord, GlobMatcher)>,
    contracts: BTreeMap<String, ContractRecord>,
    settings: PolicySettings,
    officers: BTreeMap<String, OfficerRecord>,
}

/// Whose a stream is, as rules and holds see it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Owner {
    pub(crate) tenant: String,
    pub(crate) site: String,
    pub(crate) agent: String,
}

impl Policy {
    /// Reads the policy of a catalogue; a new one gets the classes of [`first_classes`].
    pub(crate) fn load(catalogue: Arc<Catalogue>, agents: Arc<Agents>) -> Result<Self> {
        let mut state = State::default();
        for class in catalogue.load::<ClassRecord>()? {
            state.classes.insert(class.name.clone(), class);
        }
        // A volume of an earlier version gets those that came since.
        let mut classes = first_classes();
        classes.retain(|class| !state.classes.contains_key(&class.name));
        if !classes.is_empty() {
            catalogue.write(|changes| classes.iter().try_for_each(|class| changes.put(class)))?;
            let named = classes.into_iter().map(|class| (class.name.clone(), class));
            state.classes.extend(named);
        }
        let rules = catalogue.load::<RulesRecord>()?.pop().unwrap_or_default();
        state.rules = compiled(rules.rules)?;
        for hold in catalogue.load::<HoldRecord>()? {
            let pattern = pattern(&hold.stream)?;
            state.holds.insert(hold.name.clone(), (hold, pattern));
        }
        for contract in catalogue.load::<ContractRecord>()? {
            state.contracts.insert(contract.tenant.clone(), contract);
        }
        for officer in catalogue.load::<OfficerRecord>()? {
            state.officers.insert(officer.tenant.clone(), officer);
        }
        state.settings = catalogue.load()?.pop().unwrap_or_default();
        Ok(Self {
            waiting: Waiting::load(catalogue.clone())?,
            catalogue,
            agents,
            state: RwLock::new(state),
        })
    }

    /// Where entries of `stream` belong that were received on `day`.
    pub(crate) fn group_of(&self, stream: &StreamRecord, day: Day) -> Group {
        let owner = self.owner_of(stream.agent);
        let class = self.class_of(&owner, stream.kind, &stream.name);
        Group {
            tenant: owner.tenant,
            class,
            day,
        }
    }

    /// Whose the streams of an agent are; the server's own are the first tenant's.
    pub(crate) fn owner_of(&self, agent: AgentId) -> Owner {
        match self.agents.get(agent) {
            Some(agent) => Owner {
                tenant: agent.tenant,
                site: agent.site,
                agent: agent.name,
            },
            None => Owner {
                tenant: FIRST_TENANT.to_owned(),
                site: String::new(),
                agent: OWN_NAME.to_owned(),
            },
        }
    }

    fn class_of(&self, owner: &Owner, kind: StreamKind, name: &str) -> String {
        if kind == StreamKind::Audit {
            let class = if name == STATISTICS {
                STATISTICS_CLASS
            } else {
                AUDIT_CLASS
            };
            return class.to_owned();
        }
        let state = self.read();
        let rule = state.rules.iter().find(|(rule, pattern)| {
            owner.matches(&rule.tenant, &rule.site, &rule.agent) && pattern.is_match(name)
        });
        rule.map_or(GENERAL_CLASS, |(rule, _)| rule.class.as_str())
            .to_owned()
    }

    pub(crate) fn classes(&self) -> Vec<ClassRecord> {
        self.read().classes.values().cloned().collect()
    }

    pub(crate) fn rules(&self) -> Vec<RuleRecord> {
        let state = self.read();
        state.rules.iter().map(|(rule, _)| rule.clone()).collect()
    }

    pub(crate) fn holds(&self) -> Vec<HoldRecord> {
        let state = self.read();
        state.holds.values().map(|(hold, _)| hold.clone()).collect()
    }

    /// Why a group whose age counts from `received` is no longer kept on `today`; none while it is. A class that is gone
    /// keeps its days for ever.
    pub(crate) fn reason_to_forget(
        &self,
        group: &Group,
        received: Day,
        today: Day,
    ) -> Option<Reason> {
        let state = self.read();
        let contract = state.contracts.get(&group.tenant);
        if let Some(contract) = contract.filter(|contract| contract.is_over(today)) {
            return Some(Reason::ContractEnded {
                days: contract.grace_days,
            });
        }
        let keep_days = state.classes.get(&group.class)?.keep_days;
        let kept_until = received.plus(keep_days);
        (today > kept_until).then_some(Reason::Expired { keep_days })
    }

    /// The officer under whose key a group belongs on `today` whose age counts from `received`; none while operations
    /// may read it.
    pub(crate) fn officer_of(&self, group: &Group, received: Day, today: Day) -> Option<String> {
        let state = self.read();
        let officer = state.officers.get(&group.tenant)?;
        let class = state.classes.get(&group.class)?;
        // What the server did has to be read by whoever runs it; numbers say nothing of anybody.
        let is_old = today > received.plus(class.operations_days) && !is_own_class(&group.class);
        is_old.then(|| officer.recipient.clone())
    }

    /// Whether somebody can open the second container of a tenant.
    pub(crate) fn check_officer(&self, officer: &OfficerRecord) -> Result<()> {
        check_name("tenant", &officer.tenant)?;
        parse_recipient(&officer.recipient).map(drop)
    }

    /// Sets who opens the second container of a tenant.
    pub(crate) fn set_officer(&self, officer: OfficerRecord) -> Result<()> {
        self.check_officer(&officer)?;
        let mut state = self.write();
        self.catalogue.put(&officer)?;
        state.officers.insert(officer.tenant.clone(), officer);
        Ok(())
    }

    pub(crate) fn officers(&self) -> Vec<OfficerRecord> {
        self.read().officers.values().cloned().collect()
    }

    /// Whether anything that was received on `day` is held.
    pub(crate) fn holds_day(&self, day: Day) -> bool {
        let state = self.read();
        let mut holds = state.holds.values();
        holds.any(|(hold, _)| (hold.from..=hold.to).contains(&day))
    }

    /// Sets the last day of the contract with a tenant, or that it has none.
    pub(crate) fn set_contract(&self, tenant: &str, end: Option<(Day, u32)>) -> Result<()> {
        check_name("tenant", tenant)?;
        let mut state = self.write();
        let (end, grace_days) = end.unzip();
        let contract = ContractRecord {
            tenant: tenant.to_owned(),
            end: end.unwrap_or_default(),
            grace_days: grace_days.unwrap_or(GRACE_DAYS),
        };
        if end.is_some() {
            self.catalogue.put(&contract)?;
            state.contracts.insert(tenant.to_owned(), contract);
        } else {
            self.catalogue.write(|changes| changes.remove(&contract))?;
            state.contracts.remove(tenant);
        }
        Ok(())
    }

    pub(crate) fn contracts(&self) -> Vec<ContractRecord> {
        self.read().contracts.values().cloned().collect()
    }

    pub(crate) fn settings(&self) -> PolicySettings {
        self.read().settings
    }

    pub(crate) fn set_settings(&self, settings: PolicySettings) -> Result<()> {
        let mut state = self.write();
        self.catalogue.put(&settings)?;
        state.settings = settings;
        Ok(())
    }

    /// The holds that keep what was received on `day` from a stream.
    pub(crate) fn holds_on(&self, owner: &Owner, stream: &str, day: Day) -> Vec<String> {
        let state = self.read();
        let holding = state.holds.values().filter(|(hold, pattern)| {
            (hold.from..=hold.to).contains(&day)
                && owner.matches(&hold.tenant, &hold.site, &hold.agent)
                && pattern.is_match(stream)
        });
        holding.map(|(hold, _)| hold.name.clone()).collect()
    }

    /// What a class becomes by a change, and why it has to wait, if it does.
    pub(crate) fn changed_class(
        &self,
        change: &ClassChange,
    ) -> Result<(ClassRecord, Option<Said>)> {
        check_name("class", &change.name)?;
        let state = self.read();
        let general = state.classes.get(GENERAL_CLASS);
        let general = general.context("the policy has no class 'general'")?;
        let known = state.classes.get(&change.name);
        let before = known.unwrap_or(general);
        let class = ClassRecord {
            name: change.name.clone(),
            keep_days: change.keep_days.unwrap_or(before.keep_days),
            floor_days: change.floor_days.unwrap_or(before.floor_days),
            ceiling_days: change.ceiling_days.unwrap_or(before.ceiling_days),
            operations_days: change.operations_days.unwrap_or(before.operations_days),
        };
        check_bounds(&class)?;
        let why = law::why_class_waits(&class, known, general);
        Ok((class, why))
    }

    /// Whether rules can be set, and why they have to wait, if they do.
    pub(crate) fn changed_rules(&self, rules: &[RuleRecord]) -> Result<Option<Said>> {
        let state = self.read();
        check_rules(rules, &state.classes)?;
        compiled(rules.to_vec())?;
        let general = state.classes.get(GENERAL_CLASS);
        let general = general.context("the policy has no class 'general'")?;
        let before: Vec<RuleRecord> = state.rules.iter().map(|(rule, _)| rule.clone()).collect();
        Ok(law::why_rules_wait(rules, &before, &state.classes, general))
    }

    /// Adds a class, or changes how long one keeps. Floor and ceiling of a class that exists are changed
    /// with `bounds_too` alone.
    pub(crate) fn set_class(&self, class: ClassRecord, bounds_too: bool) -> Result<()> {
        check_name("class", &class.name)?;
        let mut state = self.write();
        if let Some(before) = state.classes.get(&class.name)
            && (before.floor_days, before.ceiling_days) != (class.floor_days, class.ceiling_days)
        {
            ensure!(
                bounds_too,
                "floor and ceiling of class '{}' are changed by two persons",
                class.name
            );
        }
        check_bounds(&class)?;
        self.catalogue.put(&class)?;
        state.classes.insert(class.name.clone(), class);
        Ok(())
    }

    /// Replaces the rules. What is sealed already stays in the class it was sealed in.
    pub(crate) fn set_rules(&self, rules: Vec<RuleRecord>) -> Result<()> {
        let mut state = self.write();
        check_rules(&rules, &state.classes)?;
        let compiled = compiled(rules.clone())?;
        self.catalogue.put(&RulesRecord { rules })?;
        state.rules = compiled;
        Ok(())
    }

    /// Begins a hold; holds stack.
    pub(crate) fn hold(&self, hold: HoldRecord) -> Result<()> {
        check_hold(&hold)?;
        let pattern = pattern(&hold.stream)?;
        let mut state = self.write();
        ensure!(
            !state.holds.contains_key(&hold.name),
            "a hold named '{}' stands already",
            hold.name
        );
        self.catalogue.put(&hold)?;
        state.holds.insert(hold.name.clone(), (hold, pattern));
        Ok(())
    }

    /// Ends a hold.
    pub(crate) fn release(&self, name: &str) -> Result<HoldRecord> {
        let mut state = self.write();
        let (hold, _) = state
            .holds
            .get(name)
            .with_context(|| format!("no hold is named '{name}'"))?;
        let hold = hold.clone();
        self.catalogue.write(|changes| changes.remove(&hold))?;
        state.holds.remove(name);
        Ok(hold)
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        waits::read(&self.state)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        waits::write(&self.state)
    }
}

impl ContractRecord {
    fn is_over(&self, today: Day) -> bool {
        today > self.end.plus(self.grace_days)
    }
}

impl Owner {
    fn matches(&self, tenant: &str, site: &str, agent: &str) -> bool {
        [
            (tenant, &self.tenant),
            (site, &self.site),
            (agent, &self.agent),
        ]
        .into_iter()
        .all(|(wanted, own)| wanted.is_empty() || wanted == own)
    }
}

/// What a new volume begins with: what is nominative is kept a year and no longer; what administrators did,
/// half a year at least; the server's own trail and its certificates, five years.
fn first_classes() -> Vec<ClassRecord> {
    let class = |name: &str, floor_days, keep_days, ceiling_days| ClassRecord {
        name: name.to_owned(),
        keep_days,
        floor_days,
        ceiling_days,
        operations_days: operations_days(),
    };
    vec![
        class(GENERAL_CLASS, 1, 365, 365),
        class("administrators", 183, 365, 365),
        class(AUDIT_CLASS, 365, 1826, 3653),
        class(STATISTICS_CLASS, 1, 3653, DAYS_MAX),
    ]
}

/// Whether no rule may name a class.
fn is_own_class(class: &str) -> bool {
    [AUDIT_CLASS, STATISTICS_CLASS].contains(&class)
}

fn compiled(rules: Vec<RuleRecord>) -> Result<Vec<(RuleRecord, GlobMatcher)>> {
    let compiled = rules.into_iter().map(|rule| {
        let pattern = pattern(&rule.stream)?;
        Ok((rule, pattern))
    });
    compiled.collect()
}

fn pattern(text: &str) -> Result<GlobMatcher> {
    let text = if text.is_empty() { "**" } else { text };
    if let Some(problem) = scrinium_protocol::bounds::glob_problem(text) {
        bail!("a pattern of stream names {problem}");
    }
    let pattern = GlobBuilder::new(text).literal_separator(true).build();
    let pattern = pattern.with_context(|| format!("'{text}' is not a pattern of stream names"))?;
    Ok(pattern.compile_matcher())
}

/// The class of streams that no rule names.
pub(crate) const GENERAL_CLASS: &str = "general";
/// The class of what the server did.
pub(crate) const AUDIT_CLASS: &str = "audit";
/// The class of anonymous statistics.
pub(crate) const STATISTICS_CLASS: &str = "statistics";
/// Days after the end of a contract, when nothing else was agreed.
pub(crate) const GRACE_DAYS: u32 = 15;

#[cfg(test)]
mod tests {
    use super::*;

    /// The library panics at what is nested too deep, however it is written.
    #[test]
    fn the_deepest_patterns_that_are_taken_are_compiled() {
        let levels = scrinium_protocol::bounds::GLOB_BRACES_MAX;
        for (begin, end) in [
            ("{", "}"),
            ("{a,", "}"),
            ("{a,b?", "c*,d}"),
            ("x{a,**/", "}y"),
            (r"{\}", "}"),
            ("{[}]", "}"),
            ("{[!}]?", "}"),
        ] {
            let text = |levels| format!("/{}a{}", begin.repeat(levels), end.repeat(levels));
            drop(pattern(&text(levels)));
            let problem = pattern(&text(levels + 1)).unwrap_err().to_string();
            assert!(problem.contains("braces"), "{problem}");
        }
        assert!(pattern(&"{a,".repeat(levels)).is_err());
        let deepest = format!("/{}a{}", "{a,".repeat(levels), "}".repeat(levels));
        assert!(pattern(&deepest).unwrap().is_match("/a"));
    }

    #[test]
    fn a_class_keeps_within_its_floor_and_ceiling() {
        let dir = Dir::new("bounds");
        let policy = dir.policy();
        let class = |keep_days| ClassRecord {
            name: "administrators".into(),
            keep_days,
            floor_days: 183,
            ceiling_days: 365,
            operations_days: 90,
        };
        for (keep, says) in [(182, "floor of 183"), (366, "ceiling of 365")] {
            let error = policy.set_class(class(keep), false).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
        policy.set_class(class(183), false).unwrap();
        policy.set_class(class(365), false).unwrap();
        let wider = ClassRecord {
            ceiling_days: 400,
            ..class(400)
        };
        assert!(policy.set_class(wider.clone(), false).is_err());
        policy.set_class(wider, true).unwrap();
        for (floor, keep, ceiling) in [(0, 1, 2), (3, 3, 2), (1, 1, DAYS_MAX + 1)] {
            let odd = ClassRecord {
                name: "odd".into(),
                keep_days: keep,
                floor_days: floor,
                ceiling_days: ceiling,
                operations_days: 90,
            };
            assert!(policy.set_class(odd, true).is_err());
        }
        // What was set is there after a restart.
        drop(policy);
        let classes = dir.policy().classes();
        assert!(
            classes
                .iter()
                .any(|class| class.name == "administrators" && class.ceiling_days == 400)
        );
    }

    #[test]
    fn the_first_rule_that_matches_gives_the_class() {
        let dir = Dir::new("rules");
        let policy = dir.policy();
        let rule = |class: &str, stream: &str| RuleRecord {
            class: class.into(),
            stream: stream.into(),
            ..RuleRecord::default()
        };
        let rules = vec![
            rule("administrators", "/var/log/auth*.log"),
            rule("general", "**"),
        ];
        policy.set_rules(rules.clone()).unwrap();
        let owner = Owner::default();
        let class = |name: &str| policy.class_of(&owner, StreamKind::File, name);
        assert_eq!(class("/var/log/auth.log"), "administrators");
        assert_eq!(class("/var/log/apache/auth.log"), "general");
        assert_eq!(
            policy.class_of(&owner, StreamKind::Audit, "audit"),
            AUDIT_CLASS
        );
        assert!(policy.set_rules(vec![rule("nobody", "**")]).is_err());
        assert!(policy.set_rules(vec![rule("general", "[")]).is_err());
        assert_eq!(policy.rules(), rules);
    }

    #[test]
    fn holds_stack_and_end_one_by_one() {
        let dir = Dir::new("holds");
        let policy = dir.policy();
        let hold = |name: &str, agent: &str, days: (u32, u32)| HoldRecord {
            name: name.into(),
            reason: "case".into(),
            by: "admin".into(),
            since_us: 0,
            tenant: String::new(),
            site: String::new(),
            agent: agent.into(),
            stream: String::new(),
            from: Day(days.0),
            to: Day(days.1),
        };
        policy.hold(hold("one", "web1", (5, 7))).unwrap();
        policy.hold(hold("two", "", (7, 9))).unwrap();
        assert!(policy.hold(hold("one", "", (1, 1))).is_err());
        assert!(policy.hold(hold("three", "", (2, 1))).is_err());
        let owner = Owner {
            agent: "web1".into(),
            ..Owner::default()
        };
        let names = |day| policy.holds_on(&owner, "/a", Day(day));
        assert_eq!(names(4), Vec::<String>::new());
        assert_eq!(names(5), ["one"]);
        assert_eq!(names(7), ["one", "two"]);
        assert_eq!(
            policy.holds_on(&Owner::default(), "/a", Day(7)),
            ["two".to_owned()]
        );
        policy.release("one").unwrap();
        assert!(policy.release("one").is_err());
        assert_eq!(names(7), ["two"]);
    }

    struct Dir(std::path::PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let name = format!("scrinium-policy-{name}-{}", std::process::id());
            let dir = std::env::temp_dir().join(name);
            drop(std::fs::remove_dir_all(&dir));
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn policy(&self) -> Policy {
            let key = scrinium_protocol::secret::Secret::new([1; 32]);
            let catalogue = Catalogue::create(&self.0.join("catalogue.db"), &key).unwrap();
            let catalogue = Arc::new(catalogue);
            let agents = Arc::new(Agents::load(catalogue.clone(), 1).unwrap());
            Policy::load(catalogue, agents).unwrap()
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }
}
