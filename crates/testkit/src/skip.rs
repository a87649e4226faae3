//! How a test says that it did not run. Never a silent return: `cargo xtask test` collects these lines, lists them at
//! the end, and fails on those about a missing tool when `CI=true`.

use std::env;
use std::path::PathBuf;

/// The path of a test peer that `cargo xtask test` installs, from the variable that it exports (for example
/// `SORTIE_TEST_PYTHON_MCP2`). Prints the `skipped:` line and returns `None` when the variable is unset or its file is
/// not there, so that a test reads `let Some(python) = tool("SORTIE_TEST_PYTHON_MCP2") else { return };`.
pub fn tool(variable: &str) -> Option<PathBuf> {
    match env::var_os(variable).map(PathBuf::from) {
        Some(path) if path.exists() => Some(path),
        Some(path) => {
            skip_tool(&format!("{variable} names {}, which is not there", path.display()));
            None
        }
        None => {
            skip_tool(&format!("{variable} is not set; `cargo xtask test` installs the peer and sets it"));
            None
        }
    }
}

/// Prints `skipped: tool: <reason>`: something that could be installed is missing. A failure when `CI=true`.
pub fn skip_tool(reason: &str) {
    println!("skipped: tool: {reason}");
}

/// Prints `skipped: host: <reason>`: this kernel or machine cannot do it (no network namespaces, not root). Counted,
/// never a failure.
pub fn skip_host(reason: &str) {
    println!("skipped: host: {reason}");
}
