//! How answers are shown: tables for people, exact JSON or YAML for programs.

use super::client::CliError;
use ashlar_model::units::ByteSize;
use clap::ValueEnum;
use serde_json::Value;
use std::fmt::Write;
use std::io::IsTerminal;
use std::time::Duration;

const WATCH_PERIOD: Duration = Duration::from_secs(1);

/// Form of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum OutputFormat {
    /// The main columns.
    #[default]
    Table,
    /// All columns.
    Wide,
    /// Exact numbers.
    Json,
    /// Exact numbers.
    Yaml,
}

/// Flags of every command that reads.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct OutputArgs {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    pub output: OutputFormat,
    /// Show what changes, until Ctrl-C
    #[arg(long)]
    pub watch: bool,
}

/// A column of a table.
pub struct Column {
    /// Heading.
    pub title: &'static str,
    /// Only in wide tables.
    pub wide: bool,
    /// The cell of an item.
    pub cell: fn(&Value) -> String,
}

impl Column {
    /// A column of every table.
    pub const fn new(title: &'static str, cell: fn(&Value) -> String) -> Self {
        Self { title, wide: false, cell }
    }

    /// A column of wide tables.
    pub const fn wide(title: &'static str, cell: fn(&Value) -> String) -> Self {
        Self { title, wide: true, cell }
    }
}

/// Reads and shows, once or until Ctrl-C.
///
/// # Errors
/// What reading says.
pub fn show(
    args: OutputArgs,
    read: impl Fn() -> Result<Value, CliError>,
    render: impl Fn(&Value, bool) -> String,
) -> Result<(), CliError> {
    loop {
        let value = read()?;
        let text = match args.output {
            OutputFormat::Table => render(&value, false),
            OutputFormat::Wide => render(&value, true),
            OutputFormat::Json => format!("{value:#}\n"),
            OutputFormat::Yaml => super::yaml::to_yaml(&value),
        };
        if args.watch && std::io::stdout().is_terminal() {
            print!("\x1b[H\x1b[2J");
        }
        print!("{text}");
        if !args.watch {
            return Ok(());
        }
        std::thread::sleep(WATCH_PERIOD);
    }
}

/// Items as an aligned table.
pub fn table(items: &[Value], columns: &[Column], wide: bool) -> String {
    let mut widths = Vec::new();
    widths_of(items, columns, wide, &mut widths);
    rows(items, columns, wide, &widths).into_iter().fold(String::new(), |mut text, row| {
        let _ = writeln!(text, "{row}");
        text
    })
}

/// Makes the columns of a table as wide as these items need; they never get narrower.
pub fn widths_of(items: &[Value], columns: &[Column], wide: bool, widths: &mut Vec<usize>) {
    let shown: Vec<&Column> = columns.iter().filter(|column| wide || !column.wide).collect();
    widths.resize(shown.len(), 0);
    for (column, width) in shown.into_iter().zip(widths) {
        let cells = items.iter().map(|item| (column.cell)(item).chars().count());
        *width = cells.chain([column.title.chars().count(), *width]).max().unwrap_or(0);
    }
}

/// The lines of a table, the heading first.
pub fn rows(items: &[Value], columns: &[Column], wide: bool, widths: &[usize]) -> Vec<String> {
    let shown: Vec<&Column> = columns.iter().filter(|column| wide || !column.wide).collect();
    let line = |cells: Vec<String>| {
        let cells = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let heading = shown.iter().map(|column| column.title.to_owned()).collect();
    let items = items.iter().map(|item| shown.iter().map(|column| (column.cell)(item)).collect());
    [heading].into_iter().chain(items).map(line).collect()
}

/// Items of a list answer.
pub fn items(value: &Value) -> &[Value] {
    value["items"].as_array().map_or(&[], Vec::as_slice)
}

/// A text or number as people read it; `-` for nothing.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::Array(list) => list.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// A number of bytes as people read it.
pub fn bytes(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".into(), |bytes| ByteSize(bytes).to_string())
}

/// Asks a yes-or-no question on the terminal; `false` where nobody can answer.
pub fn confirm(question: &str) -> bool {
    if !std::io::stdin().is_terminal() {
        return false;
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tables_align_and_hide_wide_columns() {
        const COLUMNS: [Column; 3] = [
            Column::new("NAME", |v| text(&v["name"])),
            Column::new("SIZE", |v| bytes(&v["size"])),
            Column::wide("ID", |v| text(&v["id"])),
        ];
        let items = [json!({ "name": "long-name", "size": 1024, "id": 7 }), json!({ "name": "b" })];
        assert_eq!(table(&items, &COLUMNS, false), "NAME       SIZE\nlong-name  1 KiB\nb          -\n");
        assert!(table(&items, &COLUMNS, true).contains("ID"));
    }
}
