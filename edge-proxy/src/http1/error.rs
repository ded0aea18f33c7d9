//! Why bytes are no message.

use http::StatusCode;

/// Why bytes are no message, or one that could be understood in two ways. Its
/// text is stable, and never contains what was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum BadMessage {
    /// RFC 9112 section 3.
    #[error("the first line is not method, target and version")]
    RequestLine,
    /// RFC 9112 section 4.
    #[error("the first line is not version, status and reason")]
    StatusLine,
    /// RFC 9112 section 2.3: neither 1.0 nor 1.1.
    #[error("the HTTP version is neither 1.0 nor 1.1")]
    Version,
    /// RFC 9112 section 3.2: of no form that the method allows.
    #[error("the request target is not one for this method")]
    Target,
    /// RFC 9112 section 3: longer than the limit.
    #[error("the request target is too long")]
    TargetTooLong,
    /// RFC 6585 section 5.
    #[error("the head of the message is too large")]
    HeadTooLarge,
    /// RFC 6585 section 5.
    #[error("the message has too many fields")]
    TooManyFields,
    /// RFC 9112 sections 5.1, 5.2: no token, white space before the colon, or
    /// a folded line.
    #[error("a field name is not a token followed by a colon")]
    FieldName,
    /// RFC 9110 section 5.5.
    #[error("a field value has a control character")]
    FieldValue,
    /// RFC 9112 section 2.2: CR or LF alone.
    #[error("a line does not end with CR LF")]
    LineEnd,
    /// RFC 9112 section 3.2.
    #[error("the request has no Host field")]
    HostMissing,
    /// RFC 9112 section 3.2.
    #[error("the request has several Host fields")]
    HostRepeated,
    /// RFC 9112 section 3.2.
    #[error("the Host field is not a host")]
    HostInvalid,
    /// RFC 9112 section 3.2.2: two hosts, of which each reader may take one.
    #[error("the request target and the Host field name different hosts")]
    HostDiffers,
    /// RFC 9112 section 6.3: several values, equal ones included.
    #[error("the message has several Content-Length values")]
    LengthRepeated,
    /// RFC 9112 section 6.3.
    #[error("the Content-Length is not a number of bytes")]
    LengthInvalid,
    /// RFC 9112 section 6.1.
    #[error("the message has both Content-Length and Transfer-Encoding")]
    LengthAndEncoding,
    /// RFC 9112 section 6.1: not `chunked` once and last.
    #[error("the Transfer-Encoding does not end with one chunked")]
    EncodingInvalid,
    /// RFC 9112 section 6.1.
    #[error("the Transfer-Encoding is one that this proxy does not know")]
    EncodingUnknown,
    /// RFC 9112 section 6.1: HTTP/1.0 knows no transfer encodings.
    #[error("a message of HTTP/1.0 has a Transfer-Encoding")]
    EncodingTooNew,
    /// RFC 9110 section 9.3.6.
    #[error("a CONNECT request has a body")]
    ConnectBody,
    /// RFC 9110 section 7.6.1: more names than any honest message has.
    #[error("the Connection field names too many fields")]
    ConnectionNames,
    /// RFC 9110 section 15.2.2: nobody had asked.
    #[error("the protocol is switched without a request to do so")]
    UnaskedUpgrade,
    /// RFC 9110 section 15.2: more than any honest application sends.
    #[error("too many informational responses before an answer")]
    Informational,
    /// RFC 9112 section 7.1.
    #[error("a chunk is malformed")]
    Chunk,
    /// RFC 9112 section 7.1.1: extensions beyond any use.
    #[error("the chunk extensions are too long")]
    ChunkExtensions,
    /// RFC 9112 section 7.1.2.
    #[error("the trailer section is too large")]
    TrailersTooLarge,
    /// RFC 9112 section 8.
    #[error("the connection ended before the message did")]
    Truncated,
}

impl BadMessage {
    /// What a client is answered whose request this was; an application's
    /// response that is none is a 502 whatever is wrong with it.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge | Self::TooManyFields | Self::TrailersTooLarge => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Self::EncodingUnknown => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}
