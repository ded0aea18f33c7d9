//! From the application into the mesh. Three ways in: the HTTP proxy listener,
//! explicit listeners for one service, and captured traffic. In reading order:
//! - [`listen`]: accepting, and which of the three it is.
//! - [`sniff`]: what a connection speaks.
//! - [`front`]: HTTP/1 and HTTP/2 towards clients.
//! - [`target`]: which service a request names.
//! - [`request`]: one request: route, choose, send, try again.
//! - [`opaque`]: one connection of opaque bytes.
//! - [`dispatch`]: which endpoint takes the next attempt.
//! - [`pool`]: warm inner sessions.
//! - [`loads`]: what this worker has seen of endpoints.
//! - [`probation`]: how an endpoint that was away comes back.
//! - [`body`]: bodies on their way through.

pub mod body;
pub mod dispatch;
pub mod front;
pub mod listen;
pub mod loads;
pub mod opaque;
pub mod pool;
pub mod probation;
pub mod request;
pub mod sniff;
pub mod target;
