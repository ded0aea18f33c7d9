//! One discovery stream, from `Subscribe` to its end.

use std::{collections::BTreeSet, convert::Infallible, time::Duration};

use mesh_api::v1::{
    self, discovery_client::DiscoveryClient, discovery_request::Request,
    discovery_response::Response,
};
use mesh_core::{Rejected, Revision, ServiceName, apply};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};

use super::{
    Discovery, StreamError,
    taps::{Outgoing, Taps},
};
use crate::{snapshot_cell::Complete, tunnels::boot_id};

/// Messages on their way to federation; it reads all the time, so a full queue
/// means that it is gone.
const QUEUE: usize = 32;
/// Something is sent at least this often: it renews the lease of the node.
const TELL: Duration = Duration::from_millis(1500);
/// Federation is heard every second; silent for longer, it is gone.
const SILENCE: Duration = Duration::from_secs(6);
/// The first answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// How long federation may take to end its side of a stream.
const HEAR_OUT: Duration = Duration::from_secs(1);
/// One delta: a whole site of 100 000 endpoints at a few hundred bytes each.
const MAX_DELTA: usize = 64 << 20;
/// A federation that does not say `Complete` has answered a want when this
/// many heartbeats have passed.
const BEATS_TO_COMPLETE: u8 = 2;
/// Characters of the reason in a `Nack`.
const MAX_REASON: usize = 1024;
/// Skew of federation's clock that is told once per stream.
const SKEW: u64 = 60_000;

/// One stream that is open.
struct Open<'a> {
    discovery: &'a mut Discovery,
    tx: mpsc::Sender<v1::DiscoveryRequest>,
    everything: bool,
    /// Services for which the snapshot is complete on this stream.
    complete: BTreeSet<ServiceName>,
    /// Wanted, not answered yet, and the heartbeats since.
    asked: Vec<(ServiceName, u8)>,
    since: Instant,
    /// Serial of the certificate that federation knows that we use.
    serial: String,
    told_skew: bool,
    /// Who watches from elsewhere.
    taps: Taps,
}

impl Discovery {
    /// Runs one stream to its end. `heard` becomes true once federation has
    /// answered.
    pub(super) async fn stream(
        &mut self,
        resync: bool,
        heard: &mut bool,
    ) -> Result<Infallible, StreamError> {
        let channel = self.channel().await?;
        let mut client = DiscoveryClient::new(channel).max_decoding_message_size(MAX_DELTA);
        let (tx, told) = mpsc::channel(QUEUE);
        let taps = Taps::default();
        let outgoing = Outgoing { told, taps: taps.clone() };
        let everything = self.sessions.is_some();
        let gateway = self.shared.own.load().gateway.as_ref().map(ToString::to_string);
        let gateway = gateway.filter(|_| everything).unwrap_or_default();
        let have = self.shared.snapshot.load().map(|now| now.revision);
        let have = have.filter(|have| !resync && *have != Revision::default());
        // Without `have` a whole snapshot comes, and is acknowledged with it.
        let serial = if have.is_some() { String::new() } else { self.serial() };
        let open = Open {
            discovery: self,
            tx,
            everything,
            complete: BTreeSet::new(),
            asked: Vec::new(),
            since: mesh_runtime::clock::monotonic(),
            serial,
            told_skew: false,
            taps,
        };
        open.send(Request::Subscribe(v1::Subscribe {
            versions: mesh_api::VERSIONS.to_vec(),
            have: have.map(Into::into),
            everything,
            proxy_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: boot_id().to_owned(),
            gateway,
        }))?;
        let answered = timeout(ANSWER_DEADLINE, client.stream(outgoing)).await;
        let mut incoming = answered.map_err(|_| StreamError::Timeout)??.into_inner();
        let ended = open.run(&mut incoming, heard).await;
        if matches!(ended, Err(StreamError::Resync(_))) {
            hear_out(incoming).await;
        }
        ended
    }
}

impl Discovery {
    /// Of the certificate in use; empty without one.
    fn serial(&self) -> String {
        self.shared.credentials.svid().map(|svid| svid.serial()).unwrap_or_default()
    }
}

/// Reads until federation has ended its side too: what was queued for it, the
/// reason why a delta was rejected, is then on its way.
async fn hear_out(mut incoming: tonic::Streaming<v1::DiscoveryResponse>) {
    let rest = async { while let Ok(Some(_)) = incoming.message().await {} };
    let _late = timeout(HEAR_OUT, rest).await;
}

impl Open<'_> {
    async fn run(
        mut self,
        incoming: &mut tonic::Streaming<v1::DiscoveryResponse>,
        heard: &mut bool,
    ) -> Result<Infallible, StreamError> {
        let mut tell = tokio::time::interval(TELL);
        let mut wanted = self.discovery.shared.snapshot.wanted_changed();
        let mut sessions = self.discovery.sessions.clone();
        let mut credentials = self.discovery.shared.credentials.changed();
        let mut silent = std::pin::pin!(tokio::time::sleep(SILENCE));
        self.want()?;
        self.tell_serial()?;
        loop {
            tokio::select! {
                message = incoming.message() => {
                    self.receive(message?.ok_or(StreamError::Closed)?)?;
                    silent.as_mut().reset(mesh_runtime::clock::monotonic() + SILENCE);
                    *heard = true;
                }
                () = &mut silent => return Err(StreamError::Timeout),
                _ = tell.tick() => self.tell()?,
                changed = wanted.changed() => {
                    changed.map_err(|_| StreamError::Closed)?;
                    self.want()?;
                }
                () = changed(&mut sessions) => self.tell()?,
                changed = credentials.changed() => {
                    changed.map_err(|_| StreamError::Closed)?;
                    self.is_still_ours()?;
                    self.tell_serial()?;
                }
            }
        }
    }

    /// Queues a message; federation that does not read is gone.
    fn send(&self, request: Request) -> Result<(), StreamError> {
        let request = v1::DiscoveryRequest { request: Some(request) };
        self.tx.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StreamError::Stuck,
            mpsc::error::TrySendError::Closed(_) => StreamError::Closed,
        })
    }

    /// What this proxy sees: figures, and a gateway's tunnels.
    fn tell(&mut self) -> Result<(), StreamError> {
        let now = mesh_runtime::clock::monotonic();
        if let Some(sessions) = &mut self.discovery.sessions {
            let told = sessions.borrow_and_update().clone();
            self.send(Request::NodeSessions(told))?;
        }
        let interval = now.saturating_duration_since(self.since);
        self.since = now;
        let revision = self.discovery.shared.snapshot.load().map(|now| now.revision);
        self.send(Request::Report(v1::Report {
            interval_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
            stats: self.discovery.shared.stats.take(),
            routes: self.discovery.shared.stats.take_routes(),
            edges: self.discovery.shared.stats.take_edges(),
            snapshot_state: revision.map(|r| format!("{}/{}", r.epoch, r.n)).unwrap_or_default(),
            time_unix_ms: mesh_runtime::clock::unix_millis(),
            transitions: self.discovery.shared.transition.told(),
        }))
    }

    /// Asks for what is wanted and was not asked for on this stream.
    fn want(&mut self) -> Result<(), StreamError> {
        if self.everything {
            return Ok(());
        }
        let wanted = self.discovery.shared.snapshot.wanted();
        let is_new = |service: &&ServiceName| {
            !self.complete.contains(*service)
                && !self.asked.iter().any(|(name, _)| name == *service)
        };
        let new: Vec<ServiceName> = wanted.iter().filter(is_new).cloned().collect();
        if new.is_empty() {
            return Ok(());
        }
        let services = new.iter().map(ToString::to_string).collect();
        self.asked.extend(new.into_iter().map(|name| (name, 0)));
        self.send(Request::Want(v1::Want { services }))
    }

    fn receive(&mut self, message: v1::DiscoveryResponse) -> Result<(), StreamError> {
        match message.response {
            Some(Response::Subscribed(answer)) => {
                log::info!(version = answer.version; "discovery stream open");
                if mesh_api::VERSIONS.contains(&answer.version) {
                    return Ok(());
                }
                let text = format!("it speaks version {}, this proxy does not", answer.version);
                Err(tonic::Status::unimplemented(text).into())
            }
            Some(Response::Delta(delta)) => {
                self.take(&delta)?;
                self.discovery.shared.snapshot.confirm();
                Ok(())
            }
            Some(Response::HeartbeatUnixMs(theirs)) => {
                self.compare_clocks(theirs);
                // What had changed would have come before it.
                self.discovery.shared.snapshot.confirm();
                self.beat();
                Ok(())
            }
            Some(Response::Complete(complete)) => {
                let names = complete.services.iter().filter_map(|name| name.parse().ok());
                let names: BTreeSet<ServiceName> = names.collect();
                self.completed(|name| names.contains(name));
                Ok(())
            }
            Some(Response::Taps(taps)) => {
                self.taps.set(&self.discovery.shared.tap, taps.taps);
                Ok(())
            }
            // Of a later version; what must not be ignored comes as a version.
            None => Ok(()),
        }
    }

    /// Applies a delta whole, or keeps what is there and says why.
    fn take(&mut self, delta: &v1::Delta) -> Result<(), StreamError> {
        let before = self.discovery.shared.snapshot.load();
        match apply(before.as_deref(), delta) {
            Ok(snapshot) if self.is_ours(&snapshot) => {
                let revision = snapshot.revision;
                let complete = self.complete_now();
                self.discovery.publish(snapshot, complete);
                log::debug!(epoch = revision.epoch, n = revision.n; "snapshot");
                self.acknowledge(revision)
            }
            Ok(_) => self.reject(delta, "it is of another site".to_owned()),
            Err(error @ Rejected::WrongBase { .. }) => {
                self.reject(delta, error.to_string())?;
                Err(StreamError::Resync(error.to_string()))
            }
            Err(error) => self.reject(delta, error.to_string()),
        }
    }

    fn acknowledge(&mut self, revision: Revision) -> Result<(), StreamError> {
        self.serial = self.discovery.serial();
        let (revision, serial) = (Some(revision.into()), self.serial.clone());
        self.send(Request::Ack(v1::Ack { revision, serial }))
    }

    /// Acknowledges once more what is there if the certificate is a new one.
    fn tell_serial(&mut self) -> Result<(), StreamError> {
        let serial = self.discovery.serial();
        match self.discovery.shared.snapshot.load().map(|now| now.revision) {
            Some(revision) if !serial.is_empty() && serial != self.serial => {
                self.acknowledge(revision)
            }
            _ => Ok(()),
        }
    }

    fn reject(&self, delta: &v1::Delta, reason: String) -> Result<(), StreamError> {
        log::error!(reason = reason.as_str(); "delta rejected, keeping the snapshot that is there");
        let reason = reason.chars().take(MAX_REASON).collect();
        self.send(Request::Nack(v1::Nack { revision: delta.to, reason }))
    }

    fn is_ours(&self, snapshot: &mesh_core::Snapshot) -> bool {
        let own = self.discovery.shared.own.load();
        own.site.as_ref() == Some(&snapshot.site)
            && own.trust_domain.as_ref() == Some(&snapshot.trust_domain)
    }

    /// A renewed certificate changes nothing; another site does.
    fn is_still_ours(&self) -> Result<(), StreamError> {
        let snapshot = self.discovery.shared.snapshot.load();
        let ours = snapshot.is_none_or(|snapshot| self.is_ours(&snapshot));
        if ours { Ok(()) } else { Err(StreamError::Moved) }
    }

    fn complete_now(&self) -> Complete {
        if self.everything { Complete::All } else { Complete::Services(self.complete.clone()) }
    }

    fn completed(&mut self, is_answered: impl Fn(&ServiceName) -> bool) {
        let (answered, open): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.asked).into_iter().partition(|(name, _)| is_answered(name));
        self.asked = open;
        if answered.is_empty() {
            return;
        }
        self.complete.extend(answered.into_iter().map(|(name, _)| name));
        if let Some(snapshot) = self.discovery.shared.snapshot.load() {
            self.discovery.shared.snapshot.store(snapshot, self.complete_now());
        }
    }

    fn beat(&mut self) {
        for (_, beats) in &mut self.asked {
            *beats = beats.saturating_add(1);
        }
        let late = self.asked.iter().filter(|(_, beats)| *beats >= BEATS_TO_COMPLETE);
        let late: BTreeSet<ServiceName> = late.map(|(name, _)| name.clone()).collect();
        self.completed(|name| late.contains(name));
    }

    fn compare_clocks(&mut self, theirs: u64) {
        let ours = mesh_runtime::clock::unix_millis();
        if ours.abs_diff(theirs) > SKEW && !self.told_skew {
            self.told_skew = true;
            log::warn!(skew_ms = ours.abs_diff(theirs); "this clock and federation's differ; certificates may be refused");
        }
    }
}

/// Completes when there is something new; never if there is nothing to watch.
async fn changed(sessions: &mut Option<watch::Receiver<v1::NodeSessions>>) {
    let gone = match sessions {
        Some(sessions) => sessions.changed().await.is_err(),
        None => true,
    };
    if gone {
        std::future::pending::<()>().await;
    }
}
