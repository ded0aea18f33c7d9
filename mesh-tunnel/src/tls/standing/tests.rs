use mesh_core::{SpiffeId, identity::Side};

use super::*;
use crate::{
    testing::{Authority, trust},
    tls::{accept, chain_of, connect, peer_of},
};

const ALPN: &[u8] = b"x/1";
const SOON: Duration = Duration::from_secs(60);
const LATE: Duration = Duration::from_secs(3600);

/// Both ends of one TLS connection.
struct Pair {
    near: Standing,
    far: Standing,
    near_credentials: Arc<Credentials>,
}

/// A session between two processes of these identities, whose certificates end
/// soon.
async fn pair(east: &Authority, near: &SpiffeId, far: &SpiffeId) -> Pair {
    let credentials = |id| Credentials::new(Some(east.svid_for(id, SOON)), trust(&[east]));
    let (near_credentials, far_credentials) = (credentials(near), credentials(far));
    let (dialled, accepted) = tokio::io::duplex(64 * 1024);
    let (before_near, before_far) =
        (Before::handshake(&near_credentials), Before::handshake(&far_credentials));
    let (dialled, accepted) = tokio::join!(
        connect(near_credentials.client(ALPN, Allowed::Known), dialled),
        accept(far_credentials.server(&[ALPN], Allowed::Known), accepted),
    );
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
    let (dialled, accepted) = (dialled.get_ref().1, accepted.get_ref().1);
    let far_peer = peer_of(dialled, &near_credentials, Side::Server, &Allowed::Known).unwrap();
    let near_peer = peer_of(accepted, &far_credentials, Side::Client, &Allowed::Known).unwrap();
    let ours = Binding::of_tls(dialled, true).unwrap();
    let theirs = Binding::of_tls(accepted, false).unwrap();
    Pair {
        near: before_near.proved(ours, far_peer, chain_of(dialled)),
        far: before_far.proved(theirs, near_peer, chain_of(accepted)),
        near_credentials,
    }
}

impl Pair {
    /// What the near end says of a new certificate.
    async fn renew(&self, svid: Svid) -> v1::Proof {
        self.near_credentials.try_replace_svid(svid).unwrap();
        self.near.renewed().await
    }

    fn check(&self, proof: v1::Proof) -> Result<(), ProofError> {
        let known = self.far.proved.borrow().clone();
        self.far.check(&known.peer, proof).map(drop)
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_proved_in_the_session_that_is_there() {
    let east = Authority::new("east.example");
    let id = east.workload("checkout");
    let pair = pair(&east, &id, &east.gateway()).await;
    let nothing_new = tokio::time::timeout(Duration::from_millis(50), pair.near.renewed());
    assert!(nothing_new.await.is_err());
    let first = pair.renew(east.svid_for(&id, LATE)).await;
    pair.far.receive(first);
    assert!(pair.far.left() > SOON, "{:?}", pair.far.left());

    // Neither an earlier end nor haste changes anything.
    let shorter = pair.renew(east.svid_for(&id, SOON)).await;
    pair.check(shorter.clone()).unwrap();
    pair.far.receive(shorter);
    let longer = pair.renew(east.svid_for(&id, 2 * LATE)).await;
    pair.far.receive(longer.clone());
    assert!((SOON..=LATE).contains(&pair.far.left()), "{:?}", pair.far.left());
    tokio::time::sleep(SOONEST).await;
    pair.far.receive(longer);
    assert!(pair.far.left() > LATE);
}

#[tokio::test]
async fn what_was_replaced_during_the_handshake_is_proved_after_it() {
    let east = Authority::new("east.example");
    let id = east.workload("checkout");
    let pair = pair(&east, &id, &east.gateway()).await;
    // As if it had been presented before.
    *pair.near.shown.lock().unwrap() = None;
    let proof = tokio::time::timeout(SOON, pair.near.renewed()).await.unwrap();
    pair.check(proof).unwrap();
}

#[tokio::test]
async fn what_is_no_proof_changes_nothing() {
    let (east, forger) = (Authority::new("east.example"), Authority::new("east.example"));
    let (gateway, other) = (east.gateway(), east.workload("other"));
    let here = pair(&east, &gateway, &gateway).await;
    let elsewhere = pair(&east, &gateway, &gateway).await;
    let good = here.renew(east.svid_for(&gateway, LATE)).await;
    here.check(good.clone()).unwrap();
    let altered = |change: &dyn Fn(&mut v1::Proof)| {
        let mut proof = good.clone();
        change(&mut proof);
        proof
    };
    let node = "00000000-0000-4000-8000-000000000001";
    let unsigned = [
        ("altered", altered(&|proof| proof.signature[8] ^= 1)),
        ("empty", altered(&|proof| proof.signature.clear())),
        ("another scheme", altered(&|proof| proof.scheme = 0x0807)),
        ("no scheme", altered(&|proof| proof.scheme = u32::MAX)),
        ("another session", elsewhere.renew(east.svid_for(&gateway, LATE)).await),
        (
            "another key",
            altered(&|proof| {
                proof.chain =
                    east.svid_for(&gateway, LATE).chain.iter().map(|c| c.to_vec()).collect();
            }),
        ),
    ];
    for (what, proof) in unsigned {
        let error = here.check(proof).unwrap_err();
        assert!(matches!(error, ProofError::Signature), "{what}: {error}");
    }
    let chains = [
        ("nobody", altered(&|proof| proof.chain.clear())),
        ("no certificate", altered(&|proof| proof.chain = vec![vec![0; 2000]; 9])),
        ("another identity", here.renew(east.svid_for(&other, LATE)).await),
        ("another authority", here.renew(forger.svid_for(&gateway, LATE)).await),
        ("ended", here.renew(east.svid_for(&gateway, Duration::ZERO)).await),
    ];
    for (what, proof) in chains {
        let error = here.check(proof).unwrap_err();
        assert!(matches!(error, ProofError::Chain(_)), "{what}: {error}");
    }
    let machine = here.renew(east.svid_under(&gateway, node)).await;
    assert!(matches!(here.check(machine), Err(ProofError::OtherMachine)));

    // What one end has said is not what the other one says.
    here.near.receive(good.clone());
    assert!(here.near.left() <= SOON);
    let far_known = here.near.proved.borrow().clone();
    assert!(matches!(here.near.check(&far_known.peer, good), Err(ProofError::Signature)));
}
