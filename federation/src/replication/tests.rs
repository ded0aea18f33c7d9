use std::{io, pin::Pin, sync::Mutex};

use mesh_api::v1::{
    Endpoint, LinkMade, Resource, Revision, Service, Subscribed, peering_server,
    resource::Resource as R,
};
use mesh_core::TrustDomain;
use mesh_tunnel::net::BoxFuture;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, transport::Channel};

use super::*;
use crate::{
    leases::Terms,
    testing::{TestSite, connect, eventually, logged},
};

const HOUR_MS: u64 = 3_600_000;

/// East, as it would be if it were not ours: says what it is told to say.
#[derive(Clone)]
struct Fake {
    deltas: Vec<Delta>,
    /// What its clock shows.
    time_unix_ms: u64,
    heard: Arc<Mutex<Vec<Ask>>>,
}

#[tonic::async_trait]
impl peering_server::Peering for Fake {
    type ReplicateStream = Pin<Box<dyn Stream<Item = Result<ReplicateResponse, Status>> + Send>>;

    async fn replicate(
        &self,
        request: Request<Streaming<ReplicateRequest>>,
    ) -> Result<Response<Self::ReplicateStream>, Status> {
        let heard = self.heard.clone();
        let mut inbound = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(ReplicateRequest { request: Some(ask) })) = inbound.message().await {
                heard.lock().unwrap().push(ask);
            }
        });
        let subscribed = Answer::Subscribed(Subscribed { version: 1 });
        let answers = std::iter::once(subscribed)
            .chain(self.deltas.clone().into_iter().map(Answer::Delta))
            .chain([Answer::HeartbeatUnixMs(self.time_unix_ms)])
            .map(|answer| Ok(ReplicateResponse { response: Some(answer) }));
        let answers = tokio_stream::iter(answers.collect::<Vec<_>>());
        Ok(Response::new(Box::pin(answers.chain(tokio_stream::pending()))))
    }
}

impl Paths for Fake {
    fn linked<'a>(
        &'a self,
        _: &'a SiteName,
        _: &'a TrustDomain,
    ) -> BoxFuture<'a, io::Result<Channel>> {
        let server = peering_server::PeeringServer::new(self.clone());
        Box::pin(async { Ok(connect(server).await) })
    }

    fn join_door<'a>(
        &'a self,
        _: &'a mesh_core::token::Token,
    ) -> BoxFuture<'a, io::Result<Channel>> {
        Box::pin(async { Err(io::Error::other("not in this test")) })
    }
}

/// West, linked with a fake east.
async fn linked_with(deltas: Vec<Delta>) -> (TestSite, Fake) {
    let time_unix_ms = mesh_runtime::clock::unix_millis() + HOUR_MS;
    let fake = Fake { deltas, time_unix_ms, heard: Arc::default() };
    let paths: Arc<dyn Paths> = Arc::new(fake.clone());
    let west = TestSite::over("west", &Arc::default(), Terms::default(), Some(paths));
    let east = TestSite::new("east", &Arc::default(), Terms::default());
    let link = mesh_api::v1::Link {
        site: "east".into(),
        trust_domain: "east.example".into(),
        ..Default::default()
    };
    let bundle = Some(east.state().site().bundle.clone());
    let made = LinkMade { link: Some(link), bundle, gateways: vec![] };
    west.commit(vec![Event::LinkMade(made)]).await;
    (west, fake)
}

fn delta(from: Option<u64>, to: u64, endpoint_of: &str) -> Delta {
    let revision = |n| Revision { epoch: 5, n };
    let service = Service {
        name: "orders.shop".into(),
        ports: vec![mesh_api::v1::Port { name: "http".into(), number: 80, protocol: 1 }],
        ..Service::default()
    };
    let endpoint = Endpoint {
        id: format!("e{to}"),
        service: "orders.shop".into(),
        port: "http".into(),
        site: "east".into(),
        spiffe_id: format!("spiffe://{endpoint_of}/ns/shop/sa/orders"),
        ..Endpoint::default()
    };
    let upsert = [R::Service(service), R::Endpoint(endpoint)];
    let upsert = upsert.into_iter().map(|resource| Resource { resource: Some(resource) });
    Delta {
        from: from.map(revision),
        to: Some(revision(to)),
        upsert: upsert.collect(),
        remove: vec![],
    }
}

fn imported(west: &TestSite) -> usize {
    west.view.read_live(|live| live.links.values().map(|link| link.imported.endpoints.len()).sum())
}

fn nacks(fake: &Fake) -> Vec<String> {
    let heard = fake.heard.lock().unwrap();
    let reason = |ask: &Ask| match ask {
        Ask::Nack(nack) => Some(nack.reason.clone()),
        _ => None,
    };
    heard.iter().filter_map(reason).collect()
}

#[tokio::test]
async fn a_refused_delta_changes_nothing_and_is_told_to_everybody() {
    logged();
    for stranger in ["west.example", "north.example"] {
        let deltas = vec![delta(None, 1, "east.example"), delta(Some(1), 2, stranger)];
        let (west, fake) = linked_with(deltas).await;
        let listed = || west.links.list().links.pop().unwrap();
        eventually("listed", || {
            listed().refused.iter().any(|r| r.contains("import_foreign_identity")).then_some(())
        })
        .await;
        assert_eq!(imported(&west), 1, "what was accepted before stays");
        let nack = eventually("told", || nacks(&fake).pop()).await;
        assert!(nack.starts_with("import_foreign_identity"), "{nack}");
        let parts = ["refused what a linked site sent", "reason=import_foreign_identity", stranger];
        let said = logged();
        assert!(said.iter().any(|line| parts.iter().all(|part| line.contains(part))), "{said:?}");
        west.drain.start();
    }
}

#[tokio::test]
async fn the_clock_of_a_linked_site_is_compared() {
    let (west, _fake) = linked_with(vec![delta(None, 1, "east.example")]).await;
    let listed = || west.links.list().links.pop()?.clock_ahead_ms;
    let ahead = eventually("heard", listed).await.unsigned_abs();
    assert!((HOUR_MS - 10_000..=HOUR_MS).contains(&ahead), "{ahead}");
    west.drain.start();
}

#[tokio::test]
async fn a_delta_that_does_not_follow_makes_us_begin_anew() {
    let (west, fake) = linked_with(vec![delta(Some(7), 8, "east.example")]).await;
    eventually("a new start", || {
        let heard = fake.heard.lock().unwrap();
        let anew = |ask: &&Ask| matches!(ask, Ask::Subscribe(s) if s.have.is_none());
        (heard.iter().filter(anew).count() >= 2).then_some(())
    })
    .await;
    assert!(nacks(&fake)[0].starts_with("import_revision"));
    assert_eq!(imported(&west), 0);
}

#[tokio::test]
async fn a_new_bundle_of_the_lineage_is_durable_and_another_refused() {
    let east = TestSite::new("east", &Arc::default(), Terms::default());
    let other = east.state().site().bundle.roots[0].clone();
    let with_bundle = |from, to, roots: Vec<Vec<u8>>, sequence| {
        let bundle =
            Bundle { trust_domain: "east.example".into(), sequence, roots, ..Bundle::default() };
        let mut delta = delta(from, to, "east.example");
        delta.upsert.push(Resource { resource: Some(R::Bundle(bundle)) });
        delta
    };
    let (west, fake) = linked_with(vec![with_bundle(None, 1, vec![other.clone()], 9)]).await;
    let nack = eventually("refused", || nacks(&fake).pop()).await;
    assert!(nack.starts_with("import_bundle"), "{nack}");
    let known = west.state().links.values().next().unwrap().bundle.clone();
    assert_eq!(known.sequence, 1);
    west.drain.start();

    let roots = vec![known.roots[0].clone(), other];
    let fake = Fake { deltas: vec![with_bundle(None, 1, roots, 2)], ..fake };
    let next = west.restart_over(Some(Arc::new(fake)));
    let sequence = || next.state().links.values().next().unwrap().bundle.sequence;
    eventually("kept", || (sequence() == 2).then_some(())).await;
}

#[tokio::test]
async fn ending_a_link_that_has_ended_is_no_error() {
    let (west, _fake) = linked_with(vec![delta(None, 1, "east.example")]).await;
    eventually("imported", || (imported(&west) == 1).then_some(())).await;
    let task = Replication {
        view: west.view.clone(),
        discovery: west.discovery.clone(),
        paths: Arc::new(Fake { deltas: vec![], time_unix_ms: 0, heard: Arc::default() }),
        site: "east".parse().unwrap(),
        made_at_ms: west.state().links.values().next().unwrap().made_at_ms,
    };
    assert!(task.end_link().await);
    assert!(west.state().links.is_empty());
    assert!(task.end_link().await);
}

/// A peer that is not there.
struct Away;

impl Paths for Away {
    fn linked<'a>(
        &'a self,
        _: &'a SiteName,
        _: &'a TrustDomain,
    ) -> BoxFuture<'a, io::Result<Channel>> {
        Box::pin(async { Err(io::Error::other("away")) })
    }

    fn join_door<'a>(
        &'a self,
        _: &'a mesh_core::token::Token,
    ) -> BoxFuture<'a, io::Result<Channel>> {
        Box::pin(async { Err(io::Error::other("away")) })
    }
}

#[tokio::test]
async fn what_a_peer_exported_outlives_a_restart_without_it_and_not_the_link() {
    let (west, fake) = linked_with(vec![delta(None, 1, "east.example")]).await;
    eventually("imported", || (imported(&west) == 1).then_some(())).await;
    assert_eq!(west.drain.finish(Duration::from_secs(10)).await, 0);
    let west = west.restart_over(Some(Arc::new(Away)));
    eventually("there again", || (imported(&west) == 1).then_some(())).await;
    assert!(!west.view.is_settled(), "it may be old: known proxies wait for the peer a while");

    // The peer tells everything anew, whatever was kept.
    west.drain.finish(Duration::from_secs(10)).await;
    fake.heard.lock().unwrap().clear();
    let west = west.restart_over(Some(Arc::new(fake.clone())));
    let subscribed = |ask: &Ask| match ask {
        Ask::Subscribe(subscribe) => Some(subscribe.have),
        _ => None,
    };
    let have = || fake.heard.lock().unwrap().iter().find_map(subscribed);
    assert_eq!(eventually("asked", have).await, None);

    let ended = LinkEnded { site: "east".into() };
    west.commit(vec![Event::LinkEnded(ended)]).await;
    eventually("forgotten", || (imported(&west) == 0).then_some(())).await;
}
