//! How a command fails: what happened, what to do next, and the exit code.

use std::fmt;

use tonic::{Code, Status};

/// Trailer with the stable reason code of a refusal.
pub(crate) const REASON: &str = "isthmus-error";

/// Stable exit codes; scripts depend on them (`meshctl --help` lists them).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The control plane answered: no; or a check did not pass.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// No control plane or agent answers (`EX_UNAVAILABLE`).
    Unreachable = 69,
    /// The socket or a file may not be opened, or the identity of this machine
    /// has no role that may (`EX_NOPERM`).
    NotPermitted = 77,
    /// A configuration is wrong or missing (`EX_CONFIG`).
    Config = 78,
}

/// Why a command did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What the process exits with.
    pub exit: Exit,
    /// What happened, naming the resource.
    pub problem: String,
    /// What to do next; empty if the problem says it.
    pub remedy: String,
}

impl Failure {
    /// A failure with exit code 1.
    pub fn new(problem: impl fmt::Display) -> Self {
        Self { exit: Exit::Failed, problem: problem.to_string(), remedy: String::new() }
    }

    /// The command line is at fault.
    pub fn usage(problem: impl fmt::Display) -> Self {
        Self { exit: Exit::Usage, ..Self::new(problem) }
    }

    /// A configuration is at fault.
    pub fn config(problem: impl fmt::Display) -> Self {
        Self { exit: Exit::Config, ..Self::new(problem) }
    }

    /// The same failure with another exit code.
    pub fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// The same failure with what to do next.
    pub fn remedy(mut self, remedy: impl fmt::Display) -> Self {
        self.remedy = remedy.to_string();
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "\n  next: {}", self.remedy) }
    }
}

impl std::error::Error for Failure {}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Failure>() {
            Ok(failure) => failure,
            Err(error) => Failure::new(format!("{error:#}")),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        let exit = match error.kind() {
            std::io::ErrorKind::PermissionDenied => Exit::NotPermitted,
            _ => Exit::Failed,
        };
        Failure::new(error).exit(exit)
    }
}

/// An answer of federation or of the agent that is not a yes.
impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let message = status.message();
        let message = if message.is_empty() { status.code().description() } else { message };
        // The code that logs and metrics show for the same refusal.
        let reason = status.metadata().get(REASON).and_then(|reason| reason.to_str().ok());
        let (problem, told) = told_remedy(reason, message);
        let problem = match reason {
            Some(reason) => format!("{problem} ({reason})"),
            None => problem.to_owned(),
        };
        let exit = match status.code() {
            Code::Unavailable | Code::DeadlineExceeded => Exit::Unreachable,
            Code::PermissionDenied | Code::Unauthenticated => Exit::NotPermitted,
            _ => Exit::Failed,
        };
        let remedy = match status.code() {
            Code::Unavailable => "is the process still running? `meshctl check` names what is not",
            Code::DeadlineExceeded => "try again; `meshctl check` shows what does not answer",
            Code::Unimplemented => "it runs another version: `meshctl status` shows which",
            _ => told,
        };
        Failure::new(problem).exit(exit).remedy(remedy)
    }
}

/// Who lacks a role is told the line that would give it.
fn told_remedy<'a>(reason: Option<&str>, message: &'a str) -> (&'a str, &'a str) {
    match reason {
        Some("role_missing" | "role_denied" | "namespace_denied") => {
            message.split_once("; ").unwrap_or((message, ""))
        }
        _ => (message, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_keeps_its_meaning_as_exit_code() {
        let cases = [
            (Code::Unavailable, Exit::Unreachable),
            (Code::DeadlineExceeded, Exit::Unreachable),
            (Code::PermissionDenied, Exit::NotPermitted),
            (Code::NotFound, Exit::Failed),
            (Code::InvalidArgument, Exit::Failed),
        ];
        for (code, exit) in cases {
            assert_eq!(Failure::from(Status::new(code, "x")).exit, exit, "{code:?}");
        }
    }

    #[test]
    fn a_refusal_shows_its_reason_code() {
        let mut status = Status::new(Code::FailedPrecondition, "your clock is off");
        status.metadata_mut().insert(REASON, "clock_skew".parse().expect("ASCII"));
        assert_eq!(Failure::from(status).problem, "your clock is off (clock_skew)");
    }

    #[test]
    fn a_missing_role_comes_with_its_remedy() {
        let mut status = Status::permission_denied("x has no role; add a line");
        status.metadata_mut().insert(REASON, "role_missing".parse().expect("ASCII"));
        let failure = Failure::from(status);
        assert_eq!(
            (&*failure.problem, &*failure.remedy),
            ("x has no role (role_missing)", "add a line")
        );
        assert_eq!(failure.exit, Exit::NotPermitted);
    }

    #[test]
    fn a_failure_survives_anyhow() {
        let failure = Failure::config("no site").remedy("meshctl site init");
        assert_eq!(Failure::from(anyhow::Error::from(failure.clone())), failure);
        assert_eq!(failure.to_string(), "no site\n  next: meshctl site init");
    }
}
