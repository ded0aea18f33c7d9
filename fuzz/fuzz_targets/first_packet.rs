//! What a QUIC client says first, read before anything is decrypted: any bytes
//! are an Initial, broken or something else, and what an Initial says stands in
//! it in that order.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_tunnel::retry::{First, first_of};

fuzz_target!(|data: &[u8]| {
    let First::Initial(initial) = first_of(data) else { return };
    assert!(data.len() >= 1200 && (8..=20).contains(&initial.destination.len()));
    let mut rest = &data[5..];
    for id in [initial.destination, initial.source] {
        let (length, after) = rest.split_first().unwrap();
        assert_eq!(usize::from(*length), id.len());
        rest = after.strip_prefix(id).unwrap();
    }
    let length = 1 << (rest[0] >> 6);
    assert!(rest[length..].starts_with(initial.token));
    // What follows begins nothing, and short of it there is no Initial.
    assert_ne!(first_of(&data[..1199]), First::Initial(initial));
});
