//! Export packages, as whoever gets one handles them, and as whoever forges one does.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;

use data_encoding::HEXLOWER;
use ed25519_dalek::{Signer as _, SigningKey};
use flate2::{Compression, GzBuilder};
use scrinium_protocol::batch::{BatchBuilder, StreamPosition};
use scrinium_protocol::codec::Codec as _;
use scrinium_protocol::compress::{AGENT_LEVEL, Compressor};
use scrinium_protocol::entry::{EntryFlags, EntryMeta};
use scrinium_protocol::excerpt::{Excerpt, Shown};
use scrinium_protocol::identity::{AgentId, Epoch, StreamId, StreamKind};
use scrinium_protocol::kdf::sha256;
use scrinium_verify::package::Verdict;
use scrinium_verify::trust::Trust;
use serde_json::{Value, json};

use crate::lab::text;
use crate::program;

/// The exit code of `scrinium-verify` on a package, and all it says.
#[must_use]
pub fn verify(package: &Path, more: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(program("scrinium-verify"));
    let output = command.arg(package).args(more).output().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    (output.status.code(), said)
}

/// The verdict on a package, without a process for it.
#[must_use]
pub fn verdict(package: &Path) -> Verdict {
    let file = std::fs::File::open(package).unwrap();
    let checked = scrinium_verify::package::check(&file, &Trust::default());
    checked.unwrap().verdict
}

/// Unpacks it with stock tar into a directory, which is made anew, and its texts with the way any gzip program has.
pub fn unpack(package: &Path, to: &Path) {
    let _absent = std::fs::remove_dir_all(to);
    std::fs::create_dir(to).unwrap();
    let mut tar = Command::new("tar");
    let done = tar.arg("xf").arg(package).arg("-C").arg(to).status();
    assert!(done.unwrap().success());
    for entry in std::fs::read_dir(to).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "gz") {
            let done = Command::new("gzip").arg("-dk").arg(&path).status();
            assert!(done.unwrap().success());
        }
    }
}

/// A package taken apart: what its members hold, in their order.
#[derive(Clone, Debug)]
pub struct Parts {
    pub members: Vec<(String, Vec<u8>)>,
    /// When the members were written, which nothing but format 2 has differ.
    times: BTreeMap<String, u64>,
}

impl Parts {
    /// Takes apart a package that a server wrote.
    #[must_use]
    pub fn of(package: &[u8]) -> Self {
        let mut parts = Self {
            members: Vec::new(),
            times: BTreeMap::new(),
        };
        let mut at = 0;
        let number = |at: usize| {
            let digits = str::from_utf8(&package[at..at + 11]).unwrap();
            u64::from_str_radix(digits, 8).unwrap()
        };
        while package[at] != 0 {
            let name = package[at..at + 100].split(|&byte| byte == 0).next();
            let len = usize::try_from(number(at + 124)).unwrap();
            let content = package[at + 512..at + 512 + len].to_vec();
            let name = text(name.unwrap());
            parts.times.insert(name.clone(), number(at + 136));
            parts.members.push((name, content));
            at += 512 + len.next_multiple_of(512);
        }
        parts
    }

    /// Where each member's header is in the package.
    #[must_use]
    pub fn places(&self) -> Vec<usize> {
        let mut at = 0;
        let places = self.members.iter().map(|(_, content)| {
            let place = at;
            at += 512 + content.len().next_multiple_of(512);
            place
        });
        places.collect()
    }

    #[must_use]
    pub fn get(&self, name: &str) -> &[u8] {
        let found = self.members.iter().find(|(own, _)| own == name);
        &found.unwrap_or_else(|| panic!("no {name}")).1
    }

    /// Has all members be written so much later.
    pub fn delay(&mut self, seconds: u64) {
        self.times
            .values_mut()
            .for_each(|time_s| *time_s += seconds);
    }

    /// The text in a compressed member.
    #[must_use]
    pub fn text(&self, name: &str) -> Vec<u8> {
        let mut text = Vec::new();
        let mut unpacked = flate2::read::GzDecoder::new(self.get(name));
        // Of a broken one, what there is.
        let _all_or_some = unpacked.read_to_end(&mut text);
        text
    }

    pub fn set(&mut self, name: &str, content: Vec<u8>) {
        let found = self.members.iter_mut().find(|(own, _)| own == name);
        found.unwrap().1 = content;
    }

    #[must_use]
    pub fn manifest(&self) -> Value {
        serde_json::from_slice(self.get("manifest.json")).unwrap()
    }

    /// Makes the manifest tell of the members as they are; `change` may say more.
    pub fn describe(&mut self, change: impl FnOnce(&mut Value)) {
        let mut manifest = self.manifest();
        let described = self.members.iter().filter(|(name, _)| !is_own(name));
        let described: BTreeMap<&str, Value> = described
            .map(|(name, content)| {
                let mut what = json!({ "bytes": content.len(), "sha256": hex(content) });
                if name.ends_with(".gz") {
                    let text = self.text(name);
                    what["text_bytes"] = json!(text.len());
                    what["text_sha256"] = json!(hex(&text));
                }
                (&**name, what)
            })
            .collect();
        manifest["members"] = json!(described);
        change(&mut manifest);
        self.set("manifest.json", manifest.to_string().into_bytes());
    }

    /// Signs the manifest as the server of `key` would.
    pub fn sign(&mut self, key: &SigningKey) {
        let public = HEXLOWER.encode(&key.verifying_key().to_bytes());
        self.describe(|manifest| manifest["server_key"] = json!(public));
        let version = match self.manifest()["format"].as_str() {
            Some("scrinium-package-2") => "v2",
            _ => "v3",
        };
        let signed_as = format!("scrinium package {version}\n");
        let signed = [signed_as.as_bytes(), self.get("manifest.json")].concat();
        let signature = HEXLOWER.encode(&key.sign(&signed).to_bytes());
        self.set("manifest.sig", signature.into_bytes());
    }

    /// Takes away what only the server could have signed, and signs the rest as the server of `key` would.
    pub fn disown(&mut self, change: impl FnOnce(&mut Value), key: &SigningKey) {
        let nothing = json!({ "checkpoint": null, "intervals": [], "deletions": [] });
        self.set("evidence.json", nothing.to_string().into_bytes());
        self.members
            .retain(|(name, _)| !name.starts_with("stamped/"));
        self.describe(|manifest| {
            for stream in manifest["streams"].as_array_mut().unwrap() {
                // Nothing of it is in an interval.
                stream["in_no_interval"] = stream["runs"].clone();
            }
            change(manifest);
        });
        self.sign(key);
    }

    /// The package.
    #[must_use]
    pub fn packed(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, content) in &self.members {
            let time_s = self.times.get(name).or_else(|| self.times.values().next());
            let time_s = time_s.copied().unwrap_or(0);
            out.extend(header(name.as_bytes(), content.len() as u64, time_s));
            out.extend(padded(content));
        }
        out.extend([0; 1024]);
        out
    }
}

/// Whether the manifest cannot name it.
fn is_own(name: &str) -> bool {
    name.starts_with("manifest.")
}

/// A header of tar as the server writes it.
#[must_use]
pub fn header(name: &[u8], len: u64, time_s: u64) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name);
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{len:011o}\0").as_bytes());
    put(136, format!("{time_s:011o}\0").as_bytes());
    put(156, b"0");
    put(257, b"ustar\x0000");
    sum(&mut header);
    header
}

/// Puts the right check sum into a header.
pub fn sum(header: &mut [u8]) {
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header[..512].iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// With zeros up to a multiple of 512.
#[must_use]
pub fn padded(content: &[u8]) -> Vec<u8> {
    let mut padded = content.to_vec();
    padded.resize(content.len().next_multiple_of(512), 0);
    padded
}

/// A text as the server compresses it.
#[must_use]
pub fn gzip(text: &[u8]) -> Vec<u8> {
    let builder = GzBuilder::new().operating_system(0xff);
    let mut packer = builder.write(Vec::new(), Compression::fast());
    packer.write_all(text).unwrap();
    packer.finish().unwrap()
}

/// SHA-256 in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(&sha256(&[bytes]))
}

/// A stream that nobody's server received: one batch, signed by `key`.
#[derive(Debug)]
pub struct Invented {
    /// What a manifest says of it.
    pub part: Value,
    pub batches: Vec<u8>,
    pub log: Vec<u8>,
}

impl Invented {
    #[must_use]
    pub fn new(agent: &str, stream: &str, lines: &[&str], key: &SigningKey) -> Self {
        let own = AgentId(*sha256(&[agent.as_bytes()]).first_chunk().unwrap());
        let id = StreamId::derive(own, StreamKind::File, stream);
        let start = StreamPosition::start(own, id, Epoch([9; 16]));
        let mut builder = BatchBuilder::new();
        for line in lines {
            let meta = EntryMeta {
                time_us: 1_800_000_000_000_000,
                flags: EntryFlags::NONE,
            };
            assert!(builder.push(line.as_bytes(), meta));
        }
        let mut compressor = Compressor::new(AGENT_LEVEL);
        let (batch, after) = builder.seal(id, &start, Vec::new(), key, &mut compressor);
        let excerpt = Excerpt {
            received_us: 1_800_000_000_000_000,
            header: batch.header,
            shown: Shown::All(batch.body),
        };
        let encoded = excerpt.encoded();
        let len = u32::try_from(encoded.len()).unwrap().to_be_bytes();
        let (first, next) = (start.next.0, after.next.0);
        let log = lines.concat().into_bytes();
        let part = json!({
            "agent": agent,
            "agent_id": own.to_string(),
            "agent_key": HEXLOWER.encode(&key.verifying_key().to_bytes()),
            "stream": stream,
            "stream_id": id.to_string(),
            "kind": "file",
            "lines": lines.len(),
            "entries": lines.len(),
            "gaps": 0,
            "bytes": log.len(),
            "runs": [{
                "epoch": start.epoch.to_string(), "first": first, "next": next,
                "after": start.head.to_string(), "head": after.head.to_string(),
            }],
            "in_no_interval": [{ "epoch": start.epoch.to_string(), "first": first, "next": next }],
        });
        Self {
            part,
            batches: [&len[..], &encoded].concat(),
            log,
        }
    }
}

impl Parts {
    /// Shows the invented streams behind those that are there, or instead of them, and signs everything as the server
    /// of `key` would.
    pub fn add(&mut self, invented: &[Invented], instead: bool, key: &SigningKey) {
        let (mut log, mut batches) = (self.text("log.txt.gz"), self.get("batches.bin").to_vec());
        if instead {
            log.clear();
            batches.clear();
        }
        for stream in invented {
            log.extend(&stream.log);
            batches.extend(&stream.batches);
        }
        self.set("log.txt.gz", gzip(&log));
        self.set("batches.bin", batches);
        let add = |manifest: &mut Value| {
            manifest["is_whole_stream"] = json!(false);
            let streams = manifest["streams"].as_array_mut().unwrap();
            if instead {
                streams.clear();
            }
            streams.extend(invented.iter().map(|stream| stream.part.clone()));
            let streams = streams.clone();
            for count in ["lines", "entries", "gaps", "bytes"] {
                let counts = streams.iter().map(|stream| stream[count].as_u64().unwrap());
                manifest[count] = json!(counts.sum::<u64>());
            }
        };
        self.disown(add, key);
    }
}
