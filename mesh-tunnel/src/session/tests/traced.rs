//! Word of traced requests.

use super::*;

#[tokio::test]
async fn who_listens_hears_of_traced_requests_and_what_matters_goes_first() {
    for transport in TRANSPORTS {
        let t = tunnel(transport).await;
        let traced = |n: u8| Traced {
            connection_id: "c1".into(),
            trace: [1; 16],
            request: [n; 8],
            parent: [3; 8],
            ended: false,
        };
        // Nobody listens: nothing happens.
        t.near.trace(&traced(1));
        stream(&t.near, &t.far).await;
        let mut heard = t.far.traced().unwrap();
        assert!(t.far.traced().is_none(), "somebody does already");
        t.near.trace(&traced(2));
        // The first may have been on its way for that long.
        let first = heard.recv().await.unwrap();
        let second = if first == traced(1) { heard.recv().await.unwrap() } else { first };
        assert_eq!(second, traced(2));
        // In one turn of the executor nothing is sent: what does not fit is lost.
        let mut drained = t.far.drained_streams();
        for _ in 0..1000 {
            t.near.trace(&traced(4));
        }
        t.near.drain_streams(vec!["c1".into()]);
        let drained = tokio::time::timeout(LONG, drained.recv()).await.expect("it went first");
        assert_eq!(drained.unwrap().to_vec(), ["c1"]);
    }
}
