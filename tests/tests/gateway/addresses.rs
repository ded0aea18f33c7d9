//! What no gateway dials, whatever it is asked and whatever its site says.

use edge_proxy::config::{Manner, ServiceListener, SniListener};
use mesh_api::{ALPN_TUNNEL, v1::connect_reply::Reply};
use prost::Message;

use super::*;

/// The gateway of `east` as it is announced, and where `o-1` and federation
/// are.
struct Places {
    federation: Option<SocketAddr>,
    door: SocketAddr,
    endpoint: SocketAddr,
}

fn publish(pair: &Pair, places: &Places) {
    let east = &pair.east;
    pair.east_gateway.publish(whole(vec![
        site(east, places.federation),
        bundle(&pair.west),
        bundle(east),
        link(&pair.west, false, LinkTransport::Raced),
        gateway(east, "gw-e", None, places.door),
        service("orders.shop", &["west"], &[]),
        endpoint(east, "orders.shop", "o-1", Some(places.endpoint), None),
    ]));
}

/// The same place as the kernel sees it.
fn in_other_words(addr: SocketAddr) -> SocketAddr {
    format!("[::ffff:{}]:{}", addr.ip(), addr.port()).parse().unwrap()
}

#[tokio::test]
async fn an_endpoint_at_an_address_of_the_mesh_or_of_the_host_is_never_dialled() {
    // It would answer, and would count what it answers.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = listener.local_addr().unwrap();
    let admin = free();
    let [http, transparent, inbound, sni, plaintext, of_port] = std::array::from_fn(|_| free());
    let of_service = |listen| ServiceListener {
        listen,
        service: "orders.shop".parse().unwrap(),
        port: "http".parse().unwrap(),
        tls: None,
        manner: Manner::default(),
    };
    let change = |config: &mut Config| {
        config.admin = Some(admin);
        config.http_listener = Some(http);
        config.transparent = Some(transparent);
        config.inbound = Some(inbound);
        config.sni_listeners = vec![SniListener { listen: sni, port: None }];
        config.inbound_plaintext = vec![of_service(plaintext)];
        config.listeners = vec![of_service(of_port)];
    };
    let pair = Pair::changed(LinkTransport::Raced, there, change).await;
    let beside_admin = TcpListener::bind(admin).await.unwrap();
    let (door, quic) = (pair.east_gateway.tls, pair.east_gateway.quic.unwrap());
    let elsewhere = "192.0.2.1:8443".parse().unwrap();
    let anywhere = format!("[::ffff:0.0.0.0]:{}", there.port()).parse().unwrap();
    let at = |endpoint| Places { federation: None, door, endpoint };
    let cases = [
        ("the TLS door", at(door)),
        ("the QUIC door", at(quic)),
        ("the door in other words", at(in_other_words(door))),
        ("the admin port", at(admin)),
        ("the HTTP proxy listener", at(http)),
        ("captured traffic", at(transparent)),
        ("the mesh's door", at(inbound)),
        ("a listener by name", at(sni)),
        ("a plaintext door", at(plaintext)),
        ("a listener of a service", at(of_port)),
        ("federation", Places { federation: Some(there), ..at(there) }),
        (
            "federation in other words",
            Places { federation: Some(there), ..at(in_other_words(there)) },
        ),
        ("no address", at(anywhere)),
        ("another gateway", Places { door: there, ..at(there) }),
        ("loopback, which is not the site's network", Places { door: elsewhere, ..at(there) }),
    ];
    let count = cases.len();
    for transport in BOTH {
        let caller = pair.caller(transport).await;
        for (what, places) in &cases {
            publish(&pair, places);
            let got = refusal(&caller, &orders()).await;
            assert_eq!(got, (RefusedReason::ForbiddenTarget, "east/gw-e".into()), "{what}");
        }
        // Where loopback is the site's network, the endpoint is dialled.
        publish(&pair, &at(there));
        let opened = caller.open(&orders(), &[]).await.unwrap();
        let (_dialled, _) = timeout(STEP, listener.accept()).await.unwrap().unwrap();
        drop(opened);
    }
    let dialled = std::iter::from_fn(|| {
        use futures_util::FutureExt;
        [&listener, &beside_admin].into_iter().find_map(|l| l.accept().now_or_never())
    });
    assert_eq!(dialled.count(), 0, "nothing else has been dialled");
    counted(&pair.east_gateway, "link", "west", 2 * count).await;
    pair.stop().await;
}

/// Waits for the metric.
async fn counted(gateway: &Running, neighbour: &str, site: &str, times: usize) {
    let line = format!(
        "isthmus_proxy_gateway_streams_refused_total{{neighbour=\"{neighbour}\",site=\"{site}\",\
         reason=\"forbidden_target\"}} {times}"
    );
    let counted = async {
        loop {
            let mut text = String::new();
            let registry = &gateway.app.shared.metrics.registry;
            prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
            if text.contains(&line) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(STEP, counted).await.expect(&line);
}

fn framed(message: &impl Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat()
}

async fn read<M: Message + Default>(from: &mut quinn::RecvStream) -> M {
    let mut length = [0; 2];
    from.read_exact(&mut length).await.unwrap();
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    from.read_exact(&mut bytes).await.unwrap();
    M::decode(&bytes[..]).unwrap()
}

/// A tunnel of a client that writes what it likes, with its stream 0.
async fn raw_tunnel(pair: &Pair) -> (quinn::Connection, quinn::SendStream, quinn::RecvStream) {
    let svid = pair.west.ca.workload("shop", "checkout", None);
    let credentials = mesh::credentials(svid, &[&pair.west]);
    let allowed = mesh_core::Allowed::Exactly(SpiffeId::gateway(&pair.west.ca.trust_domain));
    let tls = credentials.client(ALPN_TUNNEL, allowed);
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let endpoint = quinn::Endpoint::client(any).unwrap();
    let config = quinn::ClientConfig::new(std::sync::Arc::new(tls));
    let to = pair.west_gateway.quic.unwrap();
    let connection = endpoint.connect_with(config, to, "isthmus").unwrap().await.unwrap();
    let (mut say, mut hear) = connection.open_bi().await.unwrap();
    let hello = v1::Hello {
        versions: mesh_api::VERSIONS.to_vec(),
        role: v1::Role::Workload.into(),
        site: "west".into(),
        boot_id: "raw".into(),
        ..v1::Hello::default()
    };
    let hello = v1::Control { message: Some(v1::control::Message::Hello(hello)) };
    say.write_all(&framed(&hello)).await.unwrap();
    let _theirs: v1::Control = read(&mut hear).await;
    (connection, say, hear)
}

#[tokio::test]
async fn a_connect_for_an_address_is_refused_before_anything_is_looked_up() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    let pair = Pair::new(LinkTransport::Quic, address).await;
    let (connection, _say, _hear) = raw_tunnel(&pair).await;
    let named = v1::Connect::from(&orders());
    let addresses = [
        v1::Connect { service: address.to_string(), ..named.clone() },
        v1::Connect { service: "127.0.0.1:8446".into(), ..named.clone() },
        v1::Connect { service: "[::1]:8448".into(), ..named.clone() },
        v1::Connect { service: "169.254.169.254".into(), ..named.clone() },
        v1::Connect { endpoint: address.to_string(), ..named.clone() },
        v1::Connect { site: "10.0.0.1".into(), ..named.clone() },
    ];
    for connect in &addresses {
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        send.write_all(&framed(connect)).await.unwrap();
        let reply: v1::ConnectReply = timeout(STEP, read(&mut receive)).await.unwrap();
        let Some(Reply::Refused(refused)) = reply.reply else { panic!("{connect:?}: accepted") };
        assert_eq!(refused.reason(), v1::RefusedReason::ForbiddenTarget, "{connect:?}");
    }
    counted(&pair.west_gateway, "client", "", addresses.len()).await;
    // And the tunnel still carries what has a name.
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&framed(&named)).await.unwrap();
    let reply: v1::ConnectReply = timeout(STEP, read(&mut receive)).await.unwrap();
    assert!(matches!(reply.reply, Some(Reply::Accepted(_))), "{reply:?}");
    pair.stop().await;
}
