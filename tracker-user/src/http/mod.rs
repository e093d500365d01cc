//! What the agent answers: `/metrics` and `/readyz` over TCP; over its unix socket also `/v1`, which tells process names.
//!
//! | path | answer |
//! |---|---|
//! | `/` | a page with links |
//! | `/metrics` | Prometheus' text format |
//! | `/livez` | 200 while the agent runs |
//! | `/readyz` | 200 once what was open before the start is counted; 503 until then |
//! | `/v1/containers[?processes=true]` | [`Listing`](crate::report::Listing) |
//! | `/v1/events[?container=ID][&kind=KIND…]` | a [`Notice`](crate::report::Notice) per line, as they come |

mod client;
mod server;

pub use client::{Client, ClientError, Events};
pub use server::{BACKLOG, Filter, Line, Lines, Listeners, ServeError, Service, SocketGuard};
