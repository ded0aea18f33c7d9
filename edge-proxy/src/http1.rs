//! HTTP/1.0 and 1.1, towards clients and towards applications.
//!
//! Everything but [`conn`] works on bytes and never waits. What two readers of
//! a message could understand differently is refused, not repaired: whoever
//! comes after us must see the same messages as we do.
//!
//! - [`error`]: why bytes are no message.
//! - [`parse`]: heads of requests and responses, and how long their bodies are.
//! - [`body`]: bodies, to and from their framing.
//! - [`write`]: heads, with the framing that fits the other side.
//! - [`conn`]: all of that over a byte stream.

pub mod body;
pub mod conn;
pub mod error;
pub mod parse;
pub mod write;

pub use conn::{Buffers, ClientConn, ConnError, Peer, ServerConn};
pub use error::BadMessage;
pub use parse::{Request, Response};

use mesh_core::message::{Fields, Known};

/// What a head may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a whole head.
    pub head: usize,
    /// Bytes of a request target.
    pub target: usize,
    /// Fields of a head; at most [`parse::MAX_FIELDS`].
    pub fields: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head: 64 << 10, target: 32 << 10, fields: parse::MAX_FIELDS }
    }
}

/// How a message's body ends (RFC 9112 section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// There is none.
    None,
    /// After so many bytes.
    Length(u64),
    /// After its last chunk.
    Chunked,
    /// With the connection; responses only.
    Close,
    /// There is none: what follows the head are the bytes of another protocol
    /// (101, or 2xx to CONNECT).
    Tunnel,
}

impl Body {
    /// The body of a message that did not come over HTTP/1.
    pub fn of(fields: &Fields, has_body: bool) -> Self {
        let length = fields.known(Known::ContentLength).and_then(|value| parse::length(value).ok());
        match (has_body, length) {
            (false, _) => Self::None,
            (true, Some(length)) => Self::Length(length),
            (true, None) => Self::Chunked,
        }
    }

    /// Whether no byte of a body follows the head.
    pub fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0) | Self::Tunnel)
    }
}
