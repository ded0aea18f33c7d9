//! What a process and its successor say to each other: any packet is one of
//! the few that there are, or an error, and whose a datagram is can always be
//! said.
#![no_main]

use edge_proxy::handover::Said;
use libfuzzer_sys::fuzz_target;
use mesh_tunnel::datagrams::read_passed;

fuzz_target!(|data: &[u8]| {
    if let Some((meta, datagrams)) = read_passed(data) {
        assert!(meta.len == datagrams.len() && data.starts_with(datagrams));
    }
    if let Ok(said) = String::from_utf8_lossy(data).parse::<Said>() {
        assert_eq!(said.to_string().parse(), Ok(said));
    }
});
