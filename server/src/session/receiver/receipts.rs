//! Receipts of this server that an agent shows because it was told less: what they are of is missing here.
//!
//! ```text
//! receipt ─▶ signed by us, of a stream of the agent? ─▶ what the archive has of its epoch, now or before it was left
//!                                                       ├─▶ all of it: nothing
//!                                                       └─▶ less ─▶ alarm, trail, catalogue: every verification names it
//!                                                                  └─ of very many ─▶ a sum of each
//! ```

use anyhow::{Result, bail};
use scrinium_protocol::identity::{Epoch, Head, StreamId, StreamKind};
use scrinium_protocol::sl::message::Receipt;
use serde_json::json;
use tracing::warn;

use super::{Effect, Receiver};
use crate::agents::News;
use crate::alarms::{AlarmKind, MORE, Raise};
use crate::catalogue::records::UnmetReceipt;
use crate::said::said;

impl Receiver {
    /// An agent shows a receipt of this server for more than it was told.
    pub(super) fn handle_receipt(&mut self, receipt: &Receipt) -> Result<()> {
        receipt.verify(&self.shared.signing.verifying_key())?;
        let stream = self.shared.archive.stream(receipt.stream);
        // Up to where the archive has the epoch that the receipt is of: the agent may have left it since.
        let have = match &stream {
            Some(stream) if stream.agent != self.agent => return Ok(()),
            Some(stream) if stream.position.epoch == receipt.epoch => stream.position.next.0,
            Some(_) => {
                let (archive, agent) = (&self.shared.archive, self.agent);
                let looked = self.left.end(archive, agent, receipt.stream, receipt.epoch);
                match looked {
                    Ok(end) => end,
                    Err(error) => {
                        // The agent keeps it, and shows it in its next session.
                        self.not_looked_up += 1;
                        if self.not_looked_up.is_power_of_two() {
                            let error = format!("{error:#}");
                            let receipts = self.not_looked_up;
                            warn!(agent = %agent, error, receipts, "whether receipts are met could not be looked up");
                        }
                        return Ok(());
                    }
                }
            }
            None => 0,
        };
        if stream.is_some() && have >= receipt.next.0 {
            return Ok(());
        }
        // One that is shown again says nothing new.
        if !self
            .unmet
            .insert((receipt.stream, receipt.epoch, receipt.next.0))
        {
            return Ok(());
        }
        if self.unmet.len() > UNMET_MAX {
            bail!("it shows more than {UNMET_MAX} receipts for what is missing");
        }
        let counted = self.shared.agents.over(self.agent, News::Unmet);
        if counted > 0 {
            self.note_unmet_in_sum(counted);
            return Ok(());
        }
        // All are in the trail; of very many the alarm counts.
        let key = match self.unmet.len() {
            ..=UNMET_ALARMS_MAX => receipt.stream.to_string(),
            _ => String::new(),
        };
        let agent = self.name();
        let name = stream.map_or_else(
            || receipt.stream.to_string(),
            |stream| stream.name.to_string(),
        );
        self.effects.push_back(Effect::Raise(Raise {
            kind: AlarmKind::ReceiptUnmet,
            agent: agent.clone(),
            text: said!(
                "alarm_text.receipt-unmet",
                &name,
                receipt.next.0.saturating_sub(1),
                have.saturating_sub(1)
            ),
            key,
        }));
        let detail = json!({
            "agent": agent, "stream": name, "first": have, "next": receipt.next.0,
            "head": receipt.head.to_string(),
        });
        self.effects.push_back(Effect::Audit(
            "receipt for entries that are missing",
            detail,
        ));
        self.effects.push_back(Effect::Unmet(UnmetReceipt {
            stream: receipt.stream,
            agent: self.agent,
            name,
            epoch: receipt.epoch,
            sequences: (have, receipt.next.0),
            head: receipt.head,
        }));
        Ok(())
    }

    /// One more receipt for what is missing than is written down in a day: the alarm counts it, the trail has it in a sum,
    /// and the catalogue has one row for all of them.
    fn note_unmet_in_sum(&mut self, counted: u64) {
        self.effects.push_back(Effect::Raise(Raise {
            kind: AlarmKind::ReceiptUnmet,
            agent: self.name(),
            text: said!("alarm_text.receipts-unmet", News::Unmet.a_day()),
            key: MORE.to_owned(),
        }));
        // The row is a write: it says how many they are at least.
        if counted.is_power_of_two() {
            self.effects.push_back(Effect::Unmet(UnmetReceipt {
                stream: StreamId::derive(self.agent, StreamKind::Audit, "further receipts"),
                agent: self.agent,
                name: "(further streams; the audit trail has how many)".to_owned(),
                epoch: Epoch([0; 16]),
                sequences: (0, counted),
                head: Head([0; 32]),
            }));
        }
    }
}

/// Streams of which each has an alarm of its own in one session.
const UNMET_ALARMS_MAX: usize = 16;
/// Receipts for what is missing in one session: about 5 MiB.
const UNMET_MAX: usize = 100_000;
