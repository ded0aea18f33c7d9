//! `meshctl top`: requests of a proxy by path.

use std::{collections::HashMap, io::IsTerminal, time::Duration};

use clap::Args;
use mesh_api::v1::{self, tap_event::Event};
use serde::Serialize;
use tokio::time::Instant;

use super::tap::{Watched, printable};
use crate::{
    endpoint::Run,
    failure::Failure,
    output::{self, Format, Paint, Show, Table},
    time,
};

/// How often a terminal is drawn anew.
const REDRAW: Duration = Duration::from_secs(1);
/// Rows that are kept; requests of others are counted as left out.
const MAX_ROWS: usize = 1000;
/// Rows that a terminal is shown.
const SHOWN_ROWS: usize = 30;

/// Arguments of `top`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl top\n  meshctl top orders.shop\n  meshctl top orders.shop --for 10s -o json"
)]
pub struct Top {
    #[command(flatten)]
    watched: Watched,
    /// How long to watch; until Ctrl-C on a terminal, else 10s
    #[arg(long = "for", value_name = "DURATION", value_parser = time::parse_duration)]
    lasting: Option<Duration>,
}

impl Top {
    /// Draws while it watches, and once at the end.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let mut events = self.watched.watch(run).await?;
        let live = !format.is_document() && std::io::stdout().is_terminal();
        let lasting = self.lasting.or((!live).then_some(Duration::from_secs(10)));
        let end = lasting.map(|lasting| Instant::now() + lasting);
        let mut seen = Seen::default();
        let mut redraw = tokio::time::interval(REDRAW);
        loop {
            let over = async {
                match end {
                    Some(end) => tokio::time::sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.message() => match event? {
                    Some(event) => seen.count(event),
                    None => break,
                },
                _ = redraw.tick(), if live => {
                    let table = seen.figures().text(false, Paint::stdout());
                    output::write_stdout(&format!("\x1b[H\x1b[2J{table}"))?;
                }
                () = over => break,
                _ = tokio::signal::ctrl_c() => break,
            }
        }
        if live { Ok(()) } else { output::print(format, &seen.figures()) }
    }
}

/// Source, destination, method and path.
type Key = [String; 4];

#[derive(Debug, Default)]
struct Seen {
    rows: HashMap<Key, Row>,
    left_out: u64,
}

#[derive(Debug, Serialize, Clone, Default)]
struct Row {
    source: String,
    destination: String,
    method: String,
    path: String,
    count: u64,
    best_ms: f64,
    worst_ms: f64,
    last_ms: f64,
    success: u64,
}

#[derive(Debug, Serialize)]
struct Figures {
    rows: Vec<Row>,
    /// Requests that matched and are in no row.
    left_out: u64,
}

impl Seen {
    fn count(&mut self, event: v1::TapEvent) {
        let seen = match event.event {
            Some(Event::Seen(seen)) => seen,
            Some(Event::Lost(count)) => {
                self.left_out += count;
                return;
            }
            None => return,
        };
        let method = if seen.protocol == "tcp" { "TCP".to_owned() } else { seen.method };
        let destination = if seen.service.is_empty() { seen.authority } else { seen.service };
        let key = [named(seen.source.as_ref()), destination, method, seen.path];
        let key = key.map(|text| printable(&text));
        if self.rows.len() >= MAX_ROWS && !self.rows.contains_key(&key) {
            self.left_out += 1;
            return;
        }
        let row = self.rows.entry(key).or_insert_with_key(|[source, destination, method, path]| {
            let (source, destination) = (source.clone(), destination.clone());
            let (method, path) = (method.clone(), path.clone());
            Row { source, destination, method, path, best_ms: f64::MAX, ..Row::default() }
        });
        let ms = Duration::from_nanos(seen.latency_ns).as_secs_f64() * 1000.0;
        row.count += 1;
        row.success += u64::from(seen.success);
        row.last_ms = ms;
        row.best_ms = row.best_ms.min(ms);
        row.worst_ms = row.worst_ms.max(ms);
    }

    /// The most frequent first.
    fn figures(&self) -> Figures {
        let mut rows: Vec<Row> = self.rows.values().cloned().collect();
        rows.sort_by(|a, b| {
            let key = |row: &Row| (row.destination.clone(), row.path.clone(), row.source.clone());
            b.count.cmp(&a.count).then_with(|| key(a).cmp(&key(b)))
        });
        Figures { rows, left_out: self.left_out }
    }
}

/// `<account>.<namespace>` of a workload, else where it is.
fn named(end: Option<&v1::TapEnd>) -> String {
    let Some(end) = end else { return String::new() };
    let id: Option<mesh_core::SpiffeId> = end.spiffe_id.parse().ok();
    match id.as_ref().map(mesh_core::SpiffeId::subject) {
        Some(mesh_core::name::Subject::Workload { namespace, account }) => {
            format!("{account}.{namespace}")
        }
        _ => end.address.clone(),
    }
}

impl Show for Figures {
    fn text(&self, wide: bool, paint: Paint) -> String {
        if self.rows.is_empty() {
            return "No requests seen yet. `meshctl stat` shows who has traffic.\n".into();
        }
        let header = [
            "SOURCE",
            "DESTINATION",
            "METHOD",
            "PATH",
            "COUNT",
            "BEST",
            "WORST",
            "LAST",
            "SUCCESS_RATE",
        ];
        let mut table = Table::new(&header);
        let limit = if wide { MAX_ROWS } else { SHOWN_ROWS };
        for row in self.rows.iter().take(limit) {
            #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
            let percent = 100.0 * row.success as f64 / row.count as f64;
            let success = format!("{percent:.2}%");
            let success = if percent < 99.0 { paint.bad(&success) } else { paint.good(&success) };
            let ms = |ms: f64| format!("{ms:.1}ms");
            table.row([
                row.source.clone(),
                row.destination.clone(),
                row.method.clone(),
                row.path.clone(),
                row.count.to_string(),
                ms(row.best_ms),
                ms(row.worst_ms),
                ms(row.last_ms),
                success,
            ]);
        }
        let mut text = table.render(paint);
        if self.left_out > 0 {
            text.push_str(&format!("{} more are in no row\n", self.left_out));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tap::tests::request, *};

    fn event(seen: v1::TapSeen) -> v1::TapEvent {
        v1::TapEvent { event: Some(Event::Seen(seen)) }
    }

    #[test]
    fn requests_are_summed_by_path_and_the_most_frequent_come_first() {
        let mut seen = Seen::default();
        seen.count(event(request("/rare")));
        for (ns, success) in [(2_000_000, true), (1_000_000, false), (4_000_000, true)] {
            let latency_ns = ns;
            seen.count(event(v1::TapSeen { latency_ns, success, ..request("/often") }));
        }
        seen.count(v1::TapEvent { event: Some(Event::Lost(5)) });
        let text = seen.figures().text(false, Paint::PLAIN);
        let rows: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        let often = [
            "checkout.shop",
            "orders.shop",
            "GET",
            "/often",
            "3",
            "1.0ms",
            "4.0ms",
            "4.0ms",
            "66.67%",
        ];
        assert_eq!(rows[1], often);
        assert_eq!((rows[2][3], rows[2][4]), ("/rare", "1"));
        assert_eq!(text.lines().last(), Some("5 more are in no row"));
    }

    #[test]
    fn paths_without_end_are_bounded() {
        let mut seen = Seen::default();
        for n in 0..MAX_ROWS + 7 {
            seen.count(event(request(&format!("/{n}"))));
        }
        assert_eq!((seen.figures().rows.len(), seen.figures().left_out), (MAX_ROWS, 7));
    }
}
