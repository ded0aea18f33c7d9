use std::{sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose as Eku,
    IsCa, KeyPair, KeyUsagePurpose, SanType, SerialNumber, SignatureAlgorithm, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{
    Allowed, PeerIdentity, Revocations, Revoked, Side, TrustBundle, TrustBundles, VerifyError,
    canonical_serial, serial_hex, verify_peer,
};
use crate::name::{SpiffeId, TrustDomain};

const NODE: &str = "6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e11";
const WEB: &str = "spiffe://east.example/ns/shop/sa/web";

type Ca = CertifiedIssuer<'static, KeyPair>;
type Chain = Vec<CertificateDer<'static>>;

/// 1 June 2025: leaves are valid through that year, CAs a year longer.
fn now() -> UnixTime {
    at(1_748_736_000)
}

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(2024, 1, 1);
    params.not_after = date_time_ymd(2026, 12, 31);
    params
}

fn leaf_params(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names =
        uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth];
    params.serial_number = Some(SerialNumber::from_slice(&[0xAB, 0x01]));
    params.not_before = date_time_ymd(2025, 1, 1);
    params.not_after = date_time_ymd(2025, 12, 31);
    params
}

/// A root and the CA that issues under it.
struct Site {
    root: Ca,
    issuing: Ca,
}

impl Site {
    fn new(name: &str) -> Self {
        Self::with(name, ca_params("issuing"), &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    fn with(name: &str, issuing: CertificateParams, alg: &'static SignatureAlgorithm) -> Self {
        let key = || KeyPair::generate_for(alg).unwrap();
        let root = Ca::self_signed(ca_params(name), key()).unwrap();
        let issuing = Ca::signed_by(issuing, key(), &root).unwrap();
        Self { root, issuing }
    }

    fn issue(&self, params: &CertificateParams) -> Chain {
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuing).unwrap();
        vec![leaf.der().clone(), self.issuing.der().clone()]
    }
}

struct World {
    east: Site,
    west: Site,
    bundles: TrustBundles,
    revocations: Revocations,
}

fn domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

fn bundle_of(name: &str, roots: Chain) -> (TrustDomain, Arc<TrustBundle>) {
    (domain(name), Arc::new(TrustBundle::of_roots(domain(name), roots)))
}

impl World {
    fn new() -> Self {
        let (east, west) = (Site::new("east root"), Site::new("west root"));
        let bundles = [
            bundle_of("east.example", vec![east.root.der().clone()]),
            bundle_of("west.example", vec![west.root.der().clone()]),
        ];
        Self { east, west, bundles: bundles.into(), revocations: Revocations::default() }
    }

    fn verify(&self, chain: &Chain, allowed: &Allowed) -> Result<PeerIdentity, VerifyError> {
        verify_peer(chain, Side::Server, &self.bundles, &self.revocations, allowed, now())
    }

    /// The code of the refusal, or "ok".
    fn code(&self, chain: &Chain) -> &'static str {
        self.verify(chain, &Allowed::Known).map_or_else(|error| error.code(), |_| "ok")
    }
}

#[test]
fn a_good_peer_is_described() {
    let world = World::new();
    let mut params = leaf_params(&[WEB]);
    params.distinguished_name.push(DnType::CommonName, NODE);
    for side in [Side::Server, Side::Client] {
        let chain = world.east.issue(&params);
        let peer = verify_peer(
            &chain,
            side,
            &world.bundles,
            &world.revocations,
            &Allowed::Exactly(WEB.parse().unwrap()),
            now(),
        )
        .unwrap();
        assert_eq!(peer.id.as_str(), WEB);
        assert_eq!(peer.node, Some(NODE.parse().unwrap()));
        assert_eq!(peer.serial, "ab01");
        assert_eq!(peer.not_after, at(1_767_139_200));
    }
}

#[test]
fn the_node_comes_from_the_identity_or_a_single_uuid_as_common_name() {
    let world = World::new();
    let node_id = format!("spiffe://east.example/node/{NODE}");
    let cases: &[(&str, &[&str], Option<&str>)] = &[
        (&node_id, &[], Some(NODE)),
        (&node_id, &["0b0b5d3e-2f65-4a55-8f5c-7d3e9a0c2b22"], Some(NODE)),
        (WEB, &[NODE], Some(NODE)),
        (WEB, &["web"], None),
        (WEB, &[], None),
    ];
    for (id, names, expected) in cases {
        let mut params = leaf_params(&[id]);
        for name in *names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        let peer = world.verify(&world.east.issue(&params), &Allowed::Known).unwrap();
        assert_eq!(peer.node.as_ref().map(|n| n.as_str()), *expected, "{id} {names:?}");
    }
    // Two common names: neither is believed.
    let mut params = leaf_params(&[WEB]);
    params.distinguished_name.push(DnType::CommonName, NODE);
    params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 3]), "web");
    let peer = world.verify(&world.east.issue(&params), &Allowed::Known).unwrap();
    assert_eq!(peer.node, None);
}

#[test]
fn validity() {
    let world = World::new();
    let chain = world.east.issue(&leaf_params(&[WEB]));
    let verify = |now: UnixTime| {
        verify_peer(&chain, Side::Client, &world.bundles, &world.revocations, &Allowed::Known, now)
            .map_or_else(|error| error.code(), |_| "ok")
    };
    assert_eq!(verify(at(1_735_689_600)), "ok");
    assert_eq!(verify(at(1_735_689_599)), "peer_outside_validity");
    assert_eq!(verify(at(1_767_139_200)), "ok");
    assert_eq!(verify(at(1_767_139_201)), "peer_outside_validity");
}

#[test]
fn an_expired_issuer_ends_its_leaves() {
    let mut issuing = ca_params("issuing");
    issuing.not_after = date_time_ymd(2025, 5, 1);
    let mut world = World::new();
    world.east = Site::with("east root", issuing, &rcgen::PKCS_ECDSA_P256_SHA256);
    world.bundles.extend([bundle_of("east.example", vec![world.east.root.der().clone()])]);
    let code = world.code(&world.east.issue(&leaf_params(&[WEB])));
    assert_eq!(code, "peer_outside_validity");
}

#[test]
fn leaves_that_are_no_svids() {
    let world = World::new();
    let dns = || SanType::DnsName("web.example".try_into().unwrap());
    let mut ca = leaf_params(&[WEB]);
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let mut dns_only = leaf_params(&[]);
    dns_only.subject_alt_names = vec![dns()];
    let mut signs = leaf_params(&[WEB]);
    signs.key_usages.push(KeyUsagePurpose::KeyCertSign);
    let mut signs_lists = leaf_params(&[WEB]);
    signs_lists.key_usages.push(KeyUsagePurpose::CrlSign);
    let mut enciphers = leaf_params(&[WEB]);
    enciphers.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    let cases = [
        (ca, "not an X509-SVID: it is a CA"),
        (leaf_params(&[WEB, "spiffe://east.example/ns/shop/sa/b"]), "it has more than one URI"),
        (leaf_params(&[WEB, WEB]), "it has more than one URI"),
        (leaf_params(&[]), "it has no URI"),
        (dns_only, "it has no URI"),
        (leaf_params(&["https://east.example/ns/shop/sa/web"]), "must begin with spiffe://"),
        (leaf_params(&["spiffe://east.example"]), "must be /ns/<namespace>"),
        (leaf_params(&["spiffe://EAST.example/ns/shop/sa/web"]), "trust domain"),
        (signs, "lets it sign"),
        (signs_lists, "lets it sign"),
        (enciphers, "lacks digitalSignature"),
    ];
    for (params, message) in cases {
        let error = world.verify(&world.east.issue(&params), &Allowed::Known).unwrap_err();
        assert_eq!(error.code(), "peer_not_an_svid", "{error}");
        assert!(error.to_string().contains(message), "{error}\nexpected {message}");
    }
    let mut with_dns = leaf_params(&[WEB]);
    with_dns.subject_alt_names.push(dns());
    assert_eq!(world.code(&world.east.issue(&with_dns)), "ok");
    let mut without_usage = leaf_params(&[WEB]);
    without_usage.key_usages = vec![];
    assert_eq!(world.code(&world.east.issue(&without_usage)), "ok");
}

#[test]
fn bytes_that_are_no_certificate() {
    let world = World::new();
    assert_eq!(world.code(&vec![]), "peer_no_certificate");
    assert_eq!(
        world.code(&vec![CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])]),
        "peer_not_an_svid"
    );
    let mut chain = world.east.issue(&leaf_params(&[WEB]));
    let mut longer = chain[0].to_vec();
    longer.push(0);
    chain[0] = CertificateDer::from(longer);
    assert_eq!(world.code(&chain), "peer_not_an_svid");
}

#[test]
fn a_uri_that_is_no_text_is_not_skipped() {
    // Two URIs, then the second one's first byte is made invalid UTF-8. The
    // signature is broken by that, so the leaf must be refused before it.
    let world = World::new();
    let chain = world.east.issue(&leaf_params(&[WEB, "spiffe://east.example/ns/shop/sa/zzz"]));
    let mut der = chain[0].to_vec();
    let at = der.windows(3).position(|w| w == b"zzz").unwrap();
    der[at] = 0xff;
    let error = world.verify(&vec![CertificateDer::from(der)], &Allowed::Known).unwrap_err();
    assert_eq!(error.code(), "peer_not_an_svid", "{error}");
}

#[test]
fn a_ca_vouches_only_for_its_own_domain() {
    let world = World::new();
    // West's CA signs an identity of east.
    assert_eq!(world.code(&world.west.issue(&leaf_params(&[WEB]))), "peer_untrusted_chain");
    let foreign = "spiffe://north.example/ns/shop/sa/web";
    let chain = world.west.issue(&leaf_params(&[foreign]));
    assert_eq!(world.code(&chain), "peer_unknown_trust_domain");
    let own = world.west.issue(&leaf_params(&["spiffe://west.example/ns/shop/sa/web"]));
    assert_eq!(world.code(&own), "ok");
    // With west's root in the presented chain nothing changes.
    let mut chain = world.west.issue(&leaf_params(&[WEB]));
    chain.push(world.west.root.der().clone());
    assert_eq!(world.code(&chain), "peer_untrusted_chain");
}

#[test]
fn chains() {
    let mut world = World::new();
    let chain = world.east.issue(&leaf_params(&[WEB]));
    let leaf = chain[0].clone();
    assert_eq!(world.code(&vec![leaf.clone()]), "peer_untrusted_chain");
    let other = world.west.issuing.der().clone();
    let five = |last: &CertificateDer<'static>| {
        vec![leaf.clone(), other.clone(), other.clone(), other.clone(), last.clone()]
    };
    assert_eq!(world.code(&five(&chain[1])), "ok");
    let mut six = five(&other);
    six.push(chain[1].clone());
    let error = world.verify(&six, &Allowed::Known).unwrap_err();
    assert!(error.to_string().contains("more than 4 intermediates"), "{error}");
    // A leaf cannot issue.
    let mut issuing = leaf_params(&[WEB]);
    issuing.distinguished_name.push(DnType::CommonName, "issuing");
    let site = Site::with("east root", issuing, &rcgen::PKCS_ECDSA_P256_SHA256);
    world.bundles.extend([bundle_of("east.example", vec![site.root.der().clone()])]);
    assert_eq!(world.code(&site.issue(&leaf_params(&[WEB]))), "peer_untrusted_chain");
}

#[test]
fn any_root_of_a_bundle_and_none_that_is_garbage() {
    let mut world = World::new();
    let chain = world.east.issue(&leaf_params(&[WEB]));
    let garbage = CertificateDer::from(b"not a root".to_vec());
    let other = Site::new("other").root.der().clone();
    let roots = vec![garbage.clone(), other, world.east.root.der().clone()];
    world.bundles.extend([bundle_of("east.example", roots)]);
    assert_eq!(world.code(&chain), "ok");
    world.bundles.extend([bundle_of("east.example", vec![garbage])]);
    assert_eq!(world.code(&chain), "peer_untrusted_chain");
}

#[test]
fn key_usage_for_the_side() {
    let world = World::new();
    let cases: &[(&[Eku], bool, bool)] = &[
        (&[Eku::ServerAuth, Eku::ClientAuth], true, true),
        (&[Eku::ServerAuth], true, false),
        (&[Eku::ClientAuth], false, true),
        (&[Eku::CodeSigning], false, false),
        // X509-SVID section 4.4: the extension may be missing.
        (&[], true, true),
    ];
    for (usages, server, client) in cases {
        let mut params = leaf_params(&[WEB]);
        params.extended_key_usages = usages.to_vec();
        let chain = world.east.issue(&params);
        for (side, expected) in [(Side::Server, *server), (Side::Client, *client)] {
            let result = verify_peer(
                &chain,
                side,
                &world.bundles,
                &world.revocations,
                &Allowed::Known,
                now(),
            );
            assert_eq!(result.is_ok(), expected, "{usages:?} {side:?} {result:?}");
            assert!(result.is_ok() || result.unwrap_err().code() == "peer_untrusted_chain");
        }
    }
}

#[test]
fn algorithms_of_other_issuers() {
    let algorithms = [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
        &rcgen::PKCS_RSA_SHA512,
    ];
    let mut world = World::new();
    for algorithm in algorithms {
        let site = Site::with("east root", ca_params("issuing"), algorithm);
        world.bundles.extend([bundle_of("east.example", vec![site.root.der().clone()])]);
        assert_eq!(world.code(&site.issue(&leaf_params(&[WEB]))), "ok", "{algorithm:?}");
    }
}

#[test]
fn revocation_by_identity_node_and_serial() {
    let mut world = World::new();
    let mut params = leaf_params(&[WEB]);
    params.distinguished_name.push(DnType::CommonName, NODE);
    let chain = world.east.issue(&params);
    let revoked = [
        Revoked::Identity(WEB.parse().unwrap()),
        Revoked::Node(NODE.parse().unwrap()),
        Revoked::Serial("ab01".to_owned()),
        // As a linked site names a node of its own.
        Revoked::Identity(format!("spiffe://east.example/node/{NODE}").parse().unwrap()),
    ];
    let others = [
        Revoked::Identity("spiffe://west.example/ns/shop/sa/web".parse().unwrap()),
        Revoked::Node("0b0b5d3e-2f65-4a55-8f5c-7d3e9a0c2b22".parse().unwrap()),
        Revoked::Serial("ab02".to_owned()),
        Revoked::Identity(format!("spiffe://west.example/node/{NODE}").parse().unwrap()),
    ];
    for other in others {
        assert!(world.revocations.insert(other));
    }
    for entry in revoked {
        assert_eq!(world.code(&chain), "ok");
        assert!(world.revocations.insert(entry.clone()), "{entry:?}");
        assert!(!world.revocations.insert(entry.clone()), "{entry:?}");
        assert_eq!(world.code(&chain), "peer_revoked", "{entry:?}");
        assert!(world.revocations.remove(&entry), "{entry:?}");
        assert!(!world.revocations.remove(&entry), "{entry:?}");
    }
    // Revocation is told before the purpose.
    world.revocations.insert(Revoked::Serial("ab01".to_owned()));
    let elsewhere = Allowed::TrustDomain(domain("west.example"));
    assert_eq!(world.verify(&chain, &elsewhere).unwrap_err().code(), "peer_revoked");
}

#[test]
fn purposes() {
    let own = || domain("east.example");
    let id = |id: &str| -> SpiffeId { id.parse().unwrap() };
    let east_web = id(WEB);
    let east_node = id(&format!("spiffe://east.example/node/{NODE}"));
    let west_web = id("spiffe://west.example/ns/shop/sa/web");
    let west_gateway = SpiffeId::gateway(&domain("west.example"));
    let west_federation = SpiffeId::federation(&domain("west.example"));
    let all = [&east_web, &east_node, &west_web, &west_gateway, &west_federation];
    let cases: [(Allowed, &[&SpiffeId]); 5] = [
        (Allowed::Exactly(east_web.clone()), &[&east_web]),
        (Allowed::TrustDomain(own()), &[&east_web, &east_node]),
        (Allowed::Neighbour(own()), &[&east_web, &east_node, &west_gateway]),
        (Allowed::Controlled(own()), &[&east_web, &east_node, &west_federation]),
        (Allowed::Known, &all),
    ];
    for (allowed, accepted) in cases {
        for id in all {
            assert_eq!(allowed.accepts(id), accepted.contains(&id), "{allowed:?} {id}");
        }
    }
}

#[test]
fn a_refusal_says_what_was_expected() {
    let world = World::new();
    let chain = world.west.issue(&leaf_params(&["spiffe://west.example/ns/shop/sa/web"]));
    let cases = [
        (Allowed::Exactly(WEB.parse().unwrap()), WEB),
        (Allowed::TrustDomain(domain("east.example")), "an identity of east.example"),
        (Allowed::Neighbour(domain("east.example")), "an identity of east.example, or a gateway"),
        (
            Allowed::Controlled(domain("east.example")),
            "an identity of east.example, or a federation",
        ),
    ];
    for (allowed, message) in cases {
        let error = world.verify(&chain, &allowed).unwrap_err();
        assert_eq!(error.code(), "peer_not_allowed");
        assert!(error.to_string().ends_with(&format!("expected {message}")), "{error}");
    }
    assert_eq!(Allowed::Known.to_string(), "any identity");
}

#[test]
fn serials() {
    for (bytes, hex) in [
        (&[0xAB, 0x01][..], "ab01"),
        (&[0x00, 0xAB], "ab"),
        (&[0x01, 0x00], "0100"),
        (&[0x00], "00"),
        (&[0x00, 0x00], "00"),
        (&[], ""),
    ] {
        assert_eq!(serial_hex(bytes), hex);
    }
    let longest = "7f".repeat(21);
    for (given, canonical) in [
        ("ab01", Some("ab01")),
        ("AB01", Some("ab01")),
        ("00ab01", Some("ab01")),
        ("a", Some("0a")),
        ("100", Some("0100")),
        ("0", Some("00")),
        (&longest, Some(&*longest)),
        ("", None),
        ("xy", None),
        ("ab 01", None),
        (&format!("{longest}0"), None),
    ] {
        assert_eq!(canonical_serial(given).as_deref(), canonical, "{given}");
    }
}
