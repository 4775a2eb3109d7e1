//! Which requests are allowed when: decisions only, no effects.
//!
//! ```text
//! Undecided ──initialize──> Handshaken        legacy: one handshake, then everything else
//!     │ └───any other legacy request──> Legacy
//!     └─────modern metadata───────────> Modern   every request stands for itself
//! ```

use crate::args::Eras;
use crate::revision::{self, Revision};
use crate::rpc::{ErrorKind, Request, RpcError};
use serde_json::{Map, Value, json};

const META_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const META_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
const META_CLIENT: &str = "io.modelcontextprotocol/clientInfo";

/// Where a conversation stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// The first request decides the era.
    Undecided,
    /// Legacy, `initialize` is still to come.
    Legacy,
    /// Legacy, initialised.
    Handshaken(Terms),
    /// Modern.
    Modern,
}

impl Phase {
    /// Where a stdio conversation begins.
    pub fn first(eras: Eras) -> Self {
        match eras {
            Eras::Legacy => Self::Legacy,
            Eras::Modern => Self::Modern,
            Eras::Both => Self::Undecided,
        }
    }
}

/// Under which revision a request is answered, and to whom.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    /// The revision.
    pub revision: Revision,
    /// What the client says it is; null if it says nothing.
    pub client: Value,
    /// What the client says it can do.
    pub capabilities: Map<String, Value>,
}

/// An allowed request.
#[derive(Debug, PartialEq)]
pub enum Admitted {
    /// The handshake, now done.
    Initialize(Terms),
    /// A `ping` before the handshake.
    EarlyPing,
    /// Anything else.
    Call(Terms),
}

/// Whether a request speaks of the modern era by itself.
pub fn is_modern(request: &Request) -> bool {
    request.method == "server/discover"
        || request.params.get("_meta").is_some_and(|meta| meta.get(META_VERSION).is_some())
}

/// The revision that a modern request names.
pub fn version(request: &Request) -> Option<&str> {
    request.params.get("_meta")?.get(META_VERSION)?.as_str()
}

/// Decides about a request, and moves the conversation on.
pub fn admit(phase: &mut Phase, request: &Request) -> Result<Admitted, RpcError> {
    if *phase == Phase::Undecided {
        *phase = if is_modern(request) { Phase::Modern } else { Phase::Legacy };
    }
    match phase {
        Phase::Modern => modern_terms(request).map(Admitted::Call),
        Phase::Handshaken(_) if request.method == "initialize" => {
            Err(RpcError::new(ErrorKind::InvalidRequest, "initialize was answered already"))
        }
        Phase::Handshaken(terms) => Ok(Admitted::Call(terms.clone())),
        Phase::Undecided | Phase::Legacy => match request.method.as_str() {
            "initialize" => {
                let terms = handshake(&request.params)?;
                *phase = Phase::Handshaken(terms.clone());
                Ok(Admitted::Initialize(terms))
            }
            "ping" => Ok(Admitted::EarlyPing),
            method => {
                let message = format!("{method} before initialize");
                Err(RpcError::new(ErrorKind::InvalidRequest, message))
            }
        },
    }
}

fn handshake(params: &Map<String, Value>) -> Result<Terms, RpcError> {
    let missing = |name: &str, shape: &str| {
        RpcError::new(ErrorKind::InvalidParams, format!("params.{name} must be {shape}"))
    };
    let version = params
        .get("protocolVersion")
        .and_then(Value::as_str)
        .ok_or_else(|| missing("protocolVersion", "a string"))?;
    let capabilities = params
        .get("capabilities")
        .and_then(Value::as_object)
        .ok_or_else(|| missing("capabilities", "an object"))?;
    let client = params
        .get("clientInfo")
        .filter(|client| client.is_object())
        .ok_or_else(|| missing("clientInfo", "an object"))?;
    Ok(Terms {
        revision: Revision::negotiate(version),
        client: client.clone(),
        capabilities: capabilities.clone(),
    })
}

/// Reads the metadata that every modern request carries (2026-07-28, basic, `_meta`).
fn modern_terms(request: &Request) -> Result<Terms, RpcError> {
    if request.method == "initialize" {
        // A legacy client can show only this text to its user, so it names what is spoken here.
        let supported = revision::names(&Revision::MODERN);
        let message = format!("initialize does not exist in the revisions spoken here: {supported}");
        let data = json!({ "supported": supported });
        return Err(RpcError::new(ErrorKind::MethodNotFound, message).with_data(data));
    }
    let malformed = |name: &str, shape: &str| {
        RpcError::new(ErrorKind::InvalidMeta, format!("params._meta[{name:?}] must be {shape}"))
    };
    let meta = request
        .params
        .get("_meta")
        .and_then(Value::as_object)
        .ok_or_else(|| RpcError::new(ErrorKind::InvalidMeta, "params._meta must be an object"))?;
    let version =
        meta.get(META_VERSION).and_then(Value::as_str).ok_or_else(|| malformed(META_VERSION, "a string"))?;
    let revision = Revision::modern(version).ok_or_else(|| unsupported(version))?;
    let capabilities = meta
        .get(META_CAPABILITIES)
        .and_then(Value::as_object)
        .ok_or_else(|| malformed(META_CAPABILITIES, "an object"))?;
    let client = match meta.get(META_CLIENT) {
        None => Value::Null,
        Some(client) if client.is_object() => client.clone(),
        Some(_) => return Err(malformed(META_CLIENT, "an object")),
    };
    Ok(Terms { revision, client, capabilities: capabilities.clone() })
}

fn unsupported(version: &str) -> RpcError {
    let data = json!({ "supported": revision::names(&Revision::MODERN), "requested": version });
    RpcError::new(ErrorKind::UnsupportedVersion, "unsupported protocol version").with_data(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::Id;

    fn request(method: &str, params: Value) -> Request {
        let Value::Object(params) = params else { panic!("params are an object") };
        Request { id: Id::Signed(1), method: method.to_owned(), params }
    }

    fn initialize() -> Request {
        let params = json!({
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "c", "version": "1" },
        });
        request("initialize", params)
    }

    fn meta(version: &str) -> Value {
        json!({ "_meta": { META_VERSION: version, META_CAPABILITIES: { "roots": {} } } })
    }

    #[test]
    fn the_first_request_decides_the_era() {
        for (first, expected) in [
            (request("ping", json!({})), Phase::Legacy),
            (request("tools/list", json!({})), Phase::Legacy),
            (request("tools/list", meta("2026-07-28")), Phase::Modern),
            (request("tools/list", meta("1900-01-01")), Phase::Modern),
            (request("server/discover", json!({})), Phase::Modern),
        ] {
            let mut phase = Phase::first(Eras::Both);
            let _ = admit(&mut phase, &first);
            assert_eq!(phase, expected, "{first:?}");
        }
    }

    #[test]
    fn one_handshake_comes_before_anything_but_a_ping() {
        let mut phase = Phase::first(Eras::Legacy);
        let refused = admit(&mut phase, &request("tools/list", json!({}))).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::InvalidRequest);
        assert_eq!(admit(&mut phase, &request("ping", json!({}))), Ok(Admitted::EarlyPing));
        let incomplete = admit(&mut phase, &request("initialize", json!({}))).unwrap_err();
        assert_eq!(incomplete.kind, ErrorKind::InvalidParams);
        assert!(matches!(admit(&mut phase, &initialize()), Ok(Admitted::Initialize(_))));
        assert_eq!(admit(&mut phase, &initialize()).unwrap_err().kind, ErrorKind::InvalidRequest);
        let Ok(Admitted::Call(terms)) = admit(&mut phase, &request("tools/list", json!({}))) else {
            panic!("the handshake is done");
        };
        assert_eq!(terms.revision, Revision::V2025_06_18);
    }

    #[test]
    fn every_modern_request_brings_its_own_terms() {
        let kind =
            |params| admit(&mut Phase::Modern, &request("tools/list", params)).map_err(|error| error.kind);
        assert_eq!(kind(json!({})), Err(ErrorKind::InvalidMeta));
        assert_eq!(kind(json!({ "_meta": {} })), Err(ErrorKind::InvalidMeta));
        assert_eq!(kind(json!({ "_meta": { META_VERSION: "2026-07-28" } })), Err(ErrorKind::InvalidMeta));
        assert_eq!(kind(meta("2025-11-25")), Err(ErrorKind::UnsupportedVersion));
        assert!(kind(meta("2026-07-28")).is_ok());
        let late = admit(&mut Phase::Modern, &initialize()).unwrap_err();
        assert_eq!(late.kind, ErrorKind::MethodNotFound);
    }
}
