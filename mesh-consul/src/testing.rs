//! An agent that says what a test wants it to.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::client::{Client, Connection};

/// A request that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// `GET /v1/…?…`.
    pub line: String,
    pub token: Option<String>,
    pub body: String,
}

/// What it answers; none: nothing, for ever.
pub(crate) type Reply = Option<String>;

/// An answer with headers.
pub(crate) fn reply(status: u16, headers: &[(&str, &str)], body: &str) -> Reply {
    let headers: String =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    Some(format!(
        "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    ))
}

/// A list with its index.
pub(crate) fn list(index: u64, body: &str) -> Reply {
    reply(200, &[("x-consul-index", &index.to_string())], body)
}

/// Instances of `web` on nodes of these names.
pub(crate) fn web(nodes: &[&str]) -> String {
    let one = |node: &&str| {
        format!(
            r#"{{"Node":{{"Node":"{node}","Address":"10.0.0.1","Datacenter":"dc1"}},
            "Service":{{"ID":"web","Service":"web","Port":80}},"Checks":[]}}"#
        )
    };
    format!("[{}]", nodes.iter().map(one).collect::<Vec<_>>().join(","))
}

/// Starts one on a port of its own; it lasts as long as the runtime.
pub(crate) async fn agent(
    answer: impl FnMut(&Asked) -> Reply + Send + 'static,
) -> (Client, Arc<Mutex<Vec<Asked>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
    let (answer, log) = (Arc::new(Mutex::new(answer)), asked.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (answer, log) = (answer.clone(), log.clone());
            tokio::spawn(async move {
                let _ = serve(stream, |request| {
                    log.lock().unwrap().push(request.clone());
                    (answer.lock().unwrap())(&request)
                })
                .await;
            });
        }
    });
    (client(&address), asked)
}

/// Of an agent without token and TLS.
pub(crate) fn client(address: &str) -> Client {
    let address = address.to_owned();
    Client::new(&Connection { address, token_file: None, tls: None, stale: true }).unwrap()
}

async fn serve(mut stream: TcpStream, answer: impl FnOnce(Asked) -> Reply) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let (head, mut body) = loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            break (head, bytes[end + 4..].to_vec());
        }
    };
    let header = |name: &str| {
        head.lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
    };
    let length = header("content-length").map_or(0, |(_, length)| length.parse().unwrap());
    while body.len() < length {
        stream.read_buf(&mut body).await?;
    }
    let line = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
    let token = header("x-consul-token").map(|(_, token)| token.to_owned());
    let asked = Asked { line, token, body: String::from_utf8(body).unwrap() };
    let Some(text) = answer(asked) else {
        return std::future::pending().await;
    };
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

/// Runs a test that may take as long as a slow machine takes.
pub(crate) fn run<F: Future>(test: F) -> F::Output {
    let runtime = mesh_runtime::process::current_thread().unwrap();
    let limit = std::time::Duration::from_secs(120);
    runtime.block_on(async { tokio::time::timeout(limit, test).await.expect("it hangs") })
}
