//! How a process of the mesh starts, reports and stops.
//!
//! - [`drain`]: stop accepting, then stop; who spawns, joins.
//! - [`config`]: YAML with unknown keys refused by file, line and nearest key.
//! - [`logs`]: journald where systemd started us, stderr elsewhere.
//! - [`admin`]: `/metrics /live /ready` over plain HTTP.
//! - [`usage`]: what the process uses, for `/metrics`.
//! - [`systemd`]: `READY=1`, `STOPPING=1`, status lines, descriptors kept.
//! - [`pulse`]: whether threads still run their tasks.
//! - [`clock`]: the only place that reads one.
//! - [`changes`]: files that change, without looking all the time.
//! - [`files`]: keys and state, written whole, readable by their owner alone.
//! - [`memory`]: pages of the program given back after the start, and a limit.
//! - [`process`]: exit codes, runtime, panics, Unix sockets.
//!
//! It knows nothing of meshes, identities or policy.

pub mod admin;
pub mod changes;
pub mod clock;
pub mod config;
pub mod drain;
pub mod files;
pub mod logs;
pub mod memory;
pub mod process;
pub mod pulse;
pub mod systemd;
pub mod usage;
