//! Who may do what through `Admin` from another machine (`roles` in
//! federation.yaml). Who opens the Unix socket may do everything.

use std::{collections::BTreeMap, fmt, sync::Arc};

use mesh_api::v1::{CreateTokenRequest, Grants};
use mesh_core::{
    SpiffeId, TrustDomain,
    name::{Subject, is_reserved_namespace},
};
use mesh_runtime::config::ConfigError;
use serde::{Deserialize, Serialize};
use tonic::Code;

use crate::refusal::Refusal;

/// The most entries of `roles`.
const MAX_ROLES: usize = 1024;
/// The most namespaces of one entry.
const MAX_NAMESPACES: usize = 256;

/// What a holder may do; each may what the one before may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Makes and revokes ordinary tokens, exports services, watches requests.
    Operator,
    /// Everything.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

/// One entry of `roles`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleFile {
    /// SPIFFE ID of a workload of this site.
    pub id: String,
    /// What it may do.
    pub role: Role,
    /// Limits what an operator may change to these; absent is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<Vec<String>>,
}

/// A checked entry of `roles`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Whose role it is.
    pub id: SpiffeId,
    /// What it may do.
    pub role: Role,
    /// Where an operator may change something; `None` is everywhere.
    pub namespaces: Option<Vec<String>>,
}

/// One call, as far as roles care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call<'a> {
    /// Changes nothing.
    Read,
    /// Exports a service, or takes an export back.
    Export {
        /// `<name>.<namespace>`.
        service: &'a str,
    },
    /// Makes a token with which machines join.
    CreateToken {
        /// Of the identity that it grants.
        namespace: &'a str,
        /// `<name>.<namespace>` or `*.<namespace>`.
        services: &'a [String],
        /// It makes gateways, or holders of a role.
        privileged: bool,
    },
    /// Takes a token back.
    RevokeToken {
        /// Of the token; `None` if there is no such token.
        grants: Option<&'a Grants>,
    },
    /// Changes documents about traffic.
    Manifests {
        /// Those they are in, and those of the services they are for.
        namespaces: &'a [String],
    },
    /// Watches requests as they end.
    Tap {
        /// `<name>.<namespace>`; empty is all.
        service: &'a str,
    },
    /// Everything else: links, nodes, revocation.
    Administer,
}

/// Why somebody may not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Not in `roles`.
    #[error("{id} has no role; {}", add(.id, *.needed))]
    NoRole {
        /// Who called.
        id: SpiffeId,
        /// The least role that may.
        needed: Role,
    },
    /// A role that may not.
    #[error("{id} has role {has}, this needs {needed}; {}", add(.id, *.needed))]
    Role {
        /// Who called.
        id: SpiffeId,
        /// The role it has.
        has: Role,
        /// The least role that may.
        needed: Role,
    },
    /// An operator of other namespaces.
    #[error("{id} is operator of {} only, not of {namespace}; {}", .own.join(", "), widen(.id, .own, .namespace))]
    Namespace {
        /// Who called.
        id: SpiffeId,
        /// What it is limited to.
        own: Vec<String>,
        /// What it wanted to change.
        namespace: String,
    },
    /// An operator of some namespaces, and a change that belongs to none.
    #[error("{id} is operator of {} only, this belongs to no namespace; ask somebody whose role has no `namespaces`", .own.join(", "))]
    NoNamespace {
        /// Who called.
        id: SpiffeId,
        /// What it is limited to.
        own: Vec<String>,
    },
}

/// The line of federation.yaml that would allow it.
fn add(id: &SpiffeId, role: Role) -> String {
    format!(
        "if it should, its line under `roles` in federation.yaml is (then restart federation): \
         - {{ id: \"{id}\", role: {role} }}"
    )
}

fn widen(id: &SpiffeId, own: &[String], namespace: &str) -> String {
    format!(
        "if it should, its line under `roles` in federation.yaml is (then restart federation): \
         - {{ id: \"{id}\", role: operator, namespaces: [{}, {namespace}] }}",
        own.join(", ")
    )
}

impl Refusal for Denied {
    fn code(&self) -> Code {
        Code::PermissionDenied
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NoRole { .. } => "role_missing",
            Self::Role { .. } => "role_denied",
            Self::Namespace { .. } | Self::NoNamespace { .. } => "namespace_denied",
        }
    }
}

/// Whether a holder of a role may make a call.
pub fn allows(holder: &Holder, call: Call<'_>) -> Result<(), Denied> {
    let (id, needed) = (|| holder.id.clone(), call.needs());
    if holder.role < needed {
        return Err(Denied::Role { id: id(), has: holder.role, needed });
    }
    let Some(own) = &holder.namespaces else { return Ok(()) };
    if needed == Role::Viewer {
        return Ok(());
    }
    let touched = call.namespaces();
    if touched.is_empty() {
        return Err(Denied::NoNamespace { id: id(), own: own.clone() });
    }
    match touched.into_iter().find(|namespace| own.iter().all(|own| own != namespace)) {
        None => Ok(()),
        Some(other) => {
            let namespace = format!("{other:.64}");
            Err(Denied::Namespace { id: id(), own: own.clone(), namespace })
        }
    }
}

impl<'a> Call<'a> {
    /// For log lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Export { .. } => "export",
            Self::CreateToken { .. } => "create token",
            Self::RevokeToken { .. } => "revoke token",
            Self::Manifests { .. } => "change manifests",
            Self::Tap { .. } => "tap",
            Self::Administer => "administer",
        }
    }

    /// The least role that may make it.
    fn needs(self) -> Role {
        match self {
            Self::Read => Role::Viewer,
            Self::CreateToken { privileged: true, .. } | Self::Administer => Role::Admin,
            Self::Export { .. }
            | Self::CreateToken { .. }
            | Self::RevokeToken { .. }
            | Self::Manifests { .. }
            | Self::Tap { .. } => Role::Operator,
        }
    }

    /// Every namespace that it changes something in, or looks into.
    fn namespaces(self) -> Vec<&'a str> {
        match self {
            Self::Read | Self::Administer | Self::RevokeToken { grants: None } => Vec::new(),
            Self::Tap { service: "" } => Vec::new(),
            Self::Export { service } | Self::Tap { service } => vec![namespace_of(service)],
            Self::Manifests { namespaces } => namespaces.iter().map(String::as_str).collect(),
            Self::CreateToken { namespace, services, .. } => granted(namespace, services),
            Self::RevokeToken { grants: Some(grants) } => {
                granted(&grants.namespace, &grants.services)
            }
        }
    }
}

/// Empty for tokens of links and of machines that are only gateways.
fn granted<'a>(namespace: &'a str, services: &'a [String]) -> Vec<&'a str> {
    let own = Some(namespace).filter(|namespace| !namespace.is_empty());
    own.into_iter().chain(services.iter().map(|service| namespace_of(service))).collect()
}

/// What is no service name is in nobody's namespace.
fn namespace_of(service: &str) -> &str {
    service.split_once('.').map_or(service, |(_, namespace)| namespace)
}

/// All holders of a role.
#[derive(Debug, Clone, Default)]
pub struct Roles(Arc<BTreeMap<SpiffeId, Holder>>);

impl Roles {
    /// Checks what was written; `file` is how errors name it.
    pub fn check(
        written: Vec<RoleFile>,
        own: &TrustDomain,
        file: &str,
    ) -> Result<Self, ConfigError> {
        if written.len() > MAX_ROLES {
            let problem = format!("at most {MAX_ROLES} entries");
            return Err(ConfigError::meaning(file, "roles", problem));
        }
        let mut holders = BTreeMap::new();
        for (i, entry) in written.into_iter().enumerate() {
            let wrong = |(key, problem): (&str, String)| {
                ConfigError::meaning(file, format!("roles[{i}].{key}"), problem)
            };
            let holder = check_entry(entry, own).map_err(wrong)?;
            let id = holder.id.clone();
            if holders.insert(id.clone(), holder).is_some() {
                return Err(wrong(("id", format!("{id} has a role by an earlier entry already"))));
            }
        }
        Ok(Self(Arc::new(holders)))
    }

    /// Whether a caller who has proved to be `id` may make a call.
    pub fn admit(&self, id: &SpiffeId, call: Call<'_>) -> Result<(), Denied> {
        match self.0.get(id) {
            Some(holder) => allows(holder, call),
            None => Err(Denied::NoRole { id: id.clone(), needed: call.needs() }),
        }
    }

    /// The call that asks for a token. Who makes a token for an identity with a
    /// role can become it by joining a machine, so that is privileged.
    pub fn token<'a>(&self, asked: &'a CreateTokenRequest, own: &TrustDomain) -> Call<'a> {
        let granted = SpiffeId::workload(own, &asked.namespace, &asked.account);
        let confers = granted.is_ok_and(|id| self.0.contains_key(&id));
        Call::CreateToken {
            namespace: &asked.namespace,
            services: &asked.services,
            privileged: asked.gateway || confers,
        }
    }
}

fn check_entry(entry: RoleFile, own: &TrustDomain) -> Result<Holder, (&'static str, String)> {
    let id: SpiffeId = entry.id.parse().map_err(|error| ("id", format!("{error}")))?;
    if id.trust_domain() != own {
        return Err(("id", format!("{id} is not of {own}, the trust domain of this site")));
    }
    match id.subject() {
        Subject::Node(_) => {
            let problem = format!("{id} is a node; a role belongs to a workload, /ns/…/sa/…");
            return Err(("id", problem));
        }
        Subject::Workload { namespace, .. } if is_reserved_namespace(namespace) => {
            let problem = format!("{id}: namespace {namespace} is reserved for the mesh");
            return Err(("id", problem));
        }
        Subject::Workload { .. } => {}
    }
    if let Some(namespaces) = &entry.namespaces {
        check_namespaces(namespaces, entry.role, own).map_err(|problem| ("namespaces", problem))?;
    }
    Ok(Holder { id, role: entry.role, namespaces: entry.namespaces })
}

fn check_namespaces(namespaces: &[String], role: Role, own: &TrustDomain) -> Result<(), String> {
    if role != Role::Operator {
        return Err(format!("only an operator can be limited to namespaces, not a {role}"));
    }
    if namespaces.is_empty() || namespaces.len() > MAX_NAMESPACES {
        return Err(format!("1 to {MAX_NAMESPACES} namespaces; leave it out for no limit"));
    }
    for namespace in namespaces {
        // The account plays no part in whether the namespace is well formed.
        SpiffeId::workload(own, namespace, "any").map_err(|error| error.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
