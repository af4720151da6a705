//! Random numbers that are the same in every run, unless another seed is asked for.

/// SplitMix64.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// With the seed of the environment variable `SCRINIUM_TEST_SEED`, else `seed`.
    #[must_use]
    pub fn from_env_or(seed: u64) -> Self {
        let asked = std::env::var("SCRINIUM_TEST_SEED").ok();
        Self::new(asked.and_then(|text| text.parse().ok()).unwrap_or(seed))
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
