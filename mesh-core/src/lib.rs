//! The meaning of the mesh: what a service, an identity, a route and a policy
//! *are*, and every yes and no that is decided from them.
//!
//! Nothing here waits, reads a clock or opens anything: time is an argument,
//! state is an immutable [`Snapshot`], and randomness is passed in. The proxy,
//! `meshctl why` and the simulation all call the same functions.
//!
//! In reading order:
//! - [`name`]: the names of things; a value that exists is well formed.
//! - [`rule`]: what is written about requests: matches, filters, limits.
//! - [`client_hello`]: the name that a TLS client asks for.
//! - [`service`]: services, endpoints, gateways, links.
//! - [`identity`]: certificates and the one function that verifies a peer.
//! - [`jwt`]: tokens that show an identity where there is no mTLS.
//! - [`snapshot`]: the view that decisions are made from, and how it changes.
//! - [`message`]: heads of requests and responses, and the rules of their fields.
//! - [`route`]: which backends a request may go to.
//! - [`carriage`]: what has to be known of a connection before it goes on.
//! - [`balance`]: which endpoint of a backend it goes to.
//! - [`path`]: how bytes get to that endpoint.
//! - [`address`]: where an endpoint must not be.
//! - [`authorize`]: whether a caller may pass; the only maker of a `Permit`.
//! - [`cidr`]: blocks of addresses.
//! - [`reason`]: the stable codes of everything that can be refused.
//! - [`token`]: what lets a machine join or a site link, as text.
//! - [`wire`]: from and to the messages of `mesh-api`.

pub mod address;
pub mod authorize;
pub mod balance;
pub mod carriage;
pub mod cidr;
pub mod client_hello;
pub mod identity;
pub mod jwt;
pub mod message;
pub mod name;
pub mod path;
pub mod reason;
pub mod route;
pub mod rule;
pub mod service;
pub mod snapshot;
pub mod tap;
pub mod token;
pub mod wire;

#[cfg(test)]
mod example;

pub use authorize::{
    Call, Client, Denied, DenyReason, Permit, ServerPolicy, authorize, may_connect, probe,
};
pub use cidr::Cidr;
pub use identity::{Allowed, PeerIdentity, TrustBundle, TrustBundles, VerifyError, verify_peer};
pub use name::{
    EndpointId, GatewayId, NodeId, PortName, ServiceName, SiteName, SpiffeId, TrustDomain,
};
pub use path::Path;
pub use reason::Reason;
pub use route::{NoRoute, route};
pub use service::{Endpoint, Gateway, Health, Link, Locality, Protocol, Service, ServicePort};
pub use snapshot::{Rejected, Revision, Snapshot, apply, to_delta};
