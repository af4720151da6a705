//! What a class and a rule may be at all, and which changes widen what the law's categories allow, so that they wait.
//!
//! Class `general` is the category of what is nominative. A change waits when entries could be kept longer, read
//! longer by operations, or kept shorter than the category they are in demands.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::is_own_class;
use crate::agents::check_name;
use crate::bounds::{self, NAME_LEN_MAX, REASON_LEN_MAX, STREAM_LEN_MAX};
use crate::catalogue::records::{ClassRecord, HoldRecord, RuleRecord};
use crate::said::{Said, said};

/// Whether a class keeps to what every class keeps to.
pub(super) fn check_bounds(class: &ClassRecord) -> Result<()> {
    let ClassRecord {
        name,
        keep_days,
        floor_days,
        ceiling_days,
        operations_days: _,
    } = class;
    ensure!(
        (1..=DAYS_MAX).contains(floor_days) && (*floor_days..=DAYS_MAX).contains(ceiling_days),
        "class '{name}': floor_days and ceiling_days must be between 1 and {DAYS_MAX}, the floor below the ceiling"
    );
    ensure!(
        keep_days >= floor_days,
        "class '{name}': keep_days {keep_days} is below its floor of {floor_days} days"
    );
    ensure!(
        keep_days <= ceiling_days,
        "class '{name}': keep_days {keep_days} is above its ceiling of {ceiling_days} days"
    );
    Ok(())
}

/// Whether rules can be set.
pub(super) fn check_rules(
    rules: &[RuleRecord],
    classes: &BTreeMap<String, ClassRecord>,
) -> Result<()> {
    ensure!(
        rules.len() <= RULES_MAX,
        "there are {} rules and may be {RULES_MAX}",
        rules.len()
    );
    for (rule, number) in rules.iter().zip(1..) {
        let RuleRecord {
            class,
            tenant,
            site,
            agent,
            stream,
        } = rule;
        ensure!(
            classes.contains_key(class),
            "rule {number} names class '{class}', which does not exist"
        );
        ensure!(
            !is_own_class(class),
            "rule {number}: class '{class}' is for what the server itself writes"
        );
        check_selector(tenant, site, agent, stream)?;
        ensure!(
            [tenant, site, agent, stream]
                .into_iter()
                .any(|field| !field.trim().is_empty()),
            "rule {number} of class '{class}' selects nothing and would be for every stream: give it tenant, site, agent or stream"
        );
    }
    Ok(())
}

/// Whether what a rule or a hold selects by keeps to its bounds.
pub(super) fn check_selector(tenant: &str, site: &str, agent: &str, stream: &str) -> Result<()> {
    bounds::check("tenant", tenant, NAME_LEN_MAX)?;
    bounds::check("agent", agent, NAME_LEN_MAX)?;
    // A site of an earlier version may be long and is still to be held.
    bounds::check("site", site, STREAM_LEN_MAX)?;
    bounds::check("stream", stream, STREAM_LEN_MAX)
}

/// Whether what a hold says keeps to its bounds.
pub(crate) fn check_hold(hold: &HoldRecord) -> Result<()> {
    check_name("hold", &hold.name)?;
    ensure!(!hold.reason.trim().is_empty(), "a hold needs a reason");
    bounds::check("the reason of a hold", &hold.reason, REASON_LEN_MAX)?;
    let HoldRecord {
        tenant,
        site,
        agent,
        stream,
        ..
    } = hold;
    check_selector(tenant, site, agent, stream)?;
    ensure!(hold.from <= hold.to, "a hold's first day is after its last");
    Ok(())
}

/// Why a class may not be set at once; `before` is what it was.
pub(super) fn why_class_waits(
    class: &ClassRecord,
    before: Option<&ClassRecord>,
    general: &ClassRecord,
) -> Option<Said> {
    let name = &class.name;
    if let Some(before) = before {
        if (class.floor_days, class.ceiling_days) != (before.floor_days, before.ceiling_days) {
            return Some(said!(
                "waiting.class_bounds",
                name,
                u64::from(class.floor_days),
                u64::from(class.ceiling_days)
            ));
        }
    } else if class.ceiling_days > general.ceiling_days {
        return Some(said!(
            "waiting.class_ceiling",
            name,
            u64::from(class.ceiling_days),
            u64::from(general.ceiling_days),
            &general.name
        ));
    }
    let read_days = before.unwrap_or(general).operations_days;
    (class.operations_days > read_days).then(|| {
        said!(
            "waiting.class_read",
            name,
            u64::from(class.operations_days),
            u64::from(read_days)
        )
    })
}

/// Why rules may not be set at once: streams could come into a class that is wider than `general` or has a lower floor, or
/// leave one that must be kept longer.
pub(super) fn why_rules_wait(
    rules: &[RuleRecord],
    before: &[RuleRecord],
    classes: &BTreeMap<String, ClassRecord>,
    general: &ClassRecord,
) -> Option<Said> {
    let floor = |rule: &RuleRecord| {
        let class = classes.get(&rule.class);
        class.map_or(0, |class| class.floor_days)
    };
    // What a class allows that `general` does not.
    let excess = |rule: &RuleRecord| {
        let class = classes.get(&rule.class)?;
        if class.ceiling_days > general.ceiling_days
            || class.operations_days > general.operations_days
        {
            Some(said!("waiting.rule_wider", &rule.class, &general.name))
        } else {
            (class.floor_days < general.floor_days)
                .then(|| said!("waiting.rule_sooner", &rule.class, &general.name))
        }
    };
    let (new, old) = (places(rules), places(before));
    // A stream comes to such a rule when the rule is new, or when one before it no longer catches the stream.
    for (at, rule) in rules.iter().enumerate() {
        let Some(excess) = excess(rule) else {
            continue;
        };
        let caught = old
            .get(rule)
            .map(|&was| before.get(..was).unwrap_or_default());
        let still = caught.is_some_and(|caught| {
            let mut caught = caught.iter();
            caught.all(|earlier| new.get(earlier).is_some_and(|&is| is < at))
        });
        if !still {
            return Some(excess);
        }
    }
    // A stream leaves a rule when the rule is gone, or when one before it catches the stream.
    let guarded = before.iter().enumerate();
    for (was, rule) in guarded.filter(|(_, rule)| floor(rule) > general.floor_days) {
        let earlier = new.get(rule).map(|&at| rules.get(..at).unwrap_or_default());
        let still = earlier.is_some_and(|earlier| {
            let mut earlier = earlier.iter();
            earlier.all(|other| {
                floor(other) >= floor(rule) || old.get(other).is_some_and(|&before| before < was)
            })
        });
        if !still {
            return Some(said!(
                "waiting.rule_leaves",
                &rule.class,
                u64::from(floor(rule))
            ));
        }
    }
    None
}

/// Where each rule is first.
fn places(rules: &[RuleRecord]) -> BTreeMap<&RuleRecord, usize> {
    let mut places = BTreeMap::new();
    for (at, rule) in rules.iter().enumerate() {
        places.entry(rule).or_insert(at);
    }
    places
}

/// A hundred years.
pub(super) const DAYS_MAX: u32 = 36_525;
const RULES_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_waits_when_it_keeps_or_shows_longer_than_its_category() {
        let general = class("general", 1, 365, 90);
        let wait = |class: &ClassRecord, before| why_class_waits(class, before, &general).is_some();
        assert!(!wait(&class("narrow", 1, 365, 90), None));
        assert!(!wait(&class("narrow", 180, 200, 30), None));
        assert!(wait(&class("forever", 1, 366, 90), None));
        assert!(wait(&class("shown", 1, 365, 91), None));
        assert!(!wait(&class("general", 1, 365, 30), Some(&general)));
        assert!(wait(&class("general", 1, 365, 30_000), Some(&general)));
        assert!(wait(&class("general", 2, 365, 90), Some(&general)));
        assert!(wait(&class("general", 1, 400, 90), Some(&general)));
    }

    #[test]
    fn rules_wait_when_streams_come_into_what_is_wider_or_leave_what_is_kept_longer() {
        let general = class("general", 1, 365, 90);
        let classes = [
            general.clone(),
            class("administrators", 183, 365, 90),
            class("forever", 1, 3650, 90),
        ];
        let classes: BTreeMap<_, _> = classes.into_iter().map(|c| (c.name.clone(), c)).collect();
        let (admin, wide) = (rule("administrators", "a"), rule("forever", "a"));
        let (plain, other) = (rule("general", "a"), rule("general", "b"));
        let waits = |new: &[&RuleRecord], old: &[&RuleRecord]| {
            let own = |rules: &[&RuleRecord]| -> Vec<RuleRecord> {
                rules.iter().map(|rule| (*rule).clone()).collect()
            };
            why_rules_wait(&own(new), &own(old), &classes, &general).is_some()
        };
        assert!(!waits(&[&plain, &admin], &[]));
        assert!(waits(&[&wide], &[]));
        assert!(!waits(&[&plain, &wide, &other], &[&wide]));
        assert!(waits(&[&wide], &[&plain, &wide]));
        assert!(waits(&[&wide, &plain], &[&plain, &wide]));
        assert!(!waits(&[], &[&plain, &wide]));
        assert!(waits(&[], &[&admin]));
        assert!(waits(&[&plain, &admin], &[&admin]));
        assert!(!waits(&[&admin, &plain], &[&admin]));
        assert!(!waits(&[&plain, &admin], &[&plain, &admin]));
    }

    #[test]
    fn rules_wait_when_streams_come_to_a_lower_floor_than_that_of_all() {
        let general = class("general", 183, 365, 90);
        let classes = [general.clone(), class("short", 1, 365, 90)];
        let classes: BTreeMap<_, _> = classes.into_iter().map(|c| (c.name.clone(), c)).collect();
        let short = [rule("short", "a*")];
        let why = why_rules_wait(&short, &[], &classes, &general).unwrap();
        assert_eq!(why.id, "waiting.rule_sooner");
        assert_eq!(why_rules_wait(&short, &short, &classes, &general), None);
        assert_eq!(why_rules_wait(&[], &short, &classes, &general), None);
    }

    fn class(name: &str, floor_days: u32, ceiling_days: u32, operations_days: u32) -> ClassRecord {
        ClassRecord {
            name: name.into(),
            keep_days: floor_days,
            floor_days,
            ceiling_days,
            operations_days,
        }
    }

    fn rule(class: &str, agent: &str) -> RuleRecord {
        RuleRecord {
            class: class.into(),
            agent: agent.into(),
            ..RuleRecord::default()
        }
    }
}
