use std::net::{Ipv6Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};

use super::*;
use crate::net::{BoxFuture, RealListener, Stream};

/// Longer than the loopback takes, shorter than the kernel waits before it says
/// again what nobody has answered.
const AT_ONCE: Duration = Duration::from_millis(500);

async fn connect(from: [u8; 4], to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    timeout(AT_ONCE, socket.connect(to)).await?
}

async fn echoes(stream: &mut TcpStream, served: &mut TcpStream) {
    stream.write_all(b"x").await.unwrap();
    let mut byte = [0];
    timeout(AT_ONCE, served.read_exact(&mut byte)).await.unwrap().unwrap();
}

#[tokio::test]
async fn connections_of_some_sources_do_not_begin_and_what_is_open_goes_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (bad, worse, other) = ([127, 0, 0, 66], [127, 0, 0, 67], [127, 0, 0, 68]);
    let mut open = connect(bad, addr).await.unwrap();
    let mut served = listener.accept().await.unwrap().0;
    drop_beginnings(&listener, &[bad.into(), worse.into()]).unwrap();
    for shunned in [bad, worse] {
        let refused = connect(shunned, addr).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut, "{refused}");
    }
    let mut heard = connect(other, addr).await.unwrap();
    // What was accepted beside a filter has it, and nothing to drop.
    let mut beside = listener.accept().await.unwrap().0;
    echoes(&mut heard, &mut beside).await;
    echoes(&mut open, &mut served).await;
    drop_beginnings(&listener, &[]).unwrap();
    drop_beginnings(&listener, &[]).unwrap();
    connect(bad, addr).await.unwrap();
}

#[tokio::test]
async fn networks_of_ipv6_are_told_apart_from_addresses_of_ipv4() {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
    socket.set_only_v6(false).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into()).unwrap();
    socket.listen(16).unwrap();
    let listener = TcpListener::from_std(socket.into()).unwrap();
    let port = listener.local_addr().unwrap().port();
    let six = async || {
        let connecting = TcpStream::connect((Ipv6Addr::LOCALHOST, port));
        timeout(AT_ONCE, connecting).await.is_ok_and(|connected| connected.is_ok())
    };
    let four = async || connect([127, 0, 0, 5], ([127, 0, 0, 1], port).into()).await.is_ok();
    let shun = |text: &[&str]| {
        let sources: Vec<IpAddr> = text.iter().map(|text| text.parse().unwrap()).collect();
        drop_beginnings(&listener, &sources).unwrap();
    };
    for (sources, heard) in [
        (&["2001:db8::", "127.0.0.6"][..], (true, true)),
        (&["0:0:0:1::"], (true, true)),
        (&["::"], (false, true)),
        (&["2001:db8::", "127.0.0.5"], (true, false)),
        (&["127.0.0.5", "127.0.0.6", "2001:db8::", "::"], (false, false)),
    ] {
        shun(sources);
        assert_eq!((six().await, four().await), heard, "{sources:?}");
    }
}

#[test]
fn handshakes_of_quic_are_dropped_and_what_is_known_is_not() {
    let (socket, client) =
        (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let to = socket.local_addr().unwrap();
    let received = || {
        for datagram in [&[0xc3, 1, 2][..], &[0x80], &[0x43, 1, 2], &[]] {
            client.send_to(datagram, to).unwrap();
        }
        client.send_to(b"\x40end", to).unwrap();
        let mut all = Vec::new();
        let mut buf = [0; 64];
        loop {
            let length = socket.recv(&mut buf).unwrap();
            if &buf[..length] == b"\x40end" {
                return all;
            }
            all.push(buf[..length].to_vec());
        }
    };
    assert_eq!(received().len(), 4);
    drop_handshakes(&socket).unwrap();
    drop_handshakes(&socket).unwrap();
    // Nothing in a datagram is nothing to us either.
    assert_eq!(received(), [vec![0x43, 1, 2]]);
    keep_all(&socket).unwrap();
    keep_all(&socket).unwrap();
    assert_eq!(received().len(), 4);
}

fn ip(n: u8) -> IpAddr {
    [192, 0, 2, n].into()
}

#[test]
fn who_is_refused_often_in_a_short_time_is_shunned() {
    let mut state = State::default();
    let now = clock::monotonic();
    let often = |state: &mut State, n, times: u32, at| (0..times).any(|_| state.count(ip(n), at));
    assert!(!often(&mut state, 1, REFUSALS - 1, now));
    assert!(!often(&mut state, 1, REFUSALS - 1, now + WITHIN));
    assert!(often(&mut state, 1, 1, now + WITHIN));
    assert_eq!(state.sources(), [ip(1)]);
    // It is not told twice.
    assert!(!often(&mut state, 1, REFUSALS, now + WITHIN));
}

#[test]
fn what_is_known_of_sources_is_bounded() {
    let mut state = State::default();
    let now = clock::monotonic();
    for n in 0..200 {
        state.count(ip(n), now);
    }
    assert_eq!(state.refused.len(), COUNTED);
    // Those that are long ago make room.
    for n in 0..200 {
        for _ in 0..REFUSALS {
            state.count(ip(n), now + WITHIN);
        }
    }
    assert!(state.refused.len() <= COUNTED);
    assert_eq!(state.shunned.len(), MAX_SHUNNED);
}

/// Tells whom it was asked to shun.
struct Asked(RealListener, Mutex<Vec<Vec<IpAddr>>>);

impl Listener for Asked {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, SocketAddr)>> {
        self.0.accept()
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn shun(&self, sources: &[IpAddr]) {
        self.1.lock().unwrap().push(sources.to_vec());
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_shunned_is_heard_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let asked = Arc::new(Asked(RealListener(Arc::new(listener)), Mutex::default()));
    let shunning = Shunning::new(asked.clone());
    let told = || std::mem::take(&mut *asked.1.lock().unwrap());
    assert_eq!(told(), [Vec::<IpAddr>::new()]);
    let refuse = |n| (0..REFUSALS).for_each(|_| shunning.refused(ip(n)));
    refuse(1);
    tokio::time::sleep(SHUNNED / 2).await;
    refuse(2);
    assert_eq!(told(), [vec![ip(1)], vec![ip(1), ip(2)]]);
    tokio::time::sleep(SHUNNED * 2).await;
    assert_eq!(told(), [vec![ip(2)], vec![]]);
    refuse(1);
    tokio::time::sleep(SHUNNED * 2).await;
    assert_eq!(told(), [vec![ip(1)], vec![]]);
    // Nobody is left to a successor who has the socket.
    refuse(2);
    drop(shunning);
    assert_eq!(told(), [vec![ip(2)], vec![]]);
    assert_eq!(Arc::strong_count(&asked), 1, "it keeps the socket open");
}
