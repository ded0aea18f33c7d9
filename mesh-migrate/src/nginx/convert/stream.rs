//! Servers of `stream`.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use super::{Directive, ServerTls, Work, listens, name, pools::Manner};
use crate::{
    nginx::{
        model::{self, Key, Map, Server, inherited, is_on, seconds},
        template::Template,
    },
    program::{Accepts, ClientTls, Clients, Listener, ServerCertificate, TcpRule},
    request::Endpoint,
};

impl<'m, 'c> Work<'m, 'c> {
    pub(super) fn stream(&mut self) {
        let model = self.model;
        let mut known: BTreeSet<SocketAddr> = BTreeSet::new();
        for server in &model.stream.servers {
            self.exact(server.directive);
            for listen in &server.listens {
                let Some(directive) = listen.directive else { continue };
                self.listen(listen);
                let addresses = match &listen.addresses {
                    Ok(addresses) => addresses.clone(),
                    Err(what) => {
                        self.decision(
                            directive,
                            format!("{what} is no address: nothing listens there with us"),
                            &["an address and a port"],
                        );
                        continue;
                    }
                };
                if listen.is_udp {
                    continue;
                }
                for address in addresses.into_iter().filter(|address| known.insert(*address)) {
                    self.tcp(server, address, directive);
                }
            }
        }
    }

    fn tcp(&mut self, server: &'m Server<'c>, address: SocketAddr, listen: &Directive) {
        let is_tls = listens(server, address).is_some_and(|listen| listen.is_tls);
        let tls = is_tls.then(|| self.tcp_tls(server));
        let prereads = inherited(&server.chain, "ssl_preread");
        if let Some(prereads) = prereads {
            self.exact(prereads);
        }
        let mut rules = Vec::new();
        for (rule, clients) in self.refused(&server.chain) {
            rules.push(TcpRule {
                place: rule.place.clone(),
                server_names: Vec::new(),
                clients,
                pools: Vec::new(),
            });
        }
        if let Some(pass) = server.directive.all("proxy_pass").next() {
            self.tcp_rules(server, pass, &mut rules);
        }
        self.program.listeners.push(Listener {
            place: listen.place.clone(),
            name: name("tcp", address),
            addresses: vec![address],
            accepts: Accepts::Tcp { rules },
            tls,
        });
    }

    fn tcp_tls(&mut self, server: &Server<'c>) -> ServerTls {
        let mut all = self.certificates(server).into_iter();
        let (certificate, key) = all.next().unwrap_or_default();
        let more =
            all.map(|(certificate, key)| ServerCertificate { certificate, key, names: Vec::new() });
        let verifies = inherited(&server.chain, "ssl_verify_client").filter(|v| v.arg(0) != "off");
        let of_clients = |name| inherited(&server.chain, name).filter(|_| verifies.is_some());
        let (roots, crl) = (of_clients("ssl_client_certificate"), of_clients("ssl_crl"));
        for directive in [verifies, roots, crl].into_iter().flatten() {
            self.exact(directive);
        }
        ServerTls {
            certificate,
            key,
            more: more.collect(),
            // Without roots nobody is let in until it is said.
            client_roots: verifies.map(|_| roots.map_or("", |roots| roots.arg(0)).to_owned()),
            crl: crl.map(|crl| crl.arg(0).to_owned()),
            ..ServerTls::default()
        }
    }

    fn tcp_rules(&mut self, server: &'m Server<'c>, pass: &'c Directive, rules: &mut Vec<TcpRule>) {
        let manner = self.tcp_manner(server);
        let template = Template::of(pass.arg(0)).unwrap_or(Template(Vec::new()));
        if let Some(target) = template.constant() {
            self.exact(pass);
            return self.tcp_rule(Vec::new(), &target, pass, &manner, rules);
        }
        let geo = template.variable().and_then(|name| self.model.stream.geos.get(name));
        if let Some(geo) = geo.filter(|geo| !geo.is_odd) {
            self.exact(pass);
            self.exact(geo.directive);
            for (block, _, target, directive) in &geo.blocks {
                self.exact(directive);
                let first = rules.len();
                self.tcp_rule(Vec::new(), target, directive, &manner, rules);
                for rule in &mut rules[first..] {
                    rule.clients.within = vec![block.clone()];
                }
            }
            if let Some((target, directive)) = &geo.default {
                self.exact(directive);
                self.tcp_rule(Vec::new(), target, directive, &manner, rules);
            }
            return;
        }
        let map = template.variable().and_then(|name| self.model.stream.maps.get(name));
        let by_name = map.filter(|map| map.source.variable() == Some("ssl_preread_server_name"));
        let Some(map) = by_name.filter(|_| is_on(&server.chain, "ssl_preread", false)) else {
            self.decision(
                pass,
                "where this leads cannot be said: until decided these connections are closed",
                &["a fixed upstream", "by the name that TLS asks for"],
            );
            return;
        };
        self.exact(pass);
        self.exact(map.directive);
        for hostnames in map.directive.all("hostnames") {
            self.exact(hostnames);
        }
        self.by_server_name(map, &manner, rules);
    }

    /// Exact names come before `*.x`, the longest first.
    fn by_server_name(&mut self, map: &'m Map<'c>, manner: &Manner, rules: &mut Vec<TcpRule>) {
        let mut ranked = Vec::new();
        for (at, (key, to, directive)) in map.entries.iter().enumerate() {
            let (rank, names) = match key {
                Key::Exact(text) if !text.is_empty() => ((0, 0, at), vec![text.clone()]),
                Key::Both(text) => {
                    ranked.push(((0, 0, at), vec![text.clone()], to, *directive));
                    ((1, usize::MAX - text.len() - 1, at), vec![format!("*.{text}")])
                }
                Key::Below(text) => ((1, usize::MAX - text.len(), at), vec![format!("*{text}")]),
                Key::Exact(_) if map.default.as_ref().is_some_and(|(default, _)| default == to) => {
                    self.exact(directive);
                    continue;
                }
                Key::Exact(_) | Key::Tail(_) | Key::Regex(_) => {
                    self.decision(directive, "names of TLS are compared whole or by their end: connections that this takes go where the default leads. Which names are meant?", &["whole names", "*.name"]);
                    continue;
                }
            };
            ranked.push((rank, names, to, *directive));
        }
        ranked.sort_by_key(|(rank, ..)| *rank);
        for (_, names, to, directive) in ranked {
            self.target(names, to, directive, manner, rules);
        }
        if let Some((to, directive)) = &map.default {
            self.target(Vec::new(), to, directive, manner, rules);
        }
    }

    fn target(
        &mut self,
        names: Vec<String>,
        to: &Template,
        directive: &'c Directive,
        manner: &Manner,
        rules: &mut Vec<TcpRule>,
    ) {
        match to.constant() {
            Some(target) => {
                self.exact(directive);
                self.tcp_rule(names, &target, directive, manner, rules);
            }
            None => {
                self.decision(
                    directive,
                    "where this leads has variables: until decided these connections are closed",
                    &["a fixed upstream"],
                );
                rules.push(TcpRule {
                    place: directive.place.clone(),
                    server_names: names,
                    clients: Clients::default(),
                    pools: Vec::new(),
                });
            }
        }
    }

    fn tcp_rule(
        &mut self,
        server_names: Vec<String>,
        target: &str,
        directive: &'c Directive,
        manner: &Manner,
        rules: &mut Vec<TcpRule>,
    ) {
        let upstream = self.model.stream.upstreams.get(&target.to_ascii_lowercase());
        let pool = match upstream {
            Some(upstream) => {
                let unix = upstream
                    .peers
                    .iter()
                    .find(|p| matches!(&p.endpoint, Endpoint::Name(n) if n.starts_with("unix:")));
                match (unix, self.balance(upstream)) {
                    (None, Ok(balance)) => {
                        self.exact(upstream.directive);
                        Ok(self.group(upstream, balance, manner))
                    }
                    (Some(unix), _) => Err((unix.directive, "a Unix socket is not spoken to: until decided these connections are closed".to_owned())),
                    (None, Err(wrong)) => Err(wrong),
                }
            }
            None => {
                let endpoint = model::endpoint(target, 0).filter(|_| target.contains(':'));
                self.single(directive, target, endpoint, manner)
            }
        };
        let pools = match pool {
            Ok(pool) => vec![(pool, 1)],
            Err((wrong, what)) => {
                self.decision(
                    wrong,
                    what.replace("requests are answered 501", "connections are closed"),
                    &["an address and a port"],
                );
                Vec::new()
            }
        };
        let (place, clients) = (directive.place.clone(), Clients::default());
        rules.push(TcpRule { place, server_names, clients, pools });
    }

    /// Whether another server is tried where one cannot be connected to.
    fn next_server(&mut self, server: &Server<'c>) {
        if let Some(next) = inherited(&server.chain, "proxy_next_upstream") {
            match is_on(&server.chain, "proxy_next_upstream", true) {
                true => self.exact(next),
                false => self.approximated(next, "a server that cannot be connected to is not the last: another is tried with us, whatever is written here"),
            }
        }
        for name in ["proxy_next_upstream_tries", "proxy_next_upstream_timeout"] {
            if let Some(bound) = inherited(&server.chain, name) {
                self.approximated(bound, "how many servers a connection tries is our own number");
            }
        }
    }

    fn tcp_manner(&mut self, server: &Server<'c>) -> Manner {
        let mut manner = Manner {
            connect: Duration::from_secs(60),
            idle: Duration::from_secs(600),
            tls: None,
            is_http: false,
        };
        for (name, time) in
            [("proxy_connect_timeout", &mut manner.connect), ("proxy_timeout", &mut manner.idle)]
        {
            if let Some((directive, read)) =
                inherited(&server.chain, name).and_then(|d| Some((d, seconds(d.arg(0))?)))
            {
                *time = read;
                self.not_bounded(directive);
            }
        }
        self.next_server(server);
        if is_on(&server.chain, "proxy_ssl", false) {
            for name in [
                "proxy_ssl",
                "proxy_ssl_name",
                "proxy_ssl_trusted_certificate",
                "proxy_ssl_verify",
                "proxy_ssl_server_name",
            ] {
                if let Some(directive) = inherited(&server.chain, name) {
                    self.exact(directive);
                }
            }
            let one = |name: &str| inherited(&server.chain, name).map(|d| d.arg(0).to_owned());
            let verifies = is_on(&server.chain, "proxy_ssl_verify", false);
            manner.tls = Some(ClientTls {
                server_name: one("proxy_ssl_name"),
                roots: one("proxy_ssl_trusted_certificate").filter(|_| verifies),
                certificate: None,
            });
        }
        manner
    }
}
