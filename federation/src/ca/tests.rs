use std::sync::atomic::{AtomicU64, Ordering};

use mesh_core::{
    Allowed, TrustBundle,
    identity::{Revocations, Side},
    verify_peer,
};

use super::*;

const START: u64 = 1_800_000_000;

struct Made {
    ca: CertificateAuthority,
    seconds: Arc<AtomicU64>,
    directory: tempfile::TempDir,
    domain: TrustDomain,
}

fn made() -> Made {
    let directory = tempfile::tempdir().unwrap();
    let domain: TrustDomain = "west.example".parse().unwrap();
    let seconds = Arc::new(AtomicU64::new(START));
    let now = seconds.clone();
    let clock = Clock::from_fn(move || Duration::from_secs(now.load(Ordering::SeqCst)));
    CertificateAuthority::create(directory.path(), &domain, &clock).unwrap();
    let ca = CertificateAuthority::open(directory.path(), &domain, clock).unwrap();
    Made { ca, seconds, directory, domain }
}

impl Made {
    fn days(&self, days: u64) {
        self.seconds.store(START + days * 86_400, Ordering::SeqCst);
    }

    fn believes(&self, chain: &[Vec<u8>], id: &SpiffeId) -> bool {
        let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let roots = vec![self.ca.root()];
        let bundle = TrustBundle::of_roots(self.domain.clone(), roots);
        let bundles = [(self.domain.clone(), Arc::new(bundle))].into_iter().collect();
        let now =
            UnixTime::since_unix_epoch(Duration::from_secs(self.seconds.load(Ordering::SeqCst)));
        let allowed = Allowed::Exactly(id.clone());
        [Side::Client, Side::Server].into_iter().all(|side| {
            verify_peer(&chain, side, &bundles, &Revocations::default(), &allowed, now).is_ok()
        })
    }
}

fn request() -> KeyRequest {
    KeyRequest::parse(&mesh_tunnel::tls::new_key_and_csr().unwrap().1).unwrap()
}

#[test]
fn a_node_sleeps_thirty_days_whenever_it_falls_asleep() {
    let made = made();
    let node: NodeId = "00000000-0000-4000-8000-000000000001".parse().unwrap();
    let id = SpiffeId::node(&made.domain, &node);
    let mut renewals = 0;
    for day in 0..200 {
        made.days(day);
        renewals += u32::from(made.ca.renew_issuing().unwrap());
        let issued = made.ca.issue(&request(), &id, Some(&node)).unwrap();
        made.seconds.fetch_add(30 * 86_400 - 1, Ordering::SeqCst);
        assert!(made.believes(&issued.chain, &id), "asleep on day {day}");
        made.seconds.fetch_add(2, Ordering::SeqCst);
        assert!(!made.believes(&issued.chain, &id), "still believed on day {}", day + 30);
    }
    assert_eq!(renewals, 3, "in 200 days");
}

#[test]
fn a_renewed_issuing_ca_is_there_after_a_restart() {
    let made = made();
    made.days(63);
    assert!(made.ca.renew_issuing().unwrap());
    assert!(!made.ca.renew_issuing().unwrap());
    let end = made.ca.issuing_not_after_unix_s();
    let again =
        CertificateAuthority::open(made.directory.path(), &made.domain, made.ca.clock.clone())
            .unwrap();
    assert_eq!(again.issuing_not_after_unix_s(), end);
}

#[test]
fn a_root_key_kept_elsewhere_stops_only_the_renewal() {
    let made = made();
    fs::remove_file(made.directory.path().join("root.key")).unwrap();
    assert!(!made.ca.renew_issuing().unwrap(), "nothing is due");
    made.days(80);
    let error = made.ca.renew_issuing().unwrap_err();
    assert!(error.to_string().contains("root.key"), "{error}");
    let id = SpiffeId::gateway(&made.domain);
    let issued = made.ca.issue(&request(), &id, None).unwrap();
    assert!(made.believes(&issued.chain, &id));
    made.days(92);
    let last = made.ca.issue(&request(), &id, None).unwrap();
    assert!(last.not_after_unix_s <= made.ca.issuing_not_after_unix_s());
}

#[test]
fn keys_that_others_may_read_are_refused() {
    let made = made();
    for file in ["issuing.pem", "root.key"] {
        let path = made.directory.path().join(file);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        made.days(80);
        let opened =
            CertificateAuthority::open(made.directory.path(), &made.domain, made.ca.clock.clone());
        let error = opened.and_then(|ca| ca.renew_issuing()).unwrap_err();
        assert!(error.to_string().contains("0600"), "{file}: {error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[test]
fn any_bytes_are_answered() {
    let csr = mesh_tunnel::tls::new_key_and_csr().unwrap().1;
    let key = KeyRequest::parse(&csr).unwrap().spki_sha256();
    let mut refused = 0;
    for at in 0..csr.len() {
        let mut changed = csr.clone();
        changed[at] ^= 0x55;
        // What stands around the signed part may be read leniently.
        let same = |read: KeyRequest| read.spki_sha256() == key;
        assert!(KeyRequest::parse(&changed).map_or(true, same), "a change at {at}");
        refused += usize::from(KeyRequest::parse(&changed).is_err());
        assert!(KeyRequest::parse(&csr[..at]).is_err(), "cut to {at}");
    }
    assert!(refused + 4 > csr.len(), "{refused} of {}", csr.len());
    assert!(KeyRequest::parse(&[csr, vec![0]].concat()).is_err());
    assert!(KeyRequest::parse(&vec![0x30; MAX_CSR + 1]).is_err());
}

/// What is issued while a root is replaced is believed by those who know only
/// the old one, those who know only the new one, and with a token of either.
#[test]
fn a_new_root_is_introduced_by_the_old_one() {
    let made = made();
    let old = made.ca.root();
    let new = CertificateDer::from(made.ca.prepare_root(2).unwrap());
    let id = SpiffeId::gateway(&made.domain);
    let believed = |chain: &[Vec<u8>], root: &CertificateDer<'static>| {
        let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let (trust_domain, roots) = (made.domain.clone(), vec![root.clone()]);
        let bundle = TrustBundle::of_roots(trust_domain, roots);
        let bundles = [(made.domain.clone(), Arc::new(bundle))].into_iter().collect();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(START));
        let allowed = Allowed::Exactly(id.clone());
        verify_peer(&chain, Side::Server, &bundles, &Revocations::default(), &allowed, now).is_ok()
    };
    let before = made.ca.issue(&request(), &id, None).unwrap();
    assert!(believed(&before.chain, &old) && !believed(&before.chain, &new));
    made.ca.sign_under(&new).unwrap();
    let during = made.ca.issue(&request(), &id, None).unwrap();
    assert!(believed(&during.chain, &old) && believed(&during.chain, &new));
    assert_eq!(during.root_sha256, spki_sha256(&new).unwrap());
    made.ca.keep_only(&[new.to_vec()]).unwrap();
    let after = made.ca.issue(&request(), &id, None).unwrap();
    assert!(!believed(&after.chain, &old) && believed(&after.chain, &new));
    assert!(made.ca.sign_under(&old).is_err(), "its keys are gone");
    made.days(63);
    assert!(made.ca.renew_issuing().unwrap(), "under the new root");
    assert!(made.believes(&made.ca.issue(&request(), &id, None).unwrap().chain, &id));
}
