//! Whether something answers at an address.

use std::time::Duration;

use tokio::{
    net::{TcpStream, UdpSocket, lookup_host},
    time::{Instant, timeout},
};

/// A gateway that takes longer than this to answer one packet is away.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// `3.1 ms` since then.
pub(super) fn ms(began: Instant) -> String {
    format!("{:.1} ms", began.elapsed().as_secs_f64() * 1000.0)
}

/// Whether a TCP connection is accepted, and how long that takes.
pub(super) async fn tcp(address: &str) -> Result<String, String> {
    let started = Instant::now();
    match timeout(PROBE_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(format!("in {}", ms(started))),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PROBE_TIMEOUT.as_secs())),
    }
}

/// Sends a QUIC Initial-sized packet of a version nobody speaks: a QUIC server
/// must answer with Version Negotiation (RFC 9000 section 6.1), without any
/// certificate and without keeping state.
pub(super) async fn quic(address: &str) -> Result<String, String> {
    let started = Instant::now();
    let exchange = async {
        let addr = lookup_host(address).await?.next();
        let addr = addr.ok_or_else(|| std::io::Error::other("the name has no address"))?;
        let any = if addr.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(addr).await?;
        socket.send(&version_probe()).await?;
        let mut answer = [0_u8; 1500];
        let len = socket.recv(&mut answer).await?;
        Ok::<bool, std::io::Error>(is_version_negotiation(&answer[..len]))
    };
    match timeout(PROBE_TIMEOUT, exchange).await {
        Ok(Ok(true)) => Ok(format!("in {}", ms(started))),
        Ok(Ok(false)) => Err("something answers that does not speak QUIC".into()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PROBE_TIMEOUT.as_secs())),
    }
}

/// A reserved version (RFC 9000 section 15: 0x?a?a?a?a).
const PROBE_VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];

fn version_probe() -> [u8; 1200] {
    let mut packet = [0_u8; 1200];
    // Long header, fixed bit; version; 8 bytes destination id; no source id.
    packet[0] = 0xc0;
    packet[1..5].copy_from_slice(&PROBE_VERSION);
    packet[5] = 8;
    packet[6..14].copy_from_slice(&rand::random::<[u8; 8]>());
    packet
}

/// Long header with version 0 (RFC 9000 section 17.2.1).
fn is_version_negotiation(packet: &[u8]) -> bool {
    packet.len() >= 7 && packet[0] & 0x80 != 0 && packet[1..5] == [0; 4]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_negotiation_is_recognised() {
        assert!(is_version_negotiation(&[0x80, 0, 0, 0, 0, 0, 8, 1]));
        assert!(!is_version_negotiation(&[0x80, 0, 0, 0, 1, 0, 8]));
        assert!(!is_version_negotiation(&[0x40, 0, 0, 0, 0, 0, 8]));
        assert!(!is_version_negotiation(&[]));
    }

    #[tokio::test]
    async fn a_closed_tcp_port_is_named() {
        // Nobody else can have the port meanwhile.
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let addr = socket.local_addr().expect("an address").to_string();
        assert!(tcp(&addr).await.is_err());
        let _listener = socket.listen(1).expect("a listener");
        assert!(tcp(&addr).await.is_ok());
    }
}
