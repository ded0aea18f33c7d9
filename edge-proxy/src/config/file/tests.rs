use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, &Flags::default(), "proxy.yaml")
}

#[test]
fn nothing_written_is_a_node_of_this_machine() {
    let config = parse("").unwrap();
    assert_eq!(config.role, Role::Node);
    assert_eq!(config.http_listener, Some(([127, 0, 0, 1], 4140).into()));
    assert_eq!(config.admin, Some(([127, 0, 0, 1], 4191).into()));
    assert_eq!((config.transparent, config.inbound), (None, None));
    assert!((1..=DEFAULT_WORKERS).contains(&config.workers));
    let socket = Path::new("/run/isthmus/identity.sock");
    assert!(matches!(config.identity, IdentitySource::Socket(path) if path == socket));
    assert!(matches!(config.snapshot, SnapshotSource::Federation));
}

#[test]
fn a_gateway_listens_where_it_says_and_nowhere_else() {
    let config = parse("role: gateway\ngateway: { quic: off, tls: 127.0.0.1:1 }").unwrap();
    assert_eq!(config.http_listener, None);
    let tls = ([127, 0, 0, 1], 1).into();
    assert_eq!(config.gateway, Some(GatewayDoors { quic: None, tls }));
}

#[test]
fn a_proxy_alone_may_do_without_identity() {
    let alone = "snapshot: { file: site.yaml }\n";
    assert!(matches!(parse(alone).unwrap().identity, IdentitySource::None));
    let socket = parse(&format!("{alone}identity: {{}}")).unwrap().identity;
    assert!(matches!(socket, IdentitySource::Socket(_)));
    for door in [
        "inbound: 127.0.0.1:0",
        "inbound_plaintext: [{ listen: '127.0.0.1:0', service: a.b, port: c }]",
        "role: gateway\ngateway: { tls: 127.0.0.1:0 }",
    ] {
        let error = parse(&format!("{alone}{door}")).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("identity") && error.contains("needs one"), "{error}");
    }
}

#[test]
fn tls_of_a_listener_has_an_end_and_files_beside_the_configuration() {
    let text = "
listeners:
- listen: 0.0.0.0:443
  service: orders.shop
  port: http
  tls:
    certificate: orders.pem
    key: /etc/ssl/orders.key
    certificates: [{ certificate: shop.pem, key: shop.key, names: [Shop.example, '*.shop.example'] }]
    client_ca: ca.pem
    crl: ca.crl
    until: 2027-03-01
";
    let mut config = parse(text).unwrap();
    config.resolve(Path::new("/etc/isthmus"));
    let tls = config.listeners[0].tls.clone().unwrap();
    assert_eq!(tls.certificate, Path::new("/etc/isthmus/orders.pem"));
    assert_eq!(tls.key.as_deref(), Some(Path::new("/etc/ssl/orders.key")));
    assert_eq!(tls.client_ca.as_deref(), Some(Path::new("/etc/isthmus/ca.pem")));
    assert_eq!(tls.crl.as_deref(), Some(Path::new("/etc/isthmus/ca.crl")));
    let [shop] = &tls.certificates[..] else { panic!("{tls:?}") };
    assert_eq!(shop.certificate, Path::new("/etc/isthmus/shop.pem"));
    assert_eq!(shop.key.as_deref(), Some(Path::new("/etc/isthmus/shop.key")));
    let names: Vec<_> = shop.names.iter().map(|name| name.parts()).collect();
    assert_eq!(names, [("shop.example", false), ("shop.example", true)]);
    assert_eq!(tls.until.to_string(), "2027-03-01T00:00:00Z");
}

#[test]
fn what_makes_no_sense_is_refused_with_its_place() {
    let cases = [
        ("role: nod", "did you mean `node`"),
        ("http_listner: off", "proxy.yaml:1"),
        ("http_listner: off", "did you mean `http_listener`"),
        ("\nworkers: 0", "workers: 0: must be 1 to 64"),
        ("http_listener: 0.0.0.0:4140", "allow_from"),
        ("sni_listeners: [{ listen: 0.0.0.0:443 }]", "allow_from"),
        (
            "sni_listeners: [{ listen: '127.0.0.1:1' }, { listen: '127.0.0.1:1', port: 2 }]",
            "sni_listeners[1].listen: 127.0.0.1:1 is there twice",
        ),
        ("http_listener: localhost", "or off"),
        ("gateway: { tls: 127.0.0.1:1 }", "only for role gateway"),
        ("role: gateway", "needs where to listen"),
        ("access_log: syslog", "stdout, stderr, journald, off"),
        ("access_log_format: apache", "unknown variant"),
        ("tracing: { endpoint: collector:4317 }", "write http://<host>:<port>"),
        ("tracing: { endpoint: 'https://collector:4317' }", "write http://<host>:<port>"),
        ("tracing: { endpoint: 'http://collector' }", "write http://<host>:<port>"),
        ("tracing: { endpoint: 'http://a:1', sample: 1.5 }", "tracing.sample: 1.5: write 0 to 1"),
        ("tracing: { endpoint: 'http://a:1', protocol: jaeger }", "unknown variant"),
        ("statsd: localhost", "invalid socket address"),
        ("identity: { socket: /a, files: { certificate: a, key: b, bundles: {} } }", "one of"),
        ("identity: { files: { certificate: a, key: b, bundles: {} } }", "at least"),
        ("identity: { files: { certificate: a, key: b, bundles: { A: c } } }", "bundles.A"),
        ("listeners: [{ listen: 127.0.0.1:1, service: a, port: b }]", "<name>.<namespace>"),
        (
            "listeners:\n- { listen: '127.0.0.1:1', service: a.b, port: c }\n\
             - { listen: '127.0.0.1:1', service: a.c, port: c }",
            "listeners[1].listen: 127.0.0.1:1 is there twice",
        ),
        (
            "inbound_plaintext:\n- { listen: '127.0.0.1:1', service: a.b, port: c }\n\
             - { listen: '127.0.0.1:1', service: a.c, port: c }",
            "inbound_plaintext[1].listen: 127.0.0.1:1 is there twice",
        ),
        ("drain_timeout: 5", "duration"),
        ("allow_from: [10.0.0.0/40]", "prefix"),
    ];
    are_refused(&cases);
}

#[test]
fn tls_of_a_listener_that_makes_no_sense_is_refused_with_its_place() {
    let cases = [
        (
            "listeners: [{ listen: '127.0.0.1:1', service: a.b, port: c, tls: { certificate: d } }]",
            "missing field `until`",
        ),
        (
            "listeners: [{ listen: '127.0.0.1:1', service: a.b, port: c, \
             tls: { certificate: d, until: never } }]",
            "write a date, e.g. 2027-03-01",
        ),
        (
            "inbound_plaintext: [{ listen: '127.0.0.1:1', service: a.b, port: c, \
             tls: { certificate: d, until: 2027-03-01 } }]",
            "inbound_plaintext[0].tls: is only for `listeners`",
        ),
        (
            "listeners: [{ listen: '127.0.0.1:1', service: a.b, port: c, \
             tls: { certificate: d, until: 2027-03-01, crl: e } }]",
            "listeners[0].tls.crl: is about certificates of clients",
        ),
        (
            "listeners: [{ listen: '127.0.0.1:1', service: a.b, port: c, tls: { certificate: d, \
             until: 2027-03-01, client_names: [{ kind: dns, exact: e }] } }]",
            "listeners[0].tls.client_names: are of certificates of clients",
        ),
        (
            "listeners: [{ listen: '127.0.0.1:1', service: a.b, port: c, tls: { certificate: d, \
             client_ca: f, until: 2027-03-01, client_names: [{ kind: dns, exact: e, prefix: e }] } }]",
            "listeners[0].tls.client_names: write one of exact, prefix and suffix",
        ),
        (
            "listeners: [{ listen: '127.0.0.1:1', service: a.b, port: c, tls: { certificate: d, \
             client_ca: f, until: 2027-03-01, client_names: [{ kind: dns, suffix: '' }] } }]",
            "listeners[0].tls.client_names: write one of exact, prefix and suffix",
        ),
        (
            "snapshot: { file: s }\nlisteners: [{ listen: '127.0.0.1:1', service: a.b, port: c, \
             tls: { certificate: d, until: 2027-03-01, mesh_clients: true } }]",
            "listeners[0].tls.mesh_clients: nobody of the mesh is known",
        ),
        (
            "listeners: [{ listen: '127.0.0.1:1', service: a.b, port: c, tls: { certificate: d, \
             until: 2027-03-01, certificates: [{ certificate: e, names: ['a.*'] }] } }]",
            "is no name of DNS: write <name> or *.<name>",
        ),
    ];
    are_refused(&cases);
}

/// Texts, and what their errors say.
fn are_refused(cases: &[(&str, &str)]) {
    for (text, wanted) in cases {
        let error = parse(text).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(wanted), "{text}: {error}");
        assert_eq!(error.exit_code(), 78);
    }
}
