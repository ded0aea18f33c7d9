//! A UDP port where datagrams go in and nothing comes out: what a firewall
//! that drops UDP looks like to both ends.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use mesh_runtime::drain::Drain;
use tokio::net::UdpSocket;

use crate::failure::Failure;

/// Swallows what is sent to one address and counts it.
#[derive(Debug, Clone)]
pub(crate) struct Blackhole {
    swallowed: Arc<AtomicU64>,
}

impl Blackhole {
    pub(crate) async fn open(addr: SocketAddr, drain: &Drain) -> Result<Self, Failure> {
        let socket = UdpSocket::bind(addr).await?;
        let swallowed = Arc::new(AtomicU64::new(0));
        let (count, stop) = (swallowed.clone(), drain.clone());
        drain.spawn(async move {
            let mut buffer = [0_u8; 2048];
            loop {
                tokio::select! {
                    () = stop.draining() => return,
                    received = socket.recv_from(&mut buffer) => {
                        if received.is_ok() {
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }
        });
        Ok(Self { swallowed })
    }

    /// Datagrams so far.
    pub(crate) fn swallowed(&self) -> u64 {
        self.swallowed.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn nothing_comes_out() {
        let drain = Drain::new();
        let probe = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let addr = probe.local_addr().expect("an address");
        drop(probe);
        let hole = Blackhole::open(addr, &drain).await.expect("a port");
        let client = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        client.connect(addr).await.expect("connected");
        while hole.swallowed() == 0 {
            client.send(b"hello").await.expect("sent");
            tokio::task::yield_now().await;
        }
        let mut buffer = [0; 16];
        let answer =
            tokio::time::timeout(Duration::from_millis(20), client.recv(&mut buffer)).await;
        assert!(answer.is_err(), "a blackhole answered");
        drain.finish(Duration::from_secs(1)).await;
    }
}
