//! How a listener takes requests.

use mesh_core::{
    Reason,
    message::{
        RequestHead,
        normal::{self, Form},
    },
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Forwarded;
use crate::refusal::Refusal;

/// Of one listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Manner {
    /// What rules and applications see of paths.
    pub paths: Paths,
    /// Instead of the proxy's own.
    pub forwarded: Option<Forwarded>,
    /// Headers that some applications take for others.
    pub headers_with_underscores: Underscores,
    /// What clients hear of failures.
    pub errors: Errors,
}

/// What answers of this proxy itself say to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Errors {
    /// What has failed, with names and addresses.
    #[default]
    Full,
    /// The status and the code of the reason; for clients that are strangers. The
    /// rest is in the log.
    Brief,
}

/// What becomes of headers with `_` in their names, which applications may take
/// for those with `-` (CGI, RFC 3875 section 4.1.18).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Underscores {
    /// They go on.
    #[default]
    Keep,
    /// Neither rules nor applications see them.
    Drop,
}

impl Manner {
    /// Changes a request to what rules shall see.
    ///
    /// # Errors
    ///
    /// As [`Paths::apply`].
    pub fn apply(self, head: &mut RequestHead) -> Result<(), Refusal> {
        if self.headers_with_underscores == Underscores::Drop {
            let underscored = |name: &str| name.contains('_');
            if head.fields.iter().any(|(name, _)| underscored(name)) {
                head.fields.retain(|name, _| !underscored(name));
            }
        }
        self.paths.apply(head)
    }
}

/// What rules and applications see of the paths that clients send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Paths {
    /// What is undone before a path is compared or changed.
    pub form: PathForm,
    /// `//` is `/`.
    pub merge_slashes: bool,
    /// Applications, and redirects that keep the path, get it as it was sent,
    /// unless a rule changes it; `%{target}` is that, too. Applications that
    /// read a path otherwise than the rules may be led around them.
    pub forward_as_sent: bool,
}

/// The form of a path in which it is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PathForm {
    /// As it is sent.
    #[default]
    Sent,
    /// Escapes of unreserved characters undone, dot segments resolved, `\` as
    /// `/` (RFC 3986 section 6.2.2).
    Rfc3986,
    /// All escapes undone, `%2F` included, and dot segments resolved. What
    /// cannot stand in a path otherwise is encoded again when it is sent on. 400
    /// where that leads above the root, or where an escape is none.
    Decoded,
}

impl Paths {
    /// Changes a request's target to what rules shall see.
    ///
    /// # Errors
    ///
    /// It has no such form.
    pub fn apply(self, head: &mut RequestHead) -> Result<(), Refusal> {
        let form = match self.form {
            PathForm::Sent => Form::Sent,
            PathForm::Rfc3986 => Form::Rfc3986,
            PathForm::Decoded => Form::Decoded,
        };
        if form == Form::Sent && !self.merge_slashes {
            return Ok(());
        }
        let made = normal::target(&head.target, form, self.merge_slashes);
        let made = made.map_err(|bad| Refusal::new(Reason::BadRequest, bad.to_string()))?;
        head.decoded = made.decoded.unwrap_or_default();
        if let Some(target) = made.target {
            let sent = std::mem::replace(&mut head.target, target);
            if self.forward_as_sent {
                head.sent = sent;
            }
        }
        Ok(())
    }
}
