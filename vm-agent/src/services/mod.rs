//! The services of this machine: what their files say, and how they are.
//!
//! - [`file`]: one file, parsed.
//! - [`check`]: one service, asked whether it is well, again and again.
//! - [`probe`]: the question, over TCP, HTTP, gRPC, or to systemd.
//! - [`exec`]: the question to a command, which somebody else runs.
//! - [`watch`]: the directory, followed.

pub mod check;
pub mod exec;
pub mod file;
pub mod probe;
pub mod watch;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

pub use file::ServiceSpec;
use mesh_api::v1;

/// One service as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct Local {
    /// What its file says.
    pub spec: Arc<ServiceSpec>,
    /// Unspecified until its first check has ended; it is registered then.
    pub health: v1::Health,
    /// What the last check saw, for people.
    pub detail: String,
}

/// All services as they are now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Services {
    /// By instance.
    pub local: BTreeMap<String, Local>,
    /// Files that describe no service, and why.
    pub broken: BTreeMap<PathBuf, String>,
    /// How often the directory has been read.
    pub reads: u64,
}

impl Services {
    /// Whether every service has been checked at least once.
    pub fn settled(&self) -> bool {
        self.reads > 0 && self.local.values().all(|local| local.health != v1::Health::Unspecified)
    }
}
