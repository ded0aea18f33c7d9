use crate::{
    decide::decide,
    ledger::{Ledger, Verdict},
    nginx::{
        convert,
        tests::{config, get},
    },
    program::{Program, ServerTls, TlsVersion},
    request::Outcome,
};

fn converted(servers: &str) -> (Program, Ledger) {
    convert(&config(&format!("http {{ {servers} }}"))).unwrap()
}

fn tls(program: &Program) -> &ServerTls {
    program.listeners[0].tls.as_ref().unwrap()
}

/// `file names` of each certificate beside the first.
fn more(tls: &ServerTls) -> Vec<String> {
    let all = tls.more.iter();
    all.map(|one| format!("{} {} {}", one.certificate, one.key, one.names.join(","))).collect()
}

fn asked(ledger: &Ledger, words: &str) -> bool {
    ledger.entries().iter().any(|entry| match &entry.verdict {
        Verdict::Decision { question, .. } => question.contains(words),
        _ => false,
    })
}

fn status(program: &Program, host: &str) -> u16 {
    match decide(program, &get("10.0.0.1:443", host, "/")).outcome {
        Outcome::Answered { status, .. } => status,
        _ => 0,
    }
}

fn server(more: &str) -> String {
    format!("server {{ listen 10.0.0.1:443 ssl; {more} return 200; }}\n")
}

fn keys(name: &str) -> String {
    format!("ssl_certificate /{name}.pem; ssl_certificate_key /{name}.key;")
}

#[test]
fn each_server_has_the_certificate_of_its_names() {
    let servers = [
        server(&format!("server_name a.example .both.example; {}", keys("a"))),
        server(&format!("server_name b.example *.b.example both.example; {}", keys("b"))),
        // RSA and ECDSA.
        server(&format!("server_name c.example _ \"\"; {} {}", keys("c"), keys("c2"))),
        server(&format!("server_name d.* ~^e; {}", keys("d"))),
    ];
    let (program, ledger) = converted(&servers.concat());
    let tls = tls(&program);
    assert_eq!((&*tls.certificate, &*tls.key), ("/a.pem", "/a.key"));
    let wanted = [
        "/a.pem /a.key a.example,both.example,*.both.example",
        "/b.pem /b.key b.example,*.b.example",
        "/c.pem /c.key c.example",
        "/c2.pem /c2.key c.example",
    ];
    assert_eq!(more(tls), wanted);
    assert!(!tls.only_known_names && tls.client_roots.is_none() && tls.crl.is_none());
    assert!(asked(&ledger, "and not for patterns"));
    let exact = |entry: &crate::ledger::Entry| matches!(entry.verdict, Verdict::Exact);
    let of = ledger.entries();
    assert!(of.iter().filter(|entry| exact(entry)).any(|entry| entry.place.line == 2));

    // One for all is one.
    let servers = [server("server_name a.example;"), server("server_name b.example;")];
    let (program, _) = converted(&format!("{} {}", keys("a"), servers.concat()));
    assert_eq!(more(self::tls(&program)), [""; 0]);
}

#[test]
fn a_server_that_rejects_leaves_only_known_names() {
    let rejects = "server { listen 10.0.0.1:443 ssl default_server; ssl_reject_handshake on; }";
    let named = server(&format!("server_name a.example; {}", keys("a")));
    let (program, _) = converted(&format!("{rejects} {named}"));
    let tls = tls(&program);
    assert!(tls.only_known_names);
    assert_eq!(tls.certificate, "/a.pem");
    assert_eq!(more(tls), ["/a.pem /a.key a.example"]);
    assert_eq!(tls.names, ["a.example"]);
}

#[test]
fn versions_and_protocols_are_carried() {
    use TlsVersion::{Tls12, Tls13};
    for (directives, versions, has_http2) in [
        ("", vec![], false),
        ("ssl_protocols TLSv1 TLSv1.2;", vec![Tls12], false),
        ("ssl_protocols TLSv1.2 TLSv1.3; http2 on;", vec![], true),
        ("ssl_protocols TLSv1.3;", vec![Tls13], false),
        ("ssl_protocols TLSv1.1;", vec![], false),
        ("listen 10.0.0.1:443 ssl http2;", vec![], true),
    ] {
        let (program, _) = converted(&server(&format!("{} {directives}", keys("a"))));
        let tls = tls(&program);
        assert_eq!((&tls.versions, tls.alpn.is_none()), (&versions, has_http2), "{directives}");
    }
}

#[test]
fn what_is_in_no_file_is_asked_about() {
    let named = server("ssl_certificate /$ssl_server_name.pem; ssl_certificate_key /k;");
    let (program, ledger) = converted(&named);
    // The listener would be in plaintext: what is written of it says that.
    assert_eq!(tls(&program).certificate, "");
    assert!(asked(&ledger, "in no file of this name"));
}

#[test]
fn clients_are_never_asked_for_less() {
    let asks = "ssl_verify_client on; ssl_client_certificate /ca.pem; ssl_crl /ca.crl;";
    let open = server(&format!("server_name open.example; {}", keys("a")));
    let closed = server(&format!("server_name closed.example; {asks} {}", keys("a")));
    // Everybody is asked for what the first server wants.
    let (program, ledger) = converted(&format!("{closed} {open}"));
    assert_eq!(tls(&program).client_roots.as_deref(), Some("/ca.pem"));
    assert_eq!(tls(&program).crl.as_deref(), Some("/ca.crl"));
    assert_eq!((status(&program, "closed.example"), status(&program, "open.example")), (200, 200));
    assert!(!asked(&ledger, "refused (403)"));
    // Where it wants nothing, who must show something is not served.
    let (program, ledger) = converted(&format!("{open} {closed}"));
    assert_eq!(tls(&program).client_roots, None);
    assert_eq!((status(&program, "closed.example"), status(&program, "open.example")), (403, 200));
    assert!(asked(&ledger, "refused (403)"));
    // Another CA, and another list.
    for other in ["/ca.pem; ssl_crl /other.crl", "/other.pem; ssl_crl /ca.crl", "/ca.pem"] {
        let asks = format!("ssl_verify_client on; ssl_client_certificate {other};");
        let other = server(&format!("server_name other.example; {asks} {}", keys("a")));
        let (program, _) = converted(&format!("{closed} {other}"));
        assert_eq!(status(&program, "other.example"), 403, "{asks}");
    }
    // Without roots nobody is let in.
    let (program, _) = converted(&server(&format!("ssl_verify_client on; {}", keys("a"))));
    assert_eq!(tls(&program).client_roots.as_deref(), Some(""));
}

#[test]
fn connections_too() {
    let stream = format!(
        "stream {{ server {{ listen 10.0.0.1:443 ssl; {} ssl_verify_client on; \
         ssl_client_certificate /ca.pem; ssl_crl /ca.crl; proxy_pass 10.0.0.2:1; }} }}",
        keys("a")
    );
    let (program, _) = convert(&config(&stream)).unwrap();
    let tls = tls(&program);
    let clients = (tls.client_roots.as_deref(), tls.crl.as_deref());
    assert_eq!(clients, (Some("/ca.pem"), Some("/ca.crl")));
    let stream = stream.replace("ssl_client_certificate /ca.pem;", "");
    let (program, _) = convert(&config(&stream)).unwrap();
    assert_eq!(self::tls(&program).client_roots.as_deref(), Some(""));
}
