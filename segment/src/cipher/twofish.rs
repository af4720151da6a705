//! Twofish with 256-bit keys, encryption alone, by tables: counter mode needs no more.
//!
//! Schneier, Kelsey, Whiting, Wagner, Hall, Ferguson: Twofish: A 128-Bit Block Cipher (1998), section 4. The
//! key-dependent S-boxes and the MDS matrix after them become four tables of 256 words ("full keying").

#![expect(
    clippy::indexing_slicing,
    reason = "bytes index tables of 256, nibbles tables of 16, and rounds are counted"
)]

use scrinium_protocol::secret::Secret;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A key, ready to encrypt.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Twofish {
    tables: [[u32; 256]; 4],
    subkeys: [u32; 40],
}

impl Twofish {
    pub(super) fn new(key: &Secret<32>) -> Self {
        let key = key.expose();
        let mut words = [[0; 4]; 8];
        for (word, bytes) in words.iter_mut().zip(key.as_chunks::<4>().0) {
            *word = *bytes;
        }
        let even = [words[0], words[2], words[4], words[6]];
        let odd = [words[1], words[3], words[5], words[7]];
        let mut subkeys = [0; 40];
        for (i, pair) in (0_u8..).zip(subkeys.as_chunks_mut::<2>().0) {
            let a = mix([2 * i; 4], &even);
            let b = mix([2 * i + 1; 4], &odd).rotate_left(8);
            *pair = [
                a.wrapping_add(b),
                a.wrapping_add(b).wrapping_add(b).rotate_left(9),
            ];
        }
        // The S-boxes take the words the other way round.
        let mut boxes = [[0; 4]; 4];
        for (word, bytes) in boxes.iter_mut().rev().zip(key.as_chunks::<8>().0) {
            *word = reed_solomon(bytes);
        }
        let mut tables = [[0; 256]; 4];
        for (column, table) in tables.iter_mut().enumerate() {
            for (byte, entry) in (0..=255).zip(table) {
                *entry = multiply_column(column, substitute(column, byte, &boxes));
            }
        }
        boxes.zeroize();
        words.zeroize();
        Self { tables, subkeys }
    }

    /// Encrypts one block.
    pub(super) fn encrypt(&self, block: [u8; 16]) -> [u8; 16] {
        let mut r = [0; 4];
        for ((word, bytes), subkey) in r.iter_mut().zip(block.as_chunks::<4>().0).zip(self.subkeys)
        {
            *word = u32::from_le_bytes(*bytes) ^ subkey;
        }
        let [mut a, mut b, mut c, mut d] = r;
        for round in 0..8 {
            let keys = &self.subkeys[8 + 4 * round..12 + 4 * round];
            let (x, y) = (self.g(a), self.g(b.rotate_left(8)));
            c = (c ^ x.wrapping_add(y).wrapping_add(keys[0])).rotate_right(1);
            d = d.rotate_left(1) ^ x.wrapping_add(y).wrapping_add(y).wrapping_add(keys[1]);
            let (x, y) = (self.g(c), self.g(d.rotate_left(8)));
            a = (a ^ x.wrapping_add(y).wrapping_add(keys[2])).rotate_right(1);
            b = b.rotate_left(1) ^ x.wrapping_add(y).wrapping_add(y).wrapping_add(keys[3]);
        }
        let mut out = [0; 16];
        let words = [c, d, a, b].into_iter().zip(&self.subkeys[4..8]);
        for (bytes, (word, subkey)) in out.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *bytes = (word ^ subkey).to_le_bytes();
        }
        out
    }

    fn g(&self, x: u32) -> u32 {
        let [a, b, c, d] = x.to_le_bytes();
        self.tables[0][usize::from(a)]
            ^ self.tables[1][usize::from(b)]
            ^ self.tables[2][usize::from(c)]
            ^ self.tables[3][usize::from(d)]
    }
}

/// The function h of the paper, over four key words.
fn mix(x: [u8; 4], words: &[[u8; 4]; 4]) -> u32 {
    let columns = x.into_iter().enumerate();
    columns.fold(0, |sum, (column, byte)| {
        sum ^ multiply_column(column, substitute(column, byte, words))
    })
}

/// One byte through the five permutations of its column, with a key byte between each two.
fn substitute(column: usize, byte: u8, words: &[[u8; 4]; 4]) -> u8 {
    let order = &PERMUTATIONS[column];
    let mut byte = permute(order[0], byte);
    for (word, &permutation) in words.iter().rev().zip(&order[1..]) {
        byte = permute(permutation, byte ^ word[column]);
    }
    byte
}

/// The fixed permutation q0 or q1.
fn permute(which: usize, byte: u8) -> u8 {
    let tables = &Q[which];
    let (mut a, mut b) = (byte >> 4, byte & 15);
    for pair in tables.as_chunks::<2>().0 {
        let (sum, rotated) = (a ^ b, a ^ (b >> 1 | b << 3) & 15 ^ a << 3 & 15);
        a = pair[0][usize::from(sum)];
        b = pair[1][usize::from(rotated)];
    }
    b << 4 | a
}

/// A column of the MDS matrix times a byte, over GF(2^8) with x^8 + x^6 + x^5 + x^3 + 1.
fn multiply_column(column: usize, byte: u8) -> u32 {
    u32::from_le_bytes(MDS.map(|row| multiply(row[column], byte, 0x69)))
}

/// Eight key bytes through the Reed-Solomon matrix, over GF(2^8) with x^8 + x^6 + x^3 + x^2 + 1.
fn reed_solomon(bytes: &[u8; 8]) -> [u8; 4] {
    RS.map(|row| {
        let products = row.iter().zip(bytes);
        products.fold(0, |sum, (&factor, &byte)| {
            sum ^ multiply(factor, byte, 0x4d)
        })
    })
}

/// The product of two bytes modulo a polynomial of degree 8, named without its first term.
fn multiply(mut a: u8, mut b: u8, modulus: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        let carry = a >> 7;
        a = (a << 1) ^ (carry * modulus);
        b >>= 1;
    }
    product
}

/// Which permutation each column begins with, and goes on with.
const PERMUTATIONS: [[usize; 5]; 4] = [
    [1, 1, 0, 0, 1],
    [0, 1, 1, 0, 0],
    [0, 0, 0, 1, 1],
    [1, 0, 1, 1, 0],
];
const MDS: [[u8; 4]; 4] = [
    [0x01, 0xef, 0x5b, 0x5b],
    [0x5b, 0xef, 0xef, 0x01],
    [0xef, 0x5b, 0x01, 0xef],
    [0xef, 0x01, 0xef, 0x5b],
];
const RS: [[u8; 8]; 4] = [
    [0x01, 0xa4, 0x55, 0x87, 0x5a, 0x58, 0xdb, 0x9e],
    [0xa4, 0x56, 0x82, 0xf3, 0x1e, 0xc6, 0x68, 0xe5],
    [0x02, 0xa1, 0xfc, 0xc1, 0x47, 0xae, 0x3d, 0x19],
    [0xa4, 0x55, 0x87, 0x5a, 0x58, 0xdb, 0x9e, 0x03],
];
/// The tables of nibbles that q0 and q1 are made of.
const Q: [[[u8; 16]; 4]; 2] = [
    [
        [8, 1, 7, 13, 6, 15, 3, 2, 0, 11, 5, 9, 14, 12, 10, 4],
        [14, 12, 11, 8, 1, 2, 3, 5, 15, 4, 10, 6, 7, 0, 9, 13],
        [11, 10, 5, 14, 6, 13, 9, 0, 12, 8, 15, 3, 2, 4, 7, 1],
        [13, 7, 15, 4, 1, 2, 6, 14, 9, 11, 3, 0, 8, 5, 12, 10],
    ],
    [
        [2, 8, 11, 13, 15, 7, 6, 14, 3, 1, 9, 4, 0, 10, 12, 5],
        [1, 14, 2, 11, 4, 12, 3, 7, 6, 13, 10, 5, 15, 9, 0, 8],
        [4, 12, 7, 5, 1, 6, 9, 10, 0, 14, 13, 8, 2, 11, 3, 15],
        [11, 9, 5, 1, 12, 3, 13, 14, 6, 4, 7, 15, 2, 0, 8, 10],
    ],
];

#[cfg(test)]
mod tests {
    use data_encoding::HEXUPPER;

    use super::*;

    fn hex<const N: usize>(text: &str) -> [u8; N] {
        HEXUPPER
            .decode(text.as_bytes())
            .unwrap()
            .try_into()
            .unwrap()
    }

    /// The paper's full-keying example, and its table of iterated encryptions, for keys of 256 bits.
    #[test]
    fn the_published_vectors_hold() {
        let key = hex("0123456789ABCDEFFEDCBA987654321000112233445566778899AABBCCDDEEFF");
        let cipher = Twofish::new(&Secret::new(key));
        assert_eq!(
            cipher.encrypt([0; 16]),
            hex("37527BE0052334B89F0CFCCAE87CFA20")
        );

        // ecb_tbl.txt: each key is made of the two texts before it.
        let (mut key, mut plain) = ([0; 32], [0; 16]);
        let mut cipher_text = [0; 16];
        for i in 1..=49 {
            cipher_text = Twofish::new(&Secret::new(key)).encrypt(plain);
            if i == 1 {
                assert_eq!(cipher_text, hex("57FF739D4DC92C1BD7FC01700CC8216F"));
            }
            key.copy_within(..16, 16);
            key[..16].copy_from_slice(&plain);
            plain = cipher_text;
        }
        assert_eq!(cipher_text, hex("37FE26FF1CF66175F5DDF4C33B97A205"));
    }

    #[test]
    fn it_agrees_with_another_implementation() {
        use twofish::cipher::{BlockCipherEncrypt as _, KeyInit as _};
        let mut state = [7_u8; 16];
        for n in 0..200_u8 {
            let key: [u8; 32] = core::array::from_fn(|i| {
                state[i % 16]
                    .wrapping_mul(n)
                    .wrapping_add(u8::try_from(i).unwrap())
            });
            let other = twofish::Twofish::new_from_slice(&key).unwrap();
            let mut block = state.into();
            other.encrypt_block(&mut block);
            let ours = Twofish::new(&Secret::new(key)).encrypt(state);
            assert_eq!(ours[..], block[..]);
            state = ours;
        }
    }
}
