//! What all rows of the catalogue together are: their keyed sum, and how often they changed.
//!
//! Every row authenticates itself; that none is missing, added, or of another time, the sum says. It is
//! changed in the transaction that changes the rows. A catalogue that was put back as a whole has its own
//! sum; its generation is smaller than the one that logs and intervals remember.

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{Aead as _, Payload};
use anyhow::{Context as _, Result, anyhow, ensure};
use rusqlite::{Connection, OptionalExtension as _, params};
use scrinium_protocol::kdf::hmac_sha256;
use scrinium_protocol::secret::Secret;
use scrinium_segment::random;

use super::Catalogue;

/// The sum of the rows' keyed hashes modulo 2^256, least byte first: nobody without the key knows a hash, and a row that
/// is there twice counts twice.
pub(super) type Sum = [u8; 32];

/// What is stated of all rows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Whole {
    pub(super) generation: u64,
    pub(super) sum: Sum,
}

/// The generation of the rows that are there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Begun {
    Before(u64),
    /// A new catalogue, and one of version 0.1.0, begin the count.
    Now(u64),
    /// It was stated before, and is not there: it stays so, and every look at the rows says it.
    TakenAway,
}

/// Begins to state what the rows are, unless it is stated already, or must have been.
pub(super) fn begin(
    connection: &mut Connection,
    cipher: &Aes256Gcm,
    key: &Secret<32>,
    is_counted: bool,
) -> Result<Begun> {
    if let Some(whole) = stated(connection, cipher)? {
        return Ok(Begun::Before(whole.generation));
    }
    if is_counted {
        return Ok(Begun::TakenAway);
    }
    let transaction = connection.transaction()?;
    let whole = Whole {
        generation: 1,
        sum: sum(&transaction, key)?,
    };
    state(&transaction, cipher, &whole)?;
    transaction.commit()?;
    Ok(Begun::Now(whole.generation))
}

impl Catalogue {
    /// Whether the rows are those that were stated last.
    ///
    /// # Errors
    /// They are not.
    pub(super) fn check_whole(&self) -> Result<()> {
        let connection = self.lock();
        let stated = stated(&connection, &self.cipher)?.context("its sum is missing")?;
        ensure!(
            sum(&connection, &self.whole_key)? == stated.sum,
            "rows were taken away, added or put back"
        );
        Ok(())
    }
}

/// What is stated of the rows, if something is.
pub(super) fn stated(connection: &Connection, cipher: &Aes256Gcm) -> Result<Option<Whole>> {
    let mut statement = connection.prepare("SELECT value FROM whole WHERE id = 1")?;
    let value: Option<Vec<u8>> = statement.query_row([], |row| row.get(0)).optional()?;
    let Some(value) = value else {
        return Ok(None);
    };
    let altered = || anyhow!("the sum of the catalogue's rows was altered");
    let (nonce, sealed) = value.split_first_chunk::<12>().ok_or_else(altered)?;
    let payload = Payload {
        msg: sealed,
        aad: ABOUT,
    };
    let opened = cipher.decrypt(&(*nonce).into(), payload);
    let opened = opened.map_err(|_| altered())?;
    let (generation, sum) = opened.split_first_chunk::<8>().ok_or_else(altered)?;
    Ok(Some(Whole {
        generation: u64::from_be_bytes(*generation),
        sum: sum.try_into().map_err(|_| altered())?,
    }))
}

/// States what the rows are.
pub(super) fn state(connection: &Connection, cipher: &Aes256Gcm, whole: &Whole) -> Result<()> {
    let nonce: [u8; 12] = random()?;
    let text = [&whole.generation.to_be_bytes()[..], &whole.sum].concat();
    let payload = Payload {
        msg: &text,
        aad: ABOUT,
    };
    let sealed = cipher.encrypt(&nonce.into(), payload);
    let sealed = sealed.map_err(|_| anyhow!("sealing the sum of the catalogue's rows"))?;
    let value = [&nonce[..], &sealed].concat();
    connection
        .prepare("INSERT OR REPLACE INTO whole (id, value) VALUES (1, ?1)")?
        .execute(params![value])?;
    Ok(())
}

/// Refuses a file that has other tables than this program's, or anything that acts when they are changed.
pub(super) fn check_tables(connection: &Connection) -> Result<()> {
    let known = Connection::open_in_memory()?;
    known.execute_batch(TABLES)?;
    ensure!(
        tables(connection)? == tables(&known)?,
        "the catalogue has other tables than this program made: it was altered. Make it again from its copies: scrinium-server fsck --rebuild"
    );
    Ok(())
}

/// Names and definitions of all that is in a file, with one blank between words.
fn tables(connection: &Connection) -> Result<Vec<(String, String, String)>> {
    let mut statement = connection.prepare("SELECT type, name, sql FROM sqlite_master")?;
    let rows = statement.query_map([], |row| {
        let sql: Option<String> = row.get(2)?;
        let words: Vec<&str> = sql.as_deref().unwrap_or("").split_whitespace().collect();
        Ok((row.get(0)?, row.get(1)?, words.join(" ")))
    })?;
    let mut tables: Vec<_> = rows.collect::<Result<_, _>>()?;
    tables.sort();
    Ok(tables)
}

/// What the catalogue's file has. A row has one name in its kind, and the file is in their order.
pub(super) const TABLES: &str = "CREATE TABLE IF NOT EXISTS item (
        kind INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL,
        PRIMARY KEY (kind, name)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS whole (id INTEGER PRIMARY KEY, value BLOB NOT NULL)";

/// The sum of every row there is.
fn sum(connection: &Connection, key: &Secret<32>) -> Result<Sum> {
    let mut statement = connection.prepare("SELECT kind, name, value FROM item")?;
    let mut rows = statement.query([])?;
    let mut sum = Sum::default();
    while let Some(row) = rows.next()? {
        let kind: u8 = row.get(0)?;
        let name: Vec<u8> = row.get(1)?;
        let sealed: Vec<u8> = row.get(2)?;
        add(key, &mut sum, kind, &name, &sealed);
    }
    Ok(sum)
}

/// Puts a row into a sum.
pub(super) fn add(key: &Secret<32>, sum: &mut Sum, kind: u8, name: &[u8], sealed: &[u8]) {
    let mut carry = 0;
    for (byte, of_row) in sum.iter_mut().zip(hash(key, kind, name, sealed)) {
        let (added, first) = byte.overflowing_add(of_row);
        let (added, second) = added.overflowing_add(carry);
        *byte = added;
        carry = u8::from(first || second);
    }
}

/// Takes a row out of a sum.
pub(super) fn take(key: &Secret<32>, sum: &mut Sum, kind: u8, name: &[u8], sealed: &[u8]) {
    let mut borrow = 0;
    for (byte, of_row) in sum.iter_mut().zip(hash(key, kind, name, sealed)) {
        let (left, first) = byte.overflowing_sub(of_row);
        let (left, second) = left.overflowing_sub(borrow);
        *byte = left;
        borrow = u8::from(first || second);
    }
}

fn hash(key: &Secret<32>, kind: u8, name: &[u8], sealed: &[u8]) -> Sum {
    let parts: [&[u8]; 4] = [&[kind], &(name.len() as u64).to_be_bytes(), name, sealed];
    hmac_sha256(key.expose(), &parts)
}

/// What the sum is sealed with as its associated data.
const ABOUT: &[u8] = b"scrinium catalogue v2";

#[cfg(test)]
mod tests {
    use scrinium_segment::durable;

    use super::*;
    use crate::catalogue::Stored;
    use crate::clock::Day;

    #[test]
    fn a_row_taken_away_added_or_put_back_shows_and_so_does_the_missing_sum() {
        let dir = std::env::temp_dir().join(format!("scrinium-whole-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("catalogue.db");
        let key = Secret::new([1; 32]);
        let catalogue = Catalogue::create(&path, &key).unwrap();
        assert_eq!(catalogue.generation(), 1);
        for (name, day) in [("one", 1), ("two", 2), ("one", 3)] {
            catalogue.put(&Row(name.into(), Day(day))).unwrap();
        }
        let removed = |changes: &super::super::Changes<'_>| {
            changes.remove(&Row("two".into(), Day(0)))?;
            changes.remove(&Row("never".into(), Day(0)))
        };
        catalogue.write(removed).unwrap();
        catalogue.check().unwrap();
        assert_eq!(catalogue.generation(), 5);
        let altered = [
            "DELETE FROM item",
            "UPDATE item SET kind = 249",
            "INSERT INTO item SELECT kind, x'00', value FROM item",
            "DELETE FROM whole",
        ];
        for sql in altered {
            for file in ["copy.db", "copy.count"] {
                drop(std::fs::remove_file(dir.join(file)));
            }
            catalogue
                .lock()
                .execute("VACUUM INTO ?1", [dir.join("copy.db").to_str()])
                .unwrap();
            let copy = Catalogue::open(&dir.join("copy.db"), &key, true).unwrap();
            // It has no count of its own, which is said; the rows are what they were.
            assert_eq!(copy.put_back().len(), 1);
            copy.check().unwrap();
            copy.lock().execute_batch(sql).unwrap();
            assert!(copy.check_whole().is_err(), "{sql}");
        }
        drop(catalogue);
        let catalogue = Catalogue::open(&path, &key, true).unwrap();
        assert_eq!((catalogue.generation(), catalogue.put_back()), (5, &[][..]));
        let earlier = dir.join("earlier.db");
        let into = [earlier.to_str()];
        catalogue.lock().execute("VACUUM INTO ?1", into).unwrap();
        catalogue.put(&Row("four".into(), Day(4))).unwrap();
        drop(catalogue);
        // One of an earlier time, and one without its sum, in the place of the present one.
        for (file, problem) in [(earlier, "put back"), (dir.join("copy.db"), "taken away")] {
            durable::rename(&file, &path).unwrap();
            // It is found again until it is written down.
            for _ in 0..2 {
                let found = Catalogue::open(&path, &key, true).unwrap();
                assert!(found.put_back()[0].1.contains(problem), "{problem}");
            }
        }
        // Written or not, a sum that was taken away does not come again.
        let found = Catalogue::open(&path, &key, true).unwrap();
        found.put(&Row("five".into(), Day(5))).unwrap();
        found.recount().unwrap();
        drop(found);
        let found = Catalogue::open(&path, &key, true).unwrap();
        assert!(found.check_whole().is_err());
        drop(found);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_row_twice_and_what_acts_by_itself_are_refused() {
        let dir = std::env::temp_dir().join(format!("scrinium-twice-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        let key = Secret::new([1; 32]);
        // What was there before stands behind what is there now, twice, in a table that lets it.
        let twice =
            "CREATE TABLE old (kind INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL);
            INSERT INTO old SELECT * FROM item; DROP TABLE item; ALTER TABLE old RENAME TO item;
            INSERT INTO item SELECT * FROM item; INSERT INTO item SELECT * FROM item";
        let trigger = "CREATE TRIGGER t BEFORE INSERT ON item BEGIN
            DELETE FROM item WHERE kind = NEW.kind AND name = NEW.name; END";
        for (number, sql) in [twice, trigger].into_iter().enumerate() {
            let path = dir.join(format!("{number}.db"));
            let catalogue = Catalogue::create(&path, &key).unwrap();
            catalogue.put(&Row("one".into(), Day(1))).unwrap();
            catalogue.lock().execute_batch(sql).unwrap();
            if number == 0 {
                assert!(catalogue.check_whole().is_err());
            }
            drop(catalogue);
            let refused = Catalogue::open(&path, &key, true).err().unwrap();
            assert!(refused.to_string().contains("other tables"), "{refused}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_sum_gives_back_what_was_put_in_and_tells_two_from_none() {
        let key = Secret::new([1; 32]);
        let mut sum = Sum::default();
        let rows: Vec<[u8; 2]> = (0..=255).map(|n| [n, n ^ 0x55]).collect();
        for row in &rows {
            add(&key, &mut sum, row[0], row, row);
        }
        let all = sum;
        for _ in 0..2 {
            add(&key, &mut sum, 1, b"name", b"value");
        }
        assert_ne!(sum, all);
        for _ in 0..2 {
            take(&key, &mut sum, 1, b"name", b"value");
        }
        assert_eq!(sum, all);
        for row in &rows {
            take(&key, &mut sum, row[0], row, row);
        }
        assert_eq!(sum, Sum::default());
    }

    #[derive(serde::Deserialize, serde::Serialize)]
    struct Row(String, Day);

    impl Stored for Row {
        const KIND: u8 = 250;

        fn name(&self) -> Vec<u8> {
            self.0.clone().into_bytes()
        }
    }
}
