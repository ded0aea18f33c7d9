//! Names. Each type is parsed once, at the edge, and cannot hold nonsense.
//!
//! Labels follow RFC 1123 (lower-case letters, digits, inner hyphens, at most
//! 63 bytes); SPIFFE IDs and trust domains follow the SPIFFE-ID specification,
//! section 2.

use std::{fmt, str::FromStr, sync::Arc};

/// Why a name was refused; says which rule it broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?}: {problem}")]
pub struct InvalidName {
    kind: &'static str,
    value: String,
    problem: &'static str,
}

pub(crate) fn invalid(kind: &'static str, value: &str, problem: &'static str) -> InvalidName {
    // A hostile peer chooses `value`: keep error messages short.
    let value = value.chars().take(80).collect();
    InvalidName { kind, value, problem }
}

/// Checks one RFC 1123 label.
pub(crate) fn label(kind: &'static str, value: &str) -> Result<(), InvalidName> {
    let bytes = value.as_bytes();
    let edge_ok = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    if bytes.is_empty() {
        return Err(invalid(kind, value, "is empty"));
    }
    if bytes.len() > 63 {
        return Err(invalid(kind, value, "is longer than 63 bytes"));
    }
    if !bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-') {
        return Err(invalid(kind, value, "may hold only a-z, 0-9 and '-'"));
    }
    if !edge_ok(bytes.first()) || !edge_ok(bytes.last()) {
        return Err(invalid(kind, value, "must begin and end with a letter or digit"));
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as it is written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                let check: fn(&'static str, &str) -> Result<(), InvalidName> = $check;
                check($kind, value)?;
                Ok(Self(value.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name_type!(
    /// Name of a site, one label.
    SiteName, "site", label
);
name_type!(
    /// Name of a service port, one label.
    PortName, "port name", label
);
name_type!(
    /// Id of a gateway, unique in its site, one label.
    GatewayId, "gateway id", label
);
name_type!(
    /// `<name>.<namespace>`.
    ServiceName, "service", service_name
);
name_type!(
    /// Opaque id of an endpoint, unique in its site: 1 to 64 of `a-z 0-9 -`.
    EndpointId, "endpoint id", opaque_id
);
name_type!(
    /// UUID of a node, lower case with hyphens (RFC 9562 section 4).
    NodeId, "node id", uuid
);
name_type!(
    /// A SPIFFE trust domain: 1 to 255 of `a-z 0-9 . - _`.
    TrustDomain, "trust domain", trust_domain
);

fn service_name(kind: &'static str, value: &str) -> Result<(), InvalidName> {
    let Some((name, namespace)) = value.split_once('.') else {
        return Err(invalid(kind, value, "must be <name>.<namespace>"));
    };
    label(kind, name)?;
    label(kind, namespace)
}

fn opaque_id(kind: &'static str, value: &str) -> Result<(), InvalidName> {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if value.is_empty() || value.len() > 64 || !value.bytes().all(ok) {
        return Err(invalid(kind, value, "must be 1 to 64 of a-z, 0-9 and '-'"));
    }
    Ok(())
}

fn uuid(kind: &'static str, value: &str) -> Result<(), InvalidName> {
    let ok = value.len() == 36
        && value.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
        });
    if ok { Ok(()) } else { Err(invalid(kind, value, "must be a lower-case UUID")) }
}

fn trust_domain(kind: &'static str, value: &str) -> Result<(), InvalidName> {
    let ok =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if value.is_empty() || value.len() > 255 || !value.bytes().all(ok) {
        return Err(invalid(kind, value, "must be 1 to 255 of a-z, 0-9, '.', '-' and '_'"));
    }
    Ok(())
}

/// The namespace that ordinary tokens never grant and links never import.
pub const SYSTEM_NAMESPACE: &str = "isthmus-system";

/// Whether a namespace is kept for the mesh or for Kubernetes itself.
pub fn is_reserved_namespace(namespace: &str) -> bool {
    namespace.starts_with("kube-") || namespace.starts_with("isthmus-")
}

impl ServiceName {
    /// The part before the dot.
    pub fn name(&self) -> &str {
        self.0.split_once('.').map_or("", |(name, _)| name)
    }

    /// The part after the dot.
    pub fn namespace(&self) -> &str {
        self.0.split_once('.').map_or("", |(_, namespace)| namespace)
    }
}

/// A SPIFFE ID of one of the two shapes this mesh issues or accepts:
/// `spiffe://<td>/ns/<namespace>/sa/<account>` and `spiffe://<td>/node/<uuid>`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    trust_domain: TrustDomain,
    subject: Subject,
}

/// Whom a [`SpiffeId`] names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// An instance of an application.
    Workload {
        /// RFC 1123 label.
        namespace: Arc<str>,
        /// RFC 1123 label.
        account: Arc<str>,
    },
    /// A joined machine.
    Node(NodeId),
}

impl SpiffeId {
    /// `spiffe://<td>/ns/<namespace>/sa/<account>`.
    pub fn workload(
        trust_domain: &TrustDomain,
        namespace: &str,
        account: &str,
    ) -> Result<Self, InvalidName> {
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}").parse()
    }

    /// `spiffe://<td>/node/<uuid>`.
    pub fn node(trust_domain: &TrustDomain, node: &NodeId) -> Self {
        Self {
            uri: format!("spiffe://{trust_domain}/node/{node}").into(),
            trust_domain: trust_domain.clone(),
            subject: Subject::Node(node.clone()),
        }
    }

    /// The reserved identity of a site's gateways.
    pub fn gateway(trust_domain: &TrustDomain) -> Self {
        Self::system(trust_domain, "gateway")
    }

    /// The reserved identity of a site's federation.
    pub fn federation(trust_domain: &TrustDomain) -> Self {
        Self::system(trust_domain, "federation")
    }

    fn system(trust_domain: &TrustDomain, account: &'static str) -> Self {
        Self {
            uri: format!("spiffe://{trust_domain}/ns/{SYSTEM_NAMESPACE}/sa/{account}").into(),
            trust_domain: trust_domain.clone(),
            subject: Subject::Workload {
                namespace: SYSTEM_NAMESPACE.into(),
                account: account.into(),
            },
        }
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The trust domain part.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Whom it names.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The namespace of a workload; a node has none.
    pub fn namespace(&self) -> Option<&str> {
        match &self.subject {
            Subject::Workload { namespace, .. } => Some(namespace),
            Subject::Node(_) => None,
        }
    }

    /// Whether this is the reserved gateway identity of its trust domain.
    pub fn is_gateway(&self) -> bool {
        self.is_system("gateway")
    }

    /// Whether this is the reserved federation identity of its trust domain.
    pub fn is_federation(&self) -> bool {
        self.is_system("federation")
    }

    fn is_system(&self, wanted: &str) -> bool {
        matches!(&self.subject, Subject::Workload { namespace, account }
            if &**namespace == SYSTEM_NAMESPACE && &**account == wanted)
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidName;

    fn from_str(uri: &str) -> Result<Self, InvalidName> {
        const KIND: &str = "SPIFFE ID";
        if uri.len() > 2048 {
            return Err(invalid(KIND, uri, "is longer than 2048 bytes"));
        }
        let rest = uri
            .strip_prefix("spiffe://")
            .ok_or_else(|| invalid(KIND, uri, "must begin with spiffe://"))?;
        let mut parts = rest.split('/');
        let domain: TrustDomain = parts.next().unwrap_or_default().parse()?;
        let subject = match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => {
                label("namespace", namespace)?;
                label("account", account)?;
                Subject::Workload { namespace: namespace.into(), account: account.into() }
            }
            (Some("node"), Some(node), None, None, None) => Subject::Node(node.parse()?),
            _ => {
                let problem = "must be /ns/<namespace>/sa/<account> or /node/<uuid>";
                return Err(invalid(KIND, uri, problem));
            }
        };
        Ok(Self { uri: uri.into(), trust_domain: domain, subject })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.uri, f)
    }
}

#[cfg(test)]
mod tests;
