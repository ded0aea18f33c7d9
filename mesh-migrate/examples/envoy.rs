//! What Envoy would do with requests, for a comparison with what it does:
//! `envoy FILE < REQUESTS > ANSWERS`, both JSON, one line each.

use std::io::BufRead;

use mesh_migrate::{
    envoy::{config::Config, explain::explain},
    request::{Http, Kind, Request},
    source::Source,
};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args().nth(1).ok_or("usage: envoy FILE < REQUESTS")?;
    let source = Source::read(file.as_ref())?;
    let config = match Config::read(&source) {
        Ok(config) => config,
        Err(problem) => {
            println!("{}", json!({ "problem": problem.to_string() }));
            return Ok(());
        }
    };
    for line in std::io::stdin().lock().lines() {
        let request = request(&serde_json::from_str(&line?)?)?;
        println!("{}", serde_json::to_string(&explain(&config, &request))?);
    }
    Ok(())
}

fn request(value: &Value) -> Result<Request, Box<dyn std::error::Error>> {
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    let pair = |header: &Value| {
        let part = |n: usize| header[n].as_str().unwrap_or_default().to_owned();
        (part(0), part(1))
    };
    let headers = value["headers"].as_array().map(|all| all.iter().map(pair).collect());
    let kind = match text("target") {
        None => Kind::Connection { server_name: text("server_name") },
        Some(target) => Kind::Http(Http {
            method: text("method").unwrap_or_else(|| "GET".into()),
            host: text("host"),
            target,
            headers: headers.unwrap_or_default(),
            is_http10: value["http10"] == json!(true),
        }),
    };
    let source = text("source").unwrap_or_else(|| "127.0.0.1".into()).parse()?;
    Ok(Request { listener: text("listener"), source, kind })
}
