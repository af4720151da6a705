//! `duties`: what the running server does again and again, and what runs in it all the time.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use super::{say, say_json, say_lines};
use crate::control::{self, Client};

/// Prints them; exit code 1 when one fails, or no server runs.
pub(super) async fn run(dir: &Path, json: bool) -> Result<ExitCode> {
    let Some(client) = Client::connect(dir).await else {
        if json {
            say_json(&json!({ "running": false }))?;
        } else {
            say(&format!(
                "no server runs on {}; start it with: scrinium-server run",
                dir.display()
            ))?;
        }
        return Ok(ExitCode::FAILURE);
    };
    let table = control::json_of(client.get("/duties").await?).await?;
    if json {
        say_json(&table)?;
    } else {
        say_lines(&lines_of(&table))?;
    }
    let fails = rows(&table, "duties").any(|duty| number(duty, "failures") > 0);
    Ok(if fails {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn lines_of(table: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for duty in rows(table, "duties") {
        let mut line = format!(
            "{}: {}, every {} s, {} rounds",
            text(duty, "name"),
            text(duty, "state"),
            number(duty, "every_s"),
            number(duty, "rounds")
        );
        for (key, says) in [("began", "began"), ("good", "last good"), ("next", "next")] {
            if let Some(time) = duty.get(key).and_then(Value::as_str) {
                line.push_str(&format!(", {says} {time}"));
            }
        }
        if number(duty, "panics") > 0 {
            line.push_str(&format!(
                ", {} faults of the program",
                number(duty, "panics")
            ));
        }
        lines.push(line);
        if number(duty, "failures") > 0 {
            lines.push(format!(
                "  FAILED {} times: {}",
                number(duty, "failures"),
                text(duty, "error")
            ));
        }
    }
    for part in rows(table, "parts") {
        lines.push(format!(
            "{}: {} running",
            text(part, "name"),
            number(part, "running")
        ));
    }
    lines
}

fn rows<'a>(table: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    table
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn number(row: &Value, key: &str) -> u64 {
    row.get(key).and_then(Value::as_u64).unwrap_or(0)
}
