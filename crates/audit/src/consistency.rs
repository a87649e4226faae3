//! Proofs that a smaller tree is the beginning of a larger one (RFC 6962 section 2.1.2, RFC 9162 section 2.1.4).

use crate::hash::Hash;
use crate::tree::Frontier;

/// Makes a proof while the leaves behind the smaller tree go by, in memory for a few hashes.
#[derive(Debug)]
pub struct ConsistencyProver {
    /// The hashes of the proof, in its order. Those of new leaves are still being made, each from so many leaves.
    parts: Vec<Part>,
    /// Which part the next leaf belongs to.
    filling: usize,
}

#[derive(Debug)]
enum Part {
    Old(Hash),
    New { leaves: u64, tree: Frontier },
}

impl ConsistencyProver {
    /// From the smaller tree to one of `new` leaves; `None` when that is smaller still.
    pub fn new(old: &Frontier, new: u64) -> Option<Self> {
        let mut ranges = Vec::new();
        match old.size() {
            size if size > new => return None,
            0 => {}
            size => plan(size, 0, new, true, &mut ranges),
        }
        let parts = ranges.into_iter().map(|(from, leaves)| match peak_at(old, from) {
            Some(peak) => Part::Old(peak),
            None => Part::New { leaves, tree: Frontier::default() },
        });
        let parts: Vec<_> = parts.collect();
        let filling = parts.iter().position(|part| matches!(part, Part::New { .. })).unwrap_or(parts.len());
        Some(Self { parts, filling })
    }

    /// Takes the next leaf behind the smaller tree.
    pub fn push(&mut self, leaf: Hash) {
        while let Some(part) = self.parts.get_mut(self.filling) {
            if let Part::New { leaves, tree } = part
                && tree.size() < *leaves
            {
                return tree.push(leaf);
            }
            self.filling += 1;
        }
    }

    /// The proof; `None` when leaves are missing.
    pub fn finish(self) -> Option<Vec<Hash>> {
        let hash = |part| match part {
            Part::Old(hash) => Some(hash),
            Part::New { leaves, tree } => (tree.size() == leaves).then(|| tree.root()),
        };
        self.parts.into_iter().map(hash).collect()
    }
}

/// The ranges whose hashes are the proof from `old` leaves to `new`, within a subtree that begins at `at`; `whole` while
/// the verifier knows the hash of all old ones there. First the beginning of each, then its length.
fn plan(old: u64, at: u64, new: u64, whole: bool, ranges: &mut Vec<(u64, u64)>) {
    if old == new {
        if !whole {
            ranges.push((at, new));
        }
        return;
    }
    // The largest power of two below `new`, which is at least 2 here.
    let left = 1 << (u64::BITS - 1 - (new - 1).leading_zeros());
    if old <= left {
        plan(old, at, left, whole, ranges);
        ranges.push((at + left, new - left));
    } else {
        plan(old - left, at + left, new - left, false, ranges);
        ranges.push((at, left));
    }
}

/// The root of the perfect subtree of a frontier that begins at this leaf.
fn peak_at(frontier: &Frontier, at: u64) -> Option<Hash> {
    let mut begin = 0;
    let bits = (0..u64::BITS).rev().map(|bit| 1 << bit).filter(|bit| frontier.size() & bit != 0);
    for (size, peak) in bits.zip(frontier.peaks()) {
        if begin == at {
            return Some(*peak);
        }
        begin += size;
    }
    None
}

/// Whether a tree of `size` leaves and this `root` begins with the tree of `old_size` leaves and `old_root`, by a proof of
/// it (RFC 9162 section 2.1.4.2).
pub fn is_consistent(old_size: u64, old_root: Hash, size: u64, root: Hash, proof: &[Hash]) -> bool {
    if old_size == 0 || old_size >= size {
        let same = old_size == 0 && old_root == Hash::of_empty() || old_size == size && old_root == root;
        return same && proof.is_empty();
    }
    let (mut at, mut last) = (old_size - 1, size - 1);
    while at & 1 == 1 {
        (at, last) = (at >> 1, last >> 1);
    }
    let whole = old_size.is_power_of_two().then_some(old_root);
    let mut hashes = whole.iter().chain(proof);
    let Some(first) = hashes.next() else { return false };
    let (mut old, mut new) = (*first, *first);
    for beside in hashes {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            old = Hash::of_node(beside, &old);
            new = Hash::of_node(beside, &new);
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            new = Hash::of_node(&new, beside);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && old == old_root && new == root
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(leaves: &[Hash]) -> Frontier {
        let mut tree = Frontier::default();
        leaves.iter().for_each(|leaf| tree.push(*leaf));
        tree
    }

    fn prove(leaves: &[Hash], old: usize) -> Vec<Hash> {
        let new = u64::try_from(leaves.len()).expect("small");
        let mut prover = ConsistencyProver::new(&tree(&leaves[..old]), new).expect("larger");
        leaves[old..].iter().for_each(|leaf| prover.push(*leaf));
        prover.finish().expect("all leaves")
    }

    #[test]
    fn every_beginning_is_proven_and_nothing_else() {
        let leaves: Vec<Hash> = (0..40u8).map(|n| Hash::of_leaf(&[n])).collect();
        for new in 1..=leaves.len() {
            let (larger, new_size) = (tree(&leaves[..new]).root(), new as u64);
            for old in 0..=new {
                let (smaller, old_size) = (tree(&leaves[..old]).root(), old as u64);
                let proof = prove(&leaves[..new], old);
                assert!(is_consistent(old_size, smaller, new_size, larger, &proof), "{old} in {new}");
                let holds = |old, root, proof: &[Hash]| is_consistent(old, root, new_size, larger, proof);
                if old == 0 {
                    continue;
                }
                assert!(!holds(old_size, Hash::NONE, &proof), "{old} in {new}: another root");
                for at in 0..proof.len() {
                    let mut wrong = proof.clone();
                    wrong[at] = Hash::NONE;
                    assert!(!holds(old_size, smaller, &wrong), "{old} in {new}: hash {at}");
                    wrong.remove(at);
                    assert!(!holds(old_size, smaller, &wrong), "{old} in {new}: without {at}");
                }
                assert!(!holds(old_size, smaller, &[proof.as_slice(), &[Hash::NONE]].concat()), "one more");
            }
        }
    }

    #[test]
    fn a_proof_needs_all_leaves() {
        let leaves: Vec<Hash> = (0..9u8).map(|n| Hash::of_leaf(&[n])).collect();
        let mut prover = ConsistencyProver::new(&tree(&leaves[..4]), 9).expect("larger");
        leaves[4..8].iter().for_each(|leaf| prover.push(*leaf));
        assert_eq!(prover.finish(), None);
        assert!(ConsistencyProver::new(&tree(&leaves), 8).is_none());
    }
}
