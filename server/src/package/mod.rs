//! An export package: bytes of the archive and everything needed to check them elsewhere.
//!
//! ```text
//! tar: manifest.json    who asked for what, when; per stream its agent, the agent's key and what is shown of it;
//!                       length and SHA-256 of every other member and of the text in it
//!      manifest.sig     the server's signature of it: Ed25519 over "scrinium package v3", a line feed, the manifest
//!      custody.html     a sheet for the hands it goes through
//!      log.txt.gz       the exact bytes of the entries, one after the other
//!      entries.csv.gz   the same as a table (or entries.jsonl.gz)
//!      batches.bin      per batch: length (4) | an excerpt: see the protocol's excerpt.rs
//!      evidence.json    the intervals sealed over the entries, the way from each to the signed checkpoint, and the
//!                       certificates of what was deleted between them
//!      stamped/         checkpoints with RFC 3161 tokens over them
//! ```
//!
//! `scrinium-verify` needs nothing else, and takes nothing else: `docs/PACKAGE.md` has every byte. An excerpt of a stream
//! by a query shows the entries that match, and of the others only that they are there.

mod custody;
mod gaps;
mod parts;
mod proofs;
mod selection;
mod tar;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use age::x25519::Recipient;
use anyhow::{Context as _, Result, ensure};
use data_encoding::HEXLOWER;
use ed25519_dalek::Signer as _;
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::compress::{AGENT_LEVEL, Compressor};
use scrinium_protocol::entry::leaf_of;
use scrinium_protocol::excerpt::{Excerpt, Shown, ShownEntry, ends_line};
use scrinium_protocol::identity::{AgentId, StreamId};
use scrinium_protocol::merkle::AuditPaths;
use scrinium_protocol::shown;
use serde_json::{Value, json};

use self::parts::{File, Named, Parts};
pub(crate) use self::selection::Wanted;
use self::selection::{Piece, Selection};
use self::tar::Tar;
use crate::archive::Archive;
use crate::archive::container::Access;
use crate::catalogue::records::StreamRecord;
use crate::clock;
use crate::core::Core;
use crate::evidence::Inclusions;
use crate::i18n::Language;
use crate::index::reading::Reading;
use crate::measure::Measure;
use crate::present::{self, View};

/// What somebody asks for.
pub(crate) struct Order {
    pub(crate) wanted: Wanted,
    pub(crate) form: Form,
    /// Whom alone it can be read by.
    pub(crate) recipient: Option<Recipient>,
}

/// What it is wanted as.
pub(crate) enum Form {
    /// The bytes alone.
    Raw,
    Package(Paper),
}

/// What a package says of itself besides what it holds.
pub(crate) struct Paper {
    pub(crate) table: Table,
    /// Who asked for it, as the manifest has it: field and value.
    pub(crate) request: BTreeMap<&'static str, String>,
    /// Of the sheet.
    pub(crate) language: Language,
}

/// How the entries are shown besides their bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Table {
    Csv,
    Json,
    None,
}

impl Table {
    fn named(self) -> Option<Named> {
        let named = |end| Named {
            stem: "entries",
            end,
            is_packed: true,
        };
        match self {
            Self::Csv => Some(named(".csv.gz")),
            Self::Json => Some(named(".jsonl.gz")),
            Self::None => None,
        }
    }
}

/// Writes what was asked for: complete, or an error.
pub(crate) fn write(
    core: &Core,
    order: Order,
    access: &Access,
    reading: &Reading,
    out: &mut dyn Write,
) -> Result<()> {
    let Some(recipient) = order.recipient else {
        return write_plain(core, order.wanted, order.form, access, reading, out);
    };
    let recipients = std::iter::once(&recipient as &dyn age::Recipient);
    let mut sealed = age::Encryptor::with_recipients(recipients)?.wrap_output(out)?;
    write_plain(core, order.wanted, order.form, access, reading, &mut sealed)?;
    sealed.finish()?;
    Ok(())
}

fn write_plain(
    core: &Core,
    wanted: Wanted,
    form: Form,
    access: &Access,
    reading: &Reading,
    out: &mut dyn Write,
) -> Result<()> {
    let (archive, names) = (&core.archive, core.agent_names());
    let paper = match form {
        Form::Raw => return raw(archive, &names, wanted, access, reading, out),
        Form::Package(paper) => paper,
    };
    let is_whole_stream = wanted.is_whole_stream();
    let mut selection = Selection::find(archive, &names, wanted, access, reading)?;
    let inclusions = selection.lead_to_seals(core, access)?;
    let writer = PackageWriter {
        core,
        selection: &selection,
        inclusions: &inclusions,
        access,
        reading,
        is_whole_stream,
        names,
        streams: archive.streams_among(selection.runs.iter().map(|run| run.stream.id)),
    };
    writer.write(&paper, out)
}

/// Writes the bytes alone. `names` are the agents whose entries may be among them.
pub(crate) fn raw(
    archive: &Archive,
    names: &BTreeMap<AgentId, String>,
    wanted: Wanted,
    access: &Access,
    reading: &Reading,
    out: &mut dyn Write,
) -> Result<()> {
    let is_whole_stream = wanted.is_whole_stream();
    let selection = Selection::find(archive, names, wanted, access, reading)?;
    selection.for_each_piece(archive, access, reading, |piece| {
        write_log(piece, is_whole_stream, out)
    })
}

struct PackageWriter<'a> {
    core: &'a Core,
    selection: &'a Selection,
    inclusions: &'a Inclusions,
    access: &'a Access,
    reading: &'a Reading,
    is_whole_stream: bool,
    names: BTreeMap<AgentId, String>,
    streams: BTreeMap<StreamId, StreamRecord>,
}

/// A member of the package, with its parts.
struct Member {
    files: Vec<File>,
    content: Content,
}

enum Content {
    Bytes(Vec<u8>),
    Log,
    Table(Table, Named),
    Batches,
}

/// What is shown of one stream.
#[derive(Clone, Default)]
struct Total {
    lines: u64,
    entries: u64,
    gaps: u64,
    bytes: u64,
    runs: Vec<Value>,
}

impl PackageWriter<'_> {
    /// Reads everything once to know what it will be, and once for each member: a tar needs lengths before bytes,
    /// and plain text must never lie on the server's disk.
    fn write(&self, paper: &Paper, out: &mut dyn Write) -> Result<()> {
        let (totals, mut members) = self.measure(paper.table)?;
        members.extend(self.evidence()?);
        let streams = self.describe(&totals)?;
        let server_key = self.core.signing.verifying_key().to_bytes();
        let sum = |of: fn(&Total) -> u64| totals.values().map(of).sum::<u64>();
        let made_us = clock::unix_us();
        let about = custody::About {
            made: present::rfc3339(made_us),
            server: format!("scrinium/{}", self.core.volume.id()),
            server_key: shown::key(&server_key),
            lines: sum(|total| total.lines),
            gaps: sum(|total| total.gaps),
            bytes: sum(|total| total.bytes),
            in_no_interval: proofs::count_open(&streams),
            gaps_left_out: self.selection.gaps_left_out().values().sum(),
        };
        let files: Vec<&File> = members.iter().flat_map(|member| &member.files).collect();
        let sheet = custody::sheet(paper, &about, &streams, &files)?;
        members.insert(0, Member::of("custody.html", sheet)?);
        let files = members.iter().flat_map(|member| &member.files);
        let listed = files.map(|file| (file.name.clone(), file.to_json()));
        let mut manifest = json!({
            "format": "scrinium-package-3",
            "made": about.made,
            "server": about.server,
            "server_key": HEXLOWER.encode(&server_key),
            "request": paper.request,
            "is_whole_stream": self.is_whole_stream,
            "lines": about.lines,
            "entries": sum(|total| total.entries),
            "gaps": about.gaps,
            "bytes": about.bytes,
            "streams": streams,
            "members": listed.collect::<serde_json::Map<_, _>>(),
        });
        if let Some(manifest) = manifest.as_object_mut().filter(|_| about.gaps_left_out > 0) {
            manifest.insert("gaps_left_out".into(), self.gaps_left_out());
        }
        let manifest = serde_json::to_vec_pretty(&manifest)?;
        let signed = [SIGNED_AS.as_bytes(), &manifest].concat();
        let signature = HEXLOWER.encode(&self.core.signing.sign(&signed).to_bytes());
        members.insert(0, Member::of("manifest.sig", signature.into_bytes())?);
        members.insert(0, Member::of("manifest.json", manifest)?);
        let mut tar = Tar::new(out, made_us / 1_000_000);
        for member in &members {
            self.content(member, &mut tar)?;
        }
        tar.finish()
    }

    /// Statements of gaps that are not shown, by the name of their agent.
    fn gaps_left_out(&self) -> Value {
        let left_out = self.selection.gaps_left_out().iter();
        let named = left_out.map(|(agent, gaps)| {
            let name = self.names.get(agent).cloned();
            (name.unwrap_or_else(|| agent.to_string()), json!(gaps))
        });
        Value::Object(named.collect())
    }

    /// The members that hold the entries, and what is in them by stream.
    fn measure(&self, table: Table) -> Result<(BTreeMap<StreamId, Total>, Vec<Member>)> {
        let mut totals: BTreeMap<StreamId, Total> = BTreeMap::new();
        let mut last = None;
        let mut log = Parts::measure(LOG);
        let mut rows = table.named().map(Parts::measure);
        let mut batches = Parts::measure(BATCHES);
        let mut compressor = Compressor::new(AGENT_LEVEL);
        if let Some(rows) = &mut rows {
            begin_table(table, rows)?;
        }
        self.pieces(|piece| {
            let total = totals.entry(piece.run.stream.id).or_default();
            total.add(piece, last == Some(piece.number));
            last = Some(piece.number);
            self.write_log(piece, &mut log)?;
            if let Some(rows) = &mut rows {
                self.write_rows(table, piece, rows)?;
            }
            write_batch(piece, &mut compressor, &mut batches)
        })?;
        let mut members = vec![Member::measured(log, Content::Log)?];
        if let Some((rows, named)) = rows.zip(table.named()) {
            members.push(Member::measured(rows, Content::Table(table, named))?);
        }
        members.push(Member::measured(batches, Content::Batches)?);
        Ok((totals, members))
    }

    fn pieces(&self, each: impl FnMut(&Piece<'_>) -> Result<()>) -> Result<()> {
        let archive = &self.core.archive;
        self.selection
            .for_each_piece(archive, self.access, self.reading, each)
    }

    /// Writes a member, as it was measured.
    fn content(&self, member: &Member, tar: &mut Tar<'_>) -> Result<()> {
        let files = &member.files;
        let written = match &member.content {
            Content::Bytes(bytes) => {
                for file in files {
                    tar.begin(&file.name, file.content.0)?;
                    tar.content().write_all(bytes)?;
                    tar.end(file.content.0)?;
                }
                return Ok(());
            }
            Content::Log => {
                let mut log = Parts::write(LOG, files, tar);
                self.pieces(|piece| self.write_log(piece, &mut log))?;
                log.finish()
            }
            Content::Table(table, named) => {
                let mut rows = Parts::write(*named, files, tar);
                begin_table(*table, &mut rows)?;
                self.pieces(|piece| self.write_rows(*table, piece, &mut rows))?;
                rows.finish()
            }
            Content::Batches => {
                let mut batches = Parts::write(BATCHES, files, tar);
                let mut compressor = Compressor::new(AGENT_LEVEL);
                self.pieces(|piece| write_batch(piece, &mut compressor, &mut batches))?;
                batches.finish()
            }
        };
        written.map(drop)
    }

    fn write_log(&self, piece: &Piece<'_>, log: &mut Parts<'_, '_>) -> Result<()> {
        log.boundary()?;
        write_log(piece, self.is_whole_stream, log)
    }

    fn write_rows(&self, table: Table, piece: &Piece<'_>, out: &mut Parts<'_, '_>) -> Result<()> {
        out.boundary()?;
        for line in &piece.lines {
            let hit = line.clone().into_hit(piece.batch);
            let view = View::new(&hit, &self.names, &self.streams);
            match table {
                Table::Csv => writeln!(out, "{}", view.to_csv(false))?,
                Table::Json | Table::None => {
                    writeln!(out, "{}", shown::json(&view.to_json().to_string()))?;
                }
            }
        }
        Ok(())
    }

    /// The streams as the manifest has them.
    fn describe(&self, totals: &BTreeMap<StreamId, Total>) -> Result<Vec<Value>> {
        let signers = self.core.signers();
        let mut seen = BTreeSet::new();
        let streams = self.selection.runs.iter().map(|run| &run.stream);
        let streams = streams.filter(|stream| seen.insert(stream.id));
        let described = streams.map(|stream| {
            let signer = signers
                .get(&stream.agent)
                .context("the stream's agent is not known")?;
            let (key, before) = signer.keys.split_first().context("an agent has a key")?;
            let total = totals.get(&stream.id).cloned().unwrap_or_default();
            let mut described = json!({
                "agent": signer.name,
                "agent_id": stream.agent.to_string(),
                "agent_key": HEXLOWER.encode(key),
                "stream": &*stream.name,
                "stream_id": stream.id.to_string(),
                "kind": stream.kind.name(),
                "lines": total.lines,
                "entries": total.entries,
                "gaps": total.gaps,
                "bytes": total.bytes,
                "runs": total.runs,
                "in_no_interval": self.in_no_interval(stream.id, &total),
            });
            // Its state was lost once: what it signed before was with another key.
            if let Some(described) = described.as_object_mut().filter(|_| !before.is_empty()) {
                let before: Vec<String> = before.iter().map(|key| HEXLOWER.encode(key)).collect();
                described.insert("agent_keys_before".into(), before.into());
            }
            Ok(described)
        });
        described.collect()
    }
}

impl Total {
    fn add(&mut self, piece: &Piece<'_>, goes_on: bool) {
        let header = &piece.batch.header;
        if !goes_on {
            self.runs.push(json!({
                "epoch": header.epoch.to_string(),
                "first": header.first.0,
                "after": header.previous.to_string(),
            }));
        }
        if let Some(run) = self.runs.last_mut().and_then(Value::as_object_mut) {
            run.insert("next".into(), header.next().0.into());
            run.insert("head".into(), header.head().to_string().into());
        }
        // As whoever checks it counts them: what says that something is missing ends no line.
        let mut in_line = false;
        for (_, meta, bytes) in piece.entries() {
            if meta.flags.is_gap() {
                self.gaps += 1;
            } else {
                self.entries += 1;
                self.bytes += bytes.len() as u64;
                in_line = meta.flags.is_fragment();
                self.lines += u64::from(!in_line);
            }
        }
        self.lines += u64::from(in_line);
    }
}

impl Member {
    /// A file that is made in memory, and read as a whole by who checks the package.
    fn of(name: impl Into<String>, bytes: Vec<u8>) -> Result<Self> {
        let name = name.into();
        ensure!(
            bytes.len() as u64 <= MADE_LEN_MAX,
            "{name} would have more than {} MiB: too many streams or places at once; export a shorter time, or less",
            MADE_LEN_MAX >> 20
        );
        let mut measure = Measure::default();
        measure.write_all(&bytes)?;
        let file = File {
            name,
            content: measure.finish(),
            text: None,
        };
        Ok(Self {
            files: vec![file],
            content: Content::Bytes(bytes),
        })
    }

    fn measured(parts: Parts<'_, '_>, content: Content) -> Result<Self> {
        Ok(Self {
            files: parts.finish()?,
            content,
        })
    }
}

impl File {
    /// As the manifest has it.
    fn to_json(&self) -> Value {
        let (bytes, sha256) = &self.content;
        match &self.text {
            None => json!({ "bytes": bytes, "sha256": sha256 }),
            Some((text_bytes, text_sha256)) => json!({
                "bytes": bytes,
                "sha256": sha256,
                "text_bytes": text_bytes,
                "text_sha256": text_sha256,
            }),
        }
    }
}

/// The bytes of the entries; what a gap entry says is not part of the source's bytes. Of a whole stream exactly
/// what the source had; else every line ends.
fn write_log(piece: &Piece<'_>, is_whole_stream: bool, out: &mut dyn Write) -> Result<()> {
    for (_, meta, bytes) in piece.entries() {
        if meta.flags.is_gap() {
            continue;
        }
        out.write_all(bytes)?;
        if !is_whole_stream && !ends_line(meta, bytes) {
            out.write_all(b"\n")?;
        }
    }
    Ok(())
}

fn begin_table(table: Table, out: &mut dyn Write) -> Result<()> {
    if table == Table::Csv {
        writeln!(out, "{}{}", present::CSV_MARK, present::CSV_NAMES)?;
    }
    Ok(())
}

/// One batch of `batches.bin`: the header as signed; the body compressed anew, the same each time.
fn write_batch(
    piece: &Piece<'_>,
    compressor: &mut Compressor,
    out: &mut Parts<'_, '_>,
) -> Result<()> {
    out.boundary()?;
    let entries = &piece.batch.entries;
    let shown: Vec<_> = piece.entries().collect();
    let shown = if shown.is_empty() {
        Shown::Nothing
    } else if shown.len() == entries.len() {
        Shown::All(compressor.compress(entries.raw()))
    } else {
        let leaves = entries.iter().map(|(meta, bytes)| leaf_of(meta, bytes));
        let paths = AuditPaths::new(leaves.collect());
        let shown = shown.into_iter().map(|(at, meta, bytes)| {
            Ok(ShownEntry {
                index: u32::try_from(at)?,
                meta,
                bytes: bytes.to_vec(),
                path: paths.path(at).context("an entry of the batch")?,
            })
        });
        Shown::Some(shown.collect::<Result<_>>()?)
    };
    let excerpt = Excerpt {
        received_us: piece.batch.received_us,
        header: piece.batch.header.clone(),
        shown,
    };
    let encoded = excerpt.encoded();
    let len = u32::try_from(encoded.len()).context("a batch's length")?;
    out.write_all(&len.to_be_bytes())?;
    Ok(out.write_all(&encoded)?)
}

/// What precedes a manifest under the server's signature.
const SIGNED_AS: &str = "scrinium package v3\n";
/// What who checks a package reads as a whole.
const MADE_LEN_MAX: u64 = 128 << 20;
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
