//! Bytes that travel ahead of the answer, hop by hop.

use mesh_tunnel::{
    IncomingStream,
    session::{MAX_EARLY, refusal},
};

use super::*;

/// What the source has sent after its first gateway's `Connect`.
const SENT: usize = 2 * MAX_EARLY;

/// A stream of a caller in `west`, and its other end at a proxy in `east`
/// that has not answered yet.
async fn half_open(pair: &Pair, transport: LinkTransport) -> (TunnelStream, IncomingStream) {
    pair.west_gateway.publish(whole(vec![
        site(&pair.west, None),
        bundle(&pair.west),
        bundle(&pair.east),
        link(&pair.east, true, transport),
        gateway(&pair.east, "gw-e", pair.east_gateway.quic, pair.east_gateway.tls),
        service("orders.shop", &[], &["east"]),
        endpoint(&pair.east, "orders.shop", "o-2", None, None),
    ]));
    let caller = pair.caller(transport).await;
    let proxy = pair.reverse_proxy(transport).await;
    let to_node = connect("east", "orders.shop", "o-2");
    let stream = caller.begin(&to_node, STEP).await.unwrap();
    let incoming = timeout(STEP, proxy.accept()).await.unwrap().unwrap();
    (stream, incoming)
}

fn bytes() -> Vec<u8> {
    (0..SENT).map(|n| (n % 251) as u8).collect()
}

#[tokio::test]
async fn early_bytes_are_at_the_end_of_the_path_before_its_answer() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    for transport in BOTH {
        let pair = Pair::new(transport, address).await;
        let (mut stream, mut incoming) = half_open(&pair, transport).await;
        stream.write_all(&bytes()[..MAX_EARLY]).await.unwrap();
        let mut got = vec![0; MAX_EARLY];
        timeout(STEP, incoming.read_exact(&mut got)).await.unwrap().unwrap();
        assert!(got == bytes()[..MAX_EARLY]);
        // Nobody has said yes on its behalf.
        let answered = timeout(Duration::from_millis(200), stream.answered()).await;
        assert!(answered.is_err(), "{answered:?}");

        let far = tokio::spawn(async move {
            let mut far = incoming.accept().await.unwrap();
            far.read_to_end(&mut got).await.unwrap();
            far.shutdown().await.unwrap();
            got
        });
        stream.write_all(&bytes()[MAX_EARLY..]).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        timeout(STEP, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert!(far.await.unwrap() == bytes(), "in order, whole and once");
        pair.stop().await;
    }
}

#[tokio::test]
async fn a_refusal_overtakes_early_bytes_unchanged() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    for transport in BOTH {
        let pair = Pair::new(transport, address).await;
        let (mut stream, incoming) = half_open(&pair, transport).await;
        let refuse = incoming.refuse(RefusedReason::Quota, "east/node-7", "full");
        let sent = bytes();
        let (written, ()) = tokio::join!(timeout(STEP, stream.write_all(&sent)), refuse);
        let written = written.unwrap().unwrap_err();
        let read = stream.read_u8().await.unwrap_err();
        for error in [written, read] {
            match refusal(&error) {
                Some(OpenError::Refused { reason, hop, detail }) => {
                    assert_eq!(reason, RefusedReason::Quota);
                    assert_eq!((hop.as_str(), detail.as_str()), ("east/node-7", "full"));
                }
                other => panic!("{error}: {other:?}"),
            }
        }
        pair.stop().await;
    }
}
