//! What tells this machine from every other, for binding keys to it.
//!
//! The characteristics are public facts, so they never make a key alone: a key is derived from them
//! *and* a random install secret. Only what every user of the machine may read is used: a volume
//! made by root must open for the service's own user.

use std::collections::BTreeMap;

use scrinium_protocol::kdf::hmac_sha256;
use scrinium_protocol::secret::Secret;

use crate::key::derive;

/// One characteristic: its name and value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Characteristic {
    pub name: &'static str,
    pub value: Vec<u8>,
}

/// Reads the characteristics of this machine; those it does not have are left out.
#[must_use]
pub fn characteristics() -> Vec<Characteristic> {
    let mut found = Vec::new();
    for (name, read) in READERS {
        if let Some(value) = read().filter(|value| !value.is_empty()) {
            found.push(Characteristic { name, value });
        }
    }
    found
}

/// Derives a key from the characteristics called `names` and the install secret.
///
/// # Errors
/// Names the first characteristic this machine does not have.
pub fn bind<'a>(
    names: &'a [String],
    install: &Secret<32>,
) -> Result<Secret<32>, MissingCharacteristic<'a>> {
    let present = characteristics();
    let mut input = Vec::new();
    for name in names {
        let Some(found) = present.iter().find(|found| found.name == name) else {
            return Err(MissingCharacteristic(name));
        };
        let len = u32::try_from(found.value.len()).unwrap_or(u32::MAX);
        input.extend_from_slice(&len.to_be_bytes());
        input.extend_from_slice(&found.value);
    }
    Ok(derive(
        install,
        Some(&input),
        &[b"scrinium machine binding v1"],
    ))
}

/// A byte of a keyed hash of each of the characteristics called `names` that this machine has.
#[must_use]
pub fn hints(names: &[String], install: &Secret<32>) -> BTreeMap<String, u8> {
    let present = characteristics().into_iter();
    let named = present.filter(|found| names.iter().any(|name| name == found.name));
    named
        .map(|found| (found.name.to_owned(), hint(&found, install)))
        .collect()
}

/// A characteristic that a key is bound to is not there.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this machine has no {0}")]
pub struct MissingCharacteristic<'a>(pub &'a str);

/// The characteristics as keyed hashes, each with its name: says whether two are the same machine,
/// and nothing of what they are.
#[must_use]
pub fn fingerprint(salt: &[u8]) -> Vec<(String, [u8; 16])> {
    let seen = SEEN.iter().filter_map(|(name, read)| {
        let value = read().filter(|value| !value.is_empty())?;
        Some(Characteristic { name, value })
    });
    characteristics()
        .into_iter()
        .chain(seen)
        .map(|found| {
            let hash = hmac_sha256(
                salt,
                &[
                    b"scrinium fingerprint v1",
                    found.name.as_bytes(),
                    &found.value,
                ],
            );
            let [half @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = hash;
            (found.name.to_owned(), half)
        })
        .collect()
}

/// What the state of an agent is bound to, as far as this machine has it and this user may read it: enough that one
/// of them may be exchanged and the others still tell the machine.
#[must_use]
pub fn of_agents() -> Vec<Characteristic> {
    let mut found = Vec::new();
    for (name, read) in AGENT_READERS {
        if let Some(value) = read().filter(|value| !value.is_empty()) {
            found.push(Characteristic { name, value });
        }
    }
    found
}

/// Derives a key from exactly these characteristics and the install secret.
#[must_use]
pub fn bind_to<'a>(
    characteristics: impl Iterator<Item = &'a Characteristic>,
    install: &Secret<32>,
) -> Secret<32> {
    let mut input = Vec::new();
    for Characteristic { name, value } in characteristics {
        for part in [name.as_bytes(), value] {
            let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
            input.extend_from_slice(&len.to_be_bytes());
            input.extend_from_slice(part);
        }
    }
    derive(install, Some(&input), &[b"scrinium machine slot v1"])
}

/// A byte of a keyed hash of a characteristic: enough to say that it differs, too little to find its value by.
#[must_use]
pub fn hint(found: &Characteristic, install: &Secret<32>) -> u8 {
    let about = [b"scrinium hint v1", found.name.as_bytes(), &found.value];
    let [first, ..] = hmac_sha256(install.expose(), &about);
    first
}

type Read = fn() -> Option<Vec<u8>>;

#[cfg(target_os = "linux")]
const AGENT_READERS: [(&str, Read); 5] = [
    ("machine-id", || line("/etc/machine-id")),
    ("cpu-model", cpu_model),
    ("network-cards", network_cards),
    ("dmi-uuid", || line("/sys/class/dmi/id/product_uuid")),
    ("root-file-system", root_file_system),
];

#[cfg(not(target_os = "linux"))]
const AGENT_READERS: [(&str, Read); READERS.len()] = READERS;

#[cfg(target_os = "linux")]
const READERS: [(&str, Read); 4] = [
    ("machine-id", || line("/etc/machine-id")),
    ("cpu-model", cpu_model),
    ("dmi-system", || {
        let vendor = line("/sys/class/dmi/id/sys_vendor")?;
        let product = line("/sys/class/dmi/id/product_name")?;
        Some([vendor, product].join(&b'/'))
    }),
    ("dmi-board", || {
        let vendor = line("/sys/class/dmi/id/board_vendor")?;
        let board = line("/sys/class/dmi/id/board_name")?;
        Some([vendor, board].join(&b'/'))
    }),
];

/// Characteristics that tell machines apart and to which no key is bound: a network card may be
/// exchanged, and only root may read a serial number.
#[cfg(target_os = "linux")]
const SEEN: [(&str, Read); 4] = [
    ("dmi-uuid", || line("/sys/class/dmi/id/product_uuid")),
    ("dmi-serial", || line("/sys/class/dmi/id/board_serial")),
    ("network-cards", network_cards),
    ("root-file-system", root_file_system),
];

#[cfg(windows)]
const READERS: [(&str, Read); 4] = [
    ("machine-id", || {
        registry("SOFTWARE\\Microsoft\\Cryptography", "MachineGuid")
    }),
    ("cpu-model", || {
        let key = "HARDWARE\\DESCRIPTION\\System\\CentralProcessor\\0";
        registry(key, "ProcessorNameString")
    }),
    ("dmi-system", || {
        bios("SystemManufacturer", "SystemProductName")
    }),
    ("dmi-board", || {
        bios("BaseBoardManufacturer", "BaseBoardProduct")
    }),
];

#[cfg(windows)]
fn registry(key: &str, value: &str) -> Option<Vec<u8>> {
    let key = windows_registry::LOCAL_MACHINE.open(key).ok()?;
    Some(key.get_string(value).ok()?.into_bytes())
}

#[cfg(windows)]
fn bios(vendor: &str, name: &str) -> Option<Vec<u8>> {
    let key = "HARDWARE\\DESCRIPTION\\System\\BIOS";
    Some([registry(key, vendor)?, registry(key, name)?].join(&b'/'))
}

#[cfg(not(target_os = "linux"))]
const SEEN: [(&str, Read); 0] = [];

#[cfg(not(any(target_os = "linux", windows)))]
const READERS: [(&str, Read); 1] = [("os", || Some(std::env::consts::OS.as_bytes().to_vec()))];

#[cfg(target_os = "linux")]
fn line(path: &str) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    Some(bytes.trim_ascii().to_vec())
}

/// The addresses of all network cards, in order. What is no device (bridges, the pairs of containers, tunnels) comes and
/// goes with what runs on the machine, and tells nothing of it.
#[cfg(target_os = "linux")]
fn network_cards() -> Option<Vec<u8>> {
    let mut addresses = Vec::new();
    for entry in std::fs::read_dir("/sys/class/net").ok()?.flatten() {
        let card = entry.path();
        if std::fs::metadata(card.join("device")).is_ok() {
            let address = line(card.join("address").to_str()?);
            addresses.extend(address.filter(|address| address != b"00:00:00:00:00:00"));
        }
    }
    addresses.sort_unstable();
    Some(addresses.join(&b' '))
}

/// The identity of the root file system, where it has one of its own: that of an image's layers (overlay) or of
/// memory is nobody's.
#[cfg(target_os = "linux")]
fn root_file_system() -> Option<Vec<u8>> {
    use std::os::unix::fs::MetadataExt as _;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let (kind, source) = mounts.lines().rev().find_map(root_mount)?;
    if FILE_SYSTEMS_WITH_ID.contains(&kind) {
        let id = rustix::fs::statvfs("/").ok()?.f_fsid;
        return (id != 0).then(|| format!("{kind} {id:016x}").into_bytes());
    }
    if kind != "xfs" {
        return None;
    }
    // The kernel says the number of its device, which may be another after the next start; udev knows its identity.
    let device = std::fs::metadata(source).ok()?.rdev();
    let of_device = |entry: &std::fs::DirEntry| {
        let at = std::fs::metadata(entry.path());
        at.is_ok_and(|at| at.rdev() == device)
    };
    let mut known = std::fs::read_dir("/dev/disk/by-uuid").ok()?.flatten();
    let name = known.find(of_device)?.file_name().into_string().ok()?;
    Some(format!("{kind} {name}").into_bytes())
}

/// Kind and source of the mount at `/`, of a line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[cfg(target_os = "linux")]
fn root_mount(line: &str) -> Option<(&str, &str)> {
    let (at, of) = line.split_once(" - ")?;
    let mut of = of.split(' ');
    (at.split(' ').nth(4)? == "/").then_some((of.next()?, of.next()?))
}

/// File systems whose identity the kernel derives from what is written on them, for every user to see.
#[cfg(target_os = "linux")]
const FILE_SYSTEMS_WITH_ID: [&str; 6] = ["bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs"];

#[cfg(target_os = "linux")]
fn cpu_model() -> Option<Vec<u8>> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    let (_, model) = line.split_once(':')?;
    Some(model.trim().as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_the_secret_and_on_every_characteristic() {
        let names: Vec<String> = characteristics()
            .iter()
            .map(|c| c.name.to_owned())
            .collect();
        let secret = Secret::new([1; 32]);
        let key = bind(&names, &secret).unwrap();
        assert_eq!(key, bind(&names, &secret).unwrap());
        assert_ne!(key, bind(&names, &Secret::new([2; 32])).unwrap());
        if let Some((_, fewer)) = names.split_first() {
            assert_ne!(key, bind(fewer, &secret).unwrap());
        }
        let missing = ["no-such".to_owned()];
        assert_eq!(
            bind(&missing, &secret),
            Err(MissingCharacteristic("no-such"))
        );
    }

    #[test]
    fn a_key_of_a_slot_depends_on_names_and_values_of_what_stays() {
        let of = |name, value: &str| Characteristic {
            name,
            value: value.as_bytes().to_vec(),
        };
        let secret = Secret::new([1; 32]);
        let key = |all: &[Characteristic]| bind_to(all.iter(), &secret);
        let both = [of("a", "bc"), of("d", "e")];
        assert_eq!(key(&both), key(&both.clone()));
        for other in [
            vec![of("a", "bc")],
            vec![of("a", "b"), of("d", "e")],
            vec![of("ab", "c"), of("d", "e")],
            vec![of("a", "bcde")],
        ] {
            assert_ne!(key(&both), key(&other));
        }
        let elsewhere = bind_to(both.iter(), &Secret::new([2; 32]));
        assert_ne!(key(&both), elsewhere);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_root_is_found_among_mounts() {
        let line = "27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard";
        assert_eq!(root_mount(line), Some(("ext4", "/dev/vda")));
        let other = "42 27 7:0 / /home rw - ext4 /dev/loop0 rw";
        assert_eq!(root_mount(other), None);
        for odd in ["", " - ", "a b c d / -", "1 2 3 4 / - xfs"] {
            assert_eq!(root_mount(odd), None);
        }
    }
}
