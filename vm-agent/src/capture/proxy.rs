//! Whether the proxy can take what is captured.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use mesh_tunnel::Net;

use super::rules::Rules;
use crate::services::probe;

/// A proxy that is well answers at once.
const PATIENCE: Duration = Duration::from_secs(1);
/// `TCP_LISTEN` of `include/net/tcp_states.h`.
const LISTEN: &str = "0A";

/// Asks `/ready`.
///
/// # Errors
///
/// Why it is not, for people.
pub async fn is_ready(net: &dyn Net, admin: SocketAddr) -> Result<(), String> {
    let asked = tokio::time::timeout(PATIENCE, probe::http(net, admin, "/ready")).await;
    asked.unwrap_or_else(|_| Err(format!("http://{admin}/ready: no answer within {PATIENCE:?}")))
}

/// Whether a user of the mesh, and nobody else, listens where captured
/// connections go, in every family that the machine has.
///
/// # Errors
///
/// What is wrong and how to mend it.
pub fn listens(rules: &Rules) -> Result<(), String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let has_ipv6 = !read("/proc/net/if_inet6").trim().is_empty();
    check_tables(rules, &read("/proc/net/tcp"), &read("/proc/net/tcp6"), has_ipv6)
}

fn check_tables(rules: &Rules, tcp: &str, tcp6: &str, has_ipv6: bool) -> Result<(), String> {
    let port = rules.proxy_port;
    let any6 = hex(&Ipv6Addr::UNSPECIFIED.octets());
    let v4 = [hex(&Ipv4Addr::LOCALHOST.octets()), hex(&Ipv4Addr::UNSPECIFIED.octets())];
    let v6 = [hex(&Ipv6Addr::LOCALHOST.octets()), any6.clone()];
    let users_v4 = users(tcp, &v4, port).chain(users(tcp6, &[any6], port)).collect::<Vec<_>>();
    let users_v6: Vec<u32> = users(tcp6, &v6, port).collect();
    let families = [("127.0.0.1", users_v4, true), ("[::1]", users_v6, has_ipv6)];
    for (address, users, wanted) in families {
        if wanted && users.is_empty() {
            return Err(format!(
                "nobody listens at {address}:{port}; set transparent: 127.0.0.1:{port} in \
                 proxy.yaml and reload isthmus-proxy"
            ));
        }
        if let Some(user) = users.iter().find(|user| !rules.own.contains(user)) {
            return Err(format!(
                "uid {user} listens at {address}:{port}, which is not the proxy's user; name it \
                 as proxy.user in capture.yaml, or its own connections would be captured"
            ));
        }
    }
    Ok(())
}

/// As `/proc/net/tcp` writes addresses: words of the machine's own order.
fn hex(octets: &[u8]) -> String {
    let words = octets.as_chunks::<4>().0.iter();
    words.map(|word| format!("{:08X}", u32::from_ne_bytes(*word))).collect()
}

/// Whose sockets listen there: `sl local_address rem_address st … uid`.
fn users<'a>(table: &'a str, addresses: &'a [String], port: u16) -> impl Iterator<Item = u32> + 'a {
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (address, at) = fields.next()?.split_once(':')?;
        let state = fields.nth(1)?;
        let user = fields.nth(3)?.parse().ok()?;
        let is_there = state == LISTEN
            && u16::from_str_radix(at, 16) == Ok(port)
            && addresses.iter().any(|known| known == address);
        is_there.then_some(user)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn socket(address: &str, port: u16, state: &str, uid: u32) -> String {
        format!(
            "   0: {address}:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {uid:5}        0 3 1\n"
        )
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn only_the_proxy_may_listen_there() {
        const LOCAL6: &str = "00000000000000000000000001000000";
        let rules = Rules { proxy_port: 4141, own: BTreeSet::from([990]), ..Rules::default() };
        let v4 = |uid| HEAD.to_owned() + &socket("0100007F", 4141, "0A", uid);
        let v6 = |uid| HEAD.to_owned() + &socket(LOCAL6, 4141, "0A", uid);
        let any = HEAD.to_owned() + &socket(&"0".repeat(32), 4141, "0A", 990);
        let connected = HEAD.to_owned() + &socket("0100007F", 4141, "01", 990);
        let elsewhere = HEAD.to_owned() + &socket("0100007F", 4140, "0A", 990);
        let cases = [
            (v4(990), v6(990), true, ""),
            (v4(990), String::new(), false, ""),
            (String::new(), any, true, ""),
            (v4(990), HEAD.to_owned(), true, "nobody listens at [::1]:4141"),
            (v4(1000), v6(990), true, "uid 1000 listens at 127.0.0.1:4141"),
            (v4(990), v6(1000), true, "uid 1000 listens at [::1]:4141"),
            (connected, v6(990), true, "nobody listens at 127.0.0.1:4141"),
            (elsewhere, v6(990), true, "nobody listens at 127.0.0.1:4141"),
            ("nonsense\n: :\n".to_owned(), String::new(), false, "nobody listens"),
        ];
        for (tcp, tcp6, has_ipv6, wanted) in cases {
            let said = check_tables(&rules, &tcp, &tcp6, has_ipv6).err().unwrap_or_default();
            assert!(said.starts_with(wanted) && said.is_empty() == wanted.is_empty(), "{said}");
        }
    }
}
