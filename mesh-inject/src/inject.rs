//! One pod: its parts put in, and taken out.

use serde_json::{Map, Value};

use crate::{
    decide::{self, Decision, asks_for_its_limits, is_guaranteed},
    outcome::{Outcome, Refusal, Warning},
    own,
    parts::Parts,
    settings::Settings,
};

/// Puts our parts into a pod. A pod that was injected before becomes what it
/// would be if it had not been; what others have added to parts that are still
/// right is kept. A pod that asks for them and is skipped says why in an
/// annotation; one that is refused is left as it is.
pub fn inject(pod: &mut Value, settings: &Settings) -> Outcome {
    match injected(pod, settings) {
        Ok((new, outcome)) => {
            *pod = new;
            outcome
        }
        Err(refusal) => Outcome::Refused(refusal),
    }
}

fn injected(pod: &Value, settings: &Settings) -> Result<(Value, Outcome), Refusal> {
    let mut bare = pod.clone();
    // Without the mark it is somebody else who uses our names.
    if is_marked(pod) {
        uninject(&mut bare);
    } else {
        remove_annotations(&mut bare);
    }
    let wishes = match decide::decide(&bare, settings)? {
        Decision::Skip(skip) => {
            if skip.is_worth_telling() {
                annotate(&mut bare, own::SKIP_REASON, &skip.to_string());
            }
            return Ok((bare, Outcome::Skipped(skip)));
        }
        Decision::Inject(wishes) => wishes,
    };
    let mut warnings = decide::warnings(&bare, &wishes);
    let parts = Parts::of(&bare, &wishes, settings);
    if is_guaranteed(&bare) && !asks_for_its_limits(&parts.proxy) {
        warnings.push(Warning::NoLongerGuaranteed);
    }
    let kept = Kept::of(pod, &parts.digest);
    put(&mut bare, parts, &kept, &settings.version);
    let changed = bare != *pod;
    Ok((bare, Outcome::Injected { changed, warnings }))
}

/// Takes our parts out of a pod, whoever has put them in; says whether there
/// were any.
pub fn uninject(pod: &mut Value) -> bool {
    let mut found = false;
    for (list, names) in [
        ("initContainers", &own::CONTAINERS[..]),
        ("containers", &own::CONTAINERS[..]),
        ("volumes", &own::VOLUMES[..]),
    ] {
        found |= remove_named(pod, list, names);
    }
    found | remove_annotations(pod)
}

fn is_marked(pod: &Value) -> bool {
    annotation(pod, own::INJECTED).is_some()
}

fn annotation<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    pod.pointer("/metadata/annotations")?.get(name)?.as_str()
}

/// Elements of a list of the spec; a list that becomes empty goes.
fn remove_named(pod: &mut Value, list: &str, names: &[&str]) -> bool {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return false };
    let Some(elements) = spec.get_mut(list).and_then(Value::as_array_mut) else { return false };
    let before = elements.len();
    elements.retain(|element| !element["name"].as_str().is_some_and(|name| names.contains(&name)));
    let (removed, is_empty) = (elements.len() < before, elements.is_empty());
    if removed && is_empty {
        spec.remove(list);
    }
    removed
}

fn remove_annotations(pod: &mut Value) -> bool {
    let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) else {
        return false;
    };
    let Some(all) = metadata.get_mut("annotations").and_then(Value::as_object_mut) else {
        return false;
    };
    let before = all.len();
    if let Some(Value::String(added)) = all.remove(own::ADDED)
        && added == own::DEFAULT_CONTAINER
    {
        all.remove(&added);
    }
    for name in own::SET_BY_US {
        all.remove(name);
    }
    let (removed, is_empty) = (all.len() < before, all.is_empty());
    if removed && is_empty {
        metadata.remove("annotations");
        if metadata.is_empty()
            && let Some(pod) = pod.as_object_mut()
        {
            pod.remove("metadata");
        }
    }
    removed
}

/// Parts that are there and were made of the same.
struct Kept<'a> {
    pod: Option<&'a Value>,
}

impl<'a> Kept<'a> {
    fn of(pod: &'a Value, digest: &str) -> Self {
        let is_same = annotation(pod, own::DIGEST) == Some(digest);
        Self { pod: Some(pod).filter(|_| is_same) }
    }

    /// The one of that name, if it is where the new one belongs.
    fn or(&self, list: &str, new: Value) -> Value {
        let spec = self.pod.and_then(|pod| pod.get("spec"));
        let there = spec.and_then(|spec| spec.get(list)).and_then(Value::as_array);
        let same = there.into_iter().flatten().find(|element| element["name"] == new["name"]);
        same.cloned().unwrap_or(new)
    }
}

fn put(pod: &mut Value, parts: Parts, kept: &Kept<'_>, version: &str) {
    let redirect = parts.redirect.map(|redirect| kept.or("initContainers", redirect));
    let first = list(pod, "initContainers");
    if parts.native {
        // Before all others: they are in the mesh.
        let proxy = kept.or("initContainers", parts.proxy);
        first.splice(0..0, redirect.into_iter().chain([proxy]));
    } else {
        // Behind all others: nobody would take what is redirected.
        first.extend(redirect);
        if first.is_empty() {
            remove_empty(pod, "initContainers");
        }
        let proxy = kept.or("containers", parts.proxy);
        list(pod, "containers").insert(0, proxy);
    }
    let volumes = parts.volumes.into_iter().map(|volume| kept.or("volumes", volume));
    list(pod, "volumes").extend(volumes);
    annotate(pod, own::INJECTED, version);
    annotate(pod, own::DIGEST, &parts.digest);
    if let Some(container) = parts.default_container {
        annotate(pod, own::DEFAULT_CONTAINER, &container);
        annotate(pod, own::ADDED, own::DEFAULT_CONTAINER);
    }
}

/// A list of the spec, made where there is none; `decide` has seen that what is
/// there is a list.
fn list<'a>(pod: &'a mut Value, name: &str) -> &'a mut Vec<Value> {
    let at = &mut pod["spec"][name];
    if !at.is_array() {
        *at = Value::Array(Vec::new());
    }
    at.as_array_mut().expect("it is one")
}

fn remove_empty(pod: &mut Value, name: &str) {
    if let Some(spec) = pod["spec"].as_object_mut() {
        spec.remove(name);
    }
}

/// `decide` has seen that what is there is an object.
fn annotate(pod: &mut Value, name: &str, value: &str) {
    let mut at = pod;
    for key in ["metadata", "annotations"] {
        at = &mut at[key];
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
    }
    at[name] = value.into();
}
