//! `meshctl routes`: what the callers of each route saw.

use std::collections::BTreeMap;

use clap::Args;
use mesh_api::v1;
use serde::Serialize;

use super::stat::{add, ms_cell, per_second, quantile, seconds, share, success_cell};
use crate::{
    endpoint::Run,
    failure::Failure,
    output::{self, Format, Paint, Show, Table},
};

/// What no route took, as Linkerd calls it.
const DEFAULT: &str = "[DEFAULT]";

/// Arguments of `routes`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl routes\n  meshctl routes payments.prod\n  meshctl routes --from orders.shop -o wide   (answers and attempts apart)"
)]
pub struct Routes {
    /// Only routes of this service, <name>.<namespace>
    service: Option<String>,
    /// Only as this caller saw them, <account>.<namespace> or SPIFFE ID
    #[arg(long, value_name = "CALLER")]
    from: Option<String>,
}

impl Routes {
    /// Asks federation for the figures of the last interval.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let wanted = v1::StatRequest { routes: true, edges: false };
        let answer = run.admin().await?.stat(wanted).await?.into_inner();
        let seconds = seconds(answer.interval_ms);
        let rows = answer.routes.into_iter().filter(|row| self.wants(row)).collect();
        output::print(format, &Figures { interval_s: seconds, routes: merge(rows, seconds) })
    }

    fn wants(&self, row: &v1::RouteRow) -> bool {
        let authority = row.stat.as_ref().map_or("", |stat| &stat.authority);
        let service = authority.rsplit_once(':').map_or(authority, |(service, _)| service);
        let from = |from: &String| *from == row.spiffe_id || *from == short(&row.spiffe_id).0;
        self.service.as_deref().is_none_or(|wanted| wanted == service)
            && self.from.as_ref().is_none_or(from)
    }
}

/// `<account>.<namespace>` of a workload, and its parts; else the ID itself.
pub(crate) fn short(id: &str) -> (String, String, String) {
    let parsed: Option<mesh_core::SpiffeId> = id.parse().ok();
    match parsed.as_ref().map(mesh_core::SpiffeId::subject) {
        Some(mesh_core::name::Subject::Workload { namespace, account }) => {
            (format!("{account}.{namespace}"), account.to_string(), namespace.to_string())
        }
        _ => (id.to_owned(), id.to_owned(), String::new()),
    }
}

#[derive(Debug, Serialize)]
struct Figures {
    interval_s: f64,
    routes: Vec<Row>,
}

/// By Linkerd's names.
#[derive(Debug, Serialize)]
struct Row {
    route: String,
    authority: String,
    /// Percent; of answers as callers saw them.
    effective_success: Option<f64>,
    effective_rps: f64,
    /// The same of attempts.
    actual_success: Option<f64>,
    actual_rps: f64,
    latency_ms_p50: Option<f64>,
    latency_ms_p95: Option<f64>,
    latency_ms_p99: Option<f64>,
}

/// Sums what several callers saw of one route.
fn merge(rows: Vec<v1::RouteRow>, seconds: f64) -> Vec<Row> {
    let mut groups: BTreeMap<(String, String), v1::RouteStat> = BTreeMap::new();
    for stat in rows.into_iter().filter_map(|row| row.stat) {
        let sum = groups.entry((stat.authority, stat.route)).or_default();
        sum.success += stat.success;
        sum.failure += stat.failure;
        sum.repeated_attempts += stat.repeated_attempts;
        add((&mut sum.bounds_ms, &mut sum.latency), (&stat.bounds_ms, &stat.latency));
    }
    let row = |((authority, route), stat): ((String, String), v1::RouteStat)| {
        let answers = stat.success + stat.failure;
        let attempts = answers + stat.repeated_attempts;
        let latency = |q| quantile(&stat.bounds_ms, &stat.latency, q);
        Row {
            route: if route.is_empty() { DEFAULT.to_owned() } else { route },
            authority,
            effective_success: share(stat.success, answers),
            effective_rps: per_second(answers, seconds),
            actual_success: share(stat.success, attempts),
            actual_rps: per_second(attempts, seconds),
            latency_ms_p50: latency(0.50),
            latency_ms_p95: latency(0.95),
            latency_ms_p99: latency(0.99),
        }
    };
    groups.into_iter().map(row).collect()
}

impl Show for Figures {
    fn text(&self, wide: bool, paint: Paint) -> String {
        if self.routes.is_empty() {
            return "No requests counted. Callers' proxies report every few seconds; `meshctl stat` shows who has traffic.\n".into();
        }
        let mut header = vec!["ROUTE", "SERVICE"];
        if wide {
            header.extend(["EFFECTIVE_SUCCESS", "EFFECTIVE_RPS", "ACTUAL_SUCCESS", "ACTUAL_RPS"]);
        } else {
            header.extend(["SUCCESS", "RPS"]);
        }
        header.extend(["LATENCY_P50", "LATENCY_P95", "LATENCY_P99"]);
        let mut table = Table::new(&header);
        for row in &self.routes {
            let mut cells = vec![row.route.clone(), row.authority.clone()];
            cells.push(success_cell(row.effective_success, paint));
            cells.push(format!("{:.1}", row.effective_rps));
            if wide {
                cells.push(success_cell(row.actual_success, paint));
                cells.push(format!("{:.1}", row.actual_rps));
            }
            let latencies = [row.latency_ms_p50, row.latency_ms_p95, row.latency_ms_p99];
            cells.extend(latencies.map(ms_cell));
            table.row(cells);
        }
        table.render(paint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(caller: &str, route: &str, success: u64, repeated_attempts: u64) -> v1::RouteRow {
        let stat = v1::RouteStat {
            authority: "payments.prod:80".into(),
            route: route.into(),
            success,
            failure: 2,
            repeated_attempts,
            latency: vec![success + 2, 0],
            bounds_ms: vec![2.0],
        };
        let spiffe_id = format!("spiffe://west.example/ns/shop/sa/{caller}");
        v1::RouteRow { stat: Some(stat), spiffe_id, node: String::new() }
    }

    #[test]
    fn callers_are_summed_and_attempts_are_told_apart() {
        let rows = vec![row("a", "pay", 8, 10), row("b", "pay", 8, 0), row("a", "", 0, 0)];
        let figures = Figures { interval_s: 10.0, routes: merge(rows, 10.0) };
        let text = figures.text(true, Paint::PLAIN);
        let cells: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        let none = ["[DEFAULT]", "payments.prod:80", "0.00%", "0.2", "0.00%", "0.2"];
        assert_eq!(cells[1][..6], none);
        let pay = [
            "pay",
            "payments.prod:80",
            "80.00%",
            "2.0",
            "53.33%",
            "3.0",
            "1.0ms",
            "1.9ms",
            "2.0ms",
        ];
        assert_eq!(cells[2], pay);
        assert!(!figures.text(false, Paint::PLAIN).contains("ACTUAL"));
    }

    #[test]
    fn a_service_and_a_caller_can_be_asked_for() {
        let ask = |service: Option<&str>, from: Option<&str>| {
            let (service, from) = (service.map(Into::into), from.map(Into::into));
            Routes { service, from }.wants(&row("a", "pay", 1, 0))
        };
        assert!(ask(None, None) && ask(Some("payments.prod"), Some("a.shop")));
        assert!(ask(None, Some("spiffe://west.example/ns/shop/sa/a")));
        assert!(!ask(Some("orders.shop"), None) && !ask(None, Some("b.shop")));
    }
}
