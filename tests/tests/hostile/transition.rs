//! A listener with a certificate of another CA, as operators of the site see it.

use std::{fs, os::unix::fs::PermissionsExt};

use mesh_runtime::clock;
use serde_json::{Value, json};

use crate::{
    programs::{eventually, said},
    site::{Machine, Site},
};

const M1: Machine = Machine("m1", 21);
const DAY: u64 = 24 * 3600;

/// Machine m1 has two of them, which end in `days` and a year later.
fn write_listeners(site: &Site, days: u64) -> [String; 2] {
    let run = site.run_dir(M1);
    let made = rcgen::generate_simple_self_signed(["old.example".to_owned()]).unwrap();
    let pem = run.join("old.pem");
    fs::write(&pem, made.cert.pem() + &made.signing_key.serialize_pem()).unwrap();
    fs::set_permissions(&pem, fs::Permissions::from_mode(0o600)).unwrap();
    let now = clock::now_unix().as_secs();
    let ends = [now + days * DAY + 3600, now + (days + 365) * DAY];
    let mut text = fs::read_to_string(run.join("proxy.yaml")).unwrap();
    for (port, end) in [7443, 7444].into_iter().zip(ends) {
        text += &format!(
            "  - {{ listen: '{}', service: orders.shop, port: http, \
             tls: {{ certificate: {}, until: '{}' }} }}\n",
            site.addr(M1.1, port),
            pem.display(),
            clock::utc(end),
        );
    }
    fs::write(run.join("proxy.yaml"), text).unwrap();
    ends.map(clock::utc)
}

fn status(site: &Site) -> Value {
    serde_json::from_str(&site.said(&["--json", "status"])).unwrap()
}

#[test]
fn the_site_shows_when_tls_of_another_ca_ends_and_warns_in_time() {
    let mut site = Site::start();
    site.prepare(M1);
    let ends = write_listeners(&site, 5);
    site.start_agent(M1);
    site.start_proxy(M1);
    said(&site.join(M1, &site.token()));
    let is_of_m1 = |proxy: &&Value| !proxy["node"].as_str().unwrap().is_empty();
    let told = eventually("the proxy has told of them", || {
        let status = status(&site);
        let all = status["proxies"].as_array().unwrap();
        let told = all.iter().find(is_of_m1).map(|proxy| proxy["transitions"].clone());
        told.filter(|told| told[0].is_object()).ok_or_else(|| status.to_string())
    });
    for (at, port) in [7443, 7444].into_iter().enumerate() {
        let name = site.addr(M1.1, port).to_string();
        assert_eq!((&told[at]["kind"], &told[at]["name"]), (&json!("listener"), &json!(name)));
        let until = told[at]["until_unix_s"].as_u64().unwrap();
        assert_eq!(clock::utc(until), ends[at]);
    }
    let text = site.said(&["status"]);
    for end in &ends {
        assert!(text.contains(end.as_str()), "{text}");
    }
    let warnings = text.lines().filter(|line| line.contains("TLS of another CA ends"));
    let warnings: Vec<&str> = warnings.collect();
    let name = site.addr(M1.1, 7443).to_string();
    assert!(warnings.len() == 1 && warnings[0].contains(&name), "{text}");
    assert!(warnings[0].contains("5 days"), "{text}");
    site.check_alive();
}
