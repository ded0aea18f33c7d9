//! Who has an identity and means harm, in a session with the destination.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use edge_proxy::inner::mux::{
    MAX_STREAMS, ResetCode, WINDOW,
    frame::{Decoder, Frame, Step},
};
use mesh_api::{
    ALPN_INNER,
    v1::{InnerHello, InnerProtocol, InnerTarget},
};
use mesh_core::{
    Allowed,
    message::{Fields, RequestHead, codec},
};
use mesh_tunnel::tls::ClientStream;
use mesh_tunnel::{Credentials, Trust, tls};
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    attack::{Attack, Pace},
    support::pki::Authority,
    world::World,
};

const CUT: &str = "isthmus_proxy_connections_cut_total{direction=\"inbound\"";

/// A caller of the mesh, with an identity that `authority` vouches for.
pub(crate) fn credentials(world: &World, authority: &Authority, account: &str) -> Arc<Credentials> {
    let trust = Trust { bundles: world.authority.bundles(), ..Trust::default() };
    Credentials::new(Some(authority.workload(account)), trust)
}

pub(crate) struct Peer<S> {
    io: ClientStream<S>,
    decoder: Decoder,
    read: BytesMut,
}

impl Peer<TcpStream> {
    async fn of(world: &World) -> Self {
        let stream = TcpStream::connect(world.inbound()).await.unwrap();
        Self::over(stream, &credentials(world, &world.authority, "thief")).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    /// A session that has said what its streams are for.
    pub(crate) async fn over(stream: S, credentials: &Arc<Credentials>) -> Self {
        let config = credentials.client(ALPN_INNER, Allowed::Known);
        let io = tls::connect(config, stream).await.unwrap();
        let mut peer = Self { io, decoder: Decoder::default(), read: BytesMut::new() };
        let hello = InnerHello {
            versions: vec![1],
            max_streams: MAX_STREAMS,
            stream_window: WINDOW,
            critical: Vec::new(),
        };
        let target = InnerTarget {
            service: "orders.shop".into(),
            port: "http".into(),
            endpoint: "one-http".into(),
            protocol: InnerProtocol::Http1.into(),
            ..InnerTarget::default()
        };
        let target = Frame::Target(0, target.encode_to_vec().into());
        assert!(peer.say(&[Frame::Hello(hello.encode_to_vec().into()), target]).await);
        peer
    }

    /// Whether the other end still takes it.
    pub(crate) async fn say(&mut self, frames: &[Frame]) -> bool {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        self.io.write_all(&bytes).await.is_ok() && self.io.flush().await.is_ok()
    }

    /// What it hears next; `None` when the session has ended.
    async fn hear(&mut self) -> Option<Frame> {
        loop {
            if let Step::Frame(frame) = self.decoder.next(&mut self.read).unwrap() {
                return Some(frame);
            }
            self.read.reserve(16 << 10);
            if !matches!(self.io.read_buf(&mut self.read).await, Ok(1..)) {
                return None;
            }
        }
    }

    /// Asks for a mebibyte on `stream` and takes it as it comes. What others of
    /// the session are sent is counted in `got` and not taken.
    pub(crate) async fn take_big(&mut self, stream: u32, got: &mut BTreeMap<u32, usize>) {
        const GRANT: usize = 16 << 10;
        let mut more = 0;
        assert!(self.say(&[ask(stream, "/big")]).await);
        while got.get(&stream) != Some(&(1 << 20)) {
            let heard = timeout(Duration::from_secs(20), self.hear()).await;
            let (of, data) = match heard.expect("it stalls").expect("a session") {
                Frame::Data { stream, data, .. } => (stream, data),
                Frame::GoAway { reason, .. } => panic!("{}", reason.escape_ascii()),
                _ => continue,
            };
            *got.entry(of).or_default() += data.len();
            more += data.len() * usize::from(of == stream);
            if more >= GRANT {
                let more_now = u32::try_from(std::mem::take(&mut more)).unwrap();
                assert!(self.say(&[Frame::Window { stream, more: more_now }]).await);
            }
        }
    }
}

pub(crate) fn ask(stream: u32, path: &str) -> Frame {
    let head = RequestHead {
        method: http::Method::GET,
        authority: "orders.shop".into(),
        target: path.into(),
        fields: Fields::new(),
        ..RequestHead::new()
    };
    let mut coded = Vec::new();
    codec::put_request(&head, &mut coded);
    Frame::Open { stream, target: 0, head: coded.into(), end: true }
}

/// Sessions, one after the other, that say what `next` gives for the numbers
/// from 0, and read nothing but their end. Each must be cut.
async fn flood(world: &World, pace: Arc<Pace>, next: impl Fn(u32) -> Vec<Frame>) {
    while pace.goes_on() {
        let mut peer = Peer::of(world).await;
        let mut number = 0;
        loop {
            let frames: Vec<Frame> = (number..number + 200).flat_map(&next).collect();
            number += 200;
            let taken = peer.say(&frames).await;
            pace.units(200);
            // What it is told must be read, or both would wait.
            let ended = async { while peer.hear().await.is_some() {} };
            if !taken || timeout(Duration::from_millis(1), ended).await.is_ok() {
                break;
            }
            assert!(number < 1_000_000, "nothing stops it");
        }
    }
}

fn attack(name: &'static str, unit: &'static str, units: u64) -> Attack {
    Attack { name, unit, units, memory: 16, counted: Some(CUT), saturated: None }
}

#[tokio::test]
async fn streams_that_are_given_up_at_once_end_the_session() {
    let world = World::start().await;
    let attack = attack("inner session: open and reset", "streams", 20_000);
    let next = |number| {
        let reason = Bytes::new();
        let reset = Frame::Reset { stream: number + 1, code: ResetCode::Cancelled, reason };
        vec![ask(number + 1, "/deaf"), reset]
    };
    world.at_destination(attack, |pace| flood(&world, pace, next)).await;
}

#[tokio::test]
async fn pings_end_the_session() {
    let world = World::start().await;
    let attack = attack("inner session: pings", "frames", 50_000);
    let next = |number: u32| vec![Frame::Ping(number.into())];
    world.at_destination(attack, |pace| flood(&world, pace, next)).await;
}

#[tokio::test]
async fn windows_end_the_session() {
    let world = World::start().await;
    let attack = attack("inner session: windows", "frames", 50_000);
    let next = |number| match number {
        0 => vec![ask(1, "/deaf")],
        _ => vec![Frame::Window { stream: 1, more: 1 }],
    };
    world.at_destination(attack, |pace| flood(&world, pace, next)).await;
}

/// 100 answers of a mebibyte that nobody reads hold their windows and no more,
/// and every other answer of the session arrives whole.
#[tokio::test]
async fn streams_that_nobody_reads_stall_no_other() {
    const STALLED: u32 = 100;
    let world = World::start().await;
    let attack = Attack {
        name: "inner session: 100 stalled streams, others read",
        unit: "answers of 1 MiB",
        units: 50,
        memory: 32,
        counted: Some("response_total"),
        saturated: None,
    };
    let run = async |pace: Arc<Pace>| {
        let mut peer = Peer::of(&world).await;
        let stalled: Vec<Frame> = (1..=STALLED).map(|stream| ask(stream, "/big")).collect();
        assert!(peer.say(&stalled).await);
        let mut got = BTreeMap::<u32, usize>::new();
        let mut reading = STALLED;
        while pace.goes_on() {
            reading += 1;
            peer.take_big(reading, &mut got).await;
            pace.unit();
        }
        let most = (1..=STALLED).filter_map(|stream| got.get(&stream)).max().unwrap();
        assert!(*most <= WINDOW as usize, "{most} bytes of a stream that nobody reads");
    };
    world.at_destination(attack, run).await;
}
