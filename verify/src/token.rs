//! A time-stamp token: somebody else's word on when a checkpoint was there (RFC 3161, RFC 5652).

use anyhow::{Context as _, Result, bail, ensure};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert, ring};

/// What a token says, and whose word it is.
#[derive(Clone, Copy, Debug)]
pub struct Stamped {
    /// When it was there, Unix seconds.
    pub time_s: u64,
    /// A trusted authority signed it.
    pub is_trusted: bool,
}

/// The parts of a token that matter.
struct Token<'a> {
    /// What is signed about: the `TSTInfo`.
    info: &'a [u8],
    certificates: Vec<&'a [u8]>,
    digest: &'a [u8],
    /// The signed attributes, as they are hashed: a SET.
    attributes: Vec<u8>,
    signature: &'a [u8],
}

/// Checks that the token in `response` is over `data`, and with authorities' certificates (PEM), that one of them
/// vouches for its signature at its own time.
///
/// # Errors
/// It is none, is over something else, or is not signed as it must be.
pub fn check(response: &[u8], data: &[u8], authorities: Option<&[u8]>) -> Result<Stamped> {
    let token = Token::of_response(response).context("it is no time-stamp response")?;
    let (imprint, time_s) = info(token.info).context("its TSTInfo")?;
    ensure!(
        *imprint == Sha256::digest(data)[..],
        "it is over another checkpoint"
    );
    let hashed = match token.digest {
        SHA256 => Sha256::digest(token.info).to_vec(),
        SHA384 => Sha384::digest(token.info).to_vec(),
        SHA512 => Sha512::digest(token.info).to_vec(),
        _ => bail!("it is signed with a digest that is not SHA-256, SHA-384 or SHA-512"),
    };
    ensure!(
        attribute(&token.attributes, MESSAGE_DIGEST)? == Some(&hashed)
            && attribute(&token.attributes, CONTENT_TYPE)? == Some(TST_INFO),
        "what is signed is not what it says"
    );
    let Some(authorities) = authorities else {
        return Ok(Stamped {
            time_s,
            is_trusted: false,
        });
    };
    token.is_vouched_for(authorities, time_s)?;
    Ok(Stamped {
        time_s,
        is_trusted: true,
    })
}

impl<'a> Token<'a> {
    //= https://www.rfc-editor.org/rfc/rfc3161#section-2.4.2
    //# TimeStampResp ::= SEQUENCE { status PKIStatusInfo, timeStampToken TimeStampToken OPTIONAL }
    fn of_response(response: &'a [u8]) -> Result<Self> {
        let mut response = Reader(response).enter(SEQUENCE)?;
        response.skip()?; // status
        let mut content = response.enter(SEQUENCE)?;
        ensure!(content.take(OBJECT)? == SIGNED_DATA, "it is not signed");
        //= https://www.rfc-editor.org/rfc/rfc5652#section-5.1
        //# SignedData ::= SEQUENCE { version CMSVersion, digestAlgorithms DigestAlgorithmIdentifiers, encapContentInfo EncapsulatedContentInfo, certificates [0] IMPLICIT CertificateSet OPTIONAL, crls [1] IMPLICIT RevocationInfoChoices OPTIONAL, signerInfos SignerInfos }
        let mut signed = content.enter(CONTEXT_0)?.enter(SEQUENCE)?;
        signed.skip()?; // version
        signed.skip()?; // digest algorithms
        let mut encapsulated = signed.enter(SEQUENCE)?;
        ensure!(
            encapsulated.take(OBJECT)? == TST_INFO,
            "it is no time stamp"
        );
        let info = encapsulated.enter(CONTEXT_0)?.take(OCTETS)?;
        let mut certificates = Vec::new();
        if signed.is_next(CONTEXT_0) {
            let mut set = signed.enter(CONTEXT_0)?;
            while !set.0.is_empty() {
                certificates.push(set.whole()?);
            }
        }
        if signed.is_next(CONTEXT_1) {
            signed.skip()?; // revocation lists
        }
        //= https://www.rfc-editor.org/rfc/rfc5652#section-5.3
        //# SignerInfo ::= SEQUENCE { version CMSVersion, sid SignerIdentifier, digestAlgorithm DigestAlgorithmIdentifier, signedAttrs [0] IMPLICIT SignedAttributes OPTIONAL, signatureAlgorithm SignatureAlgorithmIdentifier, signature SignatureValue, unsignedAttrs [1] IMPLICIT UnsignedAttributes OPTIONAL }
        let mut signer = signed.enter(SET)?.enter(SEQUENCE)?;
        signer.skip()?; // version
        signer.skip()?; // which certificate; those that come with it are tried
        let digest = signer.enter(SEQUENCE)?.take(OBJECT)?;
        ensure!(signer.is_next(CONTEXT_0), "it has no signed attributes");
        //= https://www.rfc-editor.org/rfc/rfc5652#section-5.4
        //# A separate encoding of the signedAttrs field is performed for message digest calculation. The IMPLICIT [0] tag in the signedAttrs is not used for the DER encoding, rather an EXPLICIT SET OF tag is used.
        let mut attributes = signer.whole()?.to_vec();
        if let Some(tag) = attributes.first_mut() {
            *tag = SET;
        }
        signer.skip()?; // signature algorithm: the key says it too
        Ok(Self {
            info,
            certificates,
            digest,
            attributes,
            signature: signer.take(OCTETS)?,
        })
    }

    /// Whether a certificate for time stamping that one of `authorities` vouches for made the signature.
    fn is_vouched_for(&self, authorities: &[u8], time_s: u64) -> Result<()> {
        let roots: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(authorities)
            .collect::<Result<_, _>>()
            .map_err(|error| anyhow::anyhow!("--tsa-ca: {error}"))?;
        ensure!(!roots.is_empty(), "--tsa-ca: the file holds no certificate");
        let anchors = roots
            .iter()
            .map(anchor_from_trusted_cert)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| anyhow::anyhow!("--tsa-ca: {error}"))?;
        let others = self.certificates.iter();
        let others: Vec<_> = others.map(|&der| CertificateDer::from(der)).collect();
        let time = UnixTime::since_unix_epoch(core::time::Duration::from_secs(time_s));
        let mut reason = "no certificate is with it".to_owned();
        for der in &others {
            let certificate = match EndEntityCert::try_from(der) {
                Ok(certificate) => certificate,
                Err(error) => {
                    reason = error.to_string();
                    continue;
                }
            };
            let signed = self.algorithms().into_iter().any(|algorithm| {
                let signature = self.signature;
                certificate
                    .verify_signature(algorithm, &self.attributes, signature)
                    .is_ok()
            });
            if !signed {
                continue;
            }
            let usage = KeyUsage::required(TIME_STAMPING);
            let path = certificate.verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &anchors,
                &others,
                time,
                usage,
                None,
                None,
            );
            match path {
                Ok(_) => return Ok(()),
                Err(error) => reason = error.to_string(),
            }
        }
        bail!("no authority of --tsa-ca vouches for it: {reason}")
    }

    fn algorithms(&self) -> Vec<&'static dyn SignatureVerificationAlgorithm> {
        match self.digest {
            SHA256 => vec![
                ring::RSA_PKCS1_2048_8192_SHA256,
                ring::ECDSA_P256_SHA256,
                ring::ECDSA_P384_SHA256,
            ],
            SHA384 => vec![
                ring::RSA_PKCS1_2048_8192_SHA384,
                ring::ECDSA_P256_SHA384,
                ring::ECDSA_P384_SHA384,
            ],
            _ => vec![ring::RSA_PKCS1_2048_8192_SHA512],
        }
    }
}

/// The digest that a `TSTInfo` is about, and its time.
fn info(info: &[u8]) -> Result<(&[u8], u64)> {
    //= https://www.rfc-editor.org/rfc/rfc3161#section-2.4.2
    //# TSTInfo ::= SEQUENCE { version INTEGER { v1(1) }, policy TSAPolicyId, messageImprint MessageImprint, serialNumber INTEGER, genTime GeneralizedTime, ...
    let mut info = Reader(info).enter(SEQUENCE)?;
    info.skip()?; // version
    info.skip()?; // policy
    let mut imprint = info.enter(SEQUENCE)?;
    ensure!(
        imprint.enter(SEQUENCE)?.take(OBJECT)? == SHA256,
        "its digest is not SHA-256"
    );
    let imprint = imprint.take(OCTETS)?;
    info.skip()?; // serial number
    let time = str::from_utf8(info.take(GENERALIZED_TIME)?).context("its time")?;
    // Fractions of a second do not matter here.
    let time = time.split(['.', 'Z']).next().unwrap_or_default();
    let time = jiff::civil::DateTime::strptime("%Y%m%d%H%M%S", time).context("its time")?;
    let time = time.to_zoned(jiff::tz::TimeZone::UTC)?.timestamp();
    Ok((imprint, u64::try_from(time.as_second())?))
}

/// The only value of a signed attribute.
fn attribute<'a>(attributes: &'a [u8], wanted: &[u8]) -> Result<Option<&'a [u8]>> {
    let mut set = Reader(attributes).enter(SET)?;
    while !set.0.is_empty() {
        let mut attribute = set.enter(SEQUENCE)?;
        if attribute.take(OBJECT)? == wanted {
            let (_, value, _) = attribute.enter(SET)?.element()?;
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// DER, read from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Tag, content and the whole of the next element.
    fn element(&mut self) -> Result<(u8, &'a [u8], &'a [u8])> {
        let all = self.0;
        let ([tag, first], rest) = all.split_first_chunk::<2>().context("it is cut")?;
        let (len, rest) = match first {
            0..=0x7f => (usize::from(*first), rest),
            0x81..=0x83 => {
                let digits = usize::from(first - 0x80);
                let (digits, rest) = rest.split_at_checked(digits).context("it is cut")?;
                let len = digits.iter();
                (
                    len.fold(0, |len, digit| len << 8 | usize::from(*digit)),
                    rest,
                )
            }
            _ => bail!("a length is not DER"),
        };
        let (content, rest) = rest.split_at_checked(len).context("it is cut")?;
        self.0 = rest;
        let whole = all.get(..all.len() - rest.len()).unwrap_or_default();
        Ok((*tag, content, whole))
    }

    fn take(&mut self, wanted: u8) -> Result<&'a [u8]> {
        let (tag, content, _) = self.element()?;
        ensure!(
            tag == wanted,
            "element {wanted:02x} expected, {tag:02x} found"
        );
        Ok(content)
    }

    fn enter(&mut self, wanted: u8) -> Result<Self> {
        Ok(Reader(self.take(wanted)?))
    }

    fn whole(&mut self) -> Result<&'a [u8]> {
        Ok(self.element()?.2)
    }

    fn skip(&mut self) -> Result<()> {
        self.element().map(drop)
    }

    fn is_next(&self, tag: u8) -> bool {
        self.0.first() == Some(&tag)
    }
}

const OCTETS: u8 = 0x04;
const OBJECT: u8 = 0x06;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const CONTEXT_0: u8 = 0xa0;
const CONTEXT_1: u8 = 0xa1;
/// 1.2.840.113549.1.7.2
const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
/// 1.2.840.113549.1.9.3
const CONTENT_TYPE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x03];
/// 1.2.840.113549.1.9.4
const MESSAGE_DIGEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x04];
/// 1.2.840.113549.1.9.16.1.4
const TST_INFO: &[u8] = &[
    0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x10, 0x01, 0x04,
];
/// 2.16.840.1.101.3.4.2.1, .2 and .3
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
const SHA384: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02];
const SHA512: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03];
/// 1.3.6.1.5.5.7.3.8
const TIME_STAMPING: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x08];
