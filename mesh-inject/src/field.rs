//! Where something is in an object, and reading what is there.

use std::fmt;

use serde_json::Value;

use crate::outcome::Refusal;

/// `spec.containers[1].ports[0].containerPort`; what is no plain word stands in
/// brackets and quotes.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Field(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Step {
    Key(String),
    Index(usize),
}

impl Field {
    /// The object itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// Keys, one below the other.
    pub fn of(keys: &[&str]) -> Self {
        Self(keys.iter().map(|key| Step::Key((*key).to_owned())).collect())
    }

    /// A key of what is here.
    pub fn key(&self, key: &str) -> Self {
        self.with(Step::Key(key.to_owned()))
    }

    /// An element of what is here, from 0.
    pub fn index(&self, index: usize) -> Self {
        self.with(Step::Index(index))
    }

    fn with(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// The same place in an object that holds this one at `outer`.
    pub fn within(&self, outer: &Self) -> Self {
        Self(outer.0.iter().chain(&self.0).cloned().collect())
    }

    /// What holds it; `None` of the root.
    pub fn parent(&self) -> Option<Self> {
        let (_, steps) = self.0.split_last()?;
        Some(Self(steps.to_vec()))
    }

    /// An annotation of a pod.
    pub fn annotation(name: &str) -> Self {
        Self::of(&["metadata", "annotations", name])
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_word = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_alphabetic())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        for (place, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if is_word(key) && place == 0 => f.write_str(key)?,
                Step::Key(key) if is_word(key) => write!(f, ".{key}")?,
                Step::Key(key) => write!(f, "[{key:?}]")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// A place and what is there; absent and null are the same, as they are for
/// Kubernetes.
#[derive(Debug, Clone)]
pub(crate) struct At<'a> {
    value: &'a Value,
    pub(crate) field: Field,
}

impl<'a> At<'a> {
    pub(crate) fn root(value: &'a Value) -> Self {
        Self { value, field: Field::root() }
    }

    fn wrong(&self, wanted: &'static str) -> Refusal {
        Refusal::Shape { field: self.field.clone(), wanted }
    }

    pub(crate) fn is_absent(&self) -> bool {
        self.value.is_null()
    }

    pub(crate) fn key(&self, key: &str) -> Result<At<'a>, Refusal> {
        let value = match self.value {
            Value::Null => &Value::Null,
            Value::Object(map) => map.get(key).unwrap_or(&Value::Null),
            _ => return Err(self.wrong("an object")),
        };
        Ok(At { value, field: self.field.key(key) })
    }

    pub(crate) fn path(&self, keys: &[&str]) -> Result<At<'a>, Refusal> {
        keys.iter().try_fold(self.clone(), |at, key| at.key(key))
    }

    /// Elements, all of them objects.
    pub(crate) fn objects(&self) -> Result<Vec<At<'a>>, Refusal> {
        let list = match self.value {
            Value::Null => return Ok(Vec::new()),
            Value::Array(list) => list,
            _ => return Err(self.wrong("a list")),
        };
        let each = list.iter().enumerate();
        let each = each.map(|(index, value)| At { value, field: self.field.index(index) });
        each.map(|at| if at.value.is_object() { Ok(at) } else { Err(at.wrong("an object")) })
            .collect()
    }

    pub(crate) fn text(&self) -> Result<Option<&'a str>, Refusal> {
        match self.value {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text)),
            _ => Err(self.wrong("a string")),
        }
    }

    pub(crate) fn boolean(&self) -> Result<Option<bool>, Refusal> {
        match self.value {
            Value::Null => Ok(None),
            Value::Bool(value) => Ok(Some(*value)),
            _ => Err(self.wrong("true or false")),
        }
    }

    pub(crate) fn integer(&self) -> Result<Option<i64>, Refusal> {
        match self.value {
            Value::Null => Ok(None),
            Value::Number(number) => {
                number.as_i64().map(Some).ok_or_else(|| self.wrong("an integer"))
            }
            _ => Err(self.wrong("an integer")),
        }
    }

    pub(crate) fn require_object(&self) -> Result<(), Refusal> {
        if self.value.is_object() { Ok(()) } else { Err(self.wrong("an object")) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_is_named_as_people_write_it() {
        let port = Field::of(&["spec", "containers"]).index(1).key("ports").index(0);
        assert_eq!(port.to_string(), "spec.containers[1].ports[0]");
        assert_eq!(
            Field::annotation("isthmus.dev/opaque-ports").within(&Field::of(&["spec"])).to_string(),
            "spec.metadata.annotations[\"isthmus.dev/opaque-ports\"]"
        );
        assert_eq!(
            port.parent().map(|field| field.to_string()).as_deref(),
            Some("spec.containers[1].ports")
        );
        assert_eq!(Field::root().parent(), None);
    }

    #[test]
    fn what_has_another_shape_is_named() {
        let object =
            json!({"spec": {"containers": [7], "hostNetwork": "yes", "n": 1.5}, "s": null});
        let spec = At::root(&object).key("spec").unwrap();
        let problems = [
            spec.key("containers").unwrap().objects().unwrap_err(),
            spec.key("hostNetwork").unwrap().boolean().unwrap_err(),
            spec.key("n").unwrap().integer().unwrap_err(),
            spec.path(&["hostNetwork", "x"]).unwrap_err(),
        ];
        assert_eq!(
            problems.map(|problem| problem.to_string()),
            [
                "spec.containers[0]: must be an object",
                "spec.hostNetwork: must be true or false",
                "spec.n: must be an integer",
                "spec.hostNetwork: must be an object",
            ]
        );
        let absent = At::root(&object).path(&["s", "containers"]).unwrap();
        assert!(absent.is_absent() && absent.objects().unwrap().is_empty());
    }
}
