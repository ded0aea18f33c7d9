//! Ports for listeners that are opened by number.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

/// A port on which nobody listens, TCP and UDP, at an address that nobody else
/// is likely to use before it is.
#[must_use]
pub fn free() -> SocketAddr {
    loop {
        // On 127.0.0.1 any connection of this machine may take it meanwhile.
        let [a, b, c] = rand::random::<[u8; 3]>().map(|n| n.clamp(1, 254));
        let tcp = TcpListener::bind((Ipv4Addr::new(127, a, b, c), 0)).expect("a port");
        let addr = tcp.local_addr().expect("it is bound");
        if UdpSocket::bind(addr).is_ok() {
            return addr;
        }
    }
}
