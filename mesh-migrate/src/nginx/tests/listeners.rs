//! Listeners at all addresses, and at one of them.

use super::{config, convert, told_of};
use crate::nginx::tests::get;

/// A connection comes to the closest one, with nginx and with ours.
#[test]
fn one_of_all_addresses_has_servers_of_its_own() {
    let text = "server { listen 80; listen [::]:80; return 206; }\n\
        server { listen 10.20.0.4:80; server_name b; return 207; }";
    let (program, _) = convert(&config(&format!(
        "http {{ {text} }}\nstream {{ server {{ listen 82; proxy_pass 10.20.1.1:80; }}\n\
         server {{ listen 10.20.0.4:82; proxy_pass 10.20.1.2:80; }} }}"
    )))
    .unwrap();
    let all = program.listeners.iter().flat_map(|listener| &listener.addresses);
    let all: Vec<_> = all.map(ToString::to_string).collect();
    let expected = ["0.0.0.0:80", "10.20.0.4:80", "[::]:80", "0.0.0.0:82", "10.20.0.4:82"];
    assert_eq!(all, expected);
    for (at, expected) in [("0.0.0.0:80", "206 "), ("10.20.0.4:80", "207 ")] {
        assert_eq!(told_of(text, &get(at, "x", "/")), [expected; 2], "{at}");
    }
}
