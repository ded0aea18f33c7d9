//! Tokens for workloads: who gets one, for whom, until when, and the keys that
//! sign them.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{fs, sync::atomic::Ordering, time::Duration};

use common::{Machine, TestSite, copy, reason, run};
use federation::jwt::{self, AHEAD, KEY_LIFE, LAST};
use mesh_api::v1::{
    self, Bundle, Reinstated, Revocation, authority_record::Event,
    node_identity_client::NodeIdentityClient,
};
use mesh_core::{
    TrustBundle,
    jwt::{JwtError, JwtSvid, MAX_AUDIENCES, verify_jwt},
};
use rustls::pki_types::UnixTime;
use tonic::Status;

const MINUTE: Duration = Duration::from_secs(60);

async fn joined(site: &TestSite, gateway: bool) -> Machine {
    let token = site.token(1, MINUTE, gateway).await;
    site.join(&token).await.unwrap()
}

async fn ask(
    site: &TestSite,
    machine: &Machine,
    (namespace, account): (&str, &str),
    audience: &[&str],
) -> Result<v1::IssuedJwt, Status> {
    let request = v1::IssueJwtRequest {
        namespace: namespace.into(),
        account: account.into(),
        audience: audience.iter().map(ToString::to_string).collect(),
    };
    let mut client = NodeIdentityClient::new(site.channel(copy(&machine.svid)));
    Ok(client.issue_jwt(request).await?.into_inner())
}

async fn token(site: &TestSite, machine: &Machine) -> Result<v1::IssuedJwt, Status> {
    ask(site, machine, ("shop", "orders"), &["bank", "post"]).await
}

fn verify(token: &str, bundle: &Bundle) -> Result<JwtSvid, JwtError> {
    let bundle = TrustBundle::try_from(bundle).unwrap();
    let bundles = [(bundle.trust_domain.clone(), bundle.into())].into_iter().collect();
    verify_jwt(token, "bank", &bundles, UnixTime::now())
}

fn published(site: &TestSite) -> Bundle {
    site.site().authority.state().site().bundle.clone()
}

fn kids(site: &TestSite) -> Vec<String> {
    published(site).jwt_keys.into_iter().map(|key| key.kid).collect()
}

/// Names of the keys on the disk.
fn on_disk(site: &TestSite) -> Vec<String> {
    let names = fs::read_dir(site.config.state.join("keys")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let kid = |name: String| Some(name.strip_prefix("jwt-")?.strip_suffix(".key")?.to_owned());
    let mut kids: Vec<_> = names.filter_map(kid).collect();
    kids.sort();
    kids
}

fn sorted(mut kids: Vec<String>) -> Vec<String> {
    kids.sort();
    kids
}

async fn happens(site: &TestSite, event: Event) {
    let decide = |_: &federation::authority::State| -> Result<_, federation::refusal::Never> {
        Ok((vec![event], ()))
    };
    site.site().authority.commit("test", decide).await.unwrap();
}

#[test]
fn a_machine_gets_tokens_within_its_grants() {
    run(async {
        let site = TestSite::new("west").await;
        let machine = joined(&site, false).await;
        assert_eq!(machine.answer.bundles[0].jwt_keys.len(), 1, "published before it signs");
        let issued = token(&site, &machine).await.unwrap();
        let svid = verify(&issued.token, &machine.answer.bundles[0]).unwrap();
        assert_eq!(svid.id.as_str(), "spiffe://west.example/ns/shop/sa/orders");
        assert_eq!(svid.claims["aud"], serde_json::json!(["bank", "post"]));
        let now = i64::try_from(mesh_runtime::clock::now_unix().as_secs()).unwrap();
        assert!((issued.not_after_unix_s - now - 300).abs() < 30, "five minutes");
        assert_eq!(svid.claims["exp"], issued.not_after_unix_s);
        assert_eq!(svid.claims["iat"], issued.not_after_unix_s - 360, "for clocks behind");
        assert_eq!(issued.bundles, [published(&site)]);

        for of in [("shop", "other"), ("other", "orders"), ("isthmus-system", "gateway"), ("", "")]
        {
            let refused = ask(&site, &machine, of, &["bank"]).await.unwrap_err();
            assert_eq!(reason(&refused), "not_granted", "{of:?}");
        }
        for audience in [&[][..], &[""], &["a\nb"], &["a"; MAX_AUDIENCES + 1]] {
            let refused = ask(&site, &machine, ("shop", "orders"), audience).await.unwrap_err();
            assert_eq!(reason(&refused), "bad_audience", "{audience:?}");
        }
        let gateway = joined(&site, true).await;
        let refused = ask(&site, &gateway, ("isthmus-system", "gateway"), &["bank"]).await;
        assert_eq!(reason(&refused.unwrap_err()), "not_granted", "that is for mTLS alone");
    });
}

#[test]
fn who_is_revoked_gets_no_token_any_more() {
    run(async {
        let site = TestSite::new("west").await;
        let machine = joined(&site, false).await;
        let revoke = |subject: &str| {
            Event::Revoked(Revocation { subject: subject.into(), revoked_at_unix_s: 1 })
        };
        let id = "spiffe://west.example/ns/shop/sa/orders";
        happens(&site, revoke(id)).await;
        let refused = token(&site, &machine).await.unwrap_err();
        assert_eq!(reason(&refused), "identity_revoked");
        happens(&site, Event::Reinstated(Reinstated { subject: id.into() })).await;
        token(&site, &machine).await.unwrap();

        let twice = v1::NodeDuplicated { id: machine.node.clone(), reason: "a copy".into() };
        happens(&site, Event::NodeDuplicated(twice)).await;
        let refused = token(&site, &machine).await.unwrap_err();
        assert_eq!(reason(&refused), "node_duplicated");

        let other = joined(&site, false).await;
        token(&site, &other).await.unwrap();
        happens(&site, revoke(&format!("node:{}", other.node))).await;
        assert!(token(&site, &other).await.is_err());
    });
}

/// What is issued at the site's own time.
fn issue_now(site: &TestSite) -> jwt::IssuedToken {
    let site = site.site();
    let (state, now) = (site.authority.state(), site.authority.clock().unix_s());
    let id = "spiffe://west.example/ns/shop/sa/orders".parse().unwrap();
    jwt::issue(&state, site.ca.jwt_keys(), &id, &["bank".to_owned()], now).unwrap()
}

#[test]
fn keys_are_rotated() {
    run(async {
        let site = TestSite::new("west").await;
        let after = async |time: Duration| {
            site.skew.store(i64::try_from(time.as_secs()).unwrap() + 5, Ordering::SeqCst);
            jwt::follow(site.site()).await.unwrap();
        };
        let first = published(&site);
        let [old] = &kids(&site)[..] else { panic!("one") };
        assert_eq!(on_disk(&site), std::slice::from_ref(old));
        after(KEY_LIFE - AHEAD - MINUTE).await;
        assert_eq!(published(&site), first, "nothing is due");

        after(KEY_LIFE - AHEAD).await;
        let both = kids(&site);
        let [kept, new] = &both[..] else { panic!("two: {both:?}") };
        assert_eq!(kept, old);
        let now = published(&site);
        assert_eq!((now.sequence, &now.roots), (first.sequence + 1, &first.roots));
        assert_eq!(on_disk(&site), sorted(both.clone()));
        assert_eq!(issue_now(&site).kid, *old, "the new one is only published");

        after(KEY_LIFE).await;
        let issued = issue_now(&site);
        assert_eq!(issued.kid, *new);
        assert_eq!(kids(&site), both, "tokens of the old one are still good");
        after(KEY_LIFE + LAST).await;
        assert_eq!(kids(&site), std::slice::from_ref(new));
        assert_eq!(on_disk(&site), std::slice::from_ref(new));
    });
}

#[test]
fn keys_outlive_the_process_and_are_replaced_where_they_are_lost() {
    run(async {
        let site = TestSite::new("west").await;
        let first = published(&site);
        let site = site.restart().await;
        assert_eq!(published(&site), first);
        let machine = joined(&site, false).await;
        let token = token(&site, &machine).await.unwrap().token;

        let lost = site.config.state.join(format!("keys/jwt-{}.key", kids(&site)[0]));
        fs::remove_file(lost).unwrap();
        let site = site.restart().await;
        let now = published(&site);
        assert_eq!(now.jwt_keys.len(), 2);
        assert_eq!(issue_now(&site).kid, now.jwt_keys[1].kid);
        verify(&token, &now).expect("what the lost one has signed is believed to its end");
        verify(&issue_now(&site).token, &now).unwrap();
    });
}

#[test]
fn a_key_that_no_bundle_names_is_removed() {
    run(async {
        let site = TestSite::new("west").await;
        let known = kids(&site);
        site.site().ca.jwt_keys().make().unwrap();
        assert_eq!(on_disk(&site).len(), 2, "of a commit that failed");
        let site = site.restart().await;
        assert_eq!((on_disk(&site), kids(&site)), (known.clone(), known));
    });
}
