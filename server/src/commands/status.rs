//! `status`: how the running server does.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use super::{say, say_json, say_lines};
use crate::control::{self, Client};
use crate::present::human_bytes;

/// Prints it; a server that does not run is exit code 1.
pub(super) async fn run(dir: &Path, json: bool) -> Result<ExitCode> {
    let Some(client) = Client::connect(dir).await else {
        let stopped = json!({ "running": false, "health": "stopped" });
        if json {
            say_json(&stopped)?;
        } else {
            say(&format!(
                "no server runs on {}; start it with: scrinium-server run",
                dir.display()
            ))?;
        }
        return Ok(ExitCode::FAILURE);
    };
    let status = control::json_of(client.get("/status").await?).await?;
    if json {
        say_json(&status)?;
    } else {
        say_lines(&lines_of(&status))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn lines_of(status: &Value) -> Vec<String> {
    let text = |at: &str| {
        let value = status.pointer(at).and_then(Value::as_str);
        value.unwrap_or_default().to_owned()
    };
    let number = |at: &str| status.pointer(at).and_then(Value::as_u64);
    let list = |at: &str| status.pointer(at).and_then(Value::as_array).into_iter();
    let mut lines = vec![format!("health: {}", text("/health"))];
    let problems = list("/problems").flatten().filter_map(Value::as_str);
    lines.extend(problems.map(|problem| format!("  {problem}")));
    let confirmed = status.pointer("/time/confirmed") == Some(&Value::Bool(true));
    let confirmed = if confirmed {
        "confirmed"
    } else {
        "NOT confirmed"
    };
    lines.push(format!(
        "time: {}, {confirmed}: {} (the machine's clock: {})",
        text("/time/server"),
        text("/time/why"),
        text("/time/wall")
    ));
    for waits in list("/waits").flatten() {
        let sentence = waits.get("sentence").and_then(Value::as_str);
        lines.push(format!("waits: {}", sentence.unwrap_or_default()));
    }
    lines.push(match number("/intervals/age_s") {
        Some(age_s) => format!(
            "intervals: {}, the last one {age_s} s ago",
            number("/intervals/count").unwrap_or(0)
        ),
        None => "intervals: none yet".to_owned(),
    });
    let kinds = list("/alarms/kinds").flatten().filter_map(Value::as_str);
    let kinds = kinds.collect::<Vec<_>>().join(", ");
    lines.push(match number("/alarms/open") {
        Some(open) if open > 0 => format!("alarms: {open} open ({kinds})"),
        _ => "alarms: none open".to_owned(),
    });
    lines.push(match status.pointer("/verification/whole") {
        Some(whole) => format!(
            "verification: {}, {}; every byte was read since {}",
            text("/verification/last"),
            if whole == &Value::Bool(true) {
                "whole"
            } else {
                "NOT whole"
            },
            text("/verification/full")
        ),
        None => "verification: none yet".to_owned(),
    });
    let late = status.pointer("/backup/late") == Some(&Value::Bool(true));
    let made = crate::present::rfc3339(number("/backup/last/made_us").unwrap_or(0));
    lines.push(match number("/backup/last/made_us") {
        Some(made_us) if made_us > 0 && late => format!("backup: {made}, late"),
        Some(made_us) if made_us > 0 => format!("backup: {made}"),
        _ => "backup: none yet".to_owned(),
    });
    let free = number("/disk/free_bytes");
    let free = free.map_or_else(|| "unknown".to_owned(), human_bytes);
    lines.push(format!(
        "disk: {} of archive, {free} free",
        human_bytes(number("/disk/archive_bytes").unwrap_or(0))
    ));
    lines
}
