//! All that the commands print goes through one type, so that every command has both forms and none forgets to make
//! hostile text safe.
//!
//! Results go to standard output, as text for people or as JSON for programs: one document, or one line for each item
//! of a stream. Notes and progress go to standard error, so that a pipe sees results alone. A reader that goes away
//! early (`| head`) is no failure; [`CommandError`](super::CommandError) sees to that.

use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use clap::{Args, ValueEnum};
use comfy_table::{Attribute, Cell, ContentArrangement, Row, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};

use super::terminal;

/// How many rows a table is made of before it is printed; the next one has a heading of its own.
const ROWS: usize = 500;

/// The flag that chooses the form of the output.
#[derive(Args, Clone, Copy, Debug)]
pub struct OutputFlags {
    /// The form of the output: text for people, or JSON for programs, which is one document, or one line for each item
    /// of a stream
    #[arg(long, short, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub output: Format,
}

/// A form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Where a command's results go.
pub struct Output {
    format: Format,
    to: Box<dyn Write + Send>,
    /// The terminal's width in columns; none where standard output is no terminal.
    width: Option<u16>,
    /// Headings may be bold.
    styled: bool,
}

impl Output {
    /// Standard output.
    pub fn new(flags: OutputFlags) -> Self {
        let width = Table::new().width();
        Self {
            format: flags.output,
            to: Box::new(io::BufWriter::new(io::stdout())),
            width,
            styled: width.is_some() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }

    /// Output to any writer, as if to a terminal of that width or to none.
    #[cfg(test)]
    fn to(to: Box<dyn Write + Send>, format: Format, width: Option<u16>) -> Self {
        Self {
            format,
            to,
            width,
            styled: false,
        }
    }

    /// True where programs read it.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// One result: its fields, each with a label for people, a name for programs, and a value. A value of null is left
    /// out of the text.
    ///
    /// # Errors
    ///
    /// What the system says of the writing; so for all methods here.
    pub fn fields(&mut self, fields: &[(&str, &str, Value)]) -> io::Result<()> {
        if self.is_json() {
            let object: Map<_, _> = fields
                .iter()
                .map(|(_, name, value)| ((*name).to_owned(), value.clone()))
                .collect();
            return self.document(&Value::Object(object));
        }
        let width = fields.iter().map(|(label, ..)| label.len()).max().unwrap_or(0);
        for (label, _, value) in fields {
            let mut label = *label;
            for text in texts(value) {
                writeln!(self.to, "{label:width$}  {}", terminal::line(&text))?;
                label = "";
            }
        }
        self.to.flush()
    }

    /// One result that is a list of texts: a line each, or a document with the list under that name.
    pub fn list(&mut self, name: &str, items: &[String]) -> io::Result<()> {
        if self.is_json() {
            return self.document(&serde_json::json!({ name: items }));
        }
        for item in items {
            writeln!(self.to, "{}", terminal::line(item))?;
        }
        self.to.flush()
    }

    /// A JSON document.
    pub fn document(&mut self, value: &Value) -> io::Result<()> {
        writeln!(self.to, "{}", terminal::json(&format!("{value:#}")))?;
        self.to.flush()
    }

    /// An item of a stream of JSON: one line. It is on its way when this returns.
    pub fn item(&mut self, value: &Value) -> io::Result<()> {
        writeln!(self.to, "{}", terminal::json(&value.to_string()))?;
        self.to.flush()
    }

    /// An item of a stream of text: one line, in which nothing can do harm. It is on its way when this returns.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.to, "{}", terminal::line(text))?;
        self.to.flush()
    }

    /// Several lines of text, in which nothing can do harm.
    pub fn text(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.to, "{}", terminal::lines(text))?;
        self.to.flush()
    }

    /// What this program has made itself, byte for byte.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        self.to.flush()
    }

    /// A table of any number of rows, printed in pieces.
    pub fn table(&mut self, heading: &'static [&'static str]) -> Rows<'_> {
        Rows {
            heading,
            rows: Vec::new(),
            printed: 0,
            output: self,
        }
    }

    fn print(&mut self, heading: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).force_no_tty();
        if self.styled {
            table.enforce_styling();
        }
        if !heading.is_empty() {
            let cells = heading
                .iter()
                .map(|name| Cell::new(name).add_attribute(Attribute::Bold));
            table.set_header(cells.collect::<Vec<_>>());
        }
        match self.width {
            Some(width) => table
                .set_content_arrangement(ContentArrangement::Dynamic)
                .set_width(width),
            None => table.set_content_arrangement(ContentArrangement::Disabled),
        };
        for row in rows {
            let mut row = Row::from(row.into_iter().map(Cell::new_owned).collect::<Vec<_>>());
            if self.width.is_some() {
                row.max_height(1);
            }
            table.add_row(row);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for line in table.lines() {
            writeln!(self.to, "{}", line.trim_end())?;
        }
        self.to.flush()
    }
}

/// The rows of a table, printed as they become many.
pub struct Rows<'a> {
    heading: &'static [&'static str],
    rows: Vec<Vec<String>>,
    printed: usize,
    output: &'a mut Output,
}

impl Rows<'_> {
    /// Adds an item, as a row for people and as a line of JSON for programs.
    ///
    /// # Errors
    ///
    /// What the system says of the writing.
    pub fn add<const N: usize>(
        &mut self,
        row: impl FnOnce() -> [String; N],
        json: impl FnOnce() -> Value,
    ) -> io::Result<()> {
        if self.output.is_json() {
            return writeln!(self.output.to, "{}", terminal::json(&json().to_string()));
        }
        self.push(row())
    }

    /// Adds a row.
    ///
    /// # Errors
    ///
    /// What the system says of the writing.
    pub fn push(&mut self, row: impl IntoIterator<Item = String>) -> io::Result<()> {
        // What does not fit into a line is cut, and a table of whole values would be all padding.
        let most = usize::from(self.output.width.unwrap_or(u16::MAX)).saturating_mul(4);
        let cell = |text: String| {
            let text = terminal::line(&text).into_owned();
            match text.char_indices().nth(most) {
                Some((end, _)) if self.output.width.is_some() => text.get(..end).unwrap_or_default().to_owned(),
                _ => text,
            }
        };
        self.rows.push(row.into_iter().map(cell).collect());
        if self.rows.len() >= ROWS {
            self.flush()?;
        }
        Ok(())
    }

    /// Prints what is left; nothing at all where there was no row.
    ///
    /// # Errors
    ///
    /// What the system says of the writing.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.output.to.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        let rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return Ok(());
        }
        // A heading amid the rows helps people, and is in the way of programs.
        let heading = if self.printed == 0 || self.output.width.is_some() {
            self.heading
        } else {
            &[]
        };
        self.printed = self.printed.saturating_add(rows.len());
        self.output.print(heading, rows)
    }
}

/// Says something that is no result, on standard error.
pub fn note(text: &str) {
    // Where nobody reads it there is nothing to be done.
    let _ = writeln!(io::stderr(), "{}", terminal::lines(text));
}

/// Progress for people who wait: on a terminal, and only where the results go elsewhere.
pub struct Progress(ProgressBar);

impl Progress {
    /// Begins; `what` says of what things there are more and more.
    pub fn start(what: &'static str) -> Self {
        if io::stdout().is_terminal() || !io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::no_length();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {human_pos} {msg} in {elapsed} ({per_sec})") {
            bar.set_style(style);
        }
        bar.set_message(what);
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// One more.
    pub fn one_more(&self) {
        self.0.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A value as lines of text.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Null => Vec::new(),
        Value::String(text) => vec![text.clone()],
        Value::Bool(true) => vec!["yes".to_owned()],
        Value::Bool(false) => vec!["no".to_owned()],
        Value::Array(values) if values.is_empty() => vec!["none".to_owned()],
        Value::Array(values) => values.iter().flat_map(texts).collect(),
        other => vec![other.to_string()],
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn printed(format: Format, width: Option<u16>, print: impl FnOnce(&mut Output) -> io::Result<()>) -> String {
        let paper = Paper::default();
        print(&mut Output::to(Box::new(paper.clone()), format, width)).unwrap();
        let bytes = paper.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn fields_are_aligned_and_values_are_lines() {
        let fields = [
            ("name", "name", Value::from("a\x1b[2J")),
            ("durable", "durable", Value::from(true)),
            ("none of it", "missing", Value::Null),
            ("imports", "imports", serde_json::json!(["one", "two"])),
        ];
        let text = printed(Format::Text, None, |output| output.fields(&fields));
        let expected = "name        a\\u{1b}[2J\ndurable     yes\nimports     one\n            two\n";
        assert_eq!(text, expected);
        let json = printed(Format::Json, None, |output| output.fields(&fields));
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"name": "a\x1b[2J", "durable": true, "missing": null, "imports": ["one", "two"]})
        );
    }

    #[test]
    fn tables_fit_the_terminal_and_are_whole_elsewhere() {
        let long = "x".repeat(500);
        let table = |output: &mut Output| {
            let mut rows = output.table(&["ID", "DATA"]);
            rows.push(["a".to_owned(), long.clone()])?;
            rows.push(["\x1bb".to_owned(), "short".to_owned()])?;
            rows.finish()
        };
        let narrow = printed(Format::Text, Some(40), table);
        assert!(narrow.lines().all(|line| line.chars().count() <= 40), "{narrow}");
        assert_eq!(narrow.lines().count(), 3, "{narrow}");
        let whole = printed(Format::Text, None, table);
        assert!(whole.contains(&long) && whole.contains("\\u{1b}b"), "{whole}");
    }

    #[test]
    fn a_long_table_has_its_heading_once_where_no_person_reads_it() {
        let table = |output: &mut Output| {
            let mut rows = output.table(&["ID"]);
            for index in 0..ROWS * 2 + 1 {
                rows.push([index.to_string()])?;
            }
            rows.finish()
        };
        let headings = |width| {
            printed(Format::Text, width, table)
                .lines()
                .filter(|line| *line == "ID")
                .count()
        };
        assert_eq!((headings(None), headings(Some(80))), (1, 3));
        assert_eq!(printed(Format::Text, None, table).lines().count(), ROWS * 2 + 2);
        assert_eq!(printed(Format::Text, None, |output| output.table(&["ID"]).finish()), "");
    }
}
