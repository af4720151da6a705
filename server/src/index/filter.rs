//! Token filters: which words may be in a block.
//!
//! A Bloom filter of 6 bits a token and 4 probes: about 6 % of the blocks without a word are read in vain. A
//! token is a run of letters, digits, `_` and bytes above 127, in lower case. Numbers of up to six digits are
//! left out: ports, sizes, process ids, fractions of seconds are in most blocks anyway, and were most of the filter. An IPv4 address
//! is a token as a whole: each four numbers of up to three digits with single dots between them.
//!
//! ```text
//! number of 64-bit words (4) | words (8 each)
//! ```

/// Collects the tokens of a block.
#[derive(Debug)]
pub struct FilterBuilder {
    hashes: Vec<u64>,
    /// The token last hashed into each slot: most tokens repeat at once and are dropped here.
    recent: Vec<u64>,
}

impl Default for FilterBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl FilterBuilder {
    #[must_use]
    pub fn new() -> Self {
        Self {
            hashes: Vec::new(),
            recent: vec![0; RECENT],
        }
    }

    /// Adds every token of `bytes`.
    pub fn add(&mut self, bytes: &[u8]) {
        for_each_token(bytes, |hash, _| self.push(hash));
    }

    fn push(&mut self, hash: u64) {
        let slot = usize::try_from(hash % RECENT as u64).unwrap_or(0);
        if let Some(recent) = self.recent.get_mut(slot)
            && *recent != hash
        {
            *recent = hash;
            self.hashes.push(hash);
        }
    }

    /// Returns the filter's bytes.
    #[must_use]
    pub fn build(mut self) -> Vec<u8> {
        self.hashes.sort_unstable();
        self.hashes.dedup();
        let words = (self.hashes.len() * BITS_PER_TOKEN).div_ceil(64).max(1);
        let mut bits = vec![0_u64; words];
        for hash in self.hashes {
            for probe in probes(hash, words as u64 * 64) {
                if let Some(word) = bits.get_mut(probe / 64) {
                    *word |= 1 << (probe % 64);
                }
            }
        }
        let mut out = Vec::with_capacity(4 + words * 8);
        out.extend_from_slice(&u32::try_from(words).unwrap_or(u32::MAX).to_be_bytes());
        for word in bits {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out
    }
}

/// Whether a block with this filter may hold every token. A damaged filter excludes nothing.
#[must_use]
pub fn may_hold(filter: &[u8], tokens: &[u64]) -> bool {
    let Some((len, words)) = filter.split_first_chunk::<4>() else {
        return true;
    };
    let bits = u64::from(u32::from_be_bytes(*len)) * 64;
    if bits == 0 || words.len() as u64 * 8 != bits {
        return true;
    }
    tokens.iter().all(|&token| {
        probes(token, bits).all(|probe| {
            // Words are big-endian: bit 0 is in a word's last byte.
            let byte = probe / 64 * 8 + 7 - probe % 64 / 8;
            words
                .get(byte)
                .is_some_and(|byte| byte & (1 << (probe % 8)) != 0)
        })
    })
}

/// The hashes of the tokens of `text`, and where each ends.
#[must_use]
pub fn tokens(text: &[u8]) -> Vec<(u64, usize)> {
    let mut tokens = Vec::new();
    for_each_token(text, |hash, end| tokens.push((hash, end)));
    tokens
}

/// Calls `each` with the hash and the end of every token that counts.
pub(super) fn for_each_token(bytes: &[u8], mut each: impl FnMut(u64, usize)) {
    let mut word = Word::default();
    let mut address = Address::default();
    for (at, &byte) in bytes.iter().enumerate() {
        let class = CLASSES.get(usize::from(byte)).copied().unwrap_or(0);
        if class != 0 {
            word.push(class);
            continue;
        }
        if word.len > 0 {
            word.end(at, &mut address, &mut each);
            word = Word::default();
        } else {
            address = Address::default();
        }
        address.separate(byte);
    }
    if word.len > 0 {
        word.end(bytes.len(), &mut address, &mut each);
    }
}

/// A token that is being read.
struct Word {
    hash: u64,
    len: u32,
    /// It has digits only, and few of them.
    is_number: bool,
}

impl Default for Word {
    fn default() -> Self {
        Self {
            hash: OFFSET,
            len: 0,
            is_number: true,
        }
    }
}

impl Word {
    fn push(&mut self, class: u8) {
        self.hash = (self.hash ^ u64::from(class)).wrapping_mul(PRIME);
        self.len += 1;
        self.is_number &= class.is_ascii_digit() && self.len <= SHORT_DIGITS;
    }

    fn end(&self, at: usize, address: &mut Address, each: &mut impl FnMut(u64, usize)) {
        if self.is_number && self.len <= 3 {
            if let Some(hash) = address.push(self.hash) {
                each(mix(hash), at);
            }
            return;
        }
        *address = Address::default();
        if !self.is_number {
            each(mix(self.hash), at);
        }
    }
}

/// The last numbers that single dots separate.
#[derive(Default)]
struct Address {
    parts: [u64; 3],
    count: u32,
    dotted: bool,
}

impl Address {
    /// Adds a number; the hash of the address when it is the fourth.
    fn push(&mut self, part: u64) -> Option<u64> {
        if !self.dotted {
            self.count = 0;
        }
        let [a, b, c] = self.parts;
        let whole = (self.count >= 3).then(|| {
            [a, b, c, part]
                .iter()
                .fold(OFFSET, |hash, part| (hash ^ part).wrapping_mul(PRIME))
        });
        self.parts = [b, c, part];
        self.count += 1;
        self.dotted = false;
        whole
    }

    fn separate(&mut self, byte: u8) {
        self.dotted = byte == b'.' && self.count > 0;
    }
}

/// Whether a byte belongs to a token.
pub(crate) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn probes(hash: u64, bits: u64) -> impl Iterator<Item = usize> {
    let step = hash.rotate_left(32) | 1;
    (0..PROBES).map(move |i| {
        let probe = hash.wrapping_add(step.wrapping_mul(i)) % bits;
        usize::try_from(probe).unwrap_or(usize::MAX)
    })
}

/// Spreads the bits of an FNV-1a hash (the finalizer of SplitMix64).
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// For each byte its lower case, or 0 when it separates tokens.
const CLASSES: [u8; 256] = classes();

#[expect(
    clippy::indexing_slicing,
    reason = "a byte is an index of 256 entries; `get` is not const"
)]
const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0_u8;
    loop {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80 {
            table[byte as usize] = byte.to_ascii_lowercase();
        }
        if byte == u8::MAX {
            return table;
        }
        byte += 1;
    }
}

/// What every statement of a gap begins with: what holds one has this word, whatever stands before it.
pub(crate) const GAP_WORD: &[u8] = b"gap";
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;
const RECENT: usize = 8192;
const BITS_PER_TOKEN: usize = 6;
const PROBES: u64 = 4;
/// Numbers of up to so many digits are no tokens.
const SHORT_DIGITS: u32 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_block_is_never_excluded_and_little_else_passes() {
        let mut builder = FilterBuilder::new();
        let lines: Vec<String> = (0..5000)
            .map(|i| format!("User-{i} logged_in from 10.0.{}.{}\n", i % 256, i % 251))
            .collect();
        for line in &lines {
            builder.add(line.as_bytes());
        }
        let filter = builder.build();
        let hashes = |text: &str| -> Vec<u64> {
            let tokens = tokens(text.as_bytes()).into_iter();
            tokens.map(|(hash, _)| hash).collect()
        };
        for line in &lines {
            assert!(may_hold(&filter, &hashes(line)));
        }
        assert!(may_hold(&filter, &hashes("LOGGED_IN")));
        assert!(may_hold(&filter, &hashes("10.0.7.7")));
        let passing = |absent: &dyn Fn(u32) -> String| {
            let absent = (0..10_000).filter(|&i| may_hold(&filter, &hashes(&absent(i))));
            absent.count()
        };
        let words = passing(&|i| format!("absent{i}"));
        let addresses = passing(&|i| format!("11.{}.{}.1", i / 250, i % 250));
        assert!(words < 700 && addresses < 700, "{words}, {addresses}");
    }

    #[test]
    fn numbers_are_tokens_from_seven_digits_on_and_addresses_as_a_whole() {
        let count = |text: &str| tokens(text.as_bytes()).len();
        for (text, expected) in [
            ("123456", 0),
            ("1234567", 1),
            ("port 443", 1),
            ("10.1.2.3", 1),
            ("1.10.1.2.3", 2),
            ("10.1.2", 0),
            ("10..1.2.3", 0),
            ("10.1.2.3333", 0),
            ("10.1.2.x3", 1),
            ("10.1.2.3:443", 1),
            ("10,1.2.3.4.", 1),
        ] {
            assert_eq!(count(text), expected, "{text}");
        }
        assert_eq!(tokens(b"10.1.2.3")[0], (tokens(b"10.1.2.3")[0].0, 8));
        assert_eq!(tokens(b"(10.1.2.3)")[0].0, tokens(b"10.1.2.3")[0].0);
        assert_eq!(tokens(b"9.10.1.2.3")[1].0, tokens(b"10.1.2.3")[0].0);
        assert_ne!(tokens(b"10.1.2.03")[0].0, tokens(b"10.1.2.3")[0].0);
    }

    #[test]
    fn a_damaged_filter_excludes_nothing() {
        for filter in [&b""[..], b"\0\0", b"\0\0\0\0", b"\0\0\0\x02abc"] {
            assert!(may_hold(filter, &[tokens(b"word")[0].0]));
        }
    }
}
