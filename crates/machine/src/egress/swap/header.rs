//! Header fields of requests: secrets in place of their placeholders, and what belongs to one connection only.

use crate::secret::Swapped;
use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::{
    HeaderMap,
    header::{self, HeaderName, HeaderValue},
};
use memchr::memmem;
use zeroize::Zeroizing;

/// Fields of one connection (RFC 9110, section 7.6.1), and what a proxy answers itself.
const OF_A_CONNECTION: [HeaderName; 7] = [
    header::CONNECTION,
    header::EXPECT,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Why a request cannot have its secret.
#[derive(Debug, thiserror::Error)]
#[error("secret {name} has bytes that no header field can hold")]
pub(super) struct Unfit {
    name: String,
}

/// Removes what is of one connection only.
pub(super) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&OF_A_CONNECTION) {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection"] {
        headers.remove(name);
    }
}

/// Puts secrets in the place of their placeholders; `used` hears of each one.
pub(super) fn swap<'a>(
    headers: &mut HeaderMap,
    secrets: &[&'a Swapped],
    mut used: impl FnMut(&'a str),
) -> Result<(), Unfit> {
    for (name, value) in headers.iter_mut() {
        for secret in secrets {
            let Some(swapped) = swapped(name, value.as_bytes(), secret) else { continue };
            let fit = HeaderValue::from_bytes(&swapped).map_err(|_| Unfit { name: secret.name.clone() });
            *value = fit?;
            value.set_sensitive(true);
            used(&secret.name);
        }
    }
    Ok(())
}

/// A field's value with the secret, if the placeholder is in it.
fn swapped(name: &HeaderName, value: &[u8], secret: &Swapped) -> Option<Zeroizing<Vec<u8>>> {
    if let Some(swapped) = replaced(value, secret) {
        return Some(swapped);
    }
    // User name and password of RFC 7617.
    let scheme = value.get(..6).filter(|scheme| scheme.eq_ignore_ascii_case(b"basic "))?;
    let pair = (name == header::AUTHORIZATION).then(|| STANDARD.decode(value[6..].trim_ascii()).ok())??;
    let pair = replaced(&pair, secret)?;
    Some(Zeroizing::new([scheme, STANDARD.encode(&*pair).as_bytes()].concat()))
}

fn replaced(value: &[u8], secret: &Swapped) -> Option<Zeroizing<Vec<u8>>> {
    let placeholder = secret.placeholder.as_bytes();
    let mut rest = value;
    let mut swapped = Zeroizing::new(Vec::with_capacity(value.len() + secret.value.expose().len()));
    while let Some(at) = memmem::find(rest, placeholder) {
        swapped.extend_from_slice(&rest[..at]);
        swapped.extend_from_slice(secret.value.expose().as_bytes());
        rest = &rest[at + placeholder.len()..];
    }
    if rest.len() == value.len() {
        return None;
    }
    swapped.extend_from_slice(rest);
    Some(swapped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::SecretText;

    fn secret(value: &str) -> Swapped {
        Swapped {
            name: "TOKEN".into(),
            placeholder: "casemate-placeholder-1".into(),
            value: SecretText::new(value.into()).unwrap(),
            to: Vec::new(),
        }
    }

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_placeholder_is_replaced_wherever_it_stands_in_a_field() {
        let basic = |text: &str| format!("basic {}", STANDARD.encode(text));
        let mut fields = headers(&[
            ("authorization", &basic("me:casemate-placeholder-1")),
            ("x-api-key", "casemate-placeholder-1"),
            ("x-other", "a casemate-placeholder-1, b casemate-placeholder-12"),
            ("x-none", "casemate-placeholder-2"),
        ]);
        let (secret, mut used) = (secret("hunter2"), Vec::new());
        swap(&mut fields, &[&secret], |name| used.push(name.to_owned())).unwrap();
        assert_eq!(fields["authorization"], basic("me:hunter2"));
        assert_eq!(fields["x-api-key"], "hunter2");
        assert_eq!(fields["x-other"], "a hunter2, b hunter22");
        assert_eq!(fields["x-none"], "casemate-placeholder-2");
        assert_eq!(used.len(), 3);
        assert!(!format!("{fields:?}").contains("hunter2\""), "{fields:?}");
    }

    #[test]
    fn a_secret_with_a_line_break_forges_no_field() {
        let mut fields = headers(&[("authorization", "Bearer casemate-placeholder-1")]);
        let error = swap(&mut fields, &[&secret("a\r\nx-forged: 1")], |_| {}).unwrap_err();
        assert!(error.to_string().contains("TOKEN"), "{error}");
    }

    #[test]
    fn what_is_of_one_connection_goes_no_further() {
        let mut fields = headers(&[
            ("connection", "keep-alive, X-Mine"),
            ("keep-alive", "timeout=5"),
            ("x-mine", "1"),
            ("upgrade", "websocket"),
            ("transfer-encoding", "chunked"),
            ("accept", "*/*"),
        ]);
        strip(&mut fields);
        assert_eq!(fields, headers(&[("accept", "*/*")]));
    }
}
