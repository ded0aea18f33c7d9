//! The gRPC port while somebody fills it with silence.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::{io, net::SocketAddr, time::Duration};

use common::{TestSite, run};
use mesh_api::ALPN_JOIN;
use mesh_core::Allowed;
use mesh_tunnel::tls;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// Longer than anything may take that does not wait for silence to end.
const SOON: Duration = Duration::from_secs(8);
/// Of which the door takes 96.
const FLOOD: usize = 300;

async fn connect(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Whether the other end has closed it.
fn is_closed(stream: &TcpStream) -> bool {
    let read = stream.try_read(&mut [0]);
    !matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

#[test]
fn one_source_that_says_nothing_does_not_keep_others_out() {
    run(async {
        let site = TestSite::new("west").await;
        let to = site.running.grpc;
        let mut silent = Vec::new();
        for _ in 0..FLOOD {
            silent.push(connect([127, 0, 0, 2], to).await);
        }
        let token = site.token(1, Duration::from_secs(60), false).await;
        let allowed = Allowed::Exactly(site.federation_id());
        let config = tls::pinned_client(ALPN_JOIN, token.root_spki_sha256, allowed);
        let stream = connect([127, 0, 0, 3], to).await;
        timeout(SOON, tls::connect(config, stream)).await.expect("it waits").unwrap();
        let held = silent.iter().filter(|stream| !is_closed(stream)).count();
        assert_eq!(held, 96, "who was silent has been waited for");
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &site.running.metrics).unwrap();
        let line = r#"isthmus_federation_handshakes_refused_total{reason="source_limit"} 204"#;
        assert!(text.contains(line), "{text}");
    });
}
