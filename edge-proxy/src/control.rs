//! The Unix socket where this proxy's user and root look at its traffic.

use std::{io, pin::Pin};

use anyhow::Context as _;
use futures_util::{Stream, stream};
use mesh_api::v1::{
    self,
    proxy_server::{Proxy, ProxyServer},
};
use mesh_tunnel::unix;
use tonic::{Request, Response, Status, transport::Server};

use crate::{app::Shared, tap::Filter};

/// Calls at once on one connection: each watches.
const CALLS: usize = 16;
/// Of a request; its parts are names.
const MAX_REQUEST: usize = 64 << 10;

/// Serves until the process drains. Call it inside the control runtime.
///
/// # Errors
///
/// The socket cannot be made, or somebody listens there.
pub async fn start(shared: &Shared) -> anyhow::Result<()> {
    let Some(path) = &shared.config.control_socket else { return Ok(()) };
    let listener = shared.net.bind_unix(path, 0o600).await.context("control_socket")?;
    let service = ProxyServer::new(Control(shared.clone())).max_decoding_message_size(MAX_REQUEST);
    let drain = shared.drain.clone();
    shared.drain.spawn_beside(async move {
        let served = Server::builder()
            .concurrency_limit_per_connection(CALLS)
            .serve_with_incoming_shutdown(service, unix::incoming(listener), drain.draining())
            .await;
        if let Err(error) = served {
            log::error!(error:% = error; "the control socket is no longer served");
        }
    });
    Ok(())
}

/// The same where a predecessor still listens: it shows its own requests to
/// those who watch it, and nobody finds it any more. That the socket cannot be
/// made is no reason to end.
pub async fn take_over(shared: &Shared) {
    let Some(path) = &shared.config.control_socket else { return };
    let started = match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => start(shared).await,
    };
    if let Err(error) = started {
        log::error!(error:% = error; "nobody can look at requests");
    }
}

#[derive(Debug)]
struct Control(Shared);

#[tonic::async_trait]
impl Proxy for Control {
    type TapStream = Pin<Box<dyn Stream<Item = Result<v1::TapEvent, Status>> + Send>>;

    async fn tap(
        &self,
        request: Request<v1::TapRequest>,
    ) -> Result<Response<Self::TapStream>, Status> {
        let asked = request.into_inner();
        let max_rps = asked.max_rps;
        let filter =
            Filter::try_from(asked).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let watching = self.0.tap.watch(filter, max_rps);
        let watching = watching.map_err(|error| Status::resource_exhausted(error.to_string()))?;
        let drain = self.0.drain.clone();
        let events = stream::unfold((watching, drain), |(mut watching, drain)| async move {
            tokio::select! {
                event = watching.next() => event.map(|event| (Ok(event), (watching, drain))),
                () = drain.draining() => None,
            }
        });
        Ok(Response::new(Box::pin(events)))
    }
}
