//! TLS of clients and towards applications: files of keys and roots.

use super::Converter;
use crate::{
    envoy::{parts, tree::Tree},
    program::{ClientName, ClientTls, NamePart, ServerCertificate, ServerTls, TlsVersion},
};

impl Converter<'_> {
    pub(super) fn server_tls(&mut self, chain: &Tree) -> Option<ServerTls> {
        let Some(context) = parts::tls(chain, parts::DOWNSTREAM_TLS) else {
            self.other_socket(chain);
            return None;
        };
        let common = context.msg("common_tls_context");
        let mut all = common.map(|common| self.certificates(common)).unwrap_or_default();
        let roots = common.and_then(|common| self.roots(common));
        // Where they are in no file, a certificate is asked for all the same.
        let asks = context.is("require_client_certificate");
        if let Some(field) = common.filter(|_| !asks).and_then(|common| {
            common.entry("validation_context").or(common.entry("combined_validation_context"))
        }) {
            let how = "clients are not asked for a certificate: who shows one that Envoy does not believe comes in, too";
            self.notes.approximated(&field.place, how);
        }
        let mut client_roots = asks.then(|| roots.unwrap_or_default());
        let names = common.filter(|_| asks).and_then(|common| self.client_names(common));
        if names.is_none() && asks {
            client_roots = Some(String::new());
        }
        let client_names = names.unwrap_or_default();
        let crl = common.filter(|_| asks).and_then(|common| self.crl(common));
        if all.is_empty() {
            let question =
                "The certificate is in no file that stands here. Until it is said, it is \"\".";
            self.notes.ask(
                context,
                question,
                &["files of certificate and key", "a certificate of the mesh"],
            );
            return Some(ServerTls { client_roots, client_names, crl, ..ServerTls::default() });
        }
        let (versions, alpn) = common.map(spoken).unwrap_or_default();
        let (certificate, key) = all.remove(0);
        let more = all.into_iter().map(|(certificate, key)| ServerCertificate {
            certificate,
            key,
            names: Vec::new(),
        });
        let more = more.collect();
        let only_known_names = false;
        Some(ServerTls {
            certificate,
            key,
            more,
            only_known_names,
            names: Vec::new(),
            versions,
            alpn: Some(alpn),
            client_roots,
            client_names,
            crl,
        })
    }

    /// Names of clients, of which one is enough; `None` where what is asked of them
    /// cannot be said: nobody is let in until it is.
    fn client_names(&mut self, common: &Tree) -> Option<Vec<ClientName>> {
        let Some(context) = self.validation(common) else { return Some(Vec::new()) };
        for name in ["verify_certificate_spki", "verify_certificate_hash"] {
            if let Some(field) = context.entry(name) {
                let question =
                    "Clients' certificates are compared with these hashes, and ours are not.";
                self.notes.decision(&field.place, question, &["names instead", "all of the CA"]);
                return None;
            }
        }
        let mut names = Vec::new();
        for (field, kinds) in [
            ("match_typed_subject_alt_names", &[] as &[bool]),
            ("match_subject_alt_names", &[false, true]),
        ] {
            let Some(entry) = context.entry(field) else { continue };
            let how =
                "a name of DNS is compared as it stands: `*` in a certificate is no other name";
            self.notes.approximated(&entry.place, how);
            for matcher in context.messages(field) {
                let kinds = match matcher.text("san_type") {
                    Some("DNS") => &[false],
                    Some("URI") => &[true],
                    _ => kinds,
                };
                match said(matcher.msg("matcher").unwrap_or(matcher)).filter(|_| !kinds.is_empty())
                {
                    Some((part, text)) => names.extend(kinds.iter().map(|&is_uri| ClientName {
                        is_uri,
                        part,
                        text: text.clone(),
                    })),
                    None => {
                        let question = "Names of clients are of DNS or URIs here, whole, by their beginning or their end. Until it is said, clients of this one are not let in.";
                        self.notes.ask(matcher, question, &["other names", "leave it out"]);
                    }
                }
            }
            if names.is_empty() {
                return None;
            }
        }
        Some(names)
    }

    /// The list of revoked certificates. What is in no file, or is about leaves only,
    /// cannot be had here, and nobody is let in until it is said.
    fn crl(&mut self, common: &Tree) -> Option<String> {
        let context = self.validation(common)?;
        let field = context.entry("crl")?;
        if let Some(leaf) = context.entry("only_verify_leaf_cert_crl") {
            let question = "Only clients' own certificates are looked for in the list; ours looks for all of a chain, and wants a list of each issuer.";
            self.notes.decision(&leaf.place, question, &["lists of all issuers", "no list"]);
            return Some(String::new());
        }
        let how = "who is in it is refused, and whoever it says nothing of; a list that changes is read again";
        self.notes.approximated(&field.place, how);
        Some(self.file(&context, "crl").unwrap_or_default())
    }

    pub(super) fn client_tls(&mut self, cluster: &Tree) -> Option<ClientTls> {
        let Some(context) = parts::tls(cluster, parts::UPSTREAM_TLS) else {
            self.other_socket(cluster);
            return None;
        };
        let common = context.msg("common_tls_context");
        let roots = common.and_then(|common| self.roots(common));
        let server_name = context.some_text("sni").map(String::from);
        if let Some(field) = context.entry("sni").filter(|_| roots.is_some()) {
            let how = "the certificate must be for this name; Envoy asks for it and believes any name that the roots vouch for";
            self.notes.approximated(&field.place, how);
        }
        let certificate = common.and_then(|common| self.certificate(common));
        Some(ClientTls { server_name, roots, certificate })
    }

    /// A transport socket that is neither TLS nor plaintext.
    fn other_socket(&mut self, of: &Tree) {
        let Some(socket) = of.msg("transport_socket") else { return };
        let config = socket.msg("typed_config");
        if config.is_some_and(|config| config.message == parts::RAW_BUFFER) {
            return;
        }
        let name = socket.text("name").unwrap_or_default();
        let question =
            format!("{name} is not known here. Until it is said, connections are plaintext.");
        self.notes.ask(socket, question, &["plaintext", "TLS", "keep Envoy for it"]);
    }

    /// Files of certificates and keys, written here or as a secret of the bootstrap.
    fn certificates(&mut self, common: &Tree) -> Vec<(String, String)> {
        let mut all: Vec<_> = common.messages("tls_certificates").collect();
        let secret = self.secret(common, "tls_certificate_sds_secret_configs");
        if all.is_empty() {
            all.extend(secret.as_ref().and_then(|secret| secret.msg("tls_certificate")));
        }
        let mut files = Vec::new();
        for certificate in all {
            let chain = self.file(certificate, "certificate_chain");
            files.extend(chain.zip(self.file(certificate, "private_key")));
        }
        files
    }

    /// The first of them, for a client has one.
    fn certificate(&mut self, common: &Tree) -> Option<(String, String)> {
        for other in common.messages("tls_certificates").skip(1) {
            let question = "A second certificate. Until it is said, the first is used.";
            self.notes.ask(other, question, &["the first", "this one"]);
        }
        self.certificates(common).into_iter().next()
    }

    fn validation(&mut self, common: &Tree) -> Option<Tree> {
        let combined = common.msg("combined_validation_context");
        let combined = combined.and_then(|both| both.msg("default_validation_context"));
        let secret = self.secret(common, "validation_context_sds_secret_config");
        let secret = secret.as_ref().and_then(|secret| secret.msg("validation_context"));
        common.msg("validation_context").or(combined).or(secret).cloned()
    }

    fn roots(&mut self, common: &Tree) -> Option<String> {
        let context = self.validation(common)?;
        if let Some(field) = context.entry("system_root_certs") {
            let question = "The roots of the system are believed. Until it is said, everybody is.";
            self.notes.decision(&field.place, question, &["a file of roots"]);
        }
        self.file(&context, "trusted_ca")
    }

    fn file(&mut self, of: &Tree, name: &str) -> Option<String> {
        let field = of.entry(name)?;
        let file = of.msg(name).and_then(|source| source.some_text("filename"));
        if file.is_none() {
            let question = format!(
                "{name} stands in the configuration itself. Until it is said, there is none."
            );
            self.notes.decision(&field.place, question, &["write it to a file"]);
        }
        file.map(String::from)
    }

    /// A secret that the bootstrap knows; others come from a server.
    fn secret(&mut self, common: &Tree, name: &str) -> Option<Tree> {
        let field = common.entry(name)?;
        let first = common.msg(name).or_else(|| common.messages(name).next())?;
        let found = self.config.secrets.get(first.text("name").unwrap_or_default()).cloned();
        match found {
            Some(_) => {
                self.notes.approximated(&field.place, "the files of the secret of this name")
            }
            None => {
                let question =
                    "The secret comes from a server (SDS). Until it is said, there is none.";
                self.notes.decision(&field.place, question, &["files", "certificates of the mesh"]);
            }
        }
        found
    }
}

/// Versions and protocols (ALPN) of CommonTlsContext. Of versions BoringSSL speaks 1.2 and
/// 1.3 to clients where none is written.
fn spoken(common: &Tree) -> (Vec<TlsVersion>, Vec<String>) {
    let params = common.msg("tls_params");
    let is = |name: &str, version: &str| {
        params.as_ref().and_then(|params| params.text(name)) == Some(version)
    };
    let versions = ServerTls::spoken(|version| match version {
        TlsVersion::Tls12 => !is("tls_minimum_protocol_version", "TLSv1_3"),
        TlsVersion::Tls13 => !["TLSv1_0", "TLSv1_1", "TLSv1_2"]
            .iter()
            .any(|most| is("tls_maximum_protocol_version", most)),
    });
    (versions, ServerTls::offered(common.texts("alpn_protocols")))
}

/// What a matcher of names says, if ours can.
fn said(matcher: &Tree) -> Option<(NamePart, String)> {
    let parts =
        [("exact", NamePart::Exact), ("prefix", NamePart::Prefix), ("suffix", NamePart::Suffix)];
    let found = parts.iter().find_map(|(name, part)| Some((*part, matcher.some_text(name)?)));
    let (part, text) = found.filter(|_| !matcher.is("ignore_case"))?;
    Some((part, text.to_owned())).filter(|(_, text)| !text.is_empty())
}

#[cfg(test)]
mod tests;
