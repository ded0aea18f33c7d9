//! The certificate that programs of this machine get over the Workload API:
//! one for all of them, since they have one identity, obtained when the first
//! asks and renewed from then on.

use std::{ops::Range, sync::Arc, time::Duration};

use mesh_api::v1::{IssueWorkloadRequest, IssuedCertificate};
use mesh_core::name::Subject;
use mesh_runtime::clock;
use mesh_tunnel::{Credentials, Svid, Trust, tls::new_key_and_csr};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::{
    agent::{Agent, Member},
    uplink::{self, node_identity, shown},
};

/// For federation's answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// After a failure; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Part of a certificate's life after which it is renewed.
const RENEW_AT: Range<f64> = 0.6..0.7;
/// How often the wall clock is looked at: it jumps when a machine sleeps.
const LOOK: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub struct Workload {
    /// Without a certificate until somebody has asked.
    pub credentials: Arc<Credentials>,
    /// Why there is none, or no newer one; empty if all is well.
    pub problem: watch::Sender<String>,
    wanted: watch::Sender<bool>,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            credentials: Credentials::new(None, Trust::default()),
            problem: watch::Sender::new(String::new()),
            wanted: watch::Sender::new(false),
        }
    }
}

impl Workload {
    /// Somebody has asked.
    pub fn want(&self) {
        self.wanted.send_if_modified(|wanted| !std::mem::replace(wanted, true));
    }

    fn withdraw(&self) {
        self.credentials.withdraw_svid();
        self.credentials.replace_trust(Trust::default());
        self.problem.send_replace(String::new());
    }
}

/// Obtains and renews for ever, for each membership anew.
pub async fn run(agent: &Agent) {
    let mut wanted = agent.workload.wanted.subscribe();
    // The agent holds the sender.
    let _ = wanted.wait_for(|wanted| *wanted).await;
    let mut membership = agent.membership.subscribe();
    loop {
        membership.mark_unchanged();
        let Some(member) = agent.member() else {
            agent.workload.withdraw();
            let _ = membership.changed().await;
            continue;
        };
        tokio::select! {
            _ = membership.changed() => agent.workload.withdraw(),
            () = follow_trust(&agent.workload, &member) => {}
            () = keep(agent, &member) => {}
        }
    }
}

/// What the site believes now, its programs do.
async fn follow_trust(workload: &Workload, member: &Member) {
    let mut node = member.subscribe();
    loop {
        let trust = node.borrow_and_update().trust();
        workload.credentials.replace_trust(trust);
        if node.changed().await.is_err() {
            return;
        }
    }
}

async fn keep(agent: &Agent, member: &Member) {
    let workload = &agent.workload;
    let mut pause = FIRST_PAUSE;
    loop {
        match issue(agent, member).await {
            Ok(svid) => {
                let left = svid.not_after.as_secs().saturating_sub(clock::now_unix().as_secs());
                log::info!(id = svid.id.as_str(), seconds = left; "certificate for the Workload API");
                workload.credentials.replace_svid(svid);
                workload.problem.send_replace(String::new());
                pause = FIRST_PAUSE;
                until_due(&workload.credentials, Duration::from_secs(left)).await;
            }
            Err(problem) => {
                log::warn!(error = problem.as_str(); "no certificate for the Workload API");
                workload.problem.send_replace(problem);
                // Sooner if the site is reached again.
                let mut uplink = agent.uplink.subscribe();
                tokio::select! {
                    () = sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                    _ = uplink.wait_for(|uplink| uplink.channel.is_some()),
                        if uplink.borrow().channel.is_none() => {}
                }
            }
        }
    }
}

/// Waits until the certificate, which lives for `life`, is to be renewed: by
/// its age, or because its root leaves.
async fn until_due(credentials: &Credentials, life: Duration) {
    let issued = clock::now_unix();
    let due = issued + life.mul_f64(rand::random_range(RENEW_AT));
    let aged = async {
        while let Some(left) = due.checked_sub(clock::now_unix()).filter(|left| !left.is_zero()) {
            sleep(left.min(LOOK)).await;
        }
    };
    let retired = async {
        let within = credentials.retires().await;
        // Not all machines of a site at once.
        tokio::time::sleep_until(Instant::now() + within.mul_f64(rand::random_range(0.0..1.0)))
            .await;
    };
    tokio::select! {
        () = aged => {}
        () = retired => {}
    }
}

async fn issue(agent: &Agent, member: &Member) -> Result<Svid, String> {
    let node = member.node();
    let Subject::Workload { namespace, account } = node.workload.subject() else {
        return Err("this machine has no workload identity".to_owned());
    };
    if node.workload.is_gateway() {
        // Whoever holds it is believed by linked sites.
        return Err("the identity of a gateway is for the gateway alone".to_owned());
    }
    let channel = uplink::channel(agent, &node)?;
    let (key, csr) = new_key_and_csr().map_err(|error| format!("cannot make a key: {error}"))?;
    let request = IssueWorkloadRequest {
        csr,
        namespace: namespace.to_string(),
        account: account.to_string(),
        replaces: agent.workload.credentials.svid().map(|svid| svid.serial()).unwrap_or_default(),
        ..IssueWorkloadRequest::default()
    };
    let issued = match timeout(DEADLINE, node_identity(channel).issue_workload(request)).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return Err(shown(&status)),
        Err(_) => return Err(format!("federation: no answer within {DEADLINE:?}")),
    };
    let svid = svid(key, &issued)?;
    if svid.id != node.workload {
        return Err(format!("the answer names {}, not {}", svid.id, node.workload));
    }
    member.refreshed(&agent.state, &issued.bundles, &issued.gateways);
    Ok(svid)
}

fn svid(key: PrivateKeyDer<'static>, issued: &IssuedCertificate) -> Result<Svid, String> {
    let chain = issued.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    Svid::from_der(chain, key).map_err(|error| format!("the certificate is not usable: {error}"))
}
