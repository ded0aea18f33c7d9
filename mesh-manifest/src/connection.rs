//! TLSRoute and TCPRoute (Gateway API): which backends take connections.

use mesh_api::v1;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::rule::{BackendRef, ParentRef};

/// `spec` of a TLSRoute.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TlsRouteSpec {
    /// The services it is for.
    pub parent_refs: Vec<ParentRef>,
    /// That clients ask for (SNI): a name, or `*.` before one, which stands
    /// for one or more labels; any name, or none, where absent.
    pub hostnames: Vec<String>,
    /// Just one: nothing would tell a second one from it.
    pub rules: Vec<ConnectionRule>,
}

/// `spec` of a TCPRoute.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TcpRouteSpec {
    /// The services it is for.
    pub parent_refs: Vec<ParentRef>,
    /// Just one: nothing would tell a second one from it.
    pub rules: Vec<ConnectionRule>,
}

/// What takes the connections.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConnectionRule {
    /// For logs and metrics.
    pub name: Option<String>,
    /// By weight, without filters.
    pub backend_refs: Vec<BackendRef>,
}

/// What either kind says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connections<'s> {
    pub(crate) parents: &'s [ParentRef],
    /// `None` for TCPRoute.
    hostnames: Option<&'s [String]>,
    rules: &'s [ConnectionRule],
}

impl TlsRouteSpec {
    pub(crate) fn connections(&self) -> Connections<'_> {
        let hostnames = Some(&*self.hostnames);
        Connections { parents: &self.parent_refs, hostnames, rules: &self.rules }
    }
}

impl TcpRouteSpec {
    pub(crate) fn connections(&self) -> Connections<'_> {
        Connections { parents: &self.parent_refs, hostnames: None, rules: &self.rules }
    }
}

impl Connections<'_> {
    /// As it travels; still without name, port and caller.
    pub(crate) fn wire(
        self,
        backend: impl Fn(&BackendRef) -> Result<v1::Backend, String>,
    ) -> Result<v1::ConnectionRoute, String> {
        let [rule] = self.rules else {
            return Err(format!("spec.rules: there must be one, not {}", self.rules.len()));
        };
        let mut backends = Vec::new();
        for (index, one) in rule.backend_refs.iter().enumerate() {
            let place = format!("spec.rules[0].backendRefs[{index}]");
            if !one.filters.is_empty() {
                return Err(format!("{place}.filters: connections have no headers"));
            }
            backends.push(backend(one).map_err(|text| format!("{place}.{text}"))?);
        }
        Ok(v1::ConnectionRoute {
            name: rule.name.clone().unwrap_or_else(|| "0".into()),
            tls: self.hostnames.is_some(),
            hostnames: self.hostnames.unwrap_or_default().to_vec(),
            backends,
            ..v1::ConnectionRoute::default()
        })
    }
}
