//! Answers: documents, streams, errors.

use crate::session::EventBody;
use http_body_util::{Either, Full};
use hyper::{
    StatusCode,
    body::Bytes,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue},
};
use serde_json::{Value, json};

/// What an answer holds.
pub(crate) type Body = Either<Full<Bytes>, EventBody>;

/// An answer.
pub(crate) type Response = hyper::Response<Body>;

/// Tells nginx and its like to pass events on as they come.
const UNBUFFERED: HeaderName = HeaderName::from_static("x-accel-buffering");

/// A document; `text` is JSON.
pub(crate) fn json(status: StatusCode, text: impl Into<Bytes>) -> Response {
    let mut response = hyper::Response::new(Either::Left(Full::new(text.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Nothing.
pub(crate) fn empty(status: StatusCode) -> Response {
    let mut response = hyper::Response::new(Either::Left(Full::default()));
    *response.status_mut() = status;
    response
}

/// A stream.
pub(crate) fn events(body: EventBody) -> Response {
    let mut response = hyper::Response::new(Either::Right(body));
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    fields.insert(UNBUFFERED, HeaderValue::from_static("no"));
    response
}

/// An error response; `id` is JSON.
pub(crate) fn error(id: &str, code: i32, message: &str, data: Option<Value>) -> String {
    let mut error = json!({ "code": code, "message": message });
    if let Some(data) = data {
        error["data"] = data;
    }
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#)
}
