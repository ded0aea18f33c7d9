//! What HAProxy does and what the program does, for generated configurations.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{generator::*, *};
use crate::{
    decide::decide,
    ledger::{Ledger, Verdict},
    request::{Forwarded, Step},
};

fn open(written: &Written) -> Result<Config, Problem> {
    let file = |name: &str| match name {
        "hosts.map" => Ok(Source::of(name, &written.map)),
        name if fixed(name).is_some() => Ok(Source::of(name, fixed(name).unwrap())),
        "paths.lst" => Ok(Source::of(name, &written.list)),
        _ => Err(Problem::at(&crate::source::Place::start(&name.into()), "is not there")),
    };
    let variable = |_: &str| None;
    let source = Source::of("haproxy.cfg", &written.config);
    read(&[source], &Outside { file: &file, variable: &variable })
}

pub(super) fn request_of(asked: &Asked) -> Request {
    let kind = match asked.listener {
        TCP => Kind::Connection { server_name: None },
        TLS => Kind::Connection { server_name: Some(server_name(asked)) },
        _ => Kind::Http(Http {
            method: asked.method.to_owned(),
            host: Some(asked.host.to_owned()),
            target: asked.target.to_owned(),
            headers: asked.headers.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
            is_http10: false,
        }),
    };
    let source = asked.source.parse().unwrap();
    Request { listener: Some(asked.listener.to_owned()), source, kind }
}

/// What differs, for people.
fn difference(explained: &Outcome, decided: &Outcome, request: &Request) -> Option<String> {
    match (explained, decided) {
        (Outcome::Forwarded(a), Outcome::Forwarded(b)) => {
            let endpoints = |to: &Forwarded| {
                let mut all: Vec<_> = to
                    .endpoints
                    .iter()
                    .map(|(e, share)| (e.clone(), (share * 1e6).round() as u64))
                    .collect();
                all.sort();
                all
            };
            let headers = |to: &Forwarded| {
                let Kind::Http(http) = &request.kind else { return Vec::new() };
                let sent = |name: &str| {
                    let named = http.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
                    let values: Vec<&str> = if name == "host" {
                        http.host.as_deref().into_iter().collect()
                    } else {
                        named.map(|(_, value)| value.as_str()).collect()
                    };
                    (!values.is_empty()).then(|| values.join(", "))
                };
                let changed = to.headers.iter().filter(|(name, value)| *value != sent(name));
                changed.cloned().collect::<Vec<_>>()
            };
            if endpoints(a) != endpoints(b) {
                Some(format!("endpoints {:?} and {:?}", a.endpoints, b.endpoints))
            } else if a.is_sticky != b.is_sticky {
                Some(format!("sticky {} and {}", a.is_sticky, b.is_sticky))
            } else if a.target != b.target {
                Some(format!("target {:?} and {:?}", a.target, b.target))
            } else if headers(a) != headers(b) {
                Some(format!("headers {:?} and {:?}", a.headers, b.headers))
            } else {
                None
            }
        }
        (a, b) if a == b => None,
        (a, b) => Some(format!("{a:?} and {b:?}")),
    }
}

fn told_by(why: &[Step]) -> String {
    let steps = why.iter().map(|step| {
        let line = step.place.as_ref().map_or(0, |place| place.line);
        format!("{line}: {}", step.what)
    });
    steps.collect::<Vec<_>>().join("; ")
}

/// Whether the ledger says of one of the lines that it may be otherwise.
fn is_told(ledger: &Ledger, steps: &[&[Step]]) -> bool {
    let lines: BTreeSet<u32> = steps
        .iter()
        .flat_map(|steps| steps.iter())
        .filter_map(|step| step.place.as_ref().map(|place| place.line))
        .collect();
    ledger.entries().iter().any(|entry| {
        let differs = match &entry.verdict {
            Verdict::Exact => false,
            Verdict::Approximated { how } => how != super::super::convert::PAGE,
            Verdict::Dropped { .. } | Verdict::Decision { .. } => true,
        };
        differs && lines.contains(&entry.place.line)
    })
}

/// How many requests were the same, and how many were told to differ.
fn compare(written: &Written) -> Result<(usize, usize), TestCaseError> {
    let config = match open(written) {
        Ok(config) => config,
        Err(problem) => return Err(TestCaseError::fail(format!("{problem}\n{}", written.config))),
    };
    let (program, ledger) = convert(&config);
    let source = Source::of("haproxy.cfg", &written.config);
    let silent = ledger.silent_lines(&source, is_blank);
    prop_assert!(silent.is_empty(), "silent: {silent:?}\n{}", written.config);
    let (mut same, mut told) = (0, 0);
    for asked in &written.requests {
        let request = request_of(asked);
        let (explained, decided) = (explain(&config, &request), decide(&program, &request));
        match difference(&explained.outcome, &decided.outcome, &request) {
            None => same += 1,
            Some(_) if is_told(&ledger, &[&explained.why, &decided.why]) => told += 1,
            Some(what) => prop_assert!(
                false,
                "{what}\n{asked:?}\n{}\n{}\n{}\nmap:\n{}",
                told_by(&explained.why),
                told_by(&decided.why),
                written.config,
                written.map
            ),
        }
    }
    Ok((same, told))
}

fn choices() -> impl Strategy<Value = Vec<u16>> {
    proptest::collection::vec(any::<u16>(), 50..600)
}

proptest! {
    #![proptest_config(crate::testing::same_each_time(300))]

    #[test]
    fn conversions_do_the_same(choices in choices()) {
        compare(&write(&choices, false))?;
    }

    #[test]
    fn nasty_lines_are_told(choices in choices()) {
        let written = write(&choices, true);
        if open(&written).is_ok() {
            compare(&written)?;
        }
    }
}

/// What is always told to differ would be no conversion.
#[test]
fn most_requests_are_the_same() {
    let (mut same, mut told) = (0, 0);
    for seed in 0..150u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u16
        };
        let choices: Vec<u16> = (0..500).map(|_| next()).collect();
        let (a, b) = compare(&write(&choices, false)).unwrap();
        (same, told) = (same + a, told + b);
    }
    println!("{same} the same, {told} told to differ");
    assert!(same > 3 * told, "{same} the same, {told} told to differ");
}

#[test]
fn cases_are_converted() {
    for name in FILES {
        let config = written(name);
        let (program, ledger) = convert(&config);
        let text = Source::read(&legacy().join(name)).unwrap().text;
        let source = Source::of(name, &text);
        assert_eq!(ledger.silent_lines(&source, is_blank), Vec::<u32>::new());
        for case in &cases(name) {
            let request = request(case);
            let (explained, decided) = (explain(&config, &request), decide(&program, &request));
            let what = difference(&explained.outcome, &decided.outcome, &request);
            assert_eq!(what, None, "{case}\n{:#?}\n{:#?}", explained.why, decided.why);
            is_as_expected(case, &decided);
        }
    }
}
