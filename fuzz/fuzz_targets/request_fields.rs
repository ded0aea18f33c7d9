//! What is read of a request's fields once it is one: where it goes, how long
//! it may take, who asked before us. What we add can be sent.
#![no_main]

use edge_proxy::{
    http1::{Limits, parse},
    outbound::{deadline, target},
};
use libfuzzer_sys::fuzz_target;
use mesh_api::v1::{self, resource::Resource as Kind};
use mesh_core::{
    Snapshot, apply,
    message::{
        RequestHead,
        fields::{is_name, is_value},
        forwarded::{Forwarding, Policy},
    },
};

/// A site with one service.
fn site() -> Snapshot {
    let site =
        v1::Site { name: "west".into(), trust_domain: "west.example".into(), ..Default::default() };
    let port = v1::Port { name: "http".into(), number: 80, protocol: v1::Protocol::Http.into() };
    let orders =
        v1::Service { name: "orders.shop".into(), ports: vec![port], ..Default::default() };
    let upsert =
        [Kind::Site(site), Kind::Service(orders)].map(|kind| v1::Resource { resource: Some(kind) });
    let to = Some(v1::Revision { epoch: 1, n: 1 });
    let delta = v1::Delta { to, upsert: upsert.into(), ..Default::default() };
    apply(None, &delta).expect("well formed")
}

const POLICIES: [Policy; 4] = [Policy::Keep, Policy::Append, Policy::Replace, Policy::Off];

fuzz_target!(|data: &[u8]| {
    let [which, data @ ..] = data else { return };
    let _any = deadline::parse_millis(data);
    let mut head = RequestHead::new();
    if !matches!(parse::request(data, &Limits::default(), &mut head), Ok(Some(_))) {
        return;
    }
    let _where = target::resolve(&head, &site());
    if let Some(left) = deadline::of_client(&head) {
        deadline::write(&mut head.fields, left);
        let again = deadline::of_client(&head).expect("we have written it");
        assert!(again <= left);
    }
    let policy = |n: u8| POLICIES[usize::from(n % 4)];
    let forwarding = Forwarding { forwarded: policy(*which), x_forwarded: policy(which / 4) };
    let client = if which & 16 == 0 { "192.0.2.1" } else { "2001:db8::1" };
    forwarding.apply(&mut head, client.parse().expect("an address"), &mut String::new());
    assert!(head.fields.iter().all(|(name, value)| is_name(name.as_bytes()) && is_value(value)));
});
