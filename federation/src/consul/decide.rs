//! What an import does to a site. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::SocketAddr,
    sync::Arc,
};

use mesh_api::v1::{self, Health, Locality, Port, Register, authority_record::Event};
use mesh_consul::{
    Config,
    import::{self, Host, Import, Instance},
};
use mesh_core::{NodeId, ServiceName, address::Forbidden};
use sha2::{Digest, Sha256};

use crate::{
    authority::{State, state::Registration},
    registration::{
        MAX_INSTANCES, OwnPorts, RegisterError, check_dialled, decide_deregister, decide_register,
    },
};

/// What instances of all Consuls begin with. The rest is hexadecimal.
const PREFIX: &str = "consul-";
/// Digits that tell Consuls apart.
const CONSUL_DIGITS: usize = 8;
/// Digits that tell instances of a Consul apart.
const INSTANCE_DIGITS: usize = 24;
/// The only port of a service of Consul; its protocol is detected.
const PORT_NAME: &str = "main";

/// Where what one Consul has is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bridge {
    /// Of the agent, for people.
    pub(super) address: String,
    /// The node whose proxy leads there.
    pub(super) door: NodeId,
    /// What the names of its instances begin with.
    prefix: String,
}

/// What to write, and what to say.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Decided {
    pub(super) events: Vec<Event>,
    /// What cannot be registered, and why.
    pub(super) refused: BTreeMap<String, String>,
    /// Of what is registered then.
    pub(super) health: Vec<(String, Health)>,
}

impl Bridge {
    /// None for a Consul of which nothing is imported.
    pub(super) fn of(config: &Config) -> Option<Self> {
        let door = config.door.clone().filter(|_| !config.import.is_empty())?;
        let address = config.connection.address.clone();
        let prefix = format!("{PREFIX}{}-", digits(&address, CONSUL_DIGITS));
        Some(Self { address, door, prefix })
    }

    /// The same for as long as Consul calls it the same.
    fn instance(&self, service: &ServiceName, instance: &Instance) -> String {
        let text = format!("{service} {}", instance.id);
        format!("{}{}", self.prefix, digits(&text, INSTANCE_DIGITS))
    }

    fn has(&self, known: &Registration) -> bool {
        known.node == self.door && known.register.instance.starts_with(&self.prefix)
    }
}

/// The events that make the door's imports these. What is no longer imported goes
/// only once everything has been heard of.
pub(super) fn decide(
    state: &State,
    bridge: &Bridge,
    import: &Import,
    own_ports: &OwnPorts,
) -> Decided {
    let mut decided = Decided::default();
    let wanted = wanted(state, bridge, import, own_ports, &mut decided.refused);
    let known = registered(state, bridge);
    let other: BTreeSet<Arc<str>> = known
        .filter(|known| match wanted.get(&known.register.instance) {
            Some((register, _)) => known.register != *register,
            None => import.complete,
        })
        .map(|known| Arc::from(known.register.instance.as_str()))
        .collect();
    // Those that change stand in no other's way: a service moves to another port.
    let mut rest = state.clone();
    if !other.is_empty() {
        let registrations = Arc::make_mut(&mut rest.registrations);
        registrations.retain(|(node, name), _| *node != bridge.door || !other.contains(name));
    }
    for name in other.iter().filter(|name| !wanted.contains_key(&***name)) {
        decided.events.extend(decide_deregister(state, &bridge.door, name, "gone from consul"));
    }
    let mut count = rest.registrations_of(&bridge.door).count();
    for (name, (register, health)) in wanted {
        let is_new = !rest.registrations.contains_key(&(bridge.door.clone(), name.as_str().into()));
        let registered = match is_new && count >= MAX_INSTANCES {
            true => Err(RegisterError::Quota),
            false => own_ports
                .check(&register)
                .and_then(|()| decide_register(&rest, &bridge.door, &register)),
        };
        count += usize::from(is_new && registered.is_ok());
        match registered {
            Ok(events) => {
                decided.events.extend(events);
                decided.health.push((name, health));
            }
            Err(error) => {
                let gone = decide_deregister(state, &bridge.door, &name, "refused");
                decided.events.extend(gone);
                decided.refused.insert(register.service.clone(), error.to_string());
            }
        }
    }
    decided
}

/// What there should be, by instance; what there cannot be goes into `refused`.
fn wanted(
    state: &State,
    bridge: &Bridge,
    import: &Import,
    own_ports: &OwnPorts,
    refused: &mut BTreeMap<String, String>,
) -> BTreeMap<String, (Register, Health)> {
    let place = Place::of(state, bridge);
    let mut wanted = BTreeMap::new();
    let instances = import.services.iter().flat_map(|(service, imported)| {
        imported.instances.iter().map(move |instance| (service, imported.port, instance))
    });
    for (service, port, instance) in instances {
        let Host::Ip(ip) = instance.address else {
            let why = format!("{} is a name; register an IP address", instance.address);
            refused.insert(instance.id.clone(), why);
            continue;
        };
        let target = SocketAddr::new(ip, instance.port.get());
        if let Err(why) = check_target(state, own_ports, &place, target) {
            refused.insert(instance.id.clone(), why);
            continue;
        }
        let name = bridge.instance(service, instance);
        let port = Port { name: PORT_NAME.into(), number: port.get().into(), ..Port::default() };
        let register = Register {
            instance: name.clone(),
            service: service.to_string(),
            ports: vec![port],
            target_ports: vec![target.port().into()],
            target_address: ip.to_string(),
            address: place.address.clone(),
            locality: place.locality.clone(),
            weight: instance.weight,
            ..Register::default()
        };
        wanted.insert(name, (register, health(instance.health)));
    }
    wanted
}

/// Whoever writes into Consul must not turn the door into one to its own host, to
/// the mesh, or to what a cloud answers only its own machines (ADR 12).
fn check_target(
    state: &State,
    own_ports: &OwnPorts,
    place: &Place,
    target: SocketAddr,
) -> Result<(), String> {
    let forbidden = |problem| format!("{target} is not dialled: {problem}");
    check_dialled(state, target).map_err(forbidden)?;
    let as_address = Register { address: target.to_string(), ..Register::default() };
    let is_ours = own_ports.check(&as_address).is_err() || place.address == as_address.address;
    if is_ours { Err(forbidden(Forbidden::Own)) } else { Ok(()) }
}

/// What is registered of one Consul.
pub(super) fn registered<'a>(
    state: &'a State,
    bridge: &'a Bridge,
) -> impl Iterator<Item = &'a Arc<Registration>> {
    state.registrations_of(&bridge.door).filter(|known| bridge.has(known))
}

/// The events that end what Consuls have brought of which nothing is imported any
/// more, or by another door.
pub(super) fn left_behind(state: &State, bridges: &[Bridge]) -> Vec<Event> {
    let is_left = |known: &&Arc<Registration>| {
        is_of_a_consul(&known.register.instance) && !bridges.iter().any(|bridge| bridge.has(known))
    };
    state
        .registrations
        .values()
        .filter(is_left)
        .flat_map(|known| {
            decide_deregister(state, &known.node, &known.register.instance, "no longer imported")
        })
        .collect()
}

/// Nobody calls an instance so by hand.
fn is_of_a_consul(instance: &str) -> bool {
    let hex = |text: &str, digits| {
        text.len() == digits
            && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    instance.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).is_some_and(
        |(consul, instance)| hex(consul, CONSUL_DIGITS) && hex(instance, INSTANCE_DIGITS),
    )
}

/// Where the door is, as it says itself of what runs on it.
struct Place {
    /// Empty: through the tunnel that it has opened.
    address: String,
    locality: Option<Locality>,
}

impl Place {
    fn of(state: &State, bridge: &Bridge) -> Self {
        let mut own = state.registrations_of(&bridge.door);
        let own = own.find(|known| !is_of_a_consul(&known.register.instance));
        Self {
            address: own.map(|known| known.register.address.clone()).unwrap_or_default(),
            locality: own.and_then(|known| known.register.locality.clone()),
        }
    }
}

/// Consul's own DNS names what has a warning.
fn health(health: import::Health) -> v1::Health {
    match health {
        import::Health::Passing | import::Health::Warning => Health::Healthy,
        import::Health::Critical => Health::Unhealthy,
        import::Health::Maintenance => Health::Draining,
    }
}

fn digits(text: &str, count: usize) -> String {
    let mut digits = String::new();
    for byte in Sha256::digest(text) {
        // Writing to a string cannot fail.
        let _ = write!(digits, "{byte:02x}");
    }
    digits.truncate(count);
    digits
}
