//! A proxy that starts again: what it does with the identity on disk while its
//! source is away, answers, or says no.

use std::path::PathBuf;

use futures_util::future::join_all;
use tokio::task::JoinHandle;
use tonic::{Code, Status, metadata::MetadataValue};

use super::{
    identity::{Script, proxy_with, serve},
    *,
};

/// A machine: its socket and its state directory.
struct Machine {
    dir: tempfile::TempDir,
    script: Arc<Script>,
    server: Option<JoinHandle<()>>,
}

impl Machine {
    /// Its proxy has been issued an identity, and has ended.
    async fn after_a_first_life() -> Self {
        let script = Script::new();
        let dir = tempfile::tempdir().unwrap();
        let mut machine = Self { dir, script, server: None };
        machine.start_source();
        let app = machine.start().await;
        until("an identity", || app.shared.credentials.svid().is_some()).await;
        until("it is kept", || machine.kept().exists()).await;
        app.shared.drain.finish(STEP).await;
        machine.stop_source();
        machine
    }

    fn start_source(&mut self) {
        self.server = Some(serve(&self.script, &self.dir.path().join("identity.sock")));
    }

    fn stop_source(&mut self) {
        self.server.take().unwrap().abort();
        std::fs::remove_file(self.dir.path().join("identity.sock")).unwrap();
    }

    async fn start(&self) -> App {
        let state = Some(self.dir.path().join("state"));
        let app = proxy_with(&self.dir.path().join("identity.sock"), state);
        app.run_in_place().await.unwrap();
        app
    }

    fn kept(&self) -> PathBuf {
        self.dir.path().join("state/identity.bin")
    }
}

fn leaf(app: &App) -> Option<Vec<u8>> {
    app.shared.credentials.svid().map(|svid| svid.chain[0].to_vec())
}

/// As agent and federation refuse.
fn refusal(code: Code, reason: &'static str) -> Status {
    let mut status = Status::new(code, format!("refused: {reason}"));
    status.metadata_mut().insert("isthmus-error", MetadataValue::from_static(reason));
    status
}

#[tokio::test]
async fn it_begins_with_what_was_kept_and_takes_a_new_one_as_soon_as_there_is_one() {
    let mut machine = Machine::after_a_first_life().await;
    let kept = std::fs::read(machine.kept()).unwrap();
    let app = machine.start().await;
    until("an identity", || leaf(&app).is_some()).await;
    until("ready", || app.shared.readiness.check().is_ok()).await;
    let own = app.shared.own.load();
    assert_eq!(own.site.as_ref().unwrap().as_str(), "east");
    assert_eq!(own.gateways[0].id.as_str(), "gw-1");
    assert!(app.shared.credentials.trust().bundles.contains_key("east.example"));
    assert_eq!(std::fs::read(machine.kept()).unwrap(), kept, "it was only read");

    let before = leaf(&app);
    machine.start_source();
    until("a new one", || leaf(&app) != before).await;
    until("it is kept instead", || std::fs::read(machine.kept()).unwrap() != kept).await;
    assert!(leaf(&app).is_some() && app.shared.readiness.check().is_ok());
    app.shared.drain.finish(STEP).await;
}

#[tokio::test]
async fn a_source_that_has_no_answer_of_its_site_changes_nothing() {
    let cases = [
        refusal(Code::Unavailable, "not_connected"),
        refusal(Code::Unavailable, "store_busy"),
        refusal(Code::Internal, "signing_failed"),
        Status::unavailable("transport error"),
        Status::not_found("somebody else's answer"),
    ];
    join_all(cases.map(async |no| {
        let mut machine = Machine::after_a_first_life().await;
        *machine.script.no.lock().unwrap() = Some(no.clone());
        machine.start_source();
        let app = machine.start().await;
        until("an identity", || leaf(&app).is_some()).await;
        assert!(app.shared.readiness.check().is_ok(), "{no}");
        assert!(machine.kept().exists(), "{no}");
        let before = leaf(&app);
        *machine.script.no.lock().unwrap() = None;
        until("a new one", || leaf(&app) != before).await;
        app.shared.drain.finish(STEP).await;
    }))
    .await;
}

#[tokio::test]
async fn a_source_that_says_no_ends_it_for_this_start_and_every_later_one() {
    let cases = [
        refusal(Code::Unavailable, "not_joined"),
        refusal(Code::FailedPrecondition, "identity_unusable"),
        refusal(Code::FailedPrecondition, "node_duplicated"),
        refusal(Code::NotFound, "node_unknown"),
        refusal(Code::PermissionDenied, "not_granted"),
    ];
    join_all(cases.map(async |no| {
        // It comes while the identity on disk is in use already.
        let mut machine = Machine::after_a_first_life().await;
        let app = machine.start().await;
        until("an identity", || leaf(&app).is_some()).await;
        *machine.script.no.lock().unwrap() = Some(no.clone());
        machine.start_source();
        until("nothing is presented", || leaf(&app).is_none()).await;
        let says_so = || app.shared.readiness.check().is_err_and(|why| why.contains("refused: "));
        until("it says so", says_so).await;
        assert!(!machine.kept().exists(), "{no}");
        app.shared.drain.finish(STEP).await;

        // Later, with nobody there to say no.
        machine.stop_source();
        let app = machine.start().await;
        let alone = || app.shared.readiness.check().is_err_and(|why| why.contains("is vm-agent"));
        until("it says what it lacks", alone).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(leaf(&app).is_none(), "{no}");
        app.shared.drain.finish(STEP).await;
    }))
    .await;
}

#[tokio::test]
async fn a_proxy_in_use_keeps_what_it_was_issued_and_forgets_the_file() {
    let mut machine = Machine::after_a_first_life().await;
    machine.start_source();
    let app = machine.start().await;
    until("an identity", || leaf(&app).is_some()).await;
    *machine.script.described_as_gone.lock().unwrap() =
        Some(refusal(Code::Unavailable, "not_joined"));
    until("the file is gone", || !machine.kept().exists()).await;
    assert!(leaf(&app).is_some());
    app.shared.drain.finish(STEP).await;
}

#[tokio::test]
async fn what_was_kept_by_another_machine_is_not_used() {
    const OTHER: &str = "0b0b5d3e-2f65-4a55-8f5c-7d3e9a0c2b22";
    let mut machine = Machine::after_a_first_life().await;
    let app = machine.start().await;
    until("an identity", || leaf(&app).is_some()).await;
    // The source is there, and speaks of another machine; its site is away.
    *machine.script.node.lock().unwrap() = OTHER;
    *machine.script.no.lock().unwrap() = Some(refusal(Code::Unavailable, "not_connected"));
    machine.start_source();
    until("nothing is presented", || leaf(&app).is_none()).await;
    assert_eq!(app.shared.own.load().node.as_ref().unwrap().as_str(), OTHER);
    app.shared.drain.finish(STEP).await;

    // Nor is it when the source is there from the beginning.
    let app = machine.start().await;
    until("it knows its machine", || app.shared.own.load().node.is_some()).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(leaf(&app).is_none());
    *machine.script.no.lock().unwrap() = None;
    until("an identity of its own", || leaf(&app).is_some()).await;
    app.shared.drain.finish(STEP).await;
}

#[tokio::test]
async fn a_file_that_is_of_no_use_is_told_and_ignored() {
    let cut = |bytes: &[u8]| bytes[..bytes.len() / 2].to_vec();
    let flipped = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[20] ^= 1;
        bytes
    };
    let empty = |_: &[u8]| Vec::new();
    join_all([cut as fn(&[u8]) -> Vec<u8>, flipped, empty].map(async |damaged| {
        let mut machine = Machine::after_a_first_life().await;
        let bytes = std::fs::read(machine.kept()).unwrap();
        std::fs::write(machine.kept(), damaged(&bytes)).unwrap();
        let app = machine.start().await;
        let alone = || app.shared.readiness.check().is_err_and(|why| why.contains("is vm-agent"));
        until("it says what it lacks", alone).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(leaf(&app).is_none());
        machine.start_source();
        until("an identity", || leaf(&app).is_some()).await;
        app.shared.drain.finish(STEP).await;
    }))
    .await;
}
