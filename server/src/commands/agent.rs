//! Commands about agents.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use scrinium_protocol::shown;
use serde_json::json;

use super::policy::{Acting, delete_agent};
use super::{Data, client, close, complain, parse_ttl, say, say_json, usage};
use crate::catalogue::records::FIRST_TENANT;
use crate::control::policy::DeleteRequest;
use crate::control::tokens::{EnrolRequest, ReplaceRequest, RevokeRequest};
use crate::control::{self, AgentRequest, Client};

#[derive(Subcommand)]
pub(crate) enum Agent {
    /// Prints a token for a new agent; with --uses for several, as images, manifests and golden masters hold one.
    #[command(
        visible_alias = "enrol",
        after_help = "Examples: scrinium-server agent enroll web1 --ttl 1h\n          scrinium-server agent enroll 'node-{host}' --uses 500 --expires 90d"
    )]
    Enroll {
        /// What it will be called. With --uses, {host} is what each machine calls itself and {n} the number of the use;
        /// where that is taken a number follows.
        name: String,
        #[command(flatten)]
        data: Data,
        #[arg(long, default_value = "")]
        site: String,
        /// The customer whose logs these are.
        #[arg(long, default_value = FIRST_TENANT)]
        tenant: String,
        /// How long the token is valid: 30m, 1h, 7d; at most 30 days, with --uses 400.
        #[arg(long, visible_alias = "expires", default_value = "1h")]
        ttl: String,
        /// How many agents it enrols, each with an identity and a name of its own.
        #[arg(long, default_value_t = 1)]
        uses: u32,
        /// What the agent dials, HOST:PORT, or several in their order with commas between; default from the
        /// configuration.
        #[arg(long)]
        address: Option<String>,
        /// What the agent reaches it through: http://HOST:PORT or socks5://HOST:PORT, with USER@ before HOST where it asks for a name.
        #[arg(long)]
        proxy: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// Prints a token for the machine that takes the place of an agent whose state is lost: reinstalled, or another one.
    /// It goes on where the server stands, and the lost state opens no session any more.
    #[command(after_help = "Example: scrinium-server agent replace web1")]
    Replace {
        name: String,
        #[command(flatten)]
        data: Data,
        /// How long the token is valid: 30m, 1h, 7d; at most 30 days.
        #[arg(long, visible_alias = "expires", default_value = "1h")]
        ttl: String,
        /// What the agent dials, HOST:PORT, or several in their order with commas between; default from the
        /// configuration.
        #[arg(long)]
        address: Option<String>,
        /// What the agent reaches it through: http://HOST:PORT or socks5://HOST:PORT, with USER@ before HOST where it asks for a name.
        #[arg(long)]
        proxy: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// Lists the tokens that still enrol somebody.
    #[command(after_help = "Example: scrinium-server agent tokens --json")]
    Tokens {
        #[command(flatten)]
        data: Data,
        #[arg(long)]
        json: bool,
    },
    /// Ends a token: nobody enrols with it any more, who did stays.
    #[command(
        after_help = "Example: scrinium-server agent revoke-token 0123456789abcdef0123456789abcdef"
    )]
    RevokeToken {
        /// As `agent tokens` lists it.
        id: String,
        #[command(flatten)]
        data: Data,
    },
    /// Lists the agents and how they do.
    #[command(after_help = "Example: scrinium-server agent list --json")]
    List {
        #[command(flatten)]
        data: Data,
        #[arg(long)]
        json: bool,
    },
    /// Shows one agent.
    #[command(after_help = "Example: scrinium-server agent show web1")]
    Show {
        name: String,
        #[command(flatten)]
        data: Data,
        #[arg(long)]
        json: bool,
    },
    /// Lets a disabled agent connect again.
    #[command(after_help = "Example: scrinium-server agent enable web1")]
    Enable {
        name: String,
        #[command(flatten)]
        data: Data,
    },
    /// Lets in what waits in quarantine under this name.
    #[command(after_help = "Example: scrinium-server agent approve web1")]
    Approve {
        name: String,
        #[command(flatten)]
        data: Data,
    },
    /// Allows an agent to send in clear, authenticated, on the port of listen.sl_integrity; without
    /// --allow forbids it.
    #[command(after_help = "Example: scrinium-server agent integrity-only web1 --allow")]
    IntegrityOnly {
        name: String,
        #[command(flatten)]
        data: Data,
        #[arg(long)]
        allow: bool,
    },
    /// Gives an agent a configuration, as a file in the form of agent.toml.
    #[command(after_help = "Example: scrinium-server agent configure web1 --file web.toml")]
    Configure {
        name: String,
        #[command(flatten)]
        data: Data,
        #[arg(long)]
        file: PathBuf,
    },
    /// Removes an agent and all that is archived of it: for readers at once, for good after three days. Asked once, it
    /// tells what would go.
    #[command(after_help = "Example: scrinium-server agent delete web1 --reason 'contract ended'")]
    Delete {
        name: String,
        #[command(flatten)]
        data: Data,
        #[arg(long)]
        reason: String,
        /// The word that the first answer gave.
        #[arg(long)]
        confirm: Option<String>,
        #[command(flatten)]
        acting: Acting,
    },
    /// Ends an agent's session and refuses new ones.
    #[command(after_help = "Example: scrinium-server agent disable web1")]
    Disable {
        name: String,
        #[command(flatten)]
        data: Data,
    },
}

impl Agent {
    /// Runs the command to its end.
    pub(super) async fn run(self) -> Result<()> {
        if let Self::Delete {
            name,
            data,
            reason,
            confirm,
            acting,
        } = self
        {
            let request = DeleteRequest {
                name,
                why: reason,
                confirm,
                person: acting.person()?,
            };
            return delete_agent(&data, &request).await;
        }
        let data = match &self {
            Self::Enroll { data, .. }
            | Self::Replace { data, .. }
            | Self::Tokens { data, .. }
            | Self::RevokeToken { data, .. }
            | Self::List { data, .. }
            | Self::Show { data, .. }
            | Self::Enable { data, .. }
            | Self::Approve { data, .. }
            | Self::IntegrityOnly { data, .. }
            | Self::Configure { data, .. }
            | Self::Delete { data, .. }
            | Self::Disable { data, .. } => data.clone(),
        };
        let (client, running) = client(&data).await?;
        self.ask(&client).await?;
        close(client, running).await;
        Ok(())
    }

    async fn ask(self, client: &Client) -> Result<()> {
        match self {
            Self::Enroll {
                name,
                site,
                tenant,
                ttl,
                uses,
                address,
                proxy,
                json,
                ..
            } => {
                let request = EnrolRequest {
                    name,
                    site,
                    tenant,
                    ttl_s: parse_ttl(&ttl).map_err(usage)?,
                    address,
                    proxy,
                    uses,
                };
                let made = control::json_of(client.post("/agents/enroll", &request).await?).await?;
                say_token(&made, json)
            }
            Self::Replace {
                name,
                ttl,
                address,
                proxy,
                json,
                ..
            } => {
                let request = ReplaceRequest {
                    name,
                    ttl_s: parse_ttl(&ttl).map_err(usage)?,
                    address,
                    proxy,
                };
                let made = client.post("/agents/replace", &request).await?;
                say_token(&control::json_of(made).await?, json)
            }
            Self::Tokens { json, .. } => {
                let tokens = control::json_of(client.get("/agents/tokens").await?).await?;
                if json {
                    return say_json(&tokens);
                }
                for token in tokens.as_array().into_iter().flatten() {
                    let field = |key: &str| {
                        let value = token.get(key).unwrap_or(&serde_json::Value::Null);
                        value
                            .as_str()
                            .map_or_else(|| value.to_string(), str::to_owned)
                    };
                    let (id, name, expires) = (field("id"), field("name"), field("expires"));
                    let (uses, uses_max) = (field("uses"), field("uses_max"));
                    say(&format!(
                        "{id} {name:24} used {uses} of {uses_max}, until {expires}"
                    ))?;
                }
                Ok(())
            }
            Self::RevokeToken { id, .. } => {
                let request = RevokeRequest { id };
                client.post("/agents/tokens/revoke", &request).await?;
                Ok(())
            }
            Self::List { json, .. } => {
                let agents = control::json_of(client.get("/agents").await?).await?;
                if json {
                    return say_json(&agents);
                }
                if agents.as_array().is_some_and(Vec::is_empty) {
                    complain(
                        "no agent is enrolled yet; make a token with: scrinium-server agent enroll NAME",
                    );
                }
                for agent in agents.as_array().into_iter().flatten() {
                    let field = |key: &str| {
                        agent
                            .get(key)
                            .and_then(|v| v.as_str())
                            .unwrap_or("-")
                            .to_owned()
                    };
                    let (name, state) = (field("name"), field("state"));
                    say(&format!(
                        "{name:24} {state:12} last durable {}  {}",
                        field("last_durable"),
                        field("os")
                    ))?;
                }
                Ok(())
            }
            Self::Show { name, .. } => {
                let agents = control::json_of(client.get("/agents").await?).await?;
                let named = |agent: &&serde_json::Value| {
                    agent.get("name").and_then(|n| n.as_str()) == Some(&name)
                };
                let agent = agents.as_array().into_iter().flatten().find(named);
                let agent = agent.with_context(|| format!("no agent is named '{name}'"))?;
                say_json(agent)
            }
            Self::Enable { name, .. } => set_enabled(client, &name, true).await,
            Self::Disable { name, .. } | Self::Delete { name, .. } => {
                set_enabled(client, &name, false).await
            }
            Self::Approve { name, .. } => {
                ask_agent(client, "/agents/approve", name, false, String::new()).await?;
                Ok(())
            }
            Self::IntegrityOnly { name, allow, .. } => {
                let route = "/agents/integrity-only";
                ask_agent(client, route, name, allow, String::new()).await?;
                Ok(())
            }
            Self::Configure { name, file, .. } => {
                let text = std::fs::read_to_string(&file);
                let text = text.with_context(|| format!("reading {}", file.display()))?;
                let made = ask_agent(client, "/agents/configure", name, false, text).await?;
                say(&shown::json(&made.to_string()))
            }
        }
    }
}

/// The token alone, or all that is known of it.
fn say_token(made: &serde_json::Value, json: bool) -> Result<()> {
    if json {
        return say(&shown::json(&made.to_string()));
    }
    let token = made.get("token").and_then(|token| token.as_str());
    say(token.unwrap_or_default())
}

async fn ask_agent(
    client: &Client,
    route: &str,
    name: String,
    allow: bool,
    text: String,
) -> Result<serde_json::Value> {
    let request = AgentRequest { name, allow, text };
    control::json_of(client.post(route, &request).await?).await
}

async fn set_enabled(client: &Client, name: &str, enabled: bool) -> Result<()> {
    client
        .post(
            "/agents/enabled",
            &json!({ "name": name, "enabled": enabled }),
        )
        .await?;
    Ok(())
}
