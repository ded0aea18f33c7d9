//! What operators read of lines that are something else with us.

use super::{config, convert};
use crate::{
    ledger::{Ledger, Verdict},
    program::{Accepts, Program, Reply, Then},
};

fn converted(text: &str) -> (Program, Ledger) {
    convert(&config(text)).unwrap()
}

/// All that is said of a line.
fn of_line(ledger: &Ledger, line: u32) -> String {
    let entries = ledger.entries().into_iter().filter(|entry| entry.place.line == line);
    let words = entries.map(|entry| match entry.verdict {
        Verdict::Exact => "exact".to_owned(),
        Verdict::Approximated { how } => how,
        Verdict::Dropped { meaning } => meaning,
        Verdict::Decision { question, .. } => question,
    });
    words.collect::<Vec<_>>().join("; ")
}

fn replies(program: &Program) -> Vec<&Reply> {
    let Accepts::Http { rules, .. } = &program.listeners[0].accepts else { panic!() };
    fn reply(then: &Then) -> Option<&Reply> {
        match then {
            Then::Reply(reply) => Some(reply),
            Then::Forward(_) => None,
        }
    }
    rules.iter().filter_map(|rule| reply(&rule.then)).collect()
}

#[test]
fn lines_about_answers_of_applications() {
    let (program, ledger) = converted(
        "http { server { listen 10.20.0.4:80;\n\
         expires 1h;\n\
         charset utf-8;\n\
         location / { proxy_pass http://10.20.1.1; }\n\
         location /n { expires -1;\nproxy_pass http://10.20.1.1; }\n\
         location /r { expires 1d; return 200; }\n\
         location /e { expires 1d; return 404; }\n\
         location /t { return 204; }\n\
         location /files/ { internal;\nproxy_pass http://10.20.1.2; }\n} }",
    );
    assert!(of_line(&ledger, 2).contains("Cache-Control are not written"));
    assert!(of_line(&ledger, 3).contains("as the application writes it"));
    assert!(of_line(&ledger, 5).contains("Cache-Control alone"));
    assert!(of_line(&ledger, 11).contains("X-Accel-Redirect"), "{}", of_line(&ledger, 11));
    let Accepts::Http { rules, .. } = &program.listeners[0].accepts else { panic!() };
    let set = rules.iter().find_map(|rule| match &rule.then {
        Then::Forward(forward) if !forward.set_answer.is_empty() => Some(forward),
        _ => None,
    });
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(set.unwrap().set_answer, [pair("cache-control", "no-cache")]);
    let of = |status| {
        let all = replies(&program);
        let mut found = all.into_iter().filter(|reply| reply.status == status);
        found.next().unwrap().headers.clone()
    };
    assert_eq!(
        of(200),
        [pair("content-type", "text/plain"), pair("cache-control", "max-age=86400")]
    );
    assert_eq!(of(204), [pair("cache-control", "max-age=3600")]);
    assert_eq!(of(404), []);
}

#[test]
fn lines_about_servers() {
    let (_, ledger) = converted(
        "http { upstream u {\n\
         server 10.20.1.1:80 max_fails=3;\n\
         server 10.20.1.2:80 backup;\n\
         }\n\
         server { listen 10.20.0.4:80; proxy_next_upstream error http_503;\n\
         location / { proxy_pass http://u; } } }\n\
         stream {\n\
         upstream s { server 10.20.1.1:5672;\nserver 10.20.1.2:5672; }\n\
         server { listen 10.20.0.4:5672;\n\
         proxy_next_upstream off;\nproxy_pass s; } }",
    );
    let backup = of_line(&ledger, 3);
    assert!(backup.contains("is not repeated here") && backup.contains("max_fails"), "{backup}");
    assert!(!of_line(&ledger, 8).contains("500 to 599"), "{}", of_line(&ledger, 8));
    assert!(of_line(&ledger, 11).contains("another is tried with us"));
}
