//! `vm-agent migrate`: moves what a legacy proxy of this machine does to a proxy of
//! ours, and back. A process of its own, because it may change the kernel's rules,
//! start and stop programs; it carries no payload.
//!
//! In reading order:
//! - [`record`]: a move as the disk has it.
//! - [`keeper`]: its steps, and what is brought about again and again.
//! - [`shadow`]: whether answers are alike.
//! - [`redirect`]: what the kernel does with new connections.
//! - [`proxy`], [`legacy`]: the two processes.
//! - [`sockets`]: what the kernel says of them.
//! - [`tracked`]: connections that are gone and still lead somewhere.
//! - [`capacity`]: whether there is room for both.

pub mod capacity;
pub mod keeper;
pub mod legacy;
pub mod proxy;
pub mod record;
pub mod redirect;
pub mod shadow;
pub mod sockets;
pub mod tracked;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use mesh_runtime::{drain::Drain, process};
use mesh_tunnel::Net;
use tokio::sync::mpsc;

use self::{
    keeper::{CALLS, Keeper},
    proxy::Supervisor,
    record::Moves,
};
use crate::{api::migrate::Operator, app, config::MigrateFlags};

/// For an answer that is on its way.
const GOODBYE: Duration = Duration::from_secs(1);

/// The whole process.
///
/// # Errors
///
/// The state directory or the socket cannot be had.
pub async fn run(flags: MigrateFlags, net: Arc<dyn Net>) -> anyhow::Result<()> {
    // Our proxy runs somewhere else.
    let moves = Moves(std::path::absolute(flags.state)?);
    if flags.remove {
        let (_, nobody) = mpsc::channel(CALLS);
        let supervisor = Supervisor::find(flags.edge_proxy);
        return Ok(Keeper::new(moves, supervisor, nobody).remove().await?);
    }
    std::fs::create_dir_all(&moves.0)
        .with_context(|| format!("{}: cannot be made", moves.0.display()))?;
    let socket = net.bind_unix(&flags.run.join("migrate.sock"), 0o600).await?;
    let drain = Drain::new();
    let (calls, asked) = mpsc::channel(CALLS);
    let supervisor = Supervisor::find(flags.edge_proxy);
    let mut keeper = Keeper::new(moves, supervisor, asked);
    keeper.restore().await;
    drain.spawn(app::serve(socket, Operator::server(calls), drain.clone()));
    drain.spawn(keeper.run(drain.clone()));
    log::info!(version = env!("CARGO_PKG_VERSION"); "started");
    process::until_terminated(&drain).await?;
    drain.finish(GOODBYE).await;
    log::info!("stopped");
    Ok(())
}
