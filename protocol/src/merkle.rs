//! The Merkle tree hash of RFC 6962, computed as the leaves come.

use sha2::{Digest, Sha256};

/// A Merkle tree under construction; holds one hash per level, not the leaves.
#[derive(Clone, Debug, Default)]
pub struct MerkleTree {
    /// Roots of the complete subtrees so far, largest first.
    stack: Vec<[u8; 32]>,
    leaves: u64,
}

impl MerkleTree {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the leaf whose data is the concatenation of `parts`.
    ///
    //= https://www.rfc-editor.org/rfc/rfc6962#section-2.1
    //# The hash of a list with one entry (also known as a leaf hash) is: MTH({d(0)}) = SHA-256(0x00 || d(0)).
    pub fn push(&mut self, parts: &[&[u8]]) {
        let mut hash = Sha256::new();
        hash.update([0x00]);
        for part in parts {
            hash.update(part);
        }
        let mut node: [u8; 32] = hash.finalize().into();
        for _ in 0..self.leaves.trailing_ones() {
            let left = self
                .stack
                .pop()
                .expect("one complete subtree for each set bit of leaves");
            node = parent(&left, &node);
        }
        self.stack.push(node);
        self.leaves += 1;
    }

    /// Returns the root over the leaves so far.
    ///
    //= https://www.rfc-editor.org/rfc/rfc6962#section-2.1
    //# The hash of an empty list is the hash of an empty string: MTH({}) = SHA-256().
    #[must_use]
    pub fn root(&self) -> [u8; 32] {
        let mut subtrees = self.stack.iter().rev();
        let Some(&smallest) = subtrees.next() else {
            return Sha256::digest([]).into();
        };
        subtrees.fold(smallest, |right, left| parent(left, &right))
    }

    /// Forgets the leaves, keeping the allocation.
    pub fn clear(&mut self) {
        self.stack.clear();
        self.leaves = 0;
    }
}

fn parent(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update([0x01]);
    hash.update(left);
    hash.update(right);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    /// The leaves and roots of certificate-transparency's own tests.
    #[test]
    fn roots_match_the_published_ones() {
        let leaves = [
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        ];
        let roots = [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut tree = MerkleTree::new();
        assert_eq!(HEXLOWER.encode(&tree.root()), roots[0]);
        for (leaf, root) in leaves.iter().zip(&roots[1..]) {
            tree.push(&[&HEXLOWER.decode(leaf.as_bytes()).unwrap()]);
            assert_eq!(HEXLOWER.encode(&tree.root()), *root);
        }
    }
}
