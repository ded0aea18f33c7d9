//! Rules for connections of opaque bytes: Gateway API TLSRoute and TCPRoute.

use std::{fmt, str::FromStr, sync::Arc};

use super::{RouteBackend, matching::NothingMatches};
use crate::{
    client_hello::ClientHello,
    name::{InvalidName, PortName, invalid, label},
};

/// The rule of a TLSRoute or TCPRoute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionRoute {
    /// Unique among them in the service.
    pub name: Arc<str>,
    /// The port it is for; `None` is every one.
    pub port: Option<PortName>,
    /// The callers' namespace it is for; `None` is every one.
    pub client_namespace: Option<Arc<str>>,
    /// What it is for.
    pub of: Connections,
    /// What takes the connections, by weight; none refuses them.
    pub backends: Vec<RouteBackend>,
}

/// Which connections a rule is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connections {
    /// Every one that no other rule is for.
    Any,
    /// Those of TLS that ask for one of these names; without names, every one
    /// of TLS.
    Tls(Vec<HostPattern>),
}

/// A host name, or `*.` before one, which stands for one or more labels
/// (Gateway API Hostname).
#[derive(Clone, PartialEq, Eq)]
pub struct HostPattern(Arc<str>);

impl HostPattern {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How narrow it is, if `name` is one of its names: exact ones first, then
    /// the longest.
    fn holds(&self, name: &str) -> Option<(bool, usize)> {
        let Some(suffix) = self.0.strip_prefix('*') else {
            return (*self.0 == *name).then_some((true, name.len()));
        };
        let labels = name.strip_suffix(suffix)?;
        (!labels.is_empty()).then_some((false, suffix.len()))
    }
}

impl FromStr for HostPattern {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        const KIND: &str = "host name";
        if text.len() > 253 {
            return Err(invalid(KIND, text, "is longer than 253 bytes"));
        }
        let name = text.strip_prefix("*.").unwrap_or(text);
        name.split('.').try_for_each(|one| label(KIND, one))?;
        // What ends in digits alone is an address (Gateway API allows none).
        if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
            return Err(invalid(KIND, text, "is an address"));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// The rules for connections of one service, in the order that decides
/// between equals.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConnectionRoutes(pub Vec<ConnectionRoute>);

impl ConnectionRoutes {
    /// The rule for a connection to `port` by a caller of namespace `from`.
    /// Of one without `hello` it is not known that it speaks TLS.
    ///
    /// `Err` if there are rules for TLS and none is for the name that it asks
    /// for; `Ok(None)` if there are no rules for it.
    pub fn find(
        &self,
        port: &PortName,
        from: Option<&str>,
        hello: Option<&ClientHello>,
    ) -> Result<Option<&ConnectionRoute>, NothingMatches> {
        if let Some(hello) = hello.filter(|_| self.want_hello(port, from)) {
            let mut best: Option<(Narrow, &ConnectionRoute)> = None;
            for route in self.of(port, from, true) {
                let narrow = route.of.holds(hello.server_name.as_deref());
                let Some(narrow) = narrow else { continue };
                if best.as_ref().is_none_or(|(so_far, _)| narrow > *so_far) {
                    best = Some((narrow, route));
                }
            }
            return best.map(|(_, route)| Some(route)).ok_or(NothingMatches);
        }
        Ok(self.of(port, from, false).next())
    }

    /// Whether it has to be known which name a connection asks for.
    pub fn want_hello(&self, port: &PortName, from: Option<&str>) -> bool {
        self.of(port, from, true).next().is_some()
    }

    /// Those of a consumer replace those for everybody (GEP-1294).
    fn of(
        &self,
        port: &PortName,
        from: Option<&str>,
        tls: bool,
    ) -> impl Iterator<Item = &ConnectionRoute> {
        let is_for = move |route: &&ConnectionRoute, from: Option<&str>| {
            matches!(route.of, Connections::Tls(_)) == tls
                && route.client_namespace.as_deref() == from
                && route.port.as_ref().is_none_or(|only| only == port)
        };
        let consumer = from.filter(|from| self.0.iter().any(|route| is_for(&route, Some(from))));
        self.0.iter().filter(move |route| is_for(route, consumer))
    }
}

/// How narrow a match is; `None` is a rule without names.
type Narrow = Option<(bool, usize)>;

impl Connections {
    fn holds(&self, name: Option<&str>) -> Option<Narrow> {
        match self {
            Self::Any => Some(None),
            Self::Tls(names) if names.is_empty() => Some(None),
            Self::Tls(names) => {
                let narrowest = names.iter().filter_map(|one| one.holds(name?)).max();
                narrowest.map(Some)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(name: &str, of: Connections) -> ConnectionRoute {
        let (port, client_namespace, backends) = (None, None, Vec::new());
        ConnectionRoute { name: name.into(), port, client_namespace, of, backends }
    }

    fn tls(name: &str, hosts: &[&str]) -> ConnectionRoute {
        let hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
        route(name, Connections::Tls(hosts))
    }

    fn hello(name: Option<&str>) -> ClientHello {
        ClientHello { server_name: name.map(Into::into) }
    }

    fn found<'r>(
        routes: &'r ConnectionRoutes,
        from: Option<&str>,
        hello: Option<ClientHello>,
    ) -> Result<Option<&'r str>, NothingMatches> {
        let found = routes.find(&"tls".parse().unwrap(), from, hello.as_ref())?;
        Ok(found.map(|route| &*route.name))
    }

    #[test]
    fn exact_names_come_before_the_longest_wildcard() {
        let routes = ConnectionRoutes(vec![
            tls("wide", &["*.example.com"]),
            tls("wider", &["*.com", "x.org"]),
            tls("narrow", &["*.a.example.com"]),
            tls("exact", &["b.a.example.com"]),
            tls("again", &["b.a.example.com"]),
            route("tcp", Connections::Any),
        ]);
        for (name, wanted) in [
            ("b.a.example.com", Ok(Some("exact"))),
            ("c.a.example.com", Ok(Some("narrow"))),
            ("d.c.a.example.com", Ok(Some("narrow"))),
            ("a.example.com", Ok(Some("wide"))),
            ("example.com", Ok(Some("wider"))),
            ("xexample.com", Ok(Some("wider"))),
            ("x.org", Ok(Some("wider"))),
            ("y.org", Err(NothingMatches)),
            ("com", Err(NothingMatches)),
        ] {
            assert_eq!(found(&routes, None, Some(hello(Some(name)))), wanted, "{name}");
        }
        assert_eq!(found(&routes, None, Some(hello(None))), Err(NothingMatches));
        assert_eq!(found(&routes, None, None), Ok(Some("tcp")));
    }

    #[test]
    fn rules_without_names_take_the_rest() {
        let routes = ConnectionRoutes(vec![tls("rest", &[]), tls("com", &["*.com"])]);
        assert_eq!(found(&routes, None, Some(hello(Some("a.com")))), Ok(Some("com")));
        assert_eq!(found(&routes, None, Some(hello(Some("a.org")))), Ok(Some("rest")));
        assert_eq!(found(&routes, None, Some(hello(None))), Ok(Some("rest")));
        assert_eq!(found(&routes, None, None), Ok(None));
        assert_eq!(found(&ConnectionRoutes::default(), None, Some(hello(None))), Ok(None));
    }

    #[test]
    fn rules_of_callers_replace_the_others_for_them() {
        let mut own = tls("own", &["a.com"]);
        own.client_namespace = Some("shop".into());
        let mut other = tls("other port", &[]);
        other.port = Some("other".parse().unwrap());
        let routes = ConnectionRoutes(vec![tls("all", &[]), own, other]);
        let (shop, asked) = (Some("shop"), |name| Some(hello(Some(name))));
        assert_eq!(found(&routes, shop, asked("a.com")), Ok(Some("own")));
        assert_eq!(found(&routes, shop, asked("b.com")), Err(NothingMatches));
        assert_eq!(found(&routes, Some("x"), asked("b.com")), Ok(Some("all")));
    }

    #[test]
    fn rules_are_for_their_port() {
        let of_port = |port: &str| ConnectionRoute { port: port.parse().ok(), ..tls(port, &[]) };
        let asked = || Some(hello(Some("a.com")));
        let both = ConnectionRoutes(vec![of_port("other"), of_port("tls")]);
        assert_eq!(found(&both, None, asked()), Ok(Some("tls")));
        assert_eq!(found(&ConnectionRoutes(vec![of_port("other")]), None, asked()), Ok(None));
    }

    #[test]
    fn patterns() {
        let [longest, longer, wide] =
            ["", "a", "*."].map(|start| format!("{start}{}{}", "a.".repeat(125), "abc"));
        for good in ["a", "a.b-c.d", "*.a", "*.example.com", &longest] {
            let pattern: HostPattern = good.parse().unwrap();
            assert_eq!((pattern.as_str(), format!("{pattern:?}")), (good, format!("{good:?}")));
        }
        for bad in [
            &*longer, &wide, "", "*", "*.", "a.*", "*a.b", "A.b", "a..b", "a.", "10.0.0.1", "*.1",
            "a_b",
        ] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad}");
        }
    }
}
