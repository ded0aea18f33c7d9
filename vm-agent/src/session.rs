//! One registry session: says what runs here and that it still does.

use std::{collections::BTreeSet, time::Duration};

use mesh_api::v1::{
    RegistryHello, RegistryReply, RegistryRequest, SiteTrust, registry_client::RegistryClient,
};
use mesh_runtime::{clock, drain::Drain};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use crate::{
    agent::{Agent, Farewell},
    ledger::Ledger,
    uplink::shown,
};

/// The lease is 8 s: three heartbeats may be lost.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Heartbeats are answered; a federation that is silent for this long is gone.
const SILENCE: Duration = Duration::from_secs(8);
/// For the answer to the session's beginning, and for a place in the queue.
const PATIENCE: Duration = Duration::from_secs(8);
/// Requests on their way; a machine with many services fills it at start.
const QUEUE: usize = 64;

/// Runs until the session ends, and says why. When the drain starts it says
/// goodbye first.
pub async fn run(agent: &Agent, channel: Channel, drain: &Drain) -> String {
    match Session::begin(agent, channel).await {
        Ok(session) => match session.serve(drain).await {
            Ok(()) => "goodbye".to_owned(),
            Err(why) => why,
        },
        Err(why) => why,
    }
}

struct Session<'a> {
    agent: &'a Agent,
    ledger: Ledger,
    requests: mpsc::Sender<RegistryRequest>,
    replies: Streaming<RegistryReply>,
    heard: tokio::time::Instant,
    /// What the disk says that the site may have on record.
    kept: BTreeSet<String>,
}

impl<'a> Session<'a> {
    async fn begin(agent: &'a Agent, channel: Channel) -> Result<Self, String> {
        let kept = agent.state.registered();
        let mut ledger = Ledger::new(agent.place(), kept.clone());
        let hello = ledger.hello(RegistryHello {
            versions: mesh_api::VERSIONS.to_vec(),
            boot_id: agent.machine.boot.clone(),
            machine_id: agent.machine.id.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            follows_bundles: true,
        });
        let (requests, queue) = mpsc::channel(QUEUE);
        requests.try_send(hello).expect("the queue is new");
        let mut client = RegistryClient::new(channel);
        let session = client.session(ReceiverStream::new(queue));
        let replies = match timeout(PATIENCE, session).await {
            Ok(Ok(replies)) => replies.into_inner(),
            Ok(Err(status)) => return Err(shown(&status)),
            Err(_) => return Err(format!("federation: no answer within {PATIENCE:?}")),
        };
        Ok(Self { agent, ledger, requests, replies, heard: clock::monotonic(), kept })
    }

    async fn serve(mut self, drain: &Drain) -> Result<(), String> {
        let mut services = self.agent.services.subscribe();
        let mut beat = interval(HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.say_changes().await?;
            tokio::select! {
                reply = self.replies.message() => {
                    if let Some(trust) = self.answered(reply)? {
                        self.take(&trust).await?;
                    }
                }
                _ = services.changed() => {}
                _ = beat.tick() => self.beat().await?,
                () = drain.draining() => return self.say_goodbye().await,
            }
        }
    }

    async fn say_changes(&mut self) -> Result<(), String> {
        let services = self.agent.services.borrow().clone();
        let requests = self.ledger.changes(&services, clock::monotonic());
        self.keep_known();
        for request in requests {
            self.send(request).await?;
        }
        self.agent.registrations.send_if_modified(|now| {
            let changed = *now != self.ledger.registrations;
            if changed {
                now.clone_from(&self.ledger.registrations);
            }
            changed
        });
        Ok(())
    }

    /// On disk before it is said: an agent that dies must know later what to
    /// take back.
    fn keep_known(&mut self) {
        let known = self.ledger.known();
        if known == self.kept {
            return;
        }
        match self.agent.state.save_registered(&known) {
            Ok(()) => self.kept = known,
            Err(error) => {
                log::warn!(error:% = error; "services that are removed while the agent is away stay registered");
            }
        }
    }

    async fn send(&self, request: RegistryRequest) -> Result<(), String> {
        match timeout(PATIENCE, self.requests.send(request)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("federation ended the session".to_owned()),
            Err(_) => Err(format!("federation takes no requests for {PATIENCE:?}")),
        }
    }

    fn answered(
        &mut self,
        reply: Result<Option<RegistryReply>, tonic::Status>,
    ) -> Result<Option<SiteTrust>, String> {
        let reply = reply.map_err(|status| shown(&status))?;
        let mut reply = reply.ok_or_else(|| "federation ended the session".to_owned())?;
        self.heard = clock::monotonic();
        // Comes unasked, and answers nothing.
        if let Some(trust) = reply.trust.take().filter(|_| reply.sequence == 0) {
            return Ok(Some(trust));
        }
        self.ledger.answered(reply, self.heard).map(|()| None)
    }

    /// Believes what the site believes now, and says so once that is on disk.
    async fn take(&mut self, trust: &SiteTrust) -> Result<(), String> {
        let Some(member) = self.agent.member() else { return Ok(()) };
        if !member.refreshed(&self.agent.state, &trust.bundles, &trust.gateways) {
            return Ok(());
        }
        let holds = self.ledger.holds(member.holds());
        self.send(holds).await
    }

    async fn beat(&mut self) -> Result<(), String> {
        if self.heard.elapsed() > SILENCE {
            return Err(format!("federation: silent for {SILENCE:?}"));
        }
        let heartbeat = self.ledger.heartbeat(clock::unix_millis());
        self.send(heartbeat).await
    }

    /// Waits until every request is answered; the drain's deadline bounds it.
    async fn say_goodbye(mut self) -> Result<(), String> {
        let requests = match self.agent.farewell.get() {
            Some(Farewell::Leaving(within)) => {
                log::info!(within:? = within; "stopping, and expected back");
                vec![self.ledger.leaving(*within)]
            }
            Some(Farewell::Deregister) => {
                log::info!("the machine stops: every service is deregistered");
                self.ledger.deregister_all()
            }
            None => Vec::new(),
        };
        for request in requests {
            self.send(request).await?;
        }
        while !self.ledger.is_settled() {
            let reply = self.replies.message().await;
            self.answered(reply)?;
        }
        self.keep_known();
        Ok(())
    }
}
