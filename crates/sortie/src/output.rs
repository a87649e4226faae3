//! Printing results: tables for people, JSON for programs.

use serde::Serialize;

use crate::error::Failure;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Prints one value: as JSON, or as rows of name and value.
pub(crate) fn one<T: Serialize>(style: Style, value: &T, rows: &[(&str, String)]) -> Result<(), Failure> {
    match style {
        Style::Json => json(value),
        Style::Table => {
            let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
            for (name, text) in rows {
                println!("{name:<width$}  {}", printable(text));
            }
            Ok(())
        }
    }
}

/// Prints a list: as JSON `{"data": [...]}`, or as a table with a head.
pub(crate) fn list<T: Serialize>(
    style: Style,
    values: &[T],
    head: &[&str],
    row: impl Fn(&T) -> Vec<String>,
) -> Result<(), Failure> {
    match style {
        Style::Json => json(&serde_json::json!({ "data": values })),
        Style::Table => {
            table(head, &values.iter().map(row).collect::<Vec<_>>());
            Ok(())
        }
    }
}

pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) {
    let head: Vec<String> = head.iter().map(|text| text.to_uppercase()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|text| cell(text)).collect()).collect();
    let widths: Vec<usize> = (0..head.len())
        .map(|at| {
            let cells = std::iter::once(&head).chain(&rows).filter_map(|row| row.get(at));
            cells.map(|text| text.chars().count()).max().unwrap_or(0)
        })
        .collect();
    for row in std::iter::once(&head).chain(&rows) {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(text, width)| format!("{text:<width$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    }
}

pub(crate) fn json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(Failure::failed)?;
    println!("{text}");
    Ok(())
}

/// Text from elsewhere must not make rows and columns of its own either.
fn cell(text: &str) -> String {
    printable(text).replace(['\n', '\t'], " ")
}

/// Text from elsewhere must not steer the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}
