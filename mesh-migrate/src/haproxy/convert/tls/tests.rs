use crate::{
    haproxy::{Outside, convert, read},
    ledger::{Ledger, Verdict},
    program::{ServerTls, TlsVersion},
    source::{Place, Problem, Source},
};

const LIST: &str = "# of names\n\
    x.pem\n\
    /y.pem [alpn h2] Y.example *.y.example !z.y.example\n\
    z.pem * 10.0.0.1\n";

fn converted(globals: &str, bind: &str) -> (ServerTls, Ledger) {
    let text = format!(
        "global\n {globals}\nfrontend f\n mode http\n bind 10.0.0.1:443 {bind}\n default_backend b\n\
         backend b\n mode http\n server s 10.0.0.2:80 ssl verify required ca-file s.pem\n"
    );
    let file = |name: &str| match name {
        "names.list" => Ok(Source::of(name, LIST)),
        "asking.list" => Ok(Source::of(name, "a.pem [verify required ca-file b.pem] a.example\n")),
        _ => Err(Problem::at(&Place::start(&name.into()), "is not there")),
    };
    let outside = Outside { file: &file, variable: &|_| None };
    let config = read(&[Source::of("haproxy.cfg", &text)], &outside).unwrap();
    let (program, ledger) = convert(&config);
    let roots = program.pools["b"].tls.as_ref().unwrap().roots.clone().unwrap();
    let based = globals.contains("ca-base");
    assert_eq!(roots, if based { "/ca/s.pem" } else { "s.pem" });
    (program.listeners[0].tls.clone().unwrap(), ledger)
}

fn more(tls: &ServerTls) -> Vec<String> {
    tls.more.iter().map(|one| format!("{} {}", one.certificate, one.names.join(","))).collect()
}

fn said(ledger: &Ledger, words: &str) -> bool {
    ledger.entries().iter().any(|entry| match &entry.verdict {
        Verdict::Decision { question: said, .. } | Verdict::Approximated { how: said } => {
            said.contains(words)
        }
        Verdict::Exact | Verdict::Dropped { .. } => false,
    })
}

#[test]
fn all_certificates_are_taken_in_their_order() {
    let bind = "ssl crt a.pem crt /certs/ crt-list names.list crt b.pem strict-sni";
    let (tls, ledger) = converted("crt-base /base/", bind);
    assert_eq!((&*tls.certificate, &*tls.key), ("/base/a.pem", "/base/a.pem"));
    let wanted = ["/certs/ ", "/base/x.pem ", "/y.pem y.example,*.y.example", "/base/b.pem "];
    assert_eq!(more(&tls), wanted);
    assert!(tls.only_known_names && tls.client_roots.is_none());
    for words in ["any depth", "names with !", "no client asks for *, 10.0.0.1", "own parameters"] {
        assert!(said(&ledger, words), "{words}");
    }
    // The first of a list is for its names, too.
    let (tls, _) = converted("", "ssl crt-list names.list");
    assert_eq!((&*tls.certificate, tls.more.len()), ("x.pem", 1));
    let (tls, ledger) = converted("", "ssl crt-list gone.list");
    assert_eq!((&*tls.certificate, tls.more.len()), ("", 0));
    assert!(said(&ledger, "no certificate is taken from gone.list"));
}

#[test]
fn versions_and_protocols_are_carried() {
    use TlsVersion::{Tls12, Tls13};
    let least = "ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets";
    for (global, bind, versions) in [
        ("", "", vec![]),
        ("", "ssl-min-ver TLSv1.3", vec![Tls13]),
        ("", "ssl-max-ver TLSv1.2", vec![Tls12]),
        ("", "force-tlsv13", vec![Tls13]),
        ("", "no-tlsv13", vec![Tls12]),
        ("", "ssl-max-ver TLSv1.1", vec![Tls12]),
        (least, "", vec![Tls13]),
        (least, "ssl-min-ver TLSv1.2", vec![]),
    ] {
        let (tls, _) = converted(global, &format!("ssl crt a.pem {bind}"));
        assert_eq!(tls.versions, versions, "{global} {bind}");
    }
    for (bind, alpn) in [
        ("", None),
        ("alpn h2,http/1.1", Some(vec!["h2", "http/1.1"])),
        ("alpn http/1.1,http/1.0", Some(vec!["http/1.1"])),
        ("no-alpn", Some(vec![])),
    ] {
        let (tls, _) = converted("", &format!("ssl crt a.pem {bind}"));
        let alpn = alpn.map(|all| all.into_iter().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(tls.alpn, alpn, "{bind}");
    }
}

#[test]
fn clients_are_never_asked_for_less() {
    let clients = |tls: &ServerTls| (tls.client_roots.clone(), tls.crl.clone());
    let some = |text: &str| Some(text.to_owned());
    let asks = "ssl crt a.pem verify required ca-file c.pem crl-file c.crl";
    let (tls, _) = converted("ca-base /ca", asks);
    assert_eq!(clients(&tls), (some("/ca/c.pem"), some("/ca/c.crl")));
    let (tls, _) = converted("", "ssl crt a.pem verify none ca-file c.pem crl-file c.crl");
    assert_eq!(clients(&tls), (None, None));
    // Nobody is let in until it is said.
    let (tls, _) = converted("", "ssl crt a.pem verify required");
    assert_eq!(clients(&tls), (some(""), None));
    let (tls, ledger) = converted("", "ssl crt a.pem crt-list asking.list");
    assert_eq!(clients(&tls), (some(""), None));
    assert!(said(&ledger, "asking.list, line 1: clients that ask for some names"));
}
