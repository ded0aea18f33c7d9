//! What frames of the peer do to the streams of one end.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    error::{ResetCode, StreamError},
    frame::{self, Frame, Kind, Violation},
    hello::Limits,
    out::TOO_MUCH,
    state::{Bye, Opening, Role, Slot, State},
    stream::{Received, Receiving, Sending},
};
use crate::idle_frames::UNDONE;

/// What a frame means for the session as a whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on.
    Fine,
    /// The peer ends it; streams above this one were not looked at.
    Closed(Bye, u32),
}

/// Whether a frame carries nothing of a call. A stream that is opened pays for
/// its own end.
fn is_idle(frame: &Frame) -> bool {
    match frame {
        Frame::Data { data, end, .. } => data.is_empty() && !end,
        Frame::Open { .. } | Frame::Head { .. } | Frame::Trailers { .. } => false,
        Frame::Hello(_)
        | Frame::Target(..)
        | Frame::Reset { .. }
        | Frame::Window { .. }
        | Frame::Ping(_)
        | Frame::Pong(_)
        | Frame::GoAway { .. }
        | Frame::Proof(_) => true,
    }
}

impl State {
    /// Takes note of one frame.
    pub(super) fn receive(&mut self, frame: Frame) -> Result<Verdict, Violation> {
        if self.greeted == matches!(frame, Frame::Hello(_)) {
            let text = if self.greeted { "a second hello" } else { "a frame before the hello" };
            return Err(Violation::new(text));
        }
        if is_idle(&frame) {
            if self.idle_frames.is_exceeded(1, Instant::now) {
                return Err(Violation::new("too many frames that carry nothing"));
            }
        } else {
            self.idle_frames.earn(1);
        }
        match frame {
            Frame::Hello(message) => self.receive_hello(&message)?,
            Frame::Target(id, message) => match &mut self.role {
                Role::Destination(meanings) => meanings.set(id, &message)?,
                Role::Source(_) => return Err(Violation::new("a target from the destination")),
            },
            Frame::Open { stream, target, head, end } => {
                self.receive_open(stream, target, head, end)?;
            }
            Frame::Head { stream, head, informational, end } => {
                let item = match informational {
                    true => Received::Informational(head),
                    false => Received::Head(head),
                };
                self.receive_item(stream, item, end)?;
            }
            Frame::Data { stream, data, end } => {
                self.receive_item(stream, Received::Data(data), end)?;
            }
            Frame::Trailers { stream, block } => {
                self.receive_item(stream, Received::Trailers(block), true)?;
            }
            Frame::Reset { stream, code, reason } => self.receive_reset(stream, code, &reason)?,
            Frame::Window { stream, more } => self.receive_window(stream, more)?,
            Frame::Ping(token) => self.out.pong(token),
            Frame::Pong(_) => {}
            Frame::Proof(message) => self.receive_proof(message),
            Frame::GoAway { last, code, reason } => return self.receive_going(last, code, &reason),
        }
        if self.out.len() > TOO_MUCH {
            return Err(Violation::new("the peer asks for more than it reads"));
        }
        Ok(Verdict::Fine)
    }

    /// Only the newest counts.
    fn receive_proof(&mut self, message: Bytes) {
        self.proof = Some(message);
        if let Some(reader) = self.proof_reader.take() {
            reader.wake();
        }
    }

    fn receive_hello(&mut self, message: &Bytes) -> Result<(), Violation> {
        self.greeted = true;
        let granted = Limits::decode(message)?;
        // Streams that were opened meanwhile began with less.
        let more = granted.stream_window - self.granted.stream_window;
        self.granted = granted;
        if more > 0 {
            for &slot in self.ids.values() {
                self.slots[slot].credit += more;
                self.slots[slot].writer.ring();
            }
        }
        Ok(())
    }

    fn receive_open(
        &mut self,
        id: u32,
        target_id: u16,
        head: Bytes,
        end: bool,
    ) -> Result<(), Violation> {
        let Role::Destination(meanings) = &self.role else {
            return Err(Violation::new("a stream opened by the destination"));
        };
        let target = meanings.get(target_id)?.clone();
        if id < self.next_id {
            return Err(Violation::new("a stream that was opened before"));
        }
        self.next_id = id.checked_add(1).ok_or(Violation::new("stream numbers are used up"))?;
        if self.going.is_some() {
            // It crossed our `GoAway`, which says that nobody looks at it.
            return Ok(());
        }
        let limit = usize::try_from(self.limits.max_streams).unwrap_or(usize::MAX);
        if self.open >= limit || self.held() >= limit.saturating_mul(2) {
            if self.idle_frames.is_exceeded(UNDONE, Instant::now) {
                return Err(Violation::new("too many streams at once"));
            }
            let refused = [ResetCode::Refused as u8];
            self.out.frame(Kind::Reset, 0, id, &[&refused, b"too many streams"]);
            return Ok(());
        }
        let slot = self.begin(id);
        self.slots[slot].sending = Sending::Head;
        if end {
            self.slots[slot].receiving = Receiving::Ended;
        }
        self.opened.push_back(Opening { slot, target, target_id, head });
        Ok(())
    }

    /// Where a stream is; `None` if it is over, so that frames that were under
    /// way for it mean nothing.
    fn known(&self, id: u32) -> Result<Option<Slot>, Violation> {
        match self.ids.get(&id) {
            Some(slot) => Ok(Some(*slot)),
            None if id < self.next_id => Ok(None),
            None => Err(Violation::new("a frame of a stream that was not opened")),
        }
    }

    fn receive_item(&mut self, id: u32, item: Received, end: bool) -> Result<(), Violation> {
        let Some(slot) = self.known(id)? else { return Ok(()) };
        let stream = &mut self.slots[slot];
        stream.receive(item)?;
        if end {
            stream.receive_end()?;
            self.close_if_over(slot);
        }
        Ok(())
    }

    fn receive_reset(&mut self, id: u32, code: ResetCode, reason: &Bytes) -> Result<(), Violation> {
        let Some(slot) = self.known(id)? else { return Ok(()) };
        let reason: Arc<str> = String::from_utf8_lossy(reason).into();
        let stream = &mut self.slots[slot];
        let fault = match code {
            ResetCode::Refused if stream.receiving == Receiving::Head => {
                StreamError::NotProcessed(reason)
            }
            ResetCode::Refused => return Err(Violation::new("a refusal after the answer")),
            code => StreamError::Reset { code, reason },
        };
        stream.fail(fault);
        self.close(slot);
        Ok(())
    }

    fn receive_window(&mut self, id: u32, more: u32) -> Result<(), Violation> {
        let Some(slot) = self.known(id)? else { return Ok(()) };
        let stream = &mut self.slots[slot];
        let credit = stream.credit.checked_add(more);
        stream.credit = credit.ok_or(Violation::new("a window beyond all measure"))?;
        stream.writer.ring();
        Ok(())
    }

    fn receive_going(&mut self, last: u32, code: u8, reason: &Bytes) -> Result<Verdict, Violation> {
        let why: Arc<str> = match reason.is_empty() {
            true => "the peer goes away".into(),
            false => format!("the peer ends it: {}", String::from_utf8_lossy(reason)).into(),
        };
        if code != frame::GOING {
            return Ok(Verdict::Closed(Bye { code, why }, last));
        }
        self.retired = true;
        let unseen = self.ids.iter().filter(|(id, _)| **id > last).map(|(_, slot)| *slot);
        for slot in unseen.collect::<Vec<_>>() {
            let stream = &mut self.slots[slot];
            if stream.receiving != Receiving::Head {
                return Err(Violation::new("an answered stream that was not looked at"));
            }
            stream.fail(StreamError::NotProcessed(why.clone()));
            self.close(slot);
        }
        Ok(Verdict::Fine)
    }
}
