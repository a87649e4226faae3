//! The Merkle tree of RFC 6962 section 2.1, as much of it as appending takes.

use crate::hash::Hash;

/// The roots of the perfect subtrees that the leaves make, largest first: one for each bit of their number. At most 64
/// hashes, whatever the size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

impl Frontier {
    /// Of a tree of this size; `None` when the number of hashes does not fit to it.
    pub fn new(size: u64, peaks: Vec<Hash>) -> Option<Self> {
        (usize::try_from(size.count_ones()) == Ok(peaks.len())).then_some(Self { size, peaks })
    }

    /// How many leaves there are.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The roots, largest subtree first.
    pub fn peaks(&self) -> &[Hash] {
        &self.peaks
    }

    /// Adds the hash of a leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        // Each subtree of the same size that is there already becomes the left half of one of twice the size.
        for _ in 0..self.size.trailing_ones() {
            let left = self.peaks.pop().expect("a hash for each bit of the size");
            hash = Hash::of_node(&left, &hash);
        }
        self.peaks.push(hash);
        self.size = self.size.saturating_add(1);
    }

    /// The root of the tree.
    pub fn root(&self) -> Hash {
        let folded = self.peaks.iter().rev().copied().reduce(|right, left| Hash::of_node(&left, &right));
        folded.unwrap_or_else(Hash::of_empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the RFC defines it: split at the largest power of two below the size.
    fn by_definition(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => Hash::of_empty(),
            [one] => *one,
            many => {
                let (left, right) = many.split_at(many.len().next_power_of_two() / 2);
                Hash::of_node(&by_definition(left), &by_definition(right))
            }
        }
    }

    #[test]
    fn the_root_is_that_of_the_definition() {
        let leaves: Vec<Hash> = (0..70u8).map(|n| Hash::of_leaf(&[n])).collect();
        let mut tree = Frontier::default();
        assert_eq!(tree.root().to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        for (at, leaf) in leaves.iter().enumerate() {
            tree.push(*leaf);
            assert_eq!(tree.root(), by_definition(&leaves[..=at]), "{at}");
            assert_eq!(Frontier::new(tree.size(), tree.peaks().to_vec()).as_ref(), Some(&tree));
        }
        assert_eq!(Frontier::new(3, vec![Hash::NONE]), None);
    }
}
