//! JWT-SVIDs over the SPIFFE Workload API: fetched, told and validated.

use std::{sync::atomic::Ordering, time::Duration};

use isthmus_tests::pki::Ca;
use mesh_api::{
    spiffe::{JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, ValidateJwtsvidResponse},
    v1,
};
use mesh_core::SpiffeId;
use prost_types::value::Kind;
use tonic::{Code, Status, transport::Channel};
use vm_agent::{app::App, config::Config};

use super::{
    config, joined, operator,
    played::serve_identities,
    run, start,
    workload_api::{asked, client, connect, of_uid, own_uid},
};

const ID: &str = "spiffe://west.example/ns/shop/sa/orders";
const MINUTE: Duration = Duration::from_secs(60);

async fn fetch(config: &Config, audience: &[&str], spiffe_id: &str) -> Result<String, Status> {
    let audience = audience.iter().map(ToString::to_string).collect();
    let request = JwtsvidRequest { audience, spiffe_id: spiffe_id.into() };
    let mut svids = client(config).await.fetch_jwtsvid(asked(request)).await?.into_inner().svids;
    let svid = svids.pop().unwrap();
    assert_eq!((svids.len(), svid.spiffe_id.as_str()), (0, ID));
    Ok(svid.svid)
}

/// The same once the agent has found the federation that is played: it looks
/// for a real one meanwhile.
async fn obtain(app: &App, channel: &Channel, audience: &[&str]) -> Result<String, Status> {
    loop {
        connect(app, channel);
        match fetch(&app.agent.config, audience, "").await {
            Err(status) if status.message().contains("not connected") => {}
            answer => return answer,
        }
    }
}

async fn validate(
    config: &Config,
    audience: &str,
    svid: &str,
) -> Result<ValidateJwtsvidResponse, Status> {
    let request = ValidateJwtsvidRequest { audience: audience.into(), svid: svid.into() };
    Ok(client(config).await.validate_jwtsvid(asked(request)).await?.into_inner())
}

/// Kinds of keys by name, and their domains.
fn told(answer: &mesh_api::spiffe::JwtBundlesResponse) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (domain, keys) in &answer.bundles {
        let keys: serde_json::Value = serde_json::from_slice(keys).unwrap();
        for key in keys["keys"].as_array().unwrap() {
            assert_eq!(key["kty"], "EC");
            assert_eq!(key["use"], "jwt-svid");
            all.push((domain.clone(), key["kid"].as_str().unwrap().to_owned()));
        }
    }
    all.sort();
    all
}

fn attested(dir: &std::path::Path) -> Config {
    let mut config = config(dir);
    config.workload_api = vec![of_uid(own_uid())];
    config
}

#[test]
fn a_program_shows_its_identity_by_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let config = attested(dir.path());
    let ca = Ca::new("west.example");
    joined(&config, &ca);
    run(async {
        let (app, _drain) = start(&config).await;
        let early = fetch(&config, &["bank"], "").await.unwrap_err();
        assert_eq!(early.code(), Code::Unavailable);
        assert!(early.message().contains("not connected to west"), "{early}");
        let (identities, channel) = serve_identities(dir.path(), ca).await;
        *identities.lifetime.lock().await = 5 * MINUTE;
        let token = obtain(&app, &channel, &["bank"]).await.unwrap();
        assert_eq!(fetch(&config, &["bank"], ID).await.unwrap(), token, "it is young");
        assert_eq!(identities.tokens.load(Ordering::Relaxed), 1);
        let other = obtain(&app, &channel, &["post", "bank"]).await.unwrap();
        assert_eq!(identities.tokens.load(Ordering::Relaxed), 2);

        for token in [&token, &other] {
            let said = validate(&config, "bank", token).await.unwrap();
            assert_eq!(said.spiffe_id, ID);
            let claims = said.claims.unwrap().fields;
            assert_eq!(claims["sub"].kind, Some(Kind::StringValue(ID.into())));
            let Some(Kind::NumberValue(end)) = claims["exp"].kind else { panic!("{claims:?}") };
            assert!(end > 1.7e9, "{end}");
        }
        for (audience, token, code) in [
            ("post", token.as_str(), "jwt_audience"),
            ("bank", "", "jwt_malformed"),
            ("bank", &token[1..], "jwt_malformed"),
            ("bank", &token[..token.len() - 2], "jwt_signature"),
            ("bank", "a.".repeat(20_000).as_str(), "jwt_malformed"),
        ] {
            let refused = validate(&config, audience, token).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
            assert_eq!(refused.metadata().get("isthmus-error").unwrap(), code);
        }
        let nobody = validate(&config, "", &token).await.unwrap_err();
        assert_eq!(nobody.code(), Code::InvalidArgument);
        for audience in [&[][..], &[""], &["a"; 99]] {
            let refused = fetch(&config, audience, "").await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{audience:?}");
        }
        let web = "spiffe://west.example/ns/shop/sa/web";
        let refused = fetch(&config, &["bank"], web).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        app.stop().await;
    });
}

#[test]
fn keys_are_told_as_they_change_and_tokens_of_linked_sites_validated() {
    let dir = tempfile::tempdir().unwrap();
    let config = attested(dir.path());
    let (ca, east) = (Ca::new("west.example"), Ca::new("east.example"));
    joined(&config, &ca);
    run(async {
        let (app, _drain) = start(&config).await;
        let follow = client(&config).await.fetch_jwt_bundles(asked(JwtBundlesRequest {})).await;
        let mut answers = follow.unwrap().into_inner();
        let own = || ("spiffe://west.example".to_owned(), "k1".to_owned());
        assert_eq!(told(&answers.message().await.unwrap().unwrap()), [own()]);

        let id = SpiffeId::workload(&east.trust_domain, "shop", "web").unwrap();
        let token = east.token(&id, &["bank".to_owned()], MINUTE);
        let refused = validate(&config, "bank", &token).await.unwrap_err();
        assert!(refused.message().contains("unknown trust domain"), "{refused}");
        // It comes, as the session with the site tells it.
        let member = app.agent.member().unwrap();
        let mut bundles = member.node().joined.bundles.clone();
        bundles.push(v1::Bundle::from(&east.bundle()));
        assert!(member.refreshed(&app.agent.state, &bundles, &[]));
        let linked = ("spiffe://east.example".to_owned(), "k1".to_owned());
        assert_eq!(told(&answers.message().await.unwrap().unwrap()), [linked, own()]);
        assert_eq!(validate(&config, "bank", &token).await.unwrap().spiffe_id, id.as_str());
        // Not what it says about others.
        let own_id: SpiffeId = ID.parse().unwrap();
        let forged = east.token(&own_id, &["bank".to_owned()], MINUTE);
        let refused = validate(&config, "bank", &forged).await.unwrap_err();
        assert!(refused.message().contains("signature"), "{refused}");
        app.stop().await;
    });
}

#[test]
fn a_token_is_replaced_before_it_ends_and_ends_with_the_membership() {
    let dir = tempfile::tempdir().unwrap();
    let config = attested(dir.path());
    let ca = Ca::new("west.example");
    joined(&config, &ca);
    run(async {
        let (app, _drain) = start(&config).await;
        let (identities, channel) = serve_identities(dir.path(), ca).await;
        *identities.lifetime.lock().await = Duration::from_secs(4);
        let first = obtain(&app, &channel, &["bank"]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2100)).await;
        let second = obtain(&app, &channel, &["bank"]).await.unwrap();
        assert_ne!(first, second);
        validate(&config, "bank", &first).await.expect("in time");

        // The site says no, from the next one on.
        *identities.refusal.lock().await = Some("revoked");
        let refused = obtain(&app, &channel, &["post"]).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, "revoked"));

        operator(&config).await.leave_site(v1::LeaveSiteRequest { force: true }).await.unwrap();
        for ended in [
            fetch(&config, &["bank"], "").await.map(drop),
            validate(&config, "bank", &second).await.map(drop),
        ] {
            assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
        }
        app.stop().await;
    });
}

#[test]
fn a_token_that_names_somebody_else_is_not_handed_on() {
    let dir = tempfile::tempdir().unwrap();
    let config = attested(dir.path());
    let ca = Ca::new("west.example");
    joined(&config, &ca);
    run(async {
        let (app, _drain) = start(&config).await;
        let (identities, channel) = serve_identities(dir.path(), ca).await;
        let web = "spiffe://west.example/ns/shop/sa/web";
        for (of, why) in [(web, "names"), ("spiffe://north.example/ns/shop/sa/web", "unknown")] {
            *identities.tokens_of.lock().await = Some(of.parse().unwrap());
            let refused = obtain(&app, &channel, &["bank"]).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable);
            assert!(refused.message().contains(why), "{refused}");
        }
        app.stop().await;
    });
}
