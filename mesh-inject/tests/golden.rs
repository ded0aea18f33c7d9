//! Pods as they come, and what is made of them.
//!
//! A file of `golden/` holds an object that an API server takes and, behind
//! `---`, what injection does: of our parts only what is other than in
//! `plain.yaml`, which holds them whole. Lines that begin with `#!` say what is
//! known of the cluster. `ISTHMUS_GOLDEN=write` writes the second halves anew.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

use std::{collections::BTreeMap, fs, path::Path};

use mesh_inject::{
    Native, Outcome, Refusal, Settings, inject, inject_document, own, settings::PodSecurity,
    uninject, uninject_document,
};
use serde_json::{Map, Value, json};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
/// Fewer, and somebody has lost some.
const AT_LEAST: usize = 90;

struct Case {
    name: String,
    /// Up to the mark, with it.
    head: String,
    expected: String,
    object: Value,
    settings: Settings,
}

fn cases() -> Vec<Case> {
    let mut names: Vec<String> = fs::read_dir(FOLDER)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    names.sort();
    names.iter().map(|name| case(name)).collect()
}

fn case(name: &str) -> Case {
    let text = fs::read_to_string(Path::new(FOLDER).join(name)).unwrap();
    let (object, expected) = text.split_once("\n---\n").unwrap_or((text.trim_end(), ""));
    let (server, kubelet) = (said(object, "server"), said(object, "oldest_kubelet"));
    let mut settings = Settings::new("east.example".parse().unwrap());
    settings.version = "1.2.3".into();
    settings.proxy_image = "isthmus-proxy:1.2.3".into();
    settings.redirect_image = "isthmus-k8s:1.2.3".into();
    settings.native = match said(object, "native_sidecar") {
        Some("never") => Native::Never,
        None => Native::Auto {
            server: server.map(|version| version.parse().unwrap()),
            oldest_kubelet: kubelet.map(|version| version.parse().unwrap()),
        },
        Some(other) => panic!("{name}: native_sidecar: {other}"),
    };
    settings.namespace.enabled = said(object, "namespace").is_none();
    settings.namespace.pod_security = match said(object, "pod_security") {
        None => PodSecurity::Privileged,
        Some("baseline") => PodSecurity::Baseline,
        Some("restricted") => PodSecurity::Restricted,
        Some(other) => panic!("{name}: pod_security: {other}"),
    };
    Case {
        name: name.trim_end_matches(".yaml").to_owned(),
        head: format!("{object}\n---\n"),
        expected: expected.to_owned(),
        object: serde_yaml_ng::from_str(object).unwrap_or_else(|error| panic!("{name}: {error}")),
        settings,
    }
}

fn said<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix("#! ")?.strip_prefix(key)?.strip_prefix(": "))
}

/// Where the only pod of an object is.
fn pod_of(object: &Value) -> &'static str {
    match object["kind"].as_str() {
        Some("Pod") => "",
        Some("CronJob") => "/spec/jobTemplate/spec/template",
        Some("List") => "/items/1/spec/template",
        _ => "/spec/template",
    }
}

impl Case {
    fn inject(&self, object: &mut Value) -> Result<Outcome, Refusal> {
        if pod_of(object).is_empty() {
            return match inject(object, &self.settings) {
                Outcome::Refused(refusal) => Err(refusal),
                outcome => Ok(outcome),
            };
        }
        let reports = inject_document(object, &self.settings)?;
        assert_eq!(reports.len(), 1, "{}", self.name);
        Ok(reports[0].outcome.clone())
    }

    fn summary(&self, plain: Option<&Value>) -> String {
        let mut after = self.object.clone();
        let summary = match self.inject(&mut after) {
            Err(refusal) => {
                assert_eq!(after, self.object, "{}: refused, and changed", self.name);
                json!({"refused": refusal.to_string()})
            }
            Ok(Outcome::Skipped(skip)) => {
                let pod = after.pointer(pod_of(&after)).unwrap();
                with(json!({"skipped": skip.to_string()}), ours_of(pod))
            }
            Ok(Outcome::Injected { warnings, .. }) => {
                let pod = after.pointer(pod_of(&after)).unwrap();
                let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
                let head = match warnings.is_empty() {
                    true => json!({}),
                    false => json!({"warnings": warnings}),
                };
                with(with(head, ours_of(pod)), parts(pod, plain))
            }
            Ok(Outcome::Refused(_)) => unreachable!(),
        };
        serde_yaml_ng::to_string(&summary).unwrap()
    }
}

fn with(one: Value, other: Value) -> Value {
    let (Value::Object(mut one), Value::Object(other)) = (one, other) else { panic!("objects") };
    one.extend(other);
    Value::Object(one)
}

/// Annotations that we have a hand in; a digest is none for people.
fn ours_of(pod: &Value) -> Value {
    let all = pod.pointer("/metadata/annotations").and_then(Value::as_object);
    let is_ours = |name: &str| own::SET_BY_US.contains(&name) || name == own::DEFAULT_CONTAINER;
    let ours: Map<String, Value> = all
        .into_iter()
        .flatten()
        .filter(|(name, _)| is_ours(name) && *name != own::DIGEST)
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if ours.is_empty() { json!({}) } else { json!({"annotations": ours}) }
}

/// Names in order, and what is other than in a plain pod.
fn parts(pod: &Value, plain: Option<&Value>) -> Value {
    let names = |list: &str| -> Vec<&str> {
        let list = pod["spec"][list].as_array().into_iter().flatten();
        list.map(|element| element["name"].as_str().unwrap()).collect()
    };
    let mut parts = json!({
        "order": {
            "initContainers": names("initContainers"),
            "containers": names("containers"),
            "volumes": names("volumes"),
        },
    });
    for (name, label) in [(own::REDIRECT, "redirect"), (own::PROXY, "proxy")] {
        match (find(pod, name), plain.and_then(|plain| find(plain, name))) {
            (None, _) => {}
            (Some(part), None) => parts[label] = readable(part),
            (Some(part), Some(plain)) => {
                let differs = difference(&readable(plain), &readable(part));
                if !differs.is_empty() {
                    parts[label] = Value::Object(differs);
                }
            }
        }
    }
    let volumes = own::VOLUMES.map(|name| volume(pod, name).unwrap().clone());
    match plain {
        None => parts["volumes"] = Value::from(volumes.to_vec()),
        Some(plain) => {
            assert_eq!(volumes, own::VOLUMES.map(|name| volume(plain, name).unwrap().clone()));
        }
    }
    parts
}

fn find<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    ["initContainers", "containers"].into_iter().find_map(|list| {
        pod["spec"][list].as_array()?.iter().find(|container| container["name"] == name)
    })
}

fn volume<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    pod["spec"]["volumes"].as_array()?.iter().find(|volume| volume["name"] == name)
}

/// The environment as a mapping, settings as a list.
fn readable(container: &Value) -> Value {
    let mut container = container.clone();
    if let Some(env) = container["env"].as_array() {
        let each = env.iter().map(|variable| {
            let (name, value) =
                (variable["name"].as_str().unwrap(), variable["value"].as_str().unwrap());
            let value = match name {
                "ISTHMUS_PROXY_SET" => Value::from(value.split("; ").collect::<Vec<_>>()),
                _ => value.into(),
            };
            (name.to_owned(), value)
        });
        container["env"] = Value::Object(each.collect());
    } else {
        container.as_object_mut().unwrap().remove("env");
    }
    container
}

/// Fields of `part` that `plain` has otherwise; null where it lacks them. Of
/// lists, elements of one alone have a sign.
fn difference(plain: &Value, part: &Value) -> Map<String, Value> {
    let (plain, part) = (plain.as_object().unwrap(), part.as_object().unwrap());
    let mut keys: Vec<&String> = plain.keys().chain(part.keys()).collect();
    keys.sort();
    keys.dedup();
    let mut differs = Map::new();
    for key in keys {
        let (before, after) = (plain.get(key), part.get(key));
        let value = match (before, after) {
            _ if before == after => continue,
            (Some(Value::Object(_)), Some(Value::Object(_))) => {
                difference(before.unwrap(), after.unwrap()).into()
            }
            (Some(Value::Array(before)), Some(Value::Array(after)))
                if before.iter().chain(after).all(Value::is_string) =>
            {
                let alone = |sign: &str, of: &[Value], others: &[Value]| -> Vec<String> {
                    let alone = of.iter().filter(|element| !others.contains(element));
                    alone.map(|element| format!("{sign} {}", element.as_str().unwrap())).collect()
                };
                [alone("-", before, after), alone("+", after, before)].concat().into()
            }
            _ => after.cloned().unwrap_or_default(),
        };
        differs.insert(key.clone(), value);
    }
    differs
}

#[test]
fn every_pod_becomes_what_its_file_says() {
    let cases = cases();
    assert!(cases.len() >= AT_LEAST, "only {} files in {FOLDER}", cases.len());
    let mut plain = case("plain.yaml");
    let mut injected = plain.object.clone();
    plain.inject(&mut injected).unwrap();
    plain.object = injected;
    let write = std::env::var("ISTHMUS_GOLDEN").as_deref() == Ok("write");
    let mut wrong = BTreeMap::new();
    for case in &cases {
        let base = Some(&plain.object).filter(|_| case.name != "plain");
        let summary = case.summary(base);
        if write {
            // Whole or not at all: the other tests read meanwhile.
            let path = Path::new(FOLDER).join(format!("{}.yaml", case.name));
            let new = path.with_extension("new");
            fs::write(&new, format!("{}{summary}", case.head)).unwrap();
            fs::rename(new, path).unwrap();
        } else if summary != case.expected {
            wrong.insert(&case.name, format!("expected:\n{}\nis:\n{summary}", case.expected));
        }
    }
    let told: Vec<String> = wrong.iter().map(|(name, text)| format!("{name}: {text}")).collect();
    assert!(
        told.is_empty(),
        "{}\nif that is meant, rerun with ISTHMUS_GOLDEN=write",
        told.join("\n")
    );
}

#[test]
fn injecting_twice_is_injecting_once() {
    for case in cases() {
        let mut once = case.object.clone();
        let Ok(outcome) = case.inject(&mut once) else { continue };
        let mut twice = once.clone();
        let again = case.inject(&mut twice).unwrap();
        assert_eq!(twice.to_string(), once.to_string(), "{}", case.name);
        if let (Outcome::Injected { changed, .. }, Outcome::Injected { changed: again, .. }) =
            (outcome, again)
        {
            assert_eq!((changed, again), (true, false), "{}", case.name);
        }
    }
}

/// Without our parts the object is what it was, but for lists and annotations
/// that were there and empty.
#[test]
fn what_was_put_in_can_be_taken_out() {
    for case in cases() {
        let mut before = case.object.clone();
        remove_all(&mut before);
        let mut after = case.object.clone();
        if case.inject(&mut after).is_err() {
            continue;
        }
        remove_all(&mut after);
        assert_eq!(tidy(after), tidy(before), "{}", case.name);
    }
}

fn remove_all(object: &mut Value) {
    if pod_of(object).is_empty() {
        uninject(object);
    } else {
        uninject_document(object);
    }
}

fn tidy(mut object: Value) -> Value {
    let pod = object.pointer_mut(pod_of(&object)).unwrap();
    for (owner, key) in
        [("spec", "initContainers"), ("spec", "volumes"), ("metadata", "annotations")]
    {
        let is_empty = |value: &Value| *value == json!([]) || *value == json!({});
        if is_empty(&pod[owner][key]) || pod[owner][key].is_null() {
            pod[owner].as_object_mut().map(|owner| owner.remove(key));
        }
    }
    if pod["metadata"].is_null() {
        pod["metadata"] = json!({});
    }
    object
}

/// <https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted>,
/// as far as it is said of a container. NET_ADMIN is what only the redirect has.
#[test]
fn our_containers_are_restricted() {
    for case in cases() {
        let mut after = case.object.clone();
        if !matches!(case.inject(&mut after), Ok(Outcome::Injected { .. })) {
            continue;
        }
        let pod = after.pointer(pod_of(&after)).unwrap();
        let proxy = &find(pod, own::PROXY).unwrap()["securityContext"];
        assert_eq!(
            *proxy,
            json!({
                "runAsUser": own::PROXY_UID,
                "runAsGroup": own::PROXY_UID,
                "runAsNonRoot": true,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            }),
            "{}",
            case.name
        );
        if let Some(redirect) = find(pod, own::REDIRECT) {
            let capabilities = &redirect["securityContext"]["capabilities"];
            assert_eq!(*capabilities, json!({"drop": ["ALL"], "add": ["NET_ADMIN"]}));
        }
    }
}
