//! `meshctl edges`: who talks to whom, as which identity.

use std::collections::BTreeMap;

use clap::Args;
use mesh_api::v1;
use serde::Serialize;

use super::{
    routes::short,
    stat::{per_second, seconds, share, success_cell},
};
use crate::{
    endpoint::Run,
    failure::Failure,
    output::{self, Format, Paint, Show, Table},
};

/// Of an end without an identity, as Linkerd says it.
const NO_TLS: &str = "no_tls_from_remote";
/// The same of a server.
const NOT_PROVIDED: &str = "not_provided_by_service_discovery";

/// Arguments of `edges`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl edges\n  meshctl edges payments.prod\n  meshctl edges -o wide         (identities, services, figures)\n  meshctl edges -o json | jq '.edges[] | select(.no_tls_reason != \"\")'"
)]
pub struct Edges {
    /// Only with this end: <account>.<namespace>, SPIFFE ID, or called service
    end: Option<String>,
}

impl Edges {
    /// Asks federation whom its proxies have had to do with in the last minute.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let wanted = v1::StatRequest { routes: false, edges: true };
        let answer = run.admin().await?.stat(wanted).await?.into_inner();
        let mut edges = merge(answer.edges, &answer.site, seconds(answer.interval_ms));
        edges.retain(|edge| self.end.as_ref().is_none_or(|end| edge.has(end)));
        output::print(format, &Shown { edges })
    }
}

#[derive(Debug, Serialize)]
struct Shown {
    edges: Vec<Edge>,
}

/// By Linkerd's names, with sites and services.
#[derive(Debug, Serialize, Clone, PartialEq)]
struct Edge {
    src: String,
    src_namespace: String,
    src_site: String,
    dst: String,
    dst_namespace: String,
    dst_site: String,
    service: String,
    client_id: String,
    server_id: String,
    /// Empty if both ends have proved who they are.
    no_tls_reason: String,
    /// Percent; unset if nothing ended in the last interval.
    success: Option<f64>,
    rps: f64,
    connections: u64,
}

impl Edge {
    fn has(&self, end: &str) -> bool {
        let ids = [&self.client_id, &self.server_id];
        self.service == end || ids.iter().any(|id| *id == end || short(id).0 == end)
    }
}

/// Both ends, where they are, and the service.
type Key = (String, String, String, String, String);

/// Both proxies of an edge within the site tell of it: the caller's word is
/// taken where there is one.
fn merge(rows: Vec<v1::EdgeRow>, site: &str, seconds: f64) -> Vec<Edge> {
    let (mut out, mut into) = (BTreeMap::<Key, v1::EdgeStat>::new(), BTreeMap::new());
    for row in rows {
        let Some(stat) = row.stat else { continue };
        let (own, other) = ((row.spiffe_id, site.to_owned()), (stat.spiffe_id, stat.site));
        let outbound = stat.direction == "outbound";
        let ((client, from), (server, to)) = if outbound { (own, other) } else { (other, own) };
        let told = if outbound { &mut out } else { &mut into };
        let sum: &mut v1::EdgeStat =
            told.entry((from, client, to, server, stat.service)).or_default();
        sum.success += stat.success;
        sum.failure += stat.failure;
        sum.connections += stat.connections;
    }
    for (key, stat) in into {
        out.entry(key).or_insert(stat);
    }
    out.into_iter().map(|(key, stat)| edge(key, &stat, seconds)).collect()
}

fn edge((from, client, to, server, service): Key, stat: &v1::EdgeStat, seconds: f64) -> Edge {
    let ((_, src, src_namespace), (_, dst, dst_namespace)) = (short(&client), short(&server));
    let no_tls_reason = match (client.is_empty(), server.is_empty()) {
        (true, _) => NO_TLS,
        (false, true) => NOT_PROVIDED,
        (false, false) => "",
    };
    let requests = stat.success + stat.failure;
    Edge {
        src,
        src_namespace,
        src_site: from,
        dst,
        dst_namespace,
        dst_site: to,
        service,
        client_id: client,
        server_id: server,
        no_tls_reason: no_tls_reason.to_owned(),
        success: share(stat.success, requests),
        rps: per_second(requests, seconds),
        connections: stat.connections,
    }
}

impl Show for Shown {
    fn text(&self, wide: bool, paint: Paint) -> String {
        if self.edges.is_empty() {
            return "No edges found. Proxies tell of the last minute; `meshctl status` lists them.\n"
                .into();
        }
        let mut header = vec!["SRC", "DST", "SRC_NS", "DST_NS", "SRC_SITE", "DST_SITE"];
        if wide {
            header.extend(["SERVICE", "SUCCESS", "RPS", "CLIENT_ID", "SERVER_ID"]);
        }
        header.push("SECURED");
        let mut table = Table::new(&header);
        for edge in &self.edges {
            let places = [&edge.src, &edge.dst, &edge.src_namespace, &edge.dst_namespace];
            let mut cells: Vec<String> = places.map(Clone::clone).into();
            cells.extend([edge.src_site.clone(), edge.dst_site.clone()]);
            if wide {
                cells.push(edge.service.clone());
                cells.push(success_cell(edge.success, paint));
                cells.push(format!("{:.1}", edge.rps));
                cells.extend([edge.client_id.clone(), edge.server_id.clone()]);
            }
            cells.push(match edge.no_tls_reason.as_str() {
                "" => paint.good("√"),
                reason => paint.warn(reason),
            });
            table.row(cells);
        }
        table.render(paint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDERS: &str = "spiffe://west.example/ns/shop/sa/orders";
    const WEB: &str = "spiffe://west.example/ns/shop/sa/web";
    const PAYMENTS: &str = "spiffe://east.example/ns/prod/sa/payments";

    fn row(own: &str, direction: &str, (other, site): (&str, &str), success: u64) -> v1::EdgeRow {
        let stat = v1::EdgeStat {
            service: if other == PAYMENTS { "payments.prod" } else { "orders.shop" }.into(),
            direction: direction.into(),
            spiffe_id: other.into(),
            site: site.into(),
            success,
            ..v1::EdgeStat::default()
        };
        v1::EdgeRow { stat: Some(stat), spiffe_id: own.into(), node: "n".into() }
    }

    #[test]
    fn an_edge_that_both_ends_tell_of_is_one() {
        let rows = vec![
            row(WEB, "outbound", (ORDERS, "west"), 10),
            row(WEB, "outbound", (ORDERS, "west"), 10),
            row(ORDERS, "inbound", (WEB, "west"), 19),
            row(ORDERS, "outbound", (PAYMENTS, "east"), 0),
            row(ORDERS, "inbound", (PAYMENTS, "east"), 5),
            row(ORDERS, "inbound", ("", ""), 1),
        ];
        // Their own word of a call is of another service, in the other site.
        let mut rows = rows;
        rows[4].stat.as_mut().unwrap().service = "orders.shop".into();
        let shown = Shown { edges: merge(rows, "west", 10.0) };
        let text = shown.text(false, Paint::PLAIN);
        let cells: Vec<Vec<&str>> =
            text.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        let wanted = [
            ["-", "orders", "-", "shop", "-", "west", "no_tls_from_remote"],
            ["payments", "orders", "prod", "shop", "east", "west", "√"],
            ["orders", "payments", "shop", "prod", "west", "east", "√"],
            ["web", "orders", "shop", "shop", "west", "west", "√"],
        ];
        assert_eq!(cells, wanted);
        assert!((shown.edges[3].rps - 2.0).abs() < 1e-9, "the callers' word, summed");
        assert_eq!(shown.edges[2].success, None, "quiet");
    }

    #[test]
    fn an_end_can_be_asked_for() {
        let edges = merge(vec![row(ORDERS, "outbound", (PAYMENTS, "east"), 1)], "west", 1.0);
        let edge = &edges[0];
        assert!(edge.has("payments.prod") && edge.has(ORDERS) && edge.has("orders.shop"));
        assert!(!edge.has("web.shop"));
    }
}
