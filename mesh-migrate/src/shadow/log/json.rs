//! Lines that are JSON.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Fields, Why, request_line, status};

// Names in use, as `name` writes them; the ones that say it best first.
const METHODS: [&str; 5] = ["method", "requestmethod", "httpmethod", "httprequestmethod", "verb"];
const TARGETS: [&str; 10] = [
    "requesturi",
    "requesttarget",
    "originalpath",
    "uri",
    "urloriginal",
    "path",
    "requestpath",
    "urlpath",
    "url",
    "requesturl",
];
const QUERIES: [&str; 5] = ["query", "querystring", "args", "urlquery", "requestquery"];
const HOSTS: [&str; 8] = [
    "httphost",
    "authority",
    "requestauthority",
    "requesthost",
    "hostheader",
    "host",
    "vhost",
    "urldomain",
];
const STATUSES: [&str; 8] = [
    "status",
    "statuscode",
    "responsecode",
    "responsestatus",
    "httpstatus",
    "downstreamstatus",
    "httpresponsestatuscode",
    "code",
];
const REQUEST_LINES: [&str; 3] = ["request", "requestline", "httprequest"];
const LINES: [&str; 3] = ["log", "message", "msg"];

/// How deep names are looked for: `http.request.method`.
const MAX_DEPTH: usize = 3;

pub(super) fn parse(text: &str) -> Result<Fields, Why> {
    let Ok(Value::Object(object)) = serde_json::from_str(text) else {
        return Err(Why::Unknown);
    };
    let known = Known::of(&object);
    match known.request() {
        Ok((method, target)) => {
            let status = known.find(&STATUSES).and_then(|text| status(&text));
            Ok(Fields { method, target, host: known.find(&HOSTS), status })
        }
        // Each is shorter than the one around it.
        Err(Why::Unknown) => {
            known.find(&LINES).map_or(Err(Why::Unknown), |line| super::parse(&line))
        }
        Err(why) => Err(why),
    }
}

/// Values by name, those of inner objects by all names that lead there.
#[derive(Default)]
struct Known(BTreeMap<String, String>);

impl Known {
    fn of(object: &Map<String, Value>) -> Self {
        let mut known = Self::default();
        known.add("", object, MAX_DEPTH);
        known
    }

    fn add(&mut self, before: &str, object: &Map<String, Value>, depth: usize) {
        for (key, value) in object {
            let key = format!("{before}{}", name(key));
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                Value::Object(inner) if depth > 1 => {
                    self.add(&key, inner, depth - 1);
                    continue;
                }
                Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => continue,
            };
            if !text.is_empty() && text != "-" {
                self.0.entry(key).or_insert(text);
            }
        }
    }

    fn find(&self, names: &[&str]) -> Option<String> {
        names.iter().find_map(|name| self.0.get(*name)).cloned()
    }

    /// Method and target.
    fn request(&self) -> Result<(String, String), Why> {
        if let (Some(method), Some(target)) = (self.find(&METHODS), self.find(&TARGETS)) {
            let query = self.find(&QUERIES).filter(|_| !target.contains('?'));
            let target = match query {
                Some(query) => format!("{target}?{}", query.trim_start_matches('?')),
                None => target,
            };
            return Ok((method, target));
        }
        let line = self.find(&REQUEST_LINES).ok_or(Why::Unknown)?;
        request_line(&line)
    }
}

/// `Request_Method`, `request-method` and `:requestMethod` are one name.
fn name(key: &str) -> String {
    key.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}
