//! Labels that many series share: written once, found by one number.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};
use rustc_hash::FxHasher;

/// Name and value.
pub type Pair = (&'static str, String);

/// In the order in which they are shown. All of one family must be made in the
/// same way: what was there at first and what was added are compared apart.
#[derive(Debug, Clone)]
pub struct Labels {
    first: Arc<[Pair]>,
    added: Vec<Pair>,
    hash: u64,
}

impl Labels {
    /// With these.
    pub fn new(pairs: Vec<Pair>) -> Self {
        let hash = hashed(0, &pairs);
        Self { first: pairs.into(), added: Vec::new(), hash }
    }

    /// The same and more.
    pub fn with<const N: usize>(&self, more: [Pair; N]) -> Self {
        let hash = hashed(self.hash, &more);
        let added = self.added.iter().cloned().chain(more).collect();
        Self { first: self.first.clone(), added, hash }
    }
}

fn hashed(before: u64, pairs: &[Pair]) -> u64 {
    let mut hasher = FxHasher::default();
    (before, pairs).hash(&mut hasher);
    hasher.finish()
}

impl PartialEq for Labels {
    fn eq(&self, other: &Self) -> bool {
        let same_first = || Arc::ptr_eq(&self.first, &other.first) || self.first == other.first;
        self.hash == other.hash && self.added == other.added && same_first()
    }
}

impl Eq for Labels {}

impl Hash for Labels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        for pair in self.first.iter().chain(&self.added) {
            pair.encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_alike_is_the_same() {
        let pair = |name, value: &str| (name, value.to_owned());
        let labels = |value| Labels::new(vec![pair("a", value)]).with([pair("b", "2")]);
        assert_eq!(labels("1"), labels("1"));
        assert_eq!(labels("1").hash, labels("1").hash);
        assert_ne!(labels("1"), labels("2"));
        assert_ne!(labels("1"), Labels::new(vec![pair("a", "1")]));
        assert_ne!(labels("1"), Labels::new(vec![pair("a", "1")]).with([pair("b", "3")]));
    }
}
