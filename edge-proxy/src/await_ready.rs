//! `--await-ready`: waits for the proxy beside it, and tells whether it came.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// For one look.
const LOOK: Duration = Duration::from_secs(1);

/// Asks `/ready` of the proxy whose admin listener this is until it says yes.
///
/// # Errors
///
/// It has not within `patience`; what it said last.
pub fn await_ready(admin: SocketAddr, patience: Duration) -> Result<(), String> {
    let ip = match admin.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let at = SocketAddr::new(ip, admin.port());
    // Counted, for nothing here runs in simulated time or on a clock of ours.
    let mut looks = patience.as_millis() / PAUSE.as_millis();
    loop {
        let said = match look(at) {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") => return Ok(()),
            Ok(answer) => answer.lines().last().unwrap_or_default().to_owned(),
            Err(error) => error.to_string(),
        };
        if looks == 0 {
            return Err(format!("the proxy at {at} is not ready after {patience:?}: {said}"));
        }
        looks -= 1;
        std::thread::sleep(PAUSE);
    }
}

fn look(at: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&at, LOOK)?;
    stream.set_read_timeout(Some(LOOK))?;
    stream.write_all(b"GET /ready HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers one look after the other.
    fn proxy(answers: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 512];
                let _ = stream.read(&mut request);
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        at
    }

    #[test]
    fn it_waits_until_the_proxy_is_ready() {
        let at = proxy(&[
            "HTTP/1.1 503 Service Unavailable\r\n\r\nno identity",
            "HTTP/1.1 200 OK\r\n\r\n",
        ]);
        await_ready(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), at.port()), LOOK * 10).unwrap();
        let at = proxy(&["HTTP/1.1 503 Service Unavailable\r\n\r\nno identity"]);
        let error = await_ready(at, Duration::ZERO).unwrap_err();
        assert!(error.contains("no identity"), "{error}");
    }
}
