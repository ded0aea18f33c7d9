//! HTTP/2 as a local client sends it: however it is cut, the same bytes are
//! replaced, and none of the preface.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_tunnel::unix::authority::Authorities;

fuzz_target!(|data: &[u8]| {
    let mut whole = data.to_vec();
    Authorities::default().mend(&mut whole);
    let (mut pieces, mut authorities) = (data.to_vec(), Authorities::default());
    for byte in pieces.chunks_mut(1) {
        authorities.mend(byte);
    }
    assert_eq!(whole, pieces);
    let preface = data.len().min(24);
    assert_eq!(whole[..preface], data[..preface]);
    let mut again = whole.clone();
    Authorities::default().mend(&mut again);
    assert_eq!(again, whole, "what is right stays");
});
