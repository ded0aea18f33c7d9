//! The scripts of examples/static as they stand, on their own ports: this
//! namespace has them free.

use std::{path::Path, process::Command};

use crate::world::binaries;

/// What a script must print, each once or more.
const SCRIPTS: [(&str, &[&str]); 3] = [
    (
        "one-hop",
        &[
            "hello nobody, you asked hello.demo for /hello",
            "hello nobody, you asked hello.demo for /new/hello",
            "418",
        ],
    ),
    (
        "two-hop",
        &[
            "hello spiffe://west.example/ns/shop/sa/checkout, you asked orders.shop for /hello",
            "hello (grpc-status: 0)",
            "echo: ping",
            "is an address; this proxy carries only to services",
        ],
    ),
    (
        "gateways",
        &[
            "the link over quic",
            "the link over tls",
            "hello spiffe://west.example/ns/shop/sa/checkout, you asked orders.shop for /hello",
            "hello (grpc-status: 0)",
            "echo: ping",
            "transport=tls",
        ],
    ),
];

#[test]
fn every_example_runs_as_it_stands() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/static");
    for (name, wanted) in SCRIPTS {
        let mut command = Command::new("timeout");
        command.arg("120").arg(examples.join(name).join("try.sh"));
        command.env("EDGE_PROXY", binaries().join("edge-proxy"));
        let output = command.output().expect("timeout of coreutils");
        let (told, why) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{name}: {told}\n{why}");
        for text in wanted {
            assert!(told.contains(text), "{name} lacks {text:?}: {told}\n{why}");
        }
    }
}
