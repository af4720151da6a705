//! Mail, through the relay that the configuration names.
//!
//! ```text
//! [Letter] ─▶ [Relay] ─▶ [connection]: bounded in bytes and in time ─▶ the relay
//! ```

mod connection;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lettre::Message;
use lettre::message::header::ContentType;
use lettre::message::{Attachment, Mailbox, MultiPart, SinglePart};
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use zeroize::Zeroizing;

use self::connection::Place;
use crate::bounds::cut;

/// How long a letter may take. Relays that look into it answer within some seconds.
const SEND_MAX: Duration = Duration::from_secs(30);
/// How long we wait for a relay to say goodbye once it has the letter.
const GOODBYE_MAX: Duration = Duration::from_secs(2);
/// What is passed on of a relay's own words, in bytes: two lines of RFC 5321, section 4.5.3.1.5.
const SAID_LEN_MAX: usize = 1024;

/// Who takes our mail, and as whom we bring it.
#[derive(Clone, Debug)]
pub(crate) struct Relay {
    /// `smtps://HOST[:PORT]`, or `smtp://` for a relay that takes mail in clear; with `?tls=required` after STARTTLS.
    url: String,
    place: Place,
    from: Mailbox,
    /// A name, and the file with its password, which is read each time.
    account: Option<(String, PathBuf)>,
}

/// Something to be sent.
pub(crate) struct Letter {
    pub(crate) subject: String,
    pub(crate) text: String,
    /// Name, and bytes.
    pub(crate) enclosed: Vec<(String, Vec<u8>)>,
}

impl Relay {
    /// Takes what the configuration says.
    ///
    /// # Errors
    /// A field is not what it must be; the error names it.
    pub(crate) fn new(url: String, from: &str, account: Option<(String, PathBuf)>) -> Result<Self> {
        ensure!(
            !url.contains('@'),
            "mail.relay must not hold a name or a password: give mail.user and mail.password_file"
        );
        let place = Place::parse(&url).with_context(|| format!("mail.relay '{url}'"))?;
        let from = from
            .parse()
            .with_context(|| format!("mail.from '{from}'"))?;
        Ok(Self {
            url,
            place,
            from,
            account,
        })
    }

    /// Sends one letter. Whoever writes to several remembers who got it: one who is refused keeps it from nobody else, and gives
    /// nobody else one twice.
    ///
    /// # Errors
    /// The relay is away, or refuses whom it is to.
    pub(crate) async fn send(&self, to: &Mailbox, letter: &Letter) -> Result<()> {
        let credentials = match &self.account {
            None => None,
            Some((name, file)) => {
                let read = std::fs::read_to_string(file);
                let read = read.with_context(|| format!("mail.password_file {}", file.display()));
                let password = Zeroizing::new(read?);
                let password = password.trim_end_matches(['\r', '\n']).to_owned();
                Some(Credentials::new(name.clone(), password))
            }
        };
        let message = self.message(to, letter)?;
        let sending = async {
            let mut connection = self.place.connect().await?;
            if let Some(credentials) = &credentials {
                connection.auth(DEFAULT_MECHANISMS, credentials).await?;
            }
            let (envelope, letter) = (message.envelope(), message.formatted());
            connection.send(envelope, &letter).await?;
            anyhow::Ok(connection)
        };
        let Ok(sent) = tokio::time::timeout(SEND_MAX, sending).await else {
            bail!(
                "{} for {}: no answer in {} s",
                self.url,
                to.email,
                SEND_MAX.as_secs()
            );
        };
        let mut connection = sent.map_err(|error| {
            let said = format!("{error:#}");
            anyhow!(
                "{} for {}: {}",
                self.url,
                to.email,
                cut(&said, SAID_LEN_MAX)
            )
        })?;
        // It has the letter: whatever it says now, it is not sent again.
        drop(tokio::time::timeout(GOODBYE_MAX, connection.abort()).await);
        Ok(())
    }

    fn message(&self, to: &Mailbox, letter: &Letter) -> Result<Message> {
        let mut parts = MultiPart::mixed().singlepart(SinglePart::plain(letter.text.clone()));
        for (name, bytes) in &letter.enclosed {
            let octets = ContentType::parse("application/octet-stream")?;
            parts = parts.singlepart(Attachment::new(name.clone()).body(bytes.clone(), octets));
        }
        let builder = Message::builder()
            .from(self.from.clone())
            .to(to.clone())
            .subject(letter.subject.clone());
        Ok(builder.multipart(parts)?)
    }
}
