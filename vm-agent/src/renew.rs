//! Renews the node's certificate: daily, and when the root that it hangs on is
//! about to leave.

use std::time::Duration;

use mesh_api::v1::RenewNodeRequest;
use mesh_runtime::clock;
use mesh_tunnel::tls::new_key_and_csr;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

use crate::{
    agent::{Agent, Member},
    node::Node,
    uplink::{node_identity, shown},
};

/// How often the wall clock is looked at: it jumps when a machine sleeps.
const LOOK: Duration = Duration::from_secs(5);
/// For one renewal.
const DEADLINE: Duration = Duration::from_secs(10);
/// After a failure; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// 29 days are left when the first renewal is due.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// Waits until renewal is due and tries until it is done.
pub async fn run(agent: &Agent, member: &Member, channel: Channel) {
    let mut pause = FIRST_PAUSE;
    let mut hurry = None;
    while let Some(left) = time_left(&member.node(), agent.config.renew_after, clock::now_unix()) {
        let left = hurry.map_or(left, |end| left.min(end - clock::monotonic()));
        if left.is_zero() {
            break;
        }
        tokio::select! {
            () = sleep(left.min(LOOK)) => {}
            // Not all machines of a site at once.
            within = member.credentials.retires(), if hurry.is_none() => {
                log::info!(within:? = within; "the root of the node's certificate leaves: renewing");
                let pause = within.mul_f64(rand::random_range(0.0..1.0));
                hurry = Some(clock::monotonic() + pause);
            }
        }
    }
    loop {
        match renew(agent, member, channel.clone()).await {
            Ok(()) => break,
            Err(problem) => {
                log::error!("the node's certificate cannot be renewed: {problem}");
                member.trouble.send_replace(problem);
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    member.trouble.send_replace(String::new());
}

/// Until renewal is due; `None` if it is. A certificate from the future was
/// obtained under another clock: due.
fn time_left(node: &Node, renew_after: Duration, now: Duration) -> Option<Duration> {
    let issued = Duration::from_secs(u64::try_from(node.issued).unwrap_or(0));
    let age = now.checked_sub(issued)?;
    renew_after.checked_sub(age).filter(|left| !left.is_zero())
}

async fn renew(agent: &Agent, member: &Member, channel: Channel) -> Result<(), String> {
    let (key, csr) = new_key_and_csr().map_err(|error| format!("cannot make a key: {error}"))?;
    // A certificate that cannot be kept would retire the one that is.
    agent.state.check_writable().map_err(|error| error.to_string())?;
    let request = RenewNodeRequest {
        csr,
        boot_id: agent.machine.boot.clone(),
        machine_id: agent.machine.id.clone(),
    };
    let mut client = node_identity(channel);
    let certificate = match timeout(DEADLINE, client.renew_node(request)).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return Err(shown(&status)),
        Err(_) => return Err(format!("federation: no answer within {DEADLINE:?}")),
    };
    member.renewed(&agent.state, key, certificate)?;
    log::info!(node = member.node().id.as_str(); "node certificate renewed");
    Ok(())
}
