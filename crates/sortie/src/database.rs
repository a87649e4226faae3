//! Which database a hub uses, and how it is told without showing a password.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use sortie_hub::DatabaseUrl;

use crate::error::Failure;

/// Where the hub's database is, when it is not a file.
#[derive(Args)]
pub(crate) struct DatabaseArgs {
    /// A PostgreSQL database instead of a SQLite file in the data directory, postgres://USER@HOST/DATABASE. Lists of
    /// processes show it: one with a password comes by the variable, or from a file.
    #[arg(
        long,
        env = "SORTIE_DATABASE_URL",
        hide_env_values = true,
        value_name = "URL",
        conflicts_with = "database_file"
    )]
    database: Option<String>,
    /// The same, read from a file.
    #[arg(long, env = "SORTIE_DATABASE_FILE", value_name = "FILE")]
    database_file: Option<PathBuf>,
}

impl fmt::Debug for DatabaseArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("DatabaseArgs").field("database_file", &self.database_file).finish_non_exhaustive()
    }
}

impl DatabaseArgs {
    /// The database, if one is named.
    pub(crate) fn url(&self) -> Result<Option<DatabaseUrl>, Failure> {
        let text = match (&self.database, &self.database_file) {
            (Some(text), _) => text.clone(),
            (None, Some(file)) => std::fs::read_to_string(file)
                .map_err(|error| Failure::usage(format!("--database-file {}: {error}", file.display())))?,
            (None, None) => return Ok(None),
        };
        let url: DatabaseUrl =
            text.parse().map_err(|error| Failure::usage(format!("the database's URL cannot be used: {error}")))?;
        if url.has_password() && std::env::args_os().any(|argument| argument.to_string_lossy().contains(&text)) {
            let sentence = "every user of this machine can see the password in --database; set SORTIE_DATABASE_URL \
                            instead, or use --database-file";
            return Err(Failure::usage(sentence));
        }
        Ok(Some(url))
    }
}
