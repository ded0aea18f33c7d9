//! Whether a client may have what it asks for, and for how long.

use std::sync::Arc;

use mesh_core::{
    Call, Client, Denied, Endpoint, EndpointId, Permit, PortName, Reason, Service, ServiceName,
    Snapshot, authorize, message::RequestHead,
};

use crate::{metrics::authz::Decided, record::Record, refusal::Refusal, worker::Worker};

/// An endpoint of this proxy's own, the `named` one if it is one of them.
pub(crate) fn own_endpoint(
    worker: &Worker,
    snapshot: &Arc<Snapshot>,
    (service, port): (&ServiceName, &PortName),
    named: Option<&EndpointId>,
) -> Option<Arc<Endpoint>> {
    let endpoints = worker.view(snapshot).endpoints(service, port);
    let own = || endpoints.iter().filter(|endpoint| worker.is_own(snapshot, endpoint));
    own().find(|endpoint| Some(&endpoint.id) == named).or_else(|| own().next()).cloned()
}

/// Asks the policy of `service`; `record` tells what it says. What an audited
/// port would have refused is told.
pub(crate) fn admit(
    worker: &Worker,
    service: &Service,
    client: Client<'_>,
    call: &Call<'_>,
    record: &mut Record,
) -> Result<Permit, Refusal> {
    let permit = authorize(&service.policy, client, call).map_err(|denied| {
        record.decided(Decided::Denied);
        Refusal::new(denied.reason.reason(), denied.to_string())
    })?;
    record.decided(match permit.would_deny() {
        Some(_) => Decided::Audited,
        None => Decided::Allowed(permit.rule().cloned()),
    });
    if let Some(reason) = permit.would_deny() {
        let shared = &worker.shared;
        shared.audit.tell(&shared.metrics, client, (call.service, call.port), reason);
    }
    Ok(permit)
}

/// A call that was let through.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Running<'a> {
    /// Who.
    pub(crate) client: Client<'a>,
    /// What.
    pub(crate) service: &'a ServiceName,
    /// Which port of it.
    pub(crate) port: &'a PortName,
    /// Where it went.
    pub(crate) endpoint: &'a EndpointId,
    /// Of [`Changes`](crate::changes::Changes), before it was decided.
    pub(crate) seen: u64,
}

impl Running<'_> {
    /// Does `work` for as long as policies allow the call; what is dropped
    /// then breaks off.
    pub(crate) async fn while_allowed<T>(
        &self,
        worker: &Worker,
        request: Option<&RequestHead>,
        work: impl Future<Output = T>,
    ) -> Result<T, Denied> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            denied = self.until_denied(worker, request) => Err(denied),
        }
    }

    async fn until_denied(&self, worker: &Worker, request: Option<&RequestHead>) -> Denied {
        let call = Call { service: self.service, port: self.port, request };
        let mut seen = self.seen;
        loop {
            seen = worker.changes.after(seen).await;
            let snapshot = worker.shared.snapshot.load();
            let service =
                snapshot.as_ref().and_then(|snapshot| snapshot.services.get(self.service));
            let Some(service) = service else { continue };
            if let Err(denied) = authorize(&service.policy, self.client, &call) {
                return denied;
            }
        }
    }

    /// Tells that it was broken off.
    pub(crate) fn cut(&self, denied: &Denied, record: &mut Record) {
        record.failed(self.tell(denied));
    }

    /// Waits until bytes that nobody looks at may no longer go on; tells why.
    pub(crate) async fn until_cut(&self, worker: &Worker) -> Reason {
        self.tell(&self.until_denied(worker, None).await)
    }

    fn tell(&self, denied: &Denied) -> Reason {
        let reason = denied.reason.reason();
        log::info!(reason = reason.code(), endpoint = self.endpoint.as_str(); "cut: {denied}");
        reason
    }
}
