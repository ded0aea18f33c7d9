//! Configurations of nginx out of bytes, and requests to ask about: the same bytes make
//! the same ones, and fewer bytes simpler ones.

use mesh_migrate::request::{Http, Kind, Request};

use writer::{Choices, LISTENS, Writer};

#[path = "values.rs"]
mod values;
#[path = "writer.rs"]
mod writer;

/// A configuration and what to ask about it.
pub(crate) struct Generated {
    pub(crate) text: String,
    pub(crate) requests: Vec<Request>,
}

const HOSTS: [&str; 16] = [
    "a.example",
    "b.example",
    "z.example",
    "c.example",
    "y.c.example",
    "www.x.y",
    "x12.example",
    "q.d.example",
    "none",
    "A.Example",
    "a.example:8080",
    "b.example.",
    "q.b.example",
    "www.a.b",
    "p.q.b.example",
    "_",
];
const TARGETS: [&str; 32] = [
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/a/b/c?x=1",
    "/ab/c",
    "/static/a.png",
    "/api/v1/u",
    "/api/v12/u/1?y=a%20b",
    "/A/q",
    "/d/e/f",
    "/d/e/f/g",
    "/a.png",
    "/none",
    "/a/c.png?z",
    "/old/x",
    "/old/x?q=1",
    "/api",
    "/static",
    "/a//b",
    "/a/./b/../c",
    "/a%2fb",
    "/x%20y/z",
    "/%61/b",
    "/a/%C3%A4",
    "/a/b.png%0A",
    "/ab%0A/x.css",
    "/../a",
    "/a/b%3fc",
    "/a+b/c?d+e",
    "/old/a%20b?c",
    "/err",
];

/// A configuration and requests; `runs`: nginx 1.22 starts with it.
pub(crate) fn generate(bytes: &[u8], runs: bool) -> Generated {
    let choose = Choices { bytes, at: 0 };
    let mut writer = Writer { choose, out: String::new(), indent: 0, runs, maps: 0 };
    writer.line(&["worker_processes", "1"]);
    writer.open(&["events"]);
    writer.close();
    writer.http();
    let has_stream = writer.choose.once_in(3);
    if has_stream {
        writer.stream();
    }
    let mut requests = Vec::new();
    let listeners: Vec<&str> =
        LISTENS.iter().copied().filter(|listen| writer.out.contains(listen)).collect();
    for _ in 0..16 {
        requests.push(request(&mut writer.choose, &listeners));
    }
    if has_stream {
        for name in ["a.example", "q.example", "y.c.example", "x.y", ""] {
            let listener = ["10.20.0.6:443", "10.20.0.6:444"][writer.choose.below(2)];
            let server_name = Some(name.to_owned()).filter(|name| !name.is_empty());
            requests.push(Request {
                listener: Some(listener.into()),
                source: [10, 20, 0, 1].into(),
                kind: Kind::Connection { server_name },
            });
        }
    }
    Generated { text: writer.out, requests }
}

fn request(choose: &mut Choices<'_>, listeners: &[&str]) -> Request {
    let listener = match choose.of(listeners) {
        "8000" => "10.20.0.9:8000",
        listener => listener,
    };
    let host = Some(choose.of(&HOSTS).to_owned());
    let is_http10 = choose.once_in(12);
    let mut headers = Vec::new();
    if choose.once_in(2) {
        headers
            .push(("X-A".to_owned(), choose.of(&["b", "c", "cc", "dx", "POST", "q"]).to_owned()));
    }
    if choose.once_in(4) {
        headers.push(("Cookie".to_owned(), choose.of(&["a=b", "z=1; a=POST", "b=b"]).to_owned()));
    }
    if choose.once_in(6) {
        headers.push(("X-Forwarded-For".to_owned(), "1.2.3.4".to_owned()));
    }
    if choose.once_in(8) {
        headers.push(("x_under".to_owned(), "1".to_owned()));
    }
    Request {
        listener: Some(listener.into()),
        source: [10, 20, 0, 1].into(),
        kind: Kind::Http(Http {
            method: choose.of(&["GET", "GET", "GET", "POST", "HEAD", "PUT"]).to_owned(),
            host: if is_http10 && choose.once_in(2) { None } else { host },
            target: choose.of(&TARGETS).to_owned(),
            headers,
            is_http10,
        }),
    }
}
