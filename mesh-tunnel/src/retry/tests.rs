use std::{net::Ipv4Addr, time::Duration};

use bytes::Bytes;
use mesh_core::Allowed;
use quinn::{ConnectionError, Endpoint, TransportErrorCode, crypto::rustls::QuicClientConfig};
use tokio::net::UdpSocket;

use super::*;
use crate::{
    admission::{Admission, Place, Strangers, Tally},
    budget::Budget,
    net::{Net, RealNet},
    quic,
    sparing::Sparing,
    testing::{Authority, credentials},
    tls::SERVER_NAME,
};

const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const PATIENCE: Duration = Duration::from_secs(20);
const FIRST_ID: [u8; 8] = [0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];

/// What precedes the payload; `token` with its length.
pub(crate) fn header(destination: &[u8], source: &[u8], token: &[u8], payload: &[u8]) -> Vec<u8> {
    let (one, other) = ([destination.len() as u8], [source.len() as u8]);
    [&[0xc3, 0, 0, 0, 1][..], &one, destination, &other, source, token, payload].concat()
}

pub(crate) fn padded(mut header: Vec<u8>) -> Vec<u8> {
    header.resize(MIN_DATAGRAM, 0x55);
    header
}

#[test]
fn a_first_packet_is_read_as_far_as_it_is_in_the_clear() {
    let (source, token) = ([7; 20], [9; 70]);
    let with_token = [&[0x40, 70][..], &token].concat();
    let cases = [
        (header(&FIRST_ID, &[], &[0], &[20]), &[][..], &[][..]),
        (header(&FIRST_ID, &source, &[0], &[0x44, 0x7e]), &source, &[]),
        (header(&FIRST_ID, &source, &[0xc0, 0, 0, 0, 0, 0, 0, 0], &[20]), &source, &[]),
        (header(&FIRST_ID, &source, &with_token, &[0x80, 0, 0, 20]), &source, &token),
    ];
    for (header, source, token) in cases {
        let initial = Initial { destination: &FIRST_ID, source, token };
        assert_eq!(first_of(&padded(header.clone())), First::Initial(initial), "{header:?}");
        let mut greased = padded(header);
        greased[0] &= 0xbf;
        assert!(matches!(first_of(&greased), First::Initial(_)));
        assert_eq!(first_of(&greased[..MIN_DATAGRAM - 1]), First::Broken);
        for length in 0..MIN_DATAGRAM {
            let cut = first_of(&greased[..length]);
            assert_eq!(cut, if length < 5 { First::Other } else { First::Broken }, "{length}");
        }
    }
}

#[test]
fn what_its_lengths_lead_out_of_begins_nothing() {
    const HUGE: [u8; 8] = [0xff; 8];
    // What is left after these headers of 8 + 8 bytes of ids, and a token of none.
    let all = MIN_DATAGRAM - (5 + 9 + 9 + 1 + 2);
    let varint = |n: usize| [0x40 | (n >> 8) as u8, n as u8];
    let fits = padded(header(&FIRST_ID, &FIRST_ID, &[0], &varint(all)));
    assert!(matches!(first_of(&fits), First::Initial(_)));
    let broken = [
        header(&[1; 7], &[], &[0], &[20]),
        header(&[], &[], &[0], &[20]),
        header(&[1; 21], &[], &[0], &[20]),
        header(&FIRST_ID, &[1; 21], &[0], &[20]),
        header(&FIRST_ID, &[1; 255], &[0], &[20]),
        header(&FIRST_ID, &FIRST_ID, &HUGE, &[20]),
        header(&FIRST_ID, &FIRST_ID, &varint(all + 3), &[]),
        header(&FIRST_ID, &FIRST_ID, &[0xbf, 0xff, 0xff, 0xff], &[20]),
        header(&FIRST_ID, &FIRST_ID, &[0], &HUGE),
        header(&FIRST_ID, &FIRST_ID, &[0], &varint(all + 1)),
        header(&FIRST_ID, &FIRST_ID, &[0], &[19]),
        header(&FIRST_ID, &FIRST_ID, &[0], &[0]),
    ];
    for header in broken {
        assert_eq!(first_of(&padded(header.clone())), First::Broken, "{header:?}");
    }
    // Version 2 (RFC 9369), a version to be negotiated, a Handshake, a short header.
    for (at, byte) in [(1, 0x6b), (4, 0), (4, 2), (0, 0xe3), (0, 0x43)] {
        let mut other = fits.clone();
        other[at] = byte;
        assert_eq!(first_of(&other), First::Other, "{byte:#x} at {at}");
    }
}

#[test]
fn the_tag_is_that_of_the_rfc() {
    // RFC 9001 appendix A.4.
    let mut packet = Packet { bytes: [0; MAX_PACKET], start: 9, end: 0 };
    packet.put_id(&FIRST_ID);
    packet.put(&[0xff, 0, 0, 0, 1, 0, 8, 0xf0, 0x67, 0xa5, 0x50, 0x2a, 0x42, 0x62, 0xb5]);
    packet.put(b"token");
    packet.put_tag();
    let tag = 0x04a265ba2eff4d829058fb3f0f2496ba_u128.to_be_bytes();
    assert!(packet.as_bytes().starts_with(&[0xff, 0, 0, 0, 1]));
    assert!(packet.as_bytes().ends_with(&tag));
}

/// The id that a Retry asks for, and its token.
fn read_retry(packet: &[u8], source: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut rest = packet.strip_prefix(&[0xf0, 0, 0, 0, 1]).unwrap();
    assert_eq!(id(&mut rest), Some(source));
    let own = id(&mut rest).unwrap();
    (own.to_vec(), rest[..rest.len() - INTEGRITY_TAG].to_vec())
}

#[test]
fn a_token_is_of_the_key_that_made_it() {
    let key = TokenKey::of_process();
    let other = TokenKey(hmac::Key::new(hmac::HMAC_SHA256, &[1; 32]));
    let initial = Initial { destination: &[1; MAX_ID], source: &[2; MAX_ID], token: &[] };
    let from = "[2001:db8::1]:4433".parse().unwrap();
    let packet = Packet::new(&initial, from, Some(Generation(7)), &key);
    assert_eq!(packet.end, MAX_PACKET);
    let (own, mut token) = read_retry(packet.as_bytes(), initial.source);
    assert_eq!((own.len(), own[0]), (CID_LEN, 7));
    assert!(key.has_made(&token) && !other.has_made(&token));
    for length in 0..token.len() {
        assert!(!key.has_made(&token[..length]));
    }
    for at in 0..token.len() {
        token[at] ^= 1;
        assert!(!key.has_made(&token), "{at}");
        token[at] ^= 1;
    }
    let again = Packet::new(&initial, from, None, &key);
    assert_ne!(read_retry(again.as_bytes(), initial.source).1, token);
}

/// An endpoint whose strangers have to prove their address, and what it heard of
/// them: whether they had.
struct Busy {
    addr: SocketAddr,
    near: Arc<crate::tls::Credentials>,
    east: Authority,
    admission: Arc<Admission>,
    strangers: Arc<Strangers>,
    places: Vec<Place>,
    turned_away: Tally,
    endpoint: Endpoint,
}

impl Busy {
    async fn at(addr: SocketAddr) -> Self {
        let east = Authority::new("east.example");
        let held = credentials(&east, &east.gateway(), &[&east]);
        let near = credentials(&east, &east.workload("a"), &[&east]);
        let admission = Arc::<Admission>::default();
        let places = (0..40).map(|_| admission.enter(LOCAL.ip(), false).unwrap()).collect();
        let strangers = Strangers::new(admission.clone(), Budget::of_handshakes(&RealNet));
        let turned_away = Tally::default();
        let door = (Budget::of_door(&RealNet), strangers.clone(), turned_away.clone());
        let socket = RealNet.udp(addr, true).await.unwrap();
        let socket = Arc::new(Sparing::new(socket, door, None));
        let allowed = Allowed::Neighbour(east.domain.clone());
        let acceptor = quic::Acceptor::new(&RealNet, socket, &held, allowed).unwrap();
        let endpoint = acceptor.endpoint.clone();
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, endpoint.local_addr().unwrap().port()));
        Self { addr, near, east, admission, strangers, places, turned_away, endpoint }
    }

    /// Dials with this token, and whether what was heard of it first had proved
    /// its address.
    async fn dial(&self, client: &Endpoint, token: Option<Bytes>) -> Dialled {
        let allowed = Allowed::Exactly(self.east.gateway());
        let tls = self.near.client(mesh_api::ALPN_TUNNEL, allowed);
        let mut config =
            quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        config.token_store(Arc::new(Given(std::sync::Mutex::new(token))));
        let dialling = client.connect_with(config, self.addr, SERVER_NAME).unwrap();
        let heard = async {
            let incoming = self.endpoint.accept().await.unwrap();
            let proved = incoming.remote_address_validated();
            let accepted = incoming.await;
            (proved, accepted)
        };
        let both = async {
            tokio::pin!(dialling, heard);
            let (dialled, heard) = tokio::select! {
                dialled = &mut dialling => match dialled {
                    Ok(_) => (dialled, Some(heard.await)),
                    Err(_) => (dialled, None),
                },
                heard = &mut heard => (dialling.await, Some(heard)),
            };
            (dialled.map(drop), heard.map(|(proved, _)| proved))
        };
        tokio::time::timeout(PATIENCE, both).await.unwrap()
    }

    fn retries(&self) -> u64 {
        let counts = self.turned_away.get();
        counts.iter().filter(|(code, _)| *code == "quic_retry").map(|(_, n)| n).sum()
    }
}

type Dialled = (Result<(), ConnectionError>, Option<bool>);

struct Given(std::sync::Mutex<Option<Bytes>>);

impl quinn::TokenStore for Given {
    fn insert(&self, _: &str, _: Bytes) {}

    fn take(&self, _: &str) -> Option<Bytes> {
        self.0.lock().unwrap().take()
    }
}

#[tokio::test]
async fn the_endpoint_hears_only_of_clients_that_have_proved_their_address() {
    // On a socket of both families the client has an address of IPv6.
    for at in [LOCAL, "[::]:0".parse().unwrap()] {
        let busy = Busy::at(at).await;
        let client = Endpoint::client(LOCAL).unwrap();
        assert_eq!(busy.dial(&client, None).await, (Ok(()), Some(true)), "{at}");
        assert!(busy.retries() >= 1);
    }
}

#[tokio::test]
async fn others_begin_at_once() {
    let mut busy = Busy::at(LOCAL).await;
    let client = Endpoint::client(LOCAL).unwrap();
    let begun = busy.strangers.begin(client.local_addr().unwrap());
    assert_eq!(busy.dial(&client, None).await, (Ok(()), Some(false)), "it has begun");
    drop(begun);
    busy.places.clear();
    assert!(!busy.admission.is_busy());
    assert_eq!(busy.dial(&client, None).await, (Ok(()), Some(false)), "it is not busy");
    assert_eq!(busy.retries(), 0);
}

#[tokio::test]
async fn a_closed_door_answers_nobody() {
    let busy = Busy::at(LOCAL).await;
    busy.strangers.close();
    busy.endpoint.set_server_config(None);
    let socket = UdpSocket::bind(LOCAL).await.unwrap();
    let said = padded(header(&FIRST_ID, &FIRST_ID, &[0], &[20]));
    socket.send_to(&said, busy.addr).await.unwrap();
    // A stateless reset at most.
    let mut answer = [0; 2048];
    let answered = tokio::time::timeout(Duration::from_millis(300), socket.recv(&mut answer)).await;
    assert!(answered.is_err() || answer[0] & 0x80 == 0);
    assert_eq!(busy.retries(), 0);
}

#[tokio::test]
async fn a_token_is_good_for_one_address_and_a_short_time() {
    let busy = Busy::at(LOCAL).await;
    let client = Endpoint::client(LOCAL).unwrap();
    let from = client.local_addr().unwrap();
    let socket = UdpSocket::bind(LOCAL).await.unwrap();
    let said = padded(header(&FIRST_ID, &[5; 6], &[0], &[20]));
    socket.send_to(&said, busy.addr).await.unwrap();
    let mut answer = [0; 2048];
    let length = tokio::time::timeout(PATIENCE, socket.recv(&mut answer)).await.unwrap().unwrap();
    let (_, elsewhere) = read_retry(&answer[..length], &[5; 6]);

    let key = TokenKey::of_process();
    let made = |age: u64| {
        let mut packet = Packet { bytes: [0; MAX_PACKET], start: 0, end: 0 };
        packet.put_token(&FIRST_ID, from, clock::now_unix().as_secs() - age, &key);
        packet.as_bytes().to_vec()
    };
    for token in [elsewhere, made(60)] {
        let (refused, heard) = busy.dial(&client, Some(token.into())).await;
        let Err(ConnectionError::ConnectionClosed(close)) = refused else { panic!("{refused:?}") };
        assert_eq!((close.error_code, heard), (TransportErrorCode::INVALID_TOKEN, None));
    }
    assert_eq!(busy.retries(), 1);
    // One that is nobody's is none.
    let mut forged = made(0);
    forged[3] ^= 1;
    assert_eq!(busy.dial(&client, Some(forged.into())).await, (Ok(()), Some(true)));
    assert!(busy.retries() >= 2);
}
