//! The exact bytes of one stream, in order.

use std::io::Write;

use anyhow::{Result, bail};
use scrinium_protocol::identity::StreamId;

use super::Archive;
use super::container::Access;

/// What was written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Exported {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) gaps: u64,
}

/// Writes the bytes of every entry of `stream` to `out`. What a gap entry says is not part of the
/// source's bytes: it is counted instead. Complete, or an error: nothing is skipped silently.
pub(crate) fn raw(
    archive: &Archive,
    stream: StreamId,
    access: &Access,
    out: &mut dyn Write,
) -> Result<Exported> {
    let mut done = Exported::default();
    let mut next: Option<u64> = None;
    for extent in archive.extents_of(stream)? {
        for batch in archive.read(&extent, access)? {
            let first = batch.header.first.0;
            if next.is_some_and(|next| first != next && first != 0) {
                bail!(
                    "{}: entries are missing before {first}; run verify",
                    extent.place_name()
                );
            }
            next = Some(batch.header.next().0);
            for (meta, bytes) in batch.entries.iter() {
                if meta.flags.is_gap() {
                    done.gaps += 1;
                    continue;
                }
                out.write_all(bytes)?;
                done.entries += 1;
                done.bytes += bytes.len() as u64;
            }
        }
    }
    Ok(done)
}
