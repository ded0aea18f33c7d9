//! A host whose legacy proxy moves: the directory that `plan` has written for it,
//! and how it is reached.

use std::path::{Path, PathBuf};

use mesh_api::v1::{self, migration_client::MigrationClient};
use mesh_runtime::config;
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;

use crate::{cluster::Piped, endpoint::Run, failure::Failure};

/// Beside what the proxy runs: what a person says of the host.
pub(super) const FILE: &str = "host.yaml";

/// `host.yaml`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Written {
    /// What is replaced.
    pub(super) legacy: Legacy,
    /// What comes before `meshctl` to run it there, e.g. `[ssh, root@web-7]`; empty
    /// for this machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) via: Vec<String>,
    /// Directory of migrate.sock there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) run: Option<PathBuf>,
}

/// The legacy proxy of a host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Legacy {
    /// haproxy, nginx, envoy or linkerd1.
    pub(super) kind: String,
    /// Its systemd unit; found by itself where it is absent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) unit: String,
    /// What starts it where it has no unit; as it runs where it is absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) command: Vec<String>,
    /// HAProxy's stats socket, or the admin URL of Envoy.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) control: String,
}

impl Written {
    /// What a configuration says of the host.
    pub(super) fn of(kind: &str, control: Option<String>) -> Self {
        let control = control.unwrap_or_default();
        let legacy = Legacy { kind: kind.to_owned(), control, ..Legacy::default() };
        Self { legacy, ..Self::default() }
    }

    pub(super) fn text(&self) -> Result<String, Failure> {
        serde_yaml_ng::to_string(self).map_err(Failure::new)
    }
}

/// One host.
#[derive(Debug, Clone)]
pub(super) struct Host {
    /// Of the host, the directory and the move.
    pub(super) name: String,
    directory: PathBuf,
    written: Written,
}

impl Host {
    /// Of the directory that is named like it.
    pub(super) fn read(plans: &Path, name: &str) -> Result<Self, Failure> {
        let directory = plans.join(name);
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !directory.join("proxy.yaml").is_file() {
            let problem = format!("{}: no plan of {name}", directory.display());
            return Err(Failure::config(problem).remedy(format!(
                "meshctl migrate plan --from <proxy> <configuration> -o {}",
                directory.display()
            )));
        }
        let written = config::load::<Written>(&directory.join(FILE)).map_err(Failure::config)?;
        Ok(Self { name, directory, written })
    }

    /// All that have a plan, in the order of their names.
    pub(super) fn all(plans: &Path) -> Result<Vec<Self>, Failure> {
        let entries = std::fs::read_dir(plans)
            .map_err(|error| Failure::config(format!("{}: {error}", plans.display())))?;
        let mut names: Vec<String> = entries
            .filter_map(Result::ok)
            .filter(|entry| entry.path().join(FILE).is_file())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names.iter().map(|name| Self::read(plans, name)).collect()
    }

    /// Speaks `Migration` to the host's agent.
    pub(super) async fn agent(&self, run: &Run) -> Result<MigrationClient<Channel>, Failure> {
        let Written { via, run: there, .. } = &self.written;
        if via.is_empty() {
            return match there {
                Some(there) => Run::of(there).migration().await,
                None => run.migration().await,
            };
        }
        let mut command = via.clone();
        command.push("meshctl".to_owned());
        if let Some(there) = there {
            command.extend(["--run".to_owned(), there.display().to_string()]);
        }
        command.extend(["pipe".to_owned(), "migrate.sock".to_owned()]);
        let remedy = format!(
            "`{}` is to run meshctl there; is isthmus-vm-agent installed, isthmus-migrate started?",
            via.join(" ")
        );
        let channel = Piped::channel(&self.name, command, &remedy).await?;
        Ok(MigrationClient::new(channel))
    }

    /// What its agent needs to run our proxy beside.
    pub(super) fn begin(&self) -> Result<v1::BeginMoveRequest, Failure> {
        let read = |file: &str| {
            let path = self.directory.join(file);
            std::fs::read_to_string(&path)
                .map_err(|error| Failure::config(format!("{}: {error}", path.display())))
        };
        let Legacy { kind, unit, command, control } = self.written.legacy.clone();
        Ok(v1::BeginMoveRequest {
            name: self.name.clone(),
            legacy: Some(v1::LegacyProxy { kind, unit, command, control }),
            proxy_yaml: read("proxy.yaml")?,
            site_yaml: read("site.yaml")?,
            rules_yaml: read("rules.yaml")?,
        })
    }
}
