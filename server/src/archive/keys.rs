//! The keys of what is archived. They lie in the catalogue alone; forgetting entries is destroying their key.
//!
//! ```text
//! volume ─▶ catalogue row ─▶ tenant's key ─wraps─▶ group's key (one day of one class) ─derives─▶ stream's key
//!                        └─▶ key of a log, gone with the log
//! ```
//!
//! A group keeps one key while all its streams are kept. When some are forgotten, the keys of the others are
//! written out one by one and the key they came from is destroyed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context as _, Result, bail};
use scrinium_protocol::identity::StreamId;
use scrinium_protocol::secret::Secret;
use scrinium_segment::key::derive;
use scrinium_segment::random;
use scrinium_segment::wrap::{unwrap, wrap};

use super::container::{Access, to_recipient};
use crate::catalogue::copies;
use crate::catalogue::records::{
    Group, GroupKeys, LogEnd, LogKey, SealedKeys, StoredSecret, TenantRecord, WrappedKeys,
};
use crate::catalogue::{Catalogue, Changes};
use crate::volume::Volume;
use crate::waits;

/// All keys of the archive.
pub(crate) struct Keyring {
    catalogue: Arc<Catalogue>,
    /// The copy beside the catalogue, and what it is sealed with; one writer at a time.
    copy: Mutex<(PathBuf, Secret<32>)>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tenants: BTreeMap<String, Secret<32>>,
    groups: BTreeMap<Group, Keys>,
    logs: BTreeMap<u64, (Secret<32>, Option<LogEnd>)>,
}

#[derive(Clone)]
enum Keys {
    Whole(Secret<32>),
    Streams(BTreeMap<StreamId, Secret<32>>),
    Sealed(SealedKeys),
}

/// Why entries that are there cannot be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Unreadable {
    /// Their key was destroyed: their time was over, or somebody had them deleted.
    #[error("was deleted: its key is destroyed")]
    Forgotten,
    /// It is in the second container.
    #[error("is in the second container: it takes the security officer's key (container open)")]
    Sealed,
}

/// The streams of a group that are not forgotten.
pub(crate) enum Kept {
    All,
    These(BTreeSet<StreamId>),
}

impl Kept {
    pub(crate) fn has(&self, stream: StreamId) -> bool {
        match self {
            Self::All => true,
            Self::These(streams) => streams.contains(&stream),
        }
    }
}

impl Keyring {
    /// Reads the keys of a volume's catalogue.
    pub(crate) fn load(volume: &Volume, catalogue: Arc<Catalogue>) -> Result<Self> {
        let mut state = State::default();
        for tenant in catalogue.load::<TenantRecord>()? {
            state.tenants.insert(tenant.name, tenant.key.0);
        }
        for row in catalogue.load::<GroupKeys>()? {
            let tenant = state.tenants.get(&row.group.tenant);
            let tenant = tenant.with_context(|| format!("tenant '{}'", row.group.tenant))?;
            let keys = unwrap_keys(tenant, &row)?;
            state.groups.insert(row.group, keys);
        }
        for log in catalogue.load::<LogKey>()? {
            state.logs.insert(log.number, (log.key.0, log.end));
        }
        let keyring = Self {
            catalogue,
            copy: Mutex::new(copies::keys_of(volume)),
            state: Mutex::new(state),
        };
        keyring.write_copy()?;
        Ok(keyring)
    }

    /// Writes what opens the archive, and what was deleted of it, once more beside the catalogue: a damaged
    /// catalogue must not cost what it opens.
    pub(crate) fn write_copy(&self) -> Result<()> {
        let copy = waits::lock(&self.copy);
        let (path, key) = &*copy;
        copies::write(&self.catalogue, path, key, copies::is_of_the_keys)
    }

    /// The key to seal entries of `stream` with; durable when this returns. Before the log goes that they came in,
    /// [`Keyring::write_copy`] must follow.
    pub(crate) fn for_writing(&self, group: &Group, stream: StreamId) -> Result<Secret<32>> {
        let mut state = self.lock();
        if let Some(key) = state.groups.get(group).and_then(|keys| keys.of(stream)) {
            return Ok(key);
        }
        if let Some(Keys::Sealed(_)) = state.groups.get(group) {
            bail!(
                "{} of class {} is in the second container already",
                group.day,
                group.class
            );
        }
        let tenant = match state.tenants.get(&group.tenant) {
            Some(key) => key.clone(),
            None => {
                let key = Secret::new(random()?);
                self.catalogue.put(&TenantRecord {
                    name: group.tenant.clone(),
                    key: StoredSecret(key.clone()),
                })?;
                state.tenants.insert(group.tenant.clone(), key.clone());
                key
            }
        };
        let keys = match state.groups.get(group) {
            None | Some(Keys::Whole(_) | Keys::Sealed(_)) => Keys::Whole(Secret::new(random()?)),
            Some(Keys::Streams(kept)) => {
                // What came before of this stream is forgotten; this is not the same key.
                let mut kept = kept.clone();
                kept.insert(stream, Secret::new(random()?));
                Keys::Streams(kept)
            }
        };
        self.catalogue.put(&wrap_keys(&tenant, group, &keys)?)?;
        let key = keys.of(stream).context("a key was just made")?;
        state.groups.insert(group.clone(), keys);
        Ok(key)
    }

    /// The key that opens entries of `stream`.
    pub(crate) fn for_reading(
        &self,
        group: &Group,
        stream: StreamId,
        access: &Access,
    ) -> Result<Secret<32>, Unreadable> {
        let state = self.lock();
        let keys = state.groups.get(group).ok_or(Unreadable::Forgotten)?;
        let Keys::Sealed(sealed) = keys else {
            return keys.of(stream).ok_or(Unreadable::Forgotten);
        };
        let wrapped = sealed.wrapped(stream).ok_or(Unreadable::Forgotten)?;
        let key = access.key_of(group).ok_or(Unreadable::Sealed)?;
        unwrap(key, wrapped, &about(group, Some(stream))).ok_or(Unreadable::Sealed)
    }

    /// The groups of the second container, and the age file that opens each.
    pub(crate) fn containers(&self) -> Vec<(Group, String)> {
        let state = self.lock();
        let sealed = state.groups.iter().filter_map(|(group, keys)| match keys {
            Keys::Sealed(sealed) => Some((group.clone(), sealed.key.clone())),
            Keys::Whole(_) | Keys::Streams(_) => None,
        });
        sealed.collect()
    }

    /// Whether a group is in the second container.
    pub(crate) fn is_sealed(&self, group: &Group) -> bool {
        matches!(self.lock().groups.get(group), Some(Keys::Sealed(_)))
    }

    /// Whether `key` is the one of a group's container.
    pub(crate) fn opens(&self, group: &Group, key: &Secret<32>) -> bool {
        let state = self.lock();
        let Some(Keys::Sealed(sealed)) = state.groups.get(group) else {
            return false;
        };
        sealed.streams.iter().all(|(stream, wrapped)| {
            let stream = stream.parse().ok();
            stream.is_some_and(|stream| unwrap(key, wrapped, &about(group, Some(stream))).is_some())
        })
    }

    /// The keys of a group's `streams` under a new key that only `recipient` opens; none when they are sealed
    /// already.
    pub(super) fn enclosed(
        &self,
        group: &Group,
        streams: &BTreeSet<StreamId>,
        recipient: &str,
    ) -> Result<Option<SealedKeys>> {
        let state = self.lock();
        let Some(keys) = state.groups.get(group) else {
            return Ok(None);
        };
        if matches!(keys, Keys::Sealed(_)) {
            return Ok(None);
        }
        let container = Secret::new(random()?);
        let mut wrapped = Vec::new();
        for &stream in streams {
            if let Some(key) = keys.of(stream) {
                let text = wrap(&container, &key, &about(group, Some(stream)))?;
                wrapped.push((stream.to_string(), text));
            }
        }
        Ok(Some(SealedKeys {
            recipient: recipient.to_owned(),
            key: to_recipient(recipient, &container)?,
            streams: wrapped,
        }))
    }

    /// The row of [`Keyring::enclosed`] is durable: what opened the group is destroyed.
    pub(super) fn enclose(&self, group: &Group, sealed: SealedKeys) {
        let mut state = self.lock();
        state.groups.insert(group.clone(), Keys::Sealed(sealed));
    }

    /// Which streams of a group are not forgotten.
    pub(crate) fn kept(&self, group: &Group) -> Kept {
        match self.lock().groups.get(group) {
            Some(Keys::Whole(_)) => Kept::All,
            Some(Keys::Streams(keys)) => Kept::These(keys.keys().copied().collect()),
            Some(Keys::Sealed(sealed)) => {
                let streams = sealed.streams.iter();
                Kept::These(
                    streams
                        .filter_map(|(stream, _)| stream.parse().ok())
                        .collect(),
                )
            }
            None => Kept::These(BTreeSet::new()),
        }
    }

    /// Whether a group has a key.
    pub(crate) fn has(&self, group: &Group) -> bool {
        self.lock().groups.contains_key(group)
    }

    /// Every group that has a key.
    pub(crate) fn groups(&self) -> Vec<Group> {
        self.lock().groups.keys().cloned().collect()
    }

    /// Destroys the keys of a group, all but those of the streams in `kept`, as part of a transaction;
    /// [`Keyring::forgotten`] must follow it.
    pub(crate) fn forget(
        &self,
        changes: &Changes<'_>,
        group: &Group,
        kept: &BTreeSet<StreamId>,
    ) -> Result<()> {
        let state = self.lock();
        let left = state.groups.get(group).and_then(|keys| keys.only(kept));
        let keys = match &left {
            Some(keys) => wrap_keys(state.tenant(group)?, group, keys)?,
            None => {
                return changes.remove(&GroupKeys {
                    group: group.clone(),
                    keys: WrappedKeys::Streams(Vec::new()),
                });
            }
        };
        changes.put(&keys)
    }

    /// The transaction of [`Keyring::forget`] is durable.
    pub(crate) fn forgotten(&self, group: &Group, kept: &BTreeSet<StreamId>) {
        let mut state = self.lock();
        match state.groups.get(group).and_then(|keys| keys.only(kept)) {
            Some(keys) => state.groups.insert(group.clone(), keys),
            None => state.groups.remove(group),
        };
    }

    /// Makes the key of a new log, and writes down how the one before it ended; durable when this returns.
    pub(crate) fn make_log_key(
        &self,
        number: u64,
        before: Option<(u64, LogEnd)>,
    ) -> Result<Secret<32>> {
        let key = Secret::new(random()?);
        // Before the catalogue is held: who makes a key holds the keys, and then waits for the catalogue.
        let ended = before.and_then(|(number, end)| self.ended(number, end));
        self.catalogue.write(|changes| {
            if let Some(ended) = &ended {
                changes.put(ended)?;
            }
            changes.put(&LogKey {
                number,
                key: StoredSecret(key.clone()),
                end: None,
            })
        })?;
        self.write_copy()?;
        let mut state = self.lock();
        state.logs.insert(number, (key.clone(), None));
        if let Some((number, end)) = before
            && let Some(log) = state.logs.get_mut(&number)
        {
            log.1 = Some(end);
        }
        Ok(key)
    }

    /// The key of a log; none when it was sealed.
    pub(crate) fn log_key(&self, number: u64) -> Option<Secret<32>> {
        let state = self.lock();
        state.logs.get(&number).map(|(key, _)| key.clone())
    }

    /// The logs that have a key, and how they ended.
    pub(crate) fn logs(&self) -> BTreeMap<u64, Option<LogEnd>> {
        let state = self.lock();
        let logs = state.logs.iter();
        logs.map(|(number, (_, end))| (*number, *end)).collect()
    }

    /// The row that says how a log ended; none when it was sealed meanwhile.
    pub(super) fn ended(&self, number: u64, end: LogEnd) -> Option<LogKey> {
        Some(LogKey {
            number,
            key: StoredSecret(self.log_key(number)?),
            end: Some(end),
        })
    }

    /// Writes down how a log ended.
    pub(super) fn end_log(&self, number: u64, end: LogEnd) -> Result<()> {
        match self.ended(number, end) {
            Some(ended) => self.catalogue.put(&ended),
            None => Ok(()),
        }
    }

    /// Destroys the key of a log, as part of a transaction; it stays in memory for those who still read.
    pub(crate) fn forget_log(changes: &Changes<'_>, number: u64) -> Result<()> {
        changes.remove(&LogKey {
            number,
            key: StoredSecret(Secret::new([0; 32])),
            end: None,
        })
    }

    /// The logs that have a key and are not there: the transaction that writes down what is missing of them forgets
    /// their keys.
    pub(super) fn logs_but(&self, present: &[u64]) -> Vec<u64> {
        let gone = self.logs().into_keys();
        gone.filter(|number| !present.contains(number)).collect()
    }

    /// The keys of the logs that are not there are forgotten.
    pub(super) fn forgot_logs_but(&self, present: &[u64]) {
        let mut state = self.lock();
        state.logs.retain(|number, _| present.contains(number));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        waits::lock(&self.state)
    }
}

impl State {
    fn tenant(&self, group: &Group) -> Result<&Secret<32>> {
        let tenant = self.tenants.get(&group.tenant);
        tenant.with_context(|| format!("tenant '{}' has no key", group.tenant))
    }
}

impl Keys {
    fn of(&self, stream: StreamId) -> Option<Secret<32>> {
        match self {
            Self::Whole(group) => Some(derive(
                group,
                Some(&stream.0),
                &[b"scrinium stream of a group v1"],
            )),
            Self::Streams(keys) => keys.get(&stream).cloned(),
            Self::Sealed(_) => None,
        }
    }

    /// What is left for the streams of `kept`, if anything is.
    fn only(&self, kept: &BTreeSet<StreamId>) -> Option<Self> {
        if let Self::Sealed(sealed) = self {
            let mut left = sealed.clone();
            left.streams
                .retain(|(stream, _)| stream.parse().is_ok_and(|stream| kept.contains(&stream)));
            return (!left.streams.is_empty()).then_some(Self::Sealed(left));
        }
        let left: BTreeMap<_, _> = kept
            .iter()
            .filter_map(|&stream| Some((stream, self.of(stream)?)))
            .collect();
        (!left.is_empty()).then_some(Self::Streams(left))
    }
}

impl SealedKeys {
    fn wrapped(&self, stream: StreamId) -> Option<&str> {
        let stream = stream.to_string();
        let found = self.streams.iter().find(|(id, _)| *id == stream);
        found.map(|(_, wrapped)| wrapped.as_str())
    }
}

fn about(group: &Group, stream: Option<StreamId>) -> String {
    let Group { tenant, class, day } = group;
    let stream = stream.map_or_else(String::new, |stream| stream.to_string());
    format!("{tenant}\0{class}\0{}\0{stream}", day.0)
}

fn wrap_keys(tenant: &Secret<32>, group: &Group, keys: &Keys) -> Result<GroupKeys> {
    let keys = match keys {
        Keys::Whole(key) => WrappedKeys::Whole(wrap(tenant, key, &about(group, None))?),
        Keys::Streams(keys) => {
            let wrapped = keys.iter().map(|(&stream, key)| {
                let wrapped = wrap(tenant, key, &about(group, Some(stream)))?;
                Ok((stream.to_string(), wrapped))
            });
            WrappedKeys::Streams(wrapped.collect::<Result<_>>()?)
        }
        Keys::Sealed(sealed) => WrappedKeys::Sealed(sealed.clone()),
    };
    Ok(GroupKeys {
        group: group.clone(),
        keys,
    })
}

fn unwrap_keys(tenant: &Secret<32>, row: &GroupKeys) -> Result<Keys> {
    let opened = |wrapped: &str, stream| {
        let about = about(&row.group, stream);
        unwrap(tenant, wrapped, &about).context("a key of the catalogue is not its tenant's")
    };
    match &row.keys {
        WrappedKeys::Whole(wrapped) => Ok(Keys::Whole(opened(wrapped, None)?)),
        WrappedKeys::Streams(wrapped) => {
            let keys = wrapped.iter().map(|(stream, wrapped)| {
                let stream: StreamId = stream.parse().context("a stream of the catalogue")?;
                Ok((stream, opened(wrapped, Some(stream))?))
            });
            Ok(Keys::Streams(keys.collect::<Result<_>>()?))
        }
        WrappedKeys::Sealed(sealed) => Ok(Keys::Sealed(sealed.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::make_catalogue;
    use crate::volume::Binding;

    /// The log that is opened and the log that is sealed write it at once.
    #[test]
    fn copies_written_at_the_same_time_are_whole() {
        let name = format!("scrinium-keys-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        drop(std::fs::remove_dir_all(&dir));
        let (volume, _) = Volume::create(&dir, &Binding::default()).unwrap();
        let catalogue = Arc::new(make_catalogue(&volume).unwrap());
        let keyring = Keyring::load(&volume, catalogue).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..20).for_each(|_| keyring.write_copy().unwrap()));
            }
        });
        let (path, key) = copies::keys_of(&volume);
        let read = crate::backup::copy::read::<serde_json::Value>(&path, &key);
        assert!(read.is_ok(), "{:?}", read.err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
