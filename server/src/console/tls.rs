//! TLS of the console: the certificate it makes itself, or the administrator's own.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use scrinium_protocol::kdf::sha256;
use serde_json::json;
use tokio_rustls::TlsAcceptor;
use tracing::info;
use zeroize::Zeroizing;

use crate::alarms::{AlarmKind, Raise};
use crate::audit::Actor;
use crate::catalogue::records::ServerKeys;
use crate::clock::{self, DAY_US};
use crate::core::{Core, OWN_NAME, load_keys};
use crate::der::certificate_ends_us;
use crate::duties::keep::{Duty, Plan};
use crate::present::rfc3339;
use crate::said::said;
use crate::self_signed::{fingerprint, is_due, renew};
use crate::waits;

/// Files of the administrator's certificate and of its key.
type Files = (PathBuf, PathBuf);

/// The certificate that is shown now.
#[derive(Debug)]
pub(crate) struct Shown {
    certified: RwLock<Arc<CertifiedKey>>,
    /// Where it lies, if it is the administrator's.
    files: RwLock<Option<Files>>,
}

impl Shown {
    /// Shows this one from now on.
    fn show(&self, certified: CertifiedKey) {
        let mut shown = self
            .certified
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *shown = Arc::new(certified);
    }

    /// Shows the one of these files, and what they hold later.
    pub(crate) fn show_files(&self, files: Files, certified: CertifiedKey) {
        *self.files.write().unwrap_or_else(PoisonError::into_inner) = Some(files);
        self.show(certified);
    }

    fn now(&self) -> Arc<CertifiedKey> {
        let shown = self
            .certified
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        shown.clone()
    }

    fn files(&self) -> Option<Files> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.clone()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now())
    }
}

/// The administrator's certificate: files of a chain and its key, in PEM.
pub(crate) fn installed(files: &Files) -> Result<CertifiedKey> {
    let (certificate, key) = files;
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("console.certificate: reading {}", certificate.display()))?;
    let key = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("console.key: reading {}", key.display()))?;
    let provider = rustls::crypto::ring::default_provider();
    let certified = CertifiedKey::from_der(chain, key, &provider);
    certified.with_context(|| {
        let (certificate, key) = files;
        format!(
            "console.certificate {} and console.key {} do not fit together; put the key of this certificate there",
            certificate.display(),
            key.display()
        )
    })
}

/// The acceptor, and what it shows: the administrator's certificate, else one of our own for `names`.
pub(crate) async fn config(
    core: &Core,
    installed: Option<(Files, CertifiedKey)>,
    names: &[String],
) -> Result<(TlsAcceptor, Arc<Shown>)> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (files, certified) = match installed {
        Some((files, certified)) => (Some(files), certified),
        None => (None, own(core, names, &provider).await?.1),
    };
    let shown = Arc::new(Shown {
        certified: RwLock::new(Arc::new(certified)),
        files: RwLock::new(files),
    });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(shown.clone());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((TlsAcceptor::from(Arc::new(config)), shown))
}

/// Keeps the certificate right: makes our own anew when it is due, takes the administrator's when its files change, and
/// raises an alarm before it ends. A server may run for years.
pub(crate) struct Keeping {
    core: Arc<Core>,
    names: Vec<String>,
    shown: Arc<Shown>,
    /// SHA-256 of both files as they were shown last.
    seen: Option<[u8; 32]>,
    /// The end that was told, Unix µs.
    told: Option<u64>,
}

impl Keeping {
    pub(crate) fn new(core: Arc<Core>, names: Vec<String>, shown: Arc<Shown>) -> Self {
        Self {
            seen: shown.files().and_then(|files| digest(&files).ok()),
            core,
            names,
            shown,
            told: None,
        }
    }

    /// When it is looked at: files that are replaced are shown within seconds.
    pub(crate) fn plan(files: Option<&Files>) -> Plan {
        Plan {
            point: "duty: console certificate",
            every: match files {
                Some(_) => FILES_EVERY,
                None => OWN_EVERY,
            },
            long: Duration::from_secs(60),
            raises: false,
        }
    }

    /// Shows what the files hold, when they have changed and fit.
    async fn take_files(&mut self, files: &Files) -> Result<()> {
        // A file system that does not answer keeps this duty, and nobody else.
        let now = waits::off_worker(|| digest(files))?;
        if self.seen == Some(now) {
            return Ok(());
        }
        // One of two files may be new already: what does not fit is looked at again, and the other one shown until then.
        let certified = waits::off_worker(|| installed(files))?;
        let der = certified.end_entity_cert()?;
        let (sha256, ends_us) = (fingerprint(der), certificate_ends_us(der)?);
        let until = rfc3339(ends_us);
        info!(
            sha256,
            until, "the console's certificate was replaced and is shown now"
        );
        let detail = json!({ "sha256": sha256, "until": until });
        self.shown.show(certified);
        self.seen = Some(now);
        let by = Actor::of(OWN_NAME);
        self.core
            .unsaid
            .tell(&by, "console certificate replaced", detail)
            .await;
        Ok(())
    }

    /// One alarm for each certificate that ends soon.
    async fn tell_of_its_end(&mut self) -> Result<()> {
        let ends_us = certificate_ends_us(self.shown.now().end_entity_cert()?)?;
        let now_us = clock::unix_us();
        let ends_soon = ends_us.saturating_sub(now_us) < ALARM_DAYS * DAY_US;
        // Of a certificate that is shown no longer it is over, also when the server was restarted for that.
        let (alarms, kind) = (&self.core.alarms, AlarmKind::CertificateEnds);
        let told = alarms.lasting_of_server(kind);
        for key in &told {
            if !ends_soon || *key != ends_us.to_string() {
                let over = said!("over.certificate");
                alarms.end_of(kind, OWN_NAME, key, over).await;
            }
        }
        let is_told = self.told == Some(ends_us) || told.contains(&ends_us.to_string());
        self.told = ends_soon.then_some(ends_us);
        if !ends_soon || is_told {
            return Ok(());
        }
        let place = match self.shown.files() {
            Some((certificate, _)) => {
                said!(
                    "alarm_text.certificate-file",
                    certificate.display().to_string()
                )
            }
            None => said!("alarm_text.certificate-own"),
        };
        let text = match ends_us > now_us {
            true => said!("alarm_text.certificate-ends", rfc3339(ends_us), place),
            false => said!("alarm_text.certificate-ended", rfc3339(ends_us), place),
        };
        self.core
            .alarms
            .raise(Raise {
                kind,
                agent: OWN_NAME.to_owned(),
                text,
                key: ends_us.to_string(),
            })
            .await;
        Ok(())
    }
}

impl Duty for Keeping {
    async fn round(&mut self) -> Result<()> {
        let kept = match self.shown.files() {
            Some(files) => self.take_files(&files).await,
            None => {
                let provider = rustls::crypto::ring::default_provider();
                let own = own(&self.core, &self.names, &provider).await;
                own.map(|(is_new, certified)| {
                    if is_new {
                        self.shown.show(certified);
                    }
                })
            }
        };
        self.tell_of_its_end().await?;
        kept
    }
}

/// SHA-256 of what two files hold.
fn digest((certificate, key): &Files) -> Result<[u8; 32]> {
    let read = |path: &PathBuf| {
        let bytes = std::fs::read(path);
        bytes.with_context(|| format!("reading {}", path.display()))
    };
    let (certificate, key) = (read(certificate)?, Zeroizing::new(read(key)?));
    let len = (certificate.len() as u64).to_be_bytes();
    Ok(sha256(&[&len, &certificate, &key]))
}

/// The certificate of our own, and whether it was made just now.
async fn own(
    core: &Core,
    names: &[String],
    provider: &CryptoProvider,
) -> Result<(bool, CertifiedKey)> {
    let mut keys = load_keys(&core.catalogue)?;
    let now_us = clock::unix_us();
    let why = is_due(&keys, names, now_us);
    if let Some(why) = why {
        renew(&mut keys, names, now_us)?;
        core.catalogue.put(&keys)?;
        // At this point it is durable; if we die now, the next start shows it.
        let (_, der) = certified(&keys, provider)?;
        let (sha256, until) = (fingerprint(&der), rfc3339(keys.certificate_ends_us));
        info!(
            why,
            sha256,
            until,
            ?names,
            "made the console's self-signed certificate; compare its SHA-256 with what the browser shows"
        );
        let detail = json!({ "why": why, "sha256": sha256, "until": until, "names": names });
        let by = Actor::of(OWN_NAME);
        core.unsaid
            .tell(&by, "console certificate made", detail)
            .await;
    }
    Ok((why.is_some(), certified(&keys, provider)?.0))
}

fn certified(
    keys: &ServerKeys,
    provider: &CryptoProvider,
) -> Result<(CertifiedKey, CertificateDer<'static>)> {
    let chain = CertificateDer::pem_slice_iter(keys.certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()?;
    let der = chain.first().cloned().context("the certificate is empty")?;
    let key = PrivateKeyDer::from_pem_slice(keys.certificate_key.as_bytes())?;
    Ok((CertifiedKey::from_der(chain, key, provider)?, der))
}

/// How often our own is looked at, and an administrator's files.
const OWN_EVERY: Duration = Duration::from_secs(6 * 3600);
const FILES_EVERY: Duration = Duration::from_secs(5);
/// A certificate that ends sooner is an alarm.
const ALARM_DAYS: u64 = 30;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::{new_volume, running};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_alarm_of_a_certificate_ends_when_another_one_is_shown_after_a_restart() {
        let dir = new_volume("certificate", |_| {});
        let running = running(&dir);
        let core = running.core.clone();
        let names = ["localhost".to_owned()];
        let (_, shown) = config(&core, None, &names).await.unwrap();
        let raise = Raise {
            kind: AlarmKind::CertificateEnds,
            agent: OWN_NAME.to_owned(),
            text: said!("alarm_text.certificate-own"),
            key: "1800000000000000".to_owned(),
        };
        core.alarms.raise(raise).await;
        let mut keeping = Keeping::new(core.clone(), names.into(), shown);
        keeping.tell_of_its_end().await.unwrap();
        assert!(core.alarms.lasting(AlarmKind::CertificateEnds).is_empty());
        drop((core, keeping));
        running.close().await;
        std::fs::remove_dir_all(dir).unwrap();
    }
}
