//! Where the database is that is not a file of our own, and what opens it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

/// The parameters that a URL may have. Others are refused, not passed over: a mistyped one would be a setting that is not
/// in force, or a password in a log.
const PARAMETERS: [&str; 9] =
    ["sslmode", "sslrootcert", "sslcert", "sslkey", "host", "port", "user", "password", "options"];

/// A PostgreSQL database and the way to open it, `postgres://USER:PASSWORD@HOST:PORT/DATABASE?PARAMETERS`. Shown, it has
/// no password.
#[derive(Clone)]
pub struct DatabaseUrl {
    options: PgConnectOptions,
    has_password: bool,
}

/// Why a text is no [`DatabaseUrl`]. Repeats nothing that may be a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseUrlError {
    /// It is no such URL.
    #[error(
        "it is not a URL of the form postgres://USER@HOST/DATABASE; other characters than letters and digits are written as %XX in a password"
    )]
    Form,
    /// It names no database.
    #[error("it names no database: postgres://USER@HOST/DATABASE")]
    NoDatabase,
    /// It has a parameter that is not known.
    #[error("its parameter `{0}` is not known; there are {known}", known = PARAMETERS.join(", "))]
    Parameter(String),
    /// It has a parameter whose value is not possible.
    #[error(
        "one of its parameters has a value that is not possible; sslmode is disable, prefer, require, verify-ca or verify-full"
    )]
    Value,
    /// It would be talked to over a network without knowing who answers.
    #[error(
        "{0} is not this machine, so that the connection must be encrypted and the server proven: leave `sslmode` out, or \
         say verify-full (with sslrootcert=FILE for a CA of your own)"
    )]
    Unproven(String),
}

impl DatabaseUrl {
    /// Whether the password is in its text, which has to be kept out of lists of processes then.
    pub fn has_password(&self) -> bool {
        self.has_password
    }

    /// How to connect.
    pub(crate) fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }
}

impl FromStr for DatabaseUrl {
    type Err = DatabaseUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = Url::parse(text.trim()).map_err(|_| DatabaseUrlError::Form)?;
        if !matches!(url.scheme(), "postgres" | "postgresql") || url.fragment().is_some() {
            return Err(DatabaseUrlError::Form);
        }
        let (mut has_password, mut asked) = (url.password().is_some(), false);
        for (name, _) in url.query_pairs() {
            match &*name {
                "password" => has_password = true,
                "sslmode" => asked = true,
                known if PARAMETERS.contains(&known) => {}
                unknown => return Err(DatabaseUrlError::Parameter(unknown.to_owned())),
            }
        }
        let mut options = PgConnectOptions::from_url(&url).map_err(|_| DatabaseUrlError::Value)?;
        if options.get_database().is_none_or(str::is_empty) {
            return Err(DatabaseUrlError::NoDatabase);
        }
        if !is_here(&options) {
            match options.get_ssl_mode() {
                PgSslMode::VerifyFull => {}
                _ if asked => return Err(DatabaseUrlError::Unproven(options.get_host().to_owned())),
                _ => options = options.ssl_mode(PgSslMode::VerifyFull),
            }
        }
        Ok(Self { options: options.application_name("sortie hub").disable_statement_logging(), has_password })
    }
}

/// Whether it is reached without a network.
fn is_here(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.options;
        write!(f, "postgres://{}@", options.get_username())?;
        match options.get_socket() {
            Some(socket) => write!(f, "{}", socket.display())?,
            None => write!(f, "{}:{}", options.get_host(), options.get_port())?,
        }
        write!(f, "/{}", options.get_database().unwrap_or_default())
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<DatabaseUrl, DatabaseUrlError> {
        text.parse()
    }

    #[test]
    fn a_password_is_shown_nowhere() {
        for text in ["postgres://me:hunter2@localhost/sortie", "postgresql://me@localhost/sortie?password=hunter2"] {
            let url = parsed(text).expect("url");
            assert!(url.has_password());
            assert_eq!(url.to_string(), "postgres://me@localhost:5432/sortie");
            assert!(!format!("{url:?} {url:#?}").contains("hunter2"));
        }
        for wrong in [
            "postgres://me:hunter2@local host/sortie",
            "mysql://me:hunter2@localhost/sortie",
            "postgres://me:hunter2@localhost",
            "postgres://me:hunter2@localhost/",
            "postgres://me:hunter2@localhost:port/sortie",
            "postgres://me@localhost/sortie?sslmode=hunter2",
            "postgres://me@localhost/sortie?port=hunter2",
            "postgres://me@localhost/sortie?pasword=hunter2",
            "postgres://me:hunter2@db.example/sortie?sslmode=require",
            "hunter2",
        ] {
            let error = parsed(wrong).expect_err(wrong);
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        assert!(!parsed("postgres://me@localhost/sortie").expect("url").has_password());
    }

    #[test]
    fn only_a_proven_server_is_talked_to_over_a_network() {
        let mode = |text: &str| parsed(text).map(|url| url.options().get_ssl_mode());
        assert!(matches!(mode("postgres://db.example/sortie"), Ok(PgSslMode::VerifyFull)));
        assert!(matches!(mode("postgres://db.example/sortie?sslmode=verify-full"), Ok(PgSslMode::VerifyFull)));
        for weak in ["disable", "allow", "prefer", "require", "verify-ca"] {
            let error = mode(&format!("postgres://10.1.2.3/sortie?sslmode={weak}")).expect_err(weak);
            assert_eq!(error, DatabaseUrlError::Unproven("10.1.2.3".to_owned()));
        }
        for here in
            ["localhost/sortie", "127.0.0.1/sortie", "[::1]/sortie", "/sortie?host=/run/pg", "%2Frun%2Fpg/sortie"]
        {
            for asked in ["sslmode=disable", "sslmode=prefer"] {
                let join = if here.contains('?') { '&' } else { '?' };
                let mode = mode(&format!("postgres://{here}{join}{asked}"));
                assert!(matches!(mode, Ok(PgSslMode::Disable | PgSslMode::Prefer)), "{here} {mode:?}");
            }
        }
    }
}
