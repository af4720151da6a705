//! What was written, and what of it may be missing.

use std::collections::BTreeSet;
use std::time::Duration;

use super::disk::Node;
use super::world::{Way, World};

impl World {
    /// Whether a file has a name under which it is looked for.
    pub(super) fn is_reachable(&self, inode: u64) -> bool {
        let disk = self.disk.lock();
        let mut names = disk.names.iter();
        let dirs = [self.path.parent(), self.real.parent()];
        disk.inode(&self.path) == Some(inode)
            || (self.way != Way::Switched
                && names.any(|(path, node)| {
                    *node == Node::File(inode) && dirs.contains(&path.parent())
                }))
    }

    /// Whether a file may have been there before the agent was started first, so that its rotation says it is old.
    pub(super) fn was_there_before(&self, inode: u64) -> bool {
        let created = self.disk.lock().files.get(&inode).map(|file| file.created);
        let began = self.agent.began;
        self.arrived().is_empty() && began.is_none_or(|began| created <= Some(began))
    }

    /// What a file holds, compressed or not.
    pub(super) fn tokens_of(&self, inode: u64) -> Vec<usize> {
        if let Some(tokens) = self.packed.get(&inode) {
            return tokens.clone();
        }
        let file = self.disk.lock().files.get(&inode).cloned();
        tokens_in(&file.unwrap_or_default().bytes)
    }

    /// What of a file did not arrive yet may be missing.
    pub(super) fn lose(&mut self, inode: u64) {
        let arrived = self.arrived();
        let tokens = self.tokens_of(inode);
        let is_begun = tokens.iter().any(|token| arrived.contains(token));
        if !is_begun {
            self.lost.insert(inode, tokens.clone());
        }
        for token in tokens {
            // What is written late and deleted at once, nobody knows of.
            let is_short = self.now.duration_since(self.written_at[token]) < LOOKED_AT_EVERY;
            // Of what nothing was collected nothing is written down: who is not running knows nothing of it.
            let is_remembered = self.agent.is_running() || is_begun;
            let is_known = is_remembered && self.looked_at.contains(&self.tokens[token]);
            if arrived.is_empty() || !is_known || is_short {
                self.free.insert(token);
            } else if !arrived.contains(&token) {
                self.losable.insert(token);
            }
        }
    }

    pub(super) fn arrived(&self) -> BTreeSet<usize> {
        let archived = self.agent.archive.values();
        archived
            .flat_map(|archived| tokens_in(&archived.bytes))
            .collect()
    }
}

/// Settled files are looked at so often, and two looks are needed at most.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(12);

/// The numbers in brackets.
pub(super) fn tokens_in(bytes: &[u8]) -> Vec<usize> {
    let mut tokens = Vec::new();
    let mut number: Option<usize> = None;
    for byte in bytes {
        number = match (byte, number) {
            (b'[', _) => Some(0),
            (b'0'..=b'9', Some(number)) => Some(number * 10 + usize::from(byte - b'0')),
            (b']', Some(number)) => {
                tokens.push(number);
                None
            }
            _ => None,
        };
    }
    tokens
}
