//! What the tests and benchmarks of every part share: child programs with a watched output, a TCP relay that can be
//! cut and frozen, a load generator, and a small MCP server to talk to.
//!
//! It never ships: no crate may depend on it outside `dev-dependencies`, `xtask` excepted. It talks to loopback only,
//! waits on conditions instead of sleeping, and ends everything that it started when the owner is dropped.

pub mod echo;
pub mod home;
pub mod load;
pub mod messages;
pub mod postgres;
pub mod process;
pub mod relay;
pub mod skip;
pub mod usage;
pub mod vault;

pub use echo::EchoServer;
pub use home::TempHome;
pub use load::{Load, LoadReport};
pub use messages::{MessagesServer, MessagesState, Piece, Reply};
pub use postgres::Postgres;
pub use process::{Process, Program, eventually, free_port};
pub use relay::Relay;
pub use skip::{skip_host, skip_tool, tool};
pub use vault::{VaultServer, VaultState};
