//! gRPC `Agent` on `agent.sock`: what `meshctl` may ask of this machine.

use std::{pin::Pin, sync::Arc};

use mesh_api::v1::{
    AgentStatusRequest, AgentStatusResponse, JoinProgress, JoinSiteRequest, LeaveSiteRequest,
    LeaveSiteResponse, agent_server,
};
use mesh_runtime::drain::Drain;
use tokio::{
    sync::mpsc,
    time::{Duration, timeout},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status};

use super::{Callers, MAX_REQUEST, refuse};
use crate::{
    agent::Agent,
    join::{self, Progress},
};

/// Lines of progress that a slow reader may be behind.
const LINES: usize = 512;
/// For a reader that does not take the result.
const SEND: Duration = Duration::from_secs(5);

/// Serves `meshctl`.
pub struct Operator {
    agent: Arc<Agent>,
    callers: Callers,
    drain: Drain,
}

impl Operator {
    /// For root and the agent's own user.
    pub fn server(agent: Arc<Agent>, drain: Drain) -> agent_server::AgentServer<Self> {
        let operator = Self { agent, callers: Callers::own(), drain };
        agent_server::AgentServer::new(operator).max_decoding_message_size(MAX_REQUEST)
    }
}

type Lines = Pin<Box<dyn Stream<Item = Result<JoinProgress, Status>> + Send>>;

#[tonic::async_trait]
impl agent_server::Agent for Operator {
    type JoinSiteStream = Lines;

    async fn join_site(
        &self,
        request: Request<JoinSiteRequest>,
    ) -> Result<Response<Lines>, Status> {
        self.callers.check(&request)?;
        let token = request.into_inner().token;
        let (lines, reader) = mpsc::channel(LINES);
        // A task of its own: a caller who goes away half way must not leave a
        // token spent and its identity lost.
        self.drain.spawn(run_join(self.agent.clone(), token, Progress(lines)));
        Ok(Response::new(Box::pin(ReceiverStream::new(reader))))
    }

    async fn leave_site(
        &self,
        request: Request<LeaveSiteRequest>,
    ) -> Result<Response<LeaveSiteResponse>, Status> {
        self.callers.check(&request)?;
        let _changing = self.agent.changing.try_lock().map_err(|_| busy())?;
        join::leave(&self.agent, request.into_inner().force).await?;
        Ok(Response::new(LeaveSiteResponse {}))
    }

    async fn agent_status(
        &self,
        request: Request<AgentStatusRequest>,
    ) -> Result<Response<AgentStatusResponse>, Status> {
        self.callers.check(&request)?;
        Ok(Response::new(self.agent.status()))
    }
}

fn busy() -> Status {
    refuse(Code::Aborted, "busy", "this machine is joining or leaving already; wait for it")
}

async fn run_join(agent: Arc<Agent>, token: String, progress: Progress) {
    let joined = async {
        let _changing = agent.changing.try_lock().map_err(|_| busy())?;
        let late = |_| {
            let message =
                format!("not joined within {:?}; try again with the same token", join::DEADLINE);
            refuse(Code::DeadlineExceeded, "join_timeout", message)
        };
        timeout(join::DEADLINE, join::join(&agent, &token, &progress)).await.map_err(late)?
    };
    let last = match joined.await {
        Ok(()) => Ok(JoinProgress { step: String::new(), result: Some(agent.status()) }),
        Err(status) => {
            log::error!("join failed: {}", status.message());
            Err(status)
        }
    };
    let _ = timeout(SEND, progress.0.send(last)).await;
}
