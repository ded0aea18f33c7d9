use http::{HeaderName, HeaderValue, StatusCode};

use super::{super::*, BadRewrite, Target};
use crate::message::RequestHead;

fn head(authority: &str, target: &str) -> RequestHead {
    let mut head = RequestHead::new();
    head.authority.push_str(authority);
    head.target.push_str(target);
    head
}

fn prefix(path: &str) -> RouteMatch {
    RouteMatch { path: Some(PathMatch::Prefix(path.into())), ..RouteMatch::default() }
}

fn field(name: &str, value: &str) -> (HeaderName, HeaderValue) {
    (name.parse().unwrap(), value.parse().unwrap())
}

#[test]
fn headers_are_set_then_added_then_removed() {
    let changes = HeaderChanges {
        set: vec![field("x-set", "new"), field("x-fresh", "1")],
        add: vec![field("x-add", "two"), field("x-gone", "again")],
        remove: vec!["x-gone".parse().unwrap(), "x-absent".parse().unwrap()],
    };
    let mut fields = crate::message::Fields::new();
    for (name, value) in
        [("X-Set", "a"), ("x-set", "b"), ("x-add", "one"), ("X-Gone", "1"), ("x-kept", "k")]
    {
        fields.push(name, value.as_bytes());
    }
    changes.apply(&mut fields);
    let values = |name: &str| -> Vec<String> {
        fields.all(name).map(|value| String::from_utf8_lossy(value).into_owned()).collect()
    };
    assert_eq!(values("x-set"), ["new"]);
    assert_eq!(values("x-fresh"), ["1"]);
    assert_eq!(values("x-add"), ["one", "two"]);
    assert_eq!(values("x-gone"), [""; 0]);
    assert_eq!(values("x-kept"), ["k"]);
}

#[test]
fn any_change_is_a_change() {
    let (set, add) = (vec![field("x-a", "1")], vec![field("x-b", "2")]);
    let remove = vec!["x-c".parse().unwrap()];
    let none = HeaderChanges::default();
    assert!(none.is_empty());
    let cases = [
        HeaderChanges { set, ..none.clone() },
        HeaderChanges { add, ..none.clone() },
        HeaderChanges { remove, ..none },
    ];
    for changes in cases {
        assert!(!changes.is_empty(), "{changes:?}");
    }
}

/// The table of Gateway API's HTTPPathModifier.
#[test]
fn prefixes_are_replaced_as_gateway_api_says() {
    let cases = [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/a/b", "/", "/x", "/x/a/b"),
    ];
    for (path, matched, replacement, wanted) in cases {
        let change = PathChange::Prefix(replacement.into());
        assert_eq!(change.of(path, Some(&prefix(matched))), wanted, "{path} {matched}");
    }
    assert_eq!(PathChange::Full("/whole".into()).of("/a/b", None), "/whole");
}

#[test]
fn rewrites_keep_the_query() {
    let rewrite = Rewrite {
        hostname: Some("other.example".into()),
        path: Some(PathChange::Prefix("/new".into())),
    };
    let mut head = head("orders.shop:80", "/old/x?a=/b");
    rewrite.apply(&mut head, Some(&prefix("/old")));
    assert_eq!((head.authority.as_str(), head.target.as_str()), ("other.example", "/new/x?a=/b"));
    Rewrite::default().apply(&mut head, None);
    assert_eq!((head.authority.as_str(), head.target.as_str()), ("other.example", "/new/x?a=/b"));
}

#[test]
fn redirects_name_the_place() {
    let called = Target { scheme: "http", port: 80 };
    let other = Target { scheme: "http", port: 8080 };
    let plain = Redirect {
        scheme: None,
        hostname: None,
        path: None,
        port: None,
        status: StatusCode::FOUND,
    };
    let https = Redirect { scheme: Some("https".into()), ..plain.clone() };
    let cases = [
        (plain.clone(), called, "orders.shop", "http://orders.shop/a?b"),
        (plain.clone(), other, "orders.shop", "http://orders.shop:8080/a?b"),
        (plain.clone(), called, "orders.shop:81", "http://orders.shop:81/a?b"),
        (plain.clone(), called, "[::1]", "http://[::1]/a?b"),
        (plain.clone(), other, "", "/a?b"),
        (plain.clone(), called, "[::1]:82", "http://[::1]:82/a?b"),
        (https.clone(), other, "orders.shop:8080", "https://orders.shop/a?b"),
        (Redirect { port: Some(8443), ..https }, called, "x.y", "https://x.y:8443/a?b"),
        (Redirect { port: Some(80), ..plain.clone() }, other, "x.y", "http://x.y/a?b"),
        (
            Redirect {
                hostname: Some("z.w".into()),
                path: Some(PathChange::Full("/c".into())),
                ..plain.clone()
            },
            called,
            "x.y",
            "http://z.w/c?b",
        ),
    ];
    for (redirect, called, authority, wanted) in cases {
        let answer = redirect.answer(&head(authority, "/a?b"), None, called, None);
        assert_eq!(answer, Ok((StatusCode::FOUND, wanted.to_owned())));
    }
    let rewrite = |to| Extension {
        rewrite: Some(PathPattern::new("^/a", to, false).unwrap()),
        strip_query: true,
        ..Extension::default()
    };
    let answer =
        |more: &Extension| plain.answer(&head("orders.shop", "/abc?d"), None, called, Some(more));
    let wanted = "http://orders.shop/xbc".to_owned();
    assert_eq!(answer(&rewrite("/x")), Ok((StatusCode::FOUND, wanted)));
    assert_eq!(answer(&rewrite("x")), Err(BadRewrite::Target));
}

#[test]
fn fractions_take_their_part() {
    let taken = |fraction: Fraction| {
        const POINTS: u64 = 10_000;
        (0..POINTS).filter(|i| fraction.takes(i * (u64::MAX / POINTS))).count()
    };
    assert_eq!(taken(Fraction::ALL), 10_000);
    assert_eq!(taken(Fraction { numerator: 0, denominator: 100 }), 0);
    assert!(taken(Fraction { numerator: 25, denominator: 100 }).abs_diff(2500) <= 1);
    assert!(taken(Fraction { numerator: 1, denominator: 1000 }).abs_diff(10) <= 1);
}

#[test]
fn repetitions_wait_longer_each_time_up_to_a_limit() {
    let retry = RetryPolicy {
        attempts: 5,
        statuses: vec![502..=503],
        grpc_codes: vec![14],
        any_method: false,
        answers_only: false,
        backoff: Duration::from_millis(20),
        max_backoff: Duration::from_millis(100),
    };
    let least = [0, 1, 2, 3, 40].map(|n| retry.wait(n, 0).as_millis());
    assert_eq!(least, [10, 20, 40, 50, 50]);
    let most = [0, 1, 2, 3, 40].map(|n| retry.wait(n, u64::MAX).as_micros());
    assert_eq!(most, [19_999, 39_999, 79_999, 99_999, 99_999], "jitter never exceeds the limit");
    let repeats = [501, 502, 503, 504].map(|s| retry.repeats(StatusCode::from_u16(s).unwrap()));
    assert_eq!(repeats, [false, true, true, false]);
}

#[test]
fn failures_are_5xx_unless_told() {
    let told = [404..=404, 503..=599];
    let cases: [(&[_], u16, Option<u32>, bool); 10] = [
        (&[], 404, None, false),
        (&[], 500, None, true),
        (&[], 599, None, true),
        (&told, 404, None, true),
        (&told, 500, None, false),
        (&told, 503, None, true),
        (&[], 200, Some(0), false),
        (&[], 200, Some(5), false),
        (&[], 200, Some(14), true),
        (&told, 200, Some(13), true),
    ];
    for (failures, status, grpc, wanted) in cases {
        let found = is_failure(failures, StatusCode::from_u16(status).unwrap(), grpc);
        assert_eq!(found, wanted, "{failures:?} {status} {grpc:?}");
    }
}
