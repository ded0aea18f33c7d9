//! Two ends over a pipe, or one end and a peer that does as it likes.

mod bytes;
mod ends;
mod hostile;
mod lives;

use std::{sync::Arc, time::Duration};

use ::bytes::{Bytes, BytesMut};
use mesh_runtime::drain::Drain;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
    time::timeout,
};

use super::{
    Exchange, Guardian, Limits, Opened, Probing, Received, ServerSession, Session, Shared, Spoken,
    StreamError, Target,
    frame::{Decoder, Frame, Step},
};

/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn target(port: &str) -> Arc<Target> {
    Arc::new(Target {
        service: "orders.shop".parse().unwrap(),
        port: port.parse().unwrap(),
        endpoint: "e-1".parse().unwrap(),
        protocol: Spoken::Http1,
        connection: None,
    })
}

/// Both ends of a session.
struct Pair {
    near: Session,
    near_guardian: Guardian,
    far: Far,
    drain: Drain,
}

/// The destination's end, driven by a task; what it accepts comes here.
struct Far {
    opened: tokio::sync::mpsc::Receiver<Opened>,
    guardian: Guardian,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Far {
    fn start(io: DuplexStream, limits: Limits, drain: &Drain) -> Self {
        let probing = Probing::DESTINATION;
        let (mut session, guardian) = ServerSession::start(Box::new(io), probing, limits, drain);
        let shared = guardian.0.clone();
        let (tell, opened) = tokio::sync::mpsc::channel(4096);
        let task = tokio::spawn(async move {
            while let Some(opened) = session.accept().await {
                if tell.try_send(opened).is_err() {
                    return;
                }
            }
        });
        Self { opened, guardian, shared, task }
    }

    async fn accept(&mut self) -> Opened {
        let opened = timeout(PATIENCE, self.opened.recv()).await.expect("in time");
        opened.expect("a stream")
    }
}

impl Pair {
    fn new(pipe: usize) -> Self {
        Self::with(pipe, Limits::default())
    }

    fn with(pipe: usize, limits: Limits) -> Self {
        let drain = Drain::new();
        let (near, far) = duplex(pipe);
        let (near, near_guardian) = Session::start(Box::new(near), Probing::SOURCE, &drain);
        Self { near, near_guardian, far: Far::start(far, limits, &drain), drain }
    }

    /// A stream whose answer has begun.
    async fn open(&mut self) -> (Exchange, Exchange) {
        let mut near = self.near.open(&target("http"), b"head", false).unwrap();
        let mut far = self.far.accept().await.exchange;
        far.send_head(b"answer", false).await.unwrap();
        assert_eq!(recv(&mut near).await, Ok(Some(Received::Head(b"answer"[..].into()))));
        (near, far)
    }

    /// Waits until both ends have forgotten every stream.
    async fn until_clean(&self) {
        let ends = [self.near.shared(), &self.far.shared];
        for _ in 0..2000 {
            if ends.iter().all(|end| end.state().is_clean()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("left over: {:?} {:?}", ends[0].state(), ends[1].state());
    }
}

/// Lets everybody else run until nobody has anything to do.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

async fn recv(exchange: &mut Exchange) -> Result<Option<Received>, StreamError> {
    timeout(PATIENCE, exchange.recv()).await.expect("in time")
}

/// All bytes up to the end, and the trailers if there are any.
async fn read_all(exchange: &mut Exchange) -> Result<(Vec<u8>, Option<Bytes>), StreamError> {
    let (mut bytes, mut trailers) = (Vec::new(), None);
    while let Some(received) = recv(exchange).await? {
        match received {
            Received::Data(data) => bytes.extend_from_slice(&data),
            Received::Trailers(block) => trailers = Some(block),
            Received::Head(_) | Received::Informational(_) => panic!("a late head"),
        }
    }
    Ok((bytes, trailers))
}

fn hello() -> Frame {
    Frame::Hello(Limits::default().encode().into())
}

fn open_frame(stream: u32) -> Frame {
    Frame::Open { stream, target: 0, head: Bytes::from_static(b"head"), end: false }
}

fn target_frame() -> Frame {
    Frame::Target(0, target("http").encode().into())
}

/// A peer that says what it likes.
struct Peer {
    io: DuplexStream,
    decoder: Decoder,
    buf: BytesMut,
}

impl Peer {
    /// A destination, and the peer that acts as its source.
    fn of_destination(limits: Limits) -> (Self, Far, Drain) {
        let drain = Drain::new();
        let (io, far) = duplex(1 << 20);
        let far = Far::start(far, limits, &drain);
        (Self { io, decoder: Decoder::default(), buf: BytesMut::new() }, far, drain)
    }

    /// A source, and the peer that acts as its destination.
    fn of_source(pipe: usize) -> (Self, Session, Guardian, Drain) {
        let drain = Drain::new();
        let (io, near) = duplex(pipe);
        let (session, guardian) = Session::start(Box::new(near), Probing::SOURCE, &drain);
        let peer = Self { io, decoder: Decoder::default(), buf: BytesMut::new() };
        (peer, session, guardian, drain)
    }

    async fn say(&mut self, frames: &[Frame]) {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        // It may be cut off before its last byte.
        let _ = self.io.write_all(&bytes).await;
    }

    /// The next frame; `None` when the other side has closed.
    async fn hear(&mut self) -> Option<Frame> {
        loop {
            if let Step::Frame(frame) = self.decoder.next(&mut self.buf).unwrap() {
                return Some(frame);
            }
            let read = self.io.read_buf(&mut self.buf);
            if timeout(PATIENCE, read).await.expect("in time").unwrap() == 0 {
                return None;
            }
        }
    }

    /// The next frame that is none of those that come at any time.
    async fn hear_of_stream(&mut self) -> Option<Frame> {
        loop {
            match self.hear().await {
                Some(Frame::Hello(_) | Frame::Target(..) | Frame::Ping(_)) => {}
                other => return other,
            }
        }
    }

    /// The reason in the last words.
    async fn last_words(&mut self) -> String {
        let mut last = String::new();
        while let Some(frame) = self.hear().await {
            if let Frame::GoAway { reason, .. } = frame {
                last = String::from_utf8_lossy(&reason).into_owned();
            }
        }
        last
    }
}
