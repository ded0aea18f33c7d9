//! TLS of listeners and towards pools. Ours has an end, which no configuration
//! says: a person must.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{Making, object};
use crate::{
    program::{ClientName, ClientTls, NamePart, Pool, ServerCertificate, ServerTls, TlsVersion},
    source::Place,
};

/// How a person says the end.
const FLAG: &str = "for as long as they move: meshctl migrate plan --tls-until DATE";
/// What ours asks of files and certificates, which legacy proxies do not.
const FILES: &str = "certificates of both sides must be X.509 v3, and others may not read the \
                     files of keys (chmod o-rwx), or the listener does not begin";

impl Making<'_> {
    /// `tls` of a listener in `proxy.yaml`.
    pub(super) fn server_tls(&mut self, place: &Place, tls: &ServerTls) -> Option<Value> {
        let Some(until) = self.wanted.tls_until else {
            self.ledger.decision(
                place,
                "clients' TLS does not end at a listener of ours: who takes it?",
                &["something before it", "clients of the mesh, who need none", FLAG],
            );
            return None;
        };
        if tls.client_roots.iter().chain(&tls.crl).any(|path| !is_file(path)) {
            self.ledger.decision(
                place,
                "clients must show a certificate, and whose they must be, or which of them are \
                 revoked, is in no single file: which one is it?",
                &["write one file into the configuration and import it again"],
            );
            return None;
        }
        if !is_certificate(&tls.certificate) || !is_certificate(&tls.key) {
            self.ledger.decision(
                place,
                "clients' TLS ends here, and its certificate is in no single file: which one is \
                 it? Until it is said, the listener is in plaintext.",
                &["write one file into the configuration and import it again"],
            );
            return None;
        }
        let certificates = self.more(place, tls);
        let mut paths = vec![&tls.certificate, &tls.key];
        paths.extend(certificates.iter().flat_map(|one| [&one.certificate, &one.key]));
        paths.extend(tls.client_roots.iter().chain(&tls.crl));
        let how = format!(
            "clients' TLS ({}) ends here until {until}, and is refused from then on{}; {FILES}",
            match tls.versions.as_slice() {
                [TlsVersion::Tls12] => "1.2",
                [TlsVersion::Tls13] => "1.3",
                _ => "1.2 and 1.3",
            },
            relative(&paths)
        );
        self.ledger.approximated(place, how);
        Some(object([
            ("certificate", Some(tls.certificate.as_str().into())),
            ("key", (tls.key != tls.certificate).then(|| tls.key.as_str().into())),
            ("names", (!tls.names.is_empty()).then(|| tls.names.clone().into())),
            (
                "certificates",
                (!certificates.is_empty())
                    .then(|| certificates.iter().map(|one| certificate(one)).collect()),
            ),
            ("only_known_names", tls.only_known_names.then(|| true.into())),
            (
                "versions",
                (!tls.versions.is_empty())
                    .then(|| tls.versions.iter().copied().map(version).collect()),
            ),
            ("alpn", tls.alpn.clone().map(Into::into)),
            ("client_ca", tls.client_roots.as_deref().map(Into::into)),
            (
                "client_names",
                (!tls.client_names.is_empty())
                    .then(|| tls.client_names.iter().map(client_name).collect()),
            ),
            ("crl", tls.crl.as_deref().map(Into::into)),
            ("until", Some(until.into())),
        ]))
    }

    /// Certificates for names, but for those that are in no file.
    fn more<'t>(&mut self, place: &Place, tls: &'t ServerTls) -> Vec<&'t ServerCertificate> {
        let (there, not): (Vec<_>, Vec<_>) = tls
            .more
            .iter()
            .partition(|one| is_certificate(&one.certificate) && is_certificate(&one.key));
        for one in not {
            let names = match one.names.as_slice() {
                [] => "its names".to_owned(),
                names => names.join(", "),
            };
            let question = format!(
                "a certificate for {names} is in no single file: which one is it? Until it is \
                 said, clients that ask for these names get the first of the listener."
            );
            let choices = ["write one file into the configuration and import it again"];
            self.ledger.decision(place, question, &choices);
        }
        there
    }

    /// `tls` of a service in `site.yaml`.
    pub(super) fn client_tls(&mut self, pool: &Pool, tls: &ClientTls) -> Option<Value> {
        let Some(until) = self.wanted.tls_until else {
            self.ledger.decision(
                &pool.place,
                "applications are spoken to in plaintext by a proxy of ours, and these want TLS: \
                 until it is said, nobody speaks to them (503)",
                &[
                    "put a proxy of ours beside them, which speaks mTLS",
                    "let them listen in plaintext, too",
                    FLAG,
                ],
            );
            return None;
        };
        let mut paths: Vec<_> = tls.roots.iter().collect();
        paths.extend(tls.certificate.iter().flat_map(|(certificate, key)| [certificate, key]));
        if !paths.iter().all(|path| is_file(path)) {
            self.ledger.decision(
                &pool.place,
                "these want TLS, and what it takes is in no file: where is it? Until it is said, \
                 nobody speaks to them (503).",
                &["write files into the configuration and import it again"],
            );
            return None;
        }
        if tls.roots.is_some() && tls.server_name.is_none() {
            self.ledger.decision(
                &pool.place,
                "their certificates are for no name that stands here, and ours believes none \
                 without: which one is it? Until it is said, nobody speaks to them (503).",
                &["write the name into the configuration and import it again"],
            );
            return None;
        }
        let belief = match &tls.roots {
            Some(_) => "; their certificates must be X.509 v3, and have the name in subjectAltName",
            None => "; whatever certificate of X.509 v3 they show is believed, as before",
        };
        let how = format!(
            "they are spoken to in TLS (1.2 and 1.3) until {until}, and not at all from then \
             on{belief}{}",
            relative(&paths)
        );
        self.ledger.approximated(&pool.place, how);
        let shown = tls.certificate.as_ref();
        Some(object([
            ("ca", tls.roots.as_deref().map(Into::into)),
            ("name", tls.server_name.as_deref().map(Into::into)),
            ("verify", tls.roots.is_none().then(|| "none".into())),
            ("certificate", shown.map(|(certificate, _)| certificate.as_str().into())),
            ("key", shown.filter(|(one, key)| one != key).map(|(_, key)| key.as_str().into())),
            ("until", Some(until.into())),
        ]))
    }

    /// Endpoints of a pool without those that another pool speaks to otherwise:
    /// what is spoken at an address is one thing with us.
    pub(super) fn spoken_alike(
        &mut self,
        place: &Place,
        endpoints: Vec<Value>,
        tls: Option<&Value>,
    ) -> Vec<Value> {
        let target =
            |endpoint: &Value| -> Option<SocketAddr> { endpoint["target"].as_str()?.parse().ok() };
        let mut kept = Vec::new();
        for endpoint in endpoints {
            let Some(target) = target(&endpoint) else { continue };
            let there = self.spoken.entry(target).or_insert_with(|| tls.cloned());
            if there.as_ref() == tls {
                kept.push(endpoint);
                continue;
            }
            let question = format!(
                "{target} is spoken to in two ways, and a proxy of ours has one for each address. \
                 Until it is said, this one is left out."
            );
            self.ledger.decision(place, question, &["one way for both", "an address for each"]);
        }
        kept
    }
}

fn certificate(one: &ServerCertificate) -> Value {
    object([
        ("certificate", Some(one.certificate.as_str().into())),
        ("key", (one.key != one.certificate).then(|| one.key.as_str().into())),
        ("names", (!one.names.is_empty()).then(|| one.names.clone().into())),
    ])
}

fn version(version: TlsVersion) -> Value {
    match version {
        TlsVersion::Tls12 => "TLSv1.2".into(),
        TlsVersion::Tls13 => "TLSv1.3".into(),
    }
}

fn client_name(name: &ClientName) -> Value {
    let part = match name.part {
        NamePart::Exact => "exact",
        NamePart::Prefix => "prefix",
        NamePart::Suffix => "suffix",
    };
    json!({ "kind": if name.is_uri { "uri" } else { "dns" }, part: name.text })
}

/// The same, or a directory of files.
fn is_certificate(path: &str) -> bool {
    is_file(path.trim_end_matches('/'))
}

/// What is written is the path of a file, as far as can be seen from here.
fn is_file(path: &str) -> bool {
    !path.is_empty() && !path.ends_with('/') && !path.starts_with('@')
}

fn relative(paths: &[&String]) -> String {
    let Some(path) = paths.iter().find(|path| !path.starts_with('/')) else {
        return String::new();
    };
    format!("; {path} is looked for beside the file that names it")
}

/// Keys of a listener in `proxy.yaml`.
pub(super) fn listen(address: SocketAddr, service: &str, port: &str, tls: Option<&Value>) -> Value {
    let mut listen = json!({ "listen": address.to_string(), "service": service, "port": port });
    if let Some(tls) = tls {
        listen["tls"] = tls.clone();
    }
    listen
}
