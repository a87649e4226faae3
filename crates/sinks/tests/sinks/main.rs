//! Sinks against receivers: HTTP endpoints of the tests, and the real ones that are installed.

mod crash;
mod http;
mod otlp;
mod outage;
mod splunk;
mod spool;
mod steps;
mod support;
mod syslog;
