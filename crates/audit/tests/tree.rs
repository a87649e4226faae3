//! The tree is that of RFC 6962, as somebody else has built it.

use ct_merkle::mem_backed_tree::MemoryBackedTree;
use proptest::prelude::*;
use sha2::Sha256;
use sortie_audit::{Frontier, Hash};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn roots_are_those_of_another_tree(records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..300)) {
        let (mut ours, mut theirs) = (Frontier::default(), MemoryBackedTree::<Sha256, Vec<u8>>::new());
        for record in records {
            ours.push(Hash::of_leaf(&record));
            theirs.push(record);
            let (our, their) = (ours.root(), theirs.root());
            prop_assert_eq!(our.as_bytes().as_slice(), their.as_bytes().as_slice());
        }
    }
}
