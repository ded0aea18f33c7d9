//! Durations as manifests write them.

use std::{borrow::Cow, time::Duration};

use mesh_runtime::config::HumanDuration;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

/// `10s`, `250ms`, `1m30s` (GEP-2257); `0s` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(transparent)]
pub struct ManifestDuration(pub HumanDuration);

impl ManifestDuration {
    /// Whole milliseconds, as they travel.
    pub fn millis(self) -> u64 {
        u64::try_from(self.0.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// As a [`Duration`].
    pub fn get(self) -> Duration {
        self.0.0
    }
}

/// Milliseconds of one that may be absent; 0 if so.
pub(crate) fn millis(duration: Option<ManifestDuration>) -> u64 {
    duration.map_or(0, ManifestDuration::millis)
}

impl JsonSchema for ManifestDuration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^([0-9]+(d|h|m|s|ms))+$",
            "description": "A number and a unit: 250ms, 5s, 1m30s"
        })
    }
}
