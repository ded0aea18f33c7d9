//! Whether a pod gets our parts: skipped, refused, or what it wishes.

use serde_json::Value;

use crate::{
    annotation::{Wishes, label},
    field::{At, Field},
    outcome::{Refusal, Skip, Warning},
    own,
    quantity::Quantity,
    settings::{PodSecurity, Settings},
};

/// Containers by which other meshes are known: they redirect, too.
const OTHER_MESHES: [&str; 9] = [
    "istio-proxy",
    "istio-init",
    "istio-validation",
    "linkerd-proxy",
    "linkerd-init",
    "linkerd-network-validator",
    "kuma-sidecar",
    "kuma-init",
    "consul-dataplane",
];
const OS_LABELS: [&str; 2] = ["kubernetes.io/os", "beta.kubernetes.io/os"];
/// Of the copy of a static pod.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What becomes of a pod without our parts.
#[derive(Debug)]
pub(crate) enum Decision {
    Skip(Skip),
    Inject(Box<Wishes>),
}

pub(crate) fn decide(pod: &Value, settings: &Settings) -> Result<Decision, Refusal> {
    let spec = At::root(pod).key("spec")?;
    spec.require_object()?;
    if let Some(skip) = skip(pod, &spec, settings)? {
        return Ok(Decision::Skip(skip));
    }
    let wishes = Wishes::read(pod, settings)?;
    if !wishes.native && spec.key("restartPolicy")?.text()?.is_some_and(|policy| policy != "Always")
    {
        return Ok(Decision::Skip(Skip::RunsToCompletion));
    }
    let level = settings.namespace.pod_security;
    if wishes.redirect && level != PodSecurity::Privileged {
        let field = Field::annotation(crate::annotation::REDIRECT);
        return Err(Refusal::PodSecurity { field, level: level.as_str() });
    }
    refuse_user(&spec)?;
    refuse_names(&spec)?;
    refuse_ports(&spec)?;
    Ok(Decision::Inject(Box::new(wishes)))
}

fn skip(pod: &Value, spec: &At<'_>, settings: &Settings) -> Result<Option<Skip>, Refusal> {
    let asked = label(pod)?;
    Ok(match asked {
        Some(false) => Some(Skip::Disabled),
        None if !settings.namespace.enabled => Some(Skip::NotAsked),
        _ if !At::root(pod).path(&["metadata", "annotations", MIRROR])?.is_absent() => {
            Some(Skip::Mirror)
        }
        _ if spec.key("hostNetwork")?.boolean()? == Some(true) => Some(Skip::HostNetwork),
        _ if is_windows(spec)? => Some(Skip::Windows),
        _ => other_mesh(spec)?.map(|container| Skip::OtherMesh { container }),
    })
}

fn is_windows(spec: &At<'_>) -> Result<bool, Refusal> {
    let mut says = vec![spec.path(&["os", "name"])?.text()?];
    for label in OS_LABELS {
        says.push(spec.path(&["nodeSelector", label])?.text()?);
    }
    let host_process = spec.path(&["securityContext", "windowsOptions", "hostProcess"])?;
    Ok(says.contains(&Some("windows")) || host_process.boolean()? == Some(true))
}

fn other_mesh(spec: &At<'_>) -> Result<Option<String>, Refusal> {
    for container in containers(spec)? {
        if let Some(name) = container.key("name")?.text()?
            && OTHER_MESHES.contains(&name)
        {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

/// Init containers first, as they run.
fn containers<'a>(spec: &At<'a>) -> Result<Vec<At<'a>>, Refusal> {
    let mut all = spec.key("initContainers")?.objects()?;
    all.extend(spec.key("containers")?.objects()?);
    Ok(all)
}

fn refuse_user(spec: &At<'_>) -> Result<(), Refusal> {
    let is_ours = |user: Option<i64>| user == Some(own::PROXY_UID.into());
    let of_pod = spec.path(&["securityContext", "runAsUser"])?;
    for container in containers(spec)? {
        let own = container.path(&["securityContext", "runAsUser"])?;
        let decides = if own.is_absent() { &of_pod } else { &own };
        if is_ours(decides.integer()?) {
            return Err(Refusal::ProxyUser { field: decides.field.clone() });
        }
    }
    Ok(())
}

fn refuse_names(spec: &At<'_>) -> Result<(), Refusal> {
    let volumes = spec.key("volumes")?.objects()?;
    let ours: [(_, &[&str]); 2] = [(containers(spec)?, &own::CONTAINERS), (volumes, &own::VOLUMES)];
    for (elements, names) in ours {
        for element in elements {
            let name = element.key("name")?;
            if let Some(text) = name.text()?.filter(|text| names.contains(text)) {
                return Err(Refusal::NameTaken { field: name.field, name: text.to_owned() });
            }
        }
    }
    Ok(())
}

/// All containers of a pod share its ports.
fn refuse_ports(spec: &At<'_>) -> Result<(), Refusal> {
    for container in containers(spec)? {
        for port in container.key("ports")?.objects()? {
            let is_tcp = port.key("protocol")?.text()?.is_none_or(|protocol| protocol == "TCP");
            let number = port.key("containerPort")?;
            let taken =
                own::PORTS.into_iter().find(|own| number.integer() == Ok(Some((*own).into())));
            if let Some(port) = taken.filter(|_| is_tcp) {
                return Err(Refusal::PortTaken { field: number.field, port });
            }
        }
    }
    Ok(())
}

/// Whether the pod's quality of service is Guaranteed: each container has
/// limits of processor and memory, and asks for as much.
/// <https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/>
pub(crate) fn is_guaranteed(pod: &Value) -> bool {
    let all = |key: &str| pod.pointer(key).and_then(Value::as_array).into_iter().flatten();
    let mut containers = all("/spec/initContainers").chain(all("/spec/containers")).peekable();
    // What a whole pod asks for counts in the place of its containers.
    let is_pod_level = pod.pointer("/spec/resources").is_some_and(|resources| !resources.is_null());
    containers.peek().is_some() && !is_pod_level && containers.all(asks_for_its_limits)
}

pub(crate) fn asks_for_its_limits(container: &Value) -> bool {
    let quantity = |kind: &str, name: &str| -> Option<Quantity> {
        match container.pointer(&format!("/resources/{kind}/{name}"))? {
            Value::String(text) => text.parse().ok(),
            Value::Number(number) => number.to_string().parse().ok(),
            _ => None,
        }
    };
    ["cpu", "memory"].into_iter().all(|name| {
        let limit = quantity("limits", name).filter(|limit| !limit.is_zero());
        let request = quantity("requests", name).or_else(|| limit.clone());
        limit.is_some() && limit == request
    })
}

/// What an owner should know of a pod that is injected.
pub(crate) fn warnings(pod: &Value, wishes: &Wishes) -> Vec<Warning> {
    let mut warnings = wishes.unknown.clone();
    let spec = |key: &str| pod.pointer("/spec").and_then(|spec| spec.get(key));
    if spec("shareProcessNamespace").and_then(Value::as_bool) == Some(true) {
        warnings.push(Warning::SharedProcesses);
    }
    let has_init =
        spec("initContainers").and_then(Value::as_array).is_some_and(|all| !all.is_empty());
    if has_init && !wishes.native && wishes.redirect {
        warnings.push(Warning::InitOutsideMesh);
    }
    if !wishes.redirect {
        warnings.push(Warning::NoRedirect);
    }
    warnings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn resources(requests: Value, limits: Value) -> Value {
        json!({"spec": {"containers": [{"resources": {"requests": requests, "limits": limits}}]}})
    }

    #[test]
    fn guaranteed_is_what_kubernetes_calls_it() {
        let limits = json!({"cpu": 1, "memory": "1Gi"});
        assert!(is_guaranteed(&resources(Value::Null, limits.clone())));
        assert!(is_guaranteed(&resources(
            json!({"cpu": "1000m", "memory": "1024Mi"}),
            limits.clone()
        )));
        let not = [
            resources(json!({"cpu": "900m"}), limits.clone()),
            resources(limits.clone(), Value::Null),
            resources(Value::Null, json!({"cpu": 1})),
            resources(json!({"cpu": 0, "memory": 0}), json!({"cpu": 0, "memory": 0})),
            json!({"spec": {"containers": []}}),
            json!({"spec": 7}),
        ];
        for pod in not {
            assert!(!is_guaranteed(&pod), "{pod}");
        }
        let mut whole = resources(Value::Null, limits.clone());
        whole["spec"]["resources"] = json!({"limits": limits});
        assert!(!is_guaranteed(&whole));
    }
}
