//! How hosts are, for people and programs.

use mesh_api::v1;
use serde::Serialize;

use super::host::Host;
use crate::{
    command::transition::TransitionTls,
    output::{self, Paint, Show},
    time,
};

/// How hosts are.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    hosts: Vec<ShownHost>,
    /// Why `next` goes no further; empty while it may.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) paused: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownHost {
    host: String,
    legacy: String,
    phase: String,
    /// Who takes new connections: "legacy", "isthmus", "nobody", or empty if that
    /// cannot be told.
    serves: String,
    since_unix_s: i64,
    watch_left_s: u32,
    requests: u64,
    failures: u64,
    p99_ms: u32,
    legacy_runs: bool,
    legacy_connections: u32,
    proxy_runs: bool,
    listeners: Vec<ShownListener>,
    transitions: Vec<TransitionTls>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shadow: Option<ShownShadow>,
    problem: String,
}

/// What a comparison has found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownShadow {
    verdict: String,
    compared: u64,
    different: u64,
    skipped: u64,
    differences: Vec<ShownDifference>,
    /// Half, 90 % and 99 % of answers, in microseconds.
    legacy_us: Vec<u64>,
    proxy_us: Vec<u64>,
}

#[derive(Debug, Serialize)]
struct ShownDifference {
    cause: String,
    count: u64,
    examples: Vec<String>,
}

impl From<v1::ShadowVerdict> for ShownShadow {
    fn from(found: v1::ShadowVerdict) -> Self {
        let differences = found.differences.into_iter().map(|difference| ShownDifference {
            cause: difference.cause,
            count: difference.count,
            examples: difference.examples,
        });
        Self {
            verdict: found.verdict,
            compared: found.compared,
            different: found.different,
            skipped: found.skipped,
            differences: differences.collect(),
            legacy_us: found.legacy_us,
            proxy_us: found.proxy_us,
        }
    }
}

impl ShownShadow {
    fn text(&self, host: &str, wide: bool) -> String {
        let ms = |us: &[u64]| {
            let shown = us.iter().map(|us| format!("{}.{}", us / 1000, us % 1000 / 100));
            shown.collect::<Vec<_>>().join(" / ")
        };
        let mut text = format!(
            "{host}: compared {}, {} differ, {} left out: {}\n",
            self.compared, self.different, self.skipped, self.verdict
        );
        if !self.legacy_us.is_empty() {
            text.push_str(&format!(
                "{host}: half / 90 % / 99 % of answers within {} ms, ours {} ms\n",
                ms(&self.legacy_us),
                ms(&self.proxy_us)
            ));
        }
        for difference in &self.differences {
            text.push_str(&format!("  {} times: {}\n", difference.count, difference.cause));
            let some = if wide { difference.examples.len() } else { 1 };
            for example in difference.examples.iter().take(some) {
                text.push_str(&format!("    {example}\n"));
            }
        }
        text
    }
}

#[derive(Debug, Serialize)]
struct ShownListener {
    service: String,
    address: String,
    beside: String,
}

impl Shown {
    pub(super) fn of(moves: Vec<v1::MoveStatus>) -> Self {
        Self { hosts: moves.into_iter().map(ShownHost::from).collect(), paused: String::new() }
    }

    /// One of which nothing is known but why.
    pub(super) fn add_unknown(&mut self, host: &Host, problem: &str) {
        let status = v1::MoveStatus {
            name: host.name.clone(),
            phase: "unknown".to_owned(),
            problem: problem.to_owned(),
            ..v1::MoveStatus::default()
        };
        self.hosts.push(status.into());
    }

    /// One of which nothing has begun.
    pub(super) fn add_planned(&mut self, host: &Host) {
        let status = v1::MoveStatus {
            name: host.name.clone(),
            phase: "planned".to_owned(),
            ..v1::MoveStatus::default()
        };
        self.hosts.push(status.into());
    }

    pub(super) fn add(&mut self, status: v1::MoveStatus) {
        self.hosts.push(status.into());
    }
}

impl From<v1::MoveStatus> for ShownHost {
    fn from(status: v1::MoveStatus) -> Self {
        let listeners = status.listeners.into_iter().map(|listener| ShownListener {
            service: listener.name,
            address: listener.address,
            beside: listener.beside,
        });
        Self {
            host: status.name,
            legacy: status.kind,
            phase: status.phase,
            serves: status.serves,
            since_unix_s: status.since_unix_s,
            watch_left_s: status.watch_left_s,
            requests: status.requests,
            failures: status.failures,
            p99_ms: status.p99_ms,
            legacy_runs: status.legacy_runs,
            legacy_connections: status.legacy_connections,
            proxy_runs: status.proxy_runs,
            listeners: listeners.collect(),
            transitions: status.transitions.into_iter().map(Into::into).collect(),
            shadow: status.shadow.map(ShownShadow::from),
            problem: status.problem,
        }
    }
}

impl Show for Shown {
    fn text(&self, wide: bool, paint: Paint) -> String {
        if self.hosts.is_empty() {
            return "Nothing moves here.\n  next: meshctl migrate plan --from <proxy> \
                    <configuration> -o <host>\n"
                .to_owned();
        }
        let head = ["HOST", "FROM", "PHASE", "SERVES", "REQUESTS", "FAILED", "P99", "OLD CONNS"];
        let rows = self.hosts.iter().map(|host| {
            let phase = match host.phase.as_str() {
                "watch" => format!("watch ({} s)", host.watch_left_s),
                phase => phase.to_owned(),
            };
            let figure = |text: String| if host.requests == 0 { "-".to_owned() } else { text };
            vec![
                host.host.clone(),
                host.legacy.clone(),
                phase,
                host.serves.clone(),
                host.requests.to_string(),
                host.failures.to_string(),
                figure(format!("{} ms", host.p99_ms)),
                host.legacy_connections.to_string(),
            ]
        });
        let mut table = output::Table::new(&head);
        rows.for_each(|row| table.row(row));
        let mut text = table.render(paint);
        for host in &self.hosts {
            if wide {
                for listener in &host.listeners {
                    text.push_str(&format!(
                        "{}: {} takes {}, and listens at {}\n",
                        host.host, listener.service, listener.address, listener.beside
                    ));
                }
            }
            for tls in &host.transitions {
                text.push_str(&format!(
                    "{}: {} {}: TLS of another CA until {}\n",
                    host.host,
                    tls.kind,
                    tls.name,
                    tls.end(time::now_unix_s(), paint)
                ));
            }
            if let Some(shadow) = &host.shadow {
                text.push_str(&shadow.text(&host.host, wide));
            }
            if !host.problem.is_empty() {
                text.push_str(&format!("{} {}: {}\n", paint.bad("!"), host.host, host.problem));
            }
        }
        if !self.paused.is_empty() {
            text.push_str(&format!("{} {}\n", paint.warn("Paused:"), self.paused));
        }
        text
    }
}
