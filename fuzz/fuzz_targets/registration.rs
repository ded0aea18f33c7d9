//! What a node registers: what is accepted names a service that the node was
//! granted, under the identity of its grants and no other.
#![no_main]

use std::sync::LazyLock;

use federation::{
    authority::State,
    registration::decide_register,
};
use libfuzzer_sys::fuzz_target;
use mesh_api::v1::{
    AuthorityRecord, Grants, NodeJoined, RegistryRequest, Revision, SiteCreated,
    authority_record::Event, registry_request::Request,
};
use prost::Message;

const NODE: &str = "00000000-0000-4000-8000-000000000001";

static STATE: LazyLock<State> = LazyLock::new(|| {
    let site =
        SiteCreated { name: "west".into(), trust_domain: "west.example".into(), root: vec![1], ..Default::default() };
    let grants = Grants {
        namespace: "shop".into(),
        account: "orders".into(),
        services: vec!["*.shop".into()],
    };
    let joined =
        NodeJoined { id: NODE.into(), grants: Some(grants), ..NodeJoined::default() };
    let mut state = State::default();
    for (n, event) in [Event::SiteCreated(site), Event::NodeJoined(joined)].into_iter().enumerate()
    {
        let revision = Some(Revision { epoch: 1, n: n as u64 + 1 });
        let record =
            AuthorityRecord { revision, event: Some(event), ..AuthorityRecord::default() };
        state.fold(&record).expect("it follows");
    }
    state
});

fuzz_target!(|data: &[u8]| {
    let Ok(message) = RegistryRequest::decode(data) else { return };
    let Some(Request::Register(register)) = message.request else { return };
    let node = NODE.parse().expect("a node");
    let Ok(events) = decide_register(&STATE, &node, &register) else { return };
    for event in events {
        let Event::Registered(registered) = event else { panic!("{event:?}") };
        assert_eq!(registered.spiffe_id, "spiffe://west.example/ns/shop/sa/orders");
        let service = registered.register.expect("what is registered").service;
        assert!(service.ends_with(".shop"), "{service}");
    }
});
