//! Families of series that come and go with the traffic, and a histogram that
//! is counted in without a lock.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mesh_runtime::clock;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric, counter::Counter},
};
use tokio::time::Instant;

/// How long a series is shown that nobody holds.
pub const IDLE: Duration = Duration::from_secs(600);
/// Series of one family. Their labels are names of the snapshot and verified
/// identities, so this many means a very large mesh.
pub const MAX_SERIES: usize = 8192;

/// The series of one metric by label set. Whoever counts holds its series; one
/// that nobody has held for [`IDLE`] is forgotten.
#[derive(Debug)]
pub struct Series<S, M> {
    held: Arc<Mutex<Table<S, M>>>,
    new: fn() -> M,
    /// Label sets that there was no room for.
    refused: Counter,
}

type Table<S, M> = HashMap<Arc<S>, Held<M>>;

#[derive(Debug)]
struct Held<M> {
    metric: Arc<M>,
    used: Instant,
}

impl<S, M> Clone for Series<S, M> {
    fn clone(&self) -> Self {
        Self { held: self.held.clone(), new: self.new, refused: self.refused.clone() }
    }
}

impl<S: Hash + Eq + Clone, M> Series<S, M> {
    /// None yet; `refused` counts what [`MAX_SERIES`] leaves out.
    pub fn new(new: fn() -> M, refused: Counter) -> Self {
        Self { held: Arc::default(), new, refused }
    }

    fn held(&self) -> MutexGuard<'_, Table<S, M>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The series with these labels. Keep it: finding it takes a lock. One that
    /// there is no room for is counted in and never shown.
    pub fn of(&self, labels: &S) -> Arc<M> {
        let now = clock::monotonic();
        let mut held = self.held();
        if let Some(series) = held.get_mut(labels) {
            series.used = now;
            return series.metric.clone();
        }
        let metric = Arc::new((self.new)());
        if held.len() < MAX_SERIES {
            held.insert(Arc::new(labels.clone()), Held { metric: metric.clone(), used: now });
        } else {
            self.refused.inc();
        }
        metric
    }

    /// Forgets what nobody has held for [`IDLE`].
    pub fn sweep(&self, now: Instant) {
        self.held().retain(|_, series| {
            if Arc::strong_count(&series.metric) > 1 {
                series.used = now;
            }
            now.saturating_duration_since(series.used) < IDLE
        });
    }
}

impl<S, M> EncodeMetric for Series<S, M>
where
    S: EncodeLabelSet + Hash + Eq + Clone,
    M: EncodeMetric + TypedMetric,
{
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        // Writing takes longer than a worker may wait.
        let pair = |(labels, series): (&Arc<S>, &Held<M>)| (labels.clone(), series.metric.clone());
        let shown: Vec<_> = self.held().iter().map(pair).collect();
        for (labels, metric) in &shown {
            metric.encode(encoder.encode_family(&**labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }

    fn is_empty(&self) -> bool {
        self.held().is_empty()
    }
}

/// Milliseconds by bucket.
#[derive(Debug)]
pub struct Latency {
    bounds: &'static [f64],
    /// One more than bounds: the rest.
    counts: Box<[AtomicU64]>,
    sum_us: AtomicU64,
}

impl Latency {
    /// With these upper bounds, in milliseconds and in order.
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum_us: AtomicU64::new(0) }
    }

    /// Counts one.
    pub fn observe(&self, latency: Duration) {
        let ms = latency.as_secs_f64() * 1000.0;
        let bucket = self.bounds.partition_point(|bound| *bound < ms);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }
}

impl TypedMetric for Latency {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.sum_us.load(Ordering::Relaxed) as f64 / 1000.0;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Labels = [(&'static str, u64); 1];
    type Counted = Series<Vec<(&'static str, u64)>, Counter>;

    fn family() -> Counted {
        Series::new(Counter::default, Counter::default())
    }

    fn labels(n: u64) -> Vec<(&'static str, u64)> {
        let labels: Labels = [("n", n)];
        labels.to_vec()
    }

    #[test]
    fn what_nobody_uses_is_forgotten_and_what_somebody_holds_is_not() {
        let family = family();
        let start = clock::monotonic();
        let kept = family.of(&labels(1));
        kept.inc();
        family.of(&labels(2)).inc();
        family.sweep(start + IDLE - Duration::from_secs(1));
        assert_eq!(family.held().len(), 2);
        let late = start + IDLE + Duration::from_secs(1);
        family.sweep(late);
        assert_eq!(family.held().keys().collect::<Vec<_>>(), [&Arc::new(labels(1))]);
        drop(kept);
        family.sweep(late + IDLE - Duration::from_secs(1));
        assert_eq!(family.of(&labels(1)).get(), 1);
        family.sweep(late + 2 * IDLE);
        assert!(family.is_empty());
    }

    #[test]
    fn there_is_an_end_to_series() {
        let family = family();
        for n in 0..MAX_SERIES as u64 + 3 {
            family.of(&labels(n)).inc();
        }
        assert_eq!((family.held().len(), family.refused.get()), (MAX_SERIES, 3));
        assert_eq!(family.of(&labels(0)).get(), 1);
    }

    #[test]
    fn a_latency_is_in_the_bucket_that_bounds_it() {
        let latency = Latency::new(&[1.0, 10.0]);
        for us in [1, 1000, 1001, 60_000_000] {
            latency.observe(Duration::from_micros(us));
        }
        let counts: Vec<_> = latency.counts.iter().map(|n| n.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, [2, 1, 1]);
        assert_eq!(latency.sum_us.load(Ordering::Relaxed), 60_002_002);
    }
}
