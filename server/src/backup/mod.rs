//! Backup: what is sealed, as it lies, and the catalogue without the keys of days; those are a file elsewhere.
//!
//! ```text
//! archive/*.seg ──────────┐
//! evidence/* ─────────────┼─▶ TARGET   each object once; a generation says which of them it is made of
//! catalogue but the keys ─┘
//! keys of days, what was deleted ─▶ KEYS FILE   replaced by each backup: what was forgotten is not in it
//! ```
//!
//! Invariants:
//! 1. A generation is written last: what it names is there.
//! 2. The keys of days are never in the target. An old backup and today's keys file give no plaintext of what
//!    was deleted in between.

pub(crate) mod copy;
pub(crate) mod schedule;
pub(crate) mod target;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use scrinium_segment::{Kind, durable, fault, segment_name};
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::target::{Location, Target};
use crate::archive::upkeep::Upkeep;
use crate::catalogue::records::{
    AckedRecord, ArchiveMark, BackupRecord, CertificateRecord, ChainRecord, GroupKeys, LogKey,
    PrunedRecord, SegmentRecord, TenantRecord,
};
use crate::catalogue::{Row, Stored as _};
use crate::clock;
use crate::config;
use crate::core::Core;
use crate::evidence::chain::KEY_FILE;
use crate::measure::Measure;
use crate::volume::{ARCHIVE_DIR, EVIDENCE_DIR, SLOTS_FILE, Volume};
use crate::{places, stopped};

/// One backup: the files of the volume, and the objects they are made of.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Generation {
    pub(crate) number: u64,
    pub(crate) made_us: u64,
    pub(crate) volume: String,
    /// By their place in the volume.
    pub(crate) objects: BTreeMap<String, Object>,
}

/// A file of a backup.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Object {
    pub(crate) len: u64,
    /// SHA-256 of its bytes, in hexadecimal.
    pub(crate) sha256: String,
    /// What it is called in the backup.
    pub(crate) name: String,
}

/// What a keys file says of itself.
#[derive(Debug, Deserialize, Serialize)]
struct KeysManifest {
    volume: String,
    made_us: u64,
}

/// What was done.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Done {
    pub(crate) generation: u64,
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
    /// Copied this time.
    pub(crate) copied: u64,
    pub(crate) copied_bytes: u64,
    /// Segments of days that were deleted since, and are not restored.
    pub(crate) forgotten: u64,
    /// What is wrong.
    pub(crate) findings: Vec<String>,
}

/// What is known of backups.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Status {
    /// Where they are made by themselves, and how often.
    pub(crate) to: Option<String>,
    pub(crate) every_h: Option<u64>,
    pub(crate) last: Option<BackupRecord>,
    /// Two were due since the last one.
    pub(crate) late: bool,
}

/// What a generation is made of, at one moment between two changes of the archive.
struct Snapshot {
    /// Held, so that nothing removes their files meanwhile.
    segments: Vec<Arc<SegmentRecord>>,
    rows: Vec<Row>,
    keys: Vec<Row>,
}

/// A backup that is wanted.
pub(crate) struct Order {
    pub(crate) to: Location,
    pub(crate) keys: PathBuf,
    /// A person wants it, and sees where it goes: a directory that is named the first time is made.
    pub(crate) by_hand: bool,
    /// What was there before is known to be gone.
    pub(crate) anew: bool,
}

/// Makes a backup of the running server.
pub(crate) async fn create(core: &Arc<Core>, order: Order) -> Result<Done> {
    let (to, keys) = (&order.to, &order.keys);
    ensure!(
        keys.is_absolute() && !to.holds(keys),
        "--keys '{}' must be an absolute path, and not in the backup: whoever has both can read what was deleted since",
        keys.display()
    );
    let active = crate::control::policy::roll(core).await?;
    let snapshot = core.upkeep.ask(active, Upkeep::snapshot).await?;
    let core = core.clone();
    let work = move || {
        let _one_at_a_time = one_at_a_time(&core);
        let target = order.open(&core)?;
        let (to, keys) = (order.to, order.keys);
        let done = write(&core, &target, &keys, &snapshot)?;
        places::remember(&core.catalogue, places::Kind::Backup, &to.to_string())?;
        let before = core.catalogue.load::<BackupRecord>()?.pop();
        core.catalogue.put(&BackupRecord {
            to: to.to_string(),
            made_us: clock::unix_us(),
            generation: done.generation,
            objects: done.objects,
            bytes: done.bytes,
            copied_bytes: done.copied_bytes,
            ..before.unwrap_or_default()
        })?;
        Ok(done)
    };
    tokio::task::spawn_blocking(work).await?
}

impl Order {
    /// Goes there, if what belongs there is mounted: what is not there is not made, but for a person, the first time.
    fn open(&self, core: &Core) -> Result<Target> {
        let place = self.to.to_string();
        let kind = places::Kind::Backup;
        let is_known = places::find(&core.catalogue, kind, &place)?.is_some();
        let may_make = self.anew || (self.by_hand && !is_known);
        let keys_dir = self.keys.parent().context("--keys must name a file")?;
        let dir = match &self.to {
            Location::Directory(dir) => Some(dir.as_path()),
            Location::Bucket { .. } | Location::Remote { .. } => None,
        };
        for dir in dir.into_iter().chain([keys_dir]) {
            if !dir.is_dir() {
                ensure!(
                    may_make,
                    "{} is not there: mount what belongs there, or make the directory. A backup makes none by itself",
                    dir.display()
                );
                durable::create_dir(dir)?;
            }
        }
        let target = Target::open(&self.to)?;
        if !self.anew {
            let has_mark = !target.list(GENERATIONS)?.is_empty();
            places::check(
                &core.catalogue,
                kind,
                &place,
                has_mark,
                "Mount it; if what was there is gone for good, begin anew: scrinium-server backup create --anew",
            )?;
        }
        Ok(target)
    }
}

impl Upkeep {
    fn snapshot(&self) -> Result<Snapshot> {
        Ok(Snapshot {
            segments: self.archive.parts().0,
            rows: self
                .catalogue
                .export(|kind| !is_key(kind) && kind != AckedRecord::KIND)?,
            keys: self.catalogue.export(is_of_the_keys_file)?,
        })
    }
}

/// Rows that open entries.
fn is_key(kind: u8) -> bool {
    [TenantRecord::KIND, GroupKeys::KIND, LogKey::KIND].contains(&kind)
}

/// Keys, and what was deleted: both are of one moment.
fn is_of_the_keys_file(kind: u8) -> bool {
    [
        TenantRecord::KIND,
        GroupKeys::KIND,
        PrunedRecord::KIND,
        CertificateRecord::KIND,
        ArchiveMark::KIND,
    ]
    .contains(&kind)
}

fn write(core: &Core, target: &Target, keys: &Path, snapshot: &Snapshot) -> Result<Done> {
    let volume = &core.volume;
    let there = [ARCHIVE_DIR, EVIDENCE_DIR, GENERATIONS]
        .into_iter()
        .map(|prefix| target.list(prefix))
        .collect::<Result<Vec<_>>>()?;
    let there: BTreeMap<String, u64> = there.into_iter().flatten().collect();
    let scratch = volume.scratch_dir();
    let before = latest(target, volume, &scratch)?;
    let known = before.as_ref().map(|(generation, _)| &generation.objects);
    let mut generation = Generation {
        number: before
            .as_ref()
            .map_or(0, |(generation, _)| generation.number)
            + 1,
        made_us: clock::unix_us(),
        volume: volume.id().to_owned(),
        objects: BTreeMap::new(),
    };
    let mut done = Done {
        generation: generation.number,
        ..Done::default()
    };
    let mut add = |place: String, object: Object, from: &Path| -> Result<()> {
        if there.get(&object.name) != Some(&object.len) {
            target.put(&object.name, from)?;
            done.copied += 1;
            done.copied_bytes += object.len;
        }
        done.objects += 1;
        done.bytes += object.len;
        generation.objects.insert(place, object);
        Ok(())
    };
    // The checkpoint first: what it speaks of is in the files that are copied after it. They grow, so each is
    // called after its content.
    for path in evidence_files(volume)? {
        let file = path.file_name().context("a file has a name")?;
        let place = format!("{EVIDENCE_DIR}/{}", file.to_string_lossy());
        let still = scratch.join("evidence");
        std::fs::copy(&path, &still)?;
        let (len, sha256) = digest_of(&still)?;
        let name = format!("{place}.{}", sha256.get(..16).unwrap_or_default());
        add(place, Object { len, sha256, name }, &still)?;
        durable::remove(&still)?;
    }
    for segment in &snapshot.segments {
        let file = segment_name(Kind::Archive, segment.number);
        let place = format!("{ARCHIVE_DIR}/{file}");
        let path = core.archive.segment_path(segment.number);
        let as_before = known.and_then(|known| known.get(&place));
        let object = match as_before.filter(|object| object.len == segment.len) {
            Some(object) => object.clone(),
            None if !path.try_exists()? => continue, // forgotten meanwhile
            None => {
                let (len, sha256) = digest_of(&path)?;
                let name = place.clone();
                Object { len, sha256, name }
            }
        };
        add(place, object, &path)?;
    }
    target.put(SLOTS_FILE, &volume.dir().join(SLOTS_FILE))?;
    fault::point("server: backup objects written");
    // The keys before the generation: a keys file always opens the newest backup there is.
    let file = scratch.join("keys");
    let manifest = KeysManifest {
        volume: volume.id().to_owned(),
        made_us: generation.made_us,
    };
    let key = volume.key("backup keys");
    copy::write(&file, &key, generation.number, &manifest, &snapshot.keys)?;
    target::copy(&file, keys)?;
    durable::remove(&file)?;
    fault::point("server: backup keys written");
    let name = segment_name(Kind::Copy, generation.number);
    let file = scratch.join(&name);
    let key = volume.key("backup");
    copy::write(&file, &key, generation.number, &generation, &snapshot.rows)?;
    target.put(&format!("{GENERATIONS}/{name}"), &file)?;
    durable::remove(&file)?;
    fault::point("server: backup complete");
    prune(target, volume, &scratch, &generation)?;
    Ok(done)
}

/// Removes generations that are too many, and objects that none names any more.
fn prune(target: &Target, volume: &Volume, scratch: &Path, newest: &Generation) -> Result<()> {
    let generations = target.list(GENERATIONS)?;
    let many = generations.len().saturating_sub(GENERATIONS_KEPT);
    for name in generations.keys().take(many) {
        target.remove(name)?;
    }
    let names = |generation: Generation| generation.objects.into_values().map(|object| object.name);
    let mut named: BTreeSet<String> = names(newest.clone()).collect();
    for name in generations.keys().skip(many) {
        match read_generation(target, volume, scratch, name) {
            Ok((generation, _)) => named.extend(names(generation)),
            // One that cannot be read does not say what it needs: nothing is removed.
            Err(_) => return Ok(()),
        }
    }
    for prefix in [ARCHIVE_DIR, EVIDENCE_DIR] {
        for name in target.list(prefix)?.keys() {
            if !named.contains(name) && is_object(name) {
                target.remove(name)?;
            }
        }
    }
    Ok(())
}

/// Whether a backup gave a file its name: what others lay there stays.
fn is_object(name: &str) -> bool {
    let Some((prefix, file)) = name.split_once('/') else {
        return false;
    };
    let hexadecimal =
        |text: &str| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match file.rsplit_once('.') {
        Some((number, _)) if prefix == ARCHIVE_DIR => {
            let number = Some(number).filter(|number| hexadecimal(number));
            let number = number.and_then(|number| u64::from_str_radix(number, 16).ok());
            number.is_some_and(|number| segment_name(Kind::Archive, number) == file)
        }
        Some((_, digest)) => prefix == EVIDENCE_DIR && hexadecimal(digest),
        None => false,
    }
}

/// Checks the newest backup, and remembers what it found: every object is there as it was copied, and the keys file
/// opens every day.
pub(crate) fn verify(core: &Core, from: &Location, keys: &Path) -> Result<Done> {
    let _one_at_a_time = one_at_a_time(core);
    let done = check(&core.volume, from, keys)?;
    let before = core.catalogue.load::<BackupRecord>()?.pop();
    core.catalogue.put(&BackupRecord {
        verified_us: clock::unix_us(),
        whole: done.findings.is_empty(),
        ..before.unwrap_or_default()
    })?;
    Ok(done)
}

/// What is known of backups.
pub(crate) fn status(core: &Core) -> Result<Status> {
    let last = core.catalogue.load::<BackupRecord>()?.pop();
    let schedule = core.backup.as_ref();
    let made_us = last.as_ref().map_or(0, |last| last.made_us);
    let age_us = u128::from(clock::unix_us().saturating_sub(made_us));
    let is_late = |schedule: &config::Backup| age_us > 2 * schedule.every.as_micros();
    Ok(Status {
        to: schedule.map(|schedule| schedule.to.to_string()),
        every_h: schedule.map(|schedule| schedule.every.as_secs() / 3600),
        late: made_us > 0 && schedule.is_some_and(is_late),
        last,
    })
}

/// Whoever makes or reads a backup waits for whoever does.
fn one_at_a_time(core: &Core) -> MutexGuard<'_, ()> {
    let waited = core.backing_up.lock();
    waited.unwrap_or_else(PoisonError::into_inner)
}

fn check(volume: &Volume, from: &Location, keys: &Path) -> Result<Done> {
    let target = Target::open(from)?;
    let scratch = volume.scratch_dir();
    let (generation, rows) =
        latest(&target, volume, &scratch)?.context("there is no backup in it")?;
    let mut done = Done {
        generation: generation.number,
        ..Done::default()
    };
    for object in generation.objects.values() {
        let name = &object.name;
        done.objects += 1;
        done.bytes += object.len;
        let mut measure = Measure::default();
        match target.read(name, &mut measure) {
            Ok(()) if measure.finish().1 == object.sha256 => {}
            Ok(()) => done
                .findings
                .push(format!("{name} is not what was copied there")),
            Err(error) => done.findings.push(format!("{name}: {error:#}")),
        }
    }
    let opened = read_keys(volume, keys)?;
    let groups: BTreeSet<Vec<u8>> = opened
        .into_iter()
        .filter(|row| row.kind == GroupKeys::KIND)
        .map(|row| row.value.to_vec())
        .filter_map(|value| serde_json::from_slice::<GroupKeys>(&value).ok())
        .map(|keys| keys.name())
        .collect();
    for segment in segments_of(&rows)? {
        if !groups.contains(&group_name(&segment)) {
            done.forgotten += 1;
        }
    }
    Ok(done)
}

/// Makes the volume of a backup on this machine, in `dir`, which must hold none.
pub(crate) fn restore(dir: &Path, from: &Location, keys: &Path, shares: &[String]) -> Result<Done> {
    let target = Target::open(from)?;
    durable::create_dir(dir)?;
    ensure!(
        !dir.join(SLOTS_FILE).try_exists()?,
        "{} already holds a volume; choose another --data directory",
        dir.display()
    );
    // The slots come last for anybody else: until then the directory is no volume.
    let slots = dir.join(FOREIGN_SLOTS_FILE);
    target.get(SLOTS_FILE, &slots)?;
    let volume = Volume::adopt(dir, &slots, shares)?;
    durable::remove(&slots)?;
    let scratch = volume.scratch_dir();
    let (generation, rows) =
        latest(&target, &volume, &scratch)?.context("there is no backup in it")?;
    let key_rows = read_keys(&volume, keys)?;
    let groups: BTreeSet<Vec<u8>> = key_rows
        .iter()
        .filter(|row| row.kind == GroupKeys::KIND)
        .filter_map(|row| serde_json::from_slice::<GroupKeys>(&row.value).ok())
        .map(|keys| keys.name())
        .collect();
    let mut done = Done {
        generation: generation.number,
        ..Done::default()
    };
    let mut forgotten = BTreeSet::new();
    for segment in segments_of(&rows)? {
        if !groups.contains(&group_name(&segment)) {
            forgotten.insert(segment.number);
        }
    }
    done.forgotten = forgotten.len() as u64;
    let left_out: BTreeSet<String> = forgotten
        .iter()
        .map(|&number| format!("{ARCHIVE_DIR}/{}", segment_name(Kind::Archive, number)))
        .collect();
    for (place, object) in &generation.objects {
        if left_out.contains(place) {
            continue;
        }
        let to = dir.join(place);
        target.get(&object.name, &to)?;
        ensure!(
            digest_of(&to)?.1 == object.sha256,
            "{} is not what was copied there: verify the backup",
            object.name
        );
        done.objects += 1;
        done.bytes += object.len;
        fault::point("server: object restored");
    }
    // What an attempt that was interrupted had brought.
    for file in ["catalogue.db", "catalogue.db-wal", "catalogue.db-shm"] {
        durable::remove(&dir.join(file))?;
    }
    let catalogue = crate::core::make_catalogue(&volume)?;
    let kept = rows.into_iter().filter(|row| {
        let is_forgotten = row.kind == SegmentRecord::KIND
            && serde_json::from_slice::<SegmentRecord>(&row.value)
                .is_ok_and(|segment| forgotten.contains(&segment.number));
        // The keys file is newer, or of the same moment.
        !is_forgotten && !is_of_the_keys_file(row.kind)
    });
    let mut all: Vec<Row> = kept.collect();
    all.extend(key_rows);
    catalogue.import(&all)?;
    // The keys of intervals are in no backup: another chain follows those that there were.
    let chains = catalogue.load::<ChainRecord>()?;
    catalogue.write(|changes| {
        let mut ended = chains.into_iter().map(|chain| ChainRecord {
            ended: true,
            ..chain
        });
        ended.try_for_each(|chain| changes.put(&chain))
    })?;
    let detail = json!({
        "from": from.to_string(), "generation": done.generation, "objects": done.objects,
        "forgotten_segments": done.forgotten,
    });
    stopped::note(&volume, "volume restored from a backup", detail)?;
    volume.settle()?;
    Ok(done)
}

/// The newest generation of a target, with the rows of the catalogue.
fn latest(
    target: &Target,
    volume: &Volume,
    scratch: &Path,
) -> Result<Option<(Generation, Vec<Row>)>> {
    match target.list(GENERATIONS)?.last_key_value() {
        Some((name, _)) => read_generation(target, volume, scratch, name).map(Some),
        None => Ok(None),
    }
}

fn read_generation(
    target: &Target,
    volume: &Volume,
    scratch: &Path,
    name: &str,
) -> Result<(Generation, Vec<Row>)> {
    let file = scratch.join("generation");
    target.get(name, &file)?;
    let read = copy::read::<Generation>(&file, &volume.key("backup"));
    durable::remove(&file)?;
    let (generation, rows) = read.context("the newest backup cannot be read")?;
    if generation.volume != volume.id() {
        bail!("this is a backup of another volume, {}", generation.volume);
    }
    Ok((generation, rows))
}

fn read_keys(volume: &Volume, keys: &Path) -> Result<Vec<Row>> {
    let read = copy::read::<KeysManifest>(keys, &volume.key("backup keys"));
    let (manifest, rows) = read.with_context(|| format!("--keys {}", keys.display()))?;
    ensure!(
        manifest.volume == volume.id(),
        "--keys {} is of another volume",
        keys.display()
    );
    Ok(rows)
}

fn segments_of(rows: &[Row]) -> Result<Vec<SegmentRecord>> {
    let segments = rows.iter().filter(|row| row.kind == SegmentRecord::KIND);
    let segments = segments.map(|row| Ok(serde_json::from_slice(&row.value)?));
    segments.collect()
}

fn group_name(segment: &SegmentRecord) -> Vec<u8> {
    GroupKeys {
        group: segment.group.clone(),
        keys: crate::catalogue::records::WrappedKeys::Streams(Vec::new()),
    }
    .name()
}

/// The files of the evidence, the checkpoint first.
fn evidence_files(volume: &Volume) -> Result<Vec<PathBuf>> {
    let dir = volume.dir().join(EVIDENCE_DIR);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir)?
        .flatten()
        .map(|entry| entry.path())
        // Keys that are destroyed soon must not live on in a backup.
        .filter(|path| path.is_file() && !path.ends_with(KEY_FILE))
        .collect();
    files.sort_by_key(|path| (path.extension().is_some_and(|e| e == "evd"), path.clone()));
    Ok(files)
}

/// Length and SHA-256 of a file.
fn digest_of(path: &Path) -> Result<(u64, String)> {
    let mut file =
        std::fs::File::open(path).with_context(|| format!("reading {}", path.display()))?;
    let mut measure = Measure::default();
    std::io::copy(&mut file, &mut measure)?;
    Ok(measure.finish())
}

/// The slots of a backup, until they are bound to this machine.
const FOREIGN_SLOTS_FILE: &str = "volume.json.foreign";
const GENERATIONS: &str = "generations";
/// Backups that can be gone back to.
const GENERATIONS_KEPT: usize = 14;
