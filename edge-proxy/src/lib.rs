//! The data plane of the mesh: one binary, roles sidecar, node and gateway.
//!
//! The source routes, the destination authorizes, the gateway forwards what it
//! cannot read. In reading order:
//! - [`config`]: what was written in `proxy.yaml`, and what it means.
//! - [`app`]: wires the process together, top to bottom. Read it first.
//! - [`handover`]: a successor takes the place of this process.
//! - [`worker`]: one data worker: its listeners, pools and what it has seen of
//!   endpoints.
//! - [`gate`]: how many requests a worker begins at once.
//! - [`scratch`]: memory of requests in flight, lent by the worker.
//! - [`aside`]: what is waited for beside something busy.
//! - [`room`]: memory to read the bytes of a connection into.
//! - [`own`]: what this proxy knows of itself.
//! - [`snapshot_cell`]: the newest snapshot, and which services are wanted.
//! - [`files`]: identity and snapshot from files, without a control plane.
//! - [`identity`]: the SVID from the `WorkloadIdentity` socket, its renewal, and
//!   its copy on disk.
//! - [`discovery`]: the snapshot from federation and its copy on disk.
//! - [`names`]: what resolves on this machine.
//! - [`http1`]: HTTP/1 towards clients and applications.
//! - [`apps`]: connections to applications.
//! - [`outbound`]: from the application into the mesh.
//! - [`idle_frames`]: how many frames a peer may send that carry nothing.
//! - [`inner`]: the session between two proxies, end to end.
//! - [`inbound`]: from the mesh to the application.
//! - [`changes`] and [`audit`]: what running calls are told of policies, and what
//!   is told of calls.
//! - [`transition`]: TLS with certificates that are not of the mesh, until a date.
//! - [`tunnels`]: this proxy's tunnels to the gateways of its site.
//! - [`stats`]: what federation is told of the traffic.
//! - [`trace`]: spans of requests.
//! - [`statsd`]: figures for those who still have it.
//! - [`tap`]: requests as they end, for those who watch; [`control`]: where they
//!   ask.
//! - [`gateway`]: the role at a site's border.

pub mod access_log;
pub mod app;
pub mod apps;
mod aside;
pub mod audit;
pub mod await_ready;
mod beliefs;
pub mod changes;
pub mod config;
pub mod control;
pub mod copy;
pub mod discovery;
pub mod files;
pub mod gate;
pub mod gateway;
pub mod handover;
pub mod headers;
pub mod http1;
pub mod http2;
pub mod identity;
pub mod idle_frames;
pub mod inbound;
pub mod inner;
pub mod metrics;
pub mod names;
pub mod outbound;
pub mod own;
pub mod prefixed;
pub mod record;
pub mod refusal;
pub mod resolved;
mod retry;
pub mod room;
pub mod scratch;
pub mod snapshot_cell;
mod state_file;
pub mod stats;
pub mod statsd;
pub mod tap;
pub mod trace;
pub mod transition;
pub mod tunnels;
pub mod view;
pub mod worker;
