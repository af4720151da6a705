//! Rows of the catalogue in a sealed file of their own.
//!
//! ```text
//! a segment of kind 5: manifest record (1), JSON | row records (2), each: per row kind (1) | length (2) | hashed
//! name | length (4) | value | end
//! ```

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use scrinium_protocol::codec::{Reader, put_bytes16};
use scrinium_protocol::secret::Secret;
use scrinium_segment::cipher::Cipher;
use scrinium_segment::reader::{Next, SegmentReader};
use scrinium_segment::writer::SegmentWriter;
use scrinium_segment::{Kind, durable, segment_name};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::catalogue::Row;

/// Writes a copy to `path`; what was there is replaced when the whole is durable.
pub(crate) fn write<M: Serialize>(
    path: &Path,
    key: &Secret<32>,
    number: u64,
    manifest: &M,
    rows: &[Row],
) -> Result<()> {
    let dir = path.parent().context("a file has a directory")?;
    let built = dir.join(segment_name(Kind::Copy, number));
    durable::remove(&built)?;
    let cipher = Cipher::default();
    let mut writer = SegmentWriter::create(dir, key, cipher, Kind::Copy, number, [0; 16])?;
    writer.append(RECORD_MANIFEST, &[&serde_json::to_vec(manifest)?])?;
    let mut record = Zeroizing::new(Vec::new());
    for row in rows {
        record.push(row.kind);
        put_bytes16(&mut record, &row.name);
        let len = u32::try_from(row.value.len()).context("a row's length")?;
        record.extend_from_slice(&len.to_be_bytes());
        record.extend_from_slice(&row.value);
        if record.len() > RECORD_LEN_MAX {
            writer.append(RECORD_ROWS, &[&record])?;
            record.clear();
        }
    }
    writer.append(RECORD_ROWS, &[&record])?;
    writer.finish()?;
    if built != path {
        durable::rename(&built, path)?;
    }
    Ok(())
}

/// Reads a copy back. It is whole, or an error.
pub(crate) fn read<M: DeserializeOwned>(path: &Path, key: &Secret<32>) -> Result<(M, Vec<Row>)> {
    let reader = SegmentReader::open(path, key, Kind::Copy)?;
    let mut cursor = reader.start();
    let Next::Record(first) = reader.next(&mut cursor)? else {
        bail!("{} is cut", path.display());
    };
    ensure!(
        first.kind == RECORD_MANIFEST,
        "{} does not begin with a manifest",
        path.display()
    );
    let manifest = serde_json::from_slice(&first.payload).context("a manifest")?;
    let mut rows = Vec::new();
    loop {
        let record = match reader.next(&mut cursor)? {
            Next::Record(record) => record,
            Next::End => return Ok((manifest, rows)),
            Next::Torn { .. } => bail!("{} is cut", path.display()),
        };
        let payload = Zeroizing::new(record.payload);
        let mut r = Reader::new(&payload);
        while !r.is_empty() {
            let kind = r.u8("row kind")?;
            let name = r.bytes16(usize::from(u16::MAX), "row name")?.to_vec();
            let len = r.u32("row length")? as usize;
            let value = Zeroizing::new(r.take(len, "row")?.to_vec());
            rows.push(Row { kind, name, value });
        }
    }
}

const RECORD_MANIFEST: u8 = 1;
const RECORD_ROWS: u8 = 2;
const RECORD_LEN_MAX: usize = 4 << 20;
