//! Frames of HTTP/2 (RFC 9113) as no library would send them.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// SETTINGS_INITIAL_WINDOW_SIZE.
pub(crate) const INITIAL_WINDOW: u16 = 4;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

pub(crate) fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (name, value) in values {
        payload.extend(name.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    frame(SETTINGS, 0, 0, &payload)
}

pub(crate) fn window(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

/// A request's header block (RFC 7541, literals without indexing).
pub(crate) fn block(method: &str, path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    let fields =
        [(":method", method), (":scheme", "http"), (":authority", "orders.shop"), (":path", path)];
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.bytes());
        }
    }
    block
}

pub(crate) fn request(stream: u32, method: &str, path: &str, end: bool) -> Vec<u8> {
    let flags = if end { END_HEADERS | END_STREAM } else { END_HEADERS };
    frame(HEADERS, flags, stream, &block(method, path))
}

/// A connection that has said its preface and these settings.
pub(crate) async fn connect(door: SocketAddr, values: &[(u16, u32)]) -> TcpStream {
    let mut stream = TcpStream::connect(door).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&settings(values)).await.unwrap();
    // What the other end allows holds once it is acknowledged.
    let mut header = [0; 9];
    stream.read_exact(&mut header).await.unwrap();
    assert_eq!(header[3], SETTINGS);
    stream.read_exact(&mut vec![0; usize::from(header[2])]).await.unwrap();
    stream.write_all(&frame(SETTINGS, 1, 0, &[])).await.unwrap();
    stream
}
