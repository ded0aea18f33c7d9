//! What the demo says while it works: the commands it runs and how long each
//! step took. On stdout for a person; on stderr where stdout is a document.

use std::{io::Write, path::Path};

use tokio::time::Instant;

use crate::output::{Format, Paint};

/// The variable under which the printed commands find the sites.
pub(crate) const SITES_VARIABLE: &str = "ISTHMUS_SITES";

/// Says things.
#[derive(Debug, Clone)]
pub(crate) struct Teller {
    started: Instant,
    to_stderr: bool,
    paint: Paint,
    /// Shown as `$ISTHMUS_SITES` in commands.
    dir: String,
}

impl Teller {
    pub(crate) fn new(format: Format, dir: &Path) -> Self {
        let to_stderr = format.is_document();
        let paint = if to_stderr { Paint::stderr() } else { Paint::stdout() };
        Self { started: Instant::now(), to_stderr, paint, dir: dir.display().to_string() }
    }

    pub(crate) fn paint(&self) -> Paint {
        self.paint
    }

    /// Seconds since the demo began.
    pub(crate) fn elapsed_s(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// A step that is done.
    pub(crate) fn done(&self, what: &str) {
        let at = self.paint.faint(&format!("[{:5.2}s]", self.elapsed_s()));
        self.line(&format!("{at} {what}"));
    }

    /// A command as one would type it.
    pub(crate) fn command(&self, command: &str) {
        let shown = command.replace(&self.dir, &format!("${SITES_VARIABLE}"));
        self.line(&format!("$ {}", self.paint.bold(&shown)));
    }

    /// What a command said.
    pub(crate) fn said(&self, text: &str) {
        for line in text.lines() {
            self.line(&self.paint.faint(&format!("  {}", line.trim_end())));
        }
    }

    /// One line as it is.
    pub(crate) fn line(&self, text: &str) {
        self.raw(&format!("{text}\n"));
    }

    /// Bytes as they are; a closed stdout is no reason to stop.
    pub(crate) fn raw(&self, text: &str) {
        if self.to_stderr {
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
        } else {
            let mut stdout = std::io::stdout().lock();
            let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        }
    }
}
