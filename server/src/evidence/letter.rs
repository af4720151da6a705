//! A checkpoint a day, by mail: a copy in a mailbox is out of reach of whoever has this machine.

use std::path::Path;

use anyhow::Result;
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
        let before = std::fs::read(&file).unwrap_or_default();
        if before == now.as_bytes() || before == with_token.as_bytes() {
            return Ok(());
        }
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
        self.relay.send(&self.to, &letter).await?;
        Ok(durable::write_file(&file, now.as_bytes())?)
    }
}

/// The day of the last letter.
const MAILED_FILE: &str = "mailed";
