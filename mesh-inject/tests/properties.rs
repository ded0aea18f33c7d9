//! Whatever comes, injection neither panics nor forgets what was there.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

use mesh_inject::{Native, Outcome, Settings, inject, inject_document, own, text, uninject};
use proptest::prelude::*;
use serde_json::{Value, json};

fn settings(native: bool) -> Settings {
    let mut settings = Settings::new("east.example".parse().unwrap());
    settings.native = if native { Native::Always } else { Native::Never };
    settings
}

/// Values that an API server would never send, under names that matter.
fn odd() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec![
        "metadata",
        "annotations",
        "labels",
        "spec",
        "containers",
        "initContainers",
        "volumes",
        "name",
        "ports",
        "containerPort",
        "securityContext",
        "runAsUser",
        "hostNetwork",
        "restartPolicy",
        "resources",
        "limits",
        "livenessProbe",
        "httpGet",
        "port",
        "path",
        "os",
        "nodeSelector",
        "terminationGracePeriodSeconds",
        own::INJECT,
        own::INJECTED,
        own::DIGEST,
        own::ADDED,
        own::PROXY,
        "apiVersion",
        "kind",
        "items",
        "template",
        "jobTemplate",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        name.clone().prop_map(Value::from),
        prop::sample::select(vec![
            "v1",
            "apps/v1",
            "Pod",
            "List",
            "Deployment",
            "CronJob",
            "enabled"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((name.clone(), inner), 0..6).prop_map(|pairs| Value::Object(
                pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
            )),
        ]
    })
}

/// Pods that could be.
fn pod() -> impl Strategy<Value = Value> {
    let container = ("[a-z]{1,8}", 0u16..5000, any::<bool>(), prop::option::of(0i64..3000))
        .prop_map(|(name, port, probe, user)| {
            let mut container =
                json!({"name": name, "image": "x:1", "ports": [{"containerPort": port}]});
            if probe {
                container["livenessProbe"] = json!({"tcpSocket": {"port": port}});
            }
            if let Some(user) = user {
                container["securityContext"] = json!({"runAsUser": user});
            }
            container
        });
    let containers = prop::collection::vec(container, 1..4);
    (containers.clone(), prop::option::of(containers), any::<bool>(), any::<bool>(), odd()).prop_map(
        |(containers, init, host_network, never, unknown)| {
            let mut pod = json!({
                "metadata": {"name": "web"},
                "spec": {"containers": containers, "hostNetwork": host_network, "fieldOfTomorrow": unknown},
            });
            if let Some(init) = init {
                pod["spec"]["initContainers"] = init.into();
            }
            if never {
                pod["spec"]["restartPolicy"] = "Never".into();
            }
            pod
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn nothing_panics(value in odd(), native: bool) {
        let settings = settings(native);
        let mut pod = value.clone();
        if let Outcome::Refused(refusal) = inject(&mut pod, &settings) {
            prop_assert_eq!(&pod, &value, "{}", refusal);
        }
        uninject(&mut pod);
        let mut document = value.clone();
        if inject_document(&mut document, &settings).is_err() {
            prop_assert_eq!(&document, &value);
        }
        let _ = text::inject(&value.to_string(), "x", &settings);
        let _ = text::uninject(&value.to_string(), "x");
    }

    #[test]
    fn injection_is_idempotent_and_can_be_taken_back(before in pod(), native: bool) {
        let settings = settings(native);
        let mut once = before.clone();
        if let Outcome::Refused(_) = inject(&mut once, &settings) {
            return Ok(());
        }
        let mut twice = once.clone();
        inject(&mut twice, &settings);
        prop_assert_eq!(once.to_string(), twice.to_string());
        uninject(&mut twice);
        prop_assert_eq!(twice, before);
    }

    /// Admission runs again when another webhook has changed the pod.
    #[test]
    fn what_others_add_stays(before in pod(), native: bool) {
        let settings = settings(native);
        let mut once = before.clone();
        if !matches!(inject(&mut once, &settings), Outcome::Injected { .. }) {
            return Ok(());
        }
        let list = if native { "initContainers" } else { "containers" };
        let proxy = once["spec"][list].as_array_mut().unwrap().iter_mut();
        let proxy = proxy.into_iter().find(|container| container["name"] == own::PROXY).unwrap();
        proxy["resources"]["limits"] = json!({"cpu": "1"});
        proxy["terminationMessagePath"] = "/dev/termination-log".into();
        once["spec"]["initContainers"].as_array_mut().unwrap().insert(0, json!({"name": "theirs"}));
        let mut again = once.clone();
        inject(&mut again, &settings);
        let names = |pod: &Value, list: &str| -> Vec<String> {
            pod["spec"][list].as_array().into_iter().flatten()
                .map(|container| container["name"].as_str().unwrap().to_owned()).collect()
        };
        if native {
            prop_assert_eq!(&names(&again, "initContainers")[..3], ["isthmus-redirect", "isthmus-proxy", "theirs"]);
        } else {
            prop_assert_eq!(&names(&again, "initContainers")[0], "theirs");
        }
        let proxy = again["spec"][list].as_array().unwrap().iter().find(|c| c["name"] == own::PROXY).unwrap();
        prop_assert_eq!(&proxy["resources"]["limits"]["cpu"], "1");
        prop_assert_eq!(&proxy["terminationMessagePath"], "/dev/termination-log");
    }
}

/// What somebody asked for once and asks for no longer goes.
#[test]
fn a_wish_that_is_withdrawn_goes() {
    let mut pod = json!({
        "metadata": {"annotations": {"isthmus.dev/proxy-cpu-limit": "2"}},
        "spec": {"containers": [{"name": "web"}]},
    });
    let bare = json!({"spec": {"containers": [{"name": "web"}]}});
    inject(&mut pod, &settings(true));
    pod["metadata"]["annotations"].as_object_mut().unwrap().remove("isthmus.dev/proxy-cpu-limit");
    inject(&mut pod, &settings(true));
    let mut expected = bare;
    inject(&mut expected, &settings(true));
    assert_eq!(pod, expected);
}
