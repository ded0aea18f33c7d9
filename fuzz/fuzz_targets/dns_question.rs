//! What anybody on a machine sends to its names: an answer is short, says it is
//! one, and is to that question.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vm_agent::dns::{answer::answer, names::Names};

static NAMES: LazyLock<Names> = LazyLock::new(|| {
    Names::parse("orders.shop 240.0.0.7\norders.shop fd69:7374:686d::f000:7\nbank.shop 240.0.0.8\n")
});

fuzz_target!(|question: &[u8]| {
    let Some(said) = answer(question, &NAMES) else { return };
    assert!((12..=512).contains(&said.len()), "{} bytes", said.len());
    assert_eq!(said[..2], question[..2], "to another question");
    assert_eq!(said[2] & 0x80, 0x80, "a question is answered by one");
});
