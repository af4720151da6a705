//! Certificates of deletion go into a trail of their own: a stream of the archive like any other.
//!
//! Invariant: each is there once. Before one is sent, the catalogue notes where the trail stands; a trail that
//! stands behind that has it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use scrinium_protocol::identity::StreamKind;

use crate::audit::DELETIONS;
use crate::catalogue::records::CertificateRecord;
use crate::clock::DAY_US;
use crate::core::Core;
use crate::duties::keep::{Duty, Plan};

/// Publishes certificates as they are made.
pub(crate) struct Publishing(pub(crate) Arc<Core>);

impl Duty for Publishing {
    async fn round(&mut self) -> Result<()> {
        let published = publish(&self.0).await;
        published.context("certificates of deletion wait for their trail")
    }
}

/// Publishes what waits; all of it is durable when this returns.
pub(crate) async fn publish(core: &Core) -> Result<()> {
    let _one_at_a_time = core.publishing.lock().await;
    let mut waiting = core.catalogue.load::<CertificateRecord>()?;
    waiting.sort_by_key(|certificate| certificate.number);
    for mut certificate in waiting {
        let trail = core
            .archive
            .find_stream(core.own_agent, StreamKind::Audit, DELETIONS);
        let stands = trail.map_or(0, |trail| trail.position.next.0);
        if certificate.published_at.is_none_or(|at| stands <= at) {
            certificate.published_at = Some(stands);
            core.catalogue.put(&certificate)?;
            let text = certificate.text.clone().into_bytes();
            let durable = core.audit.write(DELETIONS, text).await;
            anyhow::ensure!(durable, "the archive takes nothing now");
        }
        let now_us = core.time.confirmed_us().unwrap_or(0);
        if now_us.saturating_sub(certificate.made_us) > KEPT_US {
            core.catalogue
                .write(|changes| changes.remove(&certificate))?;
        }
    }
    Ok(())
}

/// How old a backup may be whose trail is completed when it is restored.
const KEPT_US: u64 = 100 * DAY_US;
pub(crate) const PLAN: Plan = Plan {
    point: "duty: certificates of deletion",
    every: Duration::from_secs(10),
    long: Duration::from_secs(600),
    raises: false,
};
