//! The parts that a pod gets: containers, volumes, annotations.

use serde_json::{Map, Value, json};

use crate::{
    annotation::Wishes,
    decide::is_guaranteed,
    own::{self, ADMIN_PORT, INBOUND_PORT, OUTBOUND_PORT, PLAINTEXT_PORT, PROXY_UID},
    probes,
    quantity::Quantity,
    settings::{Resources, Settings},
};

/// How often the kubelet may ask in vain before it starts the proxy anew, once a
/// second.
const START_ATTEMPTS: u32 = 120;
/// How long a container of the older kind holds up those behind it.
const AWAIT: &str = "120s";
/// Of the proxy's own drain; the kubelet ends it this much later.
const GRACE_MARGIN_S: i64 = 5;
/// What the proxy drains for by default.
const DRAIN_S: i64 = 20;

/// What a pod gets.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) native: bool,
    pub(crate) redirect: Option<Value>,
    pub(crate) proxy: Value,
    pub(crate) volumes: Vec<Value>,
    /// For `kubectl`, where the proxy is the first of the containers.
    pub(crate) default_container: Option<String>,
    /// Of all that.
    pub(crate) digest: String,
}

impl Parts {
    /// For a pod that has none of them.
    pub(crate) fn of(pod: &Value, wishes: &Wishes, settings: &Settings) -> Self {
        let redirect = wishes.redirect.then(|| redirect(wishes, settings));
        let proxy = proxy(pod, wishes, settings);
        let volumes = volumes();
        let default_container = if wishes.native { None } else { default_container(pod) };
        let all = json!([redirect, proxy, volumes, default_container, settings.version]);
        let digest = digest(&all.to_string());
        Self { native: wishes.native, redirect, proxy, volumes, default_container, digest }
    }
}

/// FNV-1a: it tells what is ours from what others have made of it, and keeps
/// nobody from anything.
fn digest(text: &str) -> String {
    let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

/// Unless somebody has said which.
fn default_container(pod: &Value) -> Option<String> {
    let annotations = pod.pointer("/metadata/annotations");
    let said = annotations.is_some_and(|all| !all[own::DEFAULT_CONTAINER].is_null());
    let first = pod.pointer("/spec/containers/0/name").and_then(Value::as_str);
    first.filter(|_| !said).map(str::to_owned)
}

fn redirect(wishes: &Wishes, settings: &Settings) -> Value {
    let blocks: Vec<String> = wishes.skip_outbound_cidrs.iter().map(ToString::to_string).collect();
    let options = [
        ("skip-outbound-ports", wishes.skip_outbound_ports.to_string()),
        ("skip-outbound-cidrs", blocks.join(",")),
        ("skip-inbound-ports", wishes.skip_inbound_ports.to_string()),
    ];
    let written = options.into_iter().filter(|(_, value)| !value.is_empty());
    let args: Vec<String> = std::iter::once("redirect".to_owned())
        .chain(written.map(|(name, value)| format!("--{name}={value}")))
        .collect();
    // It runs for a moment; requests that equal limits leave a pod Guaranteed.
    let resources = json!({"cpu": "100m", "memory": "20Mi"});
    json!({
        "name": own::REDIRECT,
        "image": settings.redirect_image,
        "imagePullPolicy": settings.image_pull_policy.as_str(),
        "args": args,
        "resources": {"requests": resources, "limits": resources},
        // A capability that is added reaches root alone.
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

fn proxy(pod: &Value, wishes: &Wishes, settings: &Settings) -> Value {
    let asks = |path: &str, every: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": ADMIN_PORT},
            "periodSeconds": every,
            "failureThreshold": failures,
        })
    };
    let mut proxy = json!({
        "name": own::PROXY,
        "image": wishes.image,
        "imagePullPolicy": settings.image_pull_policy.as_str(),
        "env": [
            {"name": "ISTHMUS_LOG", "value": wishes.log_level.as_str()},
            {"name": "ISTHMUS_PROXY_SET", "value": set(pod, wishes, settings)},
        ],
        "ports": [
            {"name": "isthmus-mesh", "containerPort": INBOUND_PORT, "protocol": "TCP"},
            {"name": "isthmus-admin", "containerPort": ADMIN_PORT, "protocol": "TCP"},
        ],
        "resources": resources(pod, &wishes.resources),
        "livenessProbe": asks("/live", 10, 3),
        "readinessProbe": asks("/ready", 2, 3),
        "securityContext": {
            "runAsUser": PROXY_UID,
            "runAsGroup": PROXY_UID,
            "runAsNonRoot": true,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": own::TOKEN_VOLUME, "mountPath": own::TOKEN_DIR, "readOnly": true},
            {"name": own::TRUST_VOLUME, "mountPath": own::TRUST_DIR, "readOnly": true},
            {"name": own::STATE_VOLUME, "mountPath": own::STATE_DIR},
        ],
    });
    if wishes.native {
        // What comes next starts when this has succeeded.
        proxy["startupProbe"] = asks("/ready", 1, START_ATTEMPTS);
        proxy["restartPolicy"] = json!("Always");
    } else {
        // The kubelet starts one container after the other, and waits for this.
        let command = json!({"exec": {"command": ["edge-proxy", "--await-ready", AWAIT]}});
        proxy["lifecycle"] = json!({"postStart": command});
    }
    proxy
}

/// The proxy's configuration: `key=value` separated by `;`.
fn set(pod: &Value, wishes: &Wishes, settings: &Settings) -> String {
    let mut set = vec![
        "role=sidecar".to_owned(),
        format!("identity.attest.token={}/token", own::TOKEN_DIR),
        format!("identity.attest.roots={}/{}", own::TRUST_DIR, own::TRUST_FILE),
        format!("identity.attest.trust_domain=\"{}\"", settings.trust_domain),
        format!("identity.attest.federation=\"{}\"", settings.federation),
        format!("inbound=[::]:{INBOUND_PORT}"),
        format!("admin=[::]:{ADMIN_PORT}"),
    ];
    if wishes.redirect {
        set.push(format!("transparent=127.0.0.1:{OUTBOUND_PORT}"));
        set.push(format!("inbound_transparent=[::]:{PLAINTEXT_PORT}"));
        let probes = probes::probes(pod);
        if !probes.is_empty() {
            set.push(format!("inbound_probes={}", probes::as_setting(&probes)));
        }
    }
    set.extend(drain(pod).map(|seconds| format!("drain_timeout={seconds}s")));
    set.join("; ")
}

/// Shorter than usual where the kubelet gives less time.
fn drain(pod: &Value) -> Option<i64> {
    let grace = pod.pointer("/spec/terminationGracePeriodSeconds")?.as_i64()?;
    let left = grace.saturating_sub(GRACE_MARGIN_S).max(1);
    (left < DRAIN_S).then_some(left)
}

fn resources(pod: &Value, wished: &Resources) -> Value {
    let Resources { cpu_request, cpu_limit, memory_request, memory_limit } = wished;
    let (mut cpu, mut memory) = (cpu_request, memory_request);
    if cpu_limit.is_some() && memory_limit.is_some() && is_guaranteed(pod) {
        (cpu, memory) = (cpu_limit, memory_limit);
    }
    let both = |cpu: &Option<Quantity>, memory: &Option<Quantity>| {
        let each = [("cpu", cpu), ("memory", memory)].into_iter();
        let each =
            each.filter_map(|(name, of)| Some((name.to_owned(), of.as_ref()?.as_str().into())));
        each.collect::<Map<String, Value>>()
    };
    let kinds = [("requests", both(cpu, memory)), ("limits", both(cpu_limit, memory_limit))];
    let written = kinds.into_iter().filter(|(_, of)| !of.is_empty());
    written.map(|(name, of)| (name.to_owned(), Value::Object(of))).collect::<Map<_, _>>().into()
}

fn volumes() -> Vec<Value> {
    let token = json!({
        "audience": own::AUDIENCE,
        "expirationSeconds": own::TOKEN_SECONDS,
        "path": "token",
    });
    vec![
        json!({
            "name": own::TOKEN_VOLUME,
            "projected": {"defaultMode": 0o644, "sources": [{"serviceAccountToken": token}]},
        }),
        json!({
            "name": own::TRUST_VOLUME,
            "configMap": {"name": own::TRUST_CONFIG_MAP, "defaultMode": 0o644},
        }),
        // Keys are on no disk.
        json!({"name": own::STATE_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}),
    ]
}
