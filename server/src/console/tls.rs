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
use serde_json::json;
use tokio_rustls::TlsAcceptor;
use tracing::{error, info};

use crate::catalogue::records::ServerKeys;
use crate::clock;
use crate::core::{Core, OWN_NAME, load_keys};
use crate::present::rfc3339;
use crate::self_signed::{fingerprint, is_due, renew};

/// The certificate that is shown now.
#[derive(Debug)]
pub(crate) struct Shown(RwLock<Arc<CertifiedKey>>);

impl Shown {
    /// Shows this one from now on.
    pub(crate) fn show(&self, certified: CertifiedKey) {
        let mut shown = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *shown = Arc::new(certified);
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(shown.clone())
    }
}

/// The administrator's certificate: files of a chain and its key, in PEM.
pub(crate) fn installed(files: &(PathBuf, PathBuf)) -> Result<CertifiedKey> {
    let (certificate, key) = files;
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("console.certificate: reading {}", certificate.display()))?;
    let key = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("console.key: reading {}", key.display()))?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider)
        .context("console.certificate and console.key do not fit")
}

/// The acceptor, and what it shows: the administrator's certificate, else one of our own for `names`.
pub(crate) async fn config(
    core: &Core,
    installed: Option<CertifiedKey>,
    names: &[String],
) -> Result<(TlsAcceptor, Arc<Shown>)> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certified = match installed {
        Some(certified) => certified,
        None => own(core, names, &provider).await?.1,
    };
    let shown = Arc::new(Shown(RwLock::new(Arc::new(certified))));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(shown.clone());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((TlsAcceptor::from(Arc::new(config)), shown))
}

/// Makes the certificate anew when it is due, for as long as the task lives: a server may run for years.
pub(crate) async fn keep(core: Arc<Core>, names: Vec<String>, shown: Arc<Shown>) {
    let provider = rustls::crypto::ring::default_provider();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match own(&core, &names, &provider).await {
            Ok((true, certified)) => shown.show(certified),
            Ok((false, _)) => {}
            Err(error) => {
                let error = format!("{error:#}");
                error!(error, "the console's certificate could not be made anew");
            }
        }
    }
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
        core.audit
            .record(OWN_NAME, "console certificate made", detail)
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

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(6 * 3600);
