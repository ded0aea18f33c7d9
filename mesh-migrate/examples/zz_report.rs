use mesh_migrate::{
    decide::decide, ledger::Verdict, nginx, program::*, request::*, source::Source,
};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let path = std::path::Path::new(&a[1]);
    let source = Source::read(path).unwrap();
    let config = match nginx::parse(&source, &nginx::disk(path)) {
        Ok(c) => c,
        Err(e) => {
            println!("{e}");
            return;
        }
    };
    let (program, ledger) = match nginx::convert(&config) {
        Ok(c) => c,
        Err(e) => {
            println!("{e}");
            return;
        }
    };
    if a.len() == 2 {
        for s in &config.sources {
            println!("silent {:?}", ledger.silent_lines(s, nginx::is_blank));
            let entries = ledger.entries();
            for (n, line) in (1u32..).zip(s.text.lines()) {
                println!("{n:4} {line}");
                for e in entries.iter().filter(|e| e.place.file == s.name && e.place.line == n) {
                    match &e.verdict {
                        Verdict::Exact => println!("         ="),
                        Verdict::Approximated { how } => println!("         ~ {how}"),
                        Verdict::Dropped { meaning } => println!("         - {meaning}"),
                        Verdict::Decision { question, choices } => {
                            println!("         ? {question} {choices:?}")
                        }
                    }
                }
            }
        }
        for l in &program.listeners {
            println!("{} {:?} {:?}", l.name, l.addresses, l.tls);
            match &l.accepts {
                Accepts::Http { rules, forwarded, .. } => {
                    println!("  {forwarded:?}");
                    for r in rules {
                        println!("  {} {:?}\n      -> {:?}", r.place, r.when, r.then)
                    }
                }
                Accepts::Tcp { rules } => {
                    for r in rules {
                        println!("  {r:?}")
                    }
                }
            }
        }
        for (n, p) in &program.pools {
            println!(
                "{n}: {:?} {:?} {:?} {:?} tls {:?}",
                p.balance, p.connect_timeout, p.idle_timeout, p.outlier, p.tls
            );
            for m in &p.members {
                println!("   {:?} w{} p{} {}", m.endpoint, m.weight, m.priority, m.is_disabled)
            }
        }
    } else {
        let kind = if a[3] == "sni" {
            Kind::Connection { server_name: a.get(4).cloned() }
        } else {
            Kind::Http(Http {
                method: a[3].clone(),
                host: Some(a[4].clone()),
                target: a[5].clone(),
                headers: a[6..]
                    .iter()
                    .map(|h| {
                        let (a, b) = h.split_once(": ").unwrap();
                        (a.into(), b.into())
                    })
                    .collect(),
                is_http10: false,
            })
        };
        let r =
            Request { listener: Some(a[2].clone()), source: "10.20.0.1".parse().unwrap(), kind };
        match nginx::explain(&config, &r) {
            Ok(x) => {
                println!("{:?}", x.outcome);
                for s in x.why {
                    println!("  {} {}", s.place.map_or(String::new(), |p| p.to_string()), s.what)
                }
            }
            Err(e) => println!("{e}"),
        }
        println!("OURS {:?}", decide(&program, &r).outcome);
    }
}
