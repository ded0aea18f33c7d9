use http::Method;
use proptest::prelude::*;

use super::{
    super::{extension::Conditions, *},
    NothingMatches, Precedence,
};
use crate::message::RequestHead;

fn head(method: &str, target: &str, fields: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead::new();
    head.method = Method::from_bytes(method.as_bytes()).unwrap();
    head.target.push_str(target);
    for (name, value) in fields {
        head.fields.push(name, value.as_bytes());
    }
    head
}

fn get(target: &str) -> RequestHead {
    head("GET", target, &[])
}

fn exact(path: &str) -> RouteMatch {
    RouteMatch { path: Some(PathMatch::Exact(path.into())), ..RouteMatch::default() }
}

fn prefix(path: &str) -> RouteMatch {
    RouteMatch { path: Some(PathMatch::Prefix(path.into())), ..RouteMatch::default() }
}

fn regex(path: &str) -> RouteMatch {
    let pattern = Pattern::new(path).unwrap();
    RouteMatch { path: Some(PathMatch::Regex(pattern)), ..RouteMatch::default() }
}

fn with_headers(one: RouteMatch, headers: &[(&str, &str)]) -> RouteMatch {
    let header = |(name, value): &(&str, &str)| {
        (name.parse().unwrap(), TextMatch::Exact(value.as_bytes().into()))
    };
    RouteMatch { headers: headers.iter().map(header).collect(), ..one }
}

fn with_query(one: RouteMatch, query: &[(&str, &str)]) -> RouteMatch {
    let parameter =
        |(name, value): &(&str, &str)| ((*name).into(), TextMatch::Exact(value.as_bytes().into()));
    RouteMatch { query: query.iter().map(parameter).collect(), ..one }
}

fn rule(name: &str, matches: Vec<RouteMatch>) -> Route {
    Route { name: name.into(), matches, ..Route::default() }
}

/// The name of the rule that a request to `http` by `from` falls under.
fn found(rules: &Routes, from: Option<&str>, head: Option<&RequestHead>) -> String {
    match rules.find(&"http".parse().unwrap(), from, head) {
        Ok(Some((rule, _))) => rule.name.to_string(),
        Ok(None) => "itself".into(),
        Err(NothingMatches) => "nothing".into(),
    }
}

#[test]
fn the_most_specific_match_wins_whatever_the_order() {
    let method = RouteMatch { method: Some(Method::POST), ..prefix("/a") };
    let rules = vec![
        rule("everything", vec![]),
        rule("short", vec![prefix("/a")]),
        rule("long", vec![prefix("/a/b")]),
        rule("pattern", vec![regex("/a/b/[0-9]+")]),
        rule("exact", vec![exact("/a/b")]),
        rule("method", vec![method]),
        rule("header", vec![with_headers(prefix("/a"), &[("x-a", "1")])]),
        rule("headers", vec![with_headers(prefix("/a"), &[("x-a", "1"), ("x-b", "2")])]),
        rule("query", vec![with_query(prefix("/a"), &[("q", "1")])]),
    ];
    let cases = [
        (get("/"), "everything"),
        (get("/a"), "short"),
        (get("/ab"), "everything"),
        (get("/a/"), "short"),
        (get("/a/b/c"), "long"),
        (get("/a/b?x"), "exact"),
        (get("/a/b/"), "long"),
        (get("/a/b/12"), "pattern"),
        (get("/a/b/12x"), "long"),
        (head("POST", "/a", &[("x-a", "1")]), "method"),
        (head("post", "/a", &[]), "short"),
        (head("GET", "/a?q=1", &[("X-A", "1")]), "header"),
        (head("GET", "/a", &[("x-b", "2"), ("x-a", "0"), ("x-a", "1")]), "headers"),
        (get("/a?q=1"), "query"),
        (get("/a?q=2&q=1"), "short"),
    ];
    for reversed in [false, true] {
        let mut rules = rules.clone();
        if reversed {
            rules.reverse();
        }
        let rules = Routes::new(rules);
        for (head, wanted) in &cases {
            assert_eq!(found(&rules, None, Some(head)), *wanted, "{head:?}");
        }
    }
}

#[test]
fn between_equals_the_first_that_was_written_wins() {
    let rules = Routes::new(vec![rule("old", vec![prefix("/a")]), rule("new", vec![prefix("/a")])]);
    assert_eq!(found(&rules, None, Some(&get("/a/b"))), "old");
    let slash = Routes::new(vec![rule("first", vec![]), rule("slash", vec![prefix("/")])]);
    assert_eq!(found(&slash, None, Some(&get("/a"))), "first");
}

#[test]
fn listed_rules_are_asked_in_their_order() {
    let listed = |rules| Routes::ordered(rules, RuleOrder::Listed);
    let rules =
        vec![rule("short", vec![prefix("/a"), exact("/x")]), rule("exact", vec![exact("/a/b")])];
    assert_eq!(found(&Routes::new(rules.clone()), None, Some(&get("/a/b"))), "exact");
    let rules = listed(rules);
    assert_eq!(found(&rules, None, Some(&get("/a/b"))), "short");
    assert_eq!(found(&rules, None, Some(&get("/y"))), "nothing");
    let first = rules.find(&"http".parse().unwrap(), None::<&str>, Some(&get("/x"))).unwrap();
    assert_eq!(first.unwrap().1, Some(&exact("/x")), "the match that held");
    let all = listed(vec![rule("all", vec![]), rule("exact", vec![exact("/a")])]);
    assert_eq!(found(&all, None, Some(&get("/a"))), "all");
}

#[test]
fn a_rule_that_more_is_asked_of_leaves_requests_to_the_next() {
    let conditions = Conditions { unless: vec![prefix("/a/b")], ..Conditions::default() };
    let unless = Extension { conditions, ..Extension::default() };
    let first = Route {
        extension: Some(Box::new(unless)),
        ..rule("first", vec![prefix("/a"), prefix("/")])
    };
    let rules = Routes::new(vec![first, rule("rest", vec![prefix("/")])]);
    let cases = [("/a", "first"), ("/a/b", "rest"), ("/c", "first")];
    for (path, wanted) in cases {
        assert_eq!(found(&rules, None, Some(&get(path))), wanted, "{path}");
    }
}

#[test]
fn the_host_is_as_its_client_sent_it() {
    let named = |value| with_headers(RouteMatch::default(), &[("Host", value)]);
    let sent = RequestHead { authority: "Shop.Example:8080".into(), ..get("/") };
    assert!(named("Shop.Example:8080").holds(&sent));
    assert!(!named("shop.example:8080").holds(&sent) && !named("Shop.Example").holds(&sent));
    let pattern = |text| TextMatch::Regex(Pattern::new(text).unwrap());
    let matches = |text| pattern(text).holds_in(&sent, &http::header::HOST);
    assert!(matches("(?i)shop\\.example(:[0-9]+)?") && !matches("(?i)shop"));
    assert!(!pattern(".*").holds_in(&get("/"), &http::header::HOST), "none was sent");
}

#[test]
fn rules_of_one_port_leave_the_others_alone() {
    let only = Route { port: Some("http".parse().unwrap()), ..rule("r", vec![exact("/a")]) };
    let rules = Routes::new(vec![only]);
    assert_eq!(found(&rules, None, Some(&get("/b"))), "nothing");
    let other = rules.find(&"grpc".parse().unwrap(), Caller::default(), Some(&get("/b")));
    assert_eq!(other.unwrap(), None);
    assert_eq!(found(&Routes::default(), None, Some(&get("/b"))), "itself");
}

#[test]
fn consumers_with_routes_of_their_own_take_no_others() {
    let consumer =
        Route { client_namespace: Some("web".into()), ..rule("consumer", vec![prefix("/web")]) };
    let rules = Routes::new(vec![rule("producer", vec![prefix("/")]), consumer]);
    assert_eq!(found(&rules, Some("web"), Some(&get("/web"))), "consumer");
    assert_eq!(found(&rules, Some("web"), Some(&get("/other"))), "nothing");
    assert_eq!(found(&rules, Some("jobs"), Some(&get("/web"))), "producer");
    assert_eq!(found(&rules, None, Some(&get("/web"))), "producer");
}

#[test]
fn opaque_bytes_take_only_rules_without_matches() {
    let rules = Routes::new(vec![rule("any", vec![prefix("/")]), rule("tcp", vec![])]);
    assert_eq!(found(&rules, None, None), "tcp");
    assert_eq!(found(&Routes::new(vec![rule("any", vec![prefix("/")])]), None, None), "nothing");
}

#[test]
fn patterns_match_whole_values() {
    let pattern = |text: &str| TextMatch::Regex(Pattern::new(text).unwrap());
    assert!(pattern("a|b").holds(b"b"));
    assert!(!pattern("a|b").holds(b"ab"));
    assert!(pattern(".*").holds(b"\xff"));
    assert!(Pattern::new("(a").is_err());
    assert!(Pattern::new("(?:a{1000}){1000}").is_err(), "memory is bounded");
}

/// Snapshots are compared to see what changed.
#[test]
fn patterns_are_the_same_if_they_are_written_alike() {
    assert_eq!(Pattern::new("a+").unwrap(), Pattern::new("a+").unwrap());
    assert_ne!(Pattern::new("a+").unwrap(), Pattern::new("aa*").unwrap());
    assert_eq!(Pattern::new("a+").unwrap().as_str(), "a+");
}

#[test]
fn query_parameters_are_decoded() {
    let one = |name: &str, value: &str| with_query(RouteMatch::default(), &[(name, value)]);
    let cases = [
        (one("a", "x y"), "/?a=x+y", true),
        (one("a", "x y"), "/?b=1&a=x%20y", true),
        (one("a b", ""), "/?a%20b", true),
        (one("a", "%zz%4"), "/?a=%zz%4", true),
        (one("a", "é"), "/?a=%C3%a9", true),
        (one("a", "1"), "/a=1", false),
        (one("a", "1"), "/?A=1", false),
    ];
    for (one, target, wanted) in cases {
        assert_eq!(one.holds(&get(target)), wanted, "{target}");
    }
}

proptest! {
    /// What is found does hold, and nothing that holds is found only later.
    #[test]
    fn what_is_found_holds(
        paths in prop::collection::vec(("[abc]{0,2}", any::<bool>()), 1..8),
        asked in "(/[abc]{0,2}){1,3}",
    ) {
        let one = |(path, whole): &(String, bool)| {
            let path = format!("/{path}");
            if *whole { exact(&path) } else { prefix(&path) }
        };
        let matches: Vec<RouteMatch> = paths.iter().map(one).collect();
        let numbered = matches.iter().enumerate().map(|(i, one)| rule(&i.to_string(), vec![one.clone()]));
        let rules = Routes::new(numbered.collect());
        let head = get(&asked);
        let holding: Vec<&RouteMatch> = matches.iter().filter(|one| one.holds(&head)).collect();
        match rules.find(&"http".parse().unwrap(), None, Some(&head)) {
            Ok(Some((_, Some(one)))) => {
                prop_assert!(one.holds(&head));
                prop_assert!(holding.iter().all(|other| Precedence::of(other) <= Precedence::of(one)));
            }
            _ => prop_assert!(holding.is_empty()),
        }
    }
}
