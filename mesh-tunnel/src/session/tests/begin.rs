//! Streams that are used before they are answered.

use super::*;

#[tokio::test]
async fn a_stream_that_has_begun_carries_so_much_ahead_of_its_answer() {
    for transport in TRANSPORTS {
        let t = tunnel(transport).await;
        let near = t.near.begin(&connect("begun"), LONG).await.unwrap();
        assert_eq!(near.early_room(), MAX_EARLY);
        let mut incoming = t.far.accept().await.unwrap();
        // The two halves wait for the answer in tasks of their own.
        let (mut read, mut write) = tokio::io::split(near);
        let sent = vec![7; 3 * MAX_EARLY];
        let bytes = sent.clone();
        let writer = tokio::spawn(async move {
            write.write_all(&bytes).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let reader = tokio::spawn(async move { read.read_u8().await });
        let mut got = vec![0; MAX_EARLY];
        incoming.read_exact(&mut got).await.unwrap();
        let more = tokio::time::timeout(Duration::from_millis(100), incoming.read_u8()).await;
        assert!(more.is_err(), "{more:?} before the answer");
        assert!(!writer.is_finished() && !reader.is_finished());
        let mut far = incoming.accept().await.unwrap();
        far.read_to_end(&mut got).await.unwrap();
        assert!(got == sent, "{} of {}", got.len(), sent.len());
        writer.await.unwrap();
        far.write_u8(9).await.unwrap();
        assert_eq!(reader.await.unwrap().unwrap(), 9);
    }
}

#[tokio::test]
async fn what_fails_without_an_answer_says_why() {
    type Act = fn(&Session, IncomingStream) -> BoxFuture<'static, ()>;
    let refused: Act = |_, incoming| {
        Box::pin(async move { incoming.refuse(RefusedReason::Quota, "east/gw-1", "full").await })
    };
    let dropped: Act = |_, incoming| Box::pin(async move { drop(incoming) });
    let closed: Act = |far, incoming| {
        far.close("maintenance");
        Box::pin(async move { drop(incoming) })
    };
    let silent: Act = |_, incoming| {
        Box::pin(async move {
            tokio::time::sleep(LONG).await;
            drop(incoming);
        })
    };
    let cases = [
        (refused, ErrorKind::ConnectionRefused, "east/gw-1 refused: quota full"),
        (dropped, ErrorKind::ConnectionRefused, "no answer: "),
        (closed, ErrorKind::ConnectionReset, "tunnel closed"),
        (silent, ErrorKind::TimedOut, "within 1s"),
    ];
    for transport in TRANSPORTS {
        for (act, kind, expected) in &cases {
            let t = tunnel(transport).await;
            let within = Duration::from_secs(1);
            let mut near = t.near.begin(&connect("no"), within).await.unwrap();
            let answered = near.when_answered();
            let incoming = t.far.accept().await.unwrap();
            let acting = tokio::spawn(act(&t.far, incoming));
            // More than fits ahead: it fails with the answer, or by it.
            let written = near.write_all(&vec![0; 4 * MAX_EARLY]).await.unwrap_err();
            let read = near.read_u8().await.unwrap_err();
            for error in [&written, &read] {
                assert_eq!(error.kind(), *kind, "{error}");
                let why = refusal(error).expect("it is about the answer").to_string();
                assert!(why.contains(expected), "{why}");
            }
            answered.await;
            drop(near);
            acting.abort();
            let _ = acting.await;
        }
    }
}

#[tokio::test]
async fn a_refusal_comes_through_a_handshake_over_the_stream() {
    for transport in TRANSPORTS {
        let t = tunnel(transport).await;
        let near = t.near.begin(&connect("inner"), LONG).await.unwrap();
        let allowed = Allowed::Exactly(t.east.workload("orders"));
        let config = t.near_credentials.client(mesh_api::ALPN_INNER, allowed);
        let refuse = async {
            let mut incoming = t.far.accept().await.unwrap();
            // A handshake record: the ClientHello is here before the answer.
            assert_eq!(incoming.read_u8().await.unwrap(), 22);
            incoming.refuse(RefusedReason::NotExported, "east/gw-1", "").await;
        };
        let (connected, ()) = tokio::join!(crate::tls::connect(config, near), refuse);
        let error = connected.map(drop).unwrap_err();
        let why = refusal(&error);
        let found = matches!(
            why,
            Some(OpenError::Refused { reason: RefusedReason::NotExported, ref hop, .. })
                if hop == "east/gw-1"
        );
        assert!(found, "{error} {why:?}");
    }
}
