//! The HTTP API from outside: request by request, and with the official SDK.

mod access;
mod events;
mod fixture;
mod openapi;
mod repeats;
mod requests;
mod roles;
mod sdks;
mod sessions;
mod work;
mod workspaces;
