//! Which servers listen where: an address of ours is listened on once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{Directive, Heard, Server, Work};

/// Nothing of ours listens there.
const AT_ONE: &[&str] = &[
    "clients use other addresses",
    "each listener at an address of its own",
    "the same servers at all addresses",
];

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
        self.within_all(&mut addresses);
        addresses
    }

    /// Leaves out what is one of all addresses that something listens on: nginx tells them
    /// apart by the address that a client has come to, and no socket of ours can.
    fn within_all(&mut self, addresses: &mut BTreeMap<SocketAddr, Vec<Heard<'m, 'c>>>) {
        let known: BTreeSet<SocketAddr> = addresses.keys().copied().collect();
        for address in known.iter().filter(|address| is_within(**address, &known)) {
            let here = addresses.remove(address).unwrap_or_default();
            let around = addresses.get(&at_all(*address)).map_or(&[][..], Vec::as_slice);
            let is_same = served(&here) == served(around);
            for (server, listen) in here {
                self.listen(listen);
                let directive = listen.directive.unwrap_or(server.directive);
                if !is_same {
                    self.beside(directive, *address);
                }
            }
        }
        let listens = |server: &Server<'_>| {
            let mut all = server.listens.iter().filter_map(|l| l.addresses.as_ref().ok()).flatten();
            all.any(|address| addresses.contains_key(address) || !known.contains(address))
        };
        for server in self.model.http.servers.iter().filter(|server| !listens(server)) {
            self.dropped(server.directive, "no listener of ours is for this server");
        }
    }

    /// What is asked of a listener at one of all addresses that are listened on.
    pub(super) fn beside(&mut self, directive: &Directive, address: SocketAddr) {
        let question = format!(
            "our proxy listens on all addresses of port {}, and not on this one beside them: until decided who comes to it is served by the servers of all addresses. Which do clients use?",
            address.port()
        );
        self.decision(directive, question, AT_ONE);
    }
}

/// Whether something listens on all addresses, this one among them.
pub(super) fn is_within(address: SocketAddr, known: &BTreeSet<SocketAddr>) -> bool {
    !address.ip().is_unspecified() && known.contains(&at_all(address))
}

pub(super) fn at_all(address: SocketAddr) -> SocketAddr {
    let all: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(all, address.port())
}

/// All that decides who serves a request.
fn served(here: &[Heard<'_, '_>]) -> (Vec<(String, u32, u32)>, usize, bool) {
    let servers = here.iter().map(|(server, _)| {
        let place = &server.directive.place;
        (place.file.to_string(), place.line, place.column)
    });
    let default = here.iter().position(|(_, listen)| listen.is_default).unwrap_or(0);
    (servers.collect(), default, here.iter().any(|(_, listen)| listen.is_tls))
}
