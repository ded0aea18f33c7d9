//! TLS that passes through two proxies, which read whom its client asks for
//! and nothing else. Rules are the documents that people write.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use edge_proxy::config::SniListener;
use mesh_api::v1;
use mesh_manifest::{compile, manifest::read as read_manifests};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use support::{
    DOMAIN, Proxy, any, endpoint, inbound_config, listener, outbound_config, pki::Authority,
    service, snapshot,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

const NAMES: [&str; 5] =
    ["a.example.com", "x.example.com", "y.x.example.com", "web.shop", "web.shop.svc.cluster.local"];

/// Two proxies; behind the second `web.shop` and three services of TLS whose
/// applications say which they are, to whoever has asked them something.
struct World {
    source: Proxy,
    destination: Proxy,
    authority: Authority,
    root: CertificateDer<'static>,
    apps: Vec<(&'static str, SocketAddr)>,
}

const RULES: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: { name: wide, namespace: shop }
spec:
  parentRefs: [{ kind: Service, name: web }]
  hostnames: ['*.example.com']
  rules: [{ backendRefs: [{ name: wide, port: 443 }] }]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TLSRoute
metadata: { name: exact, namespace: shop }
spec:
  parentRefs: [{ kind: Service, name: web }]
  hostnames: [a.example.com, web.shop]
  rules: [{ backendRefs: [{ name: exact, port: 443 }, { name: wide, port: 443, weight: 0 }] }]
";

const PORTS: [(&str, u32, v1::Protocol); 3] = [
    ("tls", 443, v1::Protocol::Tls),
    ("tcp", 444, v1::Protocol::Tcp),
    ("any", 445, v1::Protocol::Unspecified),
];

impl World {
    async fn start(rules: &str) -> Self {
        let authority = Authority::new(DOMAIN);
        let destination =
            Proxy::start(&authority, authority.workload("web"), inbound_config()).await;
        let mut config = outbound_config();
        config.listeners = PORTS.map(|(name, ..)| listener("web.shop", name)).into();
        config.sni_listeners = vec![
            SniListener { listen: any(), port: None },
            SniListener { listen: any(), port: Some(444) },
        ];
        let source = Proxy::start(&authority, authority.workload("checkout"), config).await;
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(NAMES.map(String::from)).unwrap().self_signed(&key).unwrap();
        let root = certificate.der().clone();
        let mut apps = Vec::new();
        for name in ["web", "wide", "exact"] {
            let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
            apps.push((name, app(name, root.clone(), key).await));
        }
        let world = Self { source, destination, authority, root, apps };
        world.rules(rules);
        world
    }

    fn rules(&self, text: &str) {
        let ports = vec![("tls".to_owned(), 443), ("tcp".to_owned(), 444)];
        let registry: BTreeMap<String, _> =
            self.apps.iter().map(|(name, _)| (format!("{name}.shop"), ports.clone())).collect();
        let manifests = read_manifests(text, "rules.yaml").unwrap();
        let (mut services, mut endpoints) = (Vec::new(), Vec::new());
        for (name, addr) in &self.apps {
            let full = format!("{name}.shop");
            let compiled = compile(&full, &manifests, &registry);
            assert_eq!(compiled.problems, []);
            let connection_routes = compiled.connection_routes;
            services.push(v1::Service { connection_routes, ..service(&full, &PORTS) });
            for (port, ..) in PORTS {
                let (id, proxy) = (format!("{name}-{port}"), self.destination.inbound());
                endpoints.push(endpoint(&id, &full, port, "web", proxy, *addr));
            }
        }
        let snapshot = snapshot(&self.authority, services, endpoints);
        self.source.tell(&snapshot);
        self.destination.tell(&snapshot);
    }

    async fn connect(&self, door: &str) -> TcpStream {
        let at = match door {
            "connect" => return connect_through(self.source.http(), "web.shop:443").await,
            "by name" => self.source.bound.sni[0],
            "by name, tcp" => self.source.bound.sni[1],
            port => {
                let at = PORTS.iter().position(|(name, ..)| *name == port).unwrap();
                self.source.bound.listeners[at]
            }
        };
        TcpStream::connect(at).await.unwrap()
    }

    async fn handshake(&self, door: &str, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let stream = self.connect(door).await;
        wait(TlsConnector::from(Arc::new(config)).connect(name, stream)).await
    }

    /// Who answers, after both ends have closed their halves in turn.
    async fn asked(&self, door: &str, name: &str) -> std::io::Result<String> {
        let mut stream = self.handshake(door, name).await?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        stream.write_all(b"who are you?").await?;
        stream.shutdown().await?;
        let mut answer = String::new();
        wait(stream.read_to_string(&mut answer)).await?;
        Ok(answer)
    }
}

/// Says its name and what it was asked for, once it was asked to the end.
async fn app(
    name: &'static str,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let mut config = config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(any()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                let mut asked = String::new();
                stream.read_to_string(&mut asked).await?;
                let sni = stream.get_ref().1.server_name().unwrap_or("nobody").to_owned();
                let answer = format!("{name} is asked as {sni}: {asked}");
                stream.write_all(answer.as_bytes()).await?;
                stream.shutdown().await
            });
        }
    });
    addr
}

async fn connect_through(proxy: SocketAddr, to: &str) -> TcpStream {
    let mut client = TcpStream::connect(proxy).await.unwrap();
    let head = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(client.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    client
}

async fn wait<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it takes too long")
}

/// A ClientHello that asks for `name`, in records of `size` bytes.
fn hello(name: &[u8], size: usize) -> Vec<u8> {
    let vector =
        |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat();
    let list = vector(&[vec![0], vector(name)].concat());
    let extensions = vector(&[vec![0, 0], vector(&list)].concat());
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend(extensions);
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[1], &length[1..], &body].concat();
    message.chunks(size).flat_map(|part| [vec![22, 3, 1], vector(part)].concat()).collect()
}

/// What comes back, until the end.
async fn said(mut stream: TcpStream) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    wait(stream.read_to_end(&mut all)).await?;
    Ok(all)
}

const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

#[tokio::test]
async fn a_connection_goes_where_its_name_leads() {
    let world = World::start(RULES).await;
    for door in ["tls", "tcp", "any", "connect"] {
        for (name, app) in [
            ("a.example.com", "exact"),
            ("web.shop", "exact"),
            ("x.example.com", "wide"),
            ("y.x.example.com", "wide"),
        ] {
            let answer = world.asked(door, name).await.unwrap();
            assert_eq!(answer, format!("{app} is asked as {name}: who are you?"), "{door}");
        }
        let error = world.asked(door, "other.example.org").await.unwrap_err();
        assert!(error.to_string().contains("UnrecognisedName"), "{door}: {error}");
    }
    let metrics = world.source.metrics();
    assert!(metrics.contains("reason=\"no_route\""), "{metrics}");
    // Without rules the service itself is asked, whatever the name.
    world.rules("");
    for door in ["tls", "tcp", "any", "connect"] {
        let answer = world.asked(door, "a.example.com").await.unwrap();
        assert_eq!(answer, "web is asked as a.example.com: who are you?", "{door}");
    }
}

#[tokio::test]
async fn a_listener_by_name_carries_to_services_of_the_mesh_only() {
    let world = World::start("").await;
    for door in ["by name", "by name, tcp"] {
        for name in ["web.shop", "web.shop.svc.cluster.local"] {
            let answer = world.asked(door, name).await.unwrap();
            assert_eq!(answer, format!("web is asked as {name}: who are you?"));
        }
        let refused =
            ["nobody.shop", "example.com", "localhost", "x.localhost", "127.0.0.1", "::1", "web"];
        for name in refused {
            let mut stream = world.connect(door).await;
            stream.write_all(&hello(name.as_bytes(), 1000)).await.unwrap();
            assert_eq!(said(stream).await.unwrap(), UNRECOGNIZED_NAME, "{name}");
        }
    }
    // Rules of the service that is named hold here as well.
    world.rules(RULES);
    let answer = world.asked("by name", "web.shop").await.unwrap();
    assert_eq!(answer, "exact is asked as web.shop: who are you?");
    let error = world.asked("by name", "web.shop.svc.cluster.local").await.unwrap_err();
    assert!(error.to_string().contains("UnrecognisedName"), "{error}");
}

/// The hello in records and reads of one byte, then something before and
/// something after the client's end: all of it arrives as it was sent.
#[tokio::test]
async fn no_byte_is_changed_however_it_comes() {
    let world = World::start(RULES).await;
    let raw = TcpListener::bind(any()).await.unwrap();
    let mut apps = world.apps.clone();
    apps.iter_mut().for_each(|(_, addr)| *addr = raw.local_addr().unwrap());
    let world = World { apps, ..world };
    world.rules(RULES);
    for door in ["tls", "any", "connect", "by name"] {
        let mut client = world.connect(door).await;
        client.set_nodelay(true).unwrap();
        let sent = hello(b"Web.SHOP", 1);
        for byte in &sent {
            client.write_all(&[*byte]).await.unwrap();
        }
        let mut server = wait(raw.accept()).await.unwrap().0;
        client.write_all(b"and more").await.unwrap();
        client.shutdown().await.unwrap();
        let mut received = Vec::new();
        wait(server.read_to_end(&mut received)).await.unwrap();
        assert_eq!(received, [&sent, &b"and more"[..]].concat(), "{door}");
        server.write_all(b"answer after the end").await.unwrap();
        drop(server);
        assert_eq!(said(client).await.unwrap(), b"answer after the end", "{door}");
    }
}

#[tokio::test]
async fn what_is_no_tls_is_refused_where_names_decide() {
    let world = World::start(RULES).await;
    for door in ["tls", "tcp", "by name"] {
        let mut stream = world.connect(door).await;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web.shop\r\n\r\n").await.unwrap();
        let error = said(stream).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{door}");
        let mut stream = world.connect(door).await;
        let mut broken = hello(b"web.shop", 1000);
        broken[9 + 34] = 33;
        stream.write_all(&broken).await.unwrap();
        assert_eq!(said(stream).await.unwrap(), [21, 3, 3, 0, 2, 2, 50], "{door}");
        // Half a hello and no more.
        let mut stream = world.connect(door).await;
        stream.write_all(&hello(b"web.shop", 1000)[..20]).await.unwrap();
        stream.shutdown().await.unwrap();
        assert!(said(stream).await.is_err(), "{door}");
    }
}

#[tokio::test]
async fn what_is_no_tls_goes_where_everything_else_does() {
    let world = World::start(RULES).await;
    let raw = TcpListener::bind(any()).await.unwrap();
    let mut apps = world.apps.clone();
    apps.iter_mut().for_each(|(_, addr)| *addr = raw.local_addr().unwrap());
    let world = World { apps, ..world };
    let others = "
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: { name: others, namespace: shop }
spec:
  parentRefs: [{ kind: Service, name: web }]
  rules: [{ backendRefs: [{ name: web, port: 444 }] }]
";
    world.rules(&format!("{RULES}---{others}"));
    for door in ["tls", "tcp"] {
        let mut client = world.connect(door).await;
        client.write_all(b"hello, who is there?").await.unwrap();
        client.shutdown().await.unwrap();
        let mut server = wait(raw.accept()).await.unwrap().0;
        let mut received = Vec::new();
        wait(server.read_to_end(&mut received)).await.unwrap();
        assert_eq!(received, b"hello, who is there?", "{door}");
    }
}
