//! gRPC `Migration` on `migrate.sock`: what `meshctl` may ask about legacy proxies.

use std::time::Duration;

use mesh_api::v1::{
    BeginMoveRequest, CutOverRequest, ListMovesRequest, ListMovesResponse, MoveRequest, MoveStatus,
    MovedListener, ShadowDifference, ShadowMoveRequest, ShadowVerdict, migration_server,
};
use mesh_migrate::shadow::verdict::Latency;
use tokio::sync::{mpsc, oneshot};
use tonic::{Code, Request, Response, Status};

use super::{Callers, refuse};
use crate::migrate::{
    keeper::{self, Ask, Begin, Call, CutOver, MoveError, ShadowAsk},
    record::{Kind, Legacy},
    shadow::{self, Found, Shadow},
};

/// The longest request: a configuration, and maybe an access log, in bytes.
const MAX_REQUEST: usize = 128 << 20;

/// Serves `meshctl`.
pub struct Operator {
    calls: mpsc::Sender<Call>,
    callers: Callers,
}

impl Operator {
    /// For root and the process's own user.
    pub fn server(calls: mpsc::Sender<Call>) -> migration_server::MigrationServer<Self> {
        let operator = Self { calls, callers: Callers::own() };
        migration_server::MigrationServer::new(operator).max_decoding_message_size(MAX_REQUEST)
    }

    async fn ask(&self, ask: Ask) -> Result<Vec<keeper::Status>, Status> {
        let stopping = || refuse(Code::Unavailable, "stopping", "the process is stopping");
        let (reply, answer) = oneshot::channel();
        self.calls.send((ask, reply)).await.map_err(|_| stopping())?;
        let answered = answer.await.map_err(|_| stopping())?;
        answered.map_err(|error| refused(&error))
    }

    async fn one(&self, ask: Ask) -> Result<Response<MoveStatus>, Status> {
        let status = self.ask(ask).await?.into_iter().next();
        Ok(Response::new(status.map(MoveStatus::from).unwrap_or_default()))
    }
}

fn refused(error: &MoveError) -> Status {
    let (code, reason) = match error {
        MoveError::Unknown(_) => (Code::NotFound, "no_move"),
        MoveError::Invalid(_) => (Code::InvalidArgument, "move_invalid"),
        MoveError::NotNow(_) => (Code::FailedPrecondition, "move_not_now"),
        MoveError::Nft(_) => (Code::Internal, "move_kernel"),
        MoveError::State(_) => (Code::Internal, "move_state"),
    };
    refuse(code, reason, error)
}

fn begin(request: BeginMoveRequest) -> Result<Begin, Status> {
    let legacy = request.legacy.unwrap_or_default();
    let kind = Kind::ALL.iter().find(|(name, _)| *name == legacy.kind).map(|(_, kind)| *kind);
    let kind = kind.ok_or_else(|| {
        let kinds: Vec<_> = Kind::ALL.iter().map(|(name, _)| *name).collect();
        let problem = format!("legacy.kind {:?}: one of {}", legacy.kind, kinds.join(", "));
        refuse(Code::InvalidArgument, "move_invalid", problem)
    })?;
    Ok(Begin {
        name: request.name,
        legacy: Legacy {
            kind,
            unit: legacy.unit,
            command: legacy.command,
            directory: "/".into(),
            control: legacy.control,
        },
        proxy_yaml: request.proxy_yaml,
        beside: vec![("site.yaml", request.site_yaml), ("rules.yaml", request.rules_yaml)],
    })
}

fn verdict_of(asked: &Shadow, found: &Found) -> ShadowVerdict {
    let tally = &found.tally;
    let differences = tally.groups().into_iter().map(|(cause, group)| ShadowDifference {
        cause: shadow::cause(cause),
        count: group.count,
        examples: group.examples.clone(),
    });
    let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let three = |latency: Option<Latency>| {
        latency.map(|all| vec![us(all.p50), us(all.p90), us(all.p99)]).unwrap_or_default()
    };
    ShadowVerdict {
        verdict: shadow::verdict(asked.verdict(found)).to_owned(),
        compared: tally.compared(),
        different: tally.different(),
        skipped: found.skipped,
        differences: differences.collect(),
        legacy_us: three(tally.legacy_latency()),
        proxy_us: three(tally.our_latency()),
        left_s: shadow::left(asked),
    }
}

impl From<keeper::Status> for MoveStatus {
    fn from(status: keeper::Status) -> Self {
        let record = status.record;
        let verdict = record.shadow.as_ref().map(|shadow| verdict_of(shadow, &status.found));
        let listeners = record.listeners.iter().map(|listener| MovedListener {
            name: listener.name.clone(),
            address: listener.address.to_string(),
            beside: listener.beside.to_string(),
        });
        Self {
            kind: record.legacy.kind.as_str().to_owned(),
            phase: record.phase.as_str().to_owned(),
            serves: status.serves.as_str().to_owned(),
            since_unix_s: record.since,
            problem: record.problem.clone(),
            listeners: listeners.collect(),
            shadow: verdict,
            watch_left_s: status.watch_left,
            requests: status.figures.requests,
            failures: status.figures.failures,
            p99_ms: status.figures.p99_ms,
            legacy_runs: status.legacy_listens,
            proxy_runs: status.proxy_ready,
            legacy_connections: status.legacy_connections,
            transitions: status.transitions,
            name: record.name,
        }
    }
}

#[tonic::async_trait]
impl migration_server::Migration for Operator {
    async fn begin_move(
        &self,
        request: Request<BeginMoveRequest>,
    ) -> Result<Response<MoveStatus>, Status> {
        self.callers.check(&request)?;
        self.one(Ask::Begin(Box::new(begin(request.into_inner())?))).await
    }

    async fn shadow_move(
        &self,
        request: Request<ShadowMoveRequest>,
    ) -> Result<Response<MoveStatus>, Status> {
        self.callers.check(&request)?;
        let asked = request.into_inner();
        let shadow = Shadow {
            percent: asked.percent,
            until: 0,
            at_least: asked.at_least.into(),
            methods: asked.methods,
            ignore_headers: asked.ignore_headers,
        };
        let (name, for_s, access_log) = (asked.name, asked.for_s, asked.access_log);
        self.one(Ask::Shadow(ShadowAsk { name, for_s, shadow, access_log })).await
    }

    async fn cut_over(
        &self,
        request: Request<CutOverRequest>,
    ) -> Result<Response<MoveStatus>, Status> {
        self.callers.check(&request)?;
        let asked = request.into_inner();
        let cut_over = CutOver {
            name: asked.name,
            watch_s: asked.watch_s,
            min_success: asked.min_success,
            max_p99_ms: asked.max_p99_ms,
            without_verdict: asked.without_verdict,
            drain_s: asked.drain_s,
        };
        self.one(Ask::CutOver(cut_over)).await
    }

    async fn roll_back(
        &self,
        request: Request<MoveRequest>,
    ) -> Result<Response<MoveStatus>, Status> {
        self.callers.check(&request)?;
        self.one(Ask::RollBack(request.into_inner().name)).await
    }

    async fn finish_move(
        &self,
        request: Request<MoveRequest>,
    ) -> Result<Response<MoveStatus>, Status> {
        self.callers.check(&request)?;
        self.one(Ask::Finish(request.into_inner().name)).await
    }

    async fn abandon_move(
        &self,
        request: Request<MoveRequest>,
    ) -> Result<Response<MoveStatus>, Status> {
        self.callers.check(&request)?;
        self.one(Ask::Abandon(request.into_inner().name)).await
    }

    async fn list_moves(
        &self,
        request: Request<ListMovesRequest>,
    ) -> Result<Response<ListMovesResponse>, Status> {
        self.callers.check(&request)?;
        let moves = self.ask(Ask::List).await?.into_iter().map(MoveStatus::from).collect();
        Ok(Response::new(ListMovesResponse { moves }))
    }
}
