//! An API server for tests: objects by path, resource versions, nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use kube::client::Body;
use serde_json::{Value, json};

/// Runs a test in time that passes when nobody works.
pub(crate) fn paused<T>(test: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().unwrap();
    runtime.block_on(test)
}

#[derive(Debug, Clone, Default)]
pub(crate) struct FakeApi {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    /// Writes that hold one of these texts are answered with 500.
    refused: BTreeSet<String>,
    writes: Vec<String>,
}

impl FakeApi {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(path).cloned()
    }

    pub(crate) fn put(&self, path: &str, object: Value) {
        self.state.lock().unwrap().store(path, object);
    }

    pub(crate) fn delete(&self, path: &str) {
        self.state.lock().unwrap().objects.remove(path);
    }

    /// Answers writes that hold this text with an error.
    pub(crate) fn refuse(&self, text: &str) {
        self.state.lock().unwrap().refused.insert(format!("\"{text}\""));
    }

    /// Method and path of all writes that were done.
    pub(crate) fn writes(&self) -> Vec<String> {
        self.state.lock().unwrap().writes.clone()
    }
}

impl State {
    fn store(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    fn answer(&mut self, method: &Method, path: &str, body: &[u8]) -> (u16, Value) {
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = String::from_utf8_lossy(body);
        if *method != Method::GET && self.refused.iter().any(|part| text.contains(part)) {
            return refusal(500, "InternalError");
        }
        let answer = match *method {
            Method::GET => self
                .objects
                .get(path)
                .map_or_else(|| refusal(404, "NotFound"), |it| (200, it.clone())),
            Method::POST => {
                let name = sent["metadata"]["name"].as_str().unwrap_or_default();
                let path = format!("{path}/{name}");
                if self.objects.contains_key(&path) {
                    return refusal(409, "AlreadyExists");
                }
                (201, self.store(&path, sent))
            }
            Method::PUT => match self.objects.get(path) {
                None => refusal(404, "NotFound"),
                Some(there)
                    if there["metadata"]["resourceVersion"]
                        != sent["metadata"]["resourceVersion"] =>
                {
                    refusal(409, "Conflict")
                }
                Some(_) => (200, self.store(path, sent)),
            },
            Method::PATCH => match self.objects.get(path).cloned() {
                None => refusal(404, "NotFound"),
                Some(mut there) => {
                    merge(&mut there, &sent);
                    (200, self.store(path, there))
                }
            },
            _ => refusal(405, "MethodNotAllowed"),
        };
        if *method != Method::GET && answer.0 < 300 {
            self.writes.push(format!("{method} {path}"));
        }
        answer
    }
}

fn refusal(code: u16, reason: &str) -> (u16, Value) {
    (
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code}),
    )
}

/// As a strategic merge patch does it for lists whose elements have names.
fn merge(there: &mut Value, patch: &Value) {
    match (there, patch) {
        (Value::Object(there), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(there.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(there), Value::Array(patch)) => {
            for element in patch {
                match there.iter_mut().find(|at| at["name"] == element["name"]) {
                    Some(at) => merge(at, element),
                    None => there.push(element.clone()),
                }
            }
        }
        (there, patch) => *there = patch.clone(),
    }
}

impl tower_service::Service<Request<Body>> for FakeApi {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let state = self.state.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let (code, answer) = state.lock().unwrap().answer(&head.method, head.uri.path(), &body);
            let mut response = Response::new(Full::new(Bytes::from(answer.to_string())));
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
            Ok(response)
        })
    }
}
