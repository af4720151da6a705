//! A checkpoint a day, by mail: a copy in a mailbox is out of reach of whoever has this machine.
//!
//! ```text
//! checkpoint ─▶ a letter to each ─▶ [Mailed]: the day, and while somebody was refused, who got it
//! ```

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, bail};
use lettre::message::Mailbox;
use scrinium_segment::durable;

use crate::mail::{Letter, Relay};

/// Who gets it, through whom.
#[derive(Clone, Debug)]
pub(crate) struct Correspondence {
    pub(crate) relay: Relay,
    pub(crate) to: Vec<Mailbox>,
}

/// What is enclosed.
pub(super) struct Enclosed {
    /// Of the archive.
    pub(super) name: String,
    pub(super) day: String,
    pub(super) note: String,
    /// The RFC 3161 token over it, if there is one.
    pub(super) token: Option<Vec<u8>>,
}

impl Correspondence {
    /// Sends what was not sent yet; `dir` remembers what was.
    pub(super) async fn write(&self, dir: &Path, enclosed: Enclosed) -> Result<()> {
        let file = dir.join(MAILED_FILE);
        let Enclosed {
            name,
            day,
            note,
            token,
        } = enclosed;
        let with_token = format!("{day} with its token\n");
        let now = match token {
            Some(_) => with_token.clone(),
            None => format!("{day}\n"),
        };
        let before = std::fs::read_to_string(&file).unwrap_or_default();
        if before == now || before == with_token {
            return Ok(());
        }
        let mut mailed = Mailed::parse(&before, &now);
        let stem = format!("{name}-{day}");
        let mut text = format!(
            "Keep this message. It lets you tell later, without trusting the archive or whoever runs it, whether anything\n\
             received until now was taken away, changed or put in:\n\
             \n\
             \x20   scrinium-server verify --checkpoint {stem}.checkpoint\n"
        );
        let mut files = vec![(format!("{stem}.checkpoint"), note.into_bytes())];
        if let Some(token) = token {
            text.push_str(&format!(
                "\nThe token is a time-stamp authority's word (RFC 3161) on when the checkpoint was there:\n\
                 \n\
                 \x20   openssl ts -verify -in {stem}.tsr -data {stem}.checkpoint -CAfile AUTHORITY.pem\n"
            ));
            files.push((format!("{stem}.tsr"), token));
        }
        let letter = Letter {
            subject: format!("{name}: checkpoint of {day}"),
            text,
            enclosed: files,
        };
        let mut refused = Vec::new();
        for to in &self.to {
            let name = to.email.to_string();
            if mailed.to.contains(&name) {
                continue;
            }
            match self.relay.send(to, &letter).await {
                Ok(()) => {
                    mailed.to.insert(name);
                    durable::write_file(&file, mailed.in_part().as_bytes())?;
                }
                Err(error) => refused.push(format!("{error:#}")),
            }
        }
        if !refused.is_empty() {
            bail!("{}", refused.join("; "));
        }
        Ok(durable::write_file(&file, now.as_bytes())?)
    }
}

/// Who got a letter that not everybody got.
struct Mailed {
    /// The line of a letter that everybody got.
    whole: String,
    to: BTreeSet<String>,
}

impl Mailed {
    /// As the file says it of the same letter; nobody of another one.
    fn parse(text: &str, whole: &str) -> Self {
        let mailed = Self {
            whole: whole.to_owned(),
            to: BTreeSet::new(),
        };
        let to = text.strip_prefix(&mailed.in_part()).unwrap_or_default();
        Self {
            to: to.lines().map(str::to_owned).collect(),
            ..mailed
        }
    }

    fn in_part(&self) -> String {
        let names = self.to.iter().map(|name| format!("{name}\n"));
        let names: String = names.collect();
        format!("{}, in part\n{names}", self.whole.trim_end())
    }
}

/// The day of the last letter.
const MAILED_FILE: &str = "mailed";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_got_a_letter_is_known_until_there_is_another_letter() {
        let mut mailed = Mailed::parse("2026-01-30\n", "2026-01-31\n");
        assert!(mailed.to.is_empty());
        mailed.to.insert("a@example.org".into());
        mailed.to.insert("b@example.org".into());
        let text = mailed.in_part();
        assert_ne!(text, "2026-01-31\n");
        assert_eq!(Mailed::parse(&text, "2026-01-31\n").to, mailed.to);
        assert!(
            Mailed::parse(&text, "2026-01-31 with its token\n")
                .to
                .is_empty()
        );
    }
}
