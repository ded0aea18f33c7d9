//! Writes configurations of nginx and what `explain` says of requests to them, for
//! `tests/migrate/nginx.py`, which asks the real nginx the same.
//!
//! `nginx_oracle DIR SEED COUNT` makes `DIR/0.conf`, `DIR/0.json` and so on.

use std::path::Path;

use mesh_migrate::{
    nginx,
    request::{Kind, Request},
    source::Source,
};

#[path = "../tests/nginx/generate.rs"]
mod generate;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, seed, count] = args.as_slice() else {
        eprintln!("usage: nginx_oracle DIR SEED COUNT");
        std::process::exit(64);
    };
    let (seed, count): (u64, u64) =
        (seed.parse().expect("a number"), count.parse().expect("a number"));
    for number in 0..count {
        let bytes = bytes(seed.wrapping_mul(1_000_003).wrapping_add(number));
        let generated = generate::generate(&bytes, true);
        let source = Source::of("nginx.conf", &generated.text);
        let config = nginx::parse(&source, &|_| Err("nothing is included".into()));
        let config = config.unwrap_or_else(|wrong| panic!("{wrong}\n{}", generated.text));
        let asked: Vec<serde_json::Value> =
            generated.requests.iter().map(|request| asked(&config, request)).collect();
        let write = |name: &str, text: String| {
            std::fs::write(Path::new(folder).join(format!("{number}.{name}")), text)
                .expect("is written");
        };
        write("conf", generated.text);
        write("json", serde_json::Value::from(asked).to_string());
    }
}

fn asked(config: &nginx::Config, request: &Request) -> serde_json::Value {
    let answer = match nginx::explain(config, request) {
        Ok(answer) => serde_json::to_value(answer).expect("is JSON"),
        Err(problem) => serde_json::json!({ "problem": problem.to_string() }),
    };
    let asked = match &request.kind {
        Kind::Connection { server_name } => serde_json::json!({ "server_name": server_name }),
        Kind::Http(http) => serde_json::json!({
            "method": http.method, "host": http.host, "target": http.target,
            "headers": http.headers, "http10": http.is_http10,
        }),
    };
    serde_json::json!({ "listener": request.listener, "asked": asked, "answer": answer })
}

/// Of a linear congruential generator: the same for the same seed.
fn bytes(seed: u64) -> Vec<u8> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u8
    };
    (0..4096).map(|_| next()).collect()
}
