//! Applications whose every byte is the test's.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::any;

/// Hands accepted connections to the test.
pub struct Script {
    pub addr: SocketAddr,
    accepted: mpsc::Receiver<TcpStream>,
}

impl Script {
    pub async fn start() -> Self {
        let listener = TcpListener::bind(any()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (give, accepted) = mpsc::channel(64);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                if give.send(stream).await.is_err() {
                    return;
                }
            }
        });
        Self { addr, accepted }
    }

    pub async fn accept(&mut self) -> TcpStream {
        super::caller::wait(self.accepted.recv()).await.unwrap()
    }

    /// Whether nobody has connected since.
    pub fn is_unused(&mut self) -> bool {
        self.accepted.try_recv().is_err()
    }
}

/// Reads until `text` has come.
pub async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(text) {
        let count = super::caller::wait(stream.read_buf(&mut read)).await.unwrap();
        assert!(count > 0, "{}", read.escape_ascii());
    }
    String::from_utf8(read).unwrap()
}

/// Reads a request without a body and answers it.
pub async fn answer(stream: &mut TcpStream, text: &str) -> String {
    let request = read_until(stream, "\r\n\r\n").await;
    stream.write_all(text.as_bytes()).await.unwrap();
    request
}
