//! Where in `params` and `result` the ids are that have to be rewritten.

use super::Refused;
use crate::envelope::{Envelope, Id, Message};
use crate::object;

const SUBSCRIPTION_ID: &str = "io.modelcontextprotocol/subscriptionId";

/// By what a notification names the request that it belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) enum By {
    /// `params.progressToken`.
    Token,
    /// `params._meta["io.modelcontextprotocol/subscriptionId"]`.
    Subscription,
    /// `params.requestId` of a cancellation: on stdio, how a server ends a subscription (2026-07-28).
    End,
}

pub(super) enum Belonging<'a> {
    Nobody,
    Request {
        /// The name of the request, as it is written.
        raw: &'a str,
        by: By,
    },
    /// A notification that must name a request and does not, or names two.
    Unclear,
}

/// The progress token in `params` of a request.
pub fn progress_token_of_request(params: Option<&str>) -> Result<Option<&str>, Refused> {
    let Some(meta) = member(params, "_meta")? else { return Ok(None) };
    if !meta.starts_with('{') {
        return Ok(None);
    }
    match member(Some(meta), "progressToken")? {
        // A reader may round what is no integer to one, and that may be somebody else's token.
        Some(token) if Id::parse(token).is_none() => Err(Refused::NoId { name: "progressToken" }),
        token => Ok(token),
    }
}

/// The token in `params` of a progress notification.
pub fn token_of_progress(params: Option<&str>) -> Result<Option<&str>, Refused> {
    member(params, "progressToken")
}

/// The id in `params` of a cancellation.
pub fn request_id_of_cancellation(params: Option<&str>) -> Result<Option<&str>, Refused> {
    member(params, "requestId")
}

/// The subscription that a result or the params of a notification name.
pub(super) fn subscription_of(object: &str) -> Option<&str> {
    subscription(Some(object)).ok().flatten()
}

pub(super) fn place_of_notification(message: &Message) -> Belonging<'_> {
    let Envelope::Notification { method, params } = message.envelope() else { return Belonging::Unclear };
    let (found, by) = match method {
        "notifications/progress" => (token_of_progress(params), By::Token),
        "notifications/cancelled" => (member(params, "requestId"), By::End),
        _ => match subscription(params) {
            Ok(None) => return Belonging::Nobody,
            found => (found, By::Subscription),
        },
    };
    match found {
        Ok(Some(raw)) => Belonging::Request { raw, by },
        Ok(None) | Err(_) => Belonging::Unclear,
    }
}

fn subscription(object: Option<&str>) -> Result<Option<&str>, Refused> {
    match member(object, "_meta")? {
        Some(meta) if meta.starts_with('{') => member(Some(meta), SUBSCRIPTION_ID),
        _ => Ok(None),
    }
}

fn member<'a>(object: Option<&'a str>, name: &'static str) -> Result<Option<&'a str>, Refused> {
    let Some(object) = object else { return Ok(None) };
    let [found] = object::find(object, [name])?;
    Ok(found.map(|value| value.get()))
}
