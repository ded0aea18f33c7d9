//! Metric handles by label set, so that a request hashes no label and takes no
//! lock that another worker might hold.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::{counter::Counter, histogram::Histogram};

use crate::{
    app::Shared,
    metrics::RequestLabels,
    stats::{Figures, Flow},
};

/// Label sets of one worker that are kept; the oldest makes room.
const KEPT: usize = 32;

/// What one kind of request is counted in.
#[derive(Debug, Clone)]
pub struct Handles {
    /// Requests, and opaque connections, that have ended.
    pub requests: Counter,
    /// Milliseconds until the head of the response.
    pub latency_ms: Histogram,
    /// What federation is told; `None` if no service of the mesh was named.
    pub figures: Option<Arc<Figures>>,
}

/// The handles that one worker used last.
#[derive(Debug, Default)]
pub struct Resolved(Mutex<Ring>);

#[derive(Debug, Default)]
struct Ring {
    entries: Vec<(RequestLabels, Handles)>,
    next: usize,
}

impl Resolved {
    /// The handles for `labels`. Clients choose names: only `known` ones
    /// become labels, others are counted without.
    pub fn of(
        &self,
        shared: &Shared,
        labels: RequestLabels,
        flow: Flow,
        known: impl FnOnce() -> bool,
    ) -> Handles {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, handles)) = ring.entries.iter().find(|(kept, _)| *kept == labels) {
            return handles.clone();
        }
        let mut counted = labels.clone();
        let service = counted.target.service.take().filter(|_| known());
        let figures = service.as_ref().map(|service| shared.stats.of(service, flow));
        counted.target.service = service;
        let handles = Handles {
            latency_ms: shared.metrics.latency_ms.get_or_create_owned(&counted.target),
            requests: shared.metrics.requests.get_or_create_owned(&counted),
            figures,
        };
        // A name that is unknown now may be known a moment later.
        if handles.figures.is_some() {
            ring.keep(labels, handles.clone());
        }
        handles
    }
}

impl Ring {
    fn keep(&mut self, labels: RequestLabels, handles: Handles) {
        if self.entries.len() < KEPT {
            self.entries.push((labels, handles));
            return;
        }
        self.entries[self.next] = (labels, handles);
        self.next = (self.next + 1) % KEPT;
    }
}
