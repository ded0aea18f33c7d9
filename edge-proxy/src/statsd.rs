//! Figures of requests for statsd, over UDP, from a thread of their own.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, UdpSocket},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    time::Duration,
};

use mesh_core::{PortName, ServiceName};
use mesh_runtime::clock;
use prometheus_client::metrics::counter::Counter;

use crate::{access_log::Entry, metrics::Direction};

/// Requests that wait for the thread: a tenth of a second of a busy proxy.
const QUEUE: usize = 4096;
/// What is counted is told once a second.
const INTERVAL: Duration = Duration::from_secs(1);
/// Latencies of one name that are told in one interval; more are told by the
/// rate at which these were taken.
const MAX_SAMPLES: usize = 32;
/// Names that are counted in one interval.
const MAX_NAMES: usize = 4096;
/// Fits in a packet of Ethernet.
const MAX_PACKET: usize = 1400;

/// Takes figures; cheap to clone.
#[derive(Debug, Clone)]
pub struct Statsd {
    queue: SyncSender<Ended>,
    dropped: Counter,
}

/// A request, or an opaque connection, that has ended.
#[derive(Debug)]
struct Ended {
    direction: Direction,
    service: Option<ServiceName>,
    port: Option<PortName>,
    success: bool,
    latency: Option<Duration>,
    received: u64,
    sent: u64,
}

impl Statsd {
    /// Starts the thread. It ends when the last clone is dropped.
    ///
    /// # Errors
    ///
    /// There is no socket, or no thread.
    pub fn open(to: SocketAddr, dropped: Counter) -> io::Result<Self> {
        let own: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(own)?;
        socket.connect(to)?;
        socket.set_nonblocking(true)?;
        let (queue, ended) = sync_channel(QUEUE);
        let builder = std::thread::Builder::new().name("statsd".into());
        builder.spawn(move || tell_all(&socket, &ended))?;
        Ok(Self { queue, dropped })
    }

    /// Counts what has ended; as dropped if there is no room.
    pub fn put(&self, entry: &Entry, latency: Option<Duration>) {
        let ended = Ended {
            direction: entry.direction,
            // A name that no endpoint was found for may be a client's invention.
            service: entry.endpoint.as_ref().and(entry.service.clone()),
            port: entry.endpoint.as_ref().and(entry.port.clone()),
            success: entry.is_success(),
            latency,
            received: entry.received,
            sent: entry.sent,
        };
        if self.queue.try_send(ended).is_err() {
            self.dropped.inc();
        }
    }
}

fn tell_all(socket: &UdpSocket, ended: &Receiver<Ended>) {
    let (mut figures, mut told) = (Figures::default(), clock::monotonic());
    loop {
        let wait = INTERVAL.saturating_sub(told.elapsed());
        match ended.recv_timeout(wait) {
            Ok(one) => figures.count(&one),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return figures.tell(socket),
        }
        if told.elapsed() >= INTERVAL {
            figures.tell(socket);
            told = clock::monotonic();
        }
    }
}

/// What was counted in one interval.
#[derive(Debug, Default)]
struct Figures {
    counters: HashMap<String, u64>,
    latencies: HashMap<String, Latencies>,
}

#[derive(Debug, Default)]
struct Latencies {
    samples: Vec<Duration>,
    count: usize,
}

impl Figures {
    fn count(&mut self, ended: &Ended) {
        let service = ended.service.as_ref().map_or("-", ServiceName::as_str);
        let port = ended.port.as_ref().map_or("-", PortName::as_str);
        // A dot is what parts names.
        let name =
            format!("isthmus.{}.{}.{port}", ended.direction.as_str(), service.replace('.', "_"));
        let class = if ended.success { "success" } else { "failure" };
        self.add(format!("{name}.requests.{class}"), 1);
        self.add(format!("{name}.received_bytes"), ended.received);
        self.add(format!("{name}.sent_bytes"), ended.sent);
        let Some(latency) = ended.latency else { return };
        let room = self.latencies.len() < MAX_NAMES;
        let key = format!("{name}.latency");
        if room || self.latencies.contains_key(&key) {
            let latencies = self.latencies.entry(key).or_default();
            latencies.count += 1;
            if latencies.samples.len() < MAX_SAMPLES {
                latencies.samples.push(latency);
            }
        }
    }

    fn add(&mut self, name: String, more: u64) {
        if more > 0 && (self.counters.len() < MAX_NAMES || self.counters.contains_key(&name)) {
            *self.counters.entry(name).or_default() += more;
        }
    }

    /// Sends everything and begins anew. What nobody takes is lost, as with
    /// statsd it may be.
    fn tell(&mut self, socket: &UdpSocket) {
        let mut packet = String::new();
        let mut put = |line: String| {
            if !packet.is_empty() && packet.len() + 1 + line.len() > MAX_PACKET {
                let _lost = socket.send(packet.as_bytes());
                packet.clear();
            }
            if !packet.is_empty() {
                packet.push('\n');
            }
            packet.push_str(&line);
        };
        for (name, count) in self.counters.drain() {
            put(format!("{name}:{count}|c"));
        }
        for (name, latencies) in self.latencies.drain() {
            let rate = latencies.samples.len() as f64 / latencies.count as f64;
            let rate = if rate < 1.0 { format!("|@{rate:.4}") } else { String::new() };
            for latency in latencies.samples {
                put(format!("{name}:{:.3}|ms{rate}", latency.as_secs_f64() * 1000.0));
            }
        }
        if !packet.is_empty() {
            let _lost = socket.send(packet.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_sampled_and_say_at_what_rate() {
        let there = UdpSocket::bind("127.0.0.1:0").unwrap();
        there.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let here = UdpSocket::bind("127.0.0.1:0").unwrap();
        here.connect(there.local_addr().unwrap()).unwrap();
        let mut figures = Figures::default();
        for _ in 0..2 * MAX_SAMPLES {
            figures.count(&Ended {
                direction: Direction::Outbound,
                service: Some("orders.shop".parse().unwrap()),
                port: Some("http".parse().unwrap()),
                success: true,
                latency: Some(Duration::from_micros(1500)),
                received: 0,
                sent: 10,
            });
        }
        figures.tell(&here);
        assert!(figures.counters.is_empty() && figures.latencies.is_empty());
        let (mut lines, mut packet) = (Vec::new(), [0; 2 * MAX_PACKET]);
        while lines.len() < 2 + MAX_SAMPLES {
            let length = there.recv(&mut packet).unwrap();
            assert!(length <= MAX_PACKET);
            let text = std::str::from_utf8(&packet[..length]).unwrap();
            lines.extend(text.lines().map(str::to_owned));
        }
        let count = |wanted: &str| lines.iter().filter(|line| *line == wanted).count();
        assert_eq!(count("isthmus.outbound.orders_shop.http.requests.success:64|c"), 1);
        assert_eq!(count("isthmus.outbound.orders_shop.http.sent_bytes:640|c"), 1);
        let sampled = "isthmus.outbound.orders_shop.http.latency:1.500|ms|@0.5000";
        assert_eq!(count(sampled), MAX_SAMPLES);
    }
}
