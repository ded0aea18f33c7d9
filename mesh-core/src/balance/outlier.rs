//! Who fails more often than the others.

/// Below the mean by less than this is never an outlier: among endpoints that
/// almost never fail, one failure is many deviations.
const LEAST_GAP: f64 = 0.05;

/// The success rate below which an endpoint is an outlier: so many standard
/// deviations below the mean of all, and at least five points.
pub(super) fn lowest_rate(rates: impl Iterator<Item = f64> + Clone, deviations: f64) -> f64 {
    let n = rates.clone().count().max(1) as f64;
    let mean = rates.clone().sum::<f64>() / n;
    let variance = rates.map(|rate| (rate - mean).powi(2)).sum::<f64>() / n;
    mean - (deviations * variance.sqrt()).max(LEAST_GAP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_drawn_by_deviations_and_at_least_five_points() {
        let lowest = |rates: &[f64]| lowest_rate(rates.iter().copied(), 1.9);
        // Mean 0.9, deviation 0.3.
        let mut ten = [1.0; 10];
        ten[4] = 0.0;
        assert!((lowest(&ten) - 0.33).abs() < 1e-9);
        ten[4] = 0.999;
        assert!((lowest(&ten) - 0.9499).abs() < 1e-9);
        // All fail alike: nobody is an outlier.
        assert!((lowest(&[0.5; 10]) - 0.45).abs() < 1e-9);
    }
}
