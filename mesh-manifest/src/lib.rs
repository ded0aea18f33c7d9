//! What people write about traffic: the kinds of Gateway API and Linkerd that
//! a mesh obeys, and one of our own, read strictly and made into the messages
//! of `mesh-api`.
//!
//! The static snapshot of a proxy, `meshctl apply`, federation and the
//! Kubernetes side all read with this crate, so that a rule means the same
//! wherever it was written. Nothing here decides: that is `mesh-core`.
//!
//! In reading order:
//! - [`manifest`]: one document, and streams of them.
//! - [`rule`]: HTTPRoute and GRPCRoute rules.
//! - [`connection`]: TLSRoute and TCPRoute.
//! - [`profile`]: Linkerd's ServiceProfile.
//! - [`traffic`]: TrafficPolicy, our own; [`extension`]: its part about single rules,
//!   [`balance`] and [`health`]: those about endpoints.
//! - [`access`]: Linkerd's Server, AuthorizationPolicy and authentications.
//! - [`document`]: what all kinds look like, for JSON Schema.
//! - [`compile`]: what all of them together mean for one service.

pub mod access;
pub mod balance;
pub mod compile;
pub mod connection;
pub mod document;
pub mod duration;
pub mod extension;
pub mod health;
pub mod manifest;
pub mod profile;
pub mod rule;
pub mod traffic;
mod wire;

pub use access::{AccessPolicy, index::AccessIndex};
pub use compile::{Compiled, Problem, Registry, compile};
pub use document::Document;
pub use manifest::{Kind, Manifest, ManifestError, ObjectName};
