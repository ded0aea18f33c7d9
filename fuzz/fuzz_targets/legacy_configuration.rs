//! Configurations of legacy proxies, which operators import.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_migrate::{
    legacy::{Format, Legacy, Outside},
    linkerd1::world::World,
    objects::{Wanted, objects},
    report::Report,
    request::{Http, Kind, Request},
    source::{Place, Problem, Source},
};

const FORMATS: [Format; 4] = [Format::Linkerd1, Format::Haproxy, Format::Nginx, Format::Envoy];

// The first byte says which format.
fuzz_target!(|input: (u8, &str)| {
    let (which, text) = input;
    let format = FORMATS[usize::from(which) % FORMATS.len()];
    let nothing = |name: &str| Err(Problem::at(&Place::start(&name.into()), "is not there"));
    let outside = Outside {
        file: &nothing,
        included: &|_| Err("is not there".to_owned()),
        variable: &|_| None,
        world: World::of_names(["/#/io.l5d.fs/web"]),
        names: Vec::new(),
    };
    let source = Source::of("fuzz", text);
    let Ok(legacy) = Legacy::read(format, vec![source], &outside) else { return };
    let http = Http {
        method: "GET".to_owned(),
        host: Some("web".to_owned()),
        target: "/a?b=c".to_owned(),
        headers: Vec::new(),
        is_http10: false,
    };
    let request = Request { listener: None, source: [127, 0, 0, 1].into(), kind: Kind::Http(http) };
    let _ = legacy.explain(&request);
    let Ok((program, mut ledger)) = legacy.convert() else { return };
    let wanted =
        Wanted { namespace: "legacy", site: "legacy", resolve: &|_| Vec::new(), tls_until: None };
    objects(&program, &wanted, &mut ledger).files();
    let report =
        Report::new(format.as_str(), &ledger, legacy.sources(), |line| format.is_blank(line));
    report.html();
});
