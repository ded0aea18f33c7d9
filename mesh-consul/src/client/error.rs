//! What can go wrong, and who can mend it.

use std::path::PathBuf;

use reqwest::{StatusCode, Url};

/// Why a [`Client`](super::Client) cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Not a place to connect to.
    #[error("consul address {address:?} {problem}; write http://host:port or https://host:port")]
    Address {
        /// As it was written.
        address: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A file that cannot be read, or that others can.
    #[error(transparent)]
    File(#[from] mesh_runtime::files::FileError),
    /// A file does not hold what it should.
    #[error("{}: {problem}", .path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong and how to mend it.
        problem: String,
    },
    /// https and nobody to trust.
    #[error(
        "consul is asked by https and ca_file is missing; name the file of the CA that has \
         issued its certificate (for a public one, the system's bundle)"
    )]
    NoCa,
    /// The HTTP client could not be made.
    #[error("the HTTP client: {0}")]
    Http(reqwest::Error),
}

/// Why a call has brought nothing. Whatever it is, what was known before still
/// holds: only an answer removes something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer within the call's time.
    #[error("consul at {address} did not answer in time")]
    Timeout {
        /// Who was asked.
        address: String,
    },
    /// No connection, or one that broke.
    #[error("consul at {address}: {detail}; check that the agent runs and `consul.address`")]
    Unreachable {
        /// Who was asked.
        address: String,
        /// What the system says.
        detail: String,
    },
    /// 403: no such token, or it may not.
    #[error(
        "consul refuses: {0}; give the token of `token_file` service:read and node:read, \
         and service:write for what is exported"
    )]
    Forbidden(String),
    /// 404: no such service, check or path at this agent.
    #[error("consul does not know it: {detail}")]
    NotFound {
        /// What Consul says.
        detail: String,
    },
    /// 429: too many requests.
    #[error("consul limits requests: {0}")]
    Busy(String),
    /// 500 or 503 without a leader.
    #[error("consul has no leader at the moment: {0}")]
    NoLeader(String),
    /// 500: a datacenter that cannot be reached is not an empty one.
    #[error("consul has no path to the datacenter: {0}; check the name in `dc`")]
    NoPath(String),
    /// Any other status.
    #[error("consul answers {status}: {detail}")]
    Status {
        /// Of HTTP.
        status: u16,
        /// What Consul says.
        detail: String,
    },
    /// Longer than [`MAX_ANSWER`](super::MAX_ANSWER).
    #[error("consul's answer is longer than {} bytes", super::MAX_ANSWER)]
    TooLong,
    /// Not the JSON that was asked for.
    #[error("what answers is not consul's API: {0}; check `consul.address`")]
    Malformed(String),
    /// A list without `X-Consul-Index`.
    #[error("the answer has no X-Consul-Index; check that `consul.address` is an agent of Consul")]
    NoIndex,
    /// A list that access control has emptied, or may have.
    #[error("consul's access control leaves out what is asked for; set `token_file`")]
    Filtered,
    /// A name that no path can hold.
    #[error("{0:?} cannot be a name in Consul")]
    Name(String),
}

impl Error {
    pub(super) fn transport(base: &Url, source: reqwest::Error) -> Self {
        let address = base.origin().ascii_serialization();
        if source.is_timeout() {
            return Self::Timeout { address };
        }
        // reqwest's own words say less than those below them.
        let source = source.without_url();
        let mut detail = source.to_string();
        let mut next = std::error::Error::source(&source);
        while let Some(below) = next {
            detail = below.to_string();
            next = below.source();
        }
        Self::Unreachable { address, detail }
    }

    /// What it is, in one word, for what counts errors.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "timeout",
            Self::Unreachable { .. } => "unreachable",
            Self::Forbidden(_) => "forbidden",
            Self::NotFound { .. } => "not_found",
            Self::Busy(_) => "busy",
            Self::NoLeader(_) => "no_leader",
            Self::NoPath(_) => "no_path",
            Self::Status { .. } => "status",
            Self::TooLong => "too_long",
            Self::Malformed(_) => "malformed",
            Self::NoIndex => "no_index",
            Self::Filtered => "filtered",
            Self::Name(_) => "name",
        }
    }

    /// Whether asking again soon may help without anybody doing something.
    pub fn passes(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Unreachable { .. } | Self::Busy(_) => true,
            Self::NoLeader(_) | Self::NoPath(_) => true,
            Self::Status { status, .. } => *status >= 500,
            _ => false,
        }
    }
}

/// Consul's statuses; its texts tell them apart further.
pub(super) fn refused(status: StatusCode, text: &str) -> Error {
    let detail = text.to_owned();
    match status.as_u16() {
        403 => Error::Forbidden(detail),
        404 => Error::NotFound { detail },
        429 => Error::Busy(detail),
        500.. if text.contains("No path to datacenter") => Error::NoPath(detail),
        500.. if text.contains("No cluster leader") => Error::NoLeader(detail),
        // What old versions answer instead of 403.
        500.. if text.contains("Permission denied") || text.contains("ACL not found") => {
            Error::Forbidden(detail)
        }
        status => Error::Status { status, detail },
    }
}
