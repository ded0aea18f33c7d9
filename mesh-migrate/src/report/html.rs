//! The report as a page.

use std::fmt::Write;

use super::{Report, Statement, told, word};
use crate::ledger::Verdict;

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --exact: #2a7f43; --approximated: #a86b00; \
--dropped: #b3261e; --decide: #6a3fb5; }
@media (prefers-color-scheme: dark) { :root { --exact: #6fcf8b; --approximated: #e3b341; \
--dropped: #ff8a80; --decide: #c3a6ff; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.bar { display: flex; height: .8rem; border-radius: .4rem; overflow: hidden; margin: 1rem 0; }
.bar span { display: block; }
.counts span { margin-right: 1.5rem; }
table { border-collapse: collapse; width: 100%; }
td { border-top: 1px solid var(--line); padding: .3rem .6rem; vertical-align: top; }
td.n { text-align: right; opacity: .6; width: 3rem; }
code { font: 13px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.w { font-weight: 600; white-space: nowrap; }
.exact { color: var(--exact); } .approximated { color: var(--approximated); }
.dropped { color: var(--dropped); } .decide { color: var(--decide); }
.bar .exact { background: var(--exact); } .bar .approximated { background: var(--approximated); }
.bar .dropped { background: var(--dropped); } .bar .decide { background: var(--decide); }
label { user-select: none; } #all:not(:checked) ~ table tr.exact, \
#all:not(:checked) ~ section tr.exact { display: none; }
";

pub(super) fn page(report: &Report) -> String {
    let title = format!("From {}: parity report", report.from);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n<h1>{title}</h1>\n"
    );
    let summary = report.summary;
    let counts = [
        ("exact", summary.exact),
        ("approximated", summary.approximated),
        ("dropped", summary.dropped),
        ("decide", summary.decisions),
    ];
    page += "<p class=\"counts\">";
    for (word, count) in counts {
        let _ = write!(page, "<span class=\"{word}\"><b>{count}</b> {word}</span>");
    }
    page += "</p>\n<div class=\"bar\">";
    for (word, count) in counts {
        let _ = write!(page, "<span class=\"{word}\" style=\"flex:{count}\"></span>");
    }
    page += "</div>\n";
    if !report.everywhere.is_empty() {
        page += "<h2>For all requests, whatever the lines say</h2>\n<ul>\n";
        for line in &report.everywhere {
            let _ = writeln!(page, "<li>{}", escaped(line));
        }
        page += "</ul>\n";
    }
    let questions = report.questions();
    if !questions.is_empty() {
        page += "<h2>Questions</h2>\n<table>\n";
        for (file, statement) in questions {
            row(&mut page, &format!("{}:{}", escaped(file), statement.line), statement);
        }
        page += "</table>\n";
    }
    page += "<input type=\"checkbox\" id=\"all\" checked> \
             <label for=\"all\">what is exact, too</label>\n<section>\n";
    for file in &report.files {
        let _ = write!(page, "<h2>{}</h2>\n<table>\n", escaped(&file.name));
        for statement in &file.statements {
            row(&mut page, &statement.line.to_string(), statement);
        }
        page += "</table>\n";
    }
    page += "</section>\n</html>\n";
    page
}

fn row(page: &mut String, place: &str, statement: &Statement) {
    let word = word(&statement.verdict);
    let is_exact = if statement.verdict == Verdict::Exact { " class=\"exact\"" } else { "" };
    let told: Vec<String> = told(&statement.verdict).iter().map(|line| escaped(line)).collect();
    let _ = writeln!(
        page,
        "<tr{is_exact}><td class=\"n\">{place}<td><code>{}</code><td class=\"w {word}\">{word}<td>{}",
        escaped(&statement.text),
        told.join("<br>")
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
