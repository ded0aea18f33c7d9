//! The live table: redrawn in place on a terminal, a block of plain lines every
//! few seconds elsewhere.

use std::{io::IsTerminal, time::Duration};

use super::tell::Teller;
use crate::output::Format;

/// On a terminal.
const REDRAW: Duration = Duration::from_millis(500);
/// Elsewhere: a log that people scroll.
const REPRINT: Duration = Duration::from_secs(5);

/// Where the table is.
#[derive(Debug)]
pub(crate) struct Screen {
    in_place: bool,
    silent: bool,
    every: Duration,
    drawn_at: Option<Duration>,
    lines: usize,
}

impl Screen {
    pub(crate) fn new(format: Format) -> Self {
        let silent = format.is_document();
        let in_place = !silent && std::io::stdout().is_terminal();
        let every = if in_place { REDRAW } else { REPRINT };
        Self { in_place, silent, every, drawn_at: None, lines: 0 }
    }

    /// Whether what is drawn later covers what was said before.
    pub(crate) fn is_in_place(&self) -> bool {
        self.in_place
    }

    /// Whether it is time for another.
    pub(crate) fn is_due(&self, now: Duration) -> bool {
        let since = match self.drawn_at {
            Some(at) => now.saturating_sub(at),
            // In place an empty table says that something is about to happen.
            None if self.in_place => self.every,
            None => now,
        };
        !self.silent && since >= self.every
    }

    /// Shows `text`, over what was shown before if it is still in place.
    pub(crate) fn draw(&mut self, now: Duration, text: &str, teller: &Teller) {
        self.drawn_at = Some(now);
        let mut out = self.erase();
        if self.in_place {
            // Long lines are cut, not wrapped: wrapped ones would count twice
            // (DECAWM).
            out.push_str(&format!("\x1b[?7l{text}\x1b[?7h"));
        } else {
            out.push_str(text);
        }
        teller.raw(&out);
        self.lines = if self.in_place { text.lines().count() } else { 0 };
    }

    /// Takes the table away, so that a line can stay above it.
    pub(crate) fn clear(&mut self, teller: &Teller) {
        let out = self.erase();
        teller.raw(&out);
        self.lines = 0;
        self.drawn_at = None;
    }

    /// Cursor to the first line of the table, and nothing from there on
    /// (ECMA-48 CPL and ED).
    fn erase(&self) -> String {
        if self.lines == 0 { String::new() } else { format!("\x1b[{}F\x1b[J", self.lines) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_drawn_over_the_one_before() {
        let mut screen =
            Screen { in_place: true, silent: false, every: REDRAW, drawn_at: None, lines: 0 };
        assert!(screen.is_due(Duration::ZERO));
        assert_eq!(screen.erase(), "");
        screen.drawn_at = Some(Duration::ZERO);
        screen.lines = 3;
        assert!(!screen.is_due(Duration::from_millis(100)) && screen.is_due(REDRAW));
        assert_eq!(screen.erase(), "\x1b[3F\x1b[J");
    }
}
