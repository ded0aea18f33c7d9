//! What Envoy would do with requests, for a comparison with what it does:
//! `envoy FILE < REQUESTS > ANSWERS`, both JSON, one line each;
//! `envoy FILE convert`: the program and the ledger, for people; and
//! `envoy generate DIRECTORY COUNT FIRST`: configurations by chance, with requests, as
//! `tests/migrate/envoy.py` takes them.

use std::io::BufRead;

#[path = "../src/envoy/tests/chance.rs"]
mod chance;
#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../src/envoy/tests/generate.rs"]
mod generate;
#[path = "../src/envoy/tests/writer.rs"]
mod writer;

use mesh_migrate::{
    envoy::{config::Config, convert::convert, explain::explain},
    request::{Http, Kind, Request},
    source::Source,
};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let file = words.next().ok_or("usage: envoy FILE < REQUESTS")?;
    if file == "generate" {
        let directory = words.next().ok_or("a directory is missing")?;
        let mut number = || words.next().unwrap_or_default().parse::<u64>();
        return generated(&directory, number()?, number()?);
    }
    let source = Source::read(file.as_ref())?;
    let config = match Config::read(&source) {
        Ok(config) => config,
        Err(problem) => {
            println!("{}", json!({ "problem": problem.to_string() }));
            return Ok(());
        }
    };
    if words.next().as_deref() == Some("convert") {
        let (program, ledger) = convert(&config);
        println!("{program:#?}");
        for entry in ledger.entries() {
            println!("{}-{}: {:?}", entry.place, entry.last_line, entry.verdict);
        }
        return Ok(());
    }
    for line in std::io::stdin().lock().lines() {
        let request = request(&serde_json::from_str(&line?)?)?;
        println!("{}", serde_json::to_string(&explain(&config, &request))?);
    }
    Ok(())
}

fn generated(directory: &str, count: u64, first: u64) -> Result<(), Box<dyn std::error::Error>> {
    let mut cases = Vec::new();
    for seed in first..first + count {
        let made = generate::generate(seed, true);
        let text = writer::yaml(&made.config, &mut chance::Chance::new(seed));
        let path = format!("{directory}/{seed}.yaml");
        std::fs::write(&path, text)?;
        // With a line for each field, where what is said of lines matters.
        let lines = serde_json::to_string_pretty(&made.config)?;
        std::fs::write(format!("{directory}/{seed}.json"), lines)?;
        let times = |mut request: Value| {
            request["times"] = json!(2);
            request
        };
        let requests: Vec<Value> = made.requests.into_iter().map(times).collect();
        cases.push(json!({ "config": path, "requests": requests }));
    }
    std::fs::write(format!("{directory}/cases.json"), serde_json::to_string(&cases)?)?;
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
