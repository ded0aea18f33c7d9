//! JWT-SVIDs from one machine to another, across a link: signed by one site's
//! federation, validated by the agent of the other.

use std::os::unix::fs::MetadataExt;

use mesh_api::spiffe::{
    JwtsvidRequest, ValidateJwtsvidRequest, spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use mesh_tunnel::unix;
use tonic::{Code, Request, Status, transport::Channel};

use crate::world::{Agent, World, run, until};

const ID: &str = "spiffe://west.example/ns/shop/sa/checkout";

/// A machine of `site` with programs of this identity: we are one.
async fn machine(site: &World, account: &str) -> Agent {
    let uid = std::fs::metadata("/proc/self").unwrap().uid();
    let more = format!("workload_api: [{{ user: {uid} }}]\n");
    let mut agent = Agent::start_with(site, account, &more).await;
    agent.join(&site.token_of(account).await).await.unwrap();
    agent
}

async fn client(of: &Agent) -> SpiffeWorkloadApiClient<Channel> {
    let socket = of.dir.join("run/workload.sock");
    SpiffeWorkloadApiClient::new(unix::channel(&socket).await.unwrap())
}

fn asked<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

async fn fetch(of: &Agent, audience: &str) -> Result<String, Status> {
    let request = JwtsvidRequest { audience: vec![audience.into()], ..Default::default() };
    let svids = client(of).await.fetch_jwtsvid(asked(request)).await?.into_inner().svids;
    Ok(svids.into_iter().next().unwrap().svid)
}

/// Whom the agent says that a token names, or why nobody.
async fn validate(at: &Agent, audience: &str, svid: &str) -> Result<String, String> {
    let request = ValidateJwtsvidRequest { audience: audience.into(), svid: svid.into() };
    let said = client(at).await.validate_jwtsvid(asked(request)).await;
    said.map(|said| said.into_inner().spiffe_id).map_err(|status| status.message().to_owned())
}

#[test]
fn a_token_of_one_site_is_believed_in_the_other_and_none_follows_a_revocation() {
    run(async {
        let (mut west, east) = tokio::join!(World::start(), World::start_site("east", ""));
        let (checkout, bank) = tokio::join!(machine(&west, "checkout"), machine(&east, "bank"));
        until("it is connected", || async { fetch(&checkout, "bank").await.is_ok() }).await;
        let token = fetch(&checkout, "bank").await.unwrap();
        assert_eq!(validate(&checkout, "bank", &token).await.unwrap(), ID);
        let refused = validate(&bank, "bank", &token).await.unwrap_err();
        assert!(refused.contains("unknown trust domain west.example"), "{refused}");

        let link = west.meshctl(&["link", "token", "--site", "east"]);
        east.meshctl(&["link", "cluster", "west", &link]);
        until("the other site knows the key", || async {
            validate(&bank, "bank", &token).await.is_ok()
        })
        .await;
        assert_eq!(validate(&bank, "bank", &token).await.unwrap(), ID);
        let refused = validate(&bank, "post", &token).await.unwrap_err();
        assert!(refused.contains("another audience"), "{refused}");

        // What was published is known without anybody, and the key survives.
        west.kill_federation();
        assert_eq!(validate(&bank, "bank", &token).await.unwrap(), ID);
        west.start_federation().await;
        until("it is reached again", || async { fetch(&checkout, "after").await.is_ok() }).await;
        let after = fetch(&checkout, "after").await.unwrap();
        assert_eq!(validate(&bank, "after", &after).await.unwrap(), ID);

        west.meshctl(&["identity", "revoke", ID]);
        let refused = fetch(&checkout, "other").await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        assert!(refused.message().contains("revoked"), "{refused}");
        west.meshctl(&["identity", "reinstate", ID]);
        fetch(&checkout, "other").await.unwrap();
    });
}
