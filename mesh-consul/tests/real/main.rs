//! A real Consul beside the bridge: `make test-consul`.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod consul;
mod export;
mod import;

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use mesh_consul::{
    client::{Client, Connection},
    import::{AddressOf, Import, ImportRule, Pattern, follow},
    watch::Pace,
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use self::consul::LONG;

fn run<F: Future>(test: F) -> F::Output {
    mesh_runtime::process::current_thread().unwrap().block_on(test)
}

fn quick() -> Pace {
    Pace {
        wait: Duration::from_secs(2),
        churn: Duration::from_millis(100),
        backoff: Duration::from_millis(100),
        backoff_max: Duration::from_millis(500),
        hold: Duration::from_secs(1),
        rebuilt: Duration::from_secs(600),
    }
}

fn client(address: &str, token_file: Option<&Path>, stale: bool) -> Client {
    let (address, token_file) = (address.to_owned(), token_file.map(Path::to_owned));
    Client::new(&Connection { address, token_file, tls: None, stale }).unwrap()
}

fn rule(allow: &[&str]) -> ImportRule {
    ImportRule {
        allow: allow.iter().map(|name| Pattern((*name).into())).collect(),
        tags: Vec::new(),
        dc: None,
        as_namespace: "consul".into(),
        rename: std::collections::BTreeMap::new(),
        address: AddressOf::Service,
        port: None,
    }
}

/// Replaced as whole files are.
fn write_token(file: &Path, token: &str) {
    let new = file.with_extension("new");
    fs::write(&new, token).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, file).unwrap();
}

/// An import that runs.
struct Bridge {
    told: watch::Receiver<Import>,
    task: JoinHandle<()>,
}

impl Bridge {
    fn start(client: Client, rules: Vec<ImportRule>, pace: Pace) -> Self {
        let (tell, told) = watch::channel(Import::default());
        let task =
            tokio::spawn(async move { match follow(&client, &rules, &pace, 150, &tell).await {} });
        Self { told, task }
    }

    /// Instances of a service as `id port health weight`, in their order; those of a
    /// list that is not fresh behind a `~`.
    fn shown(import: &Import, service: &str) -> String {
        let Some(imported) = import.services.get(service) else { return "-".into() };
        let stale = if imported.stale.is_some() { "~ " } else { "" };
        let one = |i: &mesh_consul::import::Instance| {
            format!("{} {}:{} {:?} {}", i.id, i.address, i.port, i.health, i.weight)
        };
        format!("{stale}{}", imported.instances.iter().map(one).collect::<Vec<_>>().join(", "))
    }

    /// Until a service is shown so.
    async fn shows(&mut self, service: &str, expected: &str) {
        let wait = self.told.wait_for(|import| Self::shown(import, service) == expected);
        let shown = timeout(LONG, wait).await.is_ok();
        if !shown {
            let import = self.told.borrow();
            panic!("{:?} is not {expected:?}: {import:#?}", Self::shown(&import, service));
        }
    }

    /// What it was told last, once that is so.
    async fn until(&mut self, what: &str, is: impl Fn(&Import) -> bool) -> Import {
        let found = timeout(LONG, self.told.wait_for(is)).await.map(|found| found.unwrap().clone());
        found.unwrap_or_else(|_| panic!("not {what}: {:#?}", self.told.borrow()))
    }

    /// Still so after a while in which more than one question was asked.
    async fn keeps(&mut self, service: &str, expected: &str) {
        for _ in 0..30 {
            sleep(Duration::from_millis(100)).await;
            assert_eq!(Self::shown(&self.told.borrow(), service), expected);
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.task.abort();
    }
}
