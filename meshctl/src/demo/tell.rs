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
        for line in wrap(&format!("$ {shown}")) {
            self.line(&self.paint.bold(&line));
        }
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

/// Where a printed command is continued on the next line.
const WIDTH: usize = 96;

/// Breaks a command before its options, as a shell reads it.
fn wrap(command: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for part in command.split_inclusive(' ') {
        let line = lines.last_mut().expect("it begins with one line");
        let option = part.starts_with("--") || part.starts_with('|');
        if option && line.len() + part.len() > WIDTH / 2 && rest_is_long(line, part) {
            line.push('\\');
            lines.push(format!("    {part}"));
        } else {
            line.push_str(part);
        }
    }
    lines
}

fn rest_is_long(line: &str, part: &str) -> bool {
    // The value of an option belongs to it and is at most as long as a path.
    const VALUE: usize = 32;
    line.len() + part.len() + VALUE > WIDTH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_commands_stay_commands() {
        assert_eq!(wrap("$ meshctl status"), ["$ meshctl status"]);
        let long = format!("$ meshctl site init west {}", "--listen 127.0.0.1:8446 ".repeat(8));
        let lines = wrap(long.trim_end());
        assert!(lines.len() > 1 && lines.iter().all(|line| line.len() <= WIDTH + 2), "{lines:#?}");
        let joined = lines.join("\n").replace("\\\n", "");
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&joined), words(&long));
    }
}
