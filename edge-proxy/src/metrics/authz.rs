//! What policies have said to calls, as Linkerd's proxies count it.

use std::sync::Arc;

use prometheus_client::{metrics::counter::Counter, registry::Registry};
use tokio::time::Instant;

use super::{
    labels::{Labels, Pair},
    series::Series,
    traffic,
};
use crate::{access_log::Entry, app::Shared};

/// Of the rules that have a name of their own.
const GROUP: &str = "policy.linkerd.io";

/// What a policy has said to one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decided {
    /// Yes, by the rule of this name; without one where no rules are written.
    Allowed(Option<Arc<str>>),
    /// Yes, but only because its port is audited.
    Audited,
    /// No.
    Denied,
}

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Authz {
    http_allow: Series<Labels, Counter>,
    http_deny: Series<Labels, Counter>,
    tcp_allow: Series<Labels, Counter>,
    tcp_deny: Series<Labels, Counter>,
}

impl Authz {
    /// Nothing is counted yet; `refused` counts series without room.
    pub fn new(refused: &Counter) -> Self {
        let counter = || Series::new(Counter::default, refused.clone());
        let (http_allow, http_deny) = (counter(), counter());
        Self { http_allow, http_deny, tcp_allow: counter(), tcp_deny: counter() }
    }

    /// Shows everything; `registry` has no prefix.
    pub fn register(&self, registry: &mut Registry) {
        let [http_allow, http_deny, tcp_allow, tcp_deny] = self.all().map(Clone::clone);
        let (allowed, denied) = ("Requests that a policy allows", "Requests that no rule allows");
        registry.register("inbound_http_authz_allow", allowed, http_allow);
        registry.register("inbound_http_authz_deny", denied, http_deny);
        let (allowed, denied) =
            ("Connections that a policy allows", "Connections that no rule allows");
        registry.register("inbound_tcp_authz_allow", allowed, tcp_allow);
        registry.register("inbound_tcp_authz_deny", denied, tcp_deny);
    }

    fn all(&self) -> [&Series<Labels, Counter>; 4] {
        [&self.http_allow, &self.http_deny, &self.tcp_allow, &self.tcp_deny]
    }

    /// Forgets what nobody uses.
    pub fn sweep(&self, now: Instant) {
        self.all().into_iter().for_each(|series| series.sweep(now));
    }

    /// What a call that was decided about is counted in.
    pub fn of(&self, shared: &Shared, entry: &Entry) -> Option<Arc<Counter>> {
        let decided = entry.decided.as_ref()?;
        let base = traffic::labels(shared, entry, true);
        Some(match (decided, entry.is_opaque()) {
            (Decided::Denied, false) => self.http_deny.of(&base),
            (Decided::Denied, true) => self.tcp_deny.of(&base),
            (_, false) => self.http_allow.of(&base.with(named(decided))),
            (_, true) => self.tcp_allow.of(&base.with(named(decided))),
        })
    }
}

/// By what a call was allowed. A rule is called as its document is:
/// `<kind> <namespace>/<name>`.
fn named(decided: &Decided) -> [Pair; 3] {
    let rule = match decided {
        Decided::Allowed(rule) => rule.as_deref().unwrap_or_default(),
        Decided::Audited | Decided::Denied => "",
    };
    let document =
        rule.split_once(' ').and_then(|(kind, name)| Some((kind, name.split_once('/')?)));
    let (group, kind, name) = match document {
        Some((kind, (_, name))) => (GROUP, kind.to_ascii_lowercase(), name),
        None if *decided == Decided::Audited => ("", "default".to_owned(), "audit"),
        None => ("", "default".to_owned(), "all-authenticated"),
    };
    [("authz_group", group.to_owned()), ("authz_kind", kind), ("authz_name", name.to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_named_as_their_documents() {
        let names = |decided| named(&decided).map(|(_, value)| value);
        let by = |rule: &str| names(Decided::Allowed(Some(rule.into())));
        assert_eq!(by("AuthorizationPolicy shop/admin"), [GROUP, "authorizationpolicy", "admin"]);
        assert_eq!(by("Server shop/http"), [GROUP, "server", "http"]);
        assert_eq!(by(""), ["", "default", "all-authenticated"]);
        assert_eq!(names(Decided::Allowed(None)), ["", "default", "all-authenticated"]);
        assert_eq!(names(Decided::Audited), ["", "default", "audit"]);
    }
}
