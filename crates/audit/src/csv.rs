//! Records as rows of a table (RFC 4180), for spreadsheets: what they have in common, a column each.

use serde_json::Value;

use crate::line::LineError;

/// The columns, and where records say them.
const COLUMNS: &[(&str, &str)] = &[
    ("seq", "/seq"),
    ("time", "/time"),
    ("code", "/code"),
    ("event", "/event"),
    ("id", "/id"),
    ("issuer", "/caller/issuer"),
    ("subject", "/caller/subject"),
    ("agent", "/caller/agent"),
    ("user", "/caller/user"),
    ("key", "/caller/key"),
    ("session", "/caller/session"),
    ("actor", "/actor/id"),
    ("route", "/route"),
    ("method", "/method"),
    ("tool", "/tool"),
    ("prompt", "/prompt"),
    ("resource", "/resource"),
    ("outcome", "/outcome"),
    ("effect", "/decision/effect"),
    ("policies", "/decision/policies"),
    ("hop", "/hop"),
    ("reason", "/reason"),
    ("arguments_sha256", "/arguments/sha256"),
    ("approval", "/approval"),
    ("credential", "/credential"),
    ("status", "/status"),
    ("end", "/end"),
    ("request_bytes", "/request_bytes"),
    ("response_bytes", "/response_bytes"),
    ("duration_us", "/duration_us"),
    ("result_sha256", "/result_sha256"),
    ("trace", "/trace"),
];

/// The names of the columns, as the first row, without its end.
pub fn csv_head() -> String {
    COLUMNS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(",")
}

/// One record as a row, without its end.
///
/// # Errors
/// The line is no record.
pub fn csv(line: &[u8]) -> Result<String, LineError> {
    let record: Value = serde_json::from_slice(line).map_err(|error| LineError::Malformed(error.to_string()))?;
    let cells = COLUMNS.iter().map(|(_, at)| match record.pointer(at) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => cell(text),
        Some(Value::Array(all)) => {
            let texts: Vec<&str> = all.iter().filter_map(Value::as_str).collect();
            cell(&texts.join(" "))
        }
        Some(other) => cell(&other.to_string()),
    });
    Ok(cells.collect::<Vec<_>>().join(","))
}

/// A text that no spreadsheet takes for a formula, and that no reader takes for more than one cell.
fn cell(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let plain = !formula && !text.contains(['"', ',', '\n', '\r']);
    match (plain, formula) {
        (true, _) => text.to_owned(),
        (false, formula) => {
            format!("\"{}{}\"", if formula { "'" } else { "" }, text.replace('"', "\"\""))
        }
    }
}
