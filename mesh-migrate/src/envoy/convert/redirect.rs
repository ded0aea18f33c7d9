//! Where clients are sent to, as an answer of ours.

use super::{
    Converter, Within,
    action::{replaced, rewritten},
};
use crate::{
    envoy::{parts, tree::Tree},
    program::{Location, PathChange, Reply},
};

impl Converter<'_> {
    pub(super) fn redirect(
        &mut self,
        redirect: &Tree,
        matcher: &Tree,
        within: &Within<'_>,
    ) -> Reply {
        let status = crate::envoy::explain::redirect::status(redirect);
        let own = if within.is_tls { "https" } else { "http" };
        let scheme = redirect.some_text("scheme_redirect").map(str::to_ascii_lowercase);
        if let Some(other) = scheme.as_ref().filter(|s| !["http", "https"].contains(&s.as_str()))
            && let Some(field) = redirect.entry("scheme_redirect")
        {
            let question = format!(
                "A redirect of ours leads to http or https, not to {other}. Until it is said, it is answered 501."
            );
            let choices = ["another address", "the application redirects"];
            self.notes.decision(&field.place, question, &choices);
            return Reply { status: 501, ..Reply::default() };
        }
        let scheme = scheme
            .unwrap_or_else(|| if redirect.is("https_redirect") { "https" } else { own }.into());
        let own_port = if scheme == "https" { 443 } else { 80 };
        if let Some(field) = redirect.entry("port_redirect")
            && redirect.count("port_redirect") == Some(own_port)
        {
            let how = format!("Location is without :{own_port}, which it means");
            self.notes.approximated(&field.place, how);
        }
        let mut location = Location {
            scheme: Some(scheme),
            port: redirect
                .count("port_redirect")
                .and_then(|port| u16::try_from(port).ok())
                .filter(|port| *port > 0),
            strip_query: redirect.is("strip_query"),
            ..Location::default()
        };
        match redirect.some_text("host_redirect") {
            Some(host) => {
                let bare = parts::without_port(host, None);
                let port = host[bare.len()..].trim_start_matches(':').parse().ok();
                location.host = Some(bare.into());
                if let (Some(field), Some(_), Some(_)) =
                    (redirect.entry("host_redirect"), port, location.port)
                {
                    let how = "its port gives way to port_redirect; Envoy writes both";
                    self.notes.approximated(&field.place, how);
                }
                location.port = location.port.or(port);
            }
            None => {
                let how = "the port of Host is left out of the address that clients are sent to; the scheme is that of the listener, whatever X-Forwarded-Proto says";
                self.notes
                    .whole(redirect, crate::ledger::Verdict::Approximated { how: how.into() });
            }
        }
        self.leads_to(redirect, matcher, &mut location);
        if let Some(field) = redirect.entry("path_rewrite") {
            let question = "The path is made by a format. Until it is said, it stays.";
            self.notes.decision(
                &field.place,
                question,
                &["write path_redirect or regex_rewrite", "keep Envoy before us"],
            );
        }
        Reply { status, location: Some(location), ..Reply::default() }
    }

    /// The path of it.
    fn leads_to(&mut self, redirect: &Tree, matcher: &Tree, location: &mut Location) {
        self.queries(redirect);
        if let Some(to) = redirect.some_text("path_redirect") {
            location.path = Some(PathChange::Whole(to.into()));
            if to.contains('?') {
                // Its own query goes before the request's.
                location.strip_query = true;
            }
        } else if let Some(to) = redirect.some_text("prefix_rewrite") {
            location.path = Some(replaced(Some(matcher), to));
        } else if let Some(rewrite) = redirect.msg("regex_rewrite") {
            location.path = Some(rewritten(rewrite));
        }
    }
}
