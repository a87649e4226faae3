//! What every long-running role stands on: owned tasks, stopping, backoff, places for connections, the bounds of HTTP,
//! logs and metrics.
//!
//! Knows nothing of tunnels or MCP. Every task of the program is spawned through a [`TaskSet`], so that stopping is
//! one call: tasks are told to finish, waited for until a deadline, and then dropped.

pub mod addresses;
mod backoff;
mod dumps;
mod files;
pub mod http;
mod logs;
mod measure;
mod places;
mod presence;
mod signals;
mod tasks;

pub use backoff::Backoff;
pub use dumps::forbid_dumps;
pub use files::raise_open_files;
pub use logs::{LogFormat, Logs, init_logs};
pub use measure::Metrics;
pub use places::{DEFAULT_SHARE, NoPlace, Place, Places};
pub use presence::{close_gently, notice_absence};
pub use signals::{ReloadSignal, Stop, stop_signal};
pub use tasks::TaskSet;
