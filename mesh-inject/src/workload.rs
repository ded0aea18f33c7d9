//! Documents that hold pods: workloads with a template of theirs, pods
//! themselves, and lists.

use serde_json::Value;

use crate::{
    field::Field,
    inject,
    outcome::{Outcome, Refusal},
    settings::Settings,
};

/// What became of one workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// `Deployment shop/web`; without a namespace where it has none.
    pub name: String,
    /// Where its pod is in the document.
    pub field: Field,
    /// What became of that; never refused.
    pub outcome: Outcome,
}

/// Injects every pod of a document; one without pods is left as it is, and so
/// is a workload whose pods are skipped.
///
/// # Errors
///
/// One cannot be injected; its field is one of the document. Nothing has changed
/// then.
pub fn inject_document(document: &mut Value, settings: &Settings) -> Result<Vec<Report>, Refusal> {
    let mut new = document.clone();
    let mut reports = Vec::new();
    each_pod(&mut new, &Field::root(), &mut |name, field, pod| {
        let mut injected = pod.clone();
        let outcome = inject::inject(&mut injected, settings);
        match &outcome {
            Outcome::Injected { .. } => *pod = injected,
            // Whoever reads the document is told why; a template is not changed.
            Outcome::Skipped(_) => {
                inject::uninject(pod);
            }
            Outcome::Refused(refusal) => return Err(refusal.clone().within(field)),
        }
        reports.push(Report { name: name.to_owned(), field: field.clone(), outcome });
        Ok(())
    })?;
    *document = new;
    Ok(reports)
}

/// Takes our parts out of every pod of a document; which workloads had any.
pub fn uninject_document(document: &mut Value) -> Vec<String> {
    let mut found = Vec::new();
    // A workload without a pod has nothing to take out.
    let _ = each_pod(document, &Field::root(), &mut |name, _, pod| {
        if inject::uninject(pod) {
            found.push(name.to_owned());
        }
        Ok(())
    });
    found
}

/// Where the pod of a workload is.
fn template(group: &str, kind: &str) -> Option<&'static [&'static str]> {
    match (group, kind) {
        ("", "Pod") => Some(&[]),
        ("apps" | "extensions", "Deployment" | "DaemonSet" | "ReplicaSet" | "StatefulSet")
        | ("batch", "Job")
        | ("", "ReplicationController") => Some(&["spec", "template"]),
        ("batch", "CronJob") => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

/// `apps` of `apps/v1`, nothing of `v1`.
fn group(document: &Value) -> &str {
    let version = document["apiVersion"].as_str().unwrap_or_default();
    version.split_once('/').map_or("", |(group, _)| group)
}

type Visit<'a> = &'a mut dyn FnMut(&str, &Field, &mut Value) -> Result<(), Refusal>;

fn each_pod(document: &mut Value, at: &Field, visit: Visit<'_>) -> Result<(), Refusal> {
    let kind = document["kind"].as_str().unwrap_or_default();
    let is_list = kind == "List" && group(document).is_empty();
    if is_list && let Some(items) = document.get_mut("items").and_then(Value::as_array_mut) {
        let field = at.key("items");
        let mut first = Ok(());
        // A list in a list is no object of Kubernetes: one level, no recursion.
        for (index, item) in items.iter_mut().enumerate() {
            first = first.and(workload(item, &field.index(index), visit));
        }
        return first;
    }
    workload(document, at, visit)
}

fn workload(document: &mut Value, at: &Field, visit: Visit<'_>) -> Result<(), Refusal> {
    let kind = document["kind"].as_str().unwrap_or_default();
    let Some(path) = template(group(document), kind) else { return Ok(()) };
    let name = name(document, kind);
    let (mut pod, mut field) = (document, at.clone());
    for key in path {
        field = field.key(key);
        pod = match pod.get_mut(key) {
            Some(inner) if inner.is_object() => inner,
            _ => return Err(Refusal::Shape { field, wanted: "an object" }),
        };
    }
    visit(&name, &field, pod)
}

fn name(document: &Value, kind: &str) -> String {
    let metadata = &document["metadata"];
    let text = |key: &str| metadata[key].as_str();
    let name = text("name").or(text("generateName")).unwrap_or("without a name");
    match text("namespace") {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::outcome::Skip;

    fn settings() -> Settings {
        Settings::new("east.example".parse().unwrap())
    }

    fn pod() -> Value {
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": "web:1"}]}})
    }

    fn document(version: &str, kind: &str) -> Value {
        let (name, pod) = (json!({"name": "web", "namespace": "shop"}), pod());
        let spec = match kind {
            "CronJob" => json!({"schedule": "@daily", "jobTemplate": {"spec": {"template": pod}}}),
            _ => json!({"template": pod}),
        };
        json!({"apiVersion": version, "kind": kind, "metadata": name, "spec": spec})
    }

    #[test]
    fn every_kind_of_workload_is_known() {
        let kinds = [
            ("apps/v1", "Deployment", "/spec/template"),
            ("apps/v1", "StatefulSet", "/spec/template"),
            ("apps/v1", "DaemonSet", "/spec/template"),
            ("apps/v1", "ReplicaSet", "/spec/template"),
            ("v1", "ReplicationController", "/spec/template"),
            ("batch/v1", "Job", "/spec/template"),
            ("batch/v1beta1", "CronJob", "/spec/jobTemplate/spec/template"),
        ];
        for (version, kind, path) in kinds {
            let before = document(version, kind);
            let mut after = before.clone();
            let reports = inject_document(&mut after, &settings()).unwrap();
            assert_eq!(reports[0].name, format!("{kind} shop/web"));
            let mut expected = pod();
            inject::inject(&mut expected, &settings());
            assert_eq!(after.pointer(path), Some(&expected), "{kind}");
            assert_eq!(uninject_document(&mut after), [format!("{kind} shop/web")]);
            assert_eq!(after, before, "{kind}");
        }
    }

    #[test]
    fn what_is_no_workload_of_kubernetes_is_left() {
        let others = [
            document("v1", "ConfigMap"),
            document("nomad.example/v1", "Job"),
            document("apps/v1", "Pod"),
            json!({"spec": {"template": pod()}}),
            json!([pod()]),
            Value::Null,
        ];
        for before in others {
            let mut after = before.clone();
            assert_eq!(inject_document(&mut after, &settings()), Ok(Vec::new()));
            assert!(uninject_document(&mut after).is_empty());
            assert_eq!(after, before);
        }
    }

    #[test]
    fn a_list_is_its_items_and_all_or_none() {
        let items = [document("apps/v1", "Deployment"), document("v1", "Service")];
        let mut list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        let reports = inject_document(&mut list, &settings()).unwrap();
        assert_eq!(reports[0].field.to_string(), "items[0].spec.template");
        assert_eq!((reports.len(), &list["items"][1]), (1, &items[1]));

        let mut wrong = document("apps/v1", "StatefulSet");
        wrong["spec"]["template"]["metadata"]["annotations"] =
            json!({"isthmus.dev/redirect": "off"});
        let before = json!({"apiVersion": "v1", "kind": "List", "items": [items[0], wrong]});
        let mut after = before.clone();
        let error = inject_document(&mut after, &settings()).unwrap_err().to_string();
        let place =
            "items[1].spec.template.metadata.annotations[\"isthmus.dev/redirect\"]: \"off\"";
        assert!(error.starts_with(place), "{error}");
        assert_eq!(after, before);
    }

    #[test]
    fn a_template_that_is_skipped_is_not_changed() {
        let mut before = document("apps/v1", "DaemonSet");
        let injected = {
            let mut injected = before.clone();
            inject_document(&mut injected, &settings()).unwrap();
            injected["spec"]["template"]["spec"]["hostNetwork"] = json!(true);
            injected
        };
        before["spec"]["template"]["spec"]["hostNetwork"] = json!(true);
        // Parts of a former injection go.
        for document in [before.clone(), injected] {
            let mut after = document;
            let reports = inject_document(&mut after, &settings()).unwrap();
            assert_eq!(reports[0].outcome, Outcome::Skipped(Skip::HostNetwork));
            assert_eq!(after, before);
        }
    }

    #[test]
    fn a_workload_without_pods_is_a_mistake() {
        let mut document =
            json!({"apiVersion": "batch/v1", "kind": "CronJob", "spec": {"jobTemplate": 7}});
        let error = inject_document(&mut document, &settings()).unwrap_err();
        assert_eq!(error.to_string(), "spec.jobTemplate: must be an object");
    }
}
