//! One question over plain HTTP, to admin ports and registries.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

/// What one answer may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub patience: Duration,
    /// Of the body, in bytes.
    pub length: usize,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Lost {
    /// Nobody is there, or does not speak HTTP.
    Unreachable(String),
    /// Somebody is there, and says something else.
    Refused(StatusCode),
}

impl Lost {
    pub(super) fn unreachable(error: impl fmt::Display) -> Self {
        Self::Unreachable(error.to_string())
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => f.write_str(why),
            Self::Refused(status) => write!(f, "answers {status}"),
        }
    }
}

/// The body of a GET of `path`, if its status is a good one.
pub(super) async fn get(
    authority: &str,
    path: &str,
    headers: &[(&str, &str)],
    bounds: Bounds,
) -> Result<Bytes, Lost> {
    let asked = async {
        let stream = TcpStream::connect(authority).await.map_err(Lost::unreachable)?;
        let (mut send, connection) =
            handshake(TokioIo::new(stream)).await.map_err(Lost::unreachable)?;
        let mut request = http::Request::get(path).header(http::header::HOST, authority);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(Lost::unreachable)?;
        // Ends with its connection, which ends with this command.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let answer = send.send_request(request).await.map_err(Lost::unreachable)?;
        if !answer.status().is_success() {
            return Err(Lost::Refused(answer.status()));
        }
        let body = Limited::new(answer.into_body(), bounds.length).collect().await;
        Ok(body.map_err(Lost::unreachable)?.to_bytes())
    };
    let late = || Lost::Unreachable(format!("no answer within {} s", bounds.patience.as_secs()));
    timeout(bounds.patience, asked).await.map_err(|_| late())?
}
