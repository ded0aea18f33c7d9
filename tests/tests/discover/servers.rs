//! Registries that answer what they are told to.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex},
};

/// HTTP with an answer for each path; 404 for others.
pub(crate) struct Http {
    pub port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Http {
    pub(crate) fn serve(answers: Vec<(&'static str, String)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heads = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).expect("a request");
                    head.extend(byte);
                }
                let head = String::from_utf8(head).expect("text");
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                heads.lock().expect("nobody panics").push(head);
                let found = answers.iter().find(|(known, _)| *known == path);
                let (status, body) =
                    found.map_or(("404 Not Found", ""), |(_, body)| ("200 OK", body));
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all((head + body).as_bytes()).expect("is taken");
            }
        });
        Self { port, asked }
    }

    /// Heads of all requests.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("nobody panics").clone()
    }
}

/// Where nobody listens.
pub(crate) fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

type Target = (&'static str, u16, Option<[u8; 4]>);

/// DNS with records SRV, and addresses of some targets beside them.
pub(crate) fn dns(records: &'static [(&'static str, &'static [Target])]) -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = socket.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut question) {
            let question = &question[..length];
            let end = 12 + question[12..].iter().position(|byte| *byte == 0).expect("an end") + 1;
            let answer = answer(&question[..end + 4], records);
            socket.send_to(&answer, client).expect("is sent");
        }
    });
    port
}

fn answer(question: &[u8], records: &[(&str, &[Target])]) -> Vec<u8> {
    let asked = &question[12..question.len() - 4];
    let found = records.iter().find(|(name, _)| dns_name(name) == asked);
    let targets = found.map_or(&[][..], |(_, targets)| targets);
    let addresses: Vec<_> =
        targets.iter().filter_map(|(name, _, at)| Some((name, (*at)?))).collect();
    let count = |n: usize| u16::try_from(n).expect("few").to_be_bytes();
    let mut out = question[..2].to_vec();
    out.extend([0x81, if found.is_some() { 0x80 } else { 0x83 }, 0, 1]);
    out.extend(count(targets.len()));
    out.extend([0, 0]);
    out.extend(count(addresses.len()));
    out.extend(&question[12..]);
    for (name, port, _) in targets {
        let target = dns_name(name);
        out.extend([0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 60]);
        out.extend(count(6 + target.len()));
        out.extend([0, 1, 0, 1]);
        out.extend(port.to_be_bytes());
        out.extend(target);
    }
    for (name, address) in addresses {
        out.extend(dns_name(name));
        out.extend([0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        out.extend(address);
    }
    out
}

fn dns_name(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.') {
        out.push(u8::try_from(label.len()).expect("short"));
        out.extend(label.bytes());
    }
    out.push(0);
    out
}

/// `ZooKeeper` with nodes that hold something; who holds `closed` may not be read.
pub(crate) fn zookeeper(nodes: &[(&str, &str)]) -> u16 {
    let nodes: BTreeMap<String, String> =
        nodes.iter().map(|(path, data)| ((*path).to_owned(), (*data).to_owned())).collect();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // Ends with the client.
            let _ = session(stream.expect("a connection"), &nodes);
        }
    });
    port
}

fn session(mut stream: TcpStream, nodes: &BTreeMap<String, String>) -> std::io::Result<()> {
    let hello = frame(&mut stream)?;
    assert_eq!(hello.len(), 45, "protocol, zxid, timeout, session, password, read-only");
    let mut welcome = vec![0; 4];
    welcome.extend(10_000_i32.to_be_bytes());
    welcome.extend(77_i64.to_be_bytes());
    put(&mut welcome, &[7; 16]);
    welcome.push(0);
    send(&mut stream, &welcome)?;
    loop {
        let request = frame(&mut stream)?;
        let (xid, what) =
            (&request[..4], i32::from_be_bytes(request[4..8].try_into().expect("four")));
        if what == -11 {
            return Ok(());
        }
        // What nobody has asked for comes in between.
        let ping = [&(-2_i32).to_be_bytes()[..], &[0; 12]].concat();
        send(&mut stream, &ping)?;
        let length = usize::try_from(u32::from_be_bytes(request[8..12].try_into().expect("four")));
        let path =
            String::from_utf8(request[12..12 + length.expect("short")].to_vec()).expect("text");
        let prefix = if path == "/" { path.clone() } else { format!("{path}/") };
        let below: BTreeSet<&str> = nodes
            .keys()
            .filter_map(|known| known.strip_prefix(&prefix)?.split('/').next())
            .collect();
        let is_there = !below.is_empty() || nodes.contains_key(&path);
        let mut answer = xid.to_vec();
        answer.extend(9_i64.to_be_bytes());
        let is_closed = what == 4 && nodes.get(&path).is_some_and(|data| data == "closed");
        let code = if is_closed {
            -102_i32
        } else if is_there {
            0
        } else {
            -101
        };
        answer.extend(code.to_be_bytes());
        match what {
            8 if is_there => {
                answer.extend(u32::try_from(below.len()).expect("few").to_be_bytes());
                // In no order.
                below.iter().rev().for_each(|child| put(&mut answer, child.as_bytes()));
            }
            4 if is_there && !is_closed => {
                put(&mut answer, nodes.get(&path).map_or(&[][..], |data| data.as_bytes()));
                answer.extend([0; 68]);
            }
            _ => {}
        }
        send(&mut stream, &answer)?;
    }
}

fn frame(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length)).expect("short")];
    stream.read_exact(&mut frame)?;
    Ok(frame)
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u32::try_from(bytes.len()).expect("short").to_be_bytes());
    out.extend(bytes);
}

fn send(stream: &mut TcpStream, record: &[u8]) -> std::io::Result<()> {
    let mut framed = Vec::new();
    put(&mut framed, record);
    stream.write_all(&framed)
}
