//! A request's head from a client: more bytes never change an answer, and
//! what was read is written so that the next reader sees the same request.
#![no_main]

use edge_proxy::http1::{Body, Limits, parse, write};
use libfuzzer_sys::fuzz_target;
use mesh_core::message::{RequestHead, codec, hop};

fuzz_target!(|data: &[u8]| {
    let limits = Limits::default();
    let (mut head, mut again) = (RequestHead::new(), RequestHead::new());
    let whole = parse::request(data, &limits, &mut head);
    for end in [data.len() / 3, data.len() * 2 / 3, data.len().saturating_sub(1)] {
        match parse::request(&data[..end], &limits, &mut again) {
            Ok(None) => {}
            early => assert_eq!(early, whole),
        }
    }
    let Ok(Some(request)) = whole else { return };
    assert!(request.head_len <= data.len());
    hop::remove(&mut head.fields, hop::Upgrade::Drop);
    hop::remove_mesh(&mut head.fields);
    let (mut code, mut out) = (Vec::new(), Vec::new());
    codec::put_request(&head, &mut code);
    codec::get_request(&code, &mut again).expect("the other proxy can read it");
    assert_eq!(head, again);
    // HTTP/1.0 may come without a host; what we send has one.
    if head.authority.is_empty() {
        head.authority.push('a');
    }
    write::request(&head, request.body, &mut out);
    let seen = parse::request(&out, &limits, &mut again);
    if let Ok(Some(seen)) = seen {
        assert_eq!((seen.head_len, &again.authority), (out.len(), &head.authority));
        assert_eq!((&again.method, &again.target), (&head.method, &head.target));
        let same = seen.body == request.body || (request.body, seen.body) == (Body::None, Body::Length(0));
        assert!(same, "{:?} became {:?}", request.body, seen.body);
    } else {
        // What we add may be too much for the limits, and nothing else.
        assert!(out.len() + 64 > limits.head || head.fields.len() + 3 > limits.fields, "{seen:?}");
    }
});
