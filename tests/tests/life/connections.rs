//! Connections of four kinds, each of which says something every few seconds
//! and wants to hear it back.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, BodyStream, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

/// What one exchange may take on a busy machine.
const ANSWER: Duration = Duration::from_secs(20);
/// Between two exchanges of one connection.
const PAUSE: Duration = Duration::from_secs(3);
/// Failures that are kept; the test ends with the first anyway.
const SHOWN: usize = 20;

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Requests one after the other.
    Http1,
    /// A stream that lasts, and requests beside it.
    Http2,
    /// Bytes after an `Upgrade`.
    WebSocket,
    /// Bytes.
    Opaque,
}

pub(crate) const KINDS: [Kind; 4] = [Kind::Http1, Kind::Http2, Kind::WebSocket, Kind::Opaque];

/// Where a caller's proxy takes connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Doors {
    pub(crate) http: SocketAddr,
    pub(crate) opaque: SocketAddr,
}

/// What all connections have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) doors: Doors,
    /// Whether the proxy may ask its clients to come anew.
    pub(crate) may_move: AtomicBool,
    /// Exchanges so far.
    pub(crate) exchanges: AtomicUsize,
    failures: Mutex<Vec<String>>,
    /// By their number: the lap of the last exchange, and our address.
    carried: Mutex<BTreeMap<usize, (u64, SocketAddr)>>,
    lap: watch::Sender<u64>,
    /// Those that were asked to come anew, and did.
    moved: Mutex<BTreeSet<usize>>,
}

impl Shared {
    pub(crate) fn new(doors: Doors) -> Arc<Self> {
        Arc::new(Self {
            doors,
            may_move: AtomicBool::new(false),
            exchanges: AtomicUsize::new(0),
            failures: Mutex::default(),
            carried: Mutex::default(),
            lap: watch::Sender::new(0),
            moved: Mutex::default(),
        })
    }

    /// From here on nothing that was carried before counts.
    pub(crate) fn next_lap(&self) {
        self.lap.send_modify(|lap| *lap += 1);
    }

    /// How many connections have carried bytes both ways since.
    pub(crate) fn carried(&self) -> usize {
        let lap = *self.lap.borrow();
        self.carried.lock().unwrap().values().filter(|(last, _)| *last == lap).count()
    }

    /// Our side of each connection.
    pub(crate) fn addresses(&self) -> BTreeMap<usize, SocketAddr> {
        let carried = self.carried.lock().unwrap();
        carried.iter().map(|(number, (_, addr))| (*number, *addr)).collect()
    }

    pub(crate) fn moved(&self) -> BTreeSet<usize> {
        self.moved.lock().unwrap().clone()
    }

    pub(crate) fn failed(&self, failure: String) {
        let mut failures = self.failures.lock().unwrap();
        if failures.len() < SHOWN {
            failures.push(failure);
        }
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }
}

/// Opens connection `number`; it carries something now and then until the
/// runtime ends.
pub(crate) async fn keep(shared: Arc<Shared>, number: usize, kind: Kind) {
    let first = Connection::open(shared.doors, kind).await;
    tokio::spawn(async move {
        let failed = match first {
            Ok(first) => live(&shared, number, kind, first).await,
            Err(error) => error,
        };
        shared.failed(format!("{kind:?} {number}: {failed}"));
    });
}

/// Returns what went wrong.
async fn live(shared: &Shared, number: usize, kind: Kind, mut connection: Connection) -> io::Error {
    let mut lap = shared.lap.subscribe();
    for count in 0.. {
        let now = *lap.borrow_and_update();
        let said = format!("{number} says {count}");
        let exchanged = timeout(ANSWER, connection.exchange(&said)).await;
        let goes_on = match exchanged.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(goes_on) => goes_on,
            Err(error) => {
                let addr = connection.addr;
                return io::Error::other(format!("{addr}, exchange {count}: {error}"));
            }
        };
        shared.exchanges.fetch_add(1, Ordering::Relaxed);
        shared.carried.lock().unwrap().insert(number, (now, connection.addr));
        if !goes_on {
            if !shared.may_move.load(Ordering::Relaxed) {
                return io::Error::other("it was asked to come anew");
            }
            // Its stream that lasts would hold up a proxy that is started again.
            drop(connection);
            connection = match Connection::open(shared.doors, kind).await {
                Ok(connection) => connection,
                Err(error) => return io::Error::other(format!("cannot come anew: {error}")),
            };
            shared.moved.lock().unwrap().insert(number);
        }
        let pause = PAUSE.mul_f64(rand::random_range(0.8..1.2));
        // A lap is run at once, but not by all in the same moment.
        tokio::select! {
            () = sleep(pause) => {}
            _ = lap.changed() => sleep(PAUSE.mul_f64(rand::random_range(0.0..0.5))).await,
        }
    }
    unreachable!("counts do not end")
}

struct Connection {
    addr: SocketAddr,
    speaks: Speaks,
}

enum Speaks {
    Http1(BufReader<TcpStream>),
    Http2(Http2),
    Bytes(TcpStream),
}

impl Connection {
    async fn open(doors: Doors, kind: Kind) -> io::Result<Self> {
        timeout(ANSWER, Self::opening(doors, kind)).await?
    }

    async fn opening(doors: Doors, kind: Kind) -> io::Result<Self> {
        let door = if kind == Kind::Opaque { doors.opaque } else { doors.http };
        let stream = TcpStream::connect(door).await?;
        stream.set_nodelay(true)?;
        let addr = stream.local_addr()?;
        let speaks = match kind {
            Kind::Http1 => Speaks::Http1(BufReader::new(stream)),
            Kind::Http2 => Speaks::Http2(Http2::open(stream).await?),
            Kind::WebSocket => Speaks::Bytes(upgraded(stream).await?),
            Kind::Opaque => Speaks::Bytes(stream),
        };
        Ok(Self { addr, speaks })
    }

    /// Whether the connection goes on after it.
    async fn exchange(&mut self, said: &str) -> io::Result<bool> {
        match &mut self.speaks {
            Speaks::Http1(stream) => request(stream, said).await,
            Speaks::Http2(http2) => http2.exchange(said).await,
            Speaks::Bytes(stream) => bytes(stream, said).await.map(|()| true),
        }
    }
}

/// A request of its own connection, as clients send that keep none.
pub(crate) async fn once(doors: Doors) -> io::Result<()> {
    Connection::open(doors, Kind::Http1).await?.exchange("once").await.map(drop)
}

async fn request(stream: &mut BufReader<TcpStream>, said: &str) -> io::Result<bool> {
    let len = said.len();
    let request =
        format!("POST / HTTP/1.1\r\nHost: life.shop\r\nContent-Length: {len}\r\n\r\n{said}");
    stream.get_mut().write_all(request.as_bytes()).await?;
    let Head { first, fields } = read_head(stream).await?;
    let field = |name: &str| fields.get(name).map_or("", String::as_str);
    let mut body = vec![0; field("content-length").parse().unwrap_or(0)];
    stream.read_exact(&mut body).await?;
    let body = String::from_utf8_lossy(&body).into_owned();
    if !first.starts_with("HTTP/1.1 200") || body != said {
        return Err(io::Error::other(format!("{first} {fields:?} {body}")));
    }
    let closes = field("connection").eq_ignore_ascii_case("close");
    if closes && stream.read(&mut [0]).await? > 0 {
        return Err(io::Error::other("bytes after the last answer"));
    }
    Ok(!closes)
}

async fn upgraded(stream: TcpStream) -> io::Result<TcpStream> {
    let mut stream = BufReader::new(stream);
    let ask = "GET / HTTP/1.1\r\nHost: life.shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
               Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.get_mut().write_all(ask.as_bytes()).await?;
    let Head { first, fields } = read_head(&mut stream).await?;
    if first.starts_with("HTTP/1.1 101") {
        return Ok(stream.into_inner());
    }
    Err(io::Error::other(format!("{first} {fields:?}")))
}

async fn bytes(stream: &mut TcpStream, said: &str) -> io::Result<()> {
    stream.write_all(said.as_bytes()).await?;
    let mut heard = vec![0; said.len()];
    stream.read_exact(&mut heard).await?;
    if heard == said.as_bytes() { Ok(()) } else { Err(io::Error::other("other bytes came back")) }
}

type Body = BoxBody<Bytes, io::Error>;

/// A connection with a stream that was opened at its beginning.
struct Http2 {
    requests: SendRequest<Body>,
    pieces: mpsc::Sender<Result<Frame<Bytes>, io::Error>>,
    echoed: BodyStream<Incoming>,
}

impl Http2 {
    async fn open(stream: TcpStream) -> io::Result<Self> {
        let io = TokioIo::new(stream);
        let (mut requests, connection) =
            http2::handshake(TokioExecutor::new(), io).await.map_err(io::Error::other)?;
        // What it ends with is seen by whoever waits for an answer.
        tokio::spawn(connection);
        let (pieces, receive) = mpsc::channel(1);
        let body = BodyExt::boxed(StreamBody::new(ReceiverStream::new(receive)));
        let answer = requests.send_request(post(body)).await.map_err(io::Error::other)?;
        Ok(Self { requests, pieces, echoed: BodyStream::new(ok(answer)?) })
    }

    /// A piece on the stream that lasts, then a request, unless the proxy has
    /// said that it takes none any more.
    async fn exchange(&mut self, said: &str) -> io::Result<bool> {
        let piece = Frame::data(Bytes::copy_from_slice(said.as_bytes()));
        self.pieces.send(Ok(piece)).await.map_err(|_| io::Error::other("the stream has ended"))?;
        let mut heard = Vec::new();
        while heard.len() < said.len() {
            let frame = self.echoed.next().await.ok_or(io::ErrorKind::UnexpectedEof)?;
            heard.extend(frame.map_err(io::Error::other)?.into_data().unwrap_or_default());
        }
        if heard != said.as_bytes() {
            return Err(io::Error::other("other bytes came back"));
        }
        let body = http_body_util::Full::new(Bytes::copy_from_slice(said.as_bytes()));
        let body = body.map_err(|never| match never {}).boxed();
        match self.requests.send_request(post(body)).await {
            Ok(answer) => {
                let body = ok(answer)?.collect().await.map_err(io::Error::other)?.to_bytes();
                if body == said {
                    Ok(true)
                } else {
                    Err(io::Error::other("another body came back"))
                }
            }
            // It was not sent: GOAWAY has come, and what is open goes on.
            Err(error) if error.is_canceled() || is_goodbye(&error) => Ok(false),
            Err(error) => Err(io::Error::other(format!("{error:?}"))),
        }
    }
}

/// Whether GOAWAY came while a request was on its way, which was not processed then
/// (RFC 9113 section 6.8).
fn is_goodbye(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref());
    cause.is_some_and(|cause: &h2::Error| {
        cause.is_go_away() && cause.is_remote() && cause.reason() == Some(h2::Reason::NO_ERROR)
    })
}

fn post(body: Body) -> Request<Body> {
    Request::post("http://life.shop:81/").body(body).unwrap()
}

fn ok(answer: Response<Incoming>) -> io::Result<Incoming> {
    let (head, body) = answer.into_parts();
    if head.status == 200 { Ok(body) } else { Err(io::Error::other(format!("{head:?}"))) }
}

/// The head of a message of HTTP/1; names of fields in lower case.
pub(crate) struct Head {
    pub(crate) first: String,
    pub(crate) fields: BTreeMap<String, String>,
}

pub(crate) async fn read_head(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Head> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut lines = lines.into_iter();
    let first = lines.next().unwrap_or_default();
    let field = |line: String| {
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        (name.to_ascii_lowercase(), value.trim().to_owned())
    };
    Ok(Head { first, fields: lines.map(field).collect() })
}
