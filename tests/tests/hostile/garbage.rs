//! Nonsense on every port of a running site and machine.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};

use crate::{
    programs::eventually,
    site::{Machine, Site},
};

const M1: Machine = Machine("m1", 21);
/// How long the sender of nonsense listens for an answer.
const ANSWER: Duration = Duration::from_millis(200);
/// Within this time a server has given up on a peer that stopped half-way;
/// the longest deadline of any of them is 10 s.
const HALF_OPEN: Duration = Duration::from_secs(30);
/// Descriptors that may come and go at any time: a connection that is kept
/// warm, a file that is being written.
const SLACK: usize = 3;

const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A ClientHello for somebody else's protocol.
fn client_hello(alpn: &[u8]) -> Vec<u8> {
    let mut config = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = "west.example".try_into().unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// By name, so that a failure says which.
fn nonsense(rng: &mut StdRng) -> Vec<(&'static str, Vec<u8>)> {
    let mut random = vec![0; 64 * 1024];
    rng.fill_bytes(&mut random);
    let hello = client_hello(b"isthmus-control/1");
    let cut = rng.random_range(6..hello.len() - 1);
    let mut flipped = hello.clone();
    flipped[cut] ^= 0xff;
    let long = vec![b'a'; 512 * 1024];
    // HEADERS of stream 1, with a length that never comes and a bad table.
    let headers = [0, 0x3f, 0xff, 1, 4, 0, 0, 0, 1, 0xff, 0xff, 0xff];
    let many: Vec<u8> = (0..2000).flat_map(|i| format!("X-{i}: y\r\n").into_bytes()).collect();
    vec![
        ("nothing", Vec::new()),
        ("a byte", vec![0x16]),
        ("a few random bytes", random[..100].to_vec()),
        ("many random bytes", random.clone()),
        ("zeros", vec![0; 4096]),
        ("a truncated ClientHello", hello[..cut].to_vec()),
        ("a damaged ClientHello", flipped),
        ("a ClientHello with a wrong ALPN", client_hello(b"http/0.9")),
        ("a ClientHello, then noise", joined(&[&hello, &random[..500]])),
        ("a TLS record of the largest size", joined(&[&[0x16, 3, 1, 0xff, 0xff], &random])),
        ("half a head", b"GET / HTTP/1.1\r\nHost: orders.shop\r\nX-Half: ".to_vec()),
        ("a long header", joined(&[b"GET / HTTP/1.1\r\nHost: orders.shop\r\nX: ", &long, b"\r\n\r\n"])),
        ("many headers", joined(&[b"GET / HTTP/1.1\r\nHost: orders.shop\r\n", &many, b"\r\n"])),
        ("a long target", joined(&[b"GET /", &long, b" HTTP/1.1\r\nHost: orders.shop\r\n\r\n"])),
        ("two lengths", b"POST / HTTP/1.1\r\nHost: orders.shop\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabc".to_vec()),
        ("a broken chunk", b"POST / HTTP/1.1\r\nHost: orders.shop\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec()),
        ("CONNECT to nowhere", b"CONNECT :99999 HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n".to_vec()),
        ("an h2 preface, then noise", joined(&[H2_PREFACE, &random[..2000]])),
        ("an h2 preface, then a bad frame", joined(&[H2_PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0], &headers])),
    ]
}

/// Where the processes of the site listen.
struct Ports {
    /// With what a peer begins there that then says no more.
    tcp: Vec<(&'static str, SocketAddr, Option<&'static [u8]>)>,
    udp: SocketAddr,
    unix: Vec<PathBuf>,
}

const HALF_HELLO: Option<&[u8]> = Some(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]);
const HALF_HEAD: Option<&[u8]> = Some(b"GET / HTTP/1.1\r\nHost: orders.shop\r\n");

fn ports(site: &Site) -> Ports {
    let run = site.run_dir(M1);
    Ports {
        tcp: vec![
            ("federation", site.addr(11, 8446), HALF_HELLO),
            ("federation admin", site.addr(11, 8448), HALF_HEAD),
            ("gateway", site.addr(12, 8443), HALF_HELLO),
            ("gateway admin", site.addr(12, 4191), HALF_HEAD),
            // Its clients are this machine's applications: they are given 75 s.
            ("http listener", site.addr(M1.1, 4140), None),
            ("inbound", site.addr(M1.1, 4143), HALF_HELLO),
            // Opaque: a client that says little is a client.
            ("explicit listener", site.addr(M1.1, 7000), None),
            ("proxy admin", site.addr(M1.1, 4191), HALF_HEAD),
            ("agent admin", site.addr(M1.1, 4190), HALF_HEAD),
        ],
        udp: site.addr(12, 8443),
        unix: vec![
            site.dir().join("federation.sock"),
            site.dir().join("gateway-identity.sock"),
            run.join("agent.sock"),
            run.join("identity.sock"),
        ],
    }
}

/// Sends, listens a little, goes. What comes back does not matter here.
fn throw<S: Read + Write>(mut stream: S, bytes: &[u8], leave: impl FnOnce(&S)) {
    let _ = stream.write_all(bytes);
    leave(&stream);
    let mut answer = [0; 4096];
    while matches!(stream.read(&mut answer), Ok(1..)) {}
}

fn throw_tcp(addr: SocketAddr, bytes: &[u8], half_close: bool) {
    let stream = TcpStream::connect(addr).unwrap_or_else(|error| panic!("{addr}: {error}"));
    stream.set_read_timeout(Some(ANSWER)).unwrap();
    stream.set_write_timeout(Some(ANSWER)).unwrap();
    throw(stream, bytes, |stream| {
        if half_close {
            let _ = stream.shutdown(Shutdown::Write);
        }
    });
}

fn throw_udp(addr: SocketAddr, rng: &mut StdRng) {
    let socket = UdpSocket::bind((addr.ip(), 0)).unwrap();
    for round in 0..500 {
        let mut datagram = vec![0; rng.random_range(0..1500)];
        rng.fill_bytes(&mut datagram);
        // Every other one looks like a QUIC Initial (RFC 9000, 17.2.2).
        if round % 2 == 0 && datagram.len() > 7 {
            datagram[..7].copy_from_slice(&[0xc0, 0, 0, 0, 1, 8, 0]);
        }
        socket.send_to(&datagram, addr).unwrap();
    }
}

/// Peers that begin and stop: each server closes them by itself.
fn hold_half_open(ports: &Ports) {
    let held: Vec<_> = ports
        .tcp
        .iter()
        .filter_map(|(name, addr, begin)| Some((*name, *addr, (*begin)?)))
        .map(|(name, addr, begin)| {
            let mut stream = TcpStream::connect(addr).unwrap();
            stream.write_all(begin).unwrap();
            (name, stream)
        })
        .collect();
    let end = Instant::now() + HALF_OPEN;
    for (name, mut stream) in held {
        let left = end.saturating_duration_since(Instant::now()).max(ANSWER);
        stream.set_read_timeout(Some(left)).unwrap();
        let mut said = Vec::new();
        let closed = stream.read_to_end(&mut said);
        let waited = closed.as_ref().err().map(std::io::Error::kind);
        let timed_out = waited == Some(std::io::ErrorKind::WouldBlock);
        assert!(!timed_out, "{name}: a peer that stopped half-way is still held");
    }
}

/// All of it, at everything.
fn throw_all(ports: &Ports, rng: &mut StdRng) {
    let nonsense = &nonsense(rng);
    std::thread::scope(|scope| {
        for (_, addr, _) in &ports.tcp {
            scope.spawn(move || {
                for (_, bytes) in nonsense {
                    throw_tcp(*addr, bytes, false);
                    throw_tcp(*addr, bytes, true);
                }
            });
        }
        for path in &ports.unix {
            scope.spawn(move || {
                for (_, bytes) in nonsense {
                    let stream = UnixStream::connect(path).unwrap();
                    stream.set_read_timeout(Some(ANSWER)).unwrap();
                    stream.set_write_timeout(Some(ANSWER)).unwrap();
                    throw(stream, bytes, |_| {});
                }
            });
        }
        throw_udp(ports.udp, rng);
    });
}

#[test]
fn garbage_on_every_port_ends_nothing_and_leaks_nothing() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut site = Site::start();
    site.add(M1);
    let ports = ports(&site);
    // What is kept warm for the next request is there after the first round;
    // what leaks grows with every one.
    throw_all(&ports, &mut rng);
    site.wait_served(M1);
    let before = site.descriptors();
    std::thread::scope(|scope| {
        scope.spawn(|| hold_half_open(&ports));
        throw_all(&ports, &mut rng);
    });
    site.check_alive();
    site.wait_served(M1);
    eventually("descriptors are given back", || {
        let now = site.descriptors();
        let leaked = now.iter().filter(|(name, count)| **count > before[*name] + SLACK);
        match leaked.count() {
            0 => Ok(()),
            _ => Err(format!("before {before:?}, now {now:?}")),
        }
    });
    println!("before {before:?}, after {:?}", site.descriptors());
    // Everything that a new machine needs works as before.
    site.add(Machine("m2", 22));
    site.check_alive();
}
