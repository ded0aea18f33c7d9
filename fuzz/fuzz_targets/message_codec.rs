//! Heads from another proxy: any bytes give a head or an error, and a head is
//! one that a parser could have made.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_core::message::{
    RequestHead, ResponseHead, codec,
    fields::{is_name, is_value},
};

fuzz_target!(|data: &[u8]| {
    let (mut head, mut again, mut out) = (RequestHead::new(), RequestHead::new(), Vec::new());
    if codec::get_request(data, &mut head).is_ok() {
        assert!(head.fields.iter().all(|(name, value)| is_name(name.as_bytes()) && is_value(value)));
        codec::put_request(&head, &mut out);
        codec::get_request(&out, &mut again).expect("what we write we can read");
        assert_eq!(head, again);
    }
    let _ = codec::get_response(data, &mut ResponseHead::new());
});
