//! TLS of clients and towards applications: files of keys and roots.

use super::Converter;
use crate::{
    envoy::{parts, tree::Tree},
    program::{ClientTls, ServerTls},
};

impl Converter<'_> {
    pub(super) fn server_tls(&mut self, chain: &Tree) -> Option<ServerTls> {
        let Some(context) = parts::tls(chain, parts::DOWNSTREAM_TLS) else {
            self.other_socket(chain);
            return None;
        };
        let common = context.msg("common_tls_context");
        let pair = common.and_then(|common| self.certificate(common));
        let roots = common.and_then(|common| self.roots(common));
        // Where they are in no file, a certificate is asked for all the same.
        let asks = context.is("require_client_certificate");
        let client_roots = asks.then(|| roots.unwrap_or_default());
        let Some((certificate, key)) = pair else {
            let question =
                "The certificate is in no file that stands here. Until it is said, it is \"\".";
            self.notes.ask(
                context,
                question,
                &["files of certificate and key", "a certificate of the mesh"],
            );
            return Some(ServerTls {
                certificate: String::new(),
                key: String::new(),
                client_roots,
            });
        };
        Some(ServerTls { certificate, key, client_roots })
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

    /// Files of certificate and key, written here or as a secret of the bootstrap.
    fn certificate(&mut self, common: &Tree) -> Option<(String, String)> {
        let mut all = common.messages("tls_certificates");
        let own = all.next();
        for other in all {
            let question = "A second certificate. Until it is said, the first is used.";
            self.notes.ask(other, question, &["the first", "this one"]);
        }
        let secret = self.secret(common, "tls_certificate_sds_secret_configs");
        let secret = secret.as_ref().and_then(|secret| secret.msg("tls_certificate"));
        let certificate = own.or(secret)?;
        let chain = self.file(certificate, "certificate_chain")?;
        Some((chain, self.file(certificate, "private_key")?))
    }

    fn roots(&mut self, common: &Tree) -> Option<String> {
        let combined = common.msg("combined_validation_context");
        let combined = combined.and_then(|both| both.msg("default_validation_context"));
        let secret = self.secret(common, "validation_context_sds_secret_config");
        let secret = secret.as_ref().and_then(|secret| secret.msg("validation_context"));
        let context = common.msg("validation_context").or(combined).or(secret)?;
        if let Some(field) = context.entry("system_root_certs") {
            let question = "The roots of the system are believed. Until it is said, everybody is.";
            self.notes.decision(&field.place, question, &["a file of roots"]);
        }
        self.file(context, "trusted_ca")
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
