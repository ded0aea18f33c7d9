//! `meshctl stat`: what the proxies of a site have counted.

use std::collections::BTreeMap;

use clap::Args;
use mesh_api::v1;
use serde::Serialize;

use crate::{
    endpoint::Run,
    failure::Failure,
    output::{self, Format, Paint, Show, Table},
};

/// Arguments of `stat`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl stat\n  meshctl stat orders.shop\n  meshctl stat -o wide      (one row per proxy)"
)]
pub struct Stat {
    /// Only this service, <name>.<namespace>
    service: Option<String>,
}

impl Stat {
    /// Asks federation for the figures of the last interval.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let answer = run.admin().await?.stat(v1::StatRequest::default()).await?.into_inner();
        let seconds = seconds(answer.interval_ms);
        let wanted = |row: &v1::StatRow| match (&self.service, &row.stat) {
            (Some(service), Some(stat)) => &stat.service == service,
            (None, stat) => stat.is_some(),
            (Some(_), None) => false,
        };
        let rows: Vec<v1::StatRow> = answer.rows.into_iter().filter(wanted).collect();
        let by_proxy = format != Format::Table;
        output::print(
            format,
            &Figures { interval_s: seconds, rows: merge(rows, seconds, by_proxy) },
        )
    }
}

#[derive(Debug, Serialize)]
struct Figures {
    interval_s: f64,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize, Default, Clone)]
struct Row {
    service: String,
    direction: String,
    /// Of the proxy; empty where several are summed.
    spiffe_id: String,
    node: String,
    requests: u64,
    /// Percent; unset without a request.
    success: Option<f64>,
    rps: f64,
    p50_ms: Option<f64>,
    p95_ms: Option<f64>,
    p99_ms: Option<f64>,
    connections: u64,
}

/// Sums what several proxies say of one service and direction.
fn merge(rows: Vec<v1::StatRow>, seconds: f64, by_proxy: bool) -> Vec<Row> {
    let mut groups: BTreeMap<(String, String, String, String), v1::ServiceStat> = BTreeMap::new();
    for row in rows {
        let Some(stat) = row.stat else { continue };
        let (id, node) = if by_proxy { (row.spiffe_id, row.node) } else { Default::default() };
        let sum =
            groups.entry((stat.service.clone(), stat.direction.clone(), id, node)).or_default();
        sum.success += stat.success;
        sum.failure += stat.failure;
        sum.connections += stat.connections;
        add((&mut sum.bounds_ms, &mut sum.latency), (&stat.bounds_ms, &stat.latency));
    }
    let row = |((service, direction, spiffe_id, node), stat): (_, v1::ServiceStat)| {
        let requests = stat.success + stat.failure;
        Row {
            service,
            direction,
            spiffe_id,
            node,
            requests,
            success: share(stat.success, requests),
            rps: per_second(requests, seconds),
            p50_ms: quantile(&stat.bounds_ms, &stat.latency, 0.50),
            p95_ms: quantile(&stat.bounds_ms, &stat.latency, 0.95),
            p99_ms: quantile(&stat.bounds_ms, &stat.latency, 0.99),
            connections: stat.connections,
        }
    };
    groups.into_iter().map(row).collect()
}

/// Adds one histogram to another with the same bounds.
pub(crate) fn add(sum: (&mut Vec<f64>, &mut Vec<u64>), more: (&[f64], &[u64])) {
    let ((bounds, counts), (more_bounds, more_counts)) = (sum, more);
    if bounds.is_empty() {
        *bounds = more_bounds.to_vec();
    }
    if bounds == more_bounds {
        counts.resize(counts.len().max(more_counts.len()), 0);
        for (count, more) in counts.iter_mut().zip(more_counts) {
            *count += more;
        }
    }
}

/// `99.50%`, red where it is bad; empty where nothing was counted.
pub(crate) fn success_cell(percent: Option<f64>, paint: Paint) -> String {
    percent.map_or_else(String::new, |percent| {
        let text = format!("{percent:.2}%");
        if percent < 99.0 { paint.bad(&text) } else { paint.good(&text) }
    })
}

/// `1.5ms`
pub(crate) fn ms_cell(ms: Option<f64>) -> String {
    ms.map(|ms| format!("{ms:.1}ms")).unwrap_or_default()
}

/// Percent of those that went well; `None` if there were none.
pub(crate) fn share(success: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| 100.0 * as_f64(success) / as_f64(all))
}

/// Of so many in so long.
pub(crate) fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { as_f64(count) / seconds } else { 0.0 }
}

/// Of a report's milliseconds.
pub(crate) fn seconds(interval_ms: u64) -> f64 {
    f64::from(u32::try_from(interval_ms).unwrap_or(u32::MAX)) / 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "counts of an interval stay far below 2^53")]
fn as_f64(n: u64) -> f64 {
    n as f64
}

/// The value below which a share `q` of the counted lies, linear inside its
/// bucket; the last bucket (without an upper bound) answers its lower bound.
pub(crate) fn quantile(bounds: &[f64], counts: &[u64], q: f64) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    if total == 0 || bounds.is_empty() {
        return None;
    }
    let rank = q * as_f64(total);
    let mut below = 0.0;
    for (index, &n) in counts.iter().enumerate() {
        let here = as_f64(n);
        if n > 0 && below + here >= rank {
            let low = if index == 0 { 0.0 } else { *bounds.get(index - 1)? };
            let Some(&high) = bounds.get(index) else { return Some(low) };
            return Some(low + (high - low) * (rank - below).max(0.0) / here);
        }
        below += here;
    }
    bounds.last().copied()
}

impl Show for Figures {
    fn text(&self, wide: bool, paint: Paint) -> String {
        if self.rows.is_empty() {
            return "No traffic counted. Proxies report every few seconds; `meshctl status` lists them.\n".into();
        }
        let mut header = vec!["SERVICE", "DIRECTION"];
        if wide {
            header.extend(["PROXY", "NODE"]);
        }
        header.extend(["SUCCESS", "RPS", "P50", "P95", "P99", "TCP_CONN"]);
        let mut table = Table::new(&header);
        for row in &self.rows {
            let mut cells = vec![row.service.clone(), row.direction.clone()];
            if wide {
                cells.extend([row.spiffe_id.clone(), row.node.chars().take(8).collect()]);
            }
            cells.extend([
                success_cell(row.success, paint),
                format!("{:.1}", row.rps),
                ms_cell(row.p50_ms),
                ms_cell(row.p95_ms),
                ms_cell(row.p99_ms),
                row.connections.to_string(),
            ]);
            table.row(cells);
        }
        table.render(paint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(service: &str, node: &str, success: u64, latency: &[u64]) -> v1::StatRow {
        let stat = v1::ServiceStat {
            service: service.into(),
            direction: "outbound".into(),
            success,
            failure: 1,
            connections: 2,
            latency: latency.to_vec(),
            bounds_ms: vec![1.0, 2.0, 4.0],
        };
        v1::StatRow {
            stat: Some(stat),
            spiffe_id: "spiffe://w/ns/a/sa/b".into(),
            node: node.into(),
        }
    }

    #[test]
    fn rows_of_one_service_are_summed_unless_wide() {
        let rows =
            || vec![row("a.x", "n1", 9, &[10, 0, 0, 0]), row("a.x", "n2", 9, &[0, 0, 10, 0])];
        let merged = merge(rows(), 2.0, false);
        assert_eq!(merged.len(), 1);
        assert_eq!((merged[0].requests, merged[0].connections), (20, 4));
        assert_eq!(merged[0].success, Some(90.0));
        assert!((merged[0].rps - 10.0).abs() < 1e-9);
        assert_eq!(merge(rows(), 2.0, true).len(), 2);
    }

    #[test]
    fn quantiles_lie_in_their_bucket() {
        let bounds = [1.0, 2.0, 4.0];
        let cases: &[(&[u64], f64, Option<f64>)] = &[
            (&[0, 0, 0, 0], 0.5, None),
            (&[10, 0, 0, 0], 0.5, Some(0.5)),
            (&[0, 10, 0, 0], 1.0, Some(2.0)),
            (&[5, 0, 5, 0], 0.75, Some(3.0)),
            (&[0, 0, 0, 3], 0.99, Some(4.0)),
        ];
        for (counts, q, expected) in cases {
            assert_eq!(quantile(&bounds, counts, *q), *expected, "{counts:?} {q}");
        }
        assert_eq!(quantile(&[], &[3], 0.5), None);
    }
}
