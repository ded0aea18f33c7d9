//! What one exchange, and bulk, costs over an inner session: both ends in one
//! process, one thread each, TLS 1.3 over loopback. `cargo bench -p edge-proxy
//! --bench inner_session`; CPU time is of both ends together.

use std::{
    io,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use edge_proxy::{
    http2::Client,
    inner::mux::{Limits, Probing, Received, ServerSession, Session, Spoken, Target},
};
use mesh_runtime::drain::Drain;
use mesh_tunnel::{
    Stream,
    net::{Net, RealNet},
    tls,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Runtime,
    task::JoinSet,
};

const HEAD: usize = 400;
const ANSWER_HEAD: usize = 200;
const ANSWER: usize = 1024;
const BULK: usize = 2 << 30;

fn main() {
    let exchanges = 200_000;
    println!("{exchanges} exchanges: head of {HEAD}, answer of {ANSWER_HEAD} + {ANSWER} bytes");
    println!("{:>14} {:>12} {:>12} {:>12}", "", "concurrent", "µs CPU", "per second");
    for _ in 0..rounds() {
        for concurrent in [1, 32, 256] {
            for (name, kind) in [("h2", Kind::H2), ("lean", Kind::Lean)] {
                let (cpu, wall) = measure(kind, Work::Small { concurrent, exchanges });
                let each = cpu.as_secs_f64() * 1e6 / f64::from(exchanges);
                let rate = f64::from(exchanges) / wall.as_secs_f64();
                println!("{name:>14} {concurrent:>12} {each:>12.2} {rate:>12.0}");
            }
        }
        for (name, kind) in [("bytes", Kind::Bytes), ("h2", Kind::H2), ("lean", Kind::Lean)] {
            let (cpu, wall) = measure(kind, Work::Bulk);
            let gib = BULK as f64 / f64::from(1 << 30);
            let (cpu, rate) = (cpu.as_secs_f64() / gib, gib / wall.as_secs_f64());
            println!("{name:>14} bulk: {cpu:.3} CPU s/GiB, {rate:.2} GiB/s");
        }
    }
}

fn rounds() -> usize {
    std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// TLS alone.
    Bytes,
    H2,
    Lean,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Small { concurrent: u32, exchanges: u32 },
    Bulk,
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// CPU and wall-clock time of one piece of work.
fn measure(kind: Kind, work: Work) -> (Duration, Duration) {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let (server, client) = configs();
    let far = std::thread::spawn(move || {
        runtime().block_on(async {
            let any = ([127, 0, 0, 1], 0).into();
            let listener = RealNet.bind(any, false).await.expect("a port");
            tell.send(listener.local_addr().expect("bound")).expect("told");
            let (stream, _) = listener.accept().await.expect("a connection");
            let stream = tls::accept(server, stream).await.expect("a handshake");
            serve(kind, work, Box::new(stream)).await;
        });
    });
    let addr = told.recv().expect("an address");
    let times = runtime().block_on(async {
        let stream = RealNet.dial(addr).await.expect("a connection");
        let stream = tls::connect(client, stream).await.expect("a handshake");
        let (cpu, wall) = (cpu_time(), wall_time());
        call(kind, work, Box::new(stream)).await;
        (cpu_time() - cpu, wall.elapsed())
    });
    far.join().expect("the far end");
    times
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().expect("positive"), time.tv_nsec.try_into().expect("ns"))
}

#[allow(clippy::disallowed_methods, reason = "nothing is simulated here")]
fn wall_time() -> Instant {
    Instant::now()
}

fn configs() -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(vec!["isthmus.invalid".into()]).expect("made");
    let chain: Vec<CertificateDer<'static>> = vec![made.cert.der().clone()];
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(chain[0].clone()).expect("a root");
    let server = rustls::ServerConfig::builder_with_provider(provider.clone());
    let server = server.with_protocol_versions(&[&rustls::version::TLS13]).expect("1.3");
    let mut server = server.with_no_client_auth().with_single_cert(chain, key).expect("a key");
    let client = rustls::ClientConfig::builder_with_provider(provider);
    let client = client.with_protocol_versions(&[&rustls::version::TLS13]).expect("1.3");
    let mut client = client.with_root_certificates(roots).with_no_client_auth();
    server.alpn_protocols = vec![b"bench".to_vec()];
    client.alpn_protocols = vec![b"bench".to_vec()];
    (Arc::new(server), Arc::new(client))
}

async fn serve(kind: Kind, work: Work, stream: Stream) {
    match kind {
        Kind::Bytes => serve_bytes(stream).await.expect("served"),
        Kind::H2 => serve_h2(work, stream).await,
        Kind::Lean => serve_lean(work, stream).await,
    }
}

async fn call(kind: Kind, work: Work, stream: Stream) {
    match kind {
        Kind::Bytes => call_bytes(stream).await.expect("called"),
        Kind::H2 => call_h2(work, stream).await,
        Kind::Lean => call_lean(work, stream).await,
    }
}

async fn serve_bytes(mut stream: Stream) -> io::Result<()> {
    let piece = vec![7; 128 << 10];
    for _ in 0..BULK / piece.len() {
        stream.write_all(&piece).await?;
    }
    stream.shutdown().await
}

async fn call_bytes(mut stream: Stream) -> io::Result<()> {
    let mut buf = vec![0; 64 << 10];
    while stream.read(&mut buf).await? > 0 {}
    Ok(())
}

async fn serve_lean(work: Work, stream: Stream) {
    let drain = Drain::new();
    let (mut session, _guardian) =
        ServerSession::start(stream, Probing::DESTINATION, Limits::default(), &drain);
    let (head, answer) = (vec![1; ANSWER_HEAD], vec![2; ANSWER]);
    while let Some(opened) = session.accept().await {
        let mut exchange = opened.exchange;
        exchange.send_head(&head, false).await.expect("sent");
        if work == Work::Bulk {
            drain.spawn(async move {
                let piece = vec![7; 64 << 10];
                for _ in 0..BULK / piece.len() {
                    exchange.send(&piece, false).await.expect("sent");
                }
                exchange.finish();
            });
        } else {
            exchange.send(&answer, true).await.expect("sent");
        }
    }
}

async fn call_lean(work: Work, stream: Stream) {
    let drain = Drain::new();
    let (session, _guardian) = Session::start(stream, Probing::SOURCE, &drain);
    let target = Arc::new(Target {
        service: "orders.shop".parse().expect("a name"),
        port: "http".parse().expect("a name"),
        endpoint: "e-1".parse().expect("a name"),
        protocol: Spoken::Http1,
        connection: None,
    });
    let (tasks, each) = tasks(work);
    let mut running = JoinSet::new();
    for _ in 0..tasks {
        let (session, target) = (session.clone(), target.clone());
        running.spawn(async move {
            let head = vec![3; HEAD];
            for _ in 0..each {
                let mut exchange = session.open(&target, &head, true).expect("room");
                let mut bytes = 0;
                while let Some(received) = exchange.recv().await.expect("an answer") {
                    if let Received::Data(data) = received {
                        bytes += data.len();
                    }
                }
                assert!(bytes == ANSWER || bytes == BULK);
            }
        });
    }
    running.join_all().await;
}

fn tasks(work: Work) -> (u32, u32) {
    match work {
        Work::Small { concurrent, exchanges } => (concurrent, exchanges / concurrent),
        Work::Bulk => (1, 1),
    }
}

async fn serve_h2(work: Work, stream: Stream) {
    let mut session = h2::server::Builder::new()
        .max_concurrent_streams(1024)
        .handshake::<_, Bytes>(stream)
        .await
        .expect("a session");
    let answer = Bytes::from(vec![2; ANSWER]);
    while let Some(Ok((_, mut respond))) = session.accept().await {
        let mut response = http::Response::new(());
        let value = http::HeaderValue::from_bytes(&[b'v'; 30]).expect("a value");
        for name in ["server", "date", "content-type", "x-request-id"] {
            response.headers_mut().insert(name, value.clone());
        }
        let mut send = respond.send_response(response, false).expect("sent");
        if work == Work::Bulk {
            tokio::spawn(async move {
                let piece = Bytes::from(vec![7; 64 << 10]);
                let mut left = BULK;
                while left > 0 {
                    send.reserve_capacity(piece.len());
                    let n = std::future::poll_fn(|cx| send.poll_capacity(cx)).await;
                    let n = n.expect("open").expect("open").min(piece.len()).min(left);
                    send.send_data(piece.slice(..n), n == left).expect("sent");
                    left -= n;
                }
            });
        } else {
            send.send_data(answer.clone(), true).expect("sent");
        }
    }
}

async fn call_h2(work: Work, stream: Stream) {
    let drain = Drain::new();
    let client = Client::begin(stream, &drain).await.expect("a session");
    let (tasks, each) = tasks(work);
    let mut running = JoinSet::new();
    for _ in 0..tasks {
        let client = client.clone();
        running.spawn(async move {
            for _ in 0..each {
                let body = http_body_util::Empty::<Bytes>::new();
                let answered = client.exchange(request(), body, None, |_, _| Poll::Pending).await;
                let Ok((response, _upload)) = answered else { panic!("no answer") };
                let mut body = response.into_body();
                let mut bytes = 0;
                while let Some(data) = body.data().await {
                    let data = data.expect("a body");
                    bytes += data.len();
                    body.flow_control().release_capacity(data.len()).expect("open");
                }
                assert!(bytes == ANSWER || bytes == BULK);
            }
        });
    }
    running.join_all().await;
}

fn request() -> http::Request<()> {
    let value = http::HeaderValue::from_static("a value of thirty bytes, about");
    let mut request = http::Request::new(());
    *request.uri_mut() = "http://orders.shop/api/v1/orders/4711?expand=items".parse().expect("ok");
    *request.version_mut() = http::Version::HTTP_2;
    for name in ["accept", "user-agent", "x-request-id", "traceparent", "cookie", "x-tenant"] {
        request.headers_mut().insert(name, value.clone());
    }
    for name in ["isthmus-service", "isthmus-port", "isthmus-protocol", "isthmus-endpoint"] {
        request.headers_mut().insert(name, value.clone());
    }
    request
}
