//! What the agent serves on Unix sockets.

pub mod capture;
pub mod identity;
mod jwt;
pub mod migrate;
pub mod operator;
pub mod workload;

use std::{collections::BTreeSet, fmt};

use mesh_tunnel::unix;
use tonic::{Code, Request, Status, metadata::AsciiMetadataValue};

use crate::attest::{Host, RealHost};

/// The metadata key that carries the stable reason of a refusal.
pub const REASON: &str = "isthmus-error";
/// The longest request: a token or a CSR is far below.
const MAX_REQUEST: usize = 64 * 1024;

/// A refusal with a stable reason.
pub fn refuse(code: Code, reason: &'static str, message: impl fmt::Display) -> Status {
    let mut status = Status::new(code, message.to_string());
    status.metadata_mut().insert(REASON, AsciiMetadataValue::from_static(reason));
    status
}

/// Who may use a socket.
#[derive(Debug, Clone, Default)]
pub struct Callers {
    uids: BTreeSet<u32>,
    users: Vec<String>,
}

impl Callers {
    /// Root and the agent's own user.
    pub fn own() -> Self {
        let own = rustix::process::geteuid().as_raw();
        Self { uids: BTreeSet::from([0, own]), users: Vec::new() }
    }

    /// These too; users by name are looked up at every call, because packages
    /// may create them later.
    pub fn and(mut self, uids: &[u32], users: &[String]) -> Self {
        self.uids.extend(uids);
        self.users.extend_from_slice(users);
        self
    }

    /// Refuses everybody else.
    pub fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let peer = unix::peer(request)?;
        let accounts = || RealHost.users();
        if self.uids.contains(&peer.uid) || self.is_named(peer.uid, &accounts()) {
            return Ok(());
        }
        let message = format!("uid {} may not use this socket", peer.uid);
        log::warn!(uid = peer.uid, pid:? = peer.pid; "refused on a socket");
        Err(refuse(Code::PermissionDenied, "uid_denied", message))
    }

    /// `passwd(5)`: `name:password:uid:…`.
    fn is_named(&self, uid: u32, accounts: &str) -> bool {
        accounts.lines().any(|line| {
            let mut fields = line.split(':');
            let name = fields.next().unwrap_or_default();
            let number = fields.nth(1).and_then(|number| number.parse().ok());
            number == Some(uid) && self.users.iter().any(|user| user == name)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_known_by_uid_or_name() {
        let accounts = "root:x:0:0:root:/root:/bin/sh\nisthmus-proxy:x:990:990::/:/bin/false\n\
                        broken\nisthmus-proxy:x:abc\n";
        let callers = Callers::own().and(&[7], &["isthmus-proxy".into()]);
        assert!(callers.uids.contains(&0) && callers.uids.contains(&7));
        for (uid, expected) in [(990, true), (991, false), (0, false)] {
            assert_eq!(callers.is_named(uid, accounts), expected, "{uid}");
        }
    }

    #[test]
    fn a_call_without_credentials_is_refused() {
        let status = Callers::own().check(&Request::new(())).unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
    }
}
