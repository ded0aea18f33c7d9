//! A federation that says what a test wants, over real TLS.

use std::{net::SocketAddr, pin::Pin};

use mesh_api::v1::{
    self,
    discovery_request::Request as Asked,
    discovery_response::Response as Answer,
    discovery_server::{Discovery, DiscoveryServer},
    resource::Resource as Kind,
};
use mesh_core::Allowed;
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::*;

/// One stream that a proxy has opened.
pub(crate) struct Conversation {
    asked: Streaming<v1::DiscoveryRequest>,
    answers: mpsc::Sender<Result<v1::DiscoveryResponse, Status>>,
}

struct Server(mpsc::Sender<Conversation>);

#[tonic::async_trait]
impl Discovery for Server {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<v1::DiscoveryResponse, Status>> + Send>>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let (answers, rx) = mpsc::channel(16);
        let conversation = Conversation { asked: request.into_inner(), answers };
        self.0.send(conversation).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

impl Conversation {
    pub(crate) async fn say(&self, answer: Answer) {
        let message = v1::DiscoveryResponse { response: Some(answer) };
        timeout(STEP, self.answers.send(Ok(message))).await.unwrap().unwrap();
    }

    /// The next message that `wanted` takes; reports are passed over.
    pub(crate) async fn next<T>(&mut self, mut wanted: impl FnMut(Asked) -> Option<T>) -> T {
        let look = async {
            loop {
                let message = self.asked.message().await.unwrap().expect("the stream goes on");
                if let Some(found) = message.request.and_then(&mut wanted) {
                    return found;
                }
            }
        };
        timeout(STEP, look).await.expect("it comes in time")
    }

    pub(crate) async fn subscribed(&mut self) -> v1::Subscribe {
        let subscribe = self.next(|asked| match asked {
            Asked::Subscribe(subscribe) => Some(subscribe),
            _ => None,
        });
        let subscribe = subscribe.await;
        self.say(Answer::Subscribed(v1::Subscribed { version: 1 })).await;
        subscribe
    }

    async fn acked(&mut self) -> v1::Revision {
        self.next(|asked| match asked {
            Asked::Ack(ack) => ack.revision,
            Asked::Nack(nack) => panic!("{nack:?}"),
            _ => None,
        })
        .await
    }

    async fn nacked(&mut self) -> v1::Nack {
        self.next(|asked| match asked {
            Asked::Nack(nack) => Some(nack),
            Asked::Ack(ack) => panic!("{ack:?}"),
            _ => None,
        })
        .await
    }
}

/// A federation of `east`, and the streams that come to it.
pub(crate) struct Federation {
    pub(crate) addr: SocketAddr,
    streams: mpsc::Receiver<Conversation>,
    pub(crate) task: tokio::task::JoinHandle<()>,
}

impl Federation {
    pub(crate) async fn start(ca: &Ca, at: Option<SocketAddr>) -> Self {
        let at = at.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap());
        let listener = TcpListener::bind(at).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let svid = ca.sign(&SpiffeId::federation(&ca.trust_domain), None);
        let credentials = Credentials::new(Some(svid), trust(ca));
        let allowed = Allowed::Controlled(ca.trust_domain.clone());
        let tls = credentials.server(&[mesh_api::ALPN_CONTROL], allowed);
        let (conns, accepted) = mpsc::channel(4);
        let accepting = async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let Ok(mut tls) = mesh_tunnel::tls::accept(tls.clone(), tcp).await else {
                    continue;
                };
                // tonic's server takes pipes, not every TLS stream.
                let (near, mut far) = tokio::io::duplex(64 << 10);
                tokio::spawn(
                    async move { tokio::io::copy_bidirectional(&mut tls, &mut far).await },
                );
                if conns.send(Ok::<_, std::io::Error>(near)).await.is_err() {
                    return;
                }
            }
        };
        let (tx, streams) = mpsc::channel(4);
        let service = DiscoveryServer::new(Server(tx));
        let server = tonic::transport::Server::builder()
            .serve_with_incoming(service, ReceiverStream::new(accepted));
        let task = tokio::spawn(async move {
            tokio::select! {
                () = accepting => {}
                served = server => served.unwrap(),
            }
        });
        Self { addr, streams, task }
    }

    pub(crate) async fn next(&mut self) -> Conversation {
        timeout(STEP, self.streams.recv()).await.expect("a stream in time").unwrap()
    }
}

fn trust(ca: &Ca) -> Trust {
    let bundles = [(ca.trust_domain.clone(), Arc::new(ca.bundle()))];
    Trust { bundles: Arc::new(bundles.into_iter().collect()), ..Trust::default() }
}

pub(crate) fn gateway(ca: &Ca, federation: SocketAddr, state: Option<&std::path::Path>) -> App {
    let config = Config {
        snapshot: SnapshotSource::Federation,
        state: state.map(Into::into),
        gateway: Some(edge_proxy::config::GatewayDoors {
            quic: None,
            tls: "127.0.0.1:0".parse().unwrap(),
        }),
        ..Config::given(Role::Gateway)
    };
    let own = Own {
        site: Some("east".parse().unwrap()),
        trust_domain: Some(ca.trust_domain.clone()),
        gateway: Some("gw-1".parse().unwrap()),
        federation: Some(federation),
        ..Own::default()
    };
    App::new(shared(config, Credentials::new(Some(ca.gateway()), trust(ca)), own))
}

fn site() -> Kind {
    Kind::Site(v1::Site {
        name: "east".into(),
        trust_domain: "east.example".into(),
        federation_address: String::new(),
    })
}

fn service(name: &str) -> Kind {
    Kind::Service(v1::Service {
        name: name.into(),
        ports: vec![v1::Port { name: "http".into(), number: 80, protocol: 1 }],
        ..v1::Service::default()
    })
}

fn revision(n: u64) -> Option<v1::Revision> {
    Some(v1::Revision { epoch: 7, n })
}

fn delta(from: Option<u64>, to: u64, kinds: Vec<Kind>) -> Answer {
    let upsert = kinds.into_iter().map(|kind| v1::Resource { resource: Some(kind) }).collect();
    Answer::Delta(v1::Delta {
        from: from.and_then(revision),
        to: revision(to),
        upsert,
        remove: Vec::new(),
    })
}

fn services(app: &App) -> Vec<String> {
    let snapshot = app.shared.snapshot.load();
    snapshot.iter().flat_map(|now| now.services.keys()).map(ToString::to_string).collect()
}

#[tokio::test]
async fn deltas_are_applied_and_acknowledged_and_bad_ones_change_nothing() {
    let ca = Ca::new("east.example");
    let mut federation = Federation::start(&ca, None).await;
    let app = gateway(&ca, federation.addr, None);
    app.run_in_place().await.unwrap();
    let mut stream = federation.next().await;
    let subscribe = stream.subscribed().await;
    assert_eq!((subscribe.have, subscribe.everything), (None, true));
    assert_eq!(subscribe.gateway, "gw-1");
    let bundle = Kind::Bundle((&ca.bundle()).into());
    stream.say(delta(None, 1, vec![site(), bundle, service("orders.shop")])).await;
    assert_eq!(Some(stream.acked().await), revision(1));
    assert_eq!(services(&app), ["orders.shop"]);
    assert!(app.shared.readiness.check().is_ok());
    stream.say(delta(Some(1), 2, vec![service("billing.shop")])).await;
    assert_eq!(Some(stream.acked().await), revision(2));

    // Not well formed: refused with a reason, and the old one stays.
    stream.say(delta(Some(2), 3, vec![service("Not A Name")])).await;
    let nack = stream.nacked().await;
    assert_eq!(nack.revision, revision(3));
    assert!(nack.reason.contains("Not A Name"), "{}", nack.reason);
    assert_eq!(services(&app), ["billing.shop", "orders.shop"]);

    // Of another base: refused, and everything is asked for anew.
    stream.say(delta(Some(3), 4, vec![service("carts.shop")])).await;
    assert_eq!(stream.nacked().await.revision, revision(4));
    let mut stream = federation.next().await;
    assert_eq!(stream.subscribed().await.have, None);
    let bundle = Kind::Bundle((&ca.bundle()).into());
    stream.say(delta(None, 4, vec![site(), bundle, service("carts.shop")])).await;
    assert_eq!(Some(stream.acked().await), revision(4));
    assert_eq!(services(&app), ["carts.shop"]);
    app.shared.drain.finish(STEP).await;
    federation.task.abort();
}

#[tokio::test]
async fn something_is_sent_all_the_time_and_says_what_was_counted() {
    let ca = Ca::new("east.example");
    let mut federation = Federation::start(&ca, None).await;
    let app = gateway(&ca, federation.addr, None);
    app.run_in_place().await.unwrap();
    let mut stream = federation.next().await;
    stream.subscribed().await;
    let orders = "orders.shop".parse().unwrap();
    let figures = app.shared.stats.of(&orders, edge_proxy::stats::Flow::Outbound);
    figures.ended(true, Duration::from_millis(3));
    let stat = stream.next(|asked| match asked {
        Asked::Report(report) => report.stats.into_iter().next(),
        _ => None,
    });
    let stat = stat.await;
    assert_eq!((stat.service.as_str(), stat.success), ("orders.shop", 1));
    let sessions = stream.next(|asked| match asked {
        Asked::NodeSessions(sessions) => Some(sessions),
        _ => None,
    });
    assert!(sessions.await.nodes.is_empty());
    for _ in 0..2 {
        stream.next(|asked| matches!(asked, Asked::Report(_)).then_some(())).await;
        stream.say(Answer::HeartbeatUnixMs(1)).await;
    }
    app.shared.drain.finish(STEP).await;
    federation.task.abort();
}

#[tokio::test]
async fn without_federation_a_proxy_goes_on_and_boots_from_its_disk() {
    let ca = Ca::new("east.example");
    let dir = tempfile::tempdir().unwrap();
    let mut federation = Federation::start(&ca, None).await;
    let app = gateway(&ca, federation.addr, Some(dir.path()));
    app.run_in_place().await.unwrap();
    let mut stream = federation.next().await;
    stream.subscribed().await;
    let bundle = Kind::Bundle((&ca.bundle()).into());
    stream.say(delta(None, 5, vec![site(), bundle, service("orders.shop")])).await;
    stream.acked().await;
    let addr = federation.addr;
    drop(stream);
    federation.task.abort();
    drop(federation);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(services(&app), ["orders.shop"]);
    app.shared.drain.finish(STEP).await;
    let file = dir.path().join("snapshot.bin");
    let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    // A boot without federation: the same services, at once.
    let app = gateway(&ca, addr, Some(dir.path()));
    app.run_in_place().await.unwrap();
    assert_eq!(services(&app), ["orders.shop"]);
    // It comes back: only what has changed is asked for.
    let mut federation = Federation::start(&ca, Some(addr)).await;
    let mut stream = federation.next().await;
    assert_eq!(stream.subscribed().await.have, revision(5));
    stream.say(delta(Some(5), 6, vec![service("billing.shop")])).await;
    stream.acked().await;
    assert_eq!(services(&app), ["billing.shop", "orders.shop"]);
    app.shared.drain.finish(STEP).await;

    // A damaged file is no reason not to start.
    std::fs::write(&file, b"ISTHSNP1....damaged").unwrap();
    let app = gateway(&ca, addr, Some(dir.path()));
    app.run_in_place().await.unwrap();
    assert!(app.shared.snapshot.load().is_none());
    assert_eq!(federation.next().await.subscribed().await.have, None);
    app.shared.drain.finish(STEP).await;
    federation.task.abort();
}

#[tokio::test]
async fn a_federation_that_falls_silent_is_dialled_again() {
    let ca = Ca::new("east.example");
    let mut federation = Federation::start(&ca, None).await;
    let app = gateway(&ca, federation.addr, None);
    app.run_in_place().await.unwrap();
    let mut stream = federation.next().await;
    stream.subscribed().await;
    // Nothing more is said, and nothing is closed.
    let mut again = federation.next().await;
    again.subscribed().await;
    app.shared.drain.finish(STEP).await;
    federation.task.abort();
}

#[tokio::test]
async fn only_federation_is_believed_to_be_federation() {
    let ca = Ca::new("east.example");
    // A workload of the same trust domain listens where federation should.
    let mut impostor = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let credentials = Credentials::new(Some(ca.workload("shop", "web", None)), trust(&ca));
        let tls = credentials.server(&[mesh_api::ALPN_CONTROL], Allowed::Known);
        let (tx, rx) = mpsc::channel(4);
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let outcome = mesh_tunnel::tls::accept(tls.clone(), tcp).await.map(|_| ());
                if tx.send(outcome).await.is_err() {
                    return;
                }
            }
        });
        (addr, ReceiverStream::new(rx), task)
    };
    let app = gateway(&ca, impostor.0, None);
    app.run_in_place().await.unwrap();
    let outcome = timeout(STEP, impostor.1.next()).await.unwrap().unwrap();
    assert!(outcome.is_err(), "the proxy has accepted a workload as its federation");
    assert!(app.shared.snapshot.load().is_none());
    app.shared.drain.finish(STEP).await;
    impostor.2.abort();
}

/// A gateway that knows nothing but federation, and where it listens.
async fn way_to(ca: &Ca, federation: SocketAddr) -> (App, mesh_core::Gateway) {
    let config = Config {
        gateway: Some(edge_proxy::config::GatewayDoors {
            quic: Some("127.0.0.1:0".parse().unwrap()),
            tls: "127.0.0.1:0".parse().unwrap(),
        }),
        ..Config::given(Role::Gateway)
    };
    let own = Own {
        site: Some("east".parse().unwrap()),
        trust_domain: Some(ca.trust_domain.clone()),
        gateway: Some("gw-1".parse().unwrap()),
        ..Own::default()
    };
    let app = App::new(shared(config, Credentials::new(Some(ca.gateway()), trust(ca)), own));
    let whole = v1::Delta {
        from: None,
        to: revision(1),
        upsert: [
            Kind::Site(v1::Site {
                name: "east".into(),
                trust_domain: "east.example".into(),
                federation_address: federation.to_string(),
            }),
            Kind::Bundle((&ca.bundle()).into()),
        ]
        .map(|kind| v1::Resource { resource: Some(kind) })
        .into(),
        remove: Vec::new(),
    };
    let snapshot = mesh_core::apply(None, &whole).unwrap();
    app.shared.snapshot.store(Arc::new(snapshot), edge_proxy::snapshot_cell::Complete::All);
    app.run_in_place().await.unwrap();
    let mut doors = app.gateway.doors();
    let (quic, tls) =
        timeout(STEP, doors.wait_for(Option::is_some)).await.unwrap().unwrap().unwrap();
    let known = mesh_core::Gateway {
        id: "gw-1".parse().unwrap(),
        site: "east".parse().unwrap(),
        quic_addresses: vec![quic.unwrap().to_string().into()],
        tls_addresses: vec![tls.to_string().into()],
    };
    (app, known)
}

#[tokio::test]
async fn a_proxy_asks_through_its_gateway_for_what_it_wants() {
    let ca = Ca::new("east.example");
    let mut federation = Federation::start(&ca, None).await;
    let (gateway, known) = way_to(&ca, federation.addr).await;
    let config = Config { snapshot: SnapshotSource::Federation, ..Config::given(Role::Node) };
    let own = Own {
        site: Some("east".parse().unwrap()),
        trust_domain: Some(ca.trust_domain.clone()),
        gateways: vec![known],
        ..Own::default()
    };
    let svid = ca.workload("shop", "web", None);
    let app = App::new(shared(config, Credentials::new(Some(svid), trust(&ca)), own));
    app.run_in_place().await.unwrap();
    let mut stream = federation.next().await;
    let subscribe = stream.subscribed().await;
    assert_eq!((subscribe.everything, subscribe.gateway.as_str()), (false, ""));
    let bundle = Kind::Bundle((&ca.bundle()).into());
    stream.say(delta(None, 1, vec![site(), bundle, service("orders.shop")])).await;
    stream.acked().await;

    let orders: mesh_core::ServiceName = "orders.shop".parse().unwrap();
    let cell = app.shared.snapshot.clone();
    let wanting = tokio::spawn({
        let orders = orders.clone();
        async move { cell.want(&orders).await }
    });
    let wanted = stream.next(|asked| match asked {
        Asked::Want(want) => Some(want.services),
        _ => None,
    });
    assert_eq!(wanted.await, ["orders.shop"]);
    let endpoint = v1::Endpoint {
        id: "o-1".into(),
        service: "orders.shop".into(),
        port: "http".into(),
        site: "east".into(),
        spiffe_id: "spiffe://east.example/ns/shop/sa/web".into(),
        address: "127.0.0.1:4143".into(),
        target_port: 80,
        weight: 1,
        ..v1::Endpoint::default()
    };
    stream.say(delta(Some(1), 2, vec![Kind::Endpoint(endpoint)])).await;
    stream.say(Answer::Complete(v1::Complete { services: vec!["orders.shop".into()] })).await;
    let snapshot = timeout(STEP, wanting).await.unwrap().unwrap().unwrap();
    assert_eq!(snapshot.services[&orders].endpoints.len(), 1);

    // On the next stream it is asked for again, without anybody's request.
    drop(stream);
    let mut stream = federation.next().await;
    assert_eq!(stream.subscribed().await.have, revision(2));
    let wanted = stream.next(|asked| match asked {
        Asked::Want(want) => Some(want.services),
        _ => None,
    });
    assert_eq!(wanted.await, ["orders.shop"]);
    app.shared.drain.finish(Duration::ZERO).await;
    gateway.shared.drain.finish(Duration::ZERO).await;
    federation.task.abort();
}
