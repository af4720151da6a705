//! TLS of the console: the certificate made at `init`, or the administrator's own.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::core::Core;

/// Builds the acceptor; `files` are certificate chain and key in PEM.
pub(crate) fn config(core: &Core, files: Option<&(PathBuf, PathBuf)>) -> Result<TlsAcceptor> {
    let (chain, key) = match files {
        Some((certificate, key)) => (
            CertificateDer::pem_file_iter(certificate)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .with_context(|| {
                    format!("console.certificate: reading {}", certificate.display())
                })?,
            PrivateKeyDer::from_pem_file(key)
                .with_context(|| format!("console.key: reading {}", key.display()))?,
        ),
        None => {
            let (certificate, key) = &core.certificate;
            let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
                .collect::<Result<Vec<_>, _>>()?;
            (chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?)
        }
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("console.certificate and console.key do not fit")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
