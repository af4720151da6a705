//! A member of any length, cut into parts that a tar can hold.
//!
//! ```text
//! what is written ─▶ parts of 4 GiB or a little more, each compressed by itself ─▶ measured, or into the tar
//! ```
//!
//! A tar needs lengths before bytes, and nothing of an export lies on a disk of the server: everything is written twice,
//! once to be measured. Both times it must be the same, or there is no package.

use std::io::Write;

use anyhow::{Context as _, Result, ensure};
use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};

use super::tar::Tar;
use crate::measure::Measure;

/// How a member is called, and whether it is compressed.
#[derive(Clone, Copy)]
pub(super) struct Named {
    pub(super) stem: &'static str,
    pub(super) end: &'static str,
    pub(super) is_packed: bool,
}

impl Named {
    /// The name of a part, counted from 0.
    fn of_part(self, part: usize) -> String {
        let Self { stem, end, .. } = self;
        match part {
            0 => format!("{stem}{end}"),
            part => format!("{stem}.{}{end}", part + 1),
        }
    }
}

/// One file of the package.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct File {
    pub(super) name: String,
    /// Length and SHA-256.
    pub(super) content: (u64, String),
    /// The same of the text in it, if it is compressed.
    pub(super) text: Option<(u64, String)>,
}

/// Takes what belongs into a member.
pub(super) struct Parts<'a, 'o> {
    named: Named,
    /// `None` while it is only measured.
    out: Option<(&'a mut Tar<'o>, &'a [File])>,
    done: Vec<File>,
    part: Option<Part>,
    text_max: u64,
}

/// The part that is being written.
struct Part {
    text: Measure,
    content: Measure,
    packer: Option<GzEncoder<Vec<u8>>>,
}

impl<'a, 'o> Parts<'a, 'o> {
    /// Measures only.
    pub(super) fn measure(named: Named) -> Self {
        Self {
            named,
            out: None,
            done: Vec::new(),
            part: None,
            text_max: text_max(),
        }
    }

    /// Writes what was measured as `files`.
    pub(super) fn write(named: Named, files: &'a [File], tar: &'a mut Tar<'o>) -> Self {
        Self {
            out: Some((tar, files)),
            ..Self::measure(named)
        }
    }

    /// Says that what follows may be in another part than what was before.
    pub(super) fn boundary(&mut self) -> Result<()> {
        let is_full = |part: &Part| part.text.len() >= self.text_max;
        match self.part.take_if(|part| is_full(part)) {
            Some(part) => self.end_part(part),
            None => Ok(()),
        }
    }

    /// Ends the member; returns its files.
    pub(super) fn finish(mut self) -> Result<Vec<File>> {
        let last = self.part.take();
        if last.is_some() || self.done.is_empty() {
            let last = match last {
                Some(part) => part,
                None => self.begin_part()?,
            };
            self.end_part(last)?;
        }
        if let Some((_, files)) = self.out {
            ensure!(self.done == files, CHANGED);
        }
        Ok(self.done)
    }

    fn begin_part(&mut self) -> Result<Part> {
        if let Some((tar, files)) = &mut self.out {
            let file = files.get(self.done.len()).context(CHANGED)?;
            tar.begin(&file.name, file.content.0)?;
        }
        // No name, no time, no system: the same bytes each time. Fast, because it is done twice.
        let packer = || {
            GzBuilder::new()
                .operating_system(0xff)
                .write(Vec::new(), Compression::fast())
        };
        Ok(Part {
            text: Measure::default(),
            content: Measure::default(),
            packer: self.named.is_packed.then(packer),
        })
    }

    fn end_part(&mut self, mut part: Part) -> Result<()> {
        if let Some(packer) = part.packer.take() {
            let rest = packer.finish()?;
            self.give(&mut part.content, &rest)?;
        }
        let file = File {
            name: self.named.of_part(self.done.len()),
            content: part.content.finish(),
            text: self.named.is_packed.then(|| part.text.finish()),
        };
        if let Some((tar, files)) = &mut self.out {
            ensure!(files.get(self.done.len()) == Some(&file), CHANGED);
            tar.end(file.content.0)?;
        }
        self.done.push(file);
        Ok(())
    }

    fn give(&mut self, measure: &mut Measure, bytes: &[u8]) -> std::io::Result<()> {
        measure.write_all(bytes)?;
        match &mut self.out {
            Some((tar, _)) => tar.content().write_all(bytes),
            None => Ok(()),
        }
    }
}

impl Write for Parts<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut part = match self.part.take() {
            Some(part) => part,
            None => self.begin_part().map_err(std::io::Error::other)?,
        };
        part.text.write_all(bytes)?;
        match &mut part.packer {
            Some(packer) => {
                packer.write_all(bytes)?;
                self.give(&mut part.content, packer.get_ref())?;
                packer.get_mut().clear();
            }
            None => self.give(&mut part.content, bytes)?,
        }
        self.part = Some(part);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Length of text after which a part ends: what cannot be compressed stays far below 8 GiB too. Tests of a debug build
/// have it shorter.
fn text_max() -> u64 {
    #[cfg(debug_assertions)]
    if let Ok(max) = std::env::var("SCRINIUM_PART_BYTES_MAX") {
        return max.parse().unwrap_or(TEXT_MAX);
    }
    TEXT_MAX
}

const TEXT_MAX: u64 = 4 << 30;
const CHANGED: &str = "what is exported changed while it was written; export it again";

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    const LOG: Named = Named {
        stem: "log",
        end: ".txt.gz",
        is_packed: true,
    };
    const BATCHES: Named = Named {
        stem: "batches",
        end: ".bin",
        is_packed: false,
    };

    fn fill(mut parts: Parts<'_, '_>, lines: &[&str]) -> Result<Vec<File>> {
        parts.text_max = 10;
        for line in lines {
            parts.boundary()?;
            parts.write_all(line.as_bytes())?;
        }
        parts.finish()
    }

    #[test]
    fn what_is_too_long_goes_on_in_parts_that_are_files_of_their_own() {
        let lines = ["12345\n", "67890\n", "abc\n", "defghijklmno\n", "p\n"];
        for named in [LOG, BATCHES] {
            let files = fill(Parts::measure(named), &lines).unwrap();
            let mut written = Vec::new();
            let mut tar = Tar::new(&mut written, 7);
            let again = fill(Parts::write(named, &files, &mut tar), &lines).unwrap();
            assert_eq!(again, files);
            let names: Vec<&str> = files.iter().map(|file| &*file.name).collect();
            let (mut at, mut text) = (0, String::new());
            for file in &files {
                let len = usize::try_from(file.content.0).unwrap();
                let content = &written[at + 512..at + 512 + len];
                at += 512 + len.next_multiple_of(512);
                if named.is_packed {
                    let mut unpacked = flate2::bufread::MultiGzDecoder::new(content);
                    unpacked.read_to_string(&mut text).unwrap();
                } else {
                    text += str::from_utf8(content).unwrap();
                }
            }
            assert_eq!((at, text), (written.len(), lines.concat()));
            if named.is_packed {
                assert_eq!(names, ["log.txt.gz", "log.2.txt.gz", "log.3.txt.gz"]);
            } else {
                assert_eq!(names, ["batches.bin", "batches.2.bin", "batches.3.bin"]);
            }
        }
    }

    #[test]
    fn nothing_at_all_is_a_part_too() {
        for named in [LOG, BATCHES] {
            let files = fill(Parts::measure(named), &[]).unwrap();
            assert_eq!(files.len(), 1);
        }
    }

    #[test]
    fn what_is_another_the_second_time_is_no_package() {
        let files = fill(Parts::measure(LOG), &["one\n", "two\n"]).unwrap();
        for lines in [
            &["one\n", "two"][..],
            &["one\n"],
            &["one\n", "two\n", "3\n", "4\n", "5\n"],
            &[],
        ] {
            let mut written = Vec::new();
            let mut tar = Tar::new(&mut written, 7);
            let error = fill(Parts::write(LOG, &files, &mut tar), lines).unwrap_err();
            assert!(format!("{error:#}").contains("changed while"), "{error:#}");
        }
    }
}
