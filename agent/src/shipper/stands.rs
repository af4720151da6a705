//! Where the server says that streams stand, and what follows from it: going on there, going back, receipts shown.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::Result;
use ed25519_dalek::VerifyingKey;
use scrinium_protocol::batch::StreamPosition;
use scrinium_protocol::identity::{Epoch, StreamId};
use scrinium_segment::random;
use tracing::{info, warn};

use super::{Order, Shipper, State, is_before};

impl Shipper {
    /// The server has stated where every stream stands: goes on exactly there.
    pub(super) fn handle_ready(
        &mut self,
        restored: bool,
        signing: &VerifyingKey,
        now: Instant,
    ) -> Result<()> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        let mut stated = core::mem::take(&mut link.stated);
        self.aside.stated(stated.keys().copied(), now);
        link.ready_since = Some(now);
        self.problem = None;
        self.spool.restart();
        let state = &mut self.identity.state;
        let mut must_save = state.server_signing.is_none();
        state
            .server_signing
            .get_or_insert_with(|| signing.to_bytes());
        // What the server has, in its own words; its receipts are compared with that.
        let mut said = None;
        if restored || is_rolled_back(state, &stated) {
            said = Some(stated.clone());
            warn!(
                "this agent's state was restored from a copy: a new epoch begins where the server stands"
            );
            state.epoch = Epoch(random()?);
            state.behind = true;
            for (stream, position) in &mut stated {
                let start = StreamPosition::start(state.agent, *stream, state.epoch);
                position.epoch = start.epoch;
                position.next = start.next;
                position.head = start.head;
            }
            must_save = true;
        }
        if must_save {
            self.identity.save()?;
        }
        let (agent, epoch) = (self.identity.state.agent, self.identity.state.epoch);
        let known: BTreeSet<StreamId> = self
            .positions
            .keys()
            .chain(stated.keys())
            .copied()
            .collect();
        for stream in known {
            let server = stated.get(&stream);
            let reached = match &said {
                None => self.spool.reconcile((agent, epoch), stream, server)?,
                Some(said) => {
                    let said = said.get(&stream);
                    self.spool
                        .carry_over((agent, epoch), stream, said, server)?
                }
            };
            let ours = self.positions.get(&stream);
            let agrees =
                ours.is_some_and(|ours| ours.next == reached.next && ours.head == reached.head);
            if agrees {
                continue;
            }
            let lost = ours.is_some_and(|ours| is_before(&reached, ours));
            if self.has_sources {
                self.rewind(stream, reached.clone(), lost);
            } else if lost {
                self.lost.insert(stream);
            }
            self.positions.insert(stream, reached);
        }
        self.remove_acked();
        self.tell_in_force(now)?;
        self.show_receipts(said.as_ref().unwrap_or(&stated), now)?;
        info!(
            "connected; the server has stated where {} streams stand",
            stated.len()
        );
        if !self.has_sources {
            self.start_sources();
        }
        Ok(())
    }

    /// Shows the server its own receipts for entries that it does not have any more.
    pub(super) fn show_receipts(
        &mut self,
        stated: &BTreeMap<StreamId, StreamPosition>,
        now: Instant,
    ) -> Result<()> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        let receipts = self.identity.state.receipts.values();
        let lost = receipts.filter(|receipt| match stated.get(&receipt.stream) {
            Some(position) => position.epoch == receipt.epoch && position.next < receipt.next,
            None => true,
        });
        for receipt in lost.take(RECEIPTS_MAX) {
            if self.shown.insert((receipt.stream, receipt.next)) {
                warn!(
                    stream = %receipt.stream,
                    next = receipt.next.0,
                    "the server acknowledged entries that it does not have any more"
                );
                link.session.send_receipt(receipt.clone(), now)?;
            }
        }
        Ok(())
    }

    /// Lets the source of a stream go on at `position`.
    pub(super) fn rewind(&mut self, stream: StreamId, position: StreamPosition, lost: bool) {
        let rewinds = self.rewinds.entry(stream).or_default();
        *rewinds += 1;
        self.orders.push_back(Order::Rewind {
            stream,
            position,
            rewinds: *rewinds,
            lost,
        });
    }
}

/// Whether the server knows more than an agent can have sent that had said everything to its disk.
fn is_rolled_back(state: &State, stated: &BTreeMap<StreamId, StreamPosition>) -> bool {
    !state.behind
        && state.positions.iter().any(|(stream, ours)| {
            stated
                .get(stream)
                .is_some_and(|server| server.epoch == ours.epoch && server.next > ours.next)
        })
}

/// Receipts shown in one session.
const RECEIPTS_MAX: usize = 1000;
