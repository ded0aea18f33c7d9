//! TLS of legacy configurations.

use super::*;

/// (format, configuration that ends TLS and speaks it)
const TLS: [(&str, &str); 4] = [
    (
        "nginx",
        "http {
  upstream app { server 10.0.0.1:8443; }
  server {
    listen 127.0.0.1:8000 ssl;
    ssl_certificate /etc/ssl/us.pem;
    ssl_certificate_key /etc/ssl/us.key;
    ssl_client_certificate /etc/ssl/ca.pem;
    ssl_verify_client on;
    location / {
      proxy_pass https://app;
      proxy_ssl_verify on;
      proxy_ssl_name app.example.com;
      proxy_ssl_trusted_certificate /etc/ssl/ca.pem;
    }
  }
}
",
    ),
    (
        "haproxy",
        "frontend f
  mode http
  bind 127.0.0.1:8000 ssl crt /etc/ssl/us.pem ca-file /etc/ssl/ca.pem verify required
  default_backend b
backend b
  mode http
  server a 10.0.0.1:8443 ssl verify required ca-file /etc/ssl/ca.pem sni str(app.example.com)
",
    ),
    (
        "envoy",
        r#"static_resources:
  listeners:
  - name: in
    address: { socket_address: { address: 127.0.0.1, port_value: 8000 } }
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            tls_certificates:
            - certificate_chain: { filename: /etc/ssl/us.pem }
              private_key: { filename: /etc/ssl/us.key }
            validation_context: { trusted_ca: { filename: /etc/ssl/ca.pem } }
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config:
            virtual_hosts:
            - name: all
              domains: [ "*" ]
              routes: [ { match: { prefix: "/" }, route: { cluster: app } } ]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
  clusters:
  - name: app
    type: STATIC
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: app.example.com
        common_tls_context:
          validation_context: { trusted_ca: { filename: /etc/ssl/ca.pem } }
    load_assignment:
      cluster_name: app
      endpoints:
      - lb_endpoints:
        - endpoint: { address: { socket_address: { address: 10.0.0.1, port_value: 8443 } } }
"#,
    ),
    (
        "linkerd1",
        "routers:
- protocol: http
  servers:
  - port: 8000
    ip: 127.0.0.1
    tls:
      certPath: /etc/ssl/us.pem
      keyPath: /etc/ssl/us.key
      requireClientAuth: true
      caCertPath: /etc/ssl/ca.pem
  dtab: /svc/app => /$/inet/10.0.0.1/8443
  client:
    tls:
      commonName: app.example.com
      trustCertsBundle: /etc/ssl/ca.pem
",
    ),
];

#[test]
fn tls_is_carried_over_until_the_date_that_is_given() {
    let directory = tempfile::tempdir().unwrap();
    for (format, text) in TLS {
        let config = format!("{format}.cfg");
        std::fs::write(directory.path().join(&config), text).unwrap();
        let plan = |more: &[&str]| {
            let arguments = ["plan", "--from", format, &config, "--out", format];
            let output = migrate(directory.path(), &[&arguments, more].concat());
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let path = |name: &str| directory.path().join(format).join(name);
            let read = |name: &str| std::fs::read_to_string(path(name)).unwrap();
            (read("proxy.yaml"), read("site.yaml"), read("report.md"))
        };
        let (proxy, site, report) = plan(&[]);
        assert!(!proxy.contains("tls:") && !site.contains("tls:"), "{format}: {proxy}{site}");
        assert!(report.matches("--tls-until DATE").count() >= 2, "{format}: {report}");

        let (proxy, site, report) = plan(&["--tls-until", "2027-03-01"]);
        assert!(!report.contains("--tls-until"), "{format}: {report}");
        let flags = edge_proxy::config::Flags::default();
        let read = edge_proxy::config::Config::parse(&proxy, &flags, "proxy.yaml").unwrap();
        let tls = read.listeners[0].tls.clone().expect("TLS");
        assert_eq!(tls.until.to_string(), "2027-03-01T00:00:00Z");
        assert_eq!(tls.certificate, Path::new("/etc/ssl/us.pem"), "{format}");
        let key = (format != "haproxy").then(|| Path::new("/etc/ssl/us.key"));
        assert_eq!(tls.key.as_deref(), key, "{format}");
        assert_eq!(tls.client_ca.as_deref(), Some(Path::new("/etc/ssl/ca.pem")), "{format}");
        let path = directory.path().join(format).join("site.yaml");
        let bundles = mesh_core::TrustBundles::new();
        let (_, origins) = edge_proxy::files::snapshot::load(&path, &[], &bundles).unwrap();
        let [origin] = &origins[..] else { panic!("{format}: {site}") };
        assert_eq!(origin.targets, ["10.0.0.1:8443".parse().unwrap()], "{format}");
        let expected = edge_proxy::transition::origin::Expected::Named {
            ca: "/etc/ssl/ca.pem".into(),
            name: "app.example.com".try_into().unwrap(),
        };
        assert_eq!(origin.expected, expected, "{format}");
    }
    let wrong = ["plan", "--from", "nginx", "nginx.cfg", "--tls-until", "soon"];
    let output = migrate(directory.path(), &wrong);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("write a date"), "{said}");
}

/// (format, configuration with a certificate for some names)
const BY_NAME: [(&str, &str); 3] = [
    (
        "nginx",
        "http {
  server {
    listen 127.0.0.1:8000 ssl;
    server_name _;
    ssl_certificate /etc/ssl/us.pem;
    ssl_certificate_key /etc/ssl/us.key;
    ssl_client_certificate /etc/ssl/ca.pem;
    ssl_crl /etc/ssl/ca.crl;
    ssl_verify_client on;
    return 200;
  }
  server {
    listen 127.0.0.1:8000 ssl;
    server_name Shop.example *.shop.example x_y.example;
    ssl_certificate /etc/ssl/shop.pem;
    ssl_certificate_key /etc/ssl/shop.key;
    ssl_client_certificate /etc/ssl/ca.pem;
    ssl_crl /etc/ssl/ca.crl;
    ssl_verify_client on;
    return 200;
  }
}
",
    ),
    (
        "haproxy",
        "global
  crt-base /etc/ssl
  ca-base /etc/ssl
frontend f
  mode http
  bind 127.0.0.1:8000 ssl crt us.pem crt-list list crt more/ ca-file ca.pem crl-file ca.crl verify required
  default_backend b
backend b
  mode http
  server a 10.0.0.1:80
",
    ),
    ("envoy", include_str!("by_name.yaml")),
];

#[test]
fn certificates_by_name_are_carried_over() {
    let directory = tempfile::tempdir().unwrap();
    let list = "shop.pem [alpn h2] shop.example *.shop.example x_y.example\n";
    std::fs::write(directory.path().join("list"), list).unwrap();
    for (format, text) in BY_NAME {
        let config = format!("{format}.cfg");
        std::fs::write(directory.path().join(&config), text).unwrap();
        let until = ["--tls-until", "2027-03-01"];
        let arguments = ["plan", "--from", format, &config, "--out", format];
        let output = migrate(directory.path(), &[&arguments[..], &until].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let proxy = directory.path().join(format).join("proxy.yaml");
        let proxy = std::fs::read_to_string(proxy).unwrap();
        let flags = edge_proxy::config::Flags::default();
        let read = edge_proxy::config::Config::parse(&proxy, &flags, "proxy.yaml").unwrap();
        let tls = read.listeners[0].tls.clone().expect("TLS");
        assert_eq!(tls.certificate, Path::new("/etc/ssl/us.pem"), "{format}");
        assert_eq!(tls.client_ca.as_deref(), Some(Path::new("/etc/ssl/ca.pem")), "{format}");
        assert_eq!(tls.crl.as_deref(), Some(Path::new("/etc/ssl/ca.crl")), "{format}");
        let shop = &tls.certificates[0];
        assert_eq!(shop.certificate, Path::new("/etc/ssl/shop.pem"), "{format}");
        let names: Vec<_> = shop.names.iter().map(|name| name.parts()).collect();
        let wanted = [("shop.example", false), ("shop.example", true), ("x_y.example", false)];
        assert_eq!(names, wanted, "{format}");
        let more = tls.certificates.get(1).map(|more| more.certificate.as_path());
        assert_eq!(more, (format == "haproxy").then(|| Path::new("/etc/ssl/more/")), "{format}");
    }
}
