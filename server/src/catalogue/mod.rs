//! The catalogue: users, agents, tokens, streams, segments and the server's own keys, in SQLite with
//! nothing readable on the disk.
//!
//! Every row is `(kind, HMAC of the name, sealed value)`; names and values are read into memory at
//! the start, where the few readers live. SQLite gives the atomic, durable transaction. What all rows
//! together are stands beside them ([`whole`]): one that was taken away, put back or added shows.

pub(crate) mod copies;
mod count;
pub(crate) mod records;
mod whole;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use anyhow::{Context as _, Result, anyhow};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use scrinium_protocol::kdf::hmac_sha256;
use scrinium_protocol::secret::Secret;
use scrinium_segment::key::derive;
use scrinium_segment::random;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use self::count::Count;
use self::whole::{Begun, Whole};
use crate::waits;

/// A type kept in the catalogue.
pub(crate) trait Stored: Serialize + DeserializeOwned {
    /// Tells the rows of this type from others; never reused.
    const KIND: u8;

    /// What names one row of this type.
    fn name(&self) -> Vec<u8>;
}

/// A row as it leaves one catalogue and enters another of the same volume.
pub(crate) struct Row {
    pub(crate) kind: u8,
    /// Hashed with a key of the volume.
    pub(crate) name: Vec<u8>,
    pub(crate) value: Zeroizing<Vec<u8>>,
}

const INSERT: &str = "INSERT OR REPLACE INTO item (kind, name, value) VALUES (?1, ?2, ?3)";

/// The open catalogue.
pub(crate) struct Catalogue {
    connection: Mutex<Connection>,
    cipher: Aes256Gcm,
    name_key: Secret<32>,
    whole_key: Secret<32>,
    /// Counts every change since the volume was made.
    generation: AtomicU64,
    path: PathBuf,
    /// Says the same beside it; none until what was found wrong with it is written down.
    count: Mutex<Option<Count>>,
    /// What was found not to be as it was left: the file, and what is wrong.
    put_back: Vec<(String, String)>,
    is_begun: bool,
}

impl Catalogue {
    /// Opens the file at `path`, which must be there; `is_counted` says that it must state what its rows are. Nothing
    /// of it is changed but by [`Catalogue::write`], nor of what is said beside it of how often it was written.
    ///
    /// # Errors
    /// It is missing or empty, has other tables, or SQLite cannot open it.
    pub(crate) fn open(path: &Path, key: &Secret<32>, is_counted: bool) -> Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let len = std::fs::metadata(path).map(|meta| meta.len());
        anyhow::ensure!(
            len.as_ref().is_ok_and(|len| *len > 0),
            "the catalogue {} is {}; make it again from its copies: scrinium-server fsck --rebuild",
            path.display(),
            if len.is_ok() { "empty" } else { "missing" }
        );
        Self::open_with(path, key, flags, is_counted)
    }

    /// Opens the file at `path`; makes it when it is not there. How often it was written before is not remembered.
    pub(crate) fn create(path: &Path, key: &Secret<32>) -> Result<Self> {
        Count::remove(path)?;
        let catalogue = Self::open_with(path, key, OpenFlags::default(), false)?;
        catalogue.recount()?;
        Ok(catalogue)
    }

    fn open_with(
        path: &Path,
        key: &Secret<32>,
        flags: OpenFlags,
        is_counted: bool,
    ) -> Result<Self> {
        let mut connection = Connection::open_with_flags(path, flags)
            .with_context(|| format!("opening the catalogue {}", path.display()))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "secure_delete", "ON")?;
        connection.execute_batch(whole::TABLES)?;
        whole::check_tables(&connection)?;
        let cipher = Aes256Gcm::new(derive(key, None, &[b"values"]).expose().into());
        let whole_key = derive(key, None, &[b"whole"]);
        let begun = whole::begin(&mut connection, &cipher, &whole_key, is_counted)?;
        let mut put_back = Vec::new();
        let mut problem = |file: &str, problem: String| put_back.push((file.to_owned(), problem));
        let mut count = None;
        match begun {
            Begun::TakenAway => {
                problem(
                    "catalogue.db",
                    "the sum of its rows was taken away".to_owned(),
                );
            }
            // The count begins, and with it what is remembered of it.
            Begun::Now(_) => {
                if Count::is_there(path) {
                    problem(
                        "catalogue.db",
                        "the sum of its rows was taken away".to_owned(),
                    );
                }
            }
            Begun::Before(generation) => match Count::open(path, &cipher) {
                Ok((_, Ok(counted))) if generation < counted => problem(
                    "catalogue.db",
                    format!(
                        "it was put back: it was written {generation} times, and {counted} were counted"
                    ),
                ),
                Ok((found, Ok(_))) => count = Some(found),
                // Of version 0.1.0, and no server was started since.
                Err(_) if !is_counted && !Count::is_there(path) => {}
                Ok((_, Err(error))) | Err(error) => {
                    problem("catalogue.count", format!("{error:#}"));
                }
            },
        }
        let is_begun = matches!(begun, Begun::Now(_));
        let generation = match begun {
            Begun::Now(generation) | Begun::Before(generation) => generation,
            Begun::TakenAway => 0,
        };
        Ok(Self {
            connection: Mutex::new(connection),
            cipher,
            name_key: derive(key, None, &[b"names"]),
            whole_key,
            generation: AtomicU64::new(generation),
            path: path.to_owned(),
            count: Mutex::new(count),
            put_back,
            is_begun,
        })
    }

    /// What was found wrong is written down: how often it is written is said beside it from now on.
    pub(crate) fn recount(&self) -> Result<()> {
        let mut count = waits::lock(&self.count);
        if count.is_none() {
            *count = Some(Count::create(&self.path, &self.cipher, self.generation())?);
        }
        Ok(())
    }

    /// Whether it was stated for the first time what its rows are: it is new, or of version 0.1.0.
    pub(crate) fn is_begun(&self) -> bool {
        self.is_begun
    }

    /// Counts on from a number of transactions.
    pub(crate) fn go_on_from(&self, generation: u64) -> Result<()> {
        {
            let connection = self.lock();
            let mut whole = whole::stated(&connection, &self.cipher)?.unwrap_or_default();
            whole.generation = whole.generation.max(generation);
            whole::state(&connection, &self.cipher, &whole)?;
        }
        self.write(|_| Ok(()))
    }

    /// What was found not to be as it was left when it was opened: the file, and what is wrong.
    pub(crate) fn put_back(&self) -> &[(String, String)] {
        &self.put_back
    }

    /// Reads every row of one type.
    pub(crate) fn load<T: Stored>(&self) -> Result<Vec<T>> {
        waits::off_worker(|| self.load_here())
    }

    fn load_here<T: Stored>(&self) -> Result<Vec<T>> {
        let connection = self.lock();
        let mut statement = connection.prepare("SELECT name, value FROM item WHERE kind = ?1")?;
        let mut rows = statement.query(params![T::KIND])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let name: Vec<u8> = row.get(0)?;
            let value: Vec<u8> = row.get(1)?;
            let value = self.open_value(T::KIND, &name, &value)?;
            found.push(
                serde_json::from_slice(&value)
                    .context("a row of the catalogue is of a newer version")?,
            );
        }
        Ok(found)
    }

    /// Writes and removes rows; all of it durable when this returns, or none of it.
    pub(crate) fn write(&self, changes: impl FnOnce(&Changes<'_>) -> Result<()>) -> Result<()> {
        waits::off_worker(|| self.write_here(changes))
    }

    fn write_here(&self, changes: impl FnOnce(&Changes<'_>) -> Result<()>) -> Result<()> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        let whole = whole::stated(&transaction, &self.cipher)?.unwrap_or_default();
        let changing = Changes {
            catalogue: self,
            transaction: &transaction,
            sum: Cell::new(whole.sum),
        };
        changes(&changing)?;
        let whole = Whole {
            generation: whole.generation + 1,
            sum: changing.sum.get(),
        };
        whole::state(&transaction, &self.cipher, &whole)?;
        transaction.commit().context("writing the catalogue")?;
        self.generation.store(whole.generation, Ordering::Relaxed);
        let count = waits::lock(&self.count);
        match &*count {
            Some(count) => count.write(&self.cipher, whole.generation),
            None => Ok(()),
        }
    }

    /// Whether every row can be read, and they are all the rows there are.
    ///
    /// # Errors
    /// What is wrong with the file, or with a row.
    pub(crate) fn check(&self) -> Result<()> {
        {
            let connection = self.lock();
            let found: String =
                connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
            anyhow::ensure!(found == "ok", "{found}");
        }
        self.export(|_| true)?;
        self.check_whole()
    }

    /// Makes what was removed unreadable in the files too: overwritten pages go, and so do the older ones in the
    /// write-ahead log.
    pub(crate) fn forget_old_pages(&self) -> Result<()> {
        waits::off_worker(|| {
            let connection = self.lock();
            connection
                .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
                .context("truncating the catalogue's write-ahead log")
        })
    }

    /// Every row of the kinds that are `wanted`, of one moment.
    pub(crate) fn export(&self, wanted: impl Fn(u8) -> bool) -> Result<Vec<Row>> {
        waits::off_worker(|| self.export_here(wanted))
    }

    fn export_here(&self, wanted: impl Fn(u8) -> bool) -> Result<Vec<Row>> {
        let connection = self.lock();
        let mut statement = connection.prepare("SELECT kind, name, value FROM item")?;
        let mut found = statement.query([])?;
        let mut rows = Vec::new();
        while let Some(row) = found.next()? {
            let kind: u8 = row.get(0)?;
            let name: Vec<u8> = row.get(1)?;
            let value: Vec<u8> = row.get(2)?;
            if wanted(kind) {
                let value = self.open_value(kind, &name, &value)?;
                rows.push(Row { kind, name, value });
            }
        }
        Ok(rows)
    }

    /// Writes rows that were exported from a catalogue of the same volume.
    pub(crate) fn import(&self, rows: &[Row]) -> Result<()> {
        self.write(|changes| {
            rows.iter()
                .try_for_each(|Row { kind, name, value }| changes.insert(*kind, name, value))
        })
    }

    /// How often it was written since the volume was made.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        waits::lock(&self.connection)
    }

    /// Writes one row.
    pub(crate) fn put<T: Stored>(&self, row: &T) -> Result<()> {
        self.write(|changes| changes.put(row))
    }

    fn hashed_name(&self, kind: u8, name: &[u8]) -> [u8; 32] {
        hmac_sha256(self.name_key.expose(), &[&[kind], name])
    }

    fn seal_value(&self, kind: u8, name: &[u8], value: &[u8]) -> Result<Vec<u8>> {
        let nonce: [u8; 12] = random()?;
        let aad = [&[kind], name].concat();
        let payload = Payload {
            msg: value,
            aad: &aad,
        };
        let sealed = self.cipher.encrypt(&nonce.into(), payload);
        let sealed = sealed.map_err(|_| anyhow!("sealing a row of the catalogue"))?;
        Ok([&nonce[..], &sealed].concat())
    }

    fn open_value(&self, kind: u8, name: &[u8], value: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let (nonce, sealed) = value
            .split_first_chunk::<12>()
            .context("a row of the catalogue is cut")?;
        let aad = [&[kind], name].concat();
        let payload = Payload {
            msg: sealed,
            aad: &aad,
        };
        let opened = self.cipher.decrypt(&(*nonce).into(), payload);
        let opened = opened.map_err(|_| anyhow!("a row of the catalogue was altered"))?;
        Ok(Zeroizing::new(opened))
    }
}

/// A transaction of the catalogue.
pub(crate) struct Changes<'a> {
    catalogue: &'a Catalogue,
    transaction: &'a rusqlite::Transaction<'a>,
    /// What all rows together are, as far as they are changed.
    sum: Cell<whole::Sum>,
}

impl Changes<'_> {
    pub(crate) fn put<T: Stored>(&self, row: &T) -> Result<()> {
        let name = self.catalogue.hashed_name(T::KIND, &row.name());
        let value = Zeroizing::new(serde_json::to_vec(row)?);
        self.insert(T::KIND, &name, &value)
    }

    /// The row of that name, as it is now.
    pub(crate) fn get<T: Stored>(&self, name: &[u8]) -> Result<Option<T>> {
        let name = self.catalogue.hashed_name(T::KIND, name);
        let mut statement = self
            .transaction
            .prepare("SELECT value FROM item WHERE kind = ?1 AND name = ?2")?;
        let sealed: Option<Vec<u8>> = statement
            .query_row(params![T::KIND, &name[..]], |row| row.get(0))
            .optional()?;
        let Some(sealed) = sealed else {
            return Ok(None);
        };
        let value = self.catalogue.open_value(T::KIND, &name, &sealed)?;
        let row = serde_json::from_slice(&value);
        Ok(Some(
            row.context("a row of the catalogue is of a newer version")?,
        ))
    }

    pub(crate) fn remove<T: Stored>(&self, row: &T) -> Result<()> {
        self.remove_named::<T>(&row.name())
    }

    /// Removes the row of that name, if there is one.
    pub(crate) fn remove_named<T: Stored>(&self, name: &[u8]) -> Result<()> {
        let name = self.catalogue.hashed_name(T::KIND, name);
        self.take_out(T::KIND, &name)?;
        self.transaction
            .prepare("DELETE FROM item WHERE kind = ?1 AND name = ?2")?
            .execute(params![T::KIND, &name[..]])?;
        Ok(())
    }

    fn insert(&self, kind: u8, name: &[u8], value: &[u8]) -> Result<()> {
        let sealed = self.catalogue.seal_value(kind, name, value)?;
        self.take_out(kind, name)?;
        self.put_in(kind, name, &sealed);
        self.transaction
            .prepare(INSERT)?
            .execute(params![kind, name, sealed])?;
        Ok(())
    }

    /// Takes the row as it is out of the sum.
    fn take_out(&self, kind: u8, name: &[u8]) -> Result<()> {
        let mut statement = self
            .transaction
            .prepare("SELECT value FROM item WHERE kind = ?1 AND name = ?2")?;
        let sealed: Option<Vec<u8>> = statement
            .query_row(params![kind, name], |row| row.get(0))
            .optional()?;
        if let Some(sealed) = sealed {
            let mut sum = self.sum.get();
            whole::take(&self.catalogue.whole_key, &mut sum, kind, name, &sealed);
            self.sum.set(sum);
        }
        Ok(())
    }

    /// Puts the row as it will be into the sum.
    fn put_in(&self, kind: u8, name: &[u8], sealed: &[u8]) {
        let mut sum = self.sum.get();
        whole::add(&self.catalogue.whole_key, &mut sum, kind, name, sealed);
        self.sum.set(sum);
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[test]
    fn rows_read_back_and_nothing_of_them_is_readable_on_the_disk() {
        let dir = std::env::temp_dir().join(format!("scrinium-catalogue-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("catalogue.db");
        let catalogue = Catalogue::create(&path, &Secret::new([1; 32])).unwrap();
        catalogue
            .put(&Row {
                name: "MARKER-user".into(),
            })
            .unwrap();
        assert_eq!(catalogue.load::<Row>().unwrap().len(), 1);
        for file in std::fs::read_dir(&dir).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            assert!(memchr::memmem::find(&bytes, b"MARKER").is_none());
        }
        drop(catalogue);
        assert!(Catalogue::open(&path, &Secret::new([2; 32]), true).is_err());
        scrinium_segment::durable::write_file(&path, b"").unwrap();
        let key = Secret::new([1; 32]);
        let empty = Catalogue::open(&path, &key, true).err().unwrap();
        assert!(empty.to_string().contains("is empty"), "{empty}");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[derive(Deserialize, Serialize)]
    struct Row {
        name: String,
    }

    impl Stored for Row {
        const KIND: u8 = 250;

        fn name(&self) -> Vec<u8> {
            self.name.clone().into_bytes()
        }
    }
}
