//! What a connection speaks, by its first bytes.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use mesh_core::client_hello;
use mesh_runtime::clock;
use mesh_tunnel::Stream;
use tokio::io::AsyncReadExt;

use crate::prefixed::Prefixed;

/// The first bytes of HTTP/2 with prior knowledge (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Where a line that has not ended by then is not worth waiting for.
const MAX_LINE: usize = 4096;
/// Registered methods that requests begin with.
const METHODS: [&[u8]; 9] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"TRACE ",
    b"CONNECT ",
];

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.x.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// TLS, whatever is inside.
    Tls,
    /// Something else, or its server speaks first.
    Opaque,
}

impl Speaks {
    /// As it is counted.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Tls => "tls",
            Self::Opaque => "opaque",
        }
    }
}

/// How long bytes are waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Any at all.
    pub first: Duration,
    /// More of what begins like HTTP or TLS.
    pub rest: Duration,
}

/// What goes on after that as opaque bytes loses nothing but the rules about
/// requests.
pub const PATIENCE: Patience =
    Patience { first: Duration::from_millis(100), rest: Duration::from_secs(2) };

/// What can be said after some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Is(Speaks),
    Undecided,
}

/// Waits for enough bytes to tell HTTP and TLS from anything else; `None` if
/// they do not come in time. Where a server speaks first its client waits as
/// we do; who has begun a request of HTTP has a server that waits.
pub async fn detect(
    mut stream: Stream,
    patience: Patience,
) -> io::Result<(Option<Speaks>, Stream)> {
    let mut read = BytesMut::with_capacity(512);
    let mut deadline = clock::monotonic() + patience.first;
    let mut silent = true;
    let speaks = loop {
        let Ok(more) = tokio::time::timeout_at(deadline, stream.read_buf(&mut read)).await else {
            break None;
        };
        if more? == 0 {
            break Some(Speaks::Opaque);
        }
        match detected(&read) {
            Verdict::Is(speaks) => break Some(speaks),
            Verdict::Undecided if silent => deadline = clock::monotonic() + patience.rest,
            Verdict::Undecided => {}
        }
        silent = false;
    };
    Ok((speaks, put_back(read, stream)))
}

fn put_back(read: BytesMut, stream: Stream) -> Stream {
    let read: Bytes = read.freeze();
    if read.is_empty() { stream } else { Box::new(Prefixed::new(read, stream)) }
}

/// A method alone is not enough: `GET key` is also what Redis is told. What is
/// taken for HTTP is parsed as HTTP: if it is none, it is refused and never
/// reaches anybody.
fn detected(bytes: &[u8]) -> Verdict {
    let shared = bytes.len().min(PREFACE.len());
    if bytes[..shared] == PREFACE[..shared] {
        let whole = shared == PREFACE.len();
        return if whole { Verdict::Is(Speaks::Http2) } else { Verdict::Undecided };
    }
    if client_hello::may_be_tls(bytes) {
        let sure = bytes.len() >= 2;
        return if sure { Verdict::Is(Speaks::Tls) } else { Verdict::Undecided };
    }
    let begins = |method: &&&[u8]| {
        let shared = method.len().min(bytes.len());
        bytes[..shared] == method[..shared]
    };
    let Some(method) = METHODS.iter().find(begins) else { return Verdict::Is(Speaks::Opaque) };
    let target = bytes.get(method.len()..).unwrap_or_default();
    if target.first().is_some_and(|first| !begins_target(method, *first)) {
        return Verdict::Is(Speaks::Opaque);
    }
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        let long = bytes.len() > MAX_LINE;
        return if long { Verdict::Is(Speaks::Http1) } else { Verdict::Undecided };
    };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    let version = line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0");
    let http = version && line.iter().filter(|byte| **byte == b' ').count() == 2;
    Verdict::Is(if http { Speaks::Http1 } else { Speaks::Opaque })
}

/// `/path`, `http://…`, `*`, or of CONNECT a host (RFC 9112 section 3.2).
fn begins_target(method: &[u8], first: u8) -> bool {
    method == b"CONNECT " || matches!(first, b'/' | b'*' | b'h' | b'H')
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[test]
    fn first_bytes_decide() {
        use Speaks::{Http1, Http2, Opaque, Tls};
        let cases: &[(&[u8], Verdict)] = &[
            (b"GET / HTTP/1.1\r\n", Verdict::Is(Http1)),
            (b"POST /a?b HTTP/1.0\n", Verdict::Is(Http1)),
            (b"GET key\r\n", Verdict::Is(Opaque)),
            (b"GET k", Verdict::Is(Opaque)),
            (b"GET h", Verdict::Undecided),
            (b"GET hello\r\n", Verdict::Is(Opaque)),
            (b"GET /a b HTTP/1.1\r\n", Verdict::Is(Opaque)),
            (b"GET / HTTP/2.0\r\n", Verdict::Is(Opaque)),
            (b"CONNECT a.b:80 HTTP/1.1\r\n", Verdict::Is(Http1)),
            (b"OPTIONS * HTTP/1.1\r\n", Verdict::Is(Http1)),
            (b"GET http://a.b/ HTTP/1.1\r\n", Verdict::Is(Http1)),
            (b"GET ", Verdict::Undecided),
            (b"GE", Verdict::Undecided),
            (b"PRI * HTTP/2.0\r\n", Verdict::Undecided),
            (PREFACE, Verdict::Is(Http2)),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Verdict::Is(Opaque)),
            (b"P", Verdict::Undecided),
            (b"PUT /x HTTP/1.1\r\nHost: a\r\n", Verdict::Is(Http1)),
            (b"\x16\x03", Verdict::Is(Tls)),
            (b"\x16", Verdict::Undecided),
            (b"\x16\x04", Verdict::Is(Opaque)),
            (b"*1\r\n$4\r\nPING\r\n", Verdict::Is(Opaque)),
            (b"get / HTTP/1.1\r\n", Verdict::Is(Opaque)),
        ];
        for (bytes, wanted) in cases {
            assert_eq!(detected(bytes), *wanted, "{:?}", String::from_utf8_lossy(bytes));
        }
        let long = [b"GET /".as_slice(), &vec![b'a'; MAX_LINE]].concat();
        assert_eq!(detected(&long), Verdict::Is(Http1));
    }

    const SHORT: Patience =
        Patience { first: Duration::from_millis(20), rest: Duration::from_millis(20) };

    #[tokio::test]
    async fn silence_is_nothing_and_what_was_read_is_not_lost() {
        for first in ["", "GET ", "PRI * HTTP/2.0", "\x16"] {
            let (mut client, server) = tokio::io::duplex(64);
            client.write_all(first.as_bytes()).await.unwrap();
            let (speaks, mut stream) = detect(Box::new(server), SHORT).await.unwrap();
            assert_eq!(speaks, None);
            client.write_all(b"more").await.unwrap();
            drop(client);
            let mut all = String::new();
            stream.read_to_string(&mut all).await.unwrap();
            assert_eq!(all, format!("{first}more"));
        }
    }

    /// In virtual time.
    #[tokio::test(start_paused = true)]
    async fn who_has_begun_a_request_may_take_longer() {
        let send = async |pieces: &[(u64, &[u8])]| {
            let (mut client, server) = tokio::io::duplex(64);
            let pieces: Vec<_> = pieces.iter().map(|(at, bytes)| (*at, bytes.to_vec())).collect();
            let sending = tokio::spawn(async move {
                for (pause, bytes) in pieces {
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                    client.write_all(&bytes).await.unwrap();
                }
                client
            });
            let (speaks, _stream) = detect(Box::new(server), PATIENCE).await.unwrap();
            sending.abort();
            speaks
        };
        let line: &[u8] = b"/ HTTP/1.1\r\n";
        assert_eq!(send(&[(90, b"GET "), (1900, line)]).await, Some(Speaks::Http1));
        assert_eq!(send(&[(110, b"GET "), (0, line)]).await, None);
        assert_eq!(send(&[(0, b"GET "), (1500, b"/"), (600, line)]).await, None);
        assert_eq!(send(&[(50, b"P"), (500, &PREFACE[1..])]).await, Some(Speaks::Http2));
    }
}
