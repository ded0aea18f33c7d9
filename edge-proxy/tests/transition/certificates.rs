//! Several certificates of one listener; revoked ones of clients, and names in them.

use std::time::Duration;

use edge_proxy::config::{
    ListenerCertificate,
    transition::{ClientName, ClientNameKind},
};
use rustls::pki_types::CertificateDer;
use support::legacy::Leaf;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A file of certificate and key, and for which names.
fn entry(dir: &Dir, file: &str, leaf: &Leaf, names: &[&str]) -> ListenerCertificate {
    ListenerCertificate {
        certificate: dir.write(file, &format!("{}{}", leaf.certificate_pem, leaf.key_pem)),
        key: None,
        names: names.iter().map(|name| name.parse().unwrap()).collect(),
    }
}

/// What a client is shown that asks for this name; an address is no name.
async fn shown(addr: SocketAddr, ca: &Legacy, name: &str) -> Option<CertificateDer<'static>> {
    let config = ca.blind();
    let stream = handshake(addr, name, config).await.ok()?;
    stream.get_ref().1.peer_certificates().unwrap().first().cloned()
}

#[tokio::test]
async fn a_client_gets_the_certificate_of_the_name_that_it_asks_for() {
    let app = App::start(told).await;
    let (dir, ca) = (Dir::new(), Legacy::new());
    let leaf = |names: &[&str]| ca.leaf(names);
    let own = leaf(&["www.own.example", "*.own.example"]);
    let written = leaf(&["anything.example"]);
    let deep = leaf(&["deep.example"]);
    let exact = leaf(&["exact.example"]);
    let mut tls = tls(&dir, &ca, None, FAR);
    tls.certificates = vec![
        entry(&dir, "own.pem", &own, &[]),
        entry(&dir, "written.pem", &written, &["www.own.example", "*.written.example"]),
        entry(&dir, "deep.pem", &deep, &["*.deep.written.example"]),
        entry(&dir, "exact.pem", &exact, &["a.deep.written.example"]),
        // Of two for one name the first is taken.
        entry(&dir, "second.pem", &leaf(&["x.example"]), &["*.written.example"]),
    ];
    let strict = ListenerTls { only_known_names: true, ..tls.clone() };
    let pair = Pair::one_hop_with(Targets::all(app.addr), everywhere(tls)).await;
    let http = pair.port("http");
    let default = shown(http, &ca, NAME).await.unwrap();
    let cases = [
        ("a.own.example", &own.certificate),
        ("A.Own.Example", &own.certificate),
        // What a certificate says of all names is one label.
        ("a.b.own.example", &default),
        ("own.example", &default),
        // What is written comes before what a certificate says.
        ("www.own.example", &written.certificate),
        ("a.written.example", &written.certificate),
        ("a.b.written.example", &written.certificate),
        ("written.example", &default),
        ("b.deep.written.example", &deep.certificate),
        ("a.deep.written.example", &exact.certificate),
        ("b.a.deep.written.example", &deep.certificate),
        ("anything.example", &default),
        ("127.0.0.1", &default),
    ];
    for (name, wanted) in cases {
        assert_eq!(shown(http, &ca, name).await.as_ref(), Some(wanted), "{name}");
    }

    let pair = Pair::one_hop_with(Targets::all(app.addr), everywhere(strict.clone())).await;
    let http = pair.port("http");
    assert_eq!(shown(http, &ca, NAME).await, Some(default.clone()));
    assert_eq!(shown(http, &ca, "a.written.example").await, Some(written.certificate));
    for name in ["nobody.example", "a.b.own.example", "127.0.0.1"] {
        assert_eq!(shown(http, &ca, name).await, None, "{name}");
    }

    // Of the first one, too, what is written stands for what it says.
    let other = ListenerTls { names: vec!["other.example".parse().unwrap()], ..strict };
    let pair = Pair::one_hop_with(Targets::all(app.addr), everywhere(other)).await;
    let http = pair.port("http");
    for (name, wanted) in [("other.example", Some(default)), (NAME, None)] {
        assert_eq!(shown(http, &ca, name).await, wanted, "{name}");
    }
}

#[tokio::test]
async fn a_directory_of_certificates_is_taken_as_it_changes() {
    let app = App::start(told).await;
    let (dir, ca) = (Dir::new(), Legacy::new());
    let mut tls = tls(&dir, &ca, None, FAR);
    let certificates = Dir::new();
    tls.certificate = certificates.path("");
    let both = |leaf: &Leaf| format!("{}{}", leaf.certificate_pem, leaf.key_pem);
    let (a, b, c) = (ca.leaf(&["a.example"]), ca.leaf(&["b.example"]), ca.leaf(&["c.example"]));
    // Names of files decide which one is the first; keys may stand beside.
    certificates.write("2.pem", &both(&a));
    certificates.write("1.pem", &b.certificate_pem);
    certificates.write("1.pem.key", &b.key_pem);
    certificates.write(".hidden", "");
    certificates.write("2.pem.ocsp", "");
    let pair = Pair::one_hop_with(Targets::all(app.addr), everywhere(tls)).await;
    let http = pair.port("http");
    let transition = &pair.source.app.shared.transition;
    assert_eq!(shown(http, &ca, "a.example").await.as_ref(), Some(&a.certificate));
    assert_eq!(shown(http, &ca, "b.example").await.as_ref(), Some(&b.certificate));
    assert_eq!(shown(http, &ca, "c.example").await.as_ref(), Some(&b.certificate));
    // Half of it is nothing.
    let path = certificates.write("3.pem", &c.certificate_pem);
    transition.look_again();
    assert_eq!(shown(http, &ca, "a.example").await.as_ref(), Some(&a.certificate));
    certificates.write("3.pem", &both(&c));
    set_mode(&path, 0o644);
    transition.look_again();
    assert_eq!(shown(http, &ca, "c.example").await.as_ref(), Some(&b.certificate));
    set_mode(&path, 0o600);
    transition.look_again();
    assert_eq!(shown(http, &ca, "c.example").await.as_ref(), Some(&c.certificate));
    std::fs::remove_file(certificates.path("2.pem")).unwrap();
    transition.look_again();
    assert_eq!(shown(http, &ca, "a.example").await.as_ref(), Some(&b.certificate));
}

#[tokio::test]
async fn who_is_revoked_is_refused() {
    let app = App::start(told).await;
    let (dir, ca, clients) = (Dir::new(), Legacy::new(), Legacy::new());
    let (good, bad) = (clients.leaf(&[]), clients.leaf(&[]));
    let tomorrow = mesh_runtime::clock::now_unix() + DAY;
    let mut tls = tls(&dir, &ca, Some(&clients), FAR);
    tls.crl = Some(dir.write("clients.crl", &clients.crl(&[&bad], tomorrow)));
    let pair = Pair::one_hop_with(Targets::all(app.addr), only_first(tls)).await;
    let http = pair.port("http");
    let transition = &pair.source.app.shared.transition;
    over_http1(http, ca.client(&[], Some(&good))).await.unwrap();
    over_http1(http, ca.client(&[], Some(&bad))).await.unwrap_err();
    counted(&pair, DOOR, "certificate", 1).await;
    // What cannot be read changes nothing.
    for broken in ["", "not PEM at all", &clients.pem()] {
        dir.write("clients.crl", broken);
        transition.look_again();
        over_http1(http, ca.client(&[], Some(&good))).await.unwrap();
        over_http1(http, ca.client(&[], Some(&bad))).await.unwrap_err();
    }
    dir.write("clients.crl", &clients.crl(&[&good, &bad], tomorrow));
    transition.look_again();
    over_http1(http, ca.client(&[], Some(&good))).await.unwrap_err();
    // Nobody says anything of these: not by this issuer, or no more.
    for old in
        [Legacy::new().crl(&[], tomorrow), clients.crl(&[], mesh_runtime::clock::now_unix() - DAY)]
    {
        dir.write("clients.crl", &clients.crl(&[], tomorrow));
        transition.look_again();
        over_http1(http, ca.client(&[], Some(&good))).await.unwrap();
        dir.write("clients.crl", &old);
        transition.look_again();
        over_http1(http, ca.client(&[], Some(&good))).await.unwrap_err();
    }
}

#[tokio::test]
async fn who_has_another_name_is_refused() {
    let app = App::start(told).await;
    let (dir, ca, clients) = (Dir::new(), Legacy::new(), Legacy::new());
    let mut tls = tls(&dir, &ca, Some(&clients), FAR);
    let name = |kind, exact: Option<&str>, prefix: Option<&str>, suffix: Option<&str>| {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        ClientName { kind, exact: owned(exact), prefix: owned(prefix), suffix: owned(suffix) }
    };
    tls.client_names = vec![
        name(ClientNameKind::Dns, Some("One.example"), None, None),
        name(ClientNameKind::Dns, None, None, Some(".two.example")),
        name(ClientNameKind::Uri, None, Some("spiffe://old.example/ns/shop/"), None),
    ];
    tls.mesh_clients = true;
    let pair = Pair::one_hop_with(Targets::all(app.addr), only_first(tls)).await;
    let http = pair.port("http");
    let shop = "spiffe://old.example/ns/shop/sa/a";
    let cases: [(&[&str], &[&str], bool); 10] = [
        (&["one.example"], &[], true),
        (&["x.example", "ONE.example"], &[], true),
        (&["a.one.example"], &[], false),
        (&["a.two.example"], &[], true),
        (&["two.example"], &[], false),
        (&["*.two.example"], &[], true),
        (&["x.example"], &[shop], true),
        (&[], &["SPIFFE://old.example/ns/shop/sa/a"], false),
        (&[], &["spiffe://old.example/ns/other/sa/a", "one.example"], false),
        (&[], &[], false),
    ];
    for (names, uris, comes) in cases {
        let leaf = clients.leaf_of(names, uris);
        let answer = over_http1(http, ca.client(&[], Some(&leaf))).await;
        assert_eq!(answer.is_ok(), comes, "{names:?} {uris:?}: {answer:?}");
    }
    // Of another CA a name is nothing.
    over_http1(http, ca.client(&[], Some(&ca.leaf(&["one.example"])))).await.unwrap_err();
    // The mesh has names of its own.
    let moved = pair.authority.workload("moved");
    let shows = (moved.chain.clone(), moved.key.clone_key());
    let config = ca.client_with(rustls::ALL_VERSIONS, &[], Some(shows));
    over_http1(http, config).await.unwrap();
    counted(&pair, DOOR, "ok", 5).await;
    counted(&pair, DOOR, "mesh", 1).await;
    counted(&pair, DOOR, "certificate", 6).await;
}
