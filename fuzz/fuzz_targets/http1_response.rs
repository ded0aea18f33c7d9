//! A response's head from an application, whatever was asked.
#![no_main]

use edge_proxy::http1::{
    Body, Limits,
    parse::{self, Asked},
    write::{self, Reader},
};
use libfuzzer_sys::fuzz_target;
use mesh_core::message::{ResponseHead, codec, hop};

fuzz_target!(|data: &[u8]| {
    let Some((flags, data)) = data.split_first() else { return };
    let asked = Asked { head: flags & 1 != 0, connect: flags & 2 != 0, upgrade: flags & 4 != 0 };
    let limits = Limits::default();
    let (mut head, mut again) = (ResponseHead::new(), ResponseHead::new());
    let whole = parse::response(data, &limits, asked, &mut head);
    for end in [data.len() / 2, data.len().saturating_sub(1)] {
        match parse::response(&data[..end], &limits, asked, &mut again) {
            Ok(None) => {}
            early => assert_eq!(early, whole),
        }
    }
    let Ok(Some(response)) = whole else { return };
    assert!(response.head_len <= data.len());
    hop::remove(&mut head.fields, hop::Upgrade::Drop);
    let mut code = Vec::new();
    codec::put_response(&head, &mut code);
    codec::get_response(&code, &mut again).expect("the other proxy can read it");
    assert_eq!(head, again);
    if head.status.is_informational() {
        return;
    }
    let version = if flags & 8 != 0 { http::Version::HTTP_10 } else { http::Version::HTTP_11 };
    let reader = Reader { asked, version, keep_alive: true };
    let mut out = Vec::new();
    let (_, keep_alive) = write::response(&head, response.body, reader, &mut out);
    let Ok(Some(seen)) = parse::response(&out, &limits, asked, &mut again) else {
        assert!(out.len() + 64 > limits.head || head.fields.len() + 3 > limits.fields);
        return;
    };
    assert_eq!(seen.head_len, out.len());
    // Nobody may take the end of this answer for something else.
    let same = match response.body {
        Body::None | Body::Length(0) => matches!(seen.body, Body::None | Body::Length(0)),
        Body::Chunked | Body::Close => matches!(seen.body, Body::Chunked | Body::Close),
        body => seen.body == body,
    };
    assert!(same, "{:?} became {:?}", response.body, seen.body);
    assert!(!keep_alive || seen.keep_alive);
});
