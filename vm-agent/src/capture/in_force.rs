//! Rules as they are written, as they are meant, and as the kernel has them.

use std::{path::Path, time::Duration};

use mesh_runtime::config::ConfigError;

use super::{
    cgroups::Cgroups,
    file::{self, Plan, Resolved},
    keeper::Status,
    rules::Term,
};
use crate::attest::{Host, RealHost};

/// Rules that are in force, or are about to be.
#[derive(Debug, Clone)]
pub struct InForce {
    /// As written.
    pub text: String,
    /// What it means.
    pub plan: Plan,
    /// `passwd(5)`, of when they were put in.
    accounts: String,
    /// With users and units looked up.
    pub resolved: Resolved,
    /// Whether the kernel has them.
    pub loaded: bool,
}

impl InForce {
    /// Reads what was written in `path`.
    ///
    /// # Errors
    ///
    /// It makes no sense, or names a user who does not exist.
    pub fn read(text: String, path: &Path) -> Result<Self, ConfigError> {
        let plan = file::parse(&text, &path.display().to_string())?;
        let accounts = RealHost.users();
        let resolved = plan.resolve(&accounts, &cgroups())?;
        Ok(Self { text, plan, accounts, resolved, loaded: false })
    }

    /// Whether units have started, or started again.
    pub fn look_again(&mut self) -> bool {
        if !self.plan.names_units() {
            return false;
        }
        match self.plan.resolve(&self.accounts, &cgroups()) {
            Ok(resolved) if resolved != self.resolved => {
                self.resolved = resolved;
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// For people.
    pub fn status(&self, state: &'static str, left: Duration, term: Term) -> Status {
        Status {
            state,
            left,
            captured: self.plan.captured(),
            never: self.plan.never(),
            waits_for: self.resolved.waits_for.clone(),
            rules: self.resolved.rules.text(term, true),
            ..Status::default()
        }
    }
}

fn cgroups() -> Cgroups {
    Cgroups::of_this_machine().unwrap_or_else(Cgroups::none)
}
