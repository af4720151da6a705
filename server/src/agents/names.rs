//! Names: of agents, of accounts, and of what else is typed in commands.
//!
//! Names are shown in tables, are part of addresses and of files, and are what a person goes by in the audit trail.
//! So the rule for agents is held in the one place where agents are made, for tokens of an earlier version too.
//! An agent that an earlier version let in keeps its name.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use scrinium_protocol::identity::AgentId;

use crate::bounds::{self, NAME_LEN_MAX};
use crate::catalogue::records::AgentRecord;
use crate::core::OWN_NAME;
use crate::said::said;

/// The rule for names of agents.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_agent_name(name: &str) -> Result<()> {
    check_plain("agent name", name, &RESERVED)
}

/// The rule for what agents of a token of several uses will be called.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_agent_pattern(pattern: &str) -> Result<()> {
    // As long as what it becomes at most.
    bounds::check_len("agent name", pattern, LEN_MAX)?;
    check_agent_name(&pattern.replace(HOST, "h").replace(NUMBER, "1"))
}

/// What the agent of the use number `use_number` of a token is called: `{host}` in the pattern is what the machine calls
/// itself, `{n}` the number of the use. Where that is taken, or a pattern has neither, a number follows.
pub(super) fn name_of_use<'a>(
    pattern: &str,
    use_number: u32,
    host_name: &str,
    others: impl Iterator<Item = &'a AgentRecord>,
) -> Result<String> {
    let taken: BTreeSet<String> = others
        .map(|agent| agent.name.to_ascii_lowercase())
        .collect();
    let host: String = host_name
        .chars()
        .map(|c| if is_plain(c) { c } else { '-' })
        .take(LEN_MAX)
        .collect();
    let host = host.trim_matches(['-', '.']);
    let host = if host.is_empty() { "host" } else { host };
    let name = pattern
        .replace(HOST, host)
        .replace(NUMBER, &use_number.to_string());
    let is_free = |name: &String| {
        check_agent_name(name).is_ok() && !taken.contains(&name.to_ascii_lowercase())
    };
    let numbered = |n: usize| {
        let end = format!("-{n}");
        let kept: String = name
            .chars()
            .take(LEN_MAX.saturating_sub(end.len()))
            .collect();
        kept + &end
    };
    // One of so many is free: there are fewer agents.
    let numbers = (2..=taken.len() + 2).map(numbered);
    let whole = (name.len() <= LEN_MAX).then(|| name.clone());
    let mut names = whole.into_iter().chain(numbers);
    match names.find(is_free) {
        Some(name) => Ok(name),
        None => bail!("no name like '{}' is free", pattern.escape_debug()),
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

/// The rule for names of accounts that are made.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_account_name(name: &str) -> Result<()> {
    check_plain("user name", name, &ACTORS)
}

fn check_plain(field: &str, name: &str, reserved: &[&str]) -> Result<()> {
    if !(1..=LEN_MAX).contains(&name.len()) || !name.chars().all(is_plain) {
        let shown = name.escape_debug().to_string();
        return Err(said!("refused.name", field, shown, LEN_MAX).into());
    }
    if name.starts_with(['-', '.']) {
        return Err(said!("refused.name_begins", field, name).into());
    }
    if reserved.iter().any(|word| word.eq_ignore_ascii_case(name)) {
        return Err(said!("refused.name_reserved", field, name).into());
    }
    Ok(())
}

/// Refuses a name that differs from one in use by nothing, or by case alone.
pub(super) fn check_unused<'a>(
    name: &str,
    mut others: impl Iterator<Item = &'a AgentRecord>,
) -> Result<()> {
    match others.find(|agent| agent.name.eq_ignore_ascii_case(name)) {
        Some(agent) if agent.set_aside => Err(said!("refused.name_waits", &agent.name).into()),
        Some(agent) => Err(said!("refused.name_taken", &agent.name).into()),
        None => Ok(()),
    }
}

/// What agents are called when they are shown or asked for: their names. One whose name an earlier version should
/// have refused, because it is the server's or another agent's, is told apart by its id.
pub(super) fn shown<'a>(
    agents: impl Iterator<Item = &'a AgentRecord>,
) -> BTreeMap<AgentId, String> {
    let mut agents: Vec<&AgentRecord> = agents.collect();
    agents.sort_by_key(|agent| (agent.enrolled_us, agent.id));
    let mut taken = BTreeSet::new();
    let named = agents.into_iter().map(|agent| {
        let is_own = !agent.name.eq_ignore_ascii_case(OWN_NAME) && taken.insert(&agent.name);
        let name = if is_own {
            agent.name.clone()
        } else {
            let id = agent.id.to_string();
            format!("{}~{}", agent.name, id.get(..8).unwrap_or(&id))
        };
        (agent.id, name)
    });
    named.collect()
}

/// The rule for other names: tenants, classes, holds.
pub(crate) fn check_name(field: &str, name: &str) -> Result<()> {
    let fine = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 128 || !name.chars().all(fine) {
        let shown = name.escape_debug().to_string();
        return Err(said!("refused.name_letters", field, shown, NAME_LEN_MAX).into());
    }
    Ok(())
}

const LEN_MAX: usize = 64;
/// What a pattern has for the name of the host, and for the number of the use.
const HOST: &str = "{host}";
const NUMBER: &str = "{n}";
/// What no agent is called.
const RESERVED: [&str; 7] = [
    OWN_NAME,
    "local",
    "admin",
    "administrator",
    "root",
    "system",
    "scrinium",
];
/// What the audit trail calls those who have no account.
const ACTORS: [&str; 6] = [OWN_NAME, "local", "agent", "signal", "system", "scrinium"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::Agents;
    use crate::catalogue::Catalogue;

    #[test]
    fn a_name_is_plain_short_and_nobodys_word() {
        for name in ["web1", "WEB-1.example_net", "a", &"x".repeat(64), "3"] {
            check_agent_name(name).unwrap();
        }
        let long = "x".repeat(65);
        for name in [
            "",
            ".",
            "..",
            ".web1",
            "-web1",
            "web 1",
            "web1\n",
            "w\u{435}b1",
            "a/b",
            "server",
            "SERVER",
            "Admin",
            "local",
            &long,
        ] {
            assert!(check_agent_name(name).is_err(), "{name}");
        }
        check_account_name("admin").unwrap();
        assert!(check_account_name("Server").is_err());
        assert!(check_account_name("local command").is_err());
    }

    #[test]
    fn agents_of_one_token_have_names_of_their_own() {
        let agents = [agent("web", 1, 1), agent("WEB-2", 2, 2), agent("n-7", 3, 3)];
        let name = |pattern: &str, n, host: &str| {
            let name = name_of_use(pattern, n, host, agents.iter()).unwrap();
            check_agent_name(&name).unwrap();
            name
        };
        assert_eq!(name("pod", 1, "ignored"), "pod");
        assert_eq!(name("web", 9, "ignored"), "web-3");
        assert_eq!(name("n-{n}", 6, ""), "n-6");
        assert_eq!(name("n-{n}", 7, ""), "n-7-2");
        assert_eq!(name("{host}", 1, "db1.example.net"), "db1.example.net");
        assert_eq!(name("eu-{host}-{n}", 3, "db1"), "eu-db1-3");
        // What a machine calls itself is anything.
        assert_eq!(name("{host}", 1, "../a b\u{1b}[0m"), "a-b--0m");
        assert_eq!(name("{host}", 1, "server"), "server-2");
        assert_eq!(name("{host}", 1, "\u{435}"), "host");
        assert_eq!(name("{host}", 1, &"x".repeat(300)), "x".repeat(64));
        let long = name("{host}-{n}", 1, &"x".repeat(300));
        assert_eq!((long.len(), long.ends_with("-2")), (64, true));
        for pattern in ["{host}", "a-{n}", "{n}", "web"] {
            check_agent_pattern(pattern).unwrap();
        }
        for pattern in [
            "",
            "{",
            "{name}",
            "-{host}",
            "a b",
            "server",
            &"x".repeat(65),
        ] {
            assert!(check_agent_pattern(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn an_agent_of_an_earlier_version_is_told_from_the_server_and_from_others() {
        let agents = [
            agent("server", 1, 1),
            agent("web1", 2, 3),
            agent("web1", 3, 2),
            agent("w\u{435}b1", 4, 4),
        ];
        let shown = shown(agents.iter());
        let names: Vec<&str> = shown.values().map(String::as_str).collect();
        assert_eq!(
            names,
            ["server~01010101", "web1~02020202", "web1", "w\u{435}b1"]
        );
        assert!(check_unused("WEB1", agents.iter()).is_err());
        check_unused("web2", agents.iter()).unwrap();
    }

    #[test]
    fn an_old_agent_called_server_is_found_by_no_name_of_the_server() {
        let name = format!("scrinium-names-{}.db", std::process::id());
        let path = std::env::temp_dir().join(name);
        drop(std::fs::remove_file(&path));
        let key = scrinium_protocol::secret::Secret::new([1; 32]);
        let catalogue = std::sync::Arc::new(Catalogue::create(&path, &key).unwrap());
        for agent in [agent("Server", 1, 1), agent("..", 2, 2)] {
            catalogue.put(&agent).unwrap();
        }
        let agents = Agents::load(catalogue, 1).unwrap();
        assert_eq!(agents.find("server"), None);
        assert_eq!(agents.find("Server"), None);
        let (old, shown) = (AgentId([1; 16]), "Server~01010101");
        assert_eq!(agents.find(shown), Some(old));
        assert_eq!(agents.find(".."), Some(AgentId([2; 16])));
        assert_eq!(agents.list()[1].0.name, shown);
        assert_eq!(agents.signers()[&old].name, shown);
        // Rules and holds that name it hold for it as before.
        assert_eq!(agents.get(old).unwrap().name, "Server");
        agents.set_enabled(shown, false).unwrap();
        assert_eq!(agents.get(old).unwrap().name, "Server");
        // Removed, it is nobody's to read, and can be brought back.
        agents.set_aside(old, |_| Ok(())).unwrap();
        assert_eq!(agents.find(shown), None);
        assert_eq!(agents.list().len(), 1);
        assert_eq!(agents.signers().len(), 2);
        agents.bring_back(old, true, |_| Ok(())).unwrap();
        assert_eq!(agents.find(shown), Some(old));
        std::fs::remove_file(path).unwrap();
    }

    fn agent(name: &str, id: u8, enrolled_us: u64) -> AgentRecord {
        AgentRecord::named(name, id, enrolled_us)
    }
}
