//! Builds answers.

use std::borrow::Cow;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::{
    Response, StatusCode,
    header::{self, HeaderValue},
};

use super::events::Stream;

/// An answer: either complete, or a stream.
pub(super) type Answer = Response<Either<Full<Bytes>, Stream>>;

pub(super) fn typed(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut response = Response::new(Either::Left(Full::new(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

pub(super) fn text(status: StatusCode, body: impl Into<Cow<'static, str>>) -> Answer {
    let body = match body.into() {
        Cow::Borrowed(body) => Bytes::from_static(body.as_bytes()),
        Cow::Owned(body) => body.into(),
    };
    typed(status, "text/plain; charset=utf-8", body)
}

/// Builds a text answer with a header that tells the client what to do instead.
pub(super) fn text_with(
    status: StatusCode,
    name: header::HeaderName,
    value: &'static str,
    body: &'static str,
) -> Answer {
    let mut response = text(status, body);
    response.headers_mut().insert(name, HeaderValue::from_static(value));
    response
}

pub(super) fn json(value: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => typed(StatusCode::OK, "application/json", body.into()),
        Err(error) => failed(&error.to_string()),
    }
}

pub(super) fn stream(stream: Stream) -> Answer {
    let mut response = Response::new(Either::Right(stream));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

pub(super) fn failed(error: &str) -> Answer {
    tracing::error!(error, "answer a request");
    text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
}

/// Builds the page at `/`.
pub(super) fn page(telemetry_path: &str) -> Answer {
    let version = env!("CARGO_PKG_VERSION");
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>fdtracker</title>\n<h1>fdtracker {version}</h1>\n\
         <p>Which containers could CRIU checkpoint now, and which open files stand in the way?</p>\n<ul>\n\
         <li><a href=\"{telemetry_path}\">{telemetry_path}</a>: metrics</li>\n\
         <li><a href=\"/v1/containers\">/v1/containers</a>: containers, and /v1/containers/NAME: what stops one</li>\n\
         <li>/v1/events: events, a line of JSON each</li>\n\
         <li><a href=\"/readyz\">/readyz</a>, <a href=\"/livez\">/livez</a>: health</li>\n</ul></html>\n"
    );
    typed(StatusCode::OK, "text/html; charset=utf-8", page.into())
}
