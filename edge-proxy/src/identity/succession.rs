//! When a certificate is replaced before it is due, and which one a new one
//! replaces: federation counts those that are in use.

use mesh_runtime::clock;
use rand::Rng;

use super::{Due, Source, described::Described, kept::Kept, pause};

impl Source {
    /// Until the next look, or until the root of our certificate leaves: then it
    /// is due soon, and not that of every proxy at once.
    pub(super) async fn rest(&mut self, due: Due) {
        let look = self.issuer.look();
        tokio::select! {
            () = tokio::time::sleep(pause(due, look)) => {}
            within = self.shared.credentials.retires(), if !self.hurries => {
                self.hurries = true;
                let share = rand::rng().random_range(0.0..1.0);
                let renew = clock::now_unix() + within.mul_f64(share);
                log::info!(within:? = within; "the root of the certificate leaves: renewing");
                if let Some(current) = &mut self.current {
                    current.due.renew = current.due.renew.min(renew);
                    tokio::time::sleep(pause(current.due, look)).await;
                }
            }
        }
    }

    /// Serial of the certificate that the next one replaces; empty for none.
    pub(super) fn replaces(&self, described: &Described) -> String {
        if self.shares {
            return String::new();
        }
        let kept = || self.kept.as_ref().filter(|kept| kept.described.is_same_as(described));
        let used = self.shared.credentials.svid().map(|svid| svid.serial());
        used.or_else(|| kept().map(Kept::serial)).unwrap_or_default()
    }
}
