//! Upstreams, and how they are spoken to.

use std::{collections::BTreeSet, time::Duration};

use super::{At, Directive, Work, leaf::Here};
use crate::{
    nginx::{
        explain::Url,
        model::{self, Method, Upstream, inherited, is_on},
        template::Template,
    },
    program::{Balance, ClientTls, Forward, Key, Limits, Member, Outlier, Pool, Retry},
    request::Endpoint,
    source::Place,
};

/// `proxy_connect_timeout` and `proxy_read_timeout` where nothing is written.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What is different where a status of `proxy_next_upstream` would lead to a backup.
const ANSWERED: &str = "it takes requests while none of the other servers is well: one that another has answered with a status of proxy_next_upstream is not repeated here";

/// How a pool is spoken to.
pub(super) struct Manner {
    pub(super) connect: Duration,
    pub(super) idle: Duration,
    pub(super) tls: Option<ClientTls>,
    pub(super) is_http: bool,
}

impl<'m, 'c> Work<'m, 'c> {
    /// What a request gets on its way, or what cannot be said.
    pub(super) fn forward(
        &mut self,
        at: &mut At<'m, 'c>,
        here: &Here<'m, 'c>,
        pass: &'c Directive,
        url: &Url,
        forward: &mut Forward,
    ) -> Result<(), (&'c Directive, String)> {
        let upstream = self.model.http.upstreams.get(&url.authority.to_ascii_lowercase());
        let manner = self.manner(here, url);
        let pool = match upstream {
            Some(upstream) => self.upstream(upstream, &manner)?,
            None => self.single(pass, &url.authority, url.endpoint(), &manner)?,
        };
        forward.pools = vec![(pool, 1)];
        let peers =
            upstream.map_or(1, |upstream| upstream.peers.iter().filter(|p| !p.is_down).count());
        forward.retry = self.retry(here, u32::try_from(peers).unwrap_or(u32::MAX));
        let is_of_answers = |retry: &Retry| !retry.statuses.is_empty();
        if forward.retry.as_ref().is_some_and(is_of_answers) {
            let backups = upstream.into_iter().flat_map(|upstream| &upstream.peers);
            for backup in backups.filter(|peer| peer.is_backup && !peer.is_down) {
                self.approximated(backup.directive, ANSWERED);
            }
        }
        self.headers(at, here, url, forward);
        Ok(())
    }

    fn manner(&mut self, here: &Here<'m, 'c>, url: &Url) -> Manner {
        let (mut connect, mut idle) = (TIMEOUT, TIMEOUT);
        for (name, time) in
            [("proxy_connect_timeout", &mut connect), ("proxy_read_timeout", &mut idle)]
        {
            let Some(directive) = inherited(&here.chain, name) else { continue };
            match model::seconds(directive.arg(0)) {
                Some(read) => {
                    *time = read;
                    self.not_bounded(directive);
                }
                None => self.dropped(directive, "this is no time: 60 seconds are taken"),
            }
        }
        if let Some(send) = inherited(&here.chain, "proxy_send_timeout") {
            self.approximated(send, "proxy_read_timeout holds for both ways");
        }
        let tls = url.is_tls.then(|| self.client_tls(here, url));
        Manner { connect, idle, tls, is_http: true }
    }

    /// A time that our proxy has no key for.
    pub(super) fn not_bounded(&mut self, directive: &'c Directive) {
        let how = "a connection is given up after 2 s, and how long an application may say \
                   nothing is not bounded";
        self.approximated(directive, how);
    }

    /// nginx proves nothing and asks for no name unless it is told to.
    fn client_tls(&mut self, here: &Here<'m, 'c>, url: &Url) -> ClientTls {
        let host = url.host();
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name).to_owned();
        let mut constant = |name: &str| {
            let directive = inherited(&here.chain, name)?;
            let value = Template::of(directive.arg(0)).ok()?.constant();
            match &value {
                Some(_) => self.exact(directive),
                None => self.dropped(directive, "its value has variables, which cannot be said"),
            }
            value
        };
        let named = constant("proxy_ssl_name").unwrap_or(name);
        let roots = constant("proxy_ssl_trusted_certificate");
        let certificate = constant("proxy_ssl_certificate");
        let key = constant("proxy_ssl_certificate_key");
        constant("proxy_ssl_server_name");
        constant("proxy_ssl_verify");
        let asks = is_on(&here.chain, "proxy_ssl_server_name", false);
        let verifies = is_on(&here.chain, "proxy_ssl_verify", false);
        ClientTls {
            server_name: (asks || verifies).then_some(named),
            roots: roots.filter(|_| verifies),
            certificate: certificate.zip(key),
        }
    }

    fn retry(&mut self, here: &Here<'m, 'c>, peers: u32) -> Option<Retry> {
        let directive = inherited(&here.chain, "proxy_next_upstream");
        let words: Vec<&str> = match directive {
            Some(directive) => directive.args.iter().map(String::as_str).collect(),
            None => vec!["error", "timeout"],
        };
        let tries = inherited(&here.chain, "proxy_next_upstream_tries");
        let limit: u32 = tries.and_then(|tries| tries.arg(0).parse().ok()).unwrap_or(0);
        let attempts = peers.min(if limit == 0 { u32::MAX } else { limit }).saturating_sub(1);
        if let Some(tries) = tries {
            self.exact(tries);
        }
        if let Some(directive) = directive {
            if words.contains(&"invalid_header")
                || words.contains(&"timeout") && !words.contains(&"error")
            {
                self.approximated(
                    directive,
                    "connections that fail, time out or answer nonsense are one case with us",
                );
            } else {
                self.exact(directive);
            }
        }
        if let Some(timeout) = inherited(&here.chain, "proxy_next_upstream_timeout") {
            self.approximated(timeout, "the number of attempts bounds them, not this time");
        }
        let has = |word: &str| words.contains(&word);
        let statuses =
            words.iter().filter_map(|word| word.strip_prefix("http_")?.parse().ok()).collect();
        (attempts > 0 && !has("off")).then(|| Retry {
            attempts,
            statuses,
            grpc_statuses: Vec::new(),
            any_method: has("non_idempotent"),
            on_reset: has("error") || has("timeout"),
            backoff: None,
        })
    }

    /// A pool of one address.
    pub(super) fn single(
        &mut self,
        pass: &'c Directive,
        name: &str,
        endpoint: Option<Endpoint>,
        manner: &Manner,
    ) -> Result<String, (&'c Directive, String)> {
        let wrong = |what: &str| {
            (pass, format!("{name} {what}: until decided these requests are answered 501"))
        };
        let endpoint = endpoint.ok_or_else(|| wrong("has no good port"))?;
        if name.starts_with("unix:") {
            return Err(wrong("is a Unix socket, which is not spoken to"));
        }
        let members = vec![Member {
            place: pass.place.clone(),
            endpoint,
            weight: 1,
            priority: 0,
            is_disabled: false,
            max_requests: 0,
        }];
        Ok(self.insert(name, &pass.place, members, Balance::RoundRobin, None, manner))
    }

    pub(super) fn upstream(
        &mut self,
        upstream: &'m Upstream<'c>,
        manner: &Manner,
    ) -> Result<String, (&'c Directive, String)> {
        let directive = upstream.directive;
        if let Some(unix) = upstream
            .peers
            .iter()
            .find(|p| matches!(&p.endpoint, Endpoint::Name(n) if n.starts_with("unix:")))
        {
            return Err((unix.directive, "a Unix socket is not spoken to: until decided requests for this upstream are answered 501".into()));
        }
        let balance = self.balance(upstream)?;
        self.exact(directive);
        Ok(self.group(upstream, balance, manner))
    }

    pub(super) fn group(
        &mut self,
        upstream: &'m Upstream<'c>,
        balance: Balance,
        manner: &Manner,
    ) -> String {
        let mut members = Vec::new();
        for peer in &upstream.peers {
            if !peer.others.is_empty() {
                self.approximated(
                    peer.directive,
                    format!("{} is not known here", peer.others.join(", ")),
                );
            } else if peer.max_conns > 0 {
                self.approximated(
                    peer.directive,
                    "max_conns bounds requests at once, not connections",
                );
            }
            self.exact(peer.directive);
            members.push(Member {
                place: peer.directive.place.clone(),
                endpoint: peer.endpoint.clone(),
                weight: peer.weight,
                priority: u32::from(peer.is_backup),
                is_disabled: peer.is_down,
                max_requests: peer.max_conns,
            });
        }
        let outlier = self.outlier(upstream, manner);
        let directive = upstream.directive;
        self.insert(directive.arg(0), &directive.place, members, balance, outlier, manner)
    }

    pub(super) fn balance(
        &mut self,
        upstream: &Upstream<'c>,
    ) -> Result<Balance, (&'c Directive, String)> {
        let Some(said) = upstream.said else { return Ok(Balance::RoundRobin) };
        let moves = "the table is another: clients move once to other servers";
        let balance = match &upstream.method {
            Method::RoundRobin => Balance::RoundRobin,
            Method::LeastConn => {
                self.exact(said);
                Balance::LeastLoaded
            }
            Method::Random => {
                self.exact(said);
                Balance::Random
            }
            Method::RandomTwo => {
                self.approximated(
                    said,
                    "the one with the fewest requests of all is taken, not of two",
                );
                Balance::LeastLoaded
            }
            Method::IpHash => {
                self.approximated(
                    said,
                    format!(
                        "the whole address is hashed, nginx takes three bytes of IPv4; {moves}"
                    ),
                );
                Balance::Hash(Key::Source)
            }
            Method::Hash(key) => match hash_key(key) {
                Some(key) => {
                    self.approximated(said, moves);
                    Balance::Hash(key)
                }
                None => {
                    self.decision(said, "requests cannot be hashed by this: they go round in turn. Must the same go to the same server?", &["by the client's address", "by a header or a cookie", "in turn"]);
                    Balance::RoundRobin
                }
            },
            Method::Other(name) => {
                self.decision(said, format!("{name} is not known here: requests go round in turn. Must the same go to the same server?"), &["by a cookie", "by the client's address", "in turn"]);
                if upstream.peers.is_empty() {
                    return Err((said, format!("{name} chooses servers that are not in the file")));
                }
                Balance::RoundRobin
            }
        };
        Ok(balance)
    }

    /// `max_fails` and `fail_timeout`; a group of one is never left alone.
    fn outlier(&mut self, upstream: &Upstream<'c>, manner: &Manner) -> Option<Outlier> {
        if upstream.peers.len() < 2 {
            return None;
        }
        // Nobody is left alone for no time.
        let mut peers = upstream.peers.iter();
        let Some(first) = peers.find(|peer| peer.max_fails > 0 && !peer.fail_timeout.is_zero())
        else {
            return Some(Outlier { failures: 0, ejection: Duration::from_secs(10) });
        };
        if manner.is_http {
            self.approximated(
                upstream.directive,
                "answers of 500 to 599 are failures of a server, too, whatever proxy_next_upstream says",
            );
        }
        for peer in &upstream.peers {
            if (peer.max_fails, peer.fail_timeout) != (first.max_fails, first.fail_timeout) {
                let how = format!(
                    "one max_fails and fail_timeout is of all servers of an upstream with us: each is left alone for {:?} after {} failures in a row",
                    first.fail_timeout, first.max_fails
                );
                self.approximated(peer.directive, how);
            } else if peer.directive.args.iter().any(|arg| arg.contains("fail")) {
                self.approximated(
                    peer.directive,
                    "failures count in a row, not within fail_timeout",
                );
            }
        }
        Some(Outlier { failures: first.max_fails, ejection: first.fail_timeout })
    }

    /// One pool of each name and manner.
    fn insert(
        &mut self,
        name: &str,
        place: &Place,
        members: Vec<Member>,
        balance: Balance,
        outlier: Option<Outlier>,
        manner: &Manner,
    ) -> String {
        let key = format!("{name} {:?} {:?} {:?} {place}", manner.connect, manner.idle, manner.tls);
        let key = match members.as_slice() {
            // Single addresses are the same wherever they are written.
            [only] if only.place == *place => key.replace(&format!(" {place}"), ""),
            _ => key,
        };
        if let Some(known) = self.pools.get(&key) {
            return known.clone();
        }
        let mut unique = name.to_owned();
        let mut number = 2;
        while self.program.pools.contains_key(&unique) {
            unique = format!("{name}-{number}");
            number += 1;
        }
        let pool = Pool {
            panic_percent: None,
            place: place.clone(),
            members,
            balance,
            connect_timeout: Some(manner.connect),
            idle_timeout: Some(manner.idle),
            check: None,
            outlier,
            tls: manner.tls.clone(),
            is_http2: false,
            limits: Limits::default(),
        };
        self.program.pools.insert(unique.clone(), pool);
        self.pools.insert(key, unique.clone());
        unique
    }

    /// Upstreams that nothing leads to, and what stands in all of them.
    pub(super) fn upstreams(&mut self) {
        let model = self.model;
        let used: BTreeSet<Place> =
            self.program.pools.values().map(|pool| pool.place.clone()).collect();
        for upstream in model.http.upstreams.values().chain(model.stream.upstreams.values()) {
            for inner in upstream.directive.inside() {
                match inner.name.as_str() {
                    "keepalive" => self.exact(inner),
                    "keepalive_timeout" | "keepalive_requests" | "keepalive_time" => {
                        self.dropped(inner, "idle connections are closed by our own times");
                    }
                    "zone" => self
                        .dropped(inner, "shares the state of the group between processes of nginx"),
                    _ => {}
                }
            }
            let is_used = used.contains(&upstream.directive.place);
            if !is_used {
                for peer in &upstream.peers {
                    self.dropped(
                        peer.directive,
                        "nothing that is converted leads to this upstream",
                    );
                }
                if let Some(said) = upstream.said {
                    self.dropped(said, "nothing that is converted leads to this upstream");
                }
                self.dropped(
                    upstream.directive,
                    "nothing that is converted leads to this upstream",
                );
            }
        }
    }
}

fn hash_key(key: &Template) -> Option<Key> {
    Some(match key.variable()? {
        "remote_addr" | "binary_remote_addr" => Key::Source,
        "uri" | "request_uri" | "document_uri" => Key::Path(0),
        name => {
            if let Some(header) = name.strip_prefix("http_") {
                Key::Header(header.replace('_', "-"))
            } else if let Some(cookie) = name.strip_prefix("cookie_") {
                Key::Cookie(cookie.to_owned(), None)
            } else {
                Key::Query(name.strip_prefix("arg_")?.to_owned())
            }
        }
    })
}
