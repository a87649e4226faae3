//! The HTTP API from outside: request by request, and with the official SDK.

mod access;
mod events;
mod fixture;
mod openapi;
mod python_sdk;
mod repeats;
mod requests;
mod workspaces;
