//! The second container: days that are older than operations may read are under the security officer's key.
//!
//! ```text
//! group's key ─▶ keys of its streams ─wrapped under─▶ a key of the container ─age─▶ the officer's recipient
//! ```
//!
//! The server keeps the wrapped keys and the age file, and destroys what opens them. Whoever has the officer's
//! identity opens the age file elsewhere and brings the container's key, for a purpose and a while; it is held in
//! memory alone. Streams can still be forgotten one by one.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use data_encoding::{BASE64, HEXLOWER};
use scrinium_protocol::secret::Secret;
use scrinium_segment::{fault, random};
use tracing::info;
use zeroize::Zeroizing;

use super::upkeep::Upkeep;
use crate::catalogue::records::{Group, SealedKeys};
use crate::clock::{self, Day};
use crate::said::said;

/// What a reader may read besides what operations may.
#[derive(Clone, Default)]
pub(crate) struct Access(Option<Arc<Opening>>);

/// Days that were opened, for somebody and a purpose, until a time.
pub(crate) struct Opening {
    pub(crate) by: String,
    pub(crate) purpose: String,
    pub(crate) until_us: u64,
    keys: BTreeMap<Group, Secret<32>>,
}

/// Every opening that lasts.
#[derive(Default)]
pub(crate) struct Openings(Mutex<BTreeMap<String, Arc<Opening>>>);

impl Access {
    /// What operations may read.
    pub(crate) fn operations() -> Self {
        Self(None)
    }

    /// The key of a group's container, while the time lasts.
    pub(crate) fn key_of(&self, group: &Group) -> Option<&Secret<32>> {
        let opening = self.0.as_ref()?;
        if clock::unix_us() >= opening.until_us {
            return None;
        }
        opening.keys.get(group)
    }

    /// Who opened it, and what for.
    pub(crate) fn opening(&self) -> Option<&Opening> {
        self.0.as_deref()
    }
}

impl Openings {
    /// Begins an opening; the word that names it.
    pub(crate) fn begin(
        &self,
        by: String,
        purpose: String,
        until_us: u64,
        keys: BTreeMap<Group, Secret<32>>,
    ) -> Result<String> {
        ensure!(!purpose.trim().is_empty(), "--purpose must not be empty");
        let last_us = clock::unix_us().saturating_add(HOURS_MAX * 3_600_000_000);
        ensure!(
            until_us <= last_us,
            "--hours must be at most {HOURS_MAX}: open it again when it takes longer"
        );
        let word: [u8; 16] = random()?;
        let word = HEXLOWER.encode(&word);
        let mut openings = self.lock();
        ensure!(
            openings.len() < OPENINGS_MAX,
            "{OPENINGS_MAX} openings last already; close one"
        );
        let opening = Opening {
            by,
            purpose,
            until_us,
            keys,
        };
        openings.insert(word.clone(), Arc::new(opening));
        Ok(word)
    }

    /// What the holder of `word` may read; without a word, what operations may.
    pub(crate) fn access(&self, word: Option<&str>) -> Result<Access> {
        let Some(word) = word else {
            return Ok(Access::operations());
        };
        let opening = self.lock().get(word).cloned();
        let opening = opening.ok_or_else(|| said!("refused.no_opening"))?;
        Ok(Access(Some(opening)))
    }

    /// Ends an opening; whether there was one.
    pub(crate) fn end(&self, word: &str) -> bool {
        self.lock().remove(word).is_some()
    }

    /// Every opening that lasts; those that are over are gone then.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Opening>>> {
        let mut openings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::unix_us();
        openings.retain(|_, opening| now < opening.until_us);
        openings
    }
}

impl Upkeep {
    /// Puts the days that operations may no longer read under their officers' keys.
    pub(crate) fn enclose(&self, today: Day) -> Result<()> {
        let mut enclosed = 0;
        let done = self.enclose_groups(today, &mut enclosed);
        if enclosed > 0 {
            // Once for all of them: until then the copy still opens them.
            self.archive.keys().write_copy()?;
            self.catalogue.forget_old_pages()?;
        }
        done
    }

    fn enclose_groups(&self, today: Day, enclosed: &mut u32) -> Result<()> {
        let spans = self.time.spans();
        for group in self.archive.keys().groups() {
            let Some(recipient) =
                self.policy
                    .officer_of(&group, spans.counted_from(group.day), today)
            else {
                continue;
            };
            let mut streams = std::collections::BTreeSet::new();
            let (segments, _) = self.archive.parts();
            for segment in segments.iter().filter(|segment| segment.group == group) {
                // What cannot be told is not enclosed either: its keys would be lost.
                streams.extend(self.archive.index(segment)?.streams.keys().copied());
            }
            let keys = self.archive.keys();
            let Some(sealed) = keys.enclosed(&group, &streams, &recipient)? else {
                continue;
            };
            self.catalogue
                .write(|changes| changes.put(&sealed.row(&group)))?;
            // At this point the server alone cannot open it; if we die now, the start writes the copy again.
            fault::point("server: enclosed");
            keys.enclose(&group, sealed);
            *enclosed += 1;
            info!(day = %group.day, class = group.class, tenant = group.tenant, "a day is under the officer's key");
        }
        Ok(())
    }
}

/// Encrypts a container's key to an age recipient.
pub(super) fn to_recipient(recipient: &str, key: &Secret<32>) -> Result<String> {
    let recipient = parse_recipient(recipient)?;
    let encryptor =
        age::Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient))?;
    let mut file = Vec::new();
    let mut writer = encryptor.wrap_output(&mut file)?;
    writer.write_all(key.expose())?;
    writer.finish()?;
    Ok(BASE64.encode(&file))
}

/// Reads an age X25519 recipient.
pub(crate) fn parse_recipient(text: &str) -> Result<age::x25519::Recipient> {
    let parsed = text.trim().parse::<age::x25519::Recipient>();
    parsed.map_err(|_| said!("refused.recipient", text).into())
}

/// Opens a container's key with an age identity file.
pub(crate) fn open_with(identities: &str, sealed: &str) -> Result<Secret<32>> {
    let identities = identities
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let parsed = line.parse::<age::x25519::Identity>();
            parsed.map_err(|error| anyhow::anyhow!("--identity: {error}"))
        })
        .collect::<Result<Vec<_>>>()?;
    if identities.is_empty() {
        bail!("--identity: the file holds no age identity (AGE-SECRET-KEY-1…)");
    }
    let file = BASE64.decode(sealed.as_bytes())?;
    let decryptor = age::Decryptor::new_buffered(file.as_slice())?;
    let mut key = Zeroizing::new(Vec::new());
    let identities = identities
        .iter()
        .map(|identity| identity as &dyn age::Identity);
    let mut reader = decryptor
        .decrypt(identities)
        .context("this identity is not the officer's")?;
    reader.read_to_end(&mut key)?;
    let key = <[u8; 32]>::try_from(key.as_slice()).context("a container's key has 32 bytes")?;
    Ok(Secret::new(key))
}

impl SealedKeys {
    fn row(&self, group: &Group) -> crate::catalogue::records::GroupKeys {
        crate::catalogue::records::GroupKeys {
            group: group.clone(),
            keys: crate::catalogue::records::WrappedKeys::Sealed(self.clone()),
        }
    }
}

/// Longest time box.
const HOURS_MAX: u64 = 72;
const OPENINGS_MAX: usize = 64;
