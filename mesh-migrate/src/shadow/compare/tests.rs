use super::*;

fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Observation {
    let headers = headers.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    Observation::Answer(Observed {
        status,
        headers: headers.collect(),
        body: Digest::of(body.as_bytes()),
        took: Duration::from_millis(5),
    })
}

fn none(why: &str) -> Observation {
    Observation::NoAnswer(why.into())
}

fn pair<'a>(legacy: &'a Observation, ours: &'a Observation) -> Pair<'a> {
    Pair { legacy, again: None, ours, backends: (None, None) }
}

fn causes(pair: &Pair<'_>) -> Vec<Cause> {
    let found = compare(pair, &Rules::default()).differences;
    found.into_iter().map(|difference| difference.cause).collect()
}

fn header(name: &str) -> Cause {
    Cause::Header(name.into())
}

#[test]
fn differences_are_found() {
    let plain = answer(200, &[("Content-Type", "text/plain"), ("Vary", "a")], "hi");
    let table = [
        (answer(200, &[("content-type", " text/plain "), ("VARY", "a")], "hi"), vec![]),
        (answer(404, &[], "no"), vec![Cause::Status(200, 404)]),
        (answer(200, &[("content-type", "text/plain"), ("vary", "a")], "ho"), vec![Cause::Body]),
        (
            answer(200, &[("content-type", "text/html")], "hi"),
            vec![header("content-type"), header("vary")],
        ),
        (
            answer(200, &[("content-type", "text/plain"), ("vary", "a"), ("x-a", "1")], ""),
            vec![header("x-a"), Cause::Body],
        ),
        (none("timeout"), vec![Cause::NoAnswer { who: Who::Ours, why: "timeout".into() }]),
    ];
    for (ours, expected) in &table {
        assert_eq!(causes(&pair(&plain, ours)), *expected, "{ours:?}");
    }
    let refused = none("refused");
    let cause = Cause::NoAnswer { who: Who::Legacy, why: "refused".into() };
    assert_eq!(causes(&pair(&refused, &plain)), [cause]);
    assert_eq!(causes(&pair(&refused, &none("timeout"))), []);
}

#[test]
fn some_headers_may_differ() {
    let legacy = [
        ("Date", "1"),
        ("Server", "nginx"),
        ("Via", "1.1 linkerd"),
        ("l5d-success-class", "1.0"),
        ("x-envoy-upstream-service-time", "3"),
        ("Content-Length", "2"),
        ("Connection", "close"),
    ];
    let ours = [("date", "2"), ("isthmus-x", "y"), ("transfer-encoding", "chunked"), ("Age", "0")];
    assert_eq!(causes(&pair(&answer(200, &legacy, "hi"), &answer(200, &ours, "hi"))), []);
    // An application that shows what it got is heard.
    let (legacy, ours) = (answer(200, &[], ""), answer(200, &[("X-Forwarded-For", "a")], ""));
    assert_eq!(causes(&pair(&legacy, &ours)), [header("x-forwarded-for")]);
    let mut rules = Rules::default();
    rules.ignore_headers.insert("x-forwarded-*".into());
    assert_eq!(compare(&pair(&legacy, &ours), &rules).differences, []);
}

#[test]
fn a_length_without_a_body_is_compared() {
    let length = |length, body| answer(200, &[("content-length", length)], body);
    let head = pair(&length("2", ""), &length("3", "")).ours.clone();
    assert_eq!(causes(&pair(&length("2", ""), &head)), [header("content-length")]);
    assert_eq!(causes(&pair(&length("2", ""), &answer(200, &[], ""))), []);
    assert_eq!(causes(&pair(&length("2", "hi"), &length("02", "hi"))), []);
}

#[test]
fn lines_of_one_name_are_a_list() {
    let one = answer(200, &[("Vary", "a, b"), ("Set-Cookie", "a=1"), ("set-cookie", "b=2")], "");
    let two = answer(
        200,
        &[("vary", "a"), ("Set-Cookie", "a=1"), ("VARY", "b"), ("set-cookie", "b=2")],
        "",
    );
    assert_eq!(causes(&pair(&one, &two)), []);
    let joined = answer(200, &[("vary", "a, b"), ("Set-Cookie", "a=1, b=2")], "");
    assert_eq!(causes(&pair(&one, &joined)), [header("set-cookie")]);
    let other = answer(200, &[("vary", "b, a"), ("Set-Cookie", "a=1"), ("set-cookie", "b=2")], "");
    assert_eq!(causes(&pair(&one, &other)), [header("vary")]);
}

#[test]
fn what_the_legacy_proxy_does_not_repeat_is_no_difference() {
    let legacy = answer(200, &[("x-id", "1"), ("etag", "a")], "12:00");
    let again = answer(200, &[("x-id", "2"), ("etag", "a")], "12:01");
    let ours = answer(200, &[("x-id", "3"), ("etag", "b")], "12:02");
    let asked = Pair { again: Some(&again), ..pair(&legacy, &ours) };
    assert_eq!(causes(&asked), [header("etag")]);
    assert_eq!(causes(&pair(&legacy, &ours)), [header("etag"), header("x-id"), Cause::Body]);
    // A second time without an answer says nothing about headers.
    let (refused, busy, gone) = (none("refused"), answer(503, &[], "busy"), answer(410, &[], ""));
    let statuses = [
        (&legacy, &busy, &busy, vec![]),
        (&legacy, &busy, &ours, vec![]),
        (&legacy, &busy, &gone, vec![Cause::Status(200, 410)]),
        (&legacy, &refused, &refused, vec![]),
        (&refused, &busy, &busy, vec![]),
        (&busy, &busy, &refused, vec![Cause::NoAnswer { who: Who::Ours, why: "refused".into() }]),
    ];
    for (legacy, again, ours, expected) in statuses {
        let asked = Pair { again: Some(again), ..pair(legacy, ours) };
        assert_eq!(causes(&asked), expected, "{asked:?}");
    }
}

#[test]
fn backends_are_compared_where_both_are_known() {
    let same = answer(200, &[], "");
    let with = |backends| Pair { backends, ..pair(&same, &same) };
    let differs = with((Some("blue"), Some("green")));
    assert_eq!(causes(&differs), [Cause::Backend("blue".into(), "green".into())]);
    assert_eq!(causes(&with((Some("blue"), Some("blue")))), []);
    assert_eq!(causes(&with((Some("blue"), None))), []);
    assert_eq!(causes(&with((None, Some("blue")))), []);
    let rules = Rules { ignore_backend: true, ..Rules::default() };
    assert_eq!(compare(&differs, &rules).differences, []);
}

#[test]
fn differences_are_shown() {
    let legacy = answer(502, &[("L5d-Err", "no\u{1b}route")], "");
    let ours = answer(503, &[("isthmus-error", "no_endpoint")], "");
    let found = compare(&pair(&legacy, &ours), &Rules::default()).differences;
    assert_eq!(found[0].legacy, "502 (no\u{fffd}route)");
    assert_eq!(found[0].ours, "503 (no_endpoint)");
    let long = "é".repeat(1000);
    let legacy = answer(200, &[("x-long", &long), ("set-cookie", "session=1")], "hi");
    let found = compare(&pair(&legacy, &answer(200, &[], "")), &Rules::default()).differences;
    let shown: Vec<_> = found.iter().map(|f| (f.legacy.as_str(), f.ours.as_str())).collect();
    let (cookie, long) = (shown[0], shown[1]);
    assert_eq!(cookie, ("not shown", "none"));
    assert_eq!(long, (format!("{}…", "é".repeat(MAX_SHOWN / 2)).as_str(), "none"));
    assert!(shown[2].0.starts_with("2 bytes, ") && shown[2].1.starts_with("0 bytes, "));
}

#[test]
fn a_digest_does_not_depend_on_chunks() {
    let bytes: Vec<u8> = (0..1000_u32).map(|n| (n * 7 % 251) as u8).collect();
    for size in [1, 3, 8, 999, 1000] {
        let mut digest = Digest::default();
        bytes.chunks(size).for_each(|chunk| digest.add(chunk));
        assert_eq!(digest, Digest::of(&bytes));
        assert_eq!(digest.length(), 1000);
    }
    // As the authors of FNV publish it.
    assert_eq!(Digest::of(b"foobar").hash, 0x8594_4171_f739_67e8);
    assert_ne!(Digest::of(b"\0"), Digest::of(b"\0\0"));
}
