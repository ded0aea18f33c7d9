//! Retry policies: "x-envoy-retry-on" says what the words mean.

use std::time::Duration;

use crate::{
    envoy::{notes::Notes, tree::Tree},
    program::Retry,
};

/// `None` where nothing is repeated.
pub(super) fn retry(policy: &Tree, notes: &mut Notes) -> Option<Retry> {
    let on = policy.text("retry_on").unwrap_or_default();
    let mut retry = Retry {
        attempts: policy.count("num_retries").unwrap_or(1),
        any_method: true,
        backoff: Some(backoff(policy)),
        ..Retry::default()
    };
    let mut unknown = Vec::new();
    for word in on.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word {
            "5xx" => {
                retry.statuses.extend(500..=599);
                retry.on_reset = true;
            }
            "gateway-error" => {
                retry.statuses.extend(502..=504);
                retry.on_reset = true;
            }
            "reset" => retry.on_reset = true,
            // What has seen nothing of a request may have it again anyway.
            "reset-before-request"
            | "connect-failure"
            | "refused-stream"
            | "http3-post-connect-failure" => {}
            "retriable-4xx" => retry.statuses.push(409),
            "retriable-status-codes" => {
                let codes = policy.list("retriable_status_codes").iter();
                retry.statuses.extend(codes.filter_map(|code| match code.what {
                    crate::envoy::tree::What::Whole(code) => u16::try_from(code).ok(),
                    _ => None,
                }));
            }
            "cancelled" => retry.grpc_statuses.push(1),
            "deadline-exceeded" => retry.grpc_statuses.push(4),
            "resource-exhausted" => retry.grpc_statuses.push(8),
            "internal" => retry.grpc_statuses.push(13),
            "unavailable" => retry.grpc_statuses.push(14),
            other => unknown.push(other),
        }
    }
    retry.statuses.sort_unstable();
    retry.statuses.dedup();
    retry.grpc_statuses.sort_unstable();
    retry.grpc_statuses.dedup();
    if let Some(field) = policy.entry("retry_on").filter(|_| !unknown.is_empty()) {
        let meaning = format!("nothing is repeated for {}", unknown.join(", "));
        notes.dropped(&field.place, meaning);
    }
    (retry.attempts > 0 && !on.trim().is_empty()).then_some(retry)
}

fn backoff(policy: &Tree) -> Duration {
    let own = policy.msg("retry_back_off").and_then(|one| one.duration("base_interval"));
    own.unwrap_or(Duration::from_millis(25))
}
