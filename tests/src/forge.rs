//! Packages altered by somebody who knows tar well: what one program reads in them another does not.

use crate::package::{Parts, gzip, header, padded, sum};
use crate::random::Random;
use ed25519_dalek::SigningKey;

/// An altered package, and what was done to it.
#[derive(Debug)]
pub struct Forged {
    pub how: &'static str,
    pub bytes: Vec<u8>,
}

/// Alters a package in one of very many ways. Nothing in it leads out of the directory it is extracted into.
#[must_use]
pub fn forge(base: &Parts, random: &mut Random) -> Forged {
    // Whoever forges signs as well as anybody who has no key can: with one made up.
    let mut parts = base.clone();
    if random.below(3) == 0 {
        signed_anew(&mut parts);
    }
    let all = WAYS.len() + WHOLE_WAYS.len();
    let way = pick(random, all);
    let (how, alter) = *WAYS
        .get(way)
        .unwrap_or_else(|| &WHOLE_WAYS[way - WAYS.len()]);
    let bytes = alter(&mut parts, random);
    Forged { how, bytes }
}

/// Makes another package of one, which is whole as long as nobody asks whose keys those are.
#[must_use]
pub fn forge_whole(base: &Parts, random: &mut Random) -> Forged {
    let (how, alter) = *random_of(random, &WHOLE_WAYS);
    let bytes = alter(&mut base.clone(), random);
    Forged { how, bytes }
}

type Way = fn(&mut Parts, &mut Random) -> Vec<u8>;

const WAYS: [(&str, Way); 25] = [
    ("a nameless member before a second log", |parts, random| {
        let kind = kind(random);
        let name: &[u8] = [&b""[..], b" ", b"\0log.txt.gz", b"  "][pick(random, 4)];
        let nameless = typed(name, b"", kind);
        let evil = evil(parts, random);
        insert(parts, random, &[nameless, evil].concat())
    }),
    ("a PAX name for what follows", |parts, random| {
        let name = log_name(parts).to_owned();
        let pax = pax(&[("path", &name)]);
        let what = typed(b"pax", &pax, *random_of(random, b"xgX"));
        let other = typed(b"whatever", EVIL, b'0');
        insert(parts, random, &[what, other].concat())
    }),
    ("a PAX size for what follows", |parts, random| {
        let pax = pax(&[("size", "3")]);
        let what = typed(b"pax", &pax, *random_of(random, b"xg"));
        insert(parts, random, &what)
    }),
    ("a nameless PAX header", |parts, random| {
        let name = log_name(parts).to_owned();
        let what = typed(b"", &pax(&[("path", &name)]), b'x');
        let other = typed(b"whatever", EVIL, b'0');
        insert(parts, random, &[what, other].concat())
    }),
    ("a GNU long name", |parts, random| {
        let name = [log_name(parts).as_bytes(), b"\0"].concat();
        let long = [&b"././@LongLink"[..], b""][pick(random, 2)];
        let what = typed(long, &name, b'L');
        let other = typed(b"whatever", EVIL, b'0');
        insert(parts, random, &[what, other].concat())
    }),
    ("a second member of the same name", |parts, random| {
        let evil = evil(parts, random);
        insert(parts, random, &evil)
    }),
    ("a member more", |parts, random| {
        let name: &[u8] = [
            &b"evil.txt"[..],
            b"./log.txt",
            b"stamped/evil",
            b"LOG.TXT.GZ",
        ][pick(random, 4)];
        let more = typed(name, EVIL, kind(random));
        insert(parts, random, &more)
    }),
    ("a log behind the end", |parts, random| {
        [parts.packed(), evil(parts, random), vec![0; 1024]].concat()
    }),
    ("a log behind one block of zeros", |parts, random| {
        let mut bytes = parts.packed();
        bytes.truncate(bytes.len() - 512);
        let evil = evil(parts, random);
        [bytes, evil, vec![0; 1024]].concat()
    }),
    ("two packages", |parts, random| {
        let mut bytes = parts.packed();
        let first = bytes.clone();
        bytes.truncate(bytes.len() - 512 * pick(random, 3));
        [bytes, first].concat()
    }),
    ("another type", |parts, random| {
        let kind = *random_of(random, b"\x001234567xgLKSVAMND9 ");
        of_header(parts, random, |header, _| {
            header[156] = kind;
            header[157..169].copy_from_slice(b"custody.html");
        })
    }),
    ("a prefix", |parts, random| {
        of_header(parts, random, |header, random| {
            let prefix: &[u8] = [&b"hidden"[..], b".", b" ", b"stamped"][pick(random, 4)];
            header[345..345 + prefix.len()].copy_from_slice(prefix);
        })
    }),
    ("another name", |parts, random| {
        of_header(parts, random, |header, random| {
            let name = header[..100].split(|&byte| byte == 0).next().unwrap();
            let name = name.to_vec();
            let other = match random.below(8) {
                0 => [&name[..], b" "].concat(),
                1 => [b" ", &name[..]].concat(),
                2 => [b"./", &name[..]].concat(),
                3 => [&name[..], b"/"].concat(),
                4 => [&name[..], b"\0x"].concat(),
                5 => name.to_ascii_uppercase(),
                6 => [b"stamped/../", &name[..]].concat(),
                _ => b"evil".to_vec(),
            };
            header[..100].fill(0);
            header[..other.len()].copy_from_slice(&other);
        })
    }),
    ("a length written in another way", |parts, random| {
        of_header(parts, random, |header, random| {
            let digits = String::from_utf8(header[124..135].to_vec()).unwrap();
            let len = u64::from_str_radix(&digits, 8).unwrap();
            let field = match random.below(5) {
                0 => [&[0x80, 0, 0, 0][..], &len.to_be_bytes()].concat(),
                1 => format!("{len:>11o} ").into_bytes(),
                2 => format!("{len:o}\0").into_bytes(),
                3 => format!("{len:010o} \0").into_bytes(),
                _ => format!("{len:012o}").into_bytes(),
            };
            header[124..136].fill(0);
            header[124..124 + field.len()].copy_from_slice(&field);
        })
    }),
    ("another length", |parts, random| {
        of_header(parts, random, |header, random| {
            let len = [0, 1, 511, 512, 513, 1024, 1 << 20][pick(random, 7)];
            header[124..136].copy_from_slice(format!("{len:011o}\0").as_bytes());
        })
    }),
    ("another magic", |parts, random| {
        of_header(parts, random, |header, random| {
            let magic: &[u8; 8] = [
                b"ustar  \0",
                b"ustar\x0001",
                b"\0\0\0\0\0\0\0\0",
                b"ustar 00",
            ][pick(random, 4)];
            header[257..265].copy_from_slice(magic);
        })
    }),
    ("another owner, mode or time", |parts, random| {
        of_header(parts, random, |header, random| {
            let at = [100, 104, 106, 108, 116, 140, 146, 265, 297, 329, 500][pick(random, 11)];
            header[at] = *random_of(random, b"0137x\0 ");
        })
    }),
    ("a byte of a header", |parts, random| {
        of_header(parts, random, |header, random| {
            header[pick(random, 512)] = u8::try_from(random.below(256)).unwrap();
        })
    }),
    ("a check sum written in another way", |parts, random| {
        let mut bytes = parts.packed();
        let at = parts.places()[pick(random, parts.members.len())];
        let digits = String::from_utf8(bytes[at + 148..at + 154].to_vec()).unwrap();
        let sum = u32::from_str_radix(&digits, 8).unwrap();
        let field = match random.below(3) {
            0 => format!("{sum:07o}\0"),
            1 => format!("{sum:>6o}\0 "),
            _ => format!("{sum:06o} \0"),
        };
        bytes[at + 148..at + 156].copy_from_slice(field.as_bytes());
        bytes
    }),
    ("something in the padding", |parts, random| {
        let mut bytes = parts.packed();
        let places = parts.places();
        let which = pick(random, places.len());
        let end = places[which] + 512 + parts.members[which].1.len();
        if end % 512 != 0 {
            bytes[end] = 1;
        } else {
            bytes.truncate(end);
        }
        bytes
    }),
    ("a byte anywhere", |parts, random| {
        let mut bytes = parts.packed();
        let at = pick(random, bytes.len());
        bytes[at] ^= 1 << random.below(8);
        bytes
    }),
    ("cut", |parts, random| {
        let mut bytes = parts.packed();
        bytes.truncate(pick(random, bytes.len()));
        bytes
    }),
    ("another order", |parts, random| {
        let (a, b) = (
            pick(random, parts.members.len()),
            pick(random, parts.members.len()),
        );
        parts.members.swap(a, b);
        parts.packed()
    }),
    (
        "another log, told by the manifest of somebody",
        |parts, random| {
            let log = match random.below(4) {
                0 => [gzip(b"a line\n"), gzip(EVIL)].concat(),
                1 => [gzip(b"a line\n"), b"trailing".to_vec()].concat(),
                2 => gzip(EVIL),
                _ => EVIL.to_vec(),
            };
            let name = log_name(parts).to_owned();
            parts.set(&name, log);
            signed_anew(parts)
        },
    ),
    (
        "members more, told by the manifest of somebody",
        |parts, random| {
            let name = [
                "log.txt",
                "log.2.txt.gz",
                "entries.jsonl.gz",
                "stamped/x",
                "a b",
            ][pick(random, 5)];
            let at = pick(random, parts.members.len() + 1).max(2);
            let content = if name.ends_with(".gz") {
                gzip(EVIL)
            } else {
                EVIL.to_vec()
            };
            parts.members.insert(at, (name.into(), content));
            signed_anew(parts)
        },
    ),
];

/// What may be a package in itself, of somebody whom nobody trusts.
const WHOLE_WAYS: [(&str, Way); 2] = [
    (
        "another sheet and another table, signed by somebody",
        |parts, random| {
            let sheet = format!("<p>{}</p>", "x".repeat(pick(random, 2000)));
            parts.set("custody.html", sheet.into_bytes());
            let table = parts
                .members
                .iter()
                .position(|(name, _)| name.starts_with("entries"));
            match (table, random.below(3)) {
                (Some(at), 0) => drop(parts.members.remove(at)),
                (Some(at), 1) if parts.members[at].0.ends_with(".gz") => {
                    parts.members[at].1 = gzip("row\n".repeat(pick(random, 500)).as_bytes());
                }
                _ => {}
            }
            signed_anew(parts)
        },
    ),
    ("the log in parts, signed by somebody", |parts, random| {
        if parts.members.iter().any(|(name, _)| name == "log.txt.gz") {
            let text = parts.text("log.txt.gz");
            let (a, b) = text.split_at(pick(random, text.len() + 1));
            parts.set("log.txt.gz", gzip(a));
            parts.members.insert(4, ("log.2.txt.gz".into(), gzip(b)));
        }
        parts.delay(random.below(2));
        signed_anew(parts)
    }),
];

/// Has the manifest tell of the members as they are, under a signature of a key that was made up.
fn signed_anew(parts: &mut Parts) -> Vec<u8> {
    parts.disown(|_| {}, &SigningKey::from_bytes(&[7; 32]));
    parts.packed()
}

/// Changes a header, which has a right check sum afterwards.
fn of_header(
    parts: &Parts,
    random: &mut Random,
    change: impl FnOnce(&mut [u8], &mut Random),
) -> Vec<u8> {
    let mut bytes = parts.packed();
    let at = parts.places()[pick(random, parts.members.len())];
    let header = &mut bytes[at..at + 512];
    change(header, random);
    sum(header);
    bytes
}

/// Puts something between two members, or behind the last.
fn insert(parts: &Parts, random: &mut Random, what: &[u8]) -> Vec<u8> {
    let mut bytes = parts.packed();
    let mut places = parts.places();
    places.push(bytes.len() - 1024);
    let at = places[pick(random, places.len())];
    bytes.splice(at..at, what.iter().copied());
    bytes
}

/// A member of the log's name that says something else.
fn evil(parts: &Parts, random: &mut Random) -> Vec<u8> {
    let (name, _) = &parts.members[pick(random, parts.members.len())];
    let name = [log_name(parts), name][pick(random, 2)];
    typed(name.as_bytes(), EVIL, b'0')
}

fn typed(name: &[u8], content: &[u8], kind: u8) -> Vec<u8> {
    let mut header = header(name, content.len() as u64, 1_800_000_000);
    header[156] = kind;
    sum(&mut header);
    [header, padded(content)].concat()
}

/// Records of PAX: length, name and value.
fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut all = Vec::new();
    for (name, value) in records {
        let rest = format!(" {name}={value}\n");
        let mut len = rest.len();
        while len != rest.len() + len.to_string().len() {
            len = rest.len() + len.to_string().len();
        }
        all.extend(format!("{len}{rest}").into_bytes());
    }
    all
}

fn log_name(parts: &Parts) -> &str {
    let mut names = parts.members.iter().map(|(name, _)| name);
    names.find(|name| name.starts_with("log.")).unwrap()
}

fn kind(random: &mut Random) -> u8 {
    *random_of(random, b"00125xgLK7S")
}

fn random_of<'a, T>(random: &mut Random, all: &'a [T]) -> &'a T {
    &all[pick(random, all.len())]
}

fn pick(random: &mut Random, count: usize) -> usize {
    usize::try_from(random.below(count as u64)).unwrap()
}

const EVIL: &[u8] = b"FORGED LOG: nothing happened here\n";
