//! What the demo found: one document, and the same for a person.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{load::Flow, meter::Meter, scenario::Phase, trail::Trail};
use crate::{
    command::view,
    output::{Paint, Show, Table},
};

/// The whole result.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Every request succeeded over mTLS and every phase moved its requests.
    pub(crate) ok: bool,
    /// What is not as it must be; empty if `ok`.
    pub(crate) problems: Vec<String>,
    /// Of counting, without start and end.
    pub(crate) duration_s: f64,
    /// From the start of the first process to an answer in every flow.
    pub(crate) ready_after_s: f64,
    pub(crate) block_udp: bool,
    /// Datagrams that the blocked UDP addresses have swallowed.
    pub(crate) swallowed_datagrams: u64,
    pub(crate) flows: Vec<FlowReport>,
    pub(crate) phases: Vec<Phase>,
    pub(crate) links: Vec<LinkReport>,
    pub(crate) versions: BTreeMap<&'static str, String>,
}

/// One flow.
#[derive(Debug, Serialize, Clone)]
pub(crate) struct FlowReport {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) service: String,
    pub(crate) requests: u64,
    pub(crate) successes: u64,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) rps: f64,
    /// `direct`, `via gateway` or `reverse`: how most requests travelled. A
    /// request that crosses a link and ends in a session that its machine
    /// dialled is `reverse`.
    pub(crate) path: String,
    /// As the proxy of the caller logged it.
    pub(crate) paths_sent: BTreeMap<String, u64>,
    /// As the proxy of the callee logged it.
    pub(crate) paths_received: BTreeMap<String, u64>,
    /// `quic` or `tls`: of the link it crosses; unset if it crosses none.
    pub(crate) transport: Option<String>,
    /// SPIFFE ID as the destination verified it.
    pub(crate) caller: String,
    /// Requests whose caller the destination has verified.
    pub(crate) verified: u64,
    /// By site.
    pub(crate) answered_by: BTreeMap<String, u64>,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p95_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
}

/// A link as one of its sites sees it.
#[derive(Debug, Serialize, Clone)]
pub(crate) struct LinkReport {
    pub(crate) seen_from: &'static str,
    #[serde(flatten)]
    pub(crate) link: view::Link,
}

/// What one flow has come to, from all that is known of it.
pub(crate) fn flow_report(
    flow: &Flow,
    meter: &Meter,
    trail: &Trail,
    links: &[LinkReport],
    now: Duration,
) -> FlowReport {
    let machine = flow.caller;
    let logged = trail.callers(flow.service, flow.port, machine.site.trust_domain);
    // Opaque bytes carry no header: there the destination's log tells.
    let callers = if meter.callers.is_empty() { &logged } else { &meter.callers };
    let caller = most(callers);
    let paths_sent = trail.sent(machine.name, flow.service, flow.port);
    let paths_received = trail.arrived(flow.service, flow.port, &caller);
    let transport = transport(flow, meter, &paths_sent, links);
    FlowReport {
        name: flow.name,
        title: flow.title,
        service: format!("{}:{}", flow.service, flow.port),
        requests: meter.requests,
        successes: meter.successes,
        errors: meter.errors.clone(),
        rps: meter.rate(now),
        path: path(&paths_sent, &paths_received),
        paths_sent,
        paths_received,
        transport,
        verified: callers.get(&caller).copied().unwrap_or_default(),
        caller,
        answered_by: meter.sites.clone(),
        p50_ms: round(meter.latency.quantile_ms(0.50)),
        p95_ms: round(meter.latency.quantile_ms(0.95)),
        p99_ms: round(meter.latency.quantile_ms(0.99)),
    }
}

fn round(ms: Option<f64>) -> Option<f64> {
    ms.map(|ms| (ms * 1000.0).round() / 1000.0)
}

fn most(counts: &BTreeMap<String, u64>) -> String {
    let largest = counts.iter().max_by_key(|(_, count)| **count);
    largest.map(|(name, _)| name.clone()).unwrap_or_default()
}

/// The caller's proxy knows the first leg, the callee's the last.
fn path(sent: &BTreeMap<String, u64>, received: &BTreeMap<String, u64>) -> String {
    let first = most(sent);
    if first == "via gateway" && most(received) == "reverse" { "reverse".to_owned() } else { first }
}

/// The transport of the link between the caller's site and the other one, if
/// requests have crossed it.
fn transport(
    flow: &Flow,
    meter: &Meter,
    sent: &BTreeMap<String, u64>,
    links: &[LinkReport],
) -> Option<String> {
    let own = flow.caller.site.name;
    let crossed = sent.contains_key("via gateway") || meter.sites.keys().any(|site| site != own);
    if !crossed {
        return None;
    }
    // Both ends report the same tunnels; either will do.
    let mut seen: Vec<&LinkReport> = links.iter().collect();
    seen.sort_by_key(|link| link.seen_from != own);
    seen.into_iter().map(|link| link.link.transports()).find(|transport| !transport.is_empty())
}

impl Report {
    /// Fills `ok` and `problems`; `None` if somebody ended the run early.
    pub(crate) fn judge(&mut self, planned_phases: Option<usize>) {
        let mut problems = Vec::new();
        for flow in &self.flows {
            problems.extend(flow_problems(flow));
        }
        // What Ctrl-C has cut short is no failure.
        let whole = match planned_phases {
            Some(_) => self.phases.len(),
            None => self.phases.len().saturating_sub(1),
        };
        for (index, phase) in self.phases.iter().enumerate() {
            if phase.failed > 0 {
                problems.push(format!("{}: {} requests failed", phase.what, phase.failed));
            }
            if phase.moved_after_ms.is_none() && index < whole {
                problems.push(format!("{}: no request moved to {}", phase.what, phase.moved_to));
            }
        }
        if let Some(planned) = planned_phases.filter(|planned| self.phases.len() < *planned) {
            problems.push(format!("only {} of {planned} phases ran", self.phases.len()));
        }
        if self.block_udp {
            let quic = self.links.iter().filter(|link| link.link.transports() != "tls");
            problems.extend(quic.map(|link| {
                format!(
                    "UDP is blocked and the link seen from {} is {:?}",
                    link.seen_from,
                    link.link.transports()
                )
            }));
            if self.swallowed_datagrams == 0 {
                problems.push("UDP is blocked and nobody has tried it".to_owned());
            }
        }
        self.ok = problems.is_empty();
        self.problems = problems;
    }
}

fn flow_problems(flow: &FlowReport) -> Vec<String> {
    let mut problems = Vec::new();
    let mut problem = |text: String| problems.push(format!("{}: {text}", flow.title));
    if flow.requests == 0 {
        problem("no request was made".into());
    }
    for (error, count) in &flow.errors {
        problem(format!("{count} failed: {error}"));
    }
    if flow.verified < flow.successes {
        let (verified, all) = (flow.verified, flow.successes);
        problem(format!("the destination has verified the caller of {verified} of {all} requests"));
    }
    if flow.path.is_empty() {
        problem("its proxy has logged no path".into());
    }
    if flow.path == "via gateway" && flow.transport.is_none() {
        problem("it crosses a link whose transport nobody reports".into());
    }
    problems
}

impl Show for Report {
    fn text(&self, _wide: bool, paint: Paint) -> String {
        let mut text = flow_table(&self.flows, paint);
        text.push_str(&phase_lines(&self.phases, paint));
        for link in &self.links {
            for tunnel in link.link.tunnels.iter().filter(|tunnel| !tunnel.reason.is_empty()) {
                text.push_str(&format!(
                    "link {} → {}: {} because {}\n",
                    link.seen_from, link.link.site, tunnel.transport, tunnel.reason
                ));
            }
        }
        if self.block_udp {
            text.push_str(&format!(
                "{} datagrams swallowed by the blocked UDP addresses\n",
                self.swallowed_datagrams
            ));
        }
        let all: u64 = self.flows.iter().map(|flow| flow.requests).sum();
        for problem in &self.problems {
            text.push_str(&format!("{} {problem}\n", paint.bad("✗")));
        }
        let verdict = if self.ok {
            paint.good(&format!(
                "✓ {all} requests in {:.0} s, every one answered over mTLS",
                self.duration_s
            ))
        } else {
            paint.bad(&format!(
                "✗ {all} requests in {:.0} s, not all as they must be",
                self.duration_s
            ))
        };
        text.push_str(&format!("{verdict}\n"));
        text
    }
}

/// One row per flow.
pub(crate) fn flow_table(flows: &[FlowReport], paint: Paint) -> String {
    let mut table = Table::new(&[
        "FLOW",
        "REQUESTS",
        "OK",
        "RPS",
        "P50 ms",
        "P95 ms",
        "P99 ms",
        "PATH",
        "LINK",
        "CALLER, AS THE CALLEE SAW IT",
    ]);
    for flow in flows {
        let ms = |value: Option<f64>| value.map(|ms| format!("{ms:.1}")).unwrap_or_default();
        table.row([
            flow.title.to_owned(),
            flow.requests.to_string(),
            success(flow, paint),
            format!("{:.0}", flow.rps),
            ms(flow.p50_ms),
            ms(flow.p95_ms),
            ms(flow.p99_ms),
            flow.path.clone(),
            flow.transport.clone().unwrap_or_default(),
            flow.caller.trim_start_matches("spiffe://").to_owned(),
        ]);
    }
    table.render(paint)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn success(flow: &FlowReport, paint: Paint) -> String {
    if flow.requests == 0 {
        return String::new();
    }
    if flow.successes == flow.requests {
        return paint.good("100%");
    }
    paint.bad(&format!("{:.2}%", 100.0 * flow.successes as f64 / flow.requests as f64))
}

/// What was done to vm2 and what requests did.
pub(crate) fn phase_lines(phases: &[Phase], paint: Paint) -> String {
    let mut text = String::new();
    for phase in phases {
        let moved = match phase.moved_after_ms {
            Some(ms) => format!("{} answers after {ms} ms", phase.moved_to),
            None => format!("waiting for {}", phase.moved_to),
        };
        let failed = match phase.failed {
            0 => paint.good("none failed"),
            n => paint.bad(&format!("{n} failed")),
        };
        text.push_str(&format!("{:6.1}s  {}: {moved}, {failed}\n", phase.at_s, phase.what));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> FlowReport {
        FlowReport {
            name: "http",
            title: "VM → east",
            service: "a.b:http".into(),
            requests: 10,
            successes: 10,
            errors: BTreeMap::new(),
            rps: 1.0,
            path: "via gateway".into(),
            paths_sent: BTreeMap::new(),
            paths_received: BTreeMap::new(),
            transport: Some("quic".into()),
            caller: "spiffe://w/ns/a/sa/b".into(),
            verified: 10,
            answered_by: BTreeMap::new(),
            p50_ms: Some(1.0),
            p95_ms: Some(2.0),
            p99_ms: Some(3.0),
        }
    }

    fn report(flow: FlowReport) -> Report {
        Report {
            ok: false,
            problems: Vec::new(),
            duration_s: 20.0,
            ready_after_s: 3.0,
            block_udp: false,
            swallowed_datagrams: 0,
            flows: vec![flow],
            phases: Vec::new(),
            links: Vec::new(),
            versions: BTreeMap::new(),
        }
    }

    #[test]
    fn only_a_flawless_run_is_ok() {
        type Spoil = fn(&mut FlowReport);
        let spoil: [(&str, Spoil); 5] = [
            ("no request", |flow| flow.requests = 0),
            ("1 failed: 502", |flow| flow.errors = BTreeMap::from([("502".into(), 1)])),
            ("verified the caller of 9 of 10", |flow| flow.verified = 9),
            ("no path", |flow| flow.path.clear()),
            ("transport", |flow| flow.transport = None),
        ];
        let mut fine = report(good());
        fine.judge(None);
        assert!(fine.ok, "{:?}", fine.problems);
        for (expected, spoil) in spoil {
            let mut flow = good();
            spoil(&mut flow);
            let mut report = report(flow);
            report.judge(None);
            assert!(
                !report.ok && report.problems[0].contains(expected),
                "{expected}: {:?}",
                report.problems
            );
        }
    }

    #[test]
    fn blocked_udp_must_have_been_tried_and_left() {
        let mut blocked = report(good());
        blocked.block_udp = true;
        blocked.judge(None);
        assert!(blocked.problems[0].contains("nobody has tried"), "{:?}", blocked.problems);
        blocked.swallowed_datagrams = 3;
        blocked.judge(None);
        assert!(blocked.ok);
    }

    #[test]
    fn a_path_that_ends_in_a_dialled_session_is_reverse() {
        let one = |kind: &str| BTreeMap::from([(kind.to_owned(), 5)]);
        assert_eq!(path(&one("via gateway"), &one("reverse")), "reverse");
        assert_eq!(path(&one("via gateway"), &one("direct")), "via gateway");
        assert_eq!(path(&one("direct"), &one("direct")), "direct");
        assert_eq!(path(&BTreeMap::new(), &one("direct")), "");
    }
}
