//! Requests of each name, as an identifier knows them.

use std::collections::BTreeSet;

use super::{
    super::{
        config::IdentifierKind,
        name::{Name, raw},
    },
    labels::{ANYBODY, ODD, PROBE, PROBE_METHOD, fits, may_meet, spelled, split, text},
    universe::{MAX_NAMES, Universe},
};
use crate::{
    program::{Condition, PathChange, Text},
    request::Http,
};

/// Methods that are told apart, at most.
const MAX_METHODS: usize = 24;

/// Requests that an identifier gives one name.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    /// Which.
    pub when: Condition,
    /// Below the router's prefix.
    pub below: Name,
    /// How the application sees the path.
    pub path: Option<PathChange>,
    /// One of them.
    pub sample: Http,
    /// Every request that the identifier knows.
    pub is_rest: bool,
    /// Not for one method of a host alone: it comes after those.
    pub is_any_method: bool,
}

impl Candidate {
    /// Whether it takes all requests of this name, which may be a pattern, too.
    pub(super) fn covers(&self, name: &Name) -> bool {
        if self.is_rest {
            return self.is_any_method || self.below.labels().get(1) == name.labels().get(1);
        }
        let covers =
            |(pattern, label): (&String, &String)| pattern == PROBE_METHOD || fits(pattern, label);
        let labels = self.below.labels();
        labels.len() <= name.len() && labels.iter().zip(name.labels()).all(covers)
    }

    /// Whether it may take some of them.
    pub(super) fn overlaps(&self, name: &Name) -> bool {
        let overlap = |(a, b): (&String, &String)| {
            let ((a, a_end), (b, b_end)) = (split(a).unwrap_or((a, a)), split(b).unwrap_or((b, b)));
            (a.starts_with(b) || b.starts_with(a))
                && (a_end.ends_with(b_end) || b_end.ends_with(a_end))
        };
        let overlap = |(a, b): (&String, &String)| overlap((a, b)) && may_meet(a, b);
        self.below.labels().iter().zip(name.labels()).all(overlap)
    }

    /// How much of its name it says itself.
    pub(super) fn said(&self) -> usize {
        let labels = self.below.labels().iter().filter(|label| *label != PROBE_METHOD);
        labels.map(|label| raw(label).replace(ODD, "").replace(PROBE, "").len() + 1).sum()
    }

    /// The same of each label, the most first: entries of a table are for the beginning
    /// of names, and what several of them are for has a candidate of its own.
    pub(super) fn said_each(&self) -> Vec<std::cmp::Reverse<usize>> {
        let said = |label: &String| match label.contains(ANYBODY) {
            true => raw(label).replace(ODD, "").replace(PROBE, "").len(),
            false => usize::MAX,
        };
        self.below.labels().iter().map(|label| std::cmp::Reverse(said(label))).collect()
    }

    /// Whether it is for all methods, or for one.
    pub(super) fn tells_methods(&self) -> bool {
        self.below.labels().iter().any(|label| label == PROBE_METHOD)
    }

    /// Whether it stands for many names.
    pub(super) fn is_pattern(&self) -> bool {
        self.below.labels().iter().any(|label| label.contains(ANYBODY))
    }
}

/// Requests that an identifier knows, by name. The last candidate stands for every
/// other name.
pub(super) fn candidates(kind: &IdentifierKind, universe: &Universe) -> Vec<Candidate> {
    match kind {
        IdentifierKind::HeaderToken(header) => by_token(header, universe),
        IdentifierKind::MethodAndHost(_) => by_method_and_host(universe),
        IdentifierKind::Path { segments, consume } => by_path(*segments, *consume, universe),
        IdentifierKind::HeaderPath(header, count) => by_header_path(header, *count, universe),
        IdentifierKind::Header(header) => by_header(header, universe),
        IdentifierKind::Static(name) => {
            vec![Candidate { is_rest: true, ..candidate(Condition::Always, name.clone()) }]
        }
        IdentifierKind::Ingress { .. } | IdentifierKind::Istio | IdentifierKind::Other(_) => {
            Vec::new()
        }
    }
}

/// Requests that an identifier refuses with 400: those whose path is no name.
pub(super) fn refused(kind: &IdentifierKind) -> Option<Condition> {
    let label = r"(?:[0-9A-Za-z_:.#$%-]|\\x[0-9a-fA-F]{2})+";
    let name = Text::Pattern(format!("(?:/{label})*/?"));
    let (is_any, is_name) = match kind {
        IdentifierKind::HeaderPath(header, _) if header == ":path" => {
            (Condition::Always, Condition::Path(name))
        }
        IdentifierKind::Header(header) | IdentifierKind::HeaderPath(header, _) => {
            let header = field(header);
            let is_name = match kind {
                IdentifierKind::Header(_) => Text::Pattern(format!("/|(?:/{label})+")),
                _ => name,
            };
            let is_any = Condition::Header(header.clone(), Text::Pattern("(?s).+".into()));
            (is_any, Condition::Header(header, is_name))
        }
        _ => return None,
    };
    Some(Condition::All(vec![is_any, Condition::Not(Box::new(is_name))]))
}

pub(super) fn candidate(when: Condition, below: Name) -> Candidate {
    let sample = Http {
        method: "GET".into(),
        host: Some("sample".into()),
        target: "/".into(),
        headers: Vec::new(),
        is_http10: false,
    };
    Candidate { when, below, path: None, sample, is_any_method: true, is_rest: false }
}

/// A header, with what HTTP/2 calls it.
fn field(header: &str) -> String {
    if header == ":authority" { "host".into() } else { header.to_ascii_lowercase() }
}

fn with_header(mut sample: Http, header: &str, value: &str) -> Http {
    if header == "host" {
        sample.host = Some(value.to_owned());
    } else {
        sample.headers.push((header.to_owned(), value.to_owned()));
    }
    sample
}

/// Hosts, alone and with any port, and any host with a port.
fn hosts(universe: &Universe) -> BTreeSet<String> {
    let with_port = |label: &String| {
        let has_none = !label.contains(':') && label != PROBE && label != ODD;
        has_none.then(|| format!("{label}:{PROBE}"))
    };
    let ports = universe.labels.iter().filter_map(with_port);
    ports.chain(universe.labels.iter().cloned()).collect()
}

fn by_token(header: &str, universe: &Universe) -> Vec<Candidate> {
    let header = field(header);
    let labels = if header == "host" { hosts(universe) } else { universe.labels.clone() };
    let labels = labels.iter().filter(|label| label.as_str() != PROBE);
    let one = |label: &String| {
        let when = Condition::Header(header.clone(), text(label));
        let one = candidate(when, Name::of([label]));
        Candidate { sample: with_header(one.sample.clone(), &header, label), ..one }
    };
    let mut all: Vec<Candidate> = labels.map(one).collect();
    let identified = Condition::Header(header.clone(), Text::Pattern("(?s).+".into()));
    let any = candidate(identified, Name::of([PROBE]));
    all.push(Candidate {
        sample: with_header(any.sample.clone(), &header, PROBE),
        is_rest: true,
        ..any
    });
    all
}

/// Methods have a name each where the table tells them apart.
fn by_method_and_host(universe: &Universe) -> Vec<Candidate> {
    let is_method =
        |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_uppercase());
    let known = universe.labels.iter().map(String::as_str).filter(|label| is_method(label));
    let mut methods: BTreeSet<&str> = known.take(MAX_METHODS).collect();
    let hosts: BTreeSet<String> =
        hosts(universe).iter().map(|label| label.to_lowercase()).take(MAX_NAMES).collect();
    let is_cut = methods.len() == MAX_METHODS || hosts.len() == MAX_NAMES;
    universe.is_cut.set(universe.is_cut.get() || is_cut);
    methods.extend(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]);
    let identified = Condition::Header("host".into(), Text::Pattern("(?s).+".into()));
    let mut all = Vec::new();
    let hosts = hosts.iter().map(String::as_str).filter(|host| *host != PROBE);
    for host in hosts.chain([PROBE]) {
        let is_probe = host == PROBE;
        let escaped = spelled(host);
        let of_host = match is_probe {
            true => identified.clone(),
            false => Condition::Header("host".into(), Text::Pattern(format!("(?i){escaped}"))),
        };
        for method in methods.iter().copied().chain([PROBE_METHOD]) {
            let is_any_method = method == PROBE_METHOD;
            let when = match is_any_method {
                true => of_host.clone(),
                false => {
                    Condition::All(vec![Condition::Method(vec![method.into()]), of_host.clone()])
                }
            };
            let one = candidate(when, Name::of(["1.1", method, host]));
            let mut sample = with_header(one.sample.clone(), "host", host);
            sample.method = method.to_owned();
            all.push(Candidate { sample, is_any_method, is_rest: is_probe, ..one });
        }
    }
    all
}

fn by_path(count: usize, consume: bool, universe: &Universe) -> Vec<Candidate> {
    let pattern = match count {
        0 => "(?s).*".to_owned(),
        1 => "(?s)/.*[^/].*".to_owned(),
        count => format!("(?s)(?:/[^/]*){{{}}}/.*[^/].*", count - 1),
    };
    let identified = Condition::Path(Text::Pattern(pattern));
    // A segment may be empty: `//a`.
    let names = if count == 0 { Vec::new() } else { universe.of_length(count, &[""]) };
    let is_other = |name: &Vec<String>| name.iter().all(|label| label == PROBE);
    let names = names.into_iter().filter(|name| !is_other(name)).filter(|name| in_path(name));
    let mut all: Vec<Candidate> =
        names.map(|name| path_candidate(&name, below_path(&name), consume)).collect();
    let any = vec![PROBE.to_owned(); count];
    all.push(Candidate { is_rest: true, ..path_candidate(&any, identified, consume) });
    all
}

/// Whether a request can have these segments.
fn in_path(name: &[String]) -> bool {
    name.iter().all(|label| !label.contains(['/', '?', '#', ' ']))
}

/// `/a` and what is below it.
fn below_path(name: &[String]) -> Condition {
    let path = format!("/{}", name.join("/"));
    let pattern = spelled(&path);
    if name.last().is_some_and(String::is_empty) {
        return Condition::Path(Text::Pattern(format!("(?s){pattern}/.*[^/].*")));
    }
    if path.contains(ANYBODY) {
        return Condition::Path(Text::Pattern(format!("(?s){pattern}(?:/.*)?")));
    }
    let below = Text::Prefix(format!("{path}/"));
    Condition::Any(vec![Condition::Path(Text::Exact(path)), Condition::Path(below)])
}

fn path_candidate(name: &[String], when: Condition, consume: bool) -> Candidate {
    let mut one = candidate(when, Name::of(name));
    one.sample.target = format!("/{}/rest?q=1", name.join("/"));
    one.path = consume.then(|| PathChange::Pattern {
        // Of `/a` and `/a/`, `/` is left. Of slashes at the end, one is left, as in Linkerd.
        pattern: format!("(?s)^(?:/[^/]*){{{}}}(?:/*$|/(.*?)(/?)/*$)", name.len()),
        substitution: "/$1$2".into(),
        all: false,
    });
    one
}

fn by_header_path(header: &str, count: Option<usize>, universe: &Universe) -> Vec<Candidate> {
    if header != ":path" {
        return by_header(header, universe);
    }
    if let Some(count) = count {
        return by_path(count, false, universe);
    }
    let identified = Condition::Path(Text::Pattern("(?s)/.*[^/].*".into()));
    let mut all = Vec::new();
    for name in universe.any_length() {
        if in_path(&name) && name.iter().any(|label| label != PROBE) {
            let path = format!("/{}", name.join("/"));
            let longer: Vec<String> = name.iter().cloned().chain([PROBE.to_owned()]).collect();
            all.push(path_candidate(&longer, Condition::Path(after(&path)), false));
            all.push(path_candidate(&name, Condition::Path(text(&path)), false));
        }
    }
    let any = path_candidate(&[PROBE.to_owned()], identified, false);
    all.push(Candidate { is_rest: true, ..any });
    all
}

/// What is below a path.
fn after(path: &str) -> Text {
    if path.contains(ANYBODY) {
        let pattern = spelled(path);
        return Text::Pattern(format!("(?s){pattern}/.+"));
    }
    Text::Prefix(format!("{path}/"))
}

fn by_header(header: &str, universe: &Universe) -> Vec<Candidate> {
    let header = field(header);
    let mut all = Vec::new();
    let mut add = |name: Vec<String>, when: Text| {
        let value = format!("/{}", name.join("/"));
        let when = Condition::Header(header.clone(), when);
        let one = candidate(when, Name::of(name));
        all.push(Candidate { sample: with_header(one.sample.clone(), &header, &value), ..one });
    };
    add(Vec::new(), Text::Exact("/".into()));
    for name in universe.any_length() {
        if name.iter().any(|label| label != PROBE) {
            let path = Name::of(&name).to_string();
            let longer: Vec<String> = name.iter().cloned().chain([PROBE.to_owned()]).collect();
            add(longer, after(&path));
            add(name, text(&path));
        }
    }
    let identified = Text::Pattern("(?s)/.+".into());
    add(vec![PROBE.to_owned()], identified);
    if let Some(last) = all.last_mut() {
        last.is_rest = true;
    }
    all
}
