//! Which servers listen where: an address of ours is listened on once.

use std::{collections::BTreeMap, net::SocketAddr};

use super::{Heard, Work};

impl<'m, 'c> Work<'m, 'c> {
    /// Addresses of `http`, and who listens on them.
    pub(super) fn addresses(&mut self) -> BTreeMap<SocketAddr, Vec<Heard<'m, 'c>>> {
        let model = self.model;
        let mut addresses: BTreeMap<SocketAddr, Vec<Heard<'m, 'c>>> = BTreeMap::new();
        for server in &model.http.servers {
            for listen in &server.listens {
                match (&listen.addresses, listen.directive) {
                    (Ok(all), _) => {
                        for address in all {
                            addresses.entry(*address).or_default().push((server, listen));
                        }
                    }
                    (Err(what), Some(directive)) => self.decision(
                        directive,
                        format!("{what} is no address: nothing listens there with us. Which address do clients use then?"),
                        &["an address and a port", "none: nobody uses it"],
                    ),
                    (Err(_), None) => {}
                }
            }
        }
        addresses
    }
}
