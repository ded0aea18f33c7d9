//! Linkerd's annotations of routes.

use std::collections::BTreeMap;

use mesh_api::v1;

/// Changes a rule as the annotations of its route say.
pub(super) fn apply(
    route: &mut v1::Route,
    annotations: &BTreeMap<String, String>,
) -> Result<(), String> {
    let duration = |key: &str| -> Result<u64, String> {
        let Some(text) = annotations.get(key) else { return Ok(0) };
        let parsed: mesh_runtime::config::HumanDuration =
            text.parse().map_err(|error| format!("metadata.annotations.{key}: {error}"))?;
        Ok(u64::try_from(parsed.0.as_millis()).unwrap_or(u64::MAX))
    };
    for (key, field) in [
        ("timeout.linkerd.io/request", &mut route.request_timeout_ms),
        ("retry.linkerd.io/timeout", &mut route.backend_timeout_ms),
    ] {
        let millis = duration(key)?;
        if millis != 0 {
            *field = millis;
        }
    }
    let (http, grpc) =
        (annotations.get("retry.linkerd.io/http"), annotations.get("retry.linkerd.io/grpc"));
    if http.is_none() && grpc.is_none() {
        return Ok(());
    }
    let key = "metadata.annotations.retry.linkerd.io/limit";
    let limit = annotations.get("retry.linkerd.io/limit").map(|text| text.parse()).transpose();
    route.retry = Some(v1::RetryPolicy {
        attempts: limit.map_err(|_| format!("{key}: must be a number"))?.unwrap_or(1),
        statuses: http.map(|text| linkerd_statuses(text)).transpose()?.unwrap_or_default(),
        grpc_codes: grpc.map(|text| linkerd_grpc(text)).transpose()?.unwrap_or_default(),
        any_method: true,
        ..v1::RetryPolicy::default()
    });
    Ok(())
}

/// `5xx`, `gateway-error`, `503`, `500-504`, with commas.
fn linkerd_statuses(text: &str) -> Result<Vec<v1::StatusRange>, String> {
    let one = |part: &str| {
        let (from, to) = match part.trim() {
            "5xx" => (500, 599),
            "gateway-error" => (502, 504),
            part => {
                let (from, to) = part.split_once('-').unwrap_or((part, part));
                let both = from.parse().ok().zip(to.parse().ok());
                both.ok_or_else(|| format!("retry.linkerd.io/http: {part:?} is no status"))?
            }
        };
        Ok(v1::StatusRange { from, to })
    };
    text.split(',').map(one).collect()
}

fn linkerd_grpc(text: &str) -> Result<Vec<u32>, String> {
    let one = |part: &str| match part.trim() {
        "cancelled" => Ok(1),
        "deadline-exceeded" => Ok(4),
        "resource-exhausted" => Ok(8),
        "internal" => Ok(13),
        "unavailable" => Ok(14),
        part => Err(format!("retry.linkerd.io/grpc: {part:?} is no code it knows")),
    };
    text.split(',').map(one).collect()
}
