//! Who watches a site, as proxies hear of it from federation.

use edge_proxy::{access_log::Entry, metrics::Direction};
use mesh_api::v1::{
    self, discovery_request::Request as Asked, discovery_response::Response as Answer,
};

use super::{
    discovery::{Federation, gateway},
    *,
};

/// A request for `orders.shop` that was answered so.
fn entry(status: u16) -> Entry {
    Entry {
        time: Duration::from_secs(1),
        direction: Direction::Inbound,
        protocol: "http1",
        service: "orders.shop".parse().ok(),
        port: None,
        client: None,
        asked: None,
        status,
        received: 0,
        sent: 0,
        duration: Duration::ZERO,
        path_kind: "",
        endpoint: None,
        peer: None,
        route: None,
        decided: None,
        grpc_status: None,
        failure: None,
        reason: None,
        connection: None,
        attempts: 1,
    }
}

#[tokio::test]
async fn who_watches_a_site_is_shown_requests_of_its_proxies() {
    let ca = Ca::new("east.example");
    let mut federation = Federation::start(&ca, None).await;
    let app = gateway(&ca, federation.addr, None);
    app.run_in_place().await.unwrap();
    let mut stream = federation.next().await;
    stream.subscribed().await;
    let wanted = |id: u64, status: &str| {
        let request = v1::TapRequest { status: status.into(), ..v1::TapRequest::default() };
        v1::TapWanted { id, request: Some(request) }
    };
    let taps = |taps: &[v1::TapWanted]| Answer::Taps(v1::Taps { taps: taps.to_vec() });
    let tap = &app.shared.tap;
    assert!(!tap.is_watched());
    // Of more than may watch, and of what makes no sense, the rest is left out.
    let many: Vec<_> = (10..40).map(|id| wanted(id, "404")).collect();
    stream.say(taps(&[&[wanted(1, "5xx"), wanted(2, "what")], &many[..]].concat())).await;
    until("somebody watches", || tap.is_watched()).await;
    let shown = |asked| match asked {
        Asked::TapShown(shown) => Some(shown),
        _ => None,
    };
    tap.show(&app.shared, &entry(200), None);
    tap.show(&app.shared, &entry(503), None);
    let first = stream.next(shown).await;
    let Some(v1::tap_event::Event::Seen(seen)) = first.event.unwrap().event else { panic!() };
    assert_eq!((first.id, seen.status, seen.service.as_str()), (1, 503, "orders.shop"));
    tap.show(&app.shared, &entry(404), None);
    for id in 10..17 {
        assert_eq!(stream.next(shown).await.id, id, "eight in all");
    }
    // Who is not named any more watches no longer; others see nothing of it.
    stream.say(taps(&[wanted(1, "5xx")])).await;
    stream.say(taps(&[])).await;
    until("nobody watches", || !tap.is_watched()).await;
    stream.say(taps(&[wanted(3, "")])).await;
    until("somebody watches", || tap.is_watched()).await;
    drop(stream);
    federation.task.abort();
    until("who watches goes with the stream", || !tap.is_watched()).await;
    app.shared.drain.finish(STEP).await;
}
