//! Which words may be in a batch of the log, where batches are small: a few bits each, in memory.
//!
//! ```text
//! batch that comes ─▶ its tokens ([super::filter]) ─▶ 128 bits beside its place ─▶ a search reads what may have its words
//! ```
//!
//! A log has no filters until it is sealed, and is read as a whole. That takes long where it has very many batches of a few short
//! lines, as many senders, or one that means no good, fill it with. A batch of ordinary length is always read: to take note of its
//! words costs more than a few of them are worth.

use scrinium_protocol::entry::Entries;

use super::filter::{GAP_WORD, for_each_token};

/// Of one batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words([u64; WORDS]);

impl Words {
    /// Any may be in it.
    pub(crate) const ANY: Self = Self([u64::MAX; WORDS]);

    /// Of entries as they are: what is read otherwise than it is written, UTF-16 say, is always looked at.
    pub(crate) fn of(entries: &Entries) -> Self {
        if !is_small(entries.bytes().len(), entries.len()) || !entries.is_text() {
            return Self::ANY;
        }
        let mut words = Self([0; WORDS]);
        words.add(entries.bytes());
        if entries.iter().any(|(meta, _)| meta.flags.is_gap()) {
            words.add(GAP_WORD);
        }
        words
    }

    /// Of `count` entries, none of them UTF-16, one after the other. Some may be statements of gaps.
    pub(crate) fn of_bytes(bytes: &[u8], count: usize) -> Self {
        if !is_small(bytes.len(), count) || str::from_utf8(bytes).is_err() {
            return Self::ANY;
        }
        let mut words = Self([0; WORDS]);
        words.add(bytes);
        words.add(GAP_WORD);
        words
    }

    fn add(&mut self, text: &[u8]) {
        for_each_token(text, |hash, _| {
            for (word, bit) in probes(hash) {
                if let Some(word) = self.0.get_mut(word) {
                    *word |= bit;
                }
            }
        });
    }

    /// Whether all of these tokens may be in it.
    pub(crate) fn may_hold(&self, tokens: &[u64]) -> bool {
        let has = |(word, bit)| self.0.get(word).is_none_or(|word: &u64| word & bit != 0);
        tokens.iter().all(|token| probes(*token).all(has))
    }
}

/// A batch is looked at if it has few bytes, or so many entries that their roots took longer.
fn is_small(bytes: usize, entries: usize) -> bool {
    bytes <= BYTES_MAX.max(entries.saturating_mul(ENTRY_BYTES_MAX))
}

/// Words and bits of a token.
fn probes(hash: u64) -> impl Iterator<Item = (usize, u64)> {
    [hash, hash >> 32].into_iter().map(|hash| {
        let word = usize::try_from(hash >> 6).unwrap_or(0) % WORDS;
        (word, 1 << (hash % 64))
    })
}

/// 128 bits, of which two are a token's: beside 40 others one in five that are not there seems to be, beside 20 one in
/// fourteen.
const WORDS: usize = 2;
/// Bytes of a batch whose words are noted: some microseconds, of the fifty that the signature alone takes.
const BYTES_MAX: usize = 4 << 10;
/// The same for each of its entries, whose leaves of the Merkle tree take ten times as long.
const ENTRY_BYTES_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use scrinium_protocol::batch::{BatchBuilder, StreamPosition};
    use scrinium_protocol::compress::Compressor;
    use scrinium_protocol::entry::{EntryFlags, EntryMeta};
    use scrinium_protocol::identity::{AgentId, Epoch, StreamId};

    use super::*;
    use crate::index::filter::tokens;

    fn hashes(text: &str) -> Vec<u64> {
        let tokens = tokens(text.as_bytes()).into_iter();
        tokens.map(|(hash, _)| hash).collect()
    }

    #[test]
    fn what_is_in_a_small_batch_is_never_excluded_and_most_else_is() {
        let lines: Vec<String> = (0..10)
            .map(|n| format!("User-{n}x logged_in from 10.0.7.{n}\n"))
            .collect();
        let text = lines.concat();
        let words = Words::of_bytes(text.as_bytes(), lines.len());
        for line in &lines {
            assert!(words.may_hold(&hashes(line)));
        }
        assert!(words.may_hold(&hashes("LOGGED_IN")) && words.may_hold(&[]));
        let absent = (0..1000).filter(|n| words.may_hold(&hashes(&format!("absent{n}"))));
        assert!(absent.count() < 150);
    }

    #[test]
    fn what_is_long_or_no_text_excludes_nothing() {
        let absent = hashes("absent");
        let long = vec![b'x'; BYTES_MAX + 1];
        assert!(Words::of_bytes(&long, 1).may_hold(&absent));
        assert!(!Words::of_bytes(&long, BYTES_MAX).may_hold(&absent));
        assert!(!Words::of_bytes(b"x\n", 1).may_hold(&absent));
        assert!(Words::of_bytes(b"caf\xe9\n", 1).may_hold(&absent));
        assert!(Words::ANY.may_hold(&absent));
    }

    /// What says that something is missing may stand behind a piece of a line, with which it looks like one word.
    #[test]
    fn a_statement_of_a_gap_is_never_excluded() {
        let meta = |flags| EntryMeta { time_us: 1, flags };
        let mut builder = BatchBuilder::new();
        assert!(builder.push(b"a piece of a", meta(EntryFlags::FRAGMENT)));
        assert!(builder.push(b"gap: 5 bytes\n", meta(EntryFlags::GAP)));
        let gap = hashes("gap");
        assert!(Words::of_bytes(builder.bytes(), builder.len()).may_hold(&gap));
        let stream = StreamId([1; 16]);
        let start = StreamPosition::start(AgentId([1; 16]), stream, Epoch::default());
        let key = SigningKey::from_bytes(&[5; 32]);
        let mut compressor = Compressor::new(1);
        let (batch, _) = builder.seal(stream, &start, Vec::new(), &key, &mut compressor);
        let words = Words::of(&batch.open().unwrap());
        assert!(words.may_hold(&gap) && !words.may_hold(&hashes("absent")));
    }
}
