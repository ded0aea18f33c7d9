//! The header of a tunnel stream and the codes of its refusal.

use std::net::{IpAddr, SocketAddr};

use mesh_api::{FEDERATION_SERVICE, v1};

use super::{WireError, parse, wrong};
use crate::path::{Connect, RefusedReason};

/// Bytes of a connection id.
const MAX_CONNECTION_ID: usize = 64;

/// Why a `Connect` is refused before anything is decided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadConnect {
    /// It lacks a part, or a part is not a name.
    #[error("malformed: {0}")]
    Malformed(#[from] WireError),
    /// It asks for behaviour that must not be ignored and is not there.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// Names only: nobody is dialled for having been written here.
    #[error("forbidden_target: {0} is an address; a gateway carries only to names")]
    Address(&'static str),
}

impl BadConnect {
    /// The code for the wire.
    pub fn reason(&self) -> RefusedReason {
        match self {
            Self::Malformed(_) => RefusedReason::Malformed,
            Self::Unsupported(_) => RefusedReason::Unsupported,
            Self::Address(_) => RefusedReason::ForbiddenTarget,
        }
    }
}

impl TryFrom<v1::Connect> for Connect {
    type Error = BadConnect;

    fn try_from(message: v1::Connect) -> Result<Self, BadConnect> {
        if let Some(first) = message.critical.first() {
            // The peer chose the text: keep the error short.
            return Err(BadConnect::Unsupported(first.chars().take(64).collect()));
        }
        let names = [
            ("site", &message.site),
            ("service", &message.service),
            ("endpoint", &message.endpoint),
        ];
        if let Some((field, _)) = names.into_iter().find(|(_, text)| is_address(text)) {
            return Err(BadConnect::Address(field));
        }
        let endpoint = match message.endpoint.as_str() {
            "" if message.service == FEDERATION_SERVICE => None,
            "" => return Err(wrong("endpoint", "is missing").into()),
            id => Some(parse("endpoint", id)?),
        };
        Ok(Self {
            site: parse("site", &message.site)?,
            service: parse("service", &message.service)?,
            port: parse("port", &message.port)?,
            endpoint,
            // More than fits is past any limit anyway.
            hops: u8::try_from(message.hops).unwrap_or(u8::MAX),
            connection_id: connection_id(message.connection_id)?,
        })
    }
}

/// With or without port and brackets.
fn is_address(text: &str) -> bool {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok()
}

pub(super) fn connection_id(value: String) -> Result<String, WireError> {
    if value.len() > MAX_CONNECTION_ID || !value.bytes().all(|b| b.is_ascii_graphic()) {
        let rule = format_args!("must be at most {MAX_CONNECTION_ID} printable ASCII bytes");
        return Err(wrong("connection_id", rule));
    }
    Ok(value)
}

impl From<&Connect> for v1::Connect {
    fn from(connect: &Connect) -> Self {
        Self {
            site: connect.site.to_string(),
            service: connect.service.to_string(),
            port: connect.port.to_string(),
            endpoint: connect.endpoint.as_ref().map(ToString::to_string).unwrap_or_default(),
            hops: connect.hops.into(),
            connection_id: connect.connection_id.clone(),
            critical: Vec::new(),
        }
    }
}

impl From<Connect> for v1::Connect {
    fn from(connect: Connect) -> Self {
        Self::from(&connect)
    }
}

macro_rules! refused_reasons {
    ($($name:ident),* $(,)?) => {
        impl From<RefusedReason> for v1::RefusedReason {
            fn from(reason: RefusedReason) -> Self {
                match reason { $(RefusedReason::$name => Self::$name,)* }
            }
        }

        impl From<v1::RefusedReason> for RefusedReason {
            /// A hop that gives no reason, or one of a later version, has
            /// still not let the stream pass.
            fn from(reason: v1::RefusedReason) -> Self {
                match reason {
                    v1::RefusedReason::Unspecified => Self::NoPath,
                    $(v1::RefusedReason::$name => Self::$name,)*
                }
            }
        }

        impl RefusedReason {
            /// Every reason.
            pub const ALL: &[RefusedReason] = &[$(RefusedReason::$name,)*];
        }
    };
}

refused_reasons!(
    Malformed,
    UnknownSite,
    UnknownService,
    UnknownEndpoint,
    NotExported,
    HopLimit,
    Role,
    Quota,
    NoPath,
    Unreachable,
    Draining,
    Unsupported,
    Timeout,
    ForbiddenTarget,
);
