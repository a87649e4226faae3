//! Proofs that a leaf is in a tree (RFC 9162 section 2.1.3), and the document that proves one record alone.

use serde::{Deserialize, Serialize};

use crate::hash::Hash;
use crate::line::{Line, LineError};
use crate::note::{Checkpoint, NoteError, VerifyingKey};

/// What a document of this version says that it is.
pub(crate) const FORMAT: &str = "sortie-audit-proof/1";
/// Largest document that is read, in bytes: a record that is escaped, 64 hashes and a checkpoint.
const MAX_PROOF: usize = 2 * 1024 * 1024;

/// Proof that one record is in a log: whole in itself, for who has the log's key and nothing else of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// `sortie-audit-proof/1`.
    pub format: String,
    /// The number of the record.
    pub index: u64,
    /// How many records the signed tree has.
    pub size: u64,
    /// The record: its line, without the end.
    pub record: String,
    /// The hashes that lead from the record to the root, lowest first.
    pub path: Vec<Hash>,
    /// The signed checkpoint of this size.
    pub checkpoint: String,
}

/// A proof that proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// It is no such document.
    #[error("not a proof: {0}")]
    Malformed(String),
    /// What it says is the record is none.
    #[error("the record in it is none: {0}")]
    Record(#[from] LineError),
    /// The record is another one.
    #[error("it is about record {index}, but has record {found}")]
    OtherRecord {
        /// What it is about.
        index: u64,
        /// What it has.
        found: u64,
    },
    /// The checkpoint in it cannot be believed.
    #[error("the checkpoint in it: {0}")]
    Checkpoint(#[from] NoteError),
    /// The checkpoint is of another size.
    #[error("it is about {size} records, but its checkpoint is of {signed}")]
    OtherSize {
        /// What it is about.
        size: u64,
        /// What was signed.
        signed: u64,
    },
    /// The hashes do not lead to the root that was signed.
    #[error(
        "its hashes do not lead from the record to the root that was signed: the record, or the proof, was changed"
    )]
    OtherRoot,
}

impl Proof {
    /// Reads a document.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(json: &[u8]) -> Result<Self, ProofError> {
        if json.len() > MAX_PROOF {
            return Err(ProofError::Malformed(format!("larger than {MAX_PROOF} bytes")));
        }
        let proof: Self = serde_json::from_slice(json).map_err(|error| ProofError::Malformed(error.to_string()))?;
        match proof.format.as_str() {
            FORMAT => Ok(proof),
            other => Err(ProofError::Malformed(format!("format `{other}`; this program understands {FORMAT}"))),
        }
    }

    /// Whether the record is in the log of one of these keys, as the signed root says. The result is the checkpoint.
    ///
    /// # Errors
    /// It is not, or that cannot be told.
    pub fn check(&self, keys: &[VerifyingKey]) -> Result<Checkpoint, ProofError> {
        let line = Line::exact(self.record.as_bytes())?;
        if line.seq != self.index {
            return Err(ProofError::OtherRecord { index: self.index, found: line.seq });
        }
        let checkpoint = Checkpoint::open_any(&self.checkpoint, keys)?;
        if checkpoint.size != self.size {
            return Err(ProofError::OtherSize { size: self.size, signed: checkpoint.size });
        }
        let leaf = Hash::of_leaf(self.record.as_bytes());
        match inclusion_root(self.index, self.size, leaf, &self.path) {
            Some(root) if root == checkpoint.root => Ok(checkpoint),
            _ => Err(ProofError::OtherRoot),
        }
    }
}

impl Checkpoint {
    /// Reads a checkpoint that one of these keys has signed.
    ///
    /// # Errors
    /// None of them has, or it is malformed.
    pub fn open_any(note: &str, keys: &[VerifyingKey]) -> Result<Self, NoteError> {
        let mut refused = NoteError::NoKey;
        for key in keys {
            match Self::open(note, key) {
                Err(NoteError::OtherKey(key)) => refused = NoteError::OtherKey(key),
                decided => return decided,
            }
        }
        Err(refused)
    }
}

/// The root of a tree of a size that has this leaf at a place, if these are the hashes beside its way up (RFC 9162 section
/// 2.1.3.2). `None` when they cannot be.
pub fn inclusion_root(index: u64, size: u64, leaf: Hash, path: &[Hash]) -> Option<Hash> {
    let mut last = size.checked_sub(1).filter(|last| index <= *last)?;
    let (mut at, mut root) = (index, leaf);
    for beside in path {
        if last == 0 {
            return None;
        }
        if at & 1 == 1 || at == last {
            root = Hash::of_node(beside, &root);
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            root = Hash::of_node(&root, beside);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    (last == 0).then_some(root)
}

/// Leaves from one on, up to before another, that make one subtree.
pub(crate) type Range = (u64, u64);

/// The subtrees whose roots prove that a leaf is in a tree, lowest first (RFC 9162 section 2.1.3.1). Together with the leaf
/// they are the whole tree.
pub(crate) fn inclusion_ranges(index: u64, size: u64) -> Vec<Range> {
    let (mut low, mut high) = (0, size);
    let mut ranges = Vec::new();
    while high - low > 1 {
        let middle = low + split(high - low);
        if index < middle {
            ranges.push((middle, high));
            high = middle;
        } else {
            ranges.push((low, middle));
            low = middle;
        }
    }
    ranges.reverse();
    ranges
}

/// The largest power of two below a number above 1.
fn split(count: u64) -> u64 {
    1 << (count - 1).ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Frontier;

    fn leaves(count: u64) -> Vec<Hash> {
        (0..count).map(|n| Hash::of_leaf(&n.to_be_bytes())).collect()
    }

    fn at(index: u64) -> usize {
        usize::try_from(index).expect("small")
    }

    fn root(leaves: &[Hash]) -> Hash {
        let mut tree = Frontier::default();
        leaves.iter().for_each(|leaf| tree.push(*leaf));
        tree.root()
    }

    fn roots(leaves: &[Hash], ranges: &[Range]) -> Vec<Hash> {
        ranges.iter().map(|&(low, high)| root(&leaves[at(low)..at(high)])).collect()
    }

    #[test]
    fn every_leaf_of_every_tree_is_proven_and_no_other() {
        let all = leaves(70);
        for size in 1..=70 {
            let tree = root(&all[..at(size)]);
            for index in 0..size {
                let path = roots(&all, &inclusion_ranges(index, size));
                let leaf = all[at(index)];
                assert_eq!(inclusion_root(index, size, leaf, &path), Some(tree), "{index} of {size}");
                assert_ne!(inclusion_root(index, size, all[at(69 - index)], &path), Some(tree));
                assert_ne!(inclusion_root(index ^ 1, size, leaf, &path), Some(tree));
                if let Some((_, shorter)) = path.split_last() {
                    assert_ne!(inclusion_root(index, size, leaf, shorter), Some(tree));
                }
                assert_eq!(inclusion_root(index, size, leaf, &[path.as_slice(), &[tree]].concat()), None);
            }
            assert_eq!(inclusion_root(size, size, all[0], &[]), None);
        }
        assert_eq!(inclusion_root(0, 0, all[0], &[]), None);
    }
}
