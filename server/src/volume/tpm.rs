//! A secret that only one TPM 2.0 gives back: what a copied disk lacks, whoever knows the machine.
//!
//! ```text
//! CreatePrimary(owner, storage template) ─▶ parent ─▶ Create(secret) ─▶ public and private part, kept in the slot
//! CreatePrimary again: the same parent   ─▶ Load(both) ─▶ Unseal ─▶ the secret
//! ```
//!
//! Speaks TPM 2.0 Library, Part 3 (Commands) to the kernel's resource manager, or to a socket of a software TPM.
//! The secret is bound to the chip, not to what was booted: an update of the firmware does not lock anybody out.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use data_encoding::BASE64;
use scrinium_protocol::secret::Secret;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A secret as a TPM sealed it; nothing without that chip.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SealedSecret {
    pub(super) device: PathBuf,
    /// `TPM2B_PUBLIC` and `TPM2B_PRIVATE`, base 64.
    public: String,
    private: String,
}

/// Where Linux has a TPM for more than one program at a time.
pub(crate) const DEVICE: &str = "/dev/tpmrm0";

/// Seals a secret to the TPM at `device`.
pub(super) fn seal(device: &Path, secret: &Secret<32>) -> Result<SealedSecret> {
    let mut tpm = Tpm::open(device)?;
    let sealed = tpm.seal(secret);
    let (public, private) = sealed.with_context(|| format!("the TPM at {}", device.display()))?;
    Ok(SealedSecret {
        device: device.to_owned(),
        public: BASE64.encode(&public),
        private: BASE64.encode(&private),
    })
}

/// Has the TPM give it back.
pub(super) fn unseal(sealed: &SealedSecret) -> Result<Secret<32>> {
    let bytes = |text: &str| BASE64.decode(text.as_bytes());
    let (public, private) = (bytes(&sealed.public)?, bytes(&sealed.private)?);
    let mut tpm = Tpm::open(&sealed.device)?;
    let secret = tpm.unseal(&public, &private);
    secret.with_context(|| format!("the TPM at {}", sealed.device.display()))
}

/// A connection to a TPM.
enum Tpm {
    Device(File),
    Socket(UnixStream),
}

/// An object in the TPM's memory.
struct Handle(u32);

impl Tpm {
    fn open(path: &Path) -> Result<Self> {
        let about = || format!("opening the TPM at {}", path.display());
        let kind = std::fs::metadata(path).with_context(about)?.file_type();
        if kind.is_socket() {
            let socket = UnixStream::connect(path).with_context(about)?;
            socket.set_read_timeout(Some(ANSWER_MAX))?;
            socket.set_write_timeout(Some(ANSWER_MAX))?;
            return Ok(Self::Socket(socket));
        }
        let mut options = OpenOptions::new();
        let device = options.read(true).write(true).open(path);
        Ok(Self::Device(device.with_context(about)?))
    }

    /// Public and private part of an object that holds the secret.
    fn seal(&mut self, secret: &Secret<32>) -> Result<(Vec<u8>, Vec<u8>)> {
        self.with_parent(|tpm, parent| {
            // Part 3, 12.1, TPM2_Create.
            let mut sensitive = Zeroizing::new(Vec::new());
            put16(&mut sensitive, &[]); // no password
            put16(&mut sensitive, secret.expose());
            let mut parameters = Zeroizing::new(Vec::new());
            put16(&mut parameters, &sensitive);
            put16(&mut parameters, &sealed_template());
            parameters.extend_from_slice(&[0, 0, 0, 0, 0, 0]); // no outside info, no PCRs
            let answer = tpm.command(CREATE, &[parent], &parameters)?;
            let mut answer = Fields(&answer);
            let private = answer.sized()?.to_vec();
            Ok((answer.sized()?.to_vec(), private))
        })
    }

    fn unseal(&mut self, public: &[u8], private: &[u8]) -> Result<Secret<32>> {
        self.with_parent(|tpm, parent| {
            // Part 3, 12.2, TPM2_Load.
            let mut parameters = Vec::new();
            put16(&mut parameters, private);
            put16(&mut parameters, public);
            let loaded = tpm.command(LOAD, &[parent], &parameters);
            let loaded = loaded.context("it is not the one that sealed the key, or was cleared")?;
            let (object, _) = loaded.split_first_chunk::<4>().context(CUT)?;
            let object = Handle(u32::from_be_bytes(*object));
            // Part 3, 12.7, TPM2_Unseal.
            let answer = tpm.command(UNSEAL, &[&object], &[]);
            tpm.flush(&object)?;
            let answer = Zeroizing::new(answer?);
            let secret = <[u8; 32]>::try_from(Fields(&answer).sized()?);
            Ok(Secret::new(secret.context("what it holds is no key")?))
        })
    }

    /// Calls `act` with the storage key of the owner, which is the same each time it is made.
    fn with_parent<T>(&mut self, act: impl FnOnce(&mut Self, &Handle) -> Result<T>) -> Result<T> {
        // Part 3, 24.1, TPM2_CreatePrimary.
        let mut parameters = Vec::new();
        put16(&mut parameters, &[0, 0, 0, 0]); // no password, no data
        put16(&mut parameters, &storage_template());
        parameters.extend_from_slice(&[0, 0, 0, 0, 0, 0]); // no outside info, no PCRs
        let answer = self.command(CREATE_PRIMARY, &[&Handle(OWNER)], &parameters)?;
        let (parent, _) = answer.split_first_chunk::<4>().context(CUT)?;
        let parent = Handle(u32::from_be_bytes(*parent));
        let done = act(self, &parent);
        self.flush(&parent)?;
        done
    }

    /// Part 3, 28.4, `TPM2_FlushContext`: the only command without authorization.
    fn flush(&mut self, object: &Handle) -> Result<()> {
        let answer = self.exchange(NO_SESSIONS, FLUSH_CONTEXT, &object.0.to_be_bytes())?;
        ensure!(answer.is_empty(), "it answers more than was asked");
        Ok(())
    }

    /// Sends a command with an empty password for each handle; returns the handle it makes, if any, and its parameters.
    fn command(&mut self, code: u32, handles: &[&Handle], parameters: &[u8]) -> Result<Vec<u8>> {
        let mut body = Zeroizing::new(Vec::new());
        for handle in handles {
            body.extend_from_slice(&handle.0.to_be_bytes());
        }
        // One password session: handle, no nonce, no attributes, no password (Part 1, 19.4).
        body.extend_from_slice(&9_u32.to_be_bytes());
        body.extend_from_slice(&PASSWORD_SESSION.to_be_bytes());
        body.extend_from_slice(&[0, 0, 0, 0, 0]);
        body.extend_from_slice(parameters);
        let answer = self.exchange(SESSIONS, code, &body)?;
        let makes_handle = [CREATE_PRIMARY, LOAD].contains(&code);
        let (handle, rest) = answer
            .split_at_checked(if makes_handle { 4 } else { 0 })
            .context(CUT)?;
        let (len, rest) = rest.split_first_chunk::<4>().context(CUT)?;
        let parameters = rest.get(..u32::from_be_bytes(*len) as usize).context(CUT)?;
        Ok([handle, parameters].concat())
    }

    /// Sends a command and reads what answers it, behind a header that says that it was done (Part 1, 18).
    fn exchange(&mut self, tag: u16, code: u32, body: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let len = u32::try_from(HEADER_LEN + body.len())?;
        let mut command = Zeroizing::new(Vec::new());
        command.extend_from_slice(&tag.to_be_bytes());
        command.extend_from_slice(&len.to_be_bytes());
        command.extend_from_slice(&code.to_be_bytes());
        command.extend_from_slice(body);
        match self {
            Self::Device(device) => device.write_all(&command)?,
            Self::Socket(socket) => socket.write_all(&command)?,
        }
        let mut answer = Zeroizing::new(vec![0; ANSWER_LEN_MAX]);
        let mut have = 0;
        let code = loop {
            let rest = answer.get_mut(have..).unwrap_or_default();
            let read = match self {
                Self::Device(device) => device.read(rest)?,
                Self::Socket(socket) => socket.read(rest)?,
            };
            ensure!(read > 0, "{CUT}");
            have += read;
            let mut header = Fields(answer.get(..have).unwrap_or_default());
            if have < HEADER_LEN {
                continue;
            }
            header.take(2)?;
            let len = u32::from_be_bytes(header.array()?) as usize;
            ensure!(
                (HEADER_LEN..=ANSWER_LEN_MAX).contains(&len),
                "an answer of {len} bytes"
            );
            if have >= len {
                have = len;
                break u32::from_be_bytes(header.array()?);
            }
        };
        if code != 0 {
            bail!("it refuses with code {code:#06x}");
        }
        answer.truncate(have);
        answer.drain(..HEADER_LEN);
        Ok(answer)
    }
}

/// Part 2, 12.2.4, `TPMT_PUBLIC` of a storage key: ECC P-256, as the TCG's provisioning guidance has it.
fn storage_template() -> Vec<u8> {
    let mut public = Vec::new();
    public.extend_from_slice(&0x0023_u16.to_be_bytes()); // ECC
    public.extend_from_slice(&SHA256.to_be_bytes());
    // fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, decrypt
    public.extend_from_slice(&0x0003_0472_u32.to_be_bytes());
    put16(&mut public, &[]); // no policy
    for field in [0x0006_u16, 128, 0x0043] {
        public.extend_from_slice(&field.to_be_bytes()); // AES-128-CFB
    }
    for field in [NULL, 0x0003, NULL, 0, 0] {
        public.extend_from_slice(&field.to_be_bytes()); // no scheme, P-256, no KDF, no unique point
    }
    public
}

/// The same of a sealed secret.
fn sealed_template() -> Vec<u8> {
    let mut public = Vec::new();
    public.extend_from_slice(&0x0008_u16.to_be_bytes()); // keyed hash
    public.extend_from_slice(&SHA256.to_be_bytes());
    // fixedTPM, fixedParent, userWithAuth, noDA
    public.extend_from_slice(&0x0000_0452_u32.to_be_bytes());
    put16(&mut public, &[]); // no policy
    public.extend_from_slice(&NULL.to_be_bytes());
    put16(&mut public, &[]); // no unique
    public
}

fn put16(out: &mut Vec<u8>, bytes: &[u8]) {
    // Everything here is shorter by far.
    let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Big-endian fields, read from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(len).context(CUT)?;
        self.0 = rest;
        Ok(field)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into()?)
    }

    fn sized(&mut self) -> Result<&'a [u8]> {
        let len = usize::from(u16::from_be_bytes(self.array()?));
        self.take(len)
    }
}

const CUT: &str = "its answer is cut";
/// Part 2, 6.5.2: command codes.
const CREATE_PRIMARY: u32 = 0x0131;
const CREATE: u32 = 0x0153;
const LOAD: u32 = 0x0157;
const UNSEAL: u32 = 0x015e;
const FLUSH_CONTEXT: u32 = 0x0165;
/// Part 2, 6.9: structure tags.
const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;
/// Part 2, 7.4: permanent handles.
const OWNER: u32 = 0x4000_0001;
const PASSWORD_SESSION: u32 = 0x4000_0009;
/// Part 2, 6.3: algorithms.
const SHA256: u16 = 0x000b;
const NULL: u16 = 0x0010;
const HEADER_LEN: usize = 10;
const ANSWER_LEN_MAX: usize = 4096;
/// Chips take up to some seconds to make a key.
const ANSWER_MAX: Duration = Duration::from_secs(60);
