//! From the application into the mesh. Four ways in: the HTTP proxy listener,
//! its like for TLS, explicit listeners for one service, and captured traffic. In reading order:
//! - [`listen`]: accepting, and which of them it is.
//! - [`sniff`]: what a connection speaks.
//! - [`port`]: what has to be known of connections to a port.
//! - [`front`]: HTTP/1 and HTTP/2 towards clients.
//! - [`target`]: which service a request names.
//! - [`dtab`]: where a request says that it goes instead, as Linkerd 1.x has it.
//! - [`request`]: one request: its rule, what the rule does, its answer.
//! - [`reply`]: the answer that its rule gives itself.
//! - [`decision`]: which rule, and which of its backends.
//! - [`deadline`]: how long it may take, as it travels.
//! - [`protect`]: what this proxy allows itself at one service.
//! - [`answer`]: what came back, and what it holds.
//! - [`attempts`]: sending, and sending again where that is safe.
//! - [`mirror`]: copies whose answers nobody waits for.
//! - [`opaque`]: one connection of opaque bytes.
//! - [`tls`]: the same, by the name that a TLS client asks for.
//! - [`dispatch`]: which endpoint takes the next attempt.
//! - [`hold`]: waiting where the only one has just gone.
//! - [`pool`]: warm inner sessions.
//! - [`loads`]: what this worker has seen of endpoints.
//! - [`probation`]: how an endpoint that was away comes back.
//! - [`probe`]: asking endpoints how they are.
//! - [`body`]: bodies on their way through.

pub mod answer;
pub mod attempts;
pub mod body;
pub mod deadline;
pub mod decision;
pub mod dispatch;
pub mod dtab;
pub mod front;
pub mod hold;
pub mod listen;
pub mod loads;
pub mod mirror;
pub mod opaque;
pub mod pool;
pub mod port;
pub mod probation;
pub mod probe;
pub mod protect;
pub mod reply;
pub mod request;
pub mod sniff;
pub mod target;
pub mod tls;
