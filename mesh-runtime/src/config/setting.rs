//! What was set beside a configuration file: `key=value` of a flag or of the
//! environment, for any key that the file could hold.
//!
//! A key is what errors call it: `identity.files.key`, `listeners[0].listen`.
//! In brackets may also stand a key with dots (`bundles[west.example]`), or
//! what an element of a list is called (`services[orders.shop]`): its `name`,
//! `id`, `site`, `service` or `port`.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_yaml_ng::{Mapping, Value};

use super::{ConfigError, parse};

/// The longest `key=value`, in bytes.
const MAX_SETTING: usize = 64 * 1024;
/// Deepest key.
const MAX_STEPS: usize = 16;
/// What an element of a list is called by, the first that any has.
const CALLED_BY: [&str; 5] = ["name", "id", "site", "service", "port"];

/// One key of a configuration file with another value.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    steps: Vec<Step>,
    value: Value,
    /// Who says so: `--set`, `ISTHMUS_PROXY_SET`.
    from: String,
}

/// One step towards a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `.name`: a key of a mapping.
    Key(String),
    /// `[name]`: a key, or an element of a list by number or by what it is
    /// called.
    Element(String),
}

impl Step {
    fn text(&self) -> &str {
        match self {
            Self::Key(text) | Self::Element(text) => text,
        }
    }

    fn index(&self) -> Option<usize> {
        match self {
            Self::Element(text) => text.parse().ok(),
            Self::Key(_) => None,
        }
    }
}

impl Setting {
    /// Reads `key=value`; the value is YAML. `from` is who says so, for errors.
    ///
    /// # Errors
    ///
    /// It is no `key=value`.
    pub fn parse(text: &str, from: &str) -> Result<Self, ConfigError> {
        let shown: String = text.chars().take(60).collect();
        let wrong = |problem: &str| ConfigError::meaning(from, shown.clone(), problem);
        if text.len() > MAX_SETTING {
            return Err(wrong("is too long"));
        }
        let hint = "write <key>=<value>, e.g. workers=2 or listeners[0].listen=127.0.0.1:80";
        let (key, value) = text.split_once('=').ok_or_else(|| wrong(hint))?;
        let steps = steps(key.trim()).ok_or_else(|| wrong(hint))?;
        Ok(Self::yaml(steps, value, from))
    }

    /// The value is YAML.
    pub fn yaml(steps: Vec<Step>, value: &str, from: &str) -> Self {
        Self { steps, value: yaml(value), from: from.to_owned() }
    }

    /// The value is taken as it is, whatever YAML would make of it.
    pub fn text(steps: Vec<Step>, value: &str, from: &str) -> Self {
        Self { steps, value: Value::String(value.to_owned()), from: from.to_owned() }
    }

    fn key(&self) -> String {
        Shown(&self.steps).to_string()
    }

    fn apply(&self, tree: &mut Value) -> Result<(), String> {
        let mut at = tree;
        for (index, step) in self.steps.iter().enumerate() {
            let place = || Shown(&self.steps[..index]).to_string();
            at = descend(at, step).map_err(|problem| match index {
                0 => problem,
                _ => format!("{}: {problem}", place()),
            })?;
        }
        *at = self.value.clone();
        Ok(())
    }
}

/// A key as errors show it: numbers in brackets, all else after dots.
struct Shown<'a>(&'a [Step]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, step) in self.0.iter().enumerate() {
            match step.index() {
                Some(index) => write!(f, "[{index}]")?,
                None if place == 0 => f.write_str(step.text())?,
                None => write!(f, ".{}", step.text())?,
            }
        }
        Ok(())
    }
}

fn steps(key: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    let mut rest = key;
    while !rest.is_empty() {
        let step;
        (step, rest) = match rest.strip_prefix('[') {
            Some(inside) => {
                let (text, after) = inside.split_once(']')?;
                (Step::Element(text.to_owned()), after)
            }
            None => {
                let rest = if steps.is_empty() { rest } else { rest.strip_prefix('.')? };
                let end = rest.find(['.', '[']).unwrap_or(rest.len());
                (Step::Key(rest[..end].to_owned()), &rest[end..])
            }
        };
        if step.text().is_empty() || steps.len() == MAX_STEPS {
            return None;
        }
        steps.push(step);
    }
    (!steps.is_empty()).then_some(steps)
}

/// `[::1]:80` looks like YAML of some kind, and is an address.
fn yaml(text: &str) -> Value {
    match serde_yaml_ng::from_str(text) {
        Ok(Value::Mapping(map)) if map.keys().any(|key| !key.is_string()) => text.into(),
        Ok(value) => value,
        Err(_) => text.into(),
    }
}

/// What `step` leads to; made where a mapping or the end of a list lacks it.
fn descend<'a>(at: &'a mut Value, step: &Step) -> Result<&'a mut Value, String> {
    if at.is_null() {
        *at = match step.index() {
            Some(_) => Value::Sequence(Vec::new()),
            None => Value::Mapping(Mapping::new()),
        };
    }
    match at {
        Value::Mapping(map) => {
            Ok(map.entry(Value::String(step.text().to_owned())).or_insert(Value::Null))
        }
        Value::Sequence(list) => {
            let index = match step.index() {
                Some(index) => index,
                None => called(list, step.text())?,
            };
            if index == list.len() {
                list.push(Value::Null);
            }
            let length = list.len();
            list.get_mut(index).ok_or_else(|| format!("[{index}]: there are only {length}"))
        }
        _ => Err(format!("holds a value and nothing called {:?}", step.text())),
    }
}

/// The element of a list that is called `name`.
fn called(list: &[Value], name: &str) -> Result<usize, String> {
    let is = |element: &Value, key: &str| element.get(key).and_then(Value::as_str) == Some(name);
    for key in CALLED_BY {
        let mut found = (0..list.len()).filter(|index| is(&list[*index], key));
        match (found.next(), found.next()) {
            (None, _) => {}
            (Some(index), None) => return Ok(index),
            (Some(one), Some(other)) => {
                return Err(format!(
                    "{name:?} is the {key} of [{one}] and of [{other}]; write the number"
                ));
            }
        }
    }
    Err(format!("no element is called {name:?}; write its number in brackets"))
}

/// Parses a text as [`parse`] does, with `settings` in the place of what it
/// says; later ones win.
///
/// # Errors
///
/// As [`parse`]; what is wrong with a setting names who said it.
pub fn parse_set<T: DeserializeOwned>(
    text: &str,
    file: &str,
    settings: &[Setting],
) -> Result<T, ConfigError> {
    if settings.is_empty() {
        return parse(text, file);
    }
    let mut tree: Value = parse(text, file)?;
    for setting in settings {
        let wrong = |problem| ConfigError::meaning(&setting.from, setting.key(), problem);
        setting.apply(&mut tree).map_err(wrong)?;
    }
    let merged = serde_yaml_ng::to_string(&tree)
        .map_err(|error| ConfigError::meaning(file, "what was set", error))?;
    match parse(&merged, file) {
        Err(ConfigError::Text { problem, .. }) => {
            Err(at_fault::<T>(text, file, settings, &problem))
        }
        other => other,
    }
}

/// Lines of what was merged are nobody's: the error names what was set, or the
/// line of the file.
fn at_fault<T: DeserializeOwned>(
    text: &str,
    file: &str,
    settings: &[Setting],
    problem: &str,
) -> ConfigError {
    let unknown = |setting: &&Setting| {
        let named = |step: &Step| problem.contains(&format!("unknown field `{}`", step.text()));
        problem.starts_with(&setting.key()) || setting.steps.iter().any(named)
    };
    if let Some(setting) = settings.iter().rev().find(unknown) {
        let key = setting.key();
        let problem = problem.strip_prefix(&format!("{key}: ")).unwrap_or(problem);
        return ConfigError::meaning(&setting.from, key, problem);
    }
    match parse::<T>(text, file) {
        Err(error) => error,
        Ok(_) => ConfigError::meaning(file, "with what was set", problem),
    }
}

/// What a check after parsing found wrong, said of who set it.
pub fn blame(error: ConfigError, settings: &[Setting]) -> ConfigError {
    let ConfigError::Meaning { file, key, problem } = error else { return error };
    let said = |setting: &&Setting| {
        let its = setting.key();
        key.strip_prefix(&its).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    let from = settings.iter().rev().find(said).map(|setting| setting.from.clone());
    ConfigError::Meaning { file: from.unwrap_or(file), key, problem }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;
    use crate::config::HumanDuration;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Sample {
        workers: u32,
        listen: String,
        timeout: HumanDuration,
        bundles: BTreeMap<String, String>,
        services: Vec<Service>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Service {
        name: String,
        endpoints: Vec<Endpoint>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Endpoint {
        port: String,
        target: String,
    }

    const FILE: &str = "
workers: 1
listen: off
services:
  - { name: orders.shop, endpoints: [{ port: http, target: a }, { port: grpc, target: b }] }
  - { name: many.shop, endpoints: [{ port: http }, { port: http }] }
";

    fn read(text: &str, set: &[&str]) -> Result<Sample, String> {
        let settings = set.iter().map(|text| Setting::parse(text, "--set"));
        let settings: Result<Vec<_>, _> = settings.collect();
        let read = settings.and_then(|settings| parse_set(text, "a.yaml", &settings));
        read.map_err(|error| error.to_string())
    }

    #[test]
    fn every_key_can_be_set() {
        let read = read(
            FILE,
            &[
                "workers=7",
                "workers=2",
                "listen=[::1]:80",
                "timeout=1m30s",
                "bundles[west.example]=root.pem",
                "services[orders.shop].endpoints[grpc].target=c",
                "services[1].endpoints[1].target=d",
                "services[2]={ name: new.shop, endpoints: [] }",
            ],
        );
        let read = read.unwrap();
        assert_eq!((read.workers, &*read.listen), (2, "[::1]:80"));
        assert_eq!(read.timeout.to_string(), "1m30s");
        assert_eq!(read.bundles["west.example"], "root.pem");
        let targets = |service: &Service| {
            service.endpoints.iter().map(|one| one.target.clone()).collect::<Vec<_>>()
        };
        assert_eq!(targets(&read.services[0]), ["a", "c"]);
        assert_eq!(targets(&read.services[1]), ["", "d"]);
        assert_eq!(read.services[2].name, "new.shop");
    }

    #[test]
    fn nothing_set_is_the_file_and_an_empty_file_can_be_set() {
        assert_eq!(read(FILE, &[]).unwrap().workers, 1);
        let read = read("# nothing\n", &["services[0].name=a.b", "workers=1"]).unwrap();
        assert_eq!((read.workers, &*read.services[0].name), (1, "a.b"));
    }

    #[test]
    fn mistakes_name_who_said_it() {
        let cases = [
            ("workers", "--set: workers: write <key>=<value>"),
            ("=1", "--set: =1: write <key>=<value>"),
            ("a..b=1", "write <key>=<value>"),
            ("a[b=1", "write <key>=<value>"),
            ("workers=many", "--set: workers: invalid type"),
            ("timeout=5", "write a number and a unit"),
            ("timeout=5x", "--set: timeout: duration \"5x\""),
            ("workrs=2", "--set: workrs: unknown field"),
            ("workrs=2", "did you mean `workers`?"),
            ("services[0].endpoint[0].port=2", "did you mean `endpoints`?"),
            ("services[orders].name=a", "--set: services.orders.name: services: no element"),
            ("services[many.shop].endpoints[http].target=x", "the port of [0] and of [1]"),
            ("services[9].name=a", "[9]: there are only 2"),
            ("workers.a=1", "workers: holds a value"),
        ];
        for (set, wanted) in cases {
            let error = read(FILE, &[set]).unwrap_err();
            assert!(error.contains(wanted), "{set}: {error}");
            assert!(error.starts_with("--set: "), "{set}: {error}");
            assert!(error.matches("did you mean").count() < 2, "{set}: {error}");
        }
        let error = read("\nworkrs: 1\n", &["listen=a"]).unwrap_err();
        assert!(error.starts_with("a.yaml:2:1: "), "{error}");
    }

    #[test]
    fn a_check_blames_who_set_the_key() {
        let set = [Setting::parse("a.b[0]=1", "--set").unwrap()];
        let blamed = |key: &str| blame(ConfigError::meaning("a.yaml", key, "bad"), &set);
        assert_eq!(blamed("a.b[0].c").to_string(), "--set: a.b[0].c: bad");
        assert_eq!(blamed("a.b[0]").to_string(), "--set: a.b[0]: bad");
        assert_eq!(blamed("a.b").to_string(), "a.yaml: a.b: bad");
        assert_eq!(blamed("a.b[01]").to_string(), "a.yaml: a.b[01]: bad");
    }

    proptest::proptest! {
        #[test]
        fn no_setting_panics(key in "[a-z.\\[\\]0-9]{0,24}", value in "\\PC{0,40}") {
            let _ = read(FILE, &[&format!("{key}={value}")]);
        }
    }
}
