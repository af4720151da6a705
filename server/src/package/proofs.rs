//! What proves a package: the places that were sealed, the way from there to the checkpoint, and certificates of what
//! was deleted; and which entries are behind all of that.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use data_encoding::BASE64;
use scrinium_protocol::identity::{StreamId, StreamKind};
use serde_json::{Value, json};

use super::{Member, PackageWriter, Total};
use crate::audit::DELETIONS;
use crate::catalogue::records::CertificateRecord;

impl PackageWriter<'_> {
    /// Batches of a stream that are behind the last place that was sealed, run by run.
    pub(super) fn in_no_interval(&self, stream: StreamId, total: &Total) -> Vec<Value> {
        let runs = self.selection.runs.iter();
        let runs = runs.filter(|run| run.stream.id == stream);
        let sealed = runs.flat_map(|run| &run.seals);
        let sealed: Vec<_> = sealed
            .map(|seal| (seal.reached.epoch.to_string(), seal.reached.next.0))
            .collect();
        let open = total.runs.iter().filter_map(|run| {
            let epoch = run.get("epoch")?.as_str()?;
            let (first, next) = (run.get("first")?.as_u64()?, run.get("next")?.as_u64()?);
            let of_run = sealed
                .iter()
                .filter(|(of, until)| of == epoch && (first..=next).contains(until));
            let first = of_run.map(|(_, until)| *until).max().unwrap_or(first);
            (first < next).then(|| json!({ "epoch": epoch, "first": first, "next": next }))
        });
        open.collect()
    }

    /// `evidence.json`, and the checkpoints and tokens it speaks of.
    pub(super) fn evidence(&self) -> Result<Vec<Member>> {
        let mut intervals: BTreeMap<u64, (Value, BTreeSet<String>)> = BTreeMap::new();
        let mut stamps = BTreeMap::new();
        let runs = self.selection.runs.iter();
        let seals = runs.flat_map(|run| run.seals.iter().map(|seal| (run.stream.id, seal)));
        for (stream, seal) in seals {
            let stream = stream.to_string();
            if let Some((_, streams)) = intervals.get_mut(&seal.number) {
                streams.insert(stream);
                continue;
            }
            let stamped = self.inclusions.stamped(seal.number).map(|(stamp, path)| {
                let files =
                    [".checkpoint", ".tsr"].map(|end| format!("stamped/{}{end}", stamp.day));
                stamps.insert(files.clone(), stamp);
                let [checkpoint, token] = files;
                json!({ "checkpoint": checkpoint, "token": token, "path": base64_all(&path) })
            });
            let interval = json!({
                "leaf": BASE64.encode(&seal.leaf),
                "path": base64_all(&self.inclusions.path(seal.number)?),
                "stamped": stamped,
            });
            intervals.insert(seal.number, (interval, BTreeSet::from([stream])));
        }
        let intervals = intervals.into_values().map(|(mut interval, streams)| {
            if let Some(fields) = interval.as_object_mut() {
                fields.insert("streams".into(), json!(streams));
            }
            interval
        });
        let evidence = json!({
            "checkpoint": self.inclusions.note,
            "intervals": intervals.collect::<Vec<_>>(),
            "deletions": self.deletions()?,
        });
        let evidence = serde_json::to_vec_pretty(&evidence)?;
        let mut members = vec![Member::of("evidence.json", evidence)?];
        for ([checkpoint, token], stamp) in stamps {
            members.push(Member::of(checkpoint, stamp.note.clone().into_bytes())?);
            members.push(Member::of(token, stamp.token.clone())?);
        }
        Ok(members)
    }

    /// The certificates of what was deleted of a whole stream, as they were signed.
    fn deletions(&self) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        let pruned = self.core.archive.pruned();
        let own: BTreeSet<String> = self
            .selection
            .runs
            .iter()
            .filter(|run| self.is_whole_stream && pruned.contains_key(&run.stream.id))
            .map(|run| run.stream.id.to_string())
            .collect();
        if own.is_empty() {
            return Ok(found);
        }
        let mut consider = |text: &str| {
            let speaks = serde_json::from_str(text).is_ok_and(|certificate: Value| {
                let streams = certificate.get("streams").and_then(Value::as_array);
                let mut ids = streams
                    .into_iter()
                    .flatten()
                    .filter_map(|stream| stream.get("id"));
                ids.any(|id| id.as_str().is_some_and(|id| own.contains(id)))
            });
            if speaks {
                found.insert(text.to_owned());
            }
        };
        let archive = &self.core.archive;
        if let Some(trail) = archive.find_stream(self.core.own_agent, StreamKind::Audit, DELETIONS)
        {
            for extent in archive.extents_of(trail.id)? {
                // What cannot be read now is missed by who checks the package.
                for batch in archive.read(&extent, self.access).unwrap_or_default() {
                    for (_, bytes) in batch.entries.iter() {
                        consider(&String::from_utf8_lossy(bytes));
                    }
                }
            }
        }
        for waiting in self.core.catalogue.load::<CertificateRecord>()? {
            consider(&waiting.text);
        }
        Ok(found)
    }
}

/// How many entries of the streams are in no interval yet.
pub(super) fn count_open(streams: &[Value]) -> u64 {
    let open = streams
        .iter()
        .filter_map(|stream| stream.get("in_no_interval")?.as_array());
    let number = |range: &Value, field: &str| range.get(field).and_then(Value::as_u64);
    let lens = open.flatten().filter_map(|range| {
        let (first, next) = (number(range, "first")?, number(range, "next")?);
        next.checked_sub(first)
    });
    lens.sum()
}

fn base64_all(hashes: &[[u8; 32]]) -> Vec<String> {
    hashes.iter().map(|hash| BASE64.encode(hash)).collect()
}
