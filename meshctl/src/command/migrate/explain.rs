//! `meshctl migrate explain`.

use std::{
    collections::BTreeSet,
    fmt::Write,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use clap::Args;
use mesh_migrate::{
    decide::decide,
    request::{Answer, Endpoint, Forwarded, Http, Kind, Outcome, Request},
};
use serde::Serialize;

use super::{Input, wrong};
use crate::{
    failure::Failure,
    output::{self, Format, Paint, Show},
};

/// Arguments of `explain`.
#[derive(Debug, Args)]
#[command(
    after_help = "Says where the legacy proxy would send a request by its own rules, line by line, and where the \
converted configuration would.

Examples:
  meshctl migrate explain --from haproxy haproxy.cfg 'GET http://orders.corp.example/v2/items' -H 'X-Canary: 1'
  meshctl migrate explain --from haproxy haproxy.cfg --listener 10.20.0.1:8000 'POST http://orders/items'
  meshctl migrate explain --from linkerd1 linkerd.yaml --listener outgoing --discovery names.txt 'GET http://web/'
  meshctl migrate explain --from nginx nginx.conf --listener 0.0.0.0:443 'TLS shop.example'
  meshctl migrate explain --from haproxy tcp.cfg --listener 10.20.0.2:5432 TCP"
)]
pub struct Explain {
    /// The configuration
    #[arg(required = true, value_name = "FILE")]
    file: PathBuf,
    /// `<METHOD> http://<host><path>`, TCP, or `TLS <server name>`
    #[arg(required = true, value_name = "REQUEST")]
    request: String,
    #[command(flatten)]
    input: Input,
    /// Where it comes in, `<ip>:<port>` or the label of a router; the only listener where absent
    #[arg(long, value_name = "ADDRESS")]
    listener: Option<String>,
    /// A header of it; several times
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// Address of the client
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "IP")]
    client: IpAddr,
    /// It is a request of HTTP/1.0
    #[arg(long)]
    http10: bool,
}

#[derive(Debug, Serialize)]
struct Explained {
    from: &'static str,
    legacy: Answer,
    ours: Answer,
    /// Whether both send it to the same places.
    agree: bool,
    /// Headers that the application gets otherwise from ours.
    headers: Vec<String>,
}

impl Explain {
    pub(super) async fn run(self, format: Format) -> Result<(), Failure> {
        let request = self.asked()?;
        let from = self.input.format().as_str();
        let files = [self.file.clone()];
        let explained = self.input.read(&files, None, None, |legacy, _| {
            let answer = legacy.explain(&request).map_err(wrong)?;
            let (program, _) = legacy.convert().map_err(wrong)?;
            let ours = decide(&program, &request);
            let agree = same(&answer.outcome, &ours.outcome);
            let headers = match (&request.kind, &answer.outcome, &ours.outcome) {
                (Kind::Http(http), Outcome::Forwarded(a), Outcome::Forwarded(b)) => {
                    otherwise(http, a, b)
                }
                _ => Vec::new(),
            };
            Ok(Explained { from, legacy: answer, ours, agree, headers })
        });
        output::print(format, &explained.await?)
    }

    fn asked(&self) -> Result<Request, Failure> {
        let (listener, source) = (self.listener.clone(), self.client);
        let kind = match self.request.split_once(' ') {
            None if self.request == "TCP" => Kind::Connection { server_name: None },
            Some(("TLS", name)) => Kind::Connection { server_name: Some(name.trim().to_owned()) },
            Some((method, url)) => Kind::Http(self.http(method, url.trim())?),
            None => return Err(malformed(&self.request)),
        };
        Ok(Request { listener, source, kind })
    }

    fn http(&self, method: &str, url: &str) -> Result<Http, Failure> {
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        let (host, target) = match rest {
            Some(rest) => match rest.find(['/', '?']) {
                Some(at) => (Some(&rest[..at]), &rest[at..]),
                None => (Some(rest), "/"),
            },
            None if url.starts_with('/') || url == "*" => (None, url),
            None => return Err(malformed(&self.request)),
        };
        let target = if target.starts_with('?') { format!("/{target}") } else { target.to_owned() };
        let mut host = host.filter(|host| !host.is_empty()).map(str::to_owned);
        let mut headers = Vec::new();
        for header in &self.headers {
            let Some((name, value)) = header.split_once(':') else {
                return Err(Failure::usage(format!("-H {header:?}: write '<name>: <value>'")));
            };
            let (name, value) = (name.trim(), value.trim());
            if name.eq_ignore_ascii_case("host") {
                host = Some(value.to_owned());
            } else {
                headers.push((name.to_owned(), value.to_owned()));
            }
        }
        let is_http10 = self.http10;
        Ok(Http { method: method.to_owned(), host, target, headers, is_http10 })
    }
}

fn malformed(request: &str) -> Failure {
    Failure::usage(format!(
        "{request:?} is no request: write '<METHOD> http://<host><path>', TCP, or 'TLS <server name>'"
    ))
}

/// Whether both send it to the same places, or answer it alike.
fn same(a: &Outcome, b: &Outcome) -> bool {
    let endpoints = |forwarded: &Forwarded| {
        let mut all: Vec<String> = forwarded.endpoints.iter().map(|(e, _)| shown(e)).collect();
        all.sort();
        all.dedup();
        all
    };
    match (a, b) {
        (Outcome::Forwarded(a), Outcome::Forwarded(b)) => {
            endpoints(a) == endpoints(b) && a.target == b.target
        }
        (Outcome::Answered { status: a, .. }, Outcome::Answered { status: b, .. }) => a == b,
        (Outcome::Closed, Outcome::Closed) => true,
        _ => false,
    }
}

/// Headers of one connection (RFC 9110 section 7.6.1).
const HOP: &[&str] =
    &["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];

/// Names of headers that go on otherwise; spaces in lists are nobody's.
fn otherwise(http: &Http, a: &Forwarded, b: &Forwarded) -> Vec<String> {
    let goes_on = |to: &Forwarded, name: &str| {
        let changed = to.headers.iter().rfind(|(known, _)| known.eq_ignore_ascii_case(name));
        let value = match changed {
            Some((_, value)) => value.clone(),
            None if name == "host" => http.host.clone(),
            None => http.joined(name, ","),
        };
        value.map(|value| value.replace(", ", ","))
    };
    let named = a.headers.iter().chain(&b.headers).map(|(name, _)| name.to_ascii_lowercase());
    let names: BTreeSet<String> = named.collect();
    let is_other =
        |name: &String| !HOP.contains(&name.as_str()) && goes_on(a, name) != goes_on(b, name);
    names.into_iter().filter(is_other).collect()
}

impl Show for Explained {
    fn text(&self, _: bool, _: Paint) -> String {
        let mut text = String::new();
        told(&mut text, self.from, &self.legacy);
        told(&mut text, "isthmus", &self.ours);
        match (self.agree, self.headers.as_slice()) {
            (true, []) => text.push_str("The same.\n"),
            (true, headers) => {
                let _ = writeln!(text, "The same, but for headers: {}.", headers.join(", "));
            }
            (false, _) => text.push_str("NOT the same.\n"),
        }
        text
    }
}

fn told(text: &mut String, who: &str, answer: &Answer) {
    let _ = writeln!(text, "{who}");
    for step in &answer.why {
        match &step.place {
            Some(place) => _ = writeln!(text, "  {place}: {}", step.what),
            None => _ = writeln!(text, "  {}", step.what),
        }
    }
    match &answer.outcome {
        Outcome::Forwarded(forwarded) => {
            for (endpoint, share) in &forwarded.endpoints {
                let _ = writeln!(text, "  → {:5.1} %  {}", share * 100.0, shown(endpoint));
            }
            if forwarded.endpoints.is_empty() {
                for (pool, share) in &forwarded.pools {
                    let _ = writeln!(text, "  → {:5.1} %  {pool}", share * 100.0);
                }
            }
            if forwarded.is_sticky {
                text.push_str("  the same request goes to the same one\n");
            }
            if let Some(target) = &forwarded.target {
                let _ = writeln!(text, "  as {target}");
            }
            for (name, value) in &forwarded.headers {
                match value {
                    Some(value) => _ = writeln!(text, "  {name}: {value}"),
                    None => _ = writeln!(text, "  {name}: removed"),
                }
            }
        }
        Outcome::Answered { status, headers, .. } => {
            let _ = writeln!(text, "  → answers {status}");
            for (name, value) in headers {
                let _ = writeln!(text, "  {name}: {value}");
            }
        }
        Outcome::Closed => text.push_str("  → closes the connection\n"),
    }
}

fn shown(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Address(address) => address.to_string(),
        Endpoint::Name(name) => name.clone(),
    }
}
