use super::*;
use crate::shadow::compare::Who;

fn of(differences: Vec<Difference>) -> Comparison {
    let took = |millis| Some(Duration::from_millis(millis));
    Comparison { differences, legacy_took: took(10), ours_took: took(20) }
}

fn difference(cause: Cause) -> Difference {
    Difference { cause, legacy: "200".into(), ours: "404".into() }
}

#[test]
fn a_verdict_is_given() {
    let mut tally = Tally::default();
    assert_eq!(tally.verdict(0), Verdict::Nothing);
    tally.add("GET /", &of(Vec::new()));
    tally.add("GET /", &of(Vec::new()));
    assert_eq!(tally.verdict(3), Verdict::TooFew);
    assert_eq!(tally.verdict(2), Verdict::Alike);
    tally.add("GET /", &of(vec![difference(Cause::Body)]));
    assert_eq!(tally.verdict(3), Verdict::Different);
    assert_eq!(tally.verdict(1000), Verdict::Different);
    assert_eq!((tally.compared(), tally.different()), (3, 1));
}

#[test]
fn differences_are_grouped() {
    let mut tally = Tally::default();
    let gone = Cause::NoAnswer { who: Who::Ours, why: "timeout".into() };
    tally.add("GET /b", &of(vec![difference(gone.clone())]));
    for path in 0..7 {
        let request = name("GET", &format!("/{path}"), Some("h"));
        let causes = [Cause::Status(200, 404), Cause::Header("etag".into())];
        tally.add(&request, &of(causes.map(difference).into()));
    }
    let groups: Vec<_> =
        tally.groups().into_iter().map(|(cause, group)| (cause, group.count)).collect();
    assert_eq!(
        groups,
        [(&Cause::Status(200, 404), 7), (&Cause::Header("etag".into()), 7), (&gone, 1),]
    );
    let examples = &tally.groups()[1].1.examples;
    assert_eq!(examples.len(), MAX_EXAMPLES);
    assert_eq!(examples[0], "GET /0 h: etag: 200 legacy, 404 ours");
    assert_eq!(tally.groups()[0].1.examples[4], "GET /4 h: 200 legacy, 404 ours");
    assert_eq!((tally.compared(), tally.different(), tally.other()), (8, 8, 0));
}

#[test]
fn groups_and_examples_have_a_limit() {
    let mut tally = Tally::default();
    let long = "x".repeat(100_000);
    for round in 0..2 {
        for code in 0..100 {
            let cause = Cause::Header(format!("x-{code}"));
            let legacy = if round == 0 { "1" } else { &long };
            tally.add(
                &long,
                &of(vec![Difference { cause, legacy: legacy.into(), ours: "2".into() }]),
            );
        }
    }
    assert_eq!(tally.groups().len(), MAX_GROUPS);
    assert_eq!(tally.other(), 2 * (100 - MAX_GROUPS as u64));
    assert_eq!(tally.different(), 200);
    let stored = serde_json::to_string(&tally).unwrap();
    assert!(stored.len() < MAX_GROUPS * MAX_EXAMPLES * (MAX_EXAMPLE + 100));
    assert!(tally.groups()[0].1.examples[0].ends_with(": x-0: 1 legacy, 2 ours"));
}

#[test]
fn latencies_are_of_those_that_answer() {
    let mut tally = Tally::default();
    assert_eq!(tally.legacy_latency(), None);
    tally.add("GET /", &of(Vec::new()));
    tally.add("GET /", &Comparison { legacy_took: None, ..of(Vec::new()) });
    let near = |told: Duration, millis: f64| (told.as_secs_f64() * 1e3 / millis - 1.0).abs() < 0.02;
    let (legacy, ours) = (tally.legacy_latency().unwrap(), tally.our_latency().unwrap());
    assert!(near(legacy.p50, 10.0) && near(legacy.p99, 10.0), "{legacy:?}");
    assert!(near(ours.p50, 20.0) && near(ours.p90, 20.0), "{ours:?}");
}

#[test]
fn it_is_the_same_once_stored() {
    let mut tally = Tally::default();
    for cause in [
        Cause::Status(200, 404),
        Cause::Backend("a".into(), "b".into()),
        Cause::Header("etag".into()),
        Cause::Body,
        Cause::NoAnswer { who: Who::Legacy, why: "refused".into() },
    ] {
        tally.add("GET /", &of(vec![difference(cause)]));
    }
    let stored = serde_json::to_string(&tally).unwrap();
    let mut again: Tally = serde_json::from_str(&stored).unwrap();
    assert_eq!(again, tally);
    again.add("GET /", &of(vec![difference(Cause::Body)]));
    assert_eq!(again.different(), 6);
    assert_eq!(again.groups()[0].1.count, 2);
}

#[test]
fn what_is_stored_beyond_the_limits_is_counted() {
    let group = |code: usize| {
        format!(r#"[{{"header":"x-{code}"}},{{"count":2,"examples":["a","a","a","a","a","a"]}}]"#)
    };
    let groups: Vec<_> = (0..MAX_GROUPS + 3).map(group).collect();
    let groups = groups.join(",");
    let stored = format!(
        r#"{{"compared":200,"different":134,"groups":[{groups}],"other":1,"legacy":[],"ours":[]}}"#
    );
    let tally: Tally = serde_json::from_str(&stored).unwrap();
    assert_eq!((tally.groups().len(), tally.other()), (MAX_GROUPS, 7));
    assert_eq!(tally.groups()[0].1.examples.len(), MAX_EXAMPLES);
    assert!(serde_json::from_str::<Tally>("{}").is_err());
}
