//! What of rules Gateway API has no words for.

use mesh_api::v1;

use super::{rules::changes, services::routed};
use crate::wire::{MAX_CONDITIONAL, MAX_MATCH_TEXT, MAX_MATCHES, MAX_NETWORKS, MAX_REPLY};

pub(super) fn extension() -> v1::RouteExtension {
    let template = v1::Header { name: "x-client".into(), value: "%{client_ip} 100%%".into() };
    v1::RouteExtension {
        also: vec![v1::RouteMatch { method: "PUT".into(), ..Default::default() }],
        unless: vec![v1::RouteMatch::default(), v1::RouteMatch::default()],
        sources: vec!["10.0.0.0/8".into(), "::1/128".into()],
        not_sources: vec!["10.1.0.0/16".into()],
        reply: Some(v1::Reply {
            status: 299,
            headers: vec![v1::Header { name: "x-said".into(), value: "v w".into() }],
            body: "two\nlines".into(),
            templates: false,
        }),
        rewrite: Some(v1::PatternRewrite {
            pattern: "^/(a)".into(),
            substitution: "/$1".into(),
            all: true,
        }),
        strip_query: true,
        request_headers: Some(v1::HeaderChanges { set: vec![template], ..changes() }),
        response_headers: Some(changes()),
        conditional_headers: vec![v1::ConditionalHeaders {
            also: vec![v1::RouteMatch { method: "PUT".into(), ..Default::default() }],
            unless: vec![v1::RouteMatch::default()],
            sources: vec!["10.0.0.0/8".into()],
            not_sources: vec!["10.1.0.0/16".into()],
            request_headers: Some(changes()),
        }],
    }
}

/// What extensions of rules may not say.
#[test]
fn extensions_that_mean_nothing() {
    let extended = |change: &dyn Fn(&mut v1::RouteExtension)| {
        let mut one = extension();
        change(&mut one);
        routed(&move |route| route.extension = Some(one.clone()))
    };
    let header = |name: &str, value: &str| v1::Header { name: name.into(), value: value.into() };
    let set = |name: &str, value: &str| {
        let set = vec![header(name, value)];
        Some(v1::HeaderChanges { set, ..Default::default() })
    };
    let reply = |change: &dyn Fn(&mut v1::Reply)| {
        extended(&move |e| e.reply.as_mut().into_iter().for_each(change))
    };
    let rewrite = |change: fn(&mut v1::PatternRewrite)| {
        extended(&move |e| e.rewrite.as_mut().into_iter().for_each(change))
    };
    assert!(extended(&|_| ()).is_ok());
    let nothing = routed(&|route| route.extension = Some(v1::RouteExtension::default()));
    assert_eq!(nothing.unwrap().routes[0].extension, None);
    let made = |change: fn(&mut v1::Reply)| {
        reply(&move |r| {
            (r.templates, r.body) = (true, "%{path} 100%%\nat %{host|lower}".into());
            r.headers = vec![v1::Header { name: "x".into(), value: "%{query:a}".into() }];
            change(r);
        })
    };
    assert!(made(|_| ()).is_ok());
    let named = |name: &str| {
        let header = v1::HeaderMatch { name: name.into(), ..Default::default() };
        extended(&move |e| e.also[0].headers = vec![header.clone()])
    };
    assert!(named("%{host}%{path|s~a~b~}").is_ok());
    let cases = [
        ("reply.body", made(|r| r.body = "%{none}".into())),
        ("reply.headers", made(|r| r.headers[0].value = "%{path|upper}".into())),
        ("matches.headers", named("%{client_ip}")),
        ("matches.headers", named("%{path}%{forwarded_for}")),
        ("matches.headers", named("%{none}")),
        ("matches.headers", named(&format!("%{{path}}{}", "a".repeat(MAX_MATCH_TEXT)))),
        ("sources", extended(&|e| e.sources = vec!["10.0.0.0/33".into()])),
        ("not_sources", extended(&|e| e.not_sources = vec!["here".into()])),
        ("sources", extended(&|e| e.sources = vec!["::1".into(); MAX_NETWORKS + 1])),
        ("unless", extended(&|e| e.unless = vec![v1::RouteMatch::default(); MAX_MATCHES + 1])),
        ("matches.method", extended(&|e| e.also[0].method = "G T".into())),
        ("reply.status", reply(&|r| r.status = 199)),
        ("reply.status", reply(&|r| r.status = 600)),
        ("reply.headers", reply(&|r| r.headers[0].name = "content-length".into())),
        ("reply.headers", reply(&|r| r.headers[0].value = "a\nb".into())),
        ("reply.body", reply(&|r| r.body = "x".repeat(MAX_REPLY + 1))),
        ("rewrite.pattern", rewrite(|r| r.pattern = "(".into())),
        ("rewrite", rewrite(|r| r.substitution = "$2".into())),
        ("rewrite.substitution", rewrite(|r| r.substitution = "x".repeat(MAX_MATCH_TEXT + 1))),
        ("request_headers", extended(&|e| e.request_headers = set("x-a", "%{nobody}"))),
        ("request_headers", extended(&|e| e.request_headers = set("host", "a"))),
        ("response_headers", extended(&|e| e.response_headers = set("isthmus-error", "a"))),
    ];
    for (field, result) in cases {
        assert_eq!(result.expect_err(field).field, field);
    }
    assert!(reply(&|r| r.body = "x".repeat(MAX_REPLY)).is_ok());
}

/// What conditional changes of headers may not say.
#[test]
fn conditional_headers_that_mean_nothing() {
    let extended = |change: &dyn Fn(&mut v1::RouteExtension)| {
        let mut one = extension();
        change(&mut one);
        routed(&move |route| route.extension = Some(one.clone()))
    };
    let many = |n| extended(&move |e| e.conditional_headers = vec![Default::default(); n]);
    assert!(many(MAX_CONDITIONAL).is_ok());
    let value = v1::Header { name: "x-a".into(), value: "%{nobody}".into() };
    let set = v1::HeaderChanges { set: vec![value], ..Default::default() };
    let cases = [
        ("conditional_headers", many(MAX_CONDITIONAL + 1)),
        (
            "conditional_headers.sources",
            extended(&|e| e.conditional_headers[0].sources[0] = "here".into()),
        ),
        (
            "conditional_headers.request_headers",
            extended(&|e| e.conditional_headers[0].request_headers = Some(set.clone())),
        ),
    ];
    for (field, result) in cases {
        assert_eq!(result.expect_err(field).field, field);
    }
}
