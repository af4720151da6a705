//! Commands about alarms.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use serde_json::{Value, json};

use super::{Data, client, close, complain, say, say_json};
use crate::control::{self, Client};
use crate::i18n::Language;
use crate::notices::Tested;
use crate::said::said;

#[derive(Subcommand)]
pub(crate) enum Alarm {
    /// Lists the alarms, newest first.
    #[command(after_help = "Example: scrinium-server alarm list --json")]
    List {
        #[command(flatten)]
        data: Data,
        #[arg(long)]
        json: bool,
    },
    /// Says that somebody has seen an alarm.
    #[command(after_help = "Example: scrinium-server alarm acknowledge 3")]
    Acknowledge {
        id: u64,
        #[command(flatten)]
        data: Data,
    },
    /// Sends a message that says that it is a test by each way that is configured. Exits 1 when one does not leave.
    #[command(after_help = "Example: scrinium-server alarm test")]
    Test {
        #[command(flatten)]
        data: Data,
        #[arg(long)]
        json: bool,
    },
}

impl Alarm {
    /// Runs the command to its end.
    pub(super) async fn run(self) -> Result<ExitCode> {
        let data = match &self {
            Self::List { data, .. } | Self::Acknowledge { data, .. } | Self::Test { data, .. } => {
                data.clone()
            }
        };
        let (client, running) = client(&data).await?;
        let done = self.ask(&client).await;
        close(client, running).await;
        done
    }

    async fn ask(self, client: &Client) -> Result<ExitCode> {
        let t = Language::of_environment();
        match self {
            Self::List { json, .. } => {
                let alarms = control::json_of(client.get("/alarms").await?).await?;
                if json {
                    say_json(&alarms)?;
                    return Ok(ExitCode::SUCCESS);
                }
                if alarms.as_array().is_some_and(Vec::is_empty) {
                    complain(t.text("alarm.never"));
                }
                for alarm in alarms.as_array().into_iter().flatten() {
                    say(&line(t, alarm))?;
                }
            }
            Self::Acknowledge { id, .. } => {
                let body = json!({ "id": id });
                client.post("/alarms/acknowledge", &body).await?;
            }
            Self::Test { json, .. } => {
                let tested = client.post("/alarms/test", &json!({})).await?;
                let tested = control::json_of(tested).await?;
                let all: Vec<Tested> = serde_json::from_value(tested.clone())?;
                if json {
                    say_json(&tested)?;
                }
                for one in &all {
                    match &one.error {
                        Some(error) => complain(&t.say(&said!(
                            "notice.not_sent",
                            &one.channel,
                            &one.to,
                            error
                        ))),
                        None if json => {}
                        None => say(&t.say(&said!("notice.sent", &one.channel, &one.to)))?,
                    }
                }
                if all.iter().any(|one| one.error.is_some()) {
                    return Ok(ExitCode::FAILURE);
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// An alarm as a line: its number, when it came last, what it is, and whether it is seen or over.
fn line(t: Language, alarm: &Value) -> String {
    let field = |key: &str| {
        let value = alarm.get(key).unwrap_or(&Value::Null);
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let given = |key: &str| alarm.get(key).and_then(Value::as_str);
    let (id, last, kind) = (field("id"), field("last"), field("kind"));
    let (agent, text) = (field("agent"), field("text"));
    let mut line = format!("{id:4} {last} {kind:20} {agent:16} {text}");
    let count = alarm.get("count").and_then(Value::as_u64).unwrap_or(1);
    if count > 1 {
        line.push_str(&format!(" ({})", t.with("alarm.times", t.number(count))));
    }
    if let Some(by) = given("acknowledged_by") {
        line.push_str(&format!(" [{}]", t.say(&said!("alarm.seen_by", by))));
    }
    if let Some(why) = given("over_why") {
        line.push_str(&format!(" [{}]", t.say(&said!("alarm.over", why))));
    }
    line
}
