use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use super::*;
use crate::testing::{agent, client, list, reply, run, web};

fn secret(path: &Path, text: &str) {
    // Another file each time: the same second may not tell them apart.
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, path).unwrap();
}

fn health() -> HealthOf {
    HealthOf { service: "web".into(), tags: vec!["a b".into()], dc: Some("dc2".into()) }
}

#[test]
fn what_is_asked_is_what_consul_documents() {
    run(async {
        let (client, asked) = agent(|_| list(7, "[]")).await;
        let block = Block { index: 7, wait: Duration::from_secs(300) };
        client.read(&health(), Some(block)).await.unwrap();
        client
            .read(&CatalogOf { service: "w/e?b%".into(), ..CatalogOf::default() }, None)
            .await
            .unwrap();
        client.maintenance("web:1", true, "moving").await.unwrap();
        let lines: Vec<_> = asked.lock().unwrap().iter().map(|a| a.line.clone()).collect();
        assert_eq!(
            lines,
            [
                "GET /v1/health/service/web?dc=dc2&tag=a+b&stale=&index=7&wait=300000ms",
                "GET /v1/catalog/service/w%2Fe%3Fb%25?stale=",
                "PUT /v1/agent/service/maintenance/web:1?enable=true&reason=moving",
            ]
        );
    });
}

#[test]
fn failed_calls_are_counted_by_kind() {
    run(async {
        let (client, _) = agent(|asked| match asked.line.as_str() {
            line if line.contains("/health/") => reply(403, &[], "Permission denied"),
            line if line.contains("/deregister/") => reply(404, &[], "Unknown service"),
            line if line.contains("/services") => list(9, "[]"),
            _ => reply(429, &[], "slow down"),
        })
        .await;
        client.read(&health(), None).await.unwrap_err();
        client.read(&health(), None).await.unwrap_err();
        client.agent().await.unwrap_err();
        client.maintenance("web:1", true, "x").await.unwrap_err();
        // It is not there, which is what was asked for.
        client.deregister("web:1").await.unwrap();
        assert_eq!(client.figures().index(), 0, "no list was answered");
        client.read(&CatalogOf::default(), None).await.unwrap_err();
        client.agent_services().await.unwrap_err();
        let errors = client.clone().figures().errors();
        let expected = [("busy", 2), ("forbidden", 2), ("malformed", 1), ("name", 1)];
        assert_eq!(errors, expected.into());
        let (client, _) = agent(|_| list(9, "[]")).await;
        client.read(&health(), None).await.unwrap();
        assert_eq!((client.figures().index(), client.figures().errors().len()), (9, 0));
    });
}

#[test]
fn names_cannot_leave_their_place() {
    run(async {
        let (client, asked) = agent(|_| list(7, "[]")).await;
        for service in ["", ".", "..", "a\nb", &"x".repeat(513)] {
            let query = HealthOf { service: service.into(), ..HealthOf::default() };
            assert!(matches!(client.read(&query, None).await, Err(Error::Name(_))), "{service:?}");
        }
        assert!(asked.lock().unwrap().is_empty());
    });
}

#[test]
fn headers_say_what_an_answer_is_worth() {
    let cases: [(&[(&str, &str)], bool, bool); 5] = [
        (&[], true, false),
        (&[("x-consul-knownleader", "false")], false, false),
        (&[("x-consul-results-filtered-by-acls", "true")], true, true),
        // Nobody has said who asks.
        (&[("x-consul-default-acl-policy", "deny")], true, true),
        (&[("x-consul-default-acl-policy", "allow")], true, false),
    ];
    run(async {
        for (headers, has_leader, filtered) in cases {
            let headers = [headers, &[("x-consul-index", "3")]].concat();
            let (client, _) = agent(move |_| reply(200, &headers, &web(&["n2", "n1"]))).await;
            let answer = client.read(&health(), None).await.unwrap();
            assert_eq!((answer.has_leader, answer.filtered), (has_leader, filtered));
            assert_eq!((answer.index, answer.data[0].node.node.as_str()), (3, "n1"));
        }
    });
}

#[test]
fn a_token_is_sent_and_read_again_when_it_changes() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        secret(&file, "one\n");
        let (plain, asked) = agent(|_| {
            reply(200, &[("x-consul-default-acl-policy", "deny"), ("x-consul-index", "1")], "[]")
        })
        .await;
        let client = Client::new(&Connection {
            address: plain.inner.base.to_string(),
            token_file: Some(file.clone()),
            tls: None,
            stale: false,
        })
        .unwrap();
        // It denies by default, and knows who asks.
        assert!(!client.read(&health(), None).await.unwrap().filtered);
        secret(&file, "another");
        client.read(&health(), None).await.unwrap();
        // Whatever happens to the file, the last one is used.
        fs::remove_file(&file).unwrap();
        client.read(&health(), None).await.unwrap();
        let tokens: Vec<_> =
            asked.lock().unwrap().iter().map(|a| a.token.clone().unwrap()).collect();
        assert_eq!(tokens, ["one", "another", "another"]);
    });
}

#[test]
fn what_cannot_be_a_token_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    let client = || {
        let connection = Connection {
            address: "http://127.0.0.1:1".into(),
            token_file: Some(file.clone()),
            tls: None,
            stale: true,
        };
        Client::new(&connection).map(drop).unwrap_err().to_string()
    };
    assert!(client().contains("cannot be read"), "{}", client());
    for text in ["", " \n", "a b", "a\nb", &"x".repeat(5000)] {
        secret(&file, text);
        let shown = client();
        assert!(shown.contains("one token") || shown.contains("4096"), "{shown}");
    }
    secret(&file, "x");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(client().contains("chmod 600"));
}

#[test]
fn statuses_are_errors_that_say_what_they_are() {
    type Is = fn(&Error) -> bool;
    let cases: [(u16, &str, Is); 10] = [
        (400, "Invalid wait time", |e| matches!(e, Error::Status { status: 400, .. })),
        (403, "Permission denied", |e| matches!(e, Error::Forbidden(_))),
        (403, "ACL not found", |e| matches!(e, Error::Forbidden(_))),
        (404, "", |e| matches!(e, Error::NotFound { .. })),
        (429, "", |e| matches!(e, Error::Busy(_))),
        (500, "No cluster leader", |e| matches!(e, Error::NoLeader(_))),
        (500, "rpc error: No path to datacenter", |e| matches!(e, Error::NoPath(_))),
        (500, "rpc error: Permission denied", |e| matches!(e, Error::Forbidden(_))),
        (503, "", |e| matches!(e, Error::Status { status: 503, .. })),
        (301, "", |e| matches!(e, Error::Status { status: 301, .. })),
    ];
    run(async {
        for (status, text, is) in cases {
            let (client, _) =
                agent(move |_| reply(status, &[("location", "http://x/")], text)).await;
            let error = client.read(&health(), None).await.unwrap_err();
            assert!(is(&error), "{status} {text}: {error:?}");
        }
    });
}

#[test]
fn what_is_no_list_of_consul_is_none() {
    run(async {
        let (client, _) = agent(|_| reply(200, &[], "[]")).await;
        assert!(matches!(client.read(&health(), None).await, Err(Error::NoIndex)));
        for body in ["", "{}", "<html>", "[{]", "[{\"Node\":3}]"] {
            let (client, _) = agent(move |_| list(3, body)).await;
            assert!(
                matches!(client.read(&health(), None).await, Err(Error::Malformed(_))),
                "{body}"
            );
        }
        let error = client_of_nobody().read(&health(), None).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }) && error.passes(), "{error:?}");
        assert!(error.to_string().contains("check that the agent runs"), "{error}");
    });
}

fn client_of_nobody() -> Client {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    client(&format!("http://{}", listener.local_addr().unwrap()))
}

#[test]
fn an_answer_without_end_is_cut() {
    run(async {
        let endless = "x".repeat(MAX_ANSWER + 1);
        let (client, _) = agent(move |_| list(3, &endless)).await;
        assert!(matches!(client.read(&health(), None).await, Err(Error::TooLong)));
        let (client, _) = agent(|_| reply(500, &[], &"a\nb".repeat(5000))).await;
        let Err(Error::Status { detail, .. }) = client.read(&health(), None).await else {
            panic!()
        };
        assert!(detail.starts_with("a ba b") && detail.chars().count() == MAX_ERROR, "{detail}");
    });
}

#[test]
fn what_was_not_there_is_deregistered() {
    run(async {
        let (client, _) = agent(|_| reply(404, &[], "Unknown service ID")).await;
        client.deregister("web").await.unwrap();
    });
}

#[test]
fn addresses_are_places_and_nothing_more() {
    for address in
        ["", "127.0.0.1:8500", "ftp://c", "http://u@c", "http://c/v1", "http://c?token=x"]
    {
        let address = address.to_owned();
        let connection = Connection { address, token_file: None, tls: None, stale: true };
        let shown = Client::new(&connection).map(drop).unwrap_err().to_string();
        assert!(shown.contains("write http://host:port"), "{shown}");
    }
}

/// A server with a certificate of a CA of its own, that asks for one of ours.
#[test]
fn tls_trusts_its_ca_alone_and_shows_a_certificate() {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        let ca_cert = ca.self_signed(&ca_key).unwrap();
        fs::write(path("ca.pem"), ca_cert.pem()).unwrap();
        let issuer = Issuer::new(ca, ca_key);
        let issue = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            (params.signed_by(&key, &issuer).unwrap(), key)
        };
        let (ours, our_key) = issue("bridge");
        fs::write(path("ours.pem"), ours.pem()).unwrap();
        secret(&path("ours.key"), &our_key.serialize_pem());
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(path("other.pem"), other.cert.pem()).unwrap();

        let (cert, key) = issue("localhost");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca_cert.der().clone()).unwrap();
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots),
            provider.clone(),
        );
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(
                vec![cert.der().clone()],
                rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(list(3, "[]").unwrap().as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });

        let client = |ca: &str, client| {
            let tls = Some(TlsFiles { ca: path(ca), client });
            let address = address.clone();
            Client::new(&Connection { address, token_file: None, tls, stale: true })
        };
        let pair = || Some((path("ours.pem"), path("ours.key")));
        client("ca.pem", pair()).unwrap().read(&health(), None).await.unwrap();
        let cases = [("other.pem", pair(), "is not trusted"), ("ca.pem", None, "is asked for")];
        for (ca, pair, why) in cases {
            let result = client(ca, pair).unwrap().read(&health(), None).await;
            assert!(matches!(result, Err(Error::Unreachable { .. })), "{why}: {result:?}");
        }
        let none = client("gone.pem", None).map(drop).unwrap_err().to_string();
        assert!(none.contains("gone.pem"), "{none}");
        let no_ca = Connection { address, token_file: None, tls: None, stale: true };
        assert!(matches!(Client::new(&no_ca), Err(BuildError::NoCa)));
    });
}
