//! All streams of one end and what they may do. No I/O: the driver feeds
//! frames in (see [`super::receive`]) and takes batches out.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use tokio::{io::ReadBuf, time::Instant};

use super::{
    MAX_HEAD,
    error::{OpenError, ResetCode, StreamError},
    exchange::HeadKind,
    frame::{self, END, INFORMATIONAL, Kind},
    hello::Limits,
    out::{Out, RESERVE, ROOM},
    stream::{Awaits, Received, Receiving, Sending, Stream},
    target::{Meanings, Numbers, Target},
};
use crate::idle_frames::{Allowance, UNDONE};

/// By how much all windows of one session may have grown together.
pub(super) const GROWTH: u32 = 16 << 20;
/// What one stream adds to the out buffer at a time.
const TURN: usize = 32 << 10;
/// What a stream sends before it has to stand in line for room.
const YOUNG: usize = 16 << 10;
/// Streams that are told at a time that there is room: what they add fills it.
const TURNS: usize = ROOM / TURN;

/// A stream's place in `slots`, for as long as somebody holds it.
pub(super) type Slot = usize;

/// Which end this is.
#[derive(Debug)]
pub(super) enum Role {
    /// Opens streams.
    Source(Numbers),
    /// Answers them.
    Destination(Meanings),
}

/// A stream of the peer that nobody has accepted.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) slot: Slot,
    pub(super) target: Arc<Target>,
    pub(super) target_id: u16,
    pub(super) head: Bytes,
}

/// Why this end ends a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bye {
    pub(super) code: u8,
    pub(super) why: Arc<str>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    pub(super) role: Role,
    pub(super) out: Out,
    pub(super) slots: Vec<Stream>,
    free: Vec<Slot>,
    pub(super) ids: HashMap<u32, Slot, BuildHasherDefault<IdHasher>>,
    /// Streams on which something may still be sent by either side.
    pub(super) open: usize,
    /// No stream from here on has been opened.
    pub(super) next_id: u32,
    /// Streams of the peer that nobody has accepted.
    pub(super) opened: VecDeque<Opening>,
    /// Streams that wait for room in `out`, in turn.
    waiting: VecDeque<Slot>,

    /// What the peer may do.
    pub(super) limits: Limits,
    /// What we may do.
    pub(super) granted: Limits,
    /// The peer has said its hello.
    pub(super) greeted: bool,
    /// By how much windows may still grow.
    growth: u32,

    /// Nothing new is opened.
    pub(super) retired: bool,
    /// It ends as soon as it has no streams.
    pub(super) draining: bool,
    /// We have said `GoAway`: no stream above this one is looked at.
    pub(super) going: Option<u32>,
    /// We want it to end now.
    pub(super) cut: Option<Bye>,
    /// It has ended, and why.
    ended: Option<Arc<str>>,
    /// Frames of the peer that carry nothing.
    pub(super) idle_frames: Allowance,
    /// The peer has done what it must not.
    pub(super) violated: bool,
    pub(super) idle_since: Instant,
    /// What the peer has shown of a renewed certificate and nobody has read.
    pub(super) proof: Option<Bytes>,
    pub(super) proof_reader: Option<Waker>,

    /// Something was read since this was last asked.
    pub(super) heard: bool,
    /// A `Ping` waits for a sign of life.
    pub(super) probed: bool,
    probes: u64,
    /// The watch has nothing to do before a stream is opened.
    pub(super) resting: bool,
    may_rest: bool,
    /// The watch is to be polled.
    pub(super) watch_due: bool,
    /// Buffers that were not needed lately are to be freed.
    pub(super) give_back: bool,
    driver: Option<Waker>,
    /// The driver will be polled anyway.
    pub(super) scheduled: bool,
}

impl State {
    pub(super) fn new(role: Role, limits: Limits) -> Self {
        let limits = limits.checked();
        let mut out = Out::default();
        out.frame(Kind::Hello, 0, 0, &[&limits.encode()]);
        Self {
            role,
            out,
            slots: Vec::new(),
            free: Vec::new(),
            ids: HashMap::default(),
            open: 0,
            next_id: 1,
            opened: VecDeque::new(),
            waiting: VecDeque::new(),
            limits,
            granted: Limits::default(),
            greeted: false,
            growth: GROWTH,
            retired: false,
            draining: false,
            going: None,
            cut: None,
            ended: None,
            idle_frames: Allowance::new(Instant::now()),
            violated: false,
            idle_since: Instant::now(),
            proof: None,
            proof_reader: None,
            heard: false,
            probed: false,
            probes: 0,
            resting: false,
            may_rest: false,
            watch_due: true,
            give_back: false,
            driver: None,
            scheduled: false,
        }
    }

    // What the owner of the session does.

    pub(super) fn is_usable(&self) -> bool {
        !self.retired && self.cut.is_none() && self.ended.is_none()
    }

    pub(super) fn has_room(&self) -> bool {
        let streams = usize::try_from(self.granted.max_streams).unwrap_or(usize::MAX);
        self.is_usable() && self.open < streams && self.out.len() < RESERVE
    }

    fn no_room(&self) -> OpenError {
        match self.out.len() {
            _ if !self.is_usable() => OpenError::Retired,
            RESERVE.. => OpenError::Busy,
            _ => OpenError::Full,
        }
    }

    /// A new stream of ours.
    pub(super) fn open(
        &mut self,
        target: &Arc<Target>,
        head: &[u8],
        end: bool,
    ) -> Result<Slot, OpenError> {
        if !self.has_room() {
            return Err(self.no_room());
        }
        if head.len() > MAX_HEAD {
            return Err(OpenError::TooLong);
        }
        let Role::Source(numbers) = &mut self.role else { return Err(OpenError::Retired) };
        let id = self.next_id;
        // When they are used up, it takes nothing new.
        self.retired = id == u32::MAX;
        self.next_id = id.saturating_add(1);
        let (number, new) = numbers.of(target);
        let number = number.to_be_bytes();
        if new {
            self.out.frame(Kind::Target, 0, 0, &[&number, &target.encode()]);
        }
        self.out.frame(Kind::Open, u8::from(end) * END, id, &[&number, head]);
        let slot = self.begin(id);
        let stream = &mut self.slots[slot];
        stream.receiving = Receiving::Head;
        if end {
            stream.sending = Sending::Ended;
        }
        if std::mem::take(&mut self.resting) {
            self.watch_due = true;
        }
        self.wake_driver();
        Ok(slot)
    }

    /// A slot for a stream that has just been opened.
    pub(super) fn begin(&mut self, id: u32) -> Slot {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Stream::unused());
            self.slots.len() - 1
        });
        let (credit, window) = (self.granted.stream_window, self.limits.stream_window);
        self.slots[slot].begin(id, credit, window, self.out.batch());
        self.ids.insert(id, slot);
        self.open += 1;
        slot
    }

    /// Slots that are in use, also of streams that are over and still held.
    pub(super) fn held(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The source opens nothing new; the destination tells it so.
    pub(super) fn retire(&mut self) {
        self.retired = true;
        let going = self.going.is_some() || self.ended.is_some();
        if matches!(self.role, Role::Destination(_)) && !going {
            let last = self.next_id - 1;
            self.going = Some(last);
            self.out.frame(Kind::GoAway, 0, 0, &[&last.to_be_bytes(), &[frame::GOING]]);
        }
        self.wake_driver();
    }

    /// The process goes away: streams may finish.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        if matches!(self.role, Role::Destination(_)) {
            self.retire();
        }
        self.wake_driver();
    }

    /// Asks the peer for a sign of life if there is reason to; lets buffers
    /// be looked at.
    pub(super) fn probe(&mut self, always: bool) -> bool {
        self.give_back = true;
        self.wake_driver();
        self.may_rest = self.open == 0 && !always;
        if self.may_rest {
            return false;
        }
        self.probes += 1;
        (self.heard, self.probed) = (false, true);
        self.out.frame(Kind::Ping, 0, 0, &[&self.probes.to_be_bytes()]);
        true
    }

    pub(super) fn newest(&self) -> u32 {
        self.next_id - 1
    }

    /// Breaks off streams up to this one; who holds them is told.
    pub(super) fn reset_up_to(&mut self, newest: u32, why: &str) -> usize {
        let is_old = |(id, slot): (&u32, &Slot)| (*id <= newest).then_some(*slot);
        let old: Vec<Slot> = self.ids.iter().filter_map(is_old).collect();
        for &slot in &old {
            self.reset(slot, ResetCode::Failed, why);
            self.slots[slot].fail(StreamError::Ended);
        }
        old.len()
    }

    pub(super) fn cut(&mut self, code: u8, why: &str) {
        self.retired = true;
        self.cut.get_or_insert_with(|| Bye { code, why: why.into() });
        self.wake_driver();
    }

    /// Shows the peer a renewed certificate.
    pub(super) fn prove(&mut self, message: &[u8]) {
        if self.ended.is_none() && message.len() <= frame::MAX_MESSAGE {
            self.out.frame(Kind::Proof, 0, 0, &[message]);
            self.wake_driver();
        }
    }

    /// What the peer has shown of one.
    pub(super) fn poll_proof(&mut self, cx: &Context<'_>) -> Poll<Bytes> {
        if let Some(proof) = self.proof.take() {
            return Poll::Ready(proof);
        }
        self.proof_reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The next stream of the peer that it has not given up already.
    pub(super) fn accept(&mut self) -> Option<Opening> {
        while let Some(opening) = self.opened.pop_front() {
            if self.slots[opening.slot].fault.is_none() {
                return Some(opening);
            }
            self.free(opening.slot);
            if self.idle_frames.is_exceeded(UNDONE, Instant::now) {
                self.cut(frame::VIOLATED, "too many streams that are given up at once");
            }
        }
        None
    }

    // What the holder of a stream does.

    pub(super) fn poll_send_head(
        &mut self,
        slot: Slot,
        cx: &Context<'_>,
        head: &[u8],
        kind: HeadKind,
    ) -> Poll<Result<(), StreamError>> {
        self.sendable(slot, Sending::Head)?;
        if head.len() > MAX_HEAD {
            return Poll::Ready(Err(self.misuse(slot, "a head that is too long")));
        }
        ready!(self.poll_reserve(slot, cx));
        let stream = &mut self.slots[slot];
        let flags = match kind {
            HeadKind::Informational => INFORMATIONAL,
            HeadKind::Final => 0,
            HeadKind::FinalEnd => END,
        };
        self.out.frame(Kind::Head, flags, stream.id, &[head]);
        match kind {
            HeadKind::Informational => {}
            HeadKind::Final => stream.sending = Sending::Open,
            HeadKind::FinalEnd => stream.sending = Sending::Ended,
        }
        self.close_if_over(slot);
        self.wake_driver();
        Poll::Ready(Ok(()))
    }

    /// How much may be sent now; never 0.
    pub(super) fn poll_ready(
        &mut self,
        slot: Slot,
        cx: &Context<'_>,
    ) -> Poll<Result<usize, StreamError>> {
        self.sendable(slot, Sending::Open)?;
        let room = self.room(slot);
        let stream = &mut self.slots[slot];
        let credit = usize::try_from(stream.credit).unwrap_or(usize::MAX);
        if credit > 0 && room > 0 {
            return Poll::Ready(Ok(room.min(credit)));
        }
        stream.writer.arm(cx);
        if credit > 0 {
            self.stand_in_line(slot);
        }
        Poll::Pending
    }

    pub(super) fn poll_send(
        &mut self,
        slot: Slot,
        cx: &Context<'_>,
        data: &[u8],
        end: bool,
    ) -> Poll<Result<usize, StreamError>> {
        if data.is_empty() {
            self.sendable(slot, Sending::Open)?;
            if end {
                self.finish(slot);
            }
            return Poll::Ready(Ok(0));
        }
        let n = ready!(self.poll_ready(slot, cx))?.min(data.len());
        let end = end && n == data.len();
        let stream = &mut self.slots[slot];
        stream.credit -= u32::try_from(n).expect("no more than the credit");
        stream.sent = stream.sent.saturating_add(n);
        stream.turn = false;
        self.idle_frames.earn(1);
        self.out.data(stream.id, &data[..n], end);
        if end {
            stream.sending = Sending::Ended;
            self.close_if_over(slot);
        }
        self.wake_driver();
        Poll::Ready(Ok(n))
    }

    pub(super) fn poll_send_trailers(
        &mut self,
        slot: Slot,
        cx: &Context<'_>,
        block: &[u8],
    ) -> Poll<Result<(), StreamError>> {
        self.sendable(slot, Sending::Open)?;
        if block.len() > MAX_HEAD {
            return Poll::Ready(Err(self.misuse(slot, "trailers that are too long")));
        }
        ready!(self.poll_reserve(slot, cx));
        let stream = &mut self.slots[slot];
        self.out.frame(Kind::Trailers, 0, stream.id, &[block]);
        stream.sending = Sending::Ended;
        self.close_if_over(slot);
        self.wake_driver();
        Poll::Ready(Ok(()))
    }

    /// Nothing follows what was sent.
    pub(super) fn finish(&mut self, slot: Slot) {
        let stream = &mut self.slots[slot];
        match stream.sending {
            _ if stream.fault.is_some() => return,
            Sending::Ended => return,
            Sending::Head => return self.reset(slot, ResetCode::Failed, "no answer"),
            Sending::Open => {}
        }
        self.out.end(stream.id);
        stream.sending = Sending::Ended;
        self.close_if_over(slot);
        self.wake_driver();
    }

    /// Gives up both directions, unless both have ended.
    pub(super) fn reset(&mut self, slot: Slot, code: ResetCode, reason: &str) {
        let stream = &mut self.slots[slot];
        if !stream.is_over() {
            let reason = frame::shortened(reason);
            self.out.frame(Kind::Reset, 0, stream.id, &[&[code as u8], reason]);
            self.close(slot);
            self.wake_driver();
        }
        self.slots[slot].discard(StreamError::Ended);
    }

    pub(super) fn poll_recv(
        &mut self,
        slot: Slot,
        cx: &Context<'_>,
    ) -> Poll<Result<Option<Received>, StreamError>> {
        let stream = &mut self.slots[slot];
        if let Some(item) = stream.take() {
            if matches!(item, Received::Data(_)) {
                self.grant(slot);
            }
            return Poll::Ready(Ok(Some(item)));
        }
        stream.poll_end(cx).map_ok(|()| None)
    }

    /// As `poll_recv`, for those who only want bytes.
    pub(super) fn poll_read(
        &mut self,
        slot: Slot,
        cx: &Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), StreamError>> {
        let (stream, before) = (&mut self.slots[slot], buf.filled().len());
        stream.read(buf);
        if buf.remaining() == 0 || buf.filled().len() > before {
            self.grant(slot);
            return Poll::Ready(Ok(()));
        }
        stream.poll_end(cx)
    }

    pub(super) fn poll_reset(&mut self, slot: Slot, cx: &Context<'_>) -> Poll<StreamError> {
        let stream = &mut self.slots[slot];
        if let Some(fault) = &stream.fault {
            return Poll::Ready(fault.clone());
        }
        stream.awaits = Awaits::Fault;
        stream.reader.arm(cx);
        Poll::Pending
    }

    /// Nobody holds it any more.
    pub(super) fn release(&mut self, slot: Slot) {
        let stream = &self.slots[slot];
        if !stream.is_over() {
            let answered = stream.sending == Sending::Ended;
            let code = if answered && matches!(self.role, Role::Destination(_)) {
                ResetCode::Enough
            } else {
                ResetCode::Cancelled
            };
            self.reset(slot, code, "");
        }
        self.free(slot);
    }

    fn sendable(&self, slot: Slot, wanted: Sending) -> Result<(), StreamError> {
        let stream = &self.slots[slot];
        match &stream.fault {
            Some(fault) => Err(fault.clone()),
            None if stream.sending == wanted => Ok(()),
            None => Err(StreamError::Ended),
        }
    }

    fn misuse(&mut self, slot: Slot, what: &str) -> StreamError {
        self.reset(slot, ResetCode::Failed, what);
        StreamError::Ended
    }

    /// Room in `out` for bytes of one stream.
    fn room(&self, slot: Slot) -> usize {
        let stream = &self.slots[slot];
        let room = if stream.sent < YOUNG {
            RESERVE.saturating_sub(self.out.len()).min(YOUNG - stream.sent)
        } else if stream.turn || self.waiting.is_empty() {
            ROOM.saturating_sub(self.out.len())
        } else {
            0
        };
        room.min(TURN)
    }

    /// Room in `out` for a head.
    fn poll_reserve(&mut self, slot: Slot, cx: &Context<'_>) -> Poll<()> {
        if self.out.len() < RESERVE {
            return Poll::Ready(());
        }
        self.slots[slot].writer.arm(cx);
        self.stand_in_line(slot);
        Poll::Pending
    }

    fn stand_in_line(&mut self, slot: Slot) {
        let stream = &mut self.slots[slot];
        stream.turn = false;
        if !std::mem::replace(&mut stream.queued, true) {
            self.waiting.push_back(slot);
            self.wake_driver();
        }
    }

    fn grant(&mut self, slot: Slot) {
        let stream = &mut self.slots[slot];
        let more = stream.grant(&mut self.growth);
        if more > 0 {
            self.out.frame(Kind::Window, 0, stream.id, &[&more.to_be_bytes()]);
            self.wake_driver();
        }
    }

    pub(super) fn close_if_over(&mut self, slot: Slot) {
        if self.slots[slot].is_over() {
            self.close(slot);
        }
    }

    /// Nothing is sent on it any more, by either side.
    pub(super) fn close(&mut self, slot: Slot) {
        if self.ids.remove(&self.slots[slot].id).is_none() {
            return;
        }
        self.open -= 1;
        if self.open == 0 {
            self.idle_since = Instant::now();
            if self.retired || self.draining {
                self.wake_driver();
            }
        }
    }

    fn free(&mut self, slot: Slot) {
        let stream = &mut self.slots[slot];
        if stream.queued {
            self.waiting.retain(|waiting| *waiting != slot);
        }
        self.growth += stream.free(self.limits.stream_window);
        self.free.push(slot);
    }

    // What the driver does.

    /// Whether nothing is left to do, ever.
    pub(super) fn is_finished(&self) -> bool {
        let closing = match self.role {
            Role::Source(_) => self.retired || self.draining,
            Role::Destination(_) => self.going.is_some(),
        };
        closing && self.open == 0 && self.opened.is_empty() && self.out.is_empty()
    }

    /// Tells those who wait that there is room; `true` if there are more of
    /// them than were told.
    pub(super) fn call_waiting(&mut self) -> bool {
        if self.out.len() >= ROOM {
            return false;
        }
        for _ in 0..TURNS {
            let Some(slot) = self.waiting.pop_front() else { return false };
            let stream = &mut self.slots[slot];
            (stream.queued, stream.turn) = (false, true);
            stream.writer.ring();
        }
        !self.waiting.is_empty()
    }

    pub(super) fn set_driver(&mut self, cx: &Context<'_>) {
        self.scheduled = false;
        match &mut self.driver {
            Some(driver) => driver.clone_from(cx.waker()),
            None => self.driver = Some(cx.waker().clone()),
        }
    }

    pub(super) fn wake_driver(&mut self) {
        if !self.scheduled
            && let Some(driver) = &self.driver
        {
            self.scheduled = true;
            driver.wake_by_ref();
        }
    }

    /// Frees what an idle session does not need.
    pub(super) fn shrink(&mut self) {
        self.resting = self.may_rest && self.open == 0;
        self.out.shrink();
        if self.held() == 0 {
            (self.slots, self.free) = (Vec::new(), Vec::new());
            self.ids.shrink_to_fit();
            self.opened.shrink_to_fit();
            self.waiting.shrink_to_fit();
        }
    }

    /// The connection is gone: nobody waits any longer. What was never
    /// written, or lies above `last`, was not looked at by the peer.
    pub(super) fn end(&mut self, why: &Arc<str>, last: Option<u32>) {
        self.ended = Some(why.clone());
        let unwritten = self.out.batch();
        for &slot in self.ids.values() {
            let stream = &mut self.slots[slot];
            let unseen = stream.batch == unwritten || last.is_some_and(|last| stream.id > last);
            let mine = matches!(self.role, Role::Source(_));
            let unseen = unseen && mine && stream.receiving == Receiving::Head;
            stream.fail(match unseen {
                true => StreamError::NotProcessed(why.clone()),
                false => StreamError::Lost(why.clone()),
            });
        }
        self.ids.clear();
        self.open = 0;
        self.idle_since = Instant::now();
        self.waiting.clear();
        self.out.end_of_session();
        self.driver = None;
        while let Some(opening) = self.opened.pop_front() {
            self.free(opening.slot);
        }
    }
}

impl Stream {
    /// Once everything that has come was taken.
    fn poll_end(&mut self, cx: &Context<'_>) -> Poll<Result<(), StreamError>> {
        if self.receiving == Receiving::Ended {
            return Poll::Ready(Ok(()));
        }
        if let Some(fault) = &self.fault {
            return Poll::Ready(Err(fault.clone()));
        }
        self.awaits = Awaits::Anything;
        self.reader.arm(cx);
        Poll::Pending
    }
}

/// Ids are numbers that count upwards; those of a hostile peer are spread
/// badly at worst over as many entries as it may have streams.
#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

#[cfg(test)]
impl State {
    /// Whether nothing of any stream is left.
    pub(super) fn is_clean(&self) -> bool {
        let left = self.open + self.ids.len() + self.held() + self.waiting.len();
        left + self.opened.len() == 0 && self.growth == GROWTH && self.slots.iter().all(|s| !s.held)
    }

    /// Bytes that are kept for later use.
    pub(super) fn memory(&self) -> usize {
        let slots = self.slots.capacity() * size_of::<Stream>();
        self.out.capacity() + slots + self.ids.capacity() * size_of::<(u32, Slot)>()
    }

    /// By how much windows have grown.
    pub(super) fn grown(&self) -> u32 {
        GROWTH - self.growth
    }
}
