//! `io.l5d.dnssrv`: records SRV (RFC 2782) of the names that are known to be asked for;
//! DNS lists none.

use std::{collections::BTreeSet, io, str::FromStr};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{self, RData, RecordType},
};
use mesh_migrate::{
    linkerd1::{
        config::Namer,
        name::{Name, raw},
        reach::Reach,
    },
    request::Endpoint,
    yaml::Node,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket, lookup_host},
    time::timeout,
};

use super::{
    Names,
    ask::{PATIENCE, Wrong, place},
};

/// Names that are asked for, at most.
const MAX_NAMES: usize = 1000;
/// Servers that are asked one after another, at most, as in resolv.conf(5).
const MAX_SERVERS: usize = 3;
const PORT: u16 = 53;
/// Of one message, in bytes.
const LONGEST: usize = 65_535;

pub(super) async fn read(namer: &Namer, reach: &Reach, names: &mut Names) -> Result<(), Wrong> {
    let ends = reach.below(&namer.prefix);
    let wanted: BTreeSet<Name> =
        ends.iter().map(|name| name.split(1).0).filter(|name| !name.is_empty()).collect();
    if ends.iter().any(Name::is_empty) {
        names.lose("which names of DNS it asks for is up to requests: only those of --name and --live were looked up");
    }
    let servers = servers(&namer.node)?;
    let mut was_answered = false;
    for name in wanted.into_iter().take(MAX_NAMES) {
        let asked = raw(&name.labels()[0]);
        match endpoints(&asked, &servers).await {
            Ok(endpoints) => {
                was_answered = true;
                names.add(namer.prefix.join(&name), endpoints);
            }
            // Whoever has not answered once is not waited for again and again.
            Err(wrong) if !was_answered => return Err(wrong),
            Err(wrong) => {
                names.add_unknown(namer.prefix.join(&name));
                names.lose(wrong);
            }
        }
    }
    Ok(())
}

/// `<host>` or `<host>:<port>`, as the namer has them, or the system.
fn servers(node: &Node) -> Result<Vec<String>, Wrong> {
    let all: Vec<String> = match node.at("dnsHosts") {
        Some(list) => {
            let list = list.list().map_err(Wrong::new)?;
            list.iter().map(Node::text).collect::<Result<_, _>>().map_err(Wrong::new)?
        }
        None => {
            let text = std::fs::read_to_string("/etc/resolv.conf")
                .map_err(|error| Wrong::new(format!("/etc/resolv.conf: {error}")))?;
            let server = |line: &str| Some(line.strip_prefix("nameserver")?.trim().to_owned());
            text.lines().filter_map(server).collect()
        }
    };
    let with_port = |server: String| match server.parse::<std::net::IpAddr>() {
        Ok(address) => std::net::SocketAddr::new(address, PORT).to_string(),
        Err(_) if server.contains(':') => server,
        Err(_) => format!("{server}:{PORT}"),
    };
    if all.is_empty() {
        return Err(Wrong::new("there is no server of DNS: name one in `dnsHosts`"));
    }
    Ok(all.into_iter().take(MAX_SERVERS).map(with_port).collect())
}

/// Of the first server that answers.
async fn endpoints(name: &str, servers: &[String]) -> Result<Vec<(Endpoint, f64)>, Wrong> {
    let mut last = Wrong::new("nobody was asked");
    for server in servers {
        let answer = match timeout(PATIENCE, ask(name, server)).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        match answer.and_then(|answer| endpoints_of(&answer)) {
            Ok(endpoints) => return Ok(endpoints),
            Err(why) => last = Wrong::new(format!("SRV {name} at {server}: {why}")),
        }
    }
    Err(last)
}

async fn ask(name: &str, server: &str) -> io::Result<Message> {
    let name = rr::Name::from_str(&format!("{}.", name.trim_end_matches('.')));
    let mut question = Message::query();
    question.add_query(Query::query(name.map_err(io::Error::other)?, RecordType::SRV));
    let bytes = question.to_vec().map_err(io::Error::other)?;
    let nobody = || io::Error::other("it has no address");
    let server = lookup_host(server).await?.next().ok_or_else(nobody)?;
    let here = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(here).await?;
    socket.connect(server).await?;
    socket.send(&bytes).await?;
    let mut answer = vec![0; LONGEST];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    let said = Message::from_vec(&answer).map_err(io::Error::other)?;
    let said = if said.metadata.truncation {
        let mut stream = TcpStream::connect(server).await?;
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        stream.write_u16(length).await?;
        stream.write_all(&bytes).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        Message::from_vec(&answer).map_err(io::Error::other)?
    } else {
        said
    };
    let is_ours = said.metadata.id == question.metadata.id;
    if is_ours { Ok(said) } else { Err(io::Error::other("it answers another question")) }
}

/// Targets, with the addresses that came along. Priorities and weights count for nothing
/// in Linkerd.
fn endpoints_of(answer: &Message) -> Result<Vec<(Endpoint, f64)>, String> {
    match answer.metadata.response_code {
        ResponseCode::NoError => {}
        ResponseCode::NXDomain => return Ok(Vec::new()),
        other => return Err(format!("answers {other}")),
    }
    let address = |target: &rr::Name| {
        answer.additionals.iter().find_map(|record| match &record.data {
            RData::A(address) if record.name == *target => Some(address.0.to_string()),
            _ => None,
        })
    };
    let targets = answer.answers.iter().filter_map(|record| match &record.data {
        RData::SRV(srv) => Some(srv),
        _ => None,
    });
    Ok(targets
        .filter_map(|srv| {
            let host = address(&srv.target).unwrap_or_else(|| srv.target.to_utf8());
            Some((place(&host, u64::from(srv.port))?, 1.0))
        })
        .collect())
}
