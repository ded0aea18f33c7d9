use std::{os::unix::fs::PermissionsExt, sync::Arc};

use mesh_core::{
    SpiffeId, TrustBundle, TrustBundles,
    identity::{Revocations, Revoked},
};
use mesh_runtime::clock;
use mesh_tunnel::Credentials;
use rcgen::{CertificateParams, CertifiedIssuer, DistinguishedName, DnType, KeyPair, SanType};

use super::*;

const NODE: &str = "6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e11";
const OTHER: &str = "0b0b5d3e-2f65-4a55-8f5c-7d3e9a0c2b22";
const HOUR: Duration = Duration::from_secs(3600);

/// The root of east.example, which signs leaves itself.
struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn bundle(&self) -> TrustBundle {
        let roots = vec![self.0.der().clone()];
        TrustBundle::of_roots("east.example".parse().unwrap(), roots)
    }

    fn trust(&self) -> Trust {
        let bundle = self.bundle();
        let bundles = TrustBundles::from([(bundle.trust_domain.clone(), Arc::new(bundle))]);
        Trust { bundles: Arc::new(bundles), ..Trust::default() }
    }

    /// For an hour from now, issued under [`NODE`].
    fn svid(&self, account: &str) -> Svid {
        let id = id(account);
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, NODE);
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + clock::now_unix().saturating_sub(Duration::from_secs(600));
        params.not_after = epoch + clock::now_unix() + HOUR;
        let leaf = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Svid::from_der(vec![leaf.der().clone()], key).unwrap()
    }
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::workload(&"east.example".parse().unwrap(), "shop", account).unwrap()
}

fn described(ca: &Ca, account: &str, node: &str) -> Described {
    let message = v1::Description {
        site: Some(v1::Site {
            name: "east".into(),
            trust_domain: "east.example".into(),
            federation_address: "10.0.0.1:8446".into(),
        }),
        spiffe_id: id(account).to_string(),
        node: node.into(),
        gateway: "gw-1".into(),
        gateways: vec![v1::Gateway {
            id: "gw-1".into(),
            site: "east".into(),
            tls_addresses: vec!["10.0.0.2:8443".into()],
            ..v1::Gateway::default()
        }],
        bundles: vec![(&ca.bundle()).into()],
        advertise: String::new(),
        locality: Some(v1::Locality { region: "eu".into(), ..v1::Locality::default() }),
    };
    Described::try_from(&message).unwrap()
}

/// A state directory in which an identity was kept.
async fn keep(dir: &tempfile::TempDir, described: &Described, svid: &Svid) -> Disk {
    let disk = Disk::new(&dir.path().join("state"));
    disk.save(described, svid).await;
    disk
}

#[tokio::test]
async fn an_identity_survives_on_disk_for_its_owner_alone() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let (described, svid) = (described(&ca, "web", NODE), ca.svid("web"));
    let disk = keep(&dir, &described, &svid).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let folder = disk.0.path().parent().unwrap();
    assert_eq!((mode(disk.0.path()), mode(folder)), (0o600, 0o700));
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1, "nothing else lies there");

    let kept = disk.read().unwrap();
    assert_eq!(kept.described, described);
    let again = kept.svid(&ca.trust(), clock::now_unix()).unwrap();
    assert_eq!((&again.id, &again.chain), (&svid.id, &svid.chain));
    assert_eq!(again.key.secret_der(), svid.key.secret_der());
    let credentials = Credentials::new(None, ca.trust());
    credentials.try_replace_svid(again).unwrap();

    disk.remove().await;
    assert!(disk.read().is_none() && !disk.0.path().exists());
}

#[tokio::test]
async fn a_damaged_file_is_not_an_identity_and_is_replaced() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let (described, svid) = (described(&ca, "web", NODE), ca.svid("web"));
    let disk = keep(&dir, &described, &svid).await;
    let whole = std::fs::read(disk.0.path()).unwrap();
    for at in 0..whole.len() {
        std::fs::write(disk.0.path(), &whole[..at]).unwrap();
        assert!(disk.read().is_none(), "cut at {at}");
    }
    // Whole, and nonsense: no message, and one without a description.
    for nonsense in [&b"\xff\xff"[..], b""] {
        disk.0.write(nonsense).unwrap();
        assert!(matches!(disk.try_read(), Err(StateFileError::Damaged { .. })), "{nonsense:?}");
    }
    disk.save(&described, &svid).await;
    let others_too = std::fs::Permissions::from_mode(0o640);
    std::fs::set_permissions(disk.0.path(), others_too).unwrap();
    assert!(disk.read().is_none(), "others could have read the key");
    disk.save(&described, &svid).await;
    assert!(disk.read().is_some());
}

#[tokio::test]
async fn a_key_that_is_not_the_certificates_is_not_taken() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let mut svid = ca.svid("web");
    for key in [ca.svid("web").key, PrivateKeyDer::Pkcs8(vec![1, 2, 3].into())] {
        svid.key = key;
        let kept = keep(&dir, &described(&ca, "web", NODE), &svid).await.read().unwrap();
        let svid = kept.svid(&ca.trust(), clock::now_unix()).unwrap();
        let credentials = Credentials::new(None, ca.trust());
        credentials.try_replace_svid(svid).unwrap_err();
        assert!(credentials.svid().is_none());
    }
}

#[tokio::test]
async fn only_what_everybody_else_would_believe_now_is_an_identity() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let web = described(&ca, "web", NODE);
    let kept = keep(&dir, &web, &ca.svid("web")).await.read().unwrap();
    let (now, trust) = (clock::now_unix(), ca.trust());
    kept.svid(&trust, now).unwrap();

    let revoked = |entry: Revoked| {
        let mut revocations = Revocations::default();
        revocations.insert(entry);
        Trust { revocations: Arc::new(revocations), ..trust.clone() }
    };
    let cases = [
        ("expired", &trust, now + 2 * HOUR),
        ("not yet valid", &trust, now.saturating_sub(2 * HOUR)),
        ("unknown trust domain", &Trust::default(), now),
        ("not signed by the roots", &Ca::new().trust(), now),
        ("revoked", &revoked(Revoked::Node(NODE.parse().unwrap())), now),
        ("revoked", &revoked(Revoked::Identity(web.id.clone())), now),
    ];
    for (expected, trust, now) in cases {
        let problem = kept.svid(trust, now).unwrap_err().to_string();
        assert!(problem.contains(expected), "{expected}: {problem}");
    }

    // The certificate is another one than the description says.
    for (account, node) in [("api", NODE), ("web", OTHER), ("web", "")] {
        let kept = keep(&dir, &described(&ca, account, node), &ca.svid("web")).await;
        kept.read().unwrap().svid(&trust, now).unwrap_err();
    }
}

#[tokio::test]
async fn what_belongs_to_another_proxy_is_foreign() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::new());
    let web = described(&ca, "web", NODE);
    let kept = keep(&dir, &web, &ca.svid("web")).await.read().unwrap();
    kept.check_is_of(&web).unwrap();
    // The same proxy, of which more is known by now.
    let mut newer = web.clone();
    newer.site.federation = None;
    newer.gateways.clear();
    kept.check_is_of(&newer).unwrap();

    let mut elsewhere = web;
    elsewhere.site.name = "west".parse().unwrap();
    for other in [described(&ca, "api", NODE), described(&ca, "web", OTHER), elsewhere] {
        kept.check_is_of(&other).unwrap_err();
    }
    let problem = kept.check_is_of(&described(&ca, "web", OTHER)).unwrap_err().to_string();
    assert!(problem.contains(NODE) && problem.contains(OTHER), "{problem}");
}
