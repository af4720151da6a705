//! The catalogue: users, agents, tokens, streams, segments and the server's own keys, in SQLite with
//! nothing readable on the disk.
//!
//! Every row is `(kind, HMAC of the name, sealed value)`; names and values are read into memory at
//! the start, where the few readers live. SQLite gives the atomic, durable transaction.

pub(crate) mod copies;
pub(crate) mod records;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use anyhow::{Context as _, Result, anyhow};
use rusqlite::{Connection, params};
use scrinium_protocol::kdf::hmac_sha256;
use scrinium_protocol::secret::Secret;
use scrinium_segment::key::derive;
use scrinium_segment::random;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

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
    writes: AtomicU64,
}

impl Catalogue {
    /// Opens or creates the file at `path`.
    pub(crate) fn open(path: &Path, key: &Secret<32>) -> Result<Self> {
        let connection = Connection::open(path)
            .with_context(|| format!("opening the catalogue {}", path.display()))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "secure_delete", "ON")?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS item (
                kind INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL,
                PRIMARY KEY (kind, name)) WITHOUT ROWID",
        )?;
        Ok(Self {
            connection: Mutex::new(connection),
            cipher: Aes256Gcm::new(derive(key, None, &[b"values"]).expose().into()),
            name_key: derive(key, None, &[b"names"]),
            writes: AtomicU64::new(0),
        })
    }

    /// Reads every row of one type.
    pub(crate) fn load<T: Stored>(&self) -> Result<Vec<T>> {
        let connection = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
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
        let mut connection = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let transaction = connection.transaction()?;
        changes(&Changes {
            catalogue: self,
            transaction: &transaction,
        })?;
        transaction.commit().context("writing the catalogue")?;
        self.writes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Whether every row can be read.
    ///
    /// # Errors
    /// What is wrong with the file, or with a row.
    pub(crate) fn check(&self) -> Result<()> {
        {
            let connection = self
                .connection
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let found: String =
                connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
            anyhow::ensure!(found == "ok", "{found}");
        }
        self.export(|_| true).map(drop)
    }

    /// Makes what was removed unreadable in the files too: overwritten pages go, and so do the older ones in the
    /// write-ahead log.
    pub(crate) fn forget_old_pages(&self) -> Result<()> {
        let connection = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .context("truncating the catalogue's write-ahead log")
    }

    /// Every row of the kinds that are `wanted`, of one moment.
    pub(crate) fn export(&self, wanted: impl Fn(u8) -> bool) -> Result<Vec<Row>> {
        let connection = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
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
            let mut insert = changes.transaction.prepare(INSERT)?;
            for Row { kind, name, value } in rows {
                let sealed = self.seal_value(*kind, name, value)?;
                insert.execute(params![kind, name, sealed])?;
            }
            Ok(())
        })
    }

    /// How often it was written since it was opened.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
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
}

impl Changes<'_> {
    pub(crate) fn put<T: Stored>(&self, row: &T) -> Result<()> {
        let name = self.catalogue.hashed_name(T::KIND, &row.name());
        let value = Zeroizing::new(serde_json::to_vec(row)?);
        let sealed = self.catalogue.seal_value(T::KIND, &name, &value)?;
        self.transaction
            .prepare(INSERT)?
            .execute(params![T::KIND, &name[..], sealed])?;
        Ok(())
    }

    pub(crate) fn remove<T: Stored>(&self, row: &T) -> Result<()> {
        let name = self.catalogue.hashed_name(T::KIND, &row.name());
        self.transaction
            .prepare("DELETE FROM item WHERE kind = ?1 AND name = ?2")?
            .execute(params![T::KIND, &name[..]])?;
        Ok(())
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
        let catalogue = Catalogue::open(&path, &Secret::new([1; 32])).unwrap();
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
        let other = Catalogue::open(&path, &Secret::new([2; 32])).unwrap();
        assert!(other.load::<Row>().is_err());
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
