//! A connection: bytes on their way in two directions.

use std::collections::VecDeque;

/// Which end of a pipe.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Direction {
    Up,
    Down,
}

/// One TCP connection. Bytes arrive in order, as TCP has it; what an attacker on the way does to them is
/// [`Link::spoil`].
#[derive(Debug, Default)]
pub(super) struct Link {
    up: VecDeque<u8>,
    down: VecDeque<u8>,
    /// Delivered in both directions together.
    pub(super) delivered: u64,
    /// It is cut after so many.
    pub(super) cut_after: Option<u64>,
}

impl Link {
    pub(super) fn new(cut_after: Option<u64>) -> Self {
        Self {
            cut_after,
            ..Self::default()
        }
    }

    fn pipe(&mut self, direction: Direction) -> &mut VecDeque<u8> {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }

    pub(super) fn push(&mut self, direction: Direction, bytes: &[u8]) {
        self.pipe(direction).extend(bytes);
    }

    pub(super) fn waiting(&self, direction: Direction) -> usize {
        match direction {
            Direction::Up => self.up.len(),
            Direction::Down => self.down.len(),
        }
    }

    /// Takes up to `max` bytes out; fewer when the cut comes before.
    pub(super) fn deliver(&mut self, direction: Direction, max: usize) -> Vec<u8> {
        let left = self.cut_after.map_or(u64::MAX, |cut_after| {
            cut_after.saturating_sub(self.delivered)
        });
        let max = max.min(usize::try_from(left).unwrap_or(usize::MAX));
        let pipe = self.pipe(direction);
        let max = max.min(pipe.len());
        let bytes: Vec<u8> = pipe.drain(..max).collect();
        self.delivered += bytes.len() as u64;
        bytes
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.cut_after
            .is_some_and(|cut_after| self.delivered >= cut_after)
    }

    /// An attacker alters, drops, doubles or inserts what is on its way.
    pub(super) fn spoil(&mut self, direction: Direction, how: u64, at: u64) {
        let pipe = self.pipe(direction);
        if pipe.is_empty() {
            return;
        }
        let at = usize::try_from(at).unwrap_or(0) % pipe.len();
        match how % 4 {
            0 => {
                if let Some(byte) = pipe.get_mut(at) {
                    *byte ^= 1 << (how / 4 % 8);
                }
            }
            1 => {
                pipe.remove(at);
            }
            2 => {
                let rest: Vec<u8> = pipe.iter().skip(at).copied().collect();
                pipe.extend(rest);
            }
            _ => pipe.insert(at, 0x55),
        }
    }
}
