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
        .map(|found| {
            let about = [b"scrinium hint v1", found.name.as_bytes(), &found.value];
            let [first, ..] = hmac_sha256(install.expose(), &about);
            (found.name.to_owned(), first)
        })
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

type Read = fn() -> Option<Vec<u8>>;

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
const SEEN: [(&str, Read); 3] = [
    ("dmi-uuid", || line("/sys/class/dmi/id/product_uuid")),
    ("dmi-serial", || line("/sys/class/dmi/id/board_serial")),
    ("network-cards", network_cards),
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

/// The addresses of all network cards but the loopback, in order.
#[cfg(target_os = "linux")]
fn network_cards() -> Option<Vec<u8>> {
    let mut addresses = Vec::new();
    for entry in std::fs::read_dir("/sys/class/net").ok()?.flatten() {
        let address = line(entry.path().join("address").to_str()?);
        addresses.extend(address.filter(|address| address != b"00:00:00:00:00:00"));
    }
    addresses.sort_unstable();
    Some(addresses.join(&b' '))
}

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
}
