//! What is decided before nft is asked; the rest is in the namespace ring.

use std::{fs, net::TcpListener};

use mesh_tunnel::RealNet;

use super::*;

fn keeper(dir: &tempfile::TempDir, text: &str) -> Keeper {
    let rules = dir.path().join("capture.yaml");
    fs::write(&rules, text).unwrap();
    let places = Places { rules, state: dir.path().to_owned() };
    Keeper::new(places, Arc::new(RealNet), mpsc::channel(1).1, watch::Sender::new(None))
}

fn enable(seconds: u64, dry_run: bool, ssh_port: Option<u16>) -> Ask {
    Ask::Enable { within: Duration::from_secs(seconds), dry_run, ssh_port }
}

#[tokio::test]
async fn a_dry_run_tells_all_and_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut keeper = keeper(&dir, "proxy: { user: 0 }\noutbound: [{ unit: no-such.service }]\n");
    let told = keeper.answer(enable(60, true, Some(22))).await.unwrap();
    assert_eq!((told.state, told.left), ("dry-run", Duration::from_secs(60)));
    assert_eq!(told.waits_for, ["no-such.service"]);
    assert!(told.rules.contains("tcp timeout 60s") && told.rules.contains("meta skuid { 0"));
    assert_eq!(keeper.answer(Ask::Status).await.unwrap().state, "off");
    assert!(!keeper.confirmed_file().exists());
}

#[tokio::test]
async fn what_would_hurt_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    // Ours, and nobody else's: nothing else listens there.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    drop(taken);
    let text = format!("proxy: {{ user: 0, port: {port} }}\ninbound: [{{ port: 2222 }}]\n");
    let mut keeper = keeper(&dir, &text);
    for (ask, problem) in [
        (enable(4, false, None), "5s to 1h"),
        (enable(3601, true, None), "5s to 1h"),
        (enable(60, true, Some(2222)), "your own SSH connection"),
        (enable(60, false, Some(22)), "nobody listens at 127.0.0.1"),
        (Ask::Confirm, "the trial is over"),
    ] {
        let shown = keeper.answer(ask).await.unwrap_err().to_string();
        assert!(shown.contains(problem), "{problem}: {shown}");
    }
    fs::write(dir.path().join("capture.yaml"), "outbund: []\n").unwrap();
    let shown = keeper.answer(enable(60, true, None)).await.unwrap_err().to_string();
    assert!(shown.contains("capture.yaml:1:1"), "{shown}");
}

#[test]
fn what_was_confirmed_is_read_whatever_the_file_says_now() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = keeper(&dir, "inbound: [{ port: 80 }]\n");
    assert!(keeper.read_confirmed().unwrap().is_none());
    let confirmed = "proxy: { user: 0 }\ninbound: [{ port: 81 }]\n";
    files::write_private(&keeper.confirmed_file(), confirmed.as_bytes()).unwrap();
    let rules = keeper.read_confirmed().unwrap().unwrap();
    assert!(rules.plan.closes(81) && !rules.plan.closes(80));
    files::write_private(&keeper.confirmed_file(), b"nonsense").unwrap();
    assert!(keeper.read_confirmed().is_err());
}
