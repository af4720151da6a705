//! Wire primitives: big-endian integers, variable-length integers and length-prefixed bytes.

use crate::error::InvalidMessage;

/// A type with one encoding on the wire.
pub trait Codec: Sized {
    /// Appends the encoding of `self` to `out`.
    fn encode(&self, out: &mut Vec<u8>);

    /// Reads `Self` from the front of `r`.
    ///
    /// # Errors
    /// Fails when the bytes are not an encoding of `Self`; the error names the field.
    fn read(r: &mut Reader<'_>) -> Result<Self, InvalidMessage>;

    /// Returns the encoding of `self` alone.
    fn encoded(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }

    /// Reads `Self` from all of `bytes`.
    ///
    /// # Errors
    /// As [`Codec::read`], and when bytes are left over.
    fn decode(bytes: &[u8], name: &'static str) -> Result<Self, InvalidMessage> {
        let mut r = Reader::new(bytes);
        let value = Self::read(&mut r)?;
        r.finish(name)?;
        Ok(value)
    }
}

/// Received bytes, consumed from the front; reading past the end is an error.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Takes the next `len` bytes of the field named `field`.
    ///
    /// # Errors
    /// [`InvalidMessage::MissingData`] when fewer bytes are left.
    pub fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], InvalidMessage> {
        let Some((head, tail)) = self.rest.split_at_checked(len) else {
            return Err(InvalidMessage::MissingData(field));
        };
        self.rest = tail;
        Ok(head)
    }

    /// # Errors
    /// [`InvalidMessage::MissingData`] at the end of the bytes.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, InvalidMessage> {
        Ok(u8::from_be_bytes(self.array(field)?))
    }

    /// # Errors
    /// [`InvalidMessage::MissingData`] at the end of the bytes.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, InvalidMessage> {
        Ok(u16::from_be_bytes(self.array(field)?))
    }

    /// # Errors
    /// [`InvalidMessage::MissingData`] at the end of the bytes.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, InvalidMessage> {
        Ok(u32::from_be_bytes(self.array(field)?))
    }

    /// # Errors
    /// [`InvalidMessage::MissingData`] at the end of the bytes.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, InvalidMessage> {
        Ok(u64::from_be_bytes(self.array(field)?))
    }

    /// Reads a byte that is 0 or 1.
    ///
    /// # Errors
    /// [`InvalidMessage::NotCanonical`] for any other.
    pub fn flag(&mut self, field: &'static str) -> Result<bool, InvalidMessage> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(InvalidMessage::NotCanonical(field)),
        }
    }

    /// Reads an unsigned LEB128 integer of at most 64 bits, in its shortest form only.
    ///
    /// # Errors
    /// [`InvalidMessage::NotCanonical`] for a longer form, or more than 64 bits.
    pub fn varint(&mut self, field: &'static str) -> Result<u64, InvalidMessage> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(field)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(InvalidMessage::NotCanonical(field));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(InvalidMessage::NotCanonical(field));
                }
                return Ok(value);
            }
        }
        Err(InvalidMessage::NotCanonical(field))
    }

    /// Reads a `u16` length, compares it with `max`, and takes that many bytes.
    ///
    /// # Errors
    /// [`InvalidMessage::TooLong`] past `max`.
    pub fn bytes16(&mut self, max: usize, field: &'static str) -> Result<&'a [u8], InvalidMessage> {
        let len = usize::from(self.u16(field)?);
        if len > max {
            return Err(InvalidMessage::TooLong(field));
        }
        self.take(len, field)
    }

    /// Reads a `u16` length and that many bytes of UTF-8.
    ///
    /// # Errors
    /// [`InvalidMessage::TooLong`] past `max`, [`InvalidMessage::NotUtf8`] for other text.
    pub fn text16(&mut self, max: usize, field: &'static str) -> Result<String, InvalidMessage> {
        let bytes = self.bytes16(max, field)?;
        let text = str::from_utf8(bytes).map_err(|_| InvalidMessage::NotUtf8(field))?;
        Ok(text.to_owned())
    }

    /// Takes `N` bytes.
    ///
    /// # Errors
    /// [`InvalidMessage::MissingData`] when fewer are left.
    pub fn array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], InvalidMessage> {
        let Some((head, tail)) = self.rest.split_first_chunk::<N>() else {
            return Err(InvalidMessage::MissingData(field));
        };
        self.rest = tail;
        Ok(*head)
    }

    /// Takes everything that is left.
    #[must_use]
    pub fn rest(self) -> &'a [u8] {
        self.rest
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Ends the read: bytes left over are an error.
    ///
    /// # Errors
    /// [`InvalidMessage::TrailingData`] when bytes are left.
    pub fn finish(self, field: &'static str) -> Result<(), InvalidMessage> {
        if !self.rest.is_empty() {
            return Err(InvalidMessage::TrailingData(field));
        }
        Ok(())
    }
}

/// Appends `bytes` behind its `u16` length. The caller bounds the length.
pub fn put_bytes16(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u16::try_from(bytes.len()).expect("the caller bounds the field to 65535 bytes");
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Appends the unsigned LEB128 form of `value`.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(low_byte(value) | 0x80);
        value >>= 7;
    }
    out.push(low_byte(value));
}

fn low_byte(value: u64) -> u8 {
    let [.., byte] = value.to_be_bytes();
    byte
}

/// Cuts `text` to at most `max` bytes at a character boundary.
#[must_use]
pub fn truncated(text: &str, max: usize) -> &str {
    let end = text.floor_char_boundary(max);
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_read_back_and_have_one_form() {
        for value in [
            0,
            1,
            127,
            128,
            16_383,
            16_384,
            u64::from(u32::MAX),
            u64::MAX,
        ] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut r = Reader::new(&out);
            assert_eq!(r.varint("v"), Ok(value));
            assert_eq!(r.finish("v"), Ok(()));
        }
        for long in [&[0x80, 0x00][..], &[0xff; 10][..], &[0x80; 11][..]] {
            let outcome = Reader::new(long).varint("v");
            assert_eq!(outcome, Err(InvalidMessage::NotCanonical("v")), "{long:?}");
        }
    }

    #[test]
    fn a_length_past_its_bound_is_refused_before_it_is_taken() {
        let mut r = Reader::new(&[0xff, 0xff]);
        assert_eq!(r.bytes16(16, "name"), Err(InvalidMessage::TooLong("name")));
    }
}
