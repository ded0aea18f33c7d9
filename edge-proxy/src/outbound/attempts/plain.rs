//! One attempt at an application that has no proxy, in plaintext. Only this
//! proxy's own static snapshot names such endpoints.

use std::{sync::Arc, task::Poll};

use http::StatusCode;
use mesh_core::{
    Endpoint, Service,
    message::{BadHead, hop},
};
use tokio::time::{Instant, timeout_at};

use super::{
    super::{
        answer::{AnswerBody, Http2},
        body::ReplayBody,
        dispatch::Dispatch,
        loads::Attempt,
        probation,
        protect::Connection,
    },
    Carried, Sent,
    failed::Failed,
};
use crate::{
    apps::{Exchange, ExchangeError, MAX_HTTP2, is_final},
    http2::{self, RecvBody},
    inner::{Blame, mux::Spoken},
    record::Record,
    refusal::Refusal,
    worker::Worker,
};

/// Sends once. The body comes back where it may be sent again.
pub(super) async fn attempt(
    worker: &Arc<Worker>,
    dispatch: &Dispatch,
    endpoint: &Arc<Endpoint>,
    carried: &mut Carried<'_>,
    load: &mut Attempt,
    record: &mut Record,
    until: Option<Instant>,
) -> Result<Sent, Failed> {
    record.entry.path_kind = "direct";
    let Some(body) = carried.body.take() else { return Err(Failed::without_body()) };
    carried.tell_deadline();
    let to = To { worker, endpoint, service: limited(dispatch), until };
    let sent = match carried.speaks {
        Spoken::Http2 => to.over_http2(carried, body).await.map(|body| (body, None)),
        Spoken::Http1 | Spoken::Tcp => to.over_http1(carried, body).await,
    };
    let no = match sent {
        Ok((body, connection)) => {
            load.answered();
            return Ok(Sent { body, place: None, connection });
        }
        Err(no) => no,
    };
    match &no {
        NoAnswer::Failed(ExchangeError::NotConnected(_)) => {
            load.unreachable();
            probation::start(worker, endpoint);
        }
        NoAnswer::Failed(ExchangeError::Broken(_)) | NoAnswer::Late => load.blame(),
        NoAnswer::Failed(_) | NoAnswer::Circuit(_) | NoAnswer::BadRequest(_) => {
            load.not_opened(Blame::Nobody);
        }
    }
    Err(match no {
        NoAnswer::Failed(error) => Failed::plain(endpoint, &error),
        NoAnswer::Late => Failed::late(endpoint),
        NoAnswer::Circuit(refusal) => Failed::for_good(refusal),
        NoAnswer::BadRequest(error) => Failed::bad_request(endpoint, &error),
    })
}

/// The service, if it limits what its callers connect or wait for.
fn limited(dispatch: &Dispatch) -> Option<&Service> {
    let service = dispatch.backend()?;
    let breaker = &service.traffic.circuit_breaker;
    (breaker.max_connections.is_some() || breaker.max_pending.is_some()).then_some(service)
}

/// Why there is no answer.
enum NoAnswer {
    Failed(ExchangeError),
    /// None in the time that one attempt may take.
    Late,
    /// No connection is allowed, nor to wait for one.
    Circuit(Refusal),
    /// The request cannot be said in HTTP/2.
    BadRequest(BadHead),
}

impl From<ExchangeError> for NoAnswer {
    fn from(error: ExchangeError) -> Self {
        Self::Failed(error)
    }
}

impl From<Refusal> for NoAnswer {
    fn from(refusal: Refusal) -> Self {
        Self::Circuit(refusal)
    }
}

/// Where one request goes.
struct To<'a> {
    worker: &'a Arc<Worker>,
    endpoint: &'a Endpoint,
    /// If it limits what its callers connect or wait for.
    service: Option<&'a Service>,
    until: Option<Instant>,
}

impl To<'_> {
    async fn in_time<T, E: Into<NoAnswer>>(
        &self,
        what: impl Future<Output = Result<T, E>>,
    ) -> Result<T, NoAnswer> {
        match self.until {
            None => what.await.map_err(E::into),
            Some(until) => match timeout_at(until, what).await {
                Ok(done) => done.map_err(E::into),
                Err(_) => Err(NoAnswer::Late),
            },
        }
    }

    async fn over_http1(
        &self,
        carried: &mut Carried<'_>,
        body: ReplayBody,
    ) -> Result<(AnswerBody, Connection), NoAnswer> {
        let (scratch, target) = (&mut *carried.scratch, self.endpoint.target);
        let mut exchange = match body.is_offer() {
            true => Exchange::offer(&self.worker.apps, target, &scratch.head, body),
            false => Exchange::new(&self.worker.apps, target, &scratch.head, body),
        };
        let answer = &mut scratch.answer;
        let answered = async {
            let connection = match self.service {
                None => None,
                Some(service) => self.in_time(self.connect(service, &mut exchange)).await?,
            };
            loop {
                self.in_time(exchange.head(answer, |_, _| Poll::Pending)).await?;
                if is_final(answer.status) {
                    return Ok(connection);
                }
                carried.early.say(answer);
            }
        };
        let connection = match answered.await {
            Ok(connection) => connection,
            Err(error) => {
                carried.body = Some(exchange.into_body());
                return Err(error);
            }
        };
        hop::remove(&mut answer.fields, hop::Upgrade::in_answer(answer.status));
        hop::remove_mesh(&mut answer.fields);
        let body = if answer.status == StatusCode::SWITCHING_PROTOCOLS {
            exchange.into_tunnel().map(|(stream, _)| AnswerBody::Switched(stream))
        } else {
            exchange.into_answer().map(|answer| AnswerBody::App(Some(Box::new(answer))))
        };
        Ok((body.ok_or(ExchangeError::Gone)?, connection))
    }

    /// A connection that may be used; whoever is not served at once waits.
    async fn connect(
        &self,
        service: &Service,
        exchange: &mut Exchange<'_, ReplayBody>,
    ) -> Result<Connection, NoAnswer> {
        let protections = &self.worker.protections;
        let connection = match protections.connect(service) {
            Ok(connection) if exchange.take_kept() => return Ok(connection),
            Ok(connection) => Some(connection),
            Err(_) => None,
        };
        let _waits = protections.wait(service)?;
        let connection = match connection {
            Some(connection) => connection,
            None => protections.connect_later(service).await?,
        };
        if !exchange.take_kept() {
            exchange.connect(|_, _| Poll::Pending).await?;
        }
        Ok(connection)
    }

    async fn over_http2(
        &self,
        carried: &mut Carried<'_>,
        body: ReplayBody,
    ) -> Result<AnswerBody, NoAnswer> {
        let client = match self.client().await {
            Ok(client) => client,
            Err(error) => {
                carried.body = Some(body);
                return Err(error);
            }
        };
        let mut request = match carried.scratch.head.to_request() {
            Ok(request) => request,
            Err(error) => {
                carried.body = Some(body);
                return Err(NoAnswer::BadRequest(error));
            }
        };
        // `:authority` says the same, and says it first.
        request.headers_mut().remove(http::header::HOST);
        let lease = client.lease();
        match client.exchange(request, body, self.until, |_, _| Poll::Pending).await {
            Ok((response, upload)) => {
                let (head, body) = response.into_parts();
                let (head, answer) =
                    (http::Response::from_parts(head, ()), &mut carried.scratch.answer);
                answer.read_parts(&head.into_parts().0);
                hop::remove(&mut answer.fields, hop::Upgrade::Drop);
                hop::remove_mesh(&mut answer.fields);
                let body = RecvBody::new(body);
                Ok(AnswerBody::Http2(Box::new(Http2 { body, upload, _lease: lease })))
            }
            Err((error, body)) => {
                carried.body = Some(body);
                Err(unsent(error))
            }
        }
    }

    /// A connection that is shared: of those there are never many.
    async fn client(&self) -> Result<http2::Client, NoAnswer> {
        let target = self.endpoint.target;
        let Some(service) = self.service else {
            let client = self.worker.apps.http2(target, MAX_HTTP2).await;
            return client.map_err(|error| ExchangeError::NotConnected(error).into());
        };
        let limit = service.traffic.circuit_breaker.max_connections;
        let most = limit.map_or(MAX_HTTP2, |limit| MAX_HTTP2.min(limit as usize));
        let client = self.worker.apps.http2(target, most);
        let client = self.in_time(self.worker.protections.wait_for(service, client)).await?;
        client.map_err(|error| ExchangeError::NotConnected(error).into())
    }
}

fn unsent(error: http2::ExchangeError) -> NoAnswer {
    use http2::ExchangeError as Error;
    let told = |error| std::io::Error::other(error);
    match error {
        Error::NotProcessed(error) => ExchangeError::NotProcessed(told(error).into()).into(),
        Error::Broken(error) => ExchangeError::Broken(told(error).into()).into(),
        Error::TimedOut => NoAnswer::Late,
        Error::BodyFailed => ExchangeError::BodyFailed.into(),
        Error::Gone => ExchangeError::Gone.into(),
    }
}
