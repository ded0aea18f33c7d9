//! One AdmissionReview (`admission.k8s.io/v1`) and its answer, on JSON as it
//! comes: fields of a Kubernetes that is newer than this program are kept.

use base64::{Engine, engine::general_purpose::STANDARD};
use mesh_inject::{Outcome, Settings};
use serde_json::{Value, json};

/// What an API server asks.
#[derive(Debug, PartialEq)]
pub(super) struct Review {
    uid: Value,
    /// Of the pod; it does not have it itself yet.
    pub(super) namespace: String,
    /// `None` for what is no pod that is created.
    pod: Option<Value>,
}

/// What is answered, and how that is counted.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    pub(super) review: Value,
    pub(super) outcome: &'static str,
    /// Why it was skipped or refused.
    pub(super) reason: &'static str,
    /// For the log.
    pub(super) told: Option<String>,
}

/// What is no AdmissionReview.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidReview {
    #[error("no JSON: {0}")]
    Json(String),
    #[error("no AdmissionReview of admission.k8s.io/v1 with a request and its uid")]
    Shape,
}

/// API servers cut what is longer, in bytes.
const MAX_WARNING: usize = 256;

impl Review {
    pub(super) fn read(body: &[u8]) -> Result<Self, InvalidReview> {
        let mut review: Value =
            serde_json::from_slice(body).map_err(|error| InvalidReview::Json(error.to_string()))?;
        let is_review =
            review["kind"] == "AdmissionReview" && review["apiVersion"] == "admission.k8s.io/v1";
        let request = review.get_mut("request").filter(|request| request["uid"].is_string());
        let Some(request) = request.filter(|_| is_review) else {
            return Err(InvalidReview::Shape);
        };
        let is_pod = request["resource"]["group"].as_str().unwrap_or_default().is_empty()
            && request["resource"]["resource"] == "pods"
            && request["subResource"].as_str().unwrap_or_default().is_empty()
            && request["operation"] == "CREATE";
        Ok(Self {
            uid: request["uid"].take(),
            namespace: request["namespace"].as_str().unwrap_or_default().to_owned(),
            pod: is_pod.then(|| request["object"].take()).filter(Value::is_object),
        })
    }

    /// Allows it, changed or not, or says which field is wrong.
    pub(super) fn answer(self, settings: &Settings) -> Answer {
        let Some(before) = self.pod else {
            return answered(json!({"uid": self.uid, "allowed": true}), "ignored", "", None);
        };
        let mut after = before.clone();
        let outcome = mesh_inject::inject(&mut after, settings);
        let mut response = json!({"uid": self.uid, "allowed": true});
        if after != before {
            let patch = json_patch::diff(&before, &after);
            let patch = serde_json::to_vec(&patch).expect("a patch is plain data");
            response["patch"] = STANDARD.encode(patch).into();
            response["patchType"] = "JSONPatch".into();
        }
        match outcome {
            Outcome::Injected { changed, warnings } => {
                let warnings = warnings.iter().map(|warning| shortened(&warning.to_string()));
                put_warnings(&mut response, warnings.collect());
                let outcome = if changed { "injected" } else { "unchanged" };
                answered(response, outcome, "", None)
            }
            Outcome::Skipped(skip) => {
                let told = skip.is_worth_telling().then(|| format!("no proxy: {skip}"));
                put_warnings(&mut response, told.iter().map(|told| shortened(told)).collect());
                answered(response, "skipped", skip.code(), told)
            }
            Outcome::Refused(refusal) => {
                let message = refusal.to_string();
                response["allowed"] = false.into();
                response["status"] = json!({
                    "status": "Failure",
                    "code": 422,
                    "reason": "Invalid",
                    "message": message,
                });
                answered(response, "refused", refusal.code(), Some(message))
            }
        }
    }
}

fn put_warnings(response: &mut Value, warnings: Vec<String>) {
    if !warnings.is_empty() {
        response["warnings"] = warnings.into();
    }
}

fn shortened(text: &str) -> String {
    let text = format!("isthmus: {text}");
    let mut end = text.len().min(MAX_WARNING);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

fn answered(
    response: Value,
    outcome: &'static str,
    reason: &'static str,
    told: Option<String>,
) -> Answer {
    let kind = ("AdmissionReview", "admission.k8s.io/v1");
    let review = json!({"kind": kind.0, "apiVersion": kind.1, "response": response});
    Answer { review, outcome, reason, told }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings() -> Settings {
        Settings::new("east.example".parse().unwrap())
    }

    fn body(pod: &Value) -> Vec<u8> {
        json!({
            "kind": "AdmissionReview",
            "apiVersion": "admission.k8s.io/v1",
            "request": {
                "uid": "u-1",
                "operation": "CREATE",
                "namespace": "shop",
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "object": pod,
            },
        })
        .to_string()
        .into_bytes()
    }

    fn answer(pod: &Value) -> Answer {
        Review::read(&body(pod)).unwrap().answer(&settings())
    }

    /// As an API server does it.
    fn patched(pod: &Value, answer: &Answer) -> Value {
        let mut pod = pod.clone();
        if let Some(patch) = answer.review["response"]["patch"].as_str() {
            let patch: json_patch::Patch =
                serde_json::from_slice(&STANDARD.decode(patch).unwrap()).unwrap();
            json_patch::patch(&mut pod, &patch).unwrap();
        }
        pod
    }

    fn pod() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"generateName": "web-", "ofTomorrow": {"a": 1}},
            "spec": {"containers": [{"name": "web", "ofTomorrow": [1.50, null]}], "alsoOfTomorrow": {}},
        })
    }

    #[test]
    fn a_pod_is_patched_and_nothing_of_it_is_lost() {
        let answer = answer(&pod());
        let response = &answer.review["response"];
        assert_eq!((&response["uid"], &response["allowed"]), (&json!("u-1"), &json!(true)));
        assert_eq!(response["patchType"], "JSONPatch");
        assert_eq!((answer.outcome, answer.reason), ("injected", ""));
        let mut expected = pod();
        mesh_inject::inject(&mut expected, &settings());
        let after = patched(&pod(), &answer);
        assert_eq!(after, expected);
        assert_eq!(after["spec"]["containers"][0]["ofTomorrow"], json!([1.50, null]));
        // Asked again, there is nothing to do.
        let again = super::tests::answer(&after);
        assert_eq!(again.outcome, "unchanged");
        assert!(again.review["response"].get("patch").is_none());
    }

    #[test]
    fn who_is_skipped_hears_why() {
        let mut pod = pod();
        pod["spec"]["hostNetwork"] = true.into();
        let answer = answer(&pod);
        let response = &answer.review["response"];
        assert_eq!((&response["allowed"], answer.reason), (&json!(true), "host_network"));
        let warning = response["warnings"][0].as_str().unwrap();
        assert!(warning.starts_with("isthmus: no proxy: spec.hostNetwork is true"), "{warning}");
        let after = patched(&pod, &answer);
        assert!(after["metadata"]["annotations"]["isthmus.dev/skip-reason"].is_string());
        pod["metadata"]["labels"] = json!({"isthmus.dev/inject": "disabled"});
        assert!(super::tests::answer(&pod).review["response"].get("warnings").is_none());
    }

    #[test]
    fn who_is_refused_hears_which_field() {
        let mut pod = pod();
        pod["metadata"]["annotations"] = json!({"isthmus.dev/opaque-ports": "mysql"});
        let answer = answer(&pod);
        let response = &answer.review["response"];
        assert_eq!(response["allowed"], false);
        assert!(response.get("patch").is_none());
        let message = response["status"]["message"].as_str().unwrap();
        assert!(
            message.starts_with("metadata.annotations[\"isthmus.dev/opaque-ports\"]: "),
            "{message}"
        );
        assert_eq!((answer.outcome, answer.reason), ("refused", "value"));
    }

    #[test]
    fn what_is_no_new_pod_passes() {
        let changes: [(&str, Value); 4] = [
            ("operation", json!("UPDATE")),
            ("resource", json!({"group": "apps", "version": "v1", "resource": "deployments"})),
            ("subResource", json!("ephemeralcontainers")),
            ("object", Value::Null),
        ];
        for (key, value) in changes {
            let mut review: Value = serde_json::from_slice(&body(&pod())).unwrap();
            review["request"][key] = value;
            let answer = Review::read(review.to_string().as_bytes()).unwrap().answer(&settings());
            assert_eq!(answer.outcome, "ignored", "{key}");
            assert_eq!(answer.review["response"], json!({"uid": "u-1", "allowed": true}));
        }
        for body in [
            "",
            "{}",
            "[]",
            "{\"kind\":\"AdmissionReview\",\"apiVersion\":\"admission.k8s.io/v1\"}",
        ] {
            assert!(Review::read(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn warnings_are_as_short_as_they_must_be() {
        assert_eq!(shortened(&"é".repeat(300)).len(), 255);
        assert_eq!(shortened("a"), "isthmus: a");
    }

    fn odd() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC{0,8}".prop_map(Value::from),
        ];
        let name = prop::sample::select(vec![
            "metadata",
            "annotations",
            "spec",
            "containers",
            "initContainers",
            "volumes",
            "name",
            "env",
            "x",
        ]);
        leaf.prop_recursive(5, 40, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(name.clone(), inner, 0..5).prop_map(|map| {
                    Value::Object(
                        map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
                    )
                }),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn no_body_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(review) = Review::read(&bytes) {
                review.answer(&settings());
            }
        }

        #[test]
        fn every_pod_is_answered_and_patches_say_what_they_mean(pod in odd(), spec in odd(), metadata in odd()) {
            let mut pod = pod;
            if pod.is_object() {
                pod["spec"] = spec;
                pod["metadata"] = metadata;
            }
            let answer = answer(&pod);
            prop_assert_eq!(&answer.review["response"]["uid"], "u-1");
            let mut expected = pod.clone();
            if pod.is_object() {
                mesh_inject::inject(&mut expected, &settings());
                prop_assert_eq!(patched(&pod, &answer), expected);
            }
        }
    }
}
