//! Prints generated configurations of HAProxy with requests, and what is said of them,
//! as JSON: `tests/migrate/haproxy` asks the real one. `haproxy COUNT [SEED]`.

use mesh_migrate::{
    haproxy::{Outside, explain, read},
    request::{Http, Kind, Request},
    source::{Problem, Source},
};

#[path = "../src/haproxy/tests/generator.rs"]
mod generator;

use generator::{Asked, FIXED, TCP, TLS, Written, fixed, server_name, write};

fn main() -> Result<(), Problem> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>());
    let count = arguments.next().and_then(Result::ok).unwrap_or(100);
    let seed = arguments.next().and_then(Result::ok).unwrap_or(1);
    let mut cases = Vec::new();
    for number in 0..count {
        let written = write(&choices(seed.wrapping_add(number)), false);
        let answers = answers(&written)?;
        cases.push(serde_json::json!({
            "config": written.config, "map": written.map, "list": written.list, "fixed": FIXED,
            "requests": answers,
        }));
    }
    println!("{}", serde_json::Value::from(cases));
    Ok(())
}

fn choices(seed: u64) -> Vec<u16> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u16
    };
    (0..500).map(|_| next()).collect()
}

fn answers(written: &Written) -> Result<Vec<serde_json::Value>, Problem> {
    let file = |name: &str| {
        let text = fixed(name).unwrap_or(match name {
            "hosts.map" => &written.map,
            _ => &written.list,
        });
        Ok(Source::of(name, text))
    };
    let source = Source::of("haproxy.cfg", &written.config);
    let config = read(&[source], &Outside { file: &file, variable: &|_| None })?;
    let answers = written.requests.iter().map(|asked| {
        let answer = explain(&config, &request(asked));
        serde_json::json!({
            "listener": asked.listener, "source": asked.source, "method": asked.method,
            "host": asked.host, "target": asked.target, "headers": asked.headers,
            "answer": answer,
        })
    });
    Ok(answers.collect())
}

fn request(asked: &Asked) -> Request {
    let headers = asked.headers.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    let kind = match asked.listener {
        TCP => Kind::Connection { server_name: None },
        TLS => Kind::Connection { server_name: Some(server_name(asked)) },
        _ => Kind::Http(Http {
            method: asked.method.to_owned(),
            host: Some(asked.host.to_owned()),
            target: asked.target.to_owned(),
            headers: headers.collect(),
            is_http10: false,
        }),
    };
    let source = asked.source.parse().expect("the generator writes addresses");
    Request { listener: Some(asked.listener.to_owned()), source, kind }
}
