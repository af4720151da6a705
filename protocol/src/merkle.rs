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
        self.push_hash(leaf_hash(parts));
    }

    /// Adds the leaf of this hash.
    pub fn push_hash(&mut self, leaf: [u8; 32]) {
        let mut node = leaf;
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

    /// The roots of the complete subtrees, largest first: with the number of leaves, all that more leaves need.
    #[must_use]
    pub fn frontier(&self) -> &[[u8; 32]] {
        &self.stack
    }

    /// The tree over so many leaves with that frontier; `None` when they do not belong together.
    #[must_use]
    pub fn from_frontier(leaves: u64, frontier: Vec<[u8; 32]>) -> Option<Self> {
        let fits = frontier.len() == leaves.count_ones() as usize;
        fits.then_some(Self {
            stack: frontier,
            leaves,
        })
    }

    /// Forgets the leaves, keeping the allocation.
    pub fn clear(&mut self) {
        self.stack.clear();
        self.leaves = 0;
    }
}

/// The hash of the leaf whose data is the concatenation of `parts`.
#[must_use]
pub fn leaf_hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update([0x00]);
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// Every node of a tree, for the audit paths of any of its leaves.
#[derive(Debug)]
pub struct AuditPaths {
    /// The leaves first, the root last.
    levels: Vec<Vec<[u8; 32]>>,
}

impl AuditPaths {
    /// The tree over leaves with these hashes.
    #[must_use]
    pub fn new(leaves: Vec<[u8; 32]>) -> Self {
        let mut levels = vec![leaves];
        while let Some(below) = levels.last().filter(|below| below.len() > 1) {
            let level = below.chunks(2).map(|nodes| match nodes {
                [left, right] => parent(left, right),
                // The last of an odd number is the whole of its subtree.
                _ => nodes.first().copied().unwrap_or_default(),
            });
            let level = level.collect();
            levels.push(level);
        }
        Self { levels }
    }

    /// The hashes beside the way from leaf `index` to the root; `None` when there is no such leaf.
    ///
    //= https://www.rfc-editor.org/rfc/rfc6962#section-2.1.1
    //# The Merkle audit path for a leaf in a Merkle Hash Tree is the shortest list of additional nodes in the Merkle Tree required to compute the Merkle Tree Hash for that tree.
    #[must_use]
    pub fn path(&self, index: usize) -> Option<Vec<[u8; 32]>> {
        self.levels.first()?.get(index)?;
        let levels = self.levels.iter().enumerate();
        let beside = levels.filter_map(|(height, level)| level.get((index >> height) ^ 1));
        Some(beside.copied().collect())
    }
}

/// The root that a leaf and its audit path lead to in a tree of `size` leaves; `None` when the path has not the
/// length that it must have.
///
//= https://www.rfc-editor.org/rfc/rfc9162#section-2.1.3.2
//# Compare sn to 0. If sn is not 0, stop the iteration and fail.
#[must_use]
pub fn root_of_path(leaf: [u8; 32], index: u64, size: u64, path: &[[u8; 32]]) -> Option<[u8; 32]> {
    let mut last = size.checked_sub(1).filter(|last| index <= *last)?;
    let (mut index, mut node) = (index, leaf);
    for beside in path {
        if last == 0 {
            return None;
        }
        if index % 2 == 1 || index == last {
            node = parent(beside, &node);
            while index.is_multiple_of(2) && index != 0 {
                index >>= 1;
                last >>= 1;
            }
        } else {
            node = parent(&node, beside);
        }
        index >>= 1;
        last >>= 1;
    }
    (last == 0).then_some(node)
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

    #[test]
    fn a_tree_goes_on_from_its_frontier() {
        let mut whole = MerkleTree::new();
        let mut other = MerkleTree::new();
        for leaf in 0..70_u8 {
            whole.push(&[&[leaf]]);
            other.push(&[&[leaf]]);
            let count = u64::from(leaf) + 1;
            let frontier = other.frontier().to_vec();
            let more = [frontier.clone(), vec![[0; 32]]].concat();
            assert!(MerkleTree::from_frontier(count, more).is_none());
            other = MerkleTree::from_frontier(count, frontier).unwrap();
            assert_eq!(other.root(), whole.root());
        }
    }

    #[test]
    fn every_leaf_of_every_small_tree_leads_to_the_root_and_nothing_else_does() {
        let mut tree = MerkleTree::new();
        let mut leaves = Vec::new();
        for size in 1..=40_u64 {
            let data = size.to_be_bytes();
            tree.push(&[&data]);
            leaves.push(leaf_hash(&[&data]));
            let paths = AuditPaths::new(leaves.clone());
            for (index, leaf) in leaves.iter().enumerate() {
                let path = paths.path(index).unwrap();
                let at = index as u64;
                let root = root_of_path(*leaf, at, size, &path);
                assert_eq!(root, Some(tree.root()), "{index} of {size}");
                assert_ne!(root_of_path([9; 32], at, size, &path), root);
                if let Some((_, shorter)) = path.split_last() {
                    assert_eq!(root_of_path(*leaf, at, size, shorter), None);
                }
                let longer = [&path[..], &[[1; 32]]].concat();
                assert_eq!(root_of_path(*leaf, at, size, &longer), None);
                assert_ne!(root_of_path(*leaf, at + 1, size, &path), root);
            }
            assert_eq!(paths.path(leaves.len()), None);
            assert_eq!(root_of_path(leaves[0], size, size, &[]), None);
        }
    }

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
