//! Durations in little memory.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Buckets of each power of two, as a power of two. The middle of a bucket is at most
/// 1/64 (1.6 %) from what is in it.
const BITS: u32 = 5;

/// Microseconds up to 2^32 (71 minutes); what is longer counts as that.
const BUCKETS: usize = ((32 - BITS as usize) + 1) << BITS;

/// How often which duration was seen; 7 KiB, whatever their number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Stored", try_from = "Stored")]
pub struct Histogram {
    buckets: Box<[u64; BUCKETS]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: Box::new([0; BUCKETS]) }
    }
}

impl Histogram {
    /// One more.
    pub fn add(&mut self, duration: Duration) {
        let micros = u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
        let bucket = &mut self.buckets[bucket(micros)];
        *bucket = bucket.saturating_add(1);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, bucket| sum.saturating_add(*bucket))
    }

    /// What `share` (0 to 1) of them do not exceed, within 1.6 %; `None` of none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        let rank = (share.clamp(0.0, 1.0) * count as f64).ceil().max(1.0) as u64;
        let mut below = 0_u64;
        let of_rank = self.buckets.iter().position(|bucket| {
            below = below.saturating_add(*bucket);
            below >= rank
        });
        of_rank.map(|bucket| Duration::from_nanos(middle(bucket)))
    }
}

fn bucket(micros: u32) -> usize {
    let shift = (u32::BITS - micros.leading_zeros()).saturating_sub(BITS + 1);
    ((shift << BITS) + (micros >> shift)) as usize
}

/// In nanoseconds.
fn middle(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket >> BITS).saturating_sub(1);
    let least = bucket - (shift << BITS);
    // Up to the second power of two a bucket has one value.
    let half = if shift == 0 { 0 } else { 500 << shift };
    ((least * 1000) << shift) + half
}

/// Of which buckets there are how many.
#[derive(Serialize, Deserialize)]
struct Stored(Vec<(usize, u64)>);

impl From<Histogram> for Stored {
    fn from(histogram: Histogram) -> Self {
        let used = histogram.buckets.iter().copied().enumerate();
        Self(used.filter(|(_, count)| *count > 0).collect())
    }
}

impl TryFrom<Stored> for Histogram {
    type Error = String;

    fn try_from(Stored(used): Stored) -> Result<Self, String> {
        let mut histogram = Self::default();
        for (at, count) in used {
            let bucket = histogram.buckets.get_mut(at);
            *bucket.ok_or_else(|| format!("there is no bucket {at}"))? = count;
        }
        Ok(histogram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_near_what_they_were() {
        let mut value = 1_u64;
        while value < u64::from(u32::MAX) {
            let mut histogram = Histogram::default();
            histogram.add(Duration::from_micros(value));
            let told = histogram.quantile(0.5).unwrap().as_secs_f64() * 1e6;
            let error = (told - value as f64).abs() / value as f64;
            assert!(error <= 1.0 / 64.0, "{value} is told as {told}");
            value += value / 7 + 1;
        }
    }

    #[test]
    fn quantiles_are_of_all() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for millis in 1..=1000 {
            histogram.add(Duration::from_millis(millis));
        }
        for (share, millis) in
            [(0.0, 1.0), (0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (1.0, 1000.0)]
        {
            let told = histogram.quantile(share).unwrap().as_secs_f64() * 1e3;
            assert!((told - millis).abs() / millis < 0.02, "{share}: {told} ms");
        }
        assert_eq!(histogram.count(), 1000);
    }

    #[test]
    fn the_longest_has_a_bucket() {
        let mut histogram = Histogram::default();
        histogram.add(Duration::MAX);
        histogram.add(Duration::ZERO);
        assert_eq!(histogram.quantile(0.0), Some(Duration::ZERO));
        assert!(histogram.quantile(1.0).unwrap() > Duration::from_secs(4200));
    }

    #[test]
    fn it_is_the_same_once_stored() {
        let mut histogram = Histogram::default();
        for micros in [0, 1, 63, 64, 1_000_000, 1_000_000] {
            histogram.add(Duration::from_micros(micros));
        }
        let text = serde_json::to_string(&histogram).unwrap();
        assert_eq!(serde_json::from_str::<Histogram>(&text).unwrap(), histogram);
        assert!(serde_json::from_str::<Histogram>("[[9999,1]]").is_err());
    }
}
