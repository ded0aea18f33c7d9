//! An answer's body on its way to a client of HTTP/1.

use std::task::{Context, Poll};

use bytes::Bytes;
use mesh_core::message::{Fields, hop};

use super::Conn;
use crate::{
    apps,
    http1::{ConnError, Peer, ServerConn},
    inner::request::Part,
    outbound::{
        answer::{self, Answer, AnswerBody, AnswerError},
        body::ReplayBody,
    },
    record::Record,
};

/// An answer's body on its way to the client, while the rest of the request
/// goes the other way.
pub(super) struct Delivery<'a> {
    conn: &'a Conn,
    answer: Answer,
    pending: Bytes,
    trailers: Option<Fields>,
    record: &'a mut Record,
}

/// Moves what an application has sent from its connection into the client's
/// without a copy of ours; then only trailers are left to come.
fn poll_app(
    slot: &mut Option<Box<apps::Answer<ReplayBody>>>,
    server: &mut ServerConn,
    cx: &mut Context<'_>,
    sent: &mut u64,
) -> Result<Poll<Option<Result<Part, AnswerError>>>, Broken> {
    let Some(answer) = slot else { return Ok(Poll::Ready(None)) };
    loop {
        match answer.poll_data(cx) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(Err(error)) => return Ok(Poll::Ready(Some(Err(error.into())))),
            Poll::Ready(Ok(None)) => {
                let trailers = answer::finish(slot);
                return Ok(Poll::Ready(trailers.map(|fields| Ok(Part::Trailers(fields)))));
            }
            Poll::Ready(Ok(Some(data))) => match server.poll_send(cx, data) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(count) => {
                    let count = count?;
                    answer.consume(count);
                    *sent += count as u64;
                }
            },
        }
    }
}

/// Who broke a delivery.
pub(super) enum Broken {
    Client,
    Answer(AnswerError),
}

impl From<ConnError> for Broken {
    fn from(error: ConnError) -> Self {
        match error {
            // It is not what its head had announced.
            ConnError::Body(_) => Self::Answer(AnswerError::Length),
            _ => Self::Client,
        }
    }
}

impl<'a> Delivery<'a> {
    pub(super) fn new(conn: &'a Conn, answer: Answer, record: &'a mut Record) -> Self {
        Self { conn, answer, pending: Bytes::new(), trailers: None, record }
    }

    /// Moves what can be moved; ready when the answer's end has been handed to
    /// the connection.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        // The request's body takes the connection's lock itself.
        self.answer.body.poll_request(cx);
        let mut carrier = self.conn.lock();
        let server = &mut carrier.server;
        loop {
            if !self.pending.is_empty() {
                let Poll::Ready(sent) = server.poll_send(cx, &self.pending) else {
                    return Poll::Pending;
                };
                self.record.entry.sent += sent? as u64;
                self.pending = Bytes::new();
            }
            let part = match &mut self.answer.body {
                AnswerBody::App(slot) => poll_app(slot, server, cx, &mut self.record.entry.sent)?,
                body => body.poll_part(cx),
            };
            match part {
                Poll::Ready(Some(Ok(Part::Data(data)))) => self.pending = data,
                Poll::Ready(Some(Ok(Part::Trailers(mut fields)))) => {
                    hop::remove_from_trailers(&mut fields);
                    self.answer.used.read_trailers(answer::grpc_status(&fields), self.record);
                    self.trailers = Some(fields);
                }
                Poll::Ready(None) => {
                    server.finish(self.trailers.as_ref())?;
                    // What is left is written before the next request is read.
                    return match server.poll_flush(cx) {
                        Poll::Ready(flushed) => Poll::Ready(Ok(flushed?)),
                        Poll::Pending => Poll::Ready(Ok(())),
                    };
                }
                Poll::Ready(Some(Err(error))) => {
                    // The client may have what there is, before it sees a reset.
                    let _flushed = server.poll_flush(cx);
                    return Poll::Ready(Err(Broken::Answer(error)));
                }
                Poll::Pending => {
                    if let Poll::Ready(flushed) = server.poll_flush(cx) {
                        flushed?;
                    }
                    return Self::poll_gone(server, cx).map(|()| Err(Broken::Client));
                }
            }
        }
    }

    /// A client that has left need not be told the rest.
    fn poll_gone(server: &mut ServerConn, cx: &mut Context<'_>) -> Poll<()> {
        match server.is_body_end() && matches!(server.poll_peer(cx), Poll::Ready(Peer::Gone(_))) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}
