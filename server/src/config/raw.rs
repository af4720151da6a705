//! The configuration file, field for field. Only what checks it sees these types.

use std::path::PathBuf;

#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Config {
    pub(super) listen: Listen,
    pub(super) agents: Agents,
    pub(super) archive: Archive,
    pub(super) evidence: Evidence,
    pub(super) retention: Retention,
    pub(super) backup: Backup,
    pub(super) mail: Mail,
    pub(super) alarms: Alarms,
    pub(super) console: Console,
    pub(super) limits: Limits,
}

#[derive(serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) console_connections_max: usize,
    pub(super) console_connections_each_max: usize,
    pub(super) syslog_connections_max: usize,
    pub(super) syslog_connections_each_max: usize,
    pub(super) syslog_idle_h: u64,
    pub(super) syslog_new_senders_per_day_max: usize,
    pub(super) syslog_senders_max: usize,
    pub(super) agent_streams_max: usize,
    pub(super) agent_new_streams_per_minute_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            console_connections_max: 512,
            console_connections_each_max: 128,
            syslog_connections_max: 2048,
            syslog_connections_each_max: 512,
            syslog_idle_h: 24,
            syslog_new_senders_per_day_max: 20_000,
            syslog_senders_max: 100_000,
            agent_streams_max: 250_000,
            agent_new_streams_per_minute_max: 60_000,
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Listen {
    pub(super) sl: Vec<String>,
    pub(super) sl_integrity: Vec<String>,
    pub(super) console: Vec<String>,
    pub(super) metrics: Vec<String>,
    pub(super) syslog_udp: Vec<String>,
    pub(super) syslog_tcp: Vec<String>,
}

impl Default for Listen {
    fn default() -> Self {
        let any = |port: u16| vec![format!("0.0.0.0:{port}")];
        Self {
            sl: any(720),
            sl_integrity: Vec::new(), // 721 when an administrator wants it
            console: any(8443),
            metrics: Vec::new(), // 127.0.0.1:9720 when something monitors
            syslog_udp: any(514),
            syslog_tcp: [any(514), any(5140)].concat(),
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Agents {
    pub(super) address: Option<String>,
    pub(super) keep_alive_s: u64,
    pub(super) machine_changes_max: usize,
    pub(super) silent_after_s: u64,
    pub(super) clock_offset_max_s: u64,
    pub(super) handshakes_per_s: u32,
    pub(super) half_open_max: usize,
    pub(super) sessions_max: usize,
}

impl Default for Agents {
    fn default() -> Self {
        Self {
            address: None,
            keep_alive_s: 10,
            machine_changes_max: 1,
            silent_after_s: 300,
            clock_offset_max_s: 60,
            handshakes_per_s: 50,
            half_open_max: 512,
            sessions_max: 20_000,
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Archive {
    pub(super) log_mib_max: u64,
    pub(super) reread_days: u32,
    pub(super) log_minutes_max: u64,
    pub(super) cipher: String,
}

impl Default for Archive {
    fn default() -> Self {
        Self {
            log_mib_max: 64,
            reread_days: 7,
            log_minutes_max: 60,
            cipher: "aes-256-gcm".into(),
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Evidence {
    pub(super) interval_s: u64,
    pub(super) copies: Vec<PathBuf>,
    pub(super) time_stamp_authority: Option<String>,
    pub(super) witnesses: Vec<String>,
    pub(super) mail_to: Vec<String>,
}

impl Default for Evidence {
    fn default() -> Self {
        Self {
            interval_s: 300,
            copies: Vec::new(),
            time_stamp_authority: None,
            witnesses: Vec::new(),
            mail_to: Vec::new(),
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Retention {
    pub(super) step_wait_h: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { step_wait_h: 24 }
    }
}

#[derive(serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Backup {
    pub(super) to: Option<String>,
    pub(super) keys: Option<PathBuf>,
    pub(super) every_h: u64,
}

impl Default for Backup {
    fn default() -> Self {
        Self {
            to: None,
            keys: None,
            every_h: 24,
        }
    }
}

#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Mail {
    pub(super) relay: Option<String>,
    pub(super) from: Option<String>,
    pub(super) user: Option<String>,
    pub(super) password_file: Option<PathBuf>,
}

#[derive(serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Alarms {
    pub(super) language: String,
    pub(super) mail_to: Vec<String>,
    pub(super) mail_severity: String,
    pub(super) webhook: Option<String>,
    pub(super) webhook_severity: String,
    pub(super) syslog: Option<String>,
    pub(super) syslog_severity: String,
}

impl Default for Alarms {
    fn default() -> Self {
        Self {
            language: "en".into(),
            mail_to: Vec::new(),
            mail_severity: "warning".into(),
            webhook: None,
            webhook_severity: "warning".into(),
            syslog: None,
            syslog_severity: "notice".into(),
        }
    }
}

#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Console {
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}
