//! What is asked of taps and what they are told, as it is decoded on both ends
//! of the wire: a filter or an error, and nothing that a proxy shows is taken
//! for more than is allowed.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use mesh_api::v1::{self, discovery_request::Request, tap_event::Event};
use mesh_core::tap::{Allowance, Filter};
use prost::Message as _;

/// More than a watcher's queue holds.
const ROOM: usize = 300;

fuzz_target!(|data: &[u8]| {
    if let Ok(asked) = v1::TapRequest::decode(data) {
        let again = asked.clone();
        if let Ok(filter) = Filter::try_from(asked) {
            assert_eq!(filter.asked, again);
            assert!(filter.status.is_none_or(|(low, high)| low <= high));
        }
    }
    let Ok(message) = v1::DiscoveryRequest::decode(data) else { return };
    let Some(Request::TapShown(shown)) = message.request else { return };
    let mut allowance = Allowance::new(2);
    let event = shown.event.and_then(|event| event.event);
    let mut lost = 0;
    match event {
        Some(Event::Lost(count)) => {
            allowance.lose(count);
            allowance.lose(count);
            lost = count.saturating_mul(2);
        }
        Some(Event::Seen(_)) | None => {}
    }
    assert_eq!(allowance.take(Duration::ZERO, ROOM), Some(lost));
    assert_eq!(allowance.take(Duration::ZERO, ROOM), Some(0));
    assert_eq!(allowance.take(Duration::ZERO, ROOM), None);
});
