//! What is counted of one agent.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError, atomic::AtomicU64, atomic::Ordering},
};

use super::Error;

/// Since the client was made. Clones of a client share them.
#[derive(Debug, Default)]
pub struct Figures {
    index: AtomicU64,
    /// Kinds are few: see [`Error::kind`].
    errors: Mutex<BTreeMap<&'static str, u64>>,
}

impl Figures {
    /// `X-Consul-Index` of the last list that was answered; 0 before the first.
    pub fn index(&self) -> u64 {
        self.index.load(Ordering::Relaxed)
    }

    /// Calls that failed, by [`Error::kind`].
    pub fn errors(&self) -> BTreeMap<&'static str, u64> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn answered(&self, index: u64) {
        self.index.store(index, Ordering::Relaxed);
    }

    /// The same result, counted if it is an error.
    pub(super) fn counted<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result {
            let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
            *errors.entry(error.kind()).or_default() += 1;
        }
        result
    }
}
