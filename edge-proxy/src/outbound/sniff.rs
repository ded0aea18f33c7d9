//! What a connection speaks, by its first bytes.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use mesh_core::client_hello;
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

/// What can be said after some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Is(Speaks),
    Undecided,
}

/// Waits for enough bytes to tell HTTP from anything else, at most `patience`:
/// where a server speaks first, its client waits as we do.
pub async fn detect(stream: Stream, patience: Duration) -> io::Result<(Speaks, Stream)> {
    read_until(stream, patience, |bytes| match detected(bytes) {
        Verdict::Undecided => None,
        Verdict::Is(speaks) => Some(speaks),
    })
    .await
    .map(|(speaks, stream)| (speaks.unwrap_or(Speaks::Opaque), stream))
}

async fn read_until(
    mut stream: Stream,
    patience: Duration,
    decide: impl Fn(&[u8]) -> Option<Speaks>,
) -> io::Result<(Option<Speaks>, Stream)> {
    let mut read = BytesMut::with_capacity(512);
    let decided = async {
        loop {
            if stream.read_buf(&mut read).await? == 0 {
                return Ok::<_, io::Error>(None);
            }
            if let Some(speaks) = decide(&read) {
                return Ok(Some(speaks));
            }
        }
    };
    let speaks = match tokio::time::timeout(patience, decided).await {
        Ok(decided) => decided?,
        Err(_) => None,
    };
    let read: Bytes = read.freeze();
    let stream = if read.is_empty() { stream } else { Box::new(Prefixed::new(read, stream)) };
    Ok((speaks, stream))
}

/// A method alone is not enough: `GET key` is also what Redis is told.
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
    let begins = |method: &&[u8]| {
        let shared = method.len().min(bytes.len());
        bytes[..shared] == method[..shared]
    };
    if !METHODS.iter().any(begins) {
        return Verdict::Is(Speaks::Opaque);
    }
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        let long = bytes.len() > MAX_LINE;
        return if long { Verdict::Is(Speaks::Http1) } else { Verdict::Undecided };
    };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    let http = line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0");
    Verdict::Is(if http { Speaks::Http1 } else { Speaks::Opaque })
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

    #[tokio::test]
    async fn silence_is_opaque_and_nothing_read_is_lost() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"GET ").await.unwrap();
        let wait = Duration::from_millis(20);
        let (speaks, mut stream) = detect(Box::new(server), wait).await.unwrap();
        assert_eq!(speaks, Speaks::Opaque);
        client.write_all(b"more").await.unwrap();
        drop(client);
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"GET more");
    }
}
