//! gRPC `Capture` on `capture.sock`: what `meshctl` may ask of the rules.

use std::time::Duration;

use mesh_api::v1::{
    CaptureStatusRequest, CaptureStatusResponse, ConfirmCaptureRequest, DisableCaptureRequest,
    EnableCaptureRequest, capture_server,
};
use tokio::sync::{mpsc, oneshot};
use tonic::{Code, Request, Response, Status};

use super::{Callers, MAX_REQUEST, refuse};
use crate::capture::keeper::{self, Ask, Call, CaptureError};

/// Serves `meshctl`.
pub struct Operator {
    calls: mpsc::Sender<Call>,
    callers: Callers,
}

impl Operator {
    /// For root and the process's own user.
    pub fn server(calls: mpsc::Sender<Call>) -> capture_server::CaptureServer<Self> {
        let operator = Self { calls, callers: Callers::own() };
        capture_server::CaptureServer::new(operator).max_decoding_message_size(MAX_REQUEST)
    }

    async fn ask<T>(
        &self,
        request: &Request<T>,
        ask: Ask,
    ) -> Result<Response<CaptureStatusResponse>, Status> {
        self.callers.check(request)?;
        let stopping = || refuse(Code::Unavailable, "stopping", "the process is stopping");
        let (reply, answer) = oneshot::channel();
        self.calls.send((ask, reply)).await.map_err(|_| stopping())?;
        let answered = answer.await.map_err(|_| stopping())?;
        answered.map(|status| Response::new(status.into())).map_err(|error| refused(&error))
    }
}

fn refused(error: &CaptureError) -> Status {
    let (code, reason) = match error {
        CaptureError::Config(_) => (Code::InvalidArgument, "capture_config"),
        CaptureError::Nft(_) | CaptureError::Kernel(_) => (Code::Internal, "capture_kernel"),
        CaptureError::State(_) => (Code::Internal, "capture_state"),
        CaptureError::Proxy(_) => (Code::FailedPrecondition, "proxy_not_ready"),
        CaptureError::Trial => (Code::InvalidArgument, "capture_trial"),
        CaptureError::Ssh(_) => (Code::FailedPrecondition, "capture_ssh"),
        CaptureError::NoTrial => (Code::FailedPrecondition, "capture_no_trial"),
    };
    refuse(code, reason, error)
}

impl From<keeper::Status> for CaptureStatusResponse {
    fn from(status: keeper::Status) -> Self {
        Self {
            state: status.state.to_owned(),
            confirm_within_s: u32::try_from(status.left.as_secs()).unwrap_or(u32::MAX),
            proxy_problem: status.proxy,
            problem: status.problem,
            captured: status.captured,
            never: status.never,
            waits_for: status.waits_for,
            rules: status.rules,
        }
    }
}

#[tonic::async_trait]
impl capture_server::Capture for Operator {
    async fn enable_capture(
        &self,
        request: Request<EnableCaptureRequest>,
    ) -> Result<Response<CaptureStatusResponse>, Status> {
        let EnableCaptureRequest { confirm_within_s, dry_run, ssh_port } = *request.get_ref();
        let within = Duration::from_secs(confirm_within_s.into());
        let ssh_port = u16::try_from(ssh_port).ok().filter(|port| *port != 0);
        self.ask(&request, Ask::Enable { within, dry_run, ssh_port }).await
    }

    async fn confirm_capture(
        &self,
        request: Request<ConfirmCaptureRequest>,
    ) -> Result<Response<CaptureStatusResponse>, Status> {
        self.ask(&request, Ask::Confirm).await
    }

    async fn disable_capture(
        &self,
        request: Request<DisableCaptureRequest>,
    ) -> Result<Response<CaptureStatusResponse>, Status> {
        self.ask(&request, Ask::Disable).await
    }

    async fn capture_status(
        &self,
        request: Request<CaptureStatusRequest>,
    ) -> Result<Response<CaptureStatusResponse>, Status> {
        self.ask(&request, Ask::Status).await
    }
}
