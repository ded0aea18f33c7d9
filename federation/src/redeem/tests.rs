use mesh_api::v1::CreateLinkTokenRequest;

use super::*;
use crate::{leases::Terms, testing::TestSite};

fn site(name: &str) -> TestSite {
    TestSite::new(name, &Arc::default(), Terms::default())
}

fn gateway(site: &str) -> Gateway {
    Gateway {
        id: "gw1".into(),
        site: site.into(),
        quic_addresses: vec![],
        tls_addresses: vec!["gw.example:8443".into()],
    }
}

/// A site that says that it has this name and domain, with the roots of
/// another.
fn claiming(name: &str, domain: &str, roots: &TestSite) -> PeerSite {
    let bundle = Bundle { trust_domain: domain.into(), ..roots.state().site().bundle.clone() };
    PeerSite {
        site: name.parse().unwrap(),
        trust_domain: domain.parse().unwrap(),
        bundle,
        gateways: vec![gateway(name)],
    }
}

fn reason<T>(result: Result<T, LinkError>) -> Result<T, &'static str> {
    result.map_err(|error| error.reason())
}

#[tokio::test]
async fn one_trust_domain_is_one_site_and_one_link() {
    let (east, west, impostor) = (site("east"), site("west"), site("north"));
    let made = claiming("west", "west.example", &west).made(true, LinkTransport::Unspecified);
    east.commit(vec![made]).await;
    let state = east.state();
    let cases = [
        ("north", "north.example", Ok(())),
        ("east", "north.example", Err("link_own_site")),
        ("north", "east.example", Err("link_own_domain")),
        ("west", "east.example", Err("link_own_domain")),
        ("north", "west.example", Err("link_domain_taken")),
        ("west", "west.example", Err("link_exists")),
        ("west", "north.example", Err("link_exists")),
    ];
    for (name, domain, expected) in cases {
        let peer = claiming(name, domain, &west);
        let new = reason(check_new(&state, &peer.site, &peer.trust_domain));
        assert_eq!(new, expected, "{name} of {domain}");
        // The side that is asked lets the very same site come again.
        let again = match (name, domain) {
            ("west", "west.example") => Ok(()),
            ("west", "north.example") => Err("link_other_roots"),
            _ => expected,
        };
        assert_eq!(reason(check_new_or_again(&state, &peer)), again, "{name} of {domain}");
    }
    let other = claiming("west", "west.example", &impostor);
    assert_eq!(reason(check_new_or_again(&state, &other)), Err("link_other_roots"));
}

#[tokio::test]
async fn the_answer_must_be_that_of_the_site_that_the_token_names() {
    let (east, north) = (site("east"), site("north"));
    east.add_gateway("gw-e").await;
    let request = CreateLinkTokenRequest { site: "west".into(), ttl_s: 0 };
    let made = east.links.create_token("test", request).await.unwrap();
    let token = Token::decode(&made.token, Purpose::Link).unwrap();
    let answer = |name: &str, domain: &str, roots: &TestSite| {
        let peer = claiming(name, domain, roots);
        RedeemLinkResponse {
            version: 1,
            site: name.into(),
            trust_domain: domain.into(),
            bundle: Some(peer.bundle),
            gateways: peer.gateways,
            ..RedeemLinkResponse::default()
        }
    };
    assert!(check_response(&token, &answer("east", "east.example", &east)).is_ok());
    let cases = [
        ("another site", answer("north", "east.example", &east)),
        ("another domain", answer("east", "north.example", &east)),
        ("other roots", answer("east", "east.example", &north)),
        ("all of another", answer("north", "north.example", &north)),
    ];
    for (what, answer) in cases {
        assert_eq!(
            reason(check_response(&token, &answer)).err(),
            Some("invalid_argument"),
            "{what}"
        );
    }
}

/// The first look at a token is no promise: the decision looks again.
#[tokio::test]
async fn a_token_that_was_used_meanwhile_makes_no_second_link() {
    let (east, west) = (site("east"), site("west"));
    for (site, id) in [(&east, "gw-e"), (&west, "gw-w")] {
        site.add_gateway(id).await;
    }
    let asked = CreateLinkTokenRequest { site: "west".into(), ttl_s: 0 };
    let made = east.links.create_token("test", asked).await.unwrap();
    let token = Token::decode(&made.token, Purpose::Link).unwrap();
    let svid = west.site.credentials.svid().unwrap();
    let clock = east.site.authority.clock();
    let request = request(&west.state(), &token, &svid, clock.unix_ms()).unwrap();
    let now = clock.since_epoch();
    // Two at once: both have been looked at before either is decided.
    let peer = check_request(&east.state(), &request, now).unwrap();
    let events = decide_redeem(&east.state(), &request, &peer, now).unwrap();
    east.commit(events).await;
    let second = decide_redeem(&east.state(), &request, &peer, now);
    assert_eq!(reason(second).err(), Some("token_used_up"));
}
