//! The `_meta` keys that requests need.

use crate::compose::quoted;
use crate::era::Era;
use crate::object::{self, ObjectError};

const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const CLIENT_INFO: &str = "io.modelcontextprotocol/clientInfo";
const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
const PROGRESS_TOKEN: &str = "progressToken";

/// Who this client says it is.
#[derive(Debug)]
pub(super) struct Identity {
    /// An `Implementation` of the schema, as JSON.
    pub client_info: String,
}

impl Identity {
    pub fn new(name: &str, version: &str) -> Self {
        Self { client_info: format!(r#"{{"name":{},"version":{}}}"#, quoted(name), quoted(version)) }
    }

    /// `params` as a request of this era needs them. Keys that `params` has already stay as they are.
    pub fn params(
        &self,
        era: Era,
        params: Option<&str>,
        progress: bool,
    ) -> Result<Option<String>, ObjectError> {
        let version = quoted(era.version());
        let stateless = [(VERSION, version.as_str()), (CLIENT_INFO, &self.client_info), (CAPABILITIES, "{}")];
        // The multiplexer replaces the token: any will do.
        let token = (PROGRESS_TOKEN, "0");
        match (era.is_modern(), progress) {
            (false, false) => Ok(params.map(str::to_owned)),
            (false, true) => with_meta(params, [token]).map(Some),
            (true, false) => with_meta(params, stateless).map(Some),
            (true, true) => {
                let [version, info, capabilities] = stateless;
                with_meta(params, [version, info, capabilities, token]).map(Some)
            }
        }
    }
}

/// Adds `keys` to the `_meta` of `params`, but those that are there.
fn with_meta<const N: usize>(
    params: Option<&str>,
    keys: [(&'static str, &str); N],
) -> Result<String, ObjectError> {
    let params = params.unwrap_or("{}");
    let [meta] = object::find(params, ["_meta"])?;
    let present = match meta {
        Some(meta) => object::find(meta.get(), keys.map(|(key, _)| key))?,
        None => [None; N],
    };
    let missing: Vec<_> = keys
        .iter()
        .zip(present)
        .filter(|(_, present)| present.is_none())
        .map(|((key, value), _)| format!(r#""{key}":{value}"#))
        .collect();
    let missing = missing.join(",");
    Ok(match meta {
        Some(meta) => {
            let merged = with_first(meta.get(), &missing);
            object::splice(params, &[(object::span(params, meta.get()), &merged)])
        }
        None => with_first(params, &format!(r#""_meta":{{{missing}}}"#)),
    })
}

/// `object` with `members` put before its own.
fn with_first(object: &str, members: &str) -> String {
    let start = object.find('{').map_or(0, |brace| brace + 1);
    let empty = object[start..].trim_ascii_start().starts_with('}');
    let comma = if empty || members.is_empty() { "" } else { "," };
    format!("{}{members}{comma}{}", &object[..start], &object[start..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::era::{NEWEST_LEGACY, NEWEST_MODERN};

    const MODERN: Era = Era::Modern { version: NEWEST_MODERN };
    const LEGACY: Era = Era::Legacy { version: NEWEST_LEGACY };
    const KEYS: &str = concat!(
        r#""io.modelcontextprotocol/protocolVersion":"2026-07-28","#,
        r#""io.modelcontextprotocol/clientInfo":{"name":"c","version":"1"},"#,
        r#""io.modelcontextprotocol/clientCapabilities":{}"#
    );

    fn params(era: Era, given: Option<&str>, progress: bool) -> Option<String> {
        Identity::new("c", "1").params(era, given, progress).unwrap()
    }

    #[test]
    fn modern_requests_say_who_asks() {
        let modern = |given| params(MODERN, given, false).unwrap();
        assert_eq!(modern(None), format!(r#"{{"_meta":{{{KEYS}}}}}"#));
        assert_eq!(modern(Some("{ }")), format!(r#"{{"_meta":{{{KEYS}}} }}"#));
        assert_eq!(modern(Some(r#"{"a": 1.0}"#)), format!(r#"{{"_meta":{{{KEYS}}},"a": 1.0}}"#));
        let merged = modern(Some(r#"{"a":1, "_meta" : {"x": "y"}}"#));
        assert_eq!(merged, format!(r#"{{"a":1, "_meta" : {{{KEYS},"x": "y"}}}}"#));
    }

    #[test]
    fn keys_that_are_there_stay() {
        let given = format!(r#"{{"_meta":{{{KEYS}}}}}"#);
        assert_eq!(params(MODERN, Some(&given), false).unwrap(), given);
        let given = r#"{"_meta":{"progressToken":"mine"}}"#;
        assert_eq!(params(LEGACY, Some(given), true).unwrap(), given);
    }

    #[test]
    fn legacy_requests_stay_as_they_are_but_for_the_token() {
        assert_eq!(params(LEGACY, None, false), None);
        assert_eq!(params(LEGACY, Some(r#"{"a":1}"#), false).unwrap(), r#"{"a":1}"#);
        assert_eq!(params(LEGACY, None, true).unwrap(), r#"{"_meta":{"progressToken":0}}"#);
        let modern = params(MODERN, None, true).unwrap();
        assert_eq!(modern, format!(r#"{{"_meta":{{{KEYS},"progressToken":0}}}}"#));
    }

    #[test]
    fn params_that_cannot_take_keys_are_refused() {
        for given in [r#"{"_meta":1}"#, r#"{"_meta":{},"_meta":{}}"#, "[]"] {
            assert!(Identity::new("c", "1").params(MODERN, Some(given), false).is_err(), "{given}");
        }
    }
}
