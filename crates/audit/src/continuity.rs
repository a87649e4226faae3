//! That a log continues what was published of it before, proven from its files.

use std::path::{Path, PathBuf};

use crate::consistency::ConsistencyProver;
use crate::files::{ReadError, log_files};
use crate::hash::Hash;
use crate::read::{Records, frontier};
use crate::tree::Frontier;

/// Proves, again and again, that a growing log continues an earlier size of it. What was read once is not read again as
/// long as the sizes grow. All calls block on the disk.
#[derive(Debug)]
pub struct Continuity {
    dir: PathBuf,
    /// The tree up to where the last proof ended.
    tree: Frontier,
}

impl Continuity {
    /// Of the log in a directory.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), tree: Frontier::default() }
    }

    /// The proof (RFC 9162 section 2.1.4) that the first `to` records continue the first `from`; `None` when the records
    /// behind those are not here any more.
    ///
    /// # Errors
    /// The files cannot be read, or have fewer records.
    pub fn prove(&mut self, from: u64, to: u64) -> Result<Option<Vec<Hash>>, ReadError> {
        let Some(mut tree) = self.tree_before(from)? else { return Ok(None) };
        let mut records = Records::open(&self.dir, tree.size())?;
        while tree.size() < from {
            tree.push(self.leaf(&mut records, from)?);
        }
        let Some(mut prover) = ConsistencyProver::new(&tree, to) else {
            return Err(ReadError::Beyond { wanted: from, size: to });
        };
        while tree.size() < to {
            let leaf = self.leaf(&mut records, to)?;
            prover.push(leaf);
            tree.push(leaf);
        }
        self.tree = tree;
        Ok(prover.finish())
    }

    /// A tree of at most so many records, as large as it can be had without reading them.
    fn tree_before(&self, size: u64) -> Result<Option<Frontier>, ReadError> {
        let files = log_files(&self.dir)?;
        let Some(file) = files.iter().rev().find(|file| file.first <= size) else { return Ok(None) };
        if (file.first..=size).contains(&self.tree.size()) {
            return Ok(Some(self.tree.clone()));
        }
        let tree = frontier(&self.dir, file.first)?;
        let what = || "it does not begin with what a file begins with".to_owned();
        let damaged = || ReadError::Damaged { path: file.path.clone(), offset: 0, what: what() };
        tree.ok_or_else(damaged).map(Some)
    }

    fn leaf(&self, records: &mut Records, wanted: u64) -> Result<Hash, ReadError> {
        let size = records.next_seq();
        let record = records.read()?;
        record.map(|record| Hash::of_leaf(record.line)).ok_or(ReadError::Beyond { wanted, size })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kind::kinds;
    use crate::line::Draft;
    use crate::{is_consistent, log};

    #[test]
    fn a_log_that_grows_is_proven_to_continue() {
        let dir = tempfile::tempdir().expect("dir");
        let audit = dir.path().join("audit");
        let (origin, key_file) = ("test".to_owned(), dir.path().join("key"));
        // Small files, so that some proofs begin in the middle of the log.
        let options =
            log::Options { dir: audit.clone(), key_file, origin, max_file_bytes: 4096, ..log::Options::default() };
        let log = log::Log::open(options).expect("log");
        let mut continuity = Continuity::new(&audit);
        let roots = |size: u64| {
            let mut tree = Frontier::default();
            let mut records = Records::open(&audit, 0).expect("records");
            while tree.size() < size {
                tree.push(Hash::of_leaf(records.read().expect("read").expect("record").line));
            }
            tree.root()
        };
        let mut published = 1;
        for round in 1..20u64 {
            for n in 0..round {
                log.append_now(&Draft::new(kinds::CALL_DONE, &json!({"n": n})).expect("draft")).expect("appended");
            }
            let size = log.status().records;
            let proof = continuity.prove(published, size).expect("read").expect("there");
            assert!(is_consistent(published, roots(published), size, roots(size), &proof), "{published} to {size}");
            // What was not taken is asked for again from where it was.
            if round % 3 != 0 {
                published = size;
            }
        }
        assert!(continuity.prove(published, 100_000).is_err());
    }
}
