//! Commands about what is kept for how long.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use serde::Deserialize;
use serde_json::Value;

use super::{Data, client, close, read_password, say, say_json, say_lines, usage};
use crate::catalogue::records::{ClassChange, FIRST_TENANT, HoldRecord, OfficerRecord, RuleRecord};
use crate::clock::Day;
use crate::control;
use crate::control::policy::{Act, DeleteRequest, Person, PolicyRequest};
use crate::control::waiting::WaitingRequest;
use crate::present::human_bytes;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Policy {
    #[command(flatten)]
    data: Data,
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    change: Option<Change>,
}

/// Who acts, where it takes a person.
#[derive(clap::Args, Clone)]
pub(super) struct Acting {
    /// The account that acts; without it, whoever runs this command.
    #[arg(long, requires = "password_file")]
    user: Option<String>,
    /// A file with the account's password.
    #[arg(long, requires = "user")]
    password_file: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Change {
    /// Sets how long a class keeps; a new name makes a class. What goes beyond its category waits three days, or for
    /// a second person.
    #[command(after_help = "Example: scrinium-server policy class general --keep-days 180")]
    Class {
        name: String,
        /// Days its entries are kept after the day they were received on.
        #[arg(long)]
        keep_days: Option<u32>,
        #[arg(long)]
        floor_days: Option<u32>,
        #[arg(long)]
        ceiling_days: Option<u32>,
        /// Days after which only the security officer's key opens them.
        #[arg(long)]
        operations_days: Option<u32>,
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        acting: Acting,
    },
    /// Says under whose key a tenant's days are once operations may no longer read them.
    #[command(
        after_help = "Example: scrinium-server policy officer --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
    )]
    Officer {
        /// The officer's age recipient, as age-keygen prints it.
        #[arg(long)]
        recipient: String,
        #[arg(long, default_value = FIRST_TENANT)]
        tenant: String,
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        acting: Acting,
    },
    /// Replaces the rules that say which stream is of which class: `[[rule]]` tables with class and stream,
    /// agent, site or tenant.
    #[command(after_help = "Example: scrinium-server policy rules --file rules.toml")]
    Rules {
        #[arg(long)]
        file: PathBuf,
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        acting: Acting,
    },
    /// Keeps a range whatever its time, until it is released.
    #[command(
        after_help = "Example: scrinium-server policy hold case-12 --reason 'requisition' --agent web1 --from 2026-01-01"
    )]
    Hold {
        /// The reference of the matter.
        name: String,
        #[arg(long)]
        reason: String,
        #[arg(long, default_value = "")]
        tenant: String,
        #[arg(long, default_value = "")]
        site: String,
        #[arg(long, default_value = "")]
        agent: String,
        /// A pattern of stream names.
        #[arg(long, default_value = "")]
        stream: String,
        /// First day of receipt.
        #[arg(long, default_value = "1970-01-01")]
        from: String,
        /// Last day of receipt.
        #[arg(long, default_value = "9999-12-30")]
        to: String,
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        acting: Acting,
    },
    /// Ends a hold.
    #[command(after_help = "Example: scrinium-server policy release case-12 --reason 'closed'")]
    Release {
        name: String,
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        acting: Acting,
    },
    /// Says when the contract with a tenant ends: what is archived of it is deleted 15 days later.
    #[command(after_help = "Example: scrinium-server policy contract acme --end 2027-03-31")]
    Contract {
        tenant: String,
        /// Its last day; without it, it has none.
        #[arg(long)]
        end: Option<String>,
        /// Days after that the logs are still kept.
        #[arg(long)]
        grace_days: Option<u32>,
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        acting: Acting,
    },
    /// Whether what waits takes two persons, and is never done by time alone.
    #[command(after_help = "Example: scrinium-server policy two-persons on")]
    TwoPersons {
        #[arg(value_parser = ["on", "off"])]
        switch: String,
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        acting: Acting,
    },
    /// Shows what was asked for and waits, until when, and who wants it.
    #[command(after_help = "Example: scrinium-server policy pending --json")]
    Pending {
        #[command(flatten)]
        data: Data,
        #[arg(long)]
        json: bool,
    },
    /// Stops what waits; an agent that was removed is there again.
    #[command(
        after_help = "Example: scrinium-server policy stop 1f2e3d4c --reason 'nobody knows of it'"
    )]
    Stop {
        /// What `policy pending` calls it.
        id: String,
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        acting: Acting,
    },
    /// Says that another person wants what waits, too: it is done at once when two do.
    #[command(
        after_help = "Example: scrinium-server policy approve 1f2e3d4c --user bob --password-file FILE"
    )]
    Approve {
        /// What `policy pending` calls it.
        id: String,
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        acting: Acting,
    },
    /// Shows what the next days delete, and changes nothing.
    #[command(after_help = "Example: scrinium-server policy preview --days 7")]
    Preview {
        #[arg(long, default_value_t = 7)]
        days: u32,
        #[command(flatten)]
        data: Data,
        #[arg(long)]
        json: bool,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RulesFile {
    #[serde(default)]
    rule: Vec<RuleRecord>,
}

impl Policy {
    /// Runs the command to its end.
    pub(super) async fn run(self) -> Result<()> {
        let Some(change) = self.change else {
            let shown = get(&self.data, "/policy").await?;
            return match self.json {
                true => say_json(&shown),
                false => say_lines(&policy_lines(&shown)),
            };
        };
        let (act, data, acting) = match change {
            Change::Preview { days, data, json } => {
                let rows = get(&data, &format!("/policy/preview?days={days}")).await?;
                if json {
                    return say_json(&rows);
                }
                let status = get(&data, "/status").await?;
                return say_lines(&preview_lines(&rows, &status, days));
            }
            Change::Pending { data, json } => {
                let rows = get(&data, "/policy/waiting").await?;
                return match json {
                    true => say_json(&rows),
                    false => say_lines(&pending_lines(&rows)),
                };
            }
            Change::Stop {
                id,
                reason,
                data,
                acting,
            } => return answer_to(&data, "/policy/waiting/stop", id, reason, &acting).await,
            Change::Approve { id, data, acting } => {
                let route = "/policy/waiting/agree";
                return answer_to(&data, route, id, String::new(), &acting).await;
            }
            Change::Class {
                name,
                keep_days,
                floor_days,
                ceiling_days,
                operations_days,
                data,
                acting,
            } => {
                let change = ClassChange {
                    name,
                    keep_days,
                    floor_days,
                    ceiling_days,
                    operations_days,
                };
                (Act::Class(change), data, acting)
            }
            Change::Officer {
                recipient,
                tenant,
                data,
                acting,
            } => {
                let officer = OfficerRecord { tenant, recipient };
                (Act::Officer { officer }, data, acting)
            }
            Change::Rules { file, data, acting } => {
                let text = std::fs::read_to_string(&file);
                let text = text.with_context(|| format!("reading {}", file.display()))?;
                let parsed: RulesFile = toml::from_str(&text)
                    .with_context(|| format!("in {}", file.display()))
                    .map_err(usage)?;
                (Act::Rules { rules: parsed.rule }, data, acting)
            }
            Change::Hold {
                name,
                reason,
                tenant,
                site,
                agent,
                stream,
                from,
                to,
                data,
                acting,
            } => {
                let hold = HoldRecord {
                    name,
                    reason,
                    by: String::new(),
                    since_us: 0,
                    tenant,
                    site,
                    agent,
                    stream,
                    from: day("--from", &from)?,
                    to: day("--to", &to)?,
                };
                let hold = Box::new(hold);
                (Act::Hold { hold }, data, acting)
            }
            Change::Release {
                name,
                reason,
                data,
                acting,
            } => (Act::Release { name, reason }, data, acting),
            Change::Contract {
                tenant,
                end,
                grace_days,
                data,
                acting,
            } => {
                let end = end.map(|end| day("--end", &end)).transpose()?;
                let act = Act::Contract {
                    tenant,
                    end,
                    grace_days,
                };
                (act, data, acting)
            }
            Change::TwoPersons {
                switch,
                data,
                acting,
            } => {
                let on = switch == "on";
                (Act::TwoPersons { on }, data, acting)
            }
        };
        let person = acting.person()?;
        let (client, running) = client(&data).await?;
        let done = client
            .post("/policy", &PolicyRequest { act, person })
            .await
            .map(drop);
        close(client, running).await;
        done
    }
}

impl Acting {
    pub(super) fn person(&self) -> Result<Person> {
        let password = self.password_file.as_ref();
        Ok(Person {
            user: self.user.clone(),
            password: password.map(|path| read_password(path)).transpose()?,
        })
    }
}

/// `agent delete`: tells what would go, and with the word it gives, deletes it.
pub(super) async fn delete_agent(data: &Data, request: &DeleteRequest) -> Result<()> {
    let (client, running) = client(data).await?;
    let answer = client.post("/agents/delete", request).await;
    let answer = match answer {
        Ok(answer) => control::json_of(answer).await,
        Err(error) => Err(error),
    };
    close(client, running).await;
    let answer = answer?;
    let number = |key: &str| answer.get(key).and_then(Value::as_u64).unwrap_or(0);
    if let Some(said) = answer.get("said").and_then(Value::as_str) {
        say(&format!(
            "removed agent {}: it is refused and nobody reads what it sent; its keys are destroyed later.",
            request.name
        ))?;
        return say(said);
    }
    let Some(word) = answer.get("confirm").and_then(Value::as_str) else {
        return say(&format!(
            "deleted agent {} and {} entries; the certificates are in the server's stream 'deletions'",
            request.name,
            number("deleted")
        ));
    };
    say(&format!(
        "this removes agent {} and all that is archived of it: {} streams, {} entries, {}.",
        request.name,
        number("streams"),
        number("entries"),
        human_bytes(number("bytes")),
    ))?;
    say(
        "Nobody reads it from then on; after 72 hours, in which anybody entitled can stop it, it is gone for good.",
    )?;
    say(&format!(
        "Nothing was deleted. If that is wanted, say it again with: --confirm {word}"
    ))
}

/// `policy stop` and `policy approve`.
async fn answer_to(
    data: &Data,
    route: &str,
    id: String,
    reason: String,
    acting: &Acting,
) -> Result<()> {
    let person = acting.person()?;
    let (client, running) = client(data).await?;
    let request = WaitingRequest { id, reason, person };
    let done = client.post(route, &request).await.map(drop);
    close(client, running).await;
    done
}

async fn get(data: &Data, route: &str) -> Result<Value> {
    let (client, running) = client(data).await?;
    let answer = match client.get(route).await {
        Ok(answer) => control::json_of(answer).await,
        Err(error) => Err(error),
    };
    close(client, running).await;
    answer
}

pub(super) fn day(field: &str, text: &str) -> Result<Day> {
    let day = text.parse::<Day>();
    day.with_context(|| field.to_owned()).map_err(usage)
}

/// What `policy` prints.
fn policy_lines(policy: &Value) -> Vec<String> {
    let mut lines = vec![format!(
        "what is written now is sealed with: {}",
        text(policy, "cipher")
    )];
    let sealed = policy.get("sealed").and_then(Value::as_object);
    for (cipher, of) in sealed.into_iter().flatten() {
        lines.push(format!(
            "{cipher}: {} files, {}",
            number(of, "files"),
            human_bytes(number(of, "bytes"))
        ));
    }
    for class in rows(policy, "classes") {
        lines.push(format!(
            "class {}: kept {} days (between {} and {}), read by operations for {}",
            text(class, "name"),
            number(class, "keep_days"),
            number(class, "floor_days"),
            number(class, "ceiling_days"),
            number(class, "operations_days")
        ));
    }
    for officer in rows(policy, "officers") {
        lines.push(format!(
            "second container of {}: opened by {}",
            text(officer, "tenant"),
            text(officer, "recipient")
        ));
    }
    for rule in rows(policy, "rules") {
        let fields = ["tenant", "site", "agent", "stream"].into_iter();
        let fields = fields
            .filter(|field| !text(rule, field).is_empty())
            .map(|field| format!("{field} {}", text(rule, field)));
        let fields = fields.collect::<Vec<_>>().join(", ");
        lines.push(format!("rule: {fields} is {}", text(rule, "class")));
    }
    for hold in rows(policy, "holds") {
        lines.push(format!(
            "hold {}: {} to {}, by {} ({})",
            text(hold, "name"),
            text(hold, "from"),
            text(hold, "to"),
            text(hold, "by"),
            text(hold, "reason")
        ));
    }
    for contract in rows(policy, "contracts") {
        lines.push(format!(
            "contract with {}: ends {}, deleted after {}",
            text(contract, "tenant"),
            text(contract, "end"),
            text(contract, "kept_until")
        ));
    }
    let two = policy.get("two_persons").and_then(Value::as_bool) == Some(true);
    let persons = if two {
        "deleting an agent takes two persons"
    } else {
        "deleting an agent takes one person and three days, or two persons"
    };
    lines.push(persons.to_owned());
    for waiting in rows(policy, "waiting") {
        lines.push(format!("waits: {}", waiting_text(waiting)));
    }
    lines
}

fn pending_lines(pending: &Value) -> Vec<String> {
    let lines: Vec<String> = pending
        .as_array()
        .into_iter()
        .flatten()
        .map(waiting_text)
        .collect();
    if lines.is_empty() {
        return vec!["nothing waits".to_owned()];
    }
    lines
}

fn waiting_text(waiting: &Value) -> String {
    let due = match text(waiting, "due") {
        "" => "never by time alone".to_owned(),
        due => format!("done {due}"),
    };
    let mut line = format!(
        "{} {}; {due}; asked {} by {}",
        text(waiting, "id"),
        text(waiting, "what"),
        text(waiting, "asked"),
        text(waiting, "wanted_by")
    );
    if let Some(hindered) = waiting.get("hindered").and_then(Value::as_str) {
        line.push_str(&format!("; NOT done: {hindered}"));
    }
    line
}

fn preview_lines(preview: &Value, status: &Value, days: u32) -> Vec<String> {
    let waits = rows(status, "waits").map(|waits| text(waits, "sentence").to_owned());
    let mut lines: Vec<String> = waits.collect();
    let waits = lines.len();
    for row in preview.as_array().into_iter().flatten() {
        lines.push(format!(
            "{}  {} {} of {}: {} entries of {} streams, {}; {} streams held",
            text(row, "on"),
            text(row, "tenant"),
            text(row, "class"),
            text(row, "day"),
            number(row, "entries"),
            number(row, "streams"),
            human_bytes(number(row, "bytes")),
            number(row, "streams_held"),
        ));
    }
    if lines.len() == waits {
        lines.push(format!("nothing is deleted within {days} days"));
    }
    lines
}

fn rows<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or(0)
}
