//! The agent's HTTP service, over TCP and over its unix socket.
//! [docs/http-api.md](../../../docs/http-api.md) describes it for users.
//!
//! | path | answer |
//! |---|---|
//! | `/` | a page with links |
//! | `/metrics`, or `--web.telemetry-path` | Prometheus' text format |
//! | `/livez` | 200 while the agent's tasks are at work; else 503 and which aren't |
//! | `/readyz` | 200 once what was open before the start is counted; else 503 and what is missing |
//! | `/v1/containers[?processes=true]` | [`Listing`](crate::api::Listing) |
//! | `/v1/containers/NAME` | [`ContainerReport`](crate::api::ContainerReport), by name or id |
//! | `/v1/events[?container=ID][&kind=KIND…]` | a line for each [`Notice`](crate::api::Notice) |
//!
//! A request takes this way: `listen` (addresses, sockets) → `connection` (TLS, time limits) →
//! `routes` (limits, passwords, paths) → `answer`.
//!
//! - `access`: who is told about processes;
//! - `web_config`: the file of `--web.config.file`, with `tls` and `auth`; `protection` keeps it
//!   current;
//! - `events`: streams; `client`: the client that the other commands use.

mod access;
mod answer;
mod auth;
mod client;
mod connection;
mod events;
mod listen;
mod protection;
mod routes;
mod tls;
mod web_config;

pub use client::{Client, ClientError, Events};
pub use listen::{Listeners, Options, ServeError, SocketGuard};
pub use protection::Protection;
pub use routes::Service;
pub use web_config::{WebConfig, WebConfigError};
