//! `meshctl tap`: requests of a proxy, or of all of a site, as they end.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use mesh_api::v1::{self, tap_event::Event};
use serde::Serialize;

use crate::{
    endpoint::Run,
    failure::Failure,
    output::{self, Format},
};

/// What is watched.
#[derive(Debug, Args)]
pub struct Watched {
    /// Only this service, <name>.<namespace>
    pub(super) service: Option<String>,
    /// Only paths that begin so
    #[arg(long)]
    path: Option<String>,
    /// Only this method
    #[arg(long)]
    method: Option<String>,
    /// Only this authority, with or without its port
    #[arg(long)]
    authority: Option<String>,
    /// Only from this SPIFFE ID; all that begin so with a * at its end
    #[arg(long, value_name = "ID")]
    from: Option<String>,
    /// Only to this SPIFFE ID; all that begin so with a * at its end
    #[arg(long, value_name = "ID")]
    to: Option<String>,
    /// Only this status (503) or class (5xx)
    #[arg(long)]
    status: Option<String>,
    /// Only inbound or only outbound
    #[arg(long)]
    direction: Option<String>,
    /// At most so many a second; what is left out is counted [default: 100]
    #[arg(long, value_name = "N")]
    max_rps: Option<u32>,
    /// The proxy's control socket [default: proxy.sock in the run directory]
    #[arg(long, value_name = "PATH", conflicts_with = "mesh")]
    socket: Option<PathBuf>,
    /// Of every proxy of the site, through federation [default: where this
    /// directory has no proxy.sock]
    #[arg(long)]
    mesh: bool,
}

impl Watched {
    /// What this machine's proxy, or all of the site, show from now on.
    pub(super) async fn watch(&self, run: &Run) -> Result<tonic::Streaming<v1::TapEvent>, Failure> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let request = v1::TapRequest {
            service: text(&self.service),
            direction: text(&self.direction),
            method: text(&self.method).to_uppercase(),
            path: text(&self.path),
            authority: text(&self.authority),
            source: text(&self.from),
            destination: text(&self.to),
            status: text(&self.status),
            max_rps: self.max_rps.unwrap_or_default(),
        };
        if self.mesh || (self.socket.is_none() && !run.has_proxy()) {
            return Ok(run.admin().await?.tap(request).await?.into_inner());
        }
        let mut proxy = run.proxy(self.socket.as_deref()).await?;
        Ok(proxy.tap(request).await?.into_inner())
    }
}

/// Arguments of `tap`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl tap\n  meshctl tap orders.shop --path /api -o json\n  meshctl tap --status 5xx --direction inbound\n  meshctl tap --from 'spiffe://west.example/ns/shop/*' --count 10\n  meshctl --site west tap payments.prod --mesh      (every proxy of the site; needs the role operator elsewhere)"
)]
pub struct Tap {
    #[command(flatten)]
    watched: Watched,
    /// End after so many
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

impl Tap {
    /// Prints until the proxy ends, or enough were seen.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let mut events = self.watched.watch(run).await?;
        let mut number = 0;
        while self.count.is_none_or(|count| number < count) {
            let Some(event) = events.message().await? else { return Ok(()) };
            match event.event {
                Some(Event::Seen(seen)) => {
                    number += 1;
                    output::write_stdout(&shown(&seen, number, format)?)?;
                }
                Some(Event::Lost(count)) => eprintln!("{count} more matched and were left out"),
                None => {}
            }
        }
        Ok(())
    }
}

fn shown(seen: &v1::TapSeen, number: u64, format: Format) -> Result<String, Failure> {
    match format {
        Format::Json => Ok(serde_json::to_string(&Seen::of(seen)).map_err(Failure::new)? + "\n"),
        Format::Yaml => {
            let document = serde_yaml_ng::to_string(&Seen::of(seen)).map_err(Failure::new)?;
            Ok(format!("---\n{document}"))
        }
        Format::Table => Ok(lines(seen, number, "")),
        Format::Wide => Ok(lines(seen, number, &labels(seen))),
    }
}

/// The lines that Linkerd's `tap` prints.
fn lines(seen: &v1::TapSeen, number: u64, labels: &str) -> String {
    let end = |end: &Option<v1::TapEnd>| match end {
        Some(end) if !end.address.is_empty() => end.address.clone(),
        _ => "-".to_owned(),
    };
    let proxy = if seen.direction == "inbound" { "in" } else { "out" };
    let far = if proxy == "in" { &seen.source } else { &seen.destination };
    let tls = far.as_ref().is_some_and(|end| !end.spiffe_id.is_empty());
    let connection = if seen.connection.is_empty() { "-" } else { &seen.connection };
    let id = format!(
        "id={connection}:{number} proxy={proxy} src={} dst={} tls={tls}",
        end(&seen.source),
        end(&seen.destination)
    );
    let duration = |ns: u64| format!("{:?}", Duration::from_micros(ns / 1000));
    let reason =
        if seen.reason.is_empty() { String::new() } else { format!(" reason={}", seen.reason) };
    if seen.protocol == "tcp" {
        return format!(
            "tcp {id} service={}:{} duration={} received={}B sent={}B{reason}{labels}\n",
            seen.service,
            seen.port,
            duration(seen.duration_ns),
            seen.received,
            seen.sent
        );
    }
    let request = format!(
        "req {id} :method={} :authority={} :path={}{labels}\n",
        seen.method,
        printable(&seen.authority),
        printable(&seen.path)
    );
    let response =
        format!("rsp {id} :status={} latency={}{labels}\n", seen.status, duration(seen.latency_ns));
    let grpc = seen.grpc_status.map(|code| format!(" grpc-status={code}")).unwrap_or_default();
    let end = format!(
        "end {id}{grpc} duration={} response-length={}B{reason}{labels}\n",
        duration(seen.duration_ns),
        seen.sent
    );
    request + &response + &end
}

/// What clients send may hold what a terminal would obey.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Sorted, as Linkerd's are.
fn labels(seen: &v1::TapSeen) -> String {
    let mut labels = vec![("rt_route", seen.route.as_str())];
    let empty = v1::TapEnd::default();
    let source = seen.source.as_ref().unwrap_or(&empty);
    let destination = seen.destination.as_ref().unwrap_or(&empty);
    labels.extend([
        ("src_client_id", source.spiffe_id.as_str()),
        ("src_site", source.site.as_str()),
        ("dst_server_id", destination.spiffe_id.as_str()),
        ("dst_site", destination.site.as_str()),
        ("dst_endpoint", destination.endpoint.as_str()),
        ("dst_service", seen.service.as_str()),
    ]);
    labels.retain(|(_, value)| !value.is_empty());
    labels.sort_unstable();
    labels.iter().map(|(key, value)| format!(" {key}={value}")).collect()
}

/// One request for machines.
#[derive(Debug, Serialize)]
struct Seen<'a> {
    connection: &'a str,
    began_ns: u64,
    direction: &'a str,
    protocol: &'a str,
    service: &'a str,
    port: &'a str,
    source: Option<End<'a>>,
    destination: Option<End<'a>>,
    method: &'a str,
    authority: &'a str,
    path: &'a str,
    status: u32,
    grpc_status: Option<u32>,
    success: bool,
    reason: &'a str,
    route: &'a str,
    latency_ns: u64,
    duration_ns: u64,
    received: u64,
    sent: u64,
    attempts: u32,
}

#[derive(Debug, Serialize)]
struct End<'a> {
    address: &'a str,
    spiffe_id: &'a str,
    site: &'a str,
    endpoint: &'a str,
}

impl<'a> Seen<'a> {
    fn of(seen: &'a v1::TapSeen) -> Self {
        let end = |end: &'a Option<v1::TapEnd>| {
            end.as_ref().map(|end| End {
                address: &end.address,
                spiffe_id: &end.spiffe_id,
                site: &end.site,
                endpoint: &end.endpoint,
            })
        };
        Self {
            connection: &seen.connection,
            began_ns: seen.began_ns,
            direction: &seen.direction,
            protocol: &seen.protocol,
            service: &seen.service,
            port: &seen.port,
            source: end(&seen.source),
            destination: end(&seen.destination),
            method: &seen.method,
            authority: &seen.authority,
            path: &seen.path,
            status: seen.status,
            grpc_status: seen.grpc_status,
            success: seen.success,
            reason: &seen.reason,
            route: &seen.route,
            latency_ns: seen.latency_ns,
            duration_ns: seen.duration_ns,
            received: seen.received,
            sent: seen.sent,
            attempts: seen.attempts,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A request that went well.
    pub(crate) fn request(path: &str) -> v1::TapSeen {
        let end = |address: &str, account: &str| {
            Some(v1::TapEnd {
                address: address.into(),
                spiffe_id: format!("spiffe://west.example/ns/shop/sa/{account}"),
                site: "west".into(),
                endpoint: String::new(),
            })
        };
        v1::TapSeen {
            connection: "0a1b".into(),
            direction: "outbound".into(),
            protocol: "http1".into(),
            service: "orders.shop".into(),
            port: "http".into(),
            source: end("127.0.0.1", "checkout"),
            destination: end("10.0.0.2:4143", "orders"),
            method: "GET".into(),
            authority: "orders.shop".into(),
            path: path.into(),
            status: 200,
            latency_ns: 1_500_000,
            duration_ns: 2_000_000,
            sent: 7,
            success: true,
            ..v1::TapSeen::default()
        }
    }

    #[test]
    fn lines_are_linkerds() {
        let mut seen = request("/a\u{1b}[2J");
        let text = shown(&seen, 3, Format::Table).expect("text");
        let id = "id=0a1b:3 proxy=out src=127.0.0.1 dst=10.0.0.2:4143 tls=true";
        let wanted = format!(
            "req {id} :method=GET :authority=orders.shop :path=/a?[2J\nrsp {id} :status=200 \
             latency=1.5ms\nend {id} duration=2ms response-length=7B\n"
        );
        assert_eq!(text, wanted);
        (seen.grpc_status, seen.reason) = (Some(14), "timeout".into());
        let text = shown(&seen, 3, Format::Wide).expect("text");
        let last = text.lines().last().expect("a line");
        assert!(last.contains(" grpc-status=14 duration=2ms response-length=7B reason=timeout dst_server_id=spiffe"), "{last}");
        let json = shown(&seen, 3, Format::Json).expect("text");
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!((&json["grpc_status"], &json["source"]["site"]), (&14.into(), &"west".into()));
        seen.protocol = "tcp".into();
        let text = shown(&seen, 3, Format::Table).expect("text");
        assert!(text.starts_with("tcp id=0a1b:3") && text.lines().count() == 1, "{text}");
    }
}
