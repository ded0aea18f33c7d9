//! TLS of listeners. nginx chooses the certificate by the name that the client asks for
//! (SNI), and the server of each request by its Host, which may be another: so does ours.

use std::collections::BTreeSet;

use super::{Condition, Directive, Heard, Rule, Server, ServerTls, Work, model, refusal};
use crate::{
    nginx::model::Name,
    program::{ServerCertificate, TlsVersion, is_asked_for},
};

impl<'c> Work<'_, 'c> {
    /// Certificates of all servers, first those of the default one.
    pub(super) fn server_tls(
        &mut self,
        here: &[Heard<'_, 'c>],
        default: usize,
    ) -> Option<ServerTls> {
        let mut tls = ServerTls::default();
        if let Some(rejects) = rejects(here[default].0) {
            self.exact(rejects);
            tls.only_known_names = true;
        }
        let mut of_servers = Vec::new();
        for at in std::iter::once(default).chain((0..here.len()).filter(|at| *at != default)) {
            let (server, _) = here[at];
            if rejects(server).is_none() {
                of_servers.push((server, self.certificates(server)));
            } else if at != default {
                let rejects = rejects(server).unwrap_or(server.directive);
                let how =
                    "clients that ask for these names get the certificate of the default server";
                self.approximated(rejects, how);
            }
        }
        let all = || of_servers.iter().flat_map(|(_, all)| all);
        if let Some(first) = all().next().cloned() {
            let is_one = all().all(|one| *one == first);
            (tls.certificate, tls.key) = first;
            if !is_one || tls.only_known_names {
                let mut known = BTreeSet::new();
                for (server, certificates) in &of_servers {
                    let is_default = std::ptr::eq(*server, here[default].0);
                    let names = self.names(server, is_default, &mut known);
                    tls.more.extend(certificates.iter().filter(|_| !names.is_empty()).map(
                        |(certificate, key)| ServerCertificate {
                            certificate: certificate.clone(),
                            key: key.clone(),
                            names: names.clone(),
                        },
                    ));
                }
            }
        }
        if tls.only_known_names {
            // None of them is for names that are only in it.
            let is_first = |one: &&ServerCertificate| one.certificate == tls.certificate;
            let names = tls.more.iter().filter(is_first).flat_map(|one| one.names.clone());
            tls.names = names.collect();
        }
        (tls.client_roots, tls.crl) = self.clients(here[default].0);
        if let Some(said) = model::inherited(&here[default].0.chain, "ssl_protocols") {
            tls.versions = self.versions(said);
        }
        let is_on = |server: &Server<'c>| model::is_on(&server.chain, "http2", false);
        let has_http2 = here.iter().any(|(server, listen)| listen.is_http2 || is_on(server));
        tls.alpn = (!has_http2).then(|| vec!["http/1.1".to_owned()]);
        Some(tls)
    }

    fn versions(&mut self, said: &Directive) -> Vec<TlsVersion> {
        let speaks = |version: &str| said.args.iter().any(|arg| arg == version);
        let (old, new) = (speaks("TLSv1.2"), speaks("TLSv1.3"));
        if said.args.len() == usize::from(old) + usize::from(new) {
            self.exact(said);
        } else {
            self.approximated(said, "TLS before 1.2 is not spoken");
        }
        match (old, new) {
            (true, false) => vec![TlsVersion::Tls12],
            (false, true) => vec![TlsVersion::Tls13],
            _ => Vec::new(),
        }
    }

    /// Files of certificates and keys; several are of different kinds of keys.
    pub(super) fn certificates(&mut self, server: &Server<'c>) -> Vec<(String, String)> {
        let certificates = model::array(&server.chain, "ssl_certificate");
        let keys = model::array(&server.chain, "ssl_certificate_key");
        let mut found = Vec::new();
        for (certificate, key) in certificates.into_iter().zip(keys) {
            let no_file = |text: &str| {
                text.contains('$')
                    || ["data:", "engine:", "store:"].iter().any(|p| text.starts_with(p))
            };
            if no_file(certificate.arg(0)) || no_file(key.arg(0)) {
                let question = "it is in no file of this name: which one is it? Until it is said, there is none.";
                for directive in [certificate, key] {
                    self.decision(directive, question, &["a file for each name"]);
                }
                continue;
            }
            self.exact(certificate);
            self.exact(key);
            found.push((certificate.arg(0).to_owned(), key.arg(0).to_owned()));
        }
        found
    }

    /// Names that certificates of this server are for; of equal ones of a listener the
    /// first counts.
    fn names(
        &mut self,
        server: &Server<'c>,
        is_default: bool,
        known: &mut BTreeSet<String>,
    ) -> Vec<String> {
        let mut names = Vec::new();
        for (name, directive) in &server.names {
            match name {
                Name::Exact(text) => names.push(text.clone()),
                Name::Both(text) => names.extend([text.clone(), format!("*.{text}")]),
                Name::Below(text) => names.push(format!("*{text}")),
                // They get the certificate of the default server.
                Name::Tail(_) | Name::Regex(_) if is_default => {}
                Name::Tail(_) | Name::Regex(_) => {
                    let question = "a certificate is for names, with us, and not for patterns: clients that ask for one of these get that of the default server. Which names are they?";
                    self.decision(
                        directive,
                        question,
                        &["all names, each written", "the same certificate for all"],
                    );
                }
            }
        }
        names.retain(|name| name != "_" && is_asked_for(name) && known.insert(name.clone()));
        names
    }

    /// Whose certificates clients must show, and which of them are revoked.
    fn clients(&mut self, server: &Server<'c>) -> (Option<String>, Option<String>) {
        let Some(verifies) = model::inherited(&server.chain, "ssl_verify_client") else {
            return (None, None);
        };
        match verifies.arg(0) {
            "off" => {
                self.exact(verifies);
                (None, None)
            }
            "on" => {
                let (roots, crl) = wanted(server);
                for directive in [Some(verifies), roots, crl].into_iter().flatten() {
                    self.exact(directive);
                }
                // Without roots nobody is let in until it is said.
                let path = |directive: &Directive| directive.arg(0).to_owned();
                (Some(roots.map(path).unwrap_or_default()), crl.map(path))
            }
            _ => {
                let question = "a client's certificate is asked for but not needed: with us it is needed or not asked for";
                self.decision(verifies, question, &["needed", "not asked for"]);
                (None, None)
            }
        }
    }

    /// What is said to all requests of a server whose clients must show what the
    /// listener does not ask for.
    pub(super) fn unproved(&mut self, server: &Server<'c>, tls: &ServerTls) -> Option<Rule> {
        let verifies = model::inherited(&server.chain, "ssl_verify_client")?;
        let (roots, crl) = wanted(server);
        let path = |directive: &Directive| directive.arg(0).to_owned();
        let is_asked = tls.client_roots == Some(roots.map(path).unwrap_or_default())
            && tls.crl == crl.map(path);
        if verifies.arg(0) != "on" || is_asked {
            return None;
        }
        let question = "clients of this server must show a certificate that other servers of its listener do not ask for, and one of ours asks all alike: until it is said, its requests are refused (403)";
        for directive in [Some(verifies), roots, crl].into_iter().flatten() {
            let choices = ["an address of its own for this server", "the same for all servers"];
            self.decision(directive, question, &choices);
        }
        Some(refusal(verifies, Condition::Always, 403))
    }
}

/// `ssl_client_certificate`, or what stands for it since 1.27, and `ssl_crl`.
fn wanted<'c>(server: &Server<'c>) -> (Option<&'c Directive>, Option<&'c Directive>) {
    let roots = model::inherited(&server.chain, "ssl_client_certificate")
        .or_else(|| model::inherited(&server.chain, "ssl_trusted_certificate"));
    (roots, model::inherited(&server.chain, "ssl_crl"))
}

fn rejects<'c>(server: &Server<'c>) -> Option<&'c Directive> {
    let rejects = model::inherited(&server.chain, "ssl_reject_handshake")?;
    (rejects.arg(0) == "on").then_some(rejects)
}

#[cfg(test)]
mod tests;
