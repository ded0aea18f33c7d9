//! What requests say of traces: nothing is read that cannot be said again.
#![no_main]

use edge_proxy::trace::context::Context;
use libfuzzer_sys::fuzz_target;
use mesh_core::message::Fields;

const NAMES: [&str; 7] = [
    "traceparent",
    "b3",
    "grpc-trace-bin",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-sampled",
    "x-b3-flags",
];

fuzz_target!(|data: &[u8]| {
    let mut fields = Fields::new();
    for line in data.split(|byte| *byte == b'\n') {
        let Some((name, value)) = line.split_first() else { continue };
        let name = NAMES[usize::from(*name) % NAMES.len()];
        let _invalid = fields.try_push(name.as_bytes(), value);
    }
    let Some(context) = Context::read(&fields) else { return };
    let span = [7; 8];
    context.write(span, &mut fields);
    let again = Context::read(&fields).expect("we have written it");
    assert_eq!((again.trace, again.span), (context.trace, span));
    assert_eq!(again.is_sampled(), context.is_sampled());
});
