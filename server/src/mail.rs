//! Mail, through the relay that the configuration names.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use axum::http::Uri;
use lettre::message::header::ContentType;
use lettre::message::{Attachment, Mailbox, MultiPart, SinglePart};
use lettre::transport::smtp::authentication::Credentials;
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};
use zeroize::Zeroizing;

/// How long a letter may take. Relays that look into it answer within some seconds.
const SEND_MAX: Duration = Duration::from_secs(30);

/// Who takes our mail, and as whom we bring it.
#[derive(Clone, Debug)]
pub(crate) struct Relay {
    /// `smtps://HOST[:PORT]`, or `smtp://` for a relay that takes mail in clear; with `?tls=required` after STARTTLS.
    url: String,
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
        let relay = Self {
            url,
            from: from
                .parse()
                .with_context(|| format!("mail.from '{from}'"))?,
            account,
        };
        let uri: Option<Uri> = relay.url.parse().ok();
        let authority = uri.as_ref().and_then(Uri::authority);
        ensure!(
            authority.is_none_or(|authority| !authority.as_str().contains('@')),
            "mail.relay must not hold a name or a password: give mail.user and mail.password_file"
        );
        relay.transport(None)?;
        Ok(relay)
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
        let transport = self.transport(credentials)?;
        // The library waits for as long as the relay keeps the connection.
        let sending = transport.send(self.message(to, letter)?);
        let Ok(sent) = tokio::time::timeout(SEND_MAX, sending).await else {
            bail!(
                "{} for {}: no answer in {} s",
                self.url,
                to.email,
                SEND_MAX.as_secs()
            );
        };
        sent.with_context(|| format!("{} for {}", self.url, to.email))?;
        Ok(())
    }

    fn transport(
        &self,
        credentials: Option<Credentials>,
    ) -> Result<AsyncSmtpTransport<Tokio1Executor>> {
        let builder = AsyncSmtpTransport::<Tokio1Executor>::from_url(&self.url)
            .with_context(|| format!("mail.relay '{}'", self.url))?;
        Ok(match credentials {
            None => builder.build(),
            Some(credentials) => builder.credentials(credentials).build(),
        })
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
