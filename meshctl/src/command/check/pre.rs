//! `meshctl check --pre`: whether a cluster can become a site, as kubectl sees it.
//! meshctl itself speaks to no API server.

use std::{path::PathBuf, process::Stdio, time::Duration};

use mesh_inject::Version;
use serde_json::Value;
use tokio::{process::Command, time::timeout};

use super::Walk;

/// For one answer; kubectl itself gives up before.
const ANSWER: Duration = Duration::from_secs(15);
const REQUEST: &str = "--request-timeout=10s";
/// What the chart is made for.
const OLDEST: Version = Version { major: 1, minor: 29 };
/// What installing makes; with a dot where it belongs to a group.
const CLUSTER: [&str; 4] = [
    "namespaces",
    "clusterroles.rbac.authorization.k8s.io",
    "clusterrolebindings.rbac.authorization.k8s.io",
    "mutatingwebhookconfigurations.admissionregistration.k8s.io",
];
/// In its namespace.
const NAMESPACED: [&str; 10] = [
    "serviceaccounts",
    "configmaps",
    "secrets",
    "services",
    "statefulsets.apps",
    "deployments.apps",
    "jobs.batch",
    "poddisruptionbudgets.policy",
    "roles.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io",
];
const NAMESPACE: &str = "isthmus-system";
/// Where kubectl says more.
const WHY: &str = "kubectl cluster-info tells why";
/// Set on the class of claims that name none.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// Who is asked about the cluster.
pub(super) struct Kubectl {
    program: PathBuf,
    /// Of its configuration; the current one where absent.
    context: Option<String>,
}

/// What it says.
struct Said {
    succeeded: bool,
    answer: String,
    problem: String,
}

/// What failed, and what to do.
type Problem = (String, String);

impl Kubectl {
    pub(super) fn new(context: Option<String>) -> Self {
        Self { program: "kubectl".into(), context }
    }

    async fn run(&self, words: &[&str]) -> Result<Said, Problem> {
        let context = self.context.iter().map(|context| format!("--context={context}"));
        let mut command = Command::new(&self.program);
        command.args(context).arg(REQUEST).args(words).stdin(Stdio::null()).kill_on_drop(true);
        let output = match timeout(ANSWER, command.output()).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => {
                let problem = format!("{}: {error}", self.program.display());
                return Err((problem, "install kubectl; meshctl asks it about the cluster".into()));
            }
            Err(_) => {
                let problem = format!("kubectl has not answered within {} s", ANSWER.as_secs());
                return Err((problem, WHY.into()));
            }
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let problem = text(&output.stderr).lines().last().unwrap_or_default().to_owned();
        Ok(Said { succeeded: output.status.success(), answer: text(&output.stdout), problem })
    }

    async fn json(&self, words: &[&str]) -> Result<Value, Problem> {
        let said = self.run(&[words, &["-o", "json"]].concat()).await?;
        if !said.succeeded {
            return Err((said.problem, WHY.into()));
        }
        serde_json::from_str(&said.answer)
            .map_err(|error| (format!("kubectl: {error}"), WHY.into()))
    }
}

/// Everything that can be seen before something is there.
pub(super) async fn walk(walk: &mut Walk, kubectl: &Kubectl) {
    let answered = version(kubectl).await;
    if !walk.hop("cluster", "the API server answers", answered) {
        return;
    }
    walk.hop("rights", "what installing makes may be made", rights(kubectl).await);
    walk.hop("nodes", "nodes can run the proxy", nodes(kubectl).await);
    walk.hop("storage", "claims have a class", storage(kubectl).await);
}

async fn version(kubectl: &Kubectl) -> Result<String, Problem> {
    let versions = kubectl.json(&["version"]).await?;
    let told = versions["serverVersion"]["gitVersion"].as_str().unwrap_or_default();
    let upgrade = || format!("upgrade the cluster to {OLDEST} or later");
    let version: Version =
        told.parse().map_err(|error| (format!("its version: {error}"), upgrade()))?;
    if version < OLDEST {
        return Err((format!("{told} is older than {OLDEST}"), upgrade()));
    }
    Ok(told.to_owned())
}

async fn rights(kubectl: &Kubectl) -> Result<String, Problem> {
    let mut missing = Vec::new();
    for resource in CLUSTER.iter().chain(&NAMESPACED) {
        let words = ["auth", "can-i", "create", resource, "--namespace", NAMESPACE];
        let said = kubectl.run(&words).await?;
        if said.succeeded {
            continue;
        }
        if !said.answer.starts_with("no") {
            return Err((said.problem, "kubectl auth whoami tells who asks".into()));
        }
        missing.push(*resource);
    }
    if missing.is_empty() {
        return Ok(String::new());
    }
    let remedy = "ask an administrator of the cluster, or install as one (--context)";
    Err((format!("you may not create {}", missing.join(", ")), remedy.into()))
}

async fn nodes(kubectl: &Kubectl) -> Result<String, Problem> {
    let nodes = kubectl.json(&["get", "nodes"]).await?;
    let mut oldest: Option<Version> = None;
    let mut count = 0;
    for node in nodes["items"].as_array().into_iter().flatten() {
        let info = &node["status"]["nodeInfo"];
        if info["operatingSystem"].as_str().is_some_and(|os| os != "linux") {
            continue;
        }
        count += 1;
        if !matches!(info["architecture"].as_str(), None | Some("amd64" | "arm64")) {
            let name = node["metadata"]["name"].as_str().unwrap_or_default();
            let problem = format!("node {name} is {}: there are no images", info["architecture"]);
            return Err((problem, "set nodeSelector to leave it out".into()));
        }
        let version = info["kubeletVersion"].as_str().and_then(|text| text.parse().ok());
        oldest = oldest.into_iter().chain(version).min();
    }
    match oldest {
        _ if count == 0 => {
            Err(("the cluster has no node that runs Linux".into(), "add one".into()))
        }
        Some(oldest) if oldest < Version::NATIVE_SIDECARS => {
            Ok(format!("{count}; the oldest kubelet is {oldest}: the proxy is no native sidecar"))
        }
        _ => Ok(count.to_string()),
    }
}

async fn storage(kubectl: &Kubectl) -> Result<String, Problem> {
    let classes = kubectl.json(&["get", "storageclasses"]).await?;
    let classes = classes["items"].as_array().cloned().unwrap_or_default();
    let name = |class: &Value| class["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let is_default =
        |class: &&Value| class["metadata"]["annotations"][DEFAULT_CLASS].as_str() == Some("true");
    if let Some(class) = classes.iter().find(is_default) {
        return Ok(name(class));
    }
    let names: Vec<_> = classes.iter().map(name).collect();
    let remedy = match names.as_slice() {
        [] => "give the cluster a StorageClass: the site's state needs a volume".to_owned(),
        [first, ..] => format!("helm install … --set federation.storage.className={first}"),
    };
    Err(("no StorageClass is the default".into(), remedy))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// What comes of it where kubectl answers so: `pattern) commands;;`.
    async fn walked(cases: &str) -> (Walk, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("a directory");
        let program = dir.path().join("kubectl");
        let good = r#"
            *version*) echo '{"serverVersion": {"gitVersion": "v1.33.1"}}';;
            *can-i*) echo yes;;
            *nodes*) echo '{"items": [{"status": {"nodeInfo": {"kubeletVersion": "v1.30.2", "architecture": "amd64"}}}]}';;
            *storageclasses*) echo '{"items": [{"metadata": {"name": "fast", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}}]}';;"#;
        let script = format!("#!/bin/sh\ncase \"$*\" in\n{cases}\n{good}\nesac\n");
        std::fs::write(&program, script).expect("a script");
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&program, executable).expect("it may run");
        let kubectl = Kubectl { program, context: Some("east".into()) };
        let mut all = Walk { ok: true, items: Vec::new() };
        walk(&mut all, &kubectl).await;
        (all, dir)
    }

    #[tokio::test]
    async fn a_good_cluster_passes() {
        let (walk, _dir) = walked("*--context=east*--request-timeout*) ;;").await;
        assert!(!walk.ok, "an empty answer is none");
        let (walk, _dir) = walked("nothing) ;;").await;
        let told: Vec<_> = walk.items.iter().map(|i| (i.hop, i.ok, i.detail.as_str())).collect();
        let good = [
            ("cluster", true, "v1.33.1"),
            ("rights", true, ""),
            ("nodes", true, "1"),
            ("storage", true, "fast"),
        ];
        assert_eq!(told, good);
    }

    #[tokio::test]
    async fn what_is_missing_is_named_with_its_remedy() {
        let node = |info: &str| {
            format!(
                r#"*nodes*) echo '{{"items": [{{"metadata": {{"name": "n1"}}, "status": {{"nodeInfo": {info}}}}}]}}';;"#
            )
        };
        for (cases, hop, detail, remedy) in [
            (
                r#"*version*) echo 'refused' >&2; exit 1;;"#.to_owned(),
                "cluster",
                "refused",
                "cluster-info",
            ),
            (
                r#"*version*) echo '{"serverVersion": {"gitVersion": "v1.28.9"}}';;"#.to_owned(),
                "cluster",
                "v1.28.9 is older than 1.29",
                "upgrade",
            ),
            (
                "*secrets*) echo Warning >&2; echo no; exit 1;;".to_owned(),
                "rights",
                "may not create secrets",
                "administrator",
            ),
            ("*secrets*) echo 'lost' >&2; exit 1;;".to_owned(), "rights", "lost", "whoami"),
            (node(r#"{"architecture": "s390x"}"#), "nodes", "node n1 is \"s390x\"", "nodeSelector"),
            (node(r#"{"operatingSystem": "windows"}"#), "nodes", "no node that runs Linux", "add"),
            (
                r#"*storageclasses*) echo '{"items": [{"metadata": {"name": "slow"}}]}';;"#
                    .to_owned(),
                "storage",
                "no StorageClass is the default",
                "className=slow",
            ),
        ] {
            let (walk, _dir) = walked(&cases).await;
            let failed: Vec<_> = walk.items.iter().filter(|item| !item.ok).collect();
            let [failed] = failed.as_slice() else { panic!("{cases}: {failed:?}") };
            assert_eq!(failed.hop, hop, "{cases}");
            assert!(failed.detail.contains(detail), "{cases}: {}", failed.detail);
            assert!(failed.remedy.contains(remedy), "{cases}: {}", failed.remedy);
        }
        let (walk, _dir) = walked(&node(r#"{"kubeletVersion": "v1.28.1"}"#)).await;
        assert!(walk.ok && walk.items[2].detail.contains("1.28: the proxy is no native sidecar"));
    }

    #[tokio::test]
    async fn without_kubectl_nothing_is_known() {
        let kubectl = Kubectl { program: "/nonexistent/kubectl".into(), context: None };
        let mut all = Walk { ok: true, items: Vec::new() };
        walk(&mut all, &kubectl).await;
        assert!(!all.ok && all.items.len() == 1 && all.items[0].remedy.contains("install kubectl"));
    }
}
