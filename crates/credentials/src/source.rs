//! The places that secrets live in.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sortie_tls::Secret;
use zeroize::Zeroizing;

use crate::command;
use crate::problem::Problem;

/// Largest secret, in bytes.
pub(crate) const MAX_SECRET: usize = 64 * 1024;
/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The content of a file, without white space at its ends; read again when it changes. Refused when its permissions
    /// let others than owner and group read it, or others than the owner write it.
    File(PathBuf),
    /// A variable of this process's environment, as it was at the start.
    Env(String),
    /// What a program prints.
    Command(Command),
    /// A secret of a Vault or OpenBao server.
    Vault(VaultSecret),
}

/// A program that prints a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The program and its arguments; no shell reads them.
    pub argv: Vec<String>,
    /// How long it may take; then it is killed.
    pub timeout: Duration,
    /// How long what it printed may be used; it is run again when four fifths of this have passed.
    pub cache: Duration,
    /// Names of variables of our environment that it gets, beside PATH, HOME, USER, LANG, TMPDIR and XDG_RUNTIME_DIR.
    pub environment: Vec<String>,
}

/// A secret of a Vault or OpenBao server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultSecret {
    /// The name of the server in the settings.
    pub server: String,
    /// The path as Vault's API has it, without `/v1/`: `secret/data/wiki` (KV v2), `kv/wiki` (KV v1),
    /// `database/creds/reader` (dynamic).
    pub path: String,
    /// The member of the answer's data.
    pub field: String,
    /// How often a value without a lease is looked at again.
    pub refresh: Duration,
    /// What is written to the path to have the secret made, as `common_name` for `pki/issue/agents`; where there is
    /// nothing, the path is read.
    pub parameters: BTreeMap<String, String>,
}

impl Source {
    /// Its kind, as settings and metrics call it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Env(_) => "env",
            Self::Command(_) => "command",
            Self::Vault(_) => "vault",
        }
    }

    /// What is missing for it, as far as that shows without asking anybody. Blocks.
    ///
    /// # Errors
    /// The file that cannot be read, the variable that is not set, or the program that is not there, by its name.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::File(path) => read_file(path).map(drop).map_err(|problem| problem.private),
            Self::Env(name) => read_env(name).map(drop).map_err(|problem| problem.private),
            Self::Command(command) => {
                let name = command.argv.first().map(String::as_str).unwrap_or_default();
                if is_there(name) { Ok(()) } else { Err(format!("there is no program `{name}`")) }
            }
            Self::Vault(_) => Ok(()),
        }
    }

    /// The secret, where it can be had without asking a server or running a program. Blocks.
    pub(crate) fn at_hand(&self) -> Option<Secret> {
        match self {
            Self::File(path) => read_file(path).ok(),
            Self::Env(name) => read_env(name).ok(),
            Self::Command(_) | Self::Vault(_) => None,
        }
    }

    /// Reads a source that needs no server.
    pub(crate) async fn read(&self) -> Result<Found, Problem> {
        match self {
            Self::File(path) => {
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || read_file(&path)).await;
                let secret = read.map_err(|_| Problem::passing("it cannot be read", "the program is ending"))??;
                Ok(Found { secret, until: None, again: Some(LOOK_EVERY) })
            }
            Self::Env(name) => Ok(Found { secret: read_env(name)?, until: None, again: None }),
            Self::Command(command) => {
                let secret = command::run(command).await?;
                Ok(Found { secret, until: Some(command.cache), again: Some(command.cache * 4 / 5) })
            }
            Self::Vault(secret) => {
                let told = format!("`{}` is no place for the secrets with which a vault is opened", secret.path);
                Err(Problem::withdrawn("it cannot be read", told))
            }
        }
    }
}

/// A secret, how long it may be used, and when to look again; `None` for ever and for never.
pub(crate) struct Found {
    pub(crate) secret: Secret,
    pub(crate) until: Option<Duration>,
    pub(crate) again: Option<Duration>,
}

fn read_file(path: &Path) -> Result<Secret, Problem> {
    const PUBLIC: &str = "its file cannot be used";
    let problem = |what: String| Problem::passing(PUBLIC, format!("{}: {what}", path.display()));
    let file = std::fs::File::open(path).map_err(|error| problem(error.to_string()))?;
    let meta = file.metadata().map_err(|error| problem(error.to_string()))?;
    if !meta.is_file() {
        return Err(problem("it is no file".to_owned()));
    }
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o027 != 0 {
        let told = format!(
            "its permissions {mode:04o} let others read or change it; chmod 0600 (in Kubernetes: defaultMode: 0400)"
        );
        return Err(problem(told));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    let bound = u64::try_from(MAX_SECRET + 1).unwrap_or(u64::MAX);
    file.take(bound).read_to_end(&mut bytes).map_err(|error| problem(error.to_string()))?;
    if bytes.len() > MAX_SECRET {
        return Err(problem(format!("it is larger than {MAX_SECRET} bytes")));
    }
    secret_of(bytes).map_err(|what| problem(format!("its content {what}")))
}

fn read_env(name: &str) -> Result<Secret, Problem> {
    const PUBLIC: &str = "its variable cannot be used";
    let problem = |what: &str| Problem::withdrawn(PUBLIC, format!("the environment variable {name} {what}"));
    match std::env::var(name) {
        Err(std::env::VarError::NotPresent) => Err(problem("is not set")),
        Err(std::env::VarError::NotUnicode(_)) => Err(problem("is not UTF-8")),
        Ok(text) => secret_of(Zeroizing::new(text.into_bytes())).map_err(problem),
    }
}

/// White space around it is no part of a secret. What is wrong is told without anything of it.
pub(crate) fn secret_of(bytes: Zeroizing<Vec<u8>>) -> Result<Secret, &'static str> {
    let text = std::str::from_utf8(&bytes).map_err(|_| "is not UTF-8")?.trim();
    if text.is_empty() {
        return Err("is empty");
    }
    // Keys in PEM have lines, and may have words before them; whatever goes into a header has one.
    if text.contains(['\n', '\r']) && !text.contains("-----BEGIN ") {
        return Err("has more than one line");
    }
    Ok(Secret::new(text.to_owned()))
}

fn is_there(program: &str) -> bool {
    let runs = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return runs(Path::new(program));
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    !program.is_empty() && std::env::split_paths(&paths).any(|dir| runs(&dir.join(program)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(mode: u32, content: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("secret");
        std::fs::write(&path, content).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode");
        (dir, path)
    }

    #[test]
    fn files_of_others_are_refused() {
        for (mode, good) in [(0o600, true), (0o400, true), (0o440, true), (0o640, true), (0o604, false), (0o620, false)]
        {
            let (_dir, path) = file(mode, "abc\n");
            let read = read_file(&path);
            assert_eq!(read.is_ok(), good, "{mode:o}");
            match read {
                Ok(secret) => assert_eq!(secret.expose(), "abc"),
                Err(problem) => assert!(problem.private.contains("chmod 0600"), "{problem:?}"),
            }
        }
        for (content, said) in [("", "is empty"), (" \n", "is empty"), ("a\nb", "more than one line")] {
            let (_dir, path) = file(0o600, content);
            assert!(read_file(&path).expect_err(content).private.contains(said));
        }
        let (_dir, path) = file(0o600, &"x".repeat(MAX_SECRET + 1));
        assert!(read_file(&path).expect_err("large").private.contains("larger than 65536 bytes"));
        let (dir, _) = file(0o600, "x");
        assert!(read_file(dir.path()).expect_err("directory").private.contains("no file"));
    }

    #[test]
    fn what_is_missing_names_itself() {
        let said = |source: Source| source.check().expect_err("missing");
        assert!(said(Source::Env("SORTIE_NO_SUCH_VARIABLE".into())).contains("SORTIE_NO_SUCH_VARIABLE is not set"));
        assert!(said(Source::File("/nonexistent/x".into())).starts_with("/nonexistent/x: "));
        let command = |program: &str| {
            let minute = Duration::from_secs(60);
            Source::Command(Command { argv: vec![program.into()], timeout: minute, cache: minute, environment: vec![] })
        };
        assert!(said(command("no-such-program-here")).contains("`no-such-program-here`"));
        assert!(said(command("/etc/passwd")).contains("/etc/passwd"));
        assert_eq!(command("sh").check(), Ok(()));
    }
}
