//! A site is backed up while it runs, goes on, is lost and restored: what was
//! said after the backup is not said again with another meaning.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{fs, path::Path, time::Duration};

use common::{Machine, TestSite, copy, reason, run, svid};
use federation::{
    backup::{BackupError, back_up, restore},
    clock::Clock,
};
use mesh_api::v1::{self, node_identity_client::NodeIdentityClient};
use mesh_tunnel::{Svid, tls};
use tonic::Status;

const MINUTE: Duration = Duration::from_secs(60);

async fn renew(site: &TestSite, with: &Svid) -> Result<Svid, Status> {
    let (key, csr) = tls::new_key_and_csr().unwrap();
    let request = v1::RenewNodeRequest { csr, boot_id: "boot-1".into(), machine_id: "m1".into() };
    let mut client = NodeIdentityClient::new(site.channel(copy(with)));
    let issued = client.renew_node(request).await?.into_inner();
    Ok(svid(&issued.chain, &key))
}

async fn joined(site: &TestSite) -> Machine {
    let token = site.token(1, MINUTE, false).await;
    site.join(&token).await.unwrap()
}

fn state_of(site: &TestSite) -> &Path {
    &site.config.state
}

#[test]
fn a_restored_site_repeats_nothing_and_knows_its_machines() {
    run(async {
        let site = TestSite::new("west").await;
        let (steady, renewed, copied) =
            (joined(&site).await, joined(&site).await, joined(&site).await);
        let old = renew(&site, &copied.svid).await.unwrap();
        let open = site.token(1, 60 * MINUTE, false).await;
        let before = site.site().authority.state();
        let (archive, contents) = back_up(state_of(&site), &Clock::system()).unwrap();
        assert_eq!((contents.site.as_str(), contents.nodes), ("west", 3));
        assert_eq!((contents.epoch, contents.revision), (before.revision.epoch, before.revision.n));

        // What the backup does not know.
        let second = renew(&site, &renewed.svid).await.unwrap();
        let third = renew(&site, &second).await.unwrap();
        let newer = renew(&site, &renew(&site, &old).await.unwrap()).await.unwrap();
        let late = joined(&site).await;
        let after = site.site().authority.state();

        let lost = state_of(&site).to_owned();
        let restored = site
            .replaced(|| {
                fs::remove_dir_all(&lost).unwrap();
                restore(Path::new("west.backup"), &archive, &lost, &Clock::system()).unwrap();
            })
            .await;
        let state = restored.site().authority.state();
        assert_ne!(state.revision.epoch, before.revision.epoch, "another lineage");
        assert!(state.revision.n > after.revision.n, "no number twice");
        assert!(state.site().bundle.sequence > after.site().bundle.sequence);
        assert_eq!(state.site().bundle.roots, before.site().bundle.roots);
        assert_eq!(state.nodes.keys().collect::<Vec<_>>(), before.nodes.keys().collect::<Vec<_>>());

        let tokens = &state.site().bundle.jwt_keys;
        assert!(!tokens.is_empty() && *tokens == before.site().bundle.jwt_keys);
        assert!(tokens.iter().all(|key| restored.site().ca.jwt_keys().holds(&key.kid)));

        // Nobody comes in with a token that was open then.
        let refused = restored.join(&open).await.err().unwrap();
        assert_eq!(reason(&refused), "token_revoked");
        let fresh = restored.token(1, MINUTE, false).await;
        restored.join(&fresh).await.unwrap();

        // Who renewed meanwhile goes on with what it has, once.
        renew(&restored, &steady.svid).await.unwrap();
        let fourth = renew(&restored, &third).await.unwrap();
        renew(&restored, &third).await.expect("an answer may be lost");
        let refused = renew(&restored, &second).await.unwrap_err();
        assert_eq!(reason(&refused), "node_duplicated", "what it replaced does not count");
        assert_eq!(reason(&renew(&restored, &fourth).await.unwrap_err()), "node_duplicated");
        // What the backup knew as replaced is no excuse.
        let first = renew(&restored, &copied.svid).await;
        first.expect("the previous one of then is good for a renewal");
        assert_eq!(reason(&renew(&restored, &newer).await.unwrap_err()), "node_duplicated");
        // Who joined meanwhile joins again.
        assert_eq!(reason(&renew(&restored, &late.svid).await.unwrap_err()), "node_unknown");
    });
}

#[test]
fn what_is_restored_stays_so() {
    run(async {
        let site = TestSite::new("west").await;
        let machine = joined(&site).await;
        let (archive, _) = back_up(state_of(&site), &Clock::system()).unwrap();
        let second = renew(&site, &machine.svid).await.unwrap();
        let third = renew(&site, &second).await.unwrap();
        let lost = state_of(&site).to_owned();
        let again = |archive: Vec<u8>| {
            let lost = lost.clone();
            move || {
                fs::remove_dir_all(&lost).unwrap();
                restore(Path::new("west.backup"), &archive, &lost, &Clock::system()).unwrap();
            }
        };
        let restored = site.replaced(again(archive)).await;
        let first = restored.site().authority.state();
        let restarted = restored.restart().await;
        assert_eq!(*first, *restarted.site().authority.state());
        // Also in a backup of the restored site.
        let (archive, _) = back_up(&lost, &Clock::system()).unwrap();
        let restored = restarted.replaced(again(archive)).await;
        assert!(restored.site().authority.state().revision.n > first.revision.n);
        renew(&restored, &third).await.unwrap();
    });
}

#[test]
fn a_damaged_backup_makes_nothing() {
    run(async {
        let site = TestSite::new("west").await;
        let _machine = joined(&site).await;
        let (archive, contents) = back_up(state_of(&site), &Clock::system()).unwrap();
        let empty = tempfile::tempdir().unwrap();
        let to = empty.path().join("state");
        let try_it = |archive: &[u8]| {
            let tried = restore(Path::new("west.backup"), archive, &to, &Clock::system());
            if tried.is_err() {
                assert!(!to.join("authority.log").exists() && !to.join("keys").exists());
            }
            tried
        };
        for cut in (0..archive.len() - 2048).step_by(311) {
            let error = try_it(&archive[..cut]).unwrap_err();
            assert!(matches!(error, BackupError::NoBackup { .. }), "{cut}: {error}");
        }
        // Every byte that means something: tar pads with zeros.
        for at in (0..archive.len()).filter(|at| archive[*at] != 0).step_by(13) {
            let mut broken = archive.clone();
            broken[at] ^= 0x10;
            // A digit of a tar header may be written in two ways.
            if let Ok(taken) = try_it(&broken) {
                assert_eq!(taken, contents, "a flipped bit at {at} was taken");
                fs::remove_dir_all(&to).unwrap();
            }
        }
        try_it(&archive).unwrap();
        let error = try_again(&archive, &to);
        assert!(error.to_string().contains("a site here already"), "{error}");
    });
}

fn try_again(archive: &[u8], to: &Path) -> BackupError {
    let log = fs::read(to.join("authority.log")).unwrap();
    let tried = restore(Path::new("west.backup"), archive, to, &Clock::system());
    assert_eq!(fs::read(to.join("authority.log")).unwrap(), log, "nothing is touched");
    tried.unwrap_err()
}

#[test]
fn where_there_is_no_site_there_is_no_backup() {
    let empty = tempfile::tempdir().unwrap();
    let error = back_up(empty.path(), &Clock::system()).unwrap_err();
    assert!(error.to_string().contains("no site here"), "{error}");
}
