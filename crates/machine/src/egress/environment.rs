//! The variables by which programs find a proxy.

use casemate_proto::{
    control::{AUTHORITIES_PATH, AUTHORITY_PATH},
    egress::PROXY_PORT,
};
use std::collections::BTreeMap;

/// What is not asked of the proxy: the machine's own loopback.
const DIRECT: &str = "localhost,127.0.0.1,::1";

/// Sets what the user has not set, in either case of letters: programs differ in which they read.
///
/// `ALL_PROXY` names the HTTP proxy too and not SOCKS, which is offered at the same port: Python's clients
/// give up where it names a kind of proxy for which they lack a package.
pub(crate) fn extend(env: &mut BTreeMap<String, String>) {
    let proxy = format!("http://127.0.0.1:{PROXY_PORT}");
    for (name, value) in
        [("HTTP_PROXY", &*proxy), ("HTTPS_PROXY", &*proxy), ("ALL_PROXY", &*proxy), ("NO_PROXY", DIRECT)]
    {
        let lowercase = name.to_ascii_lowercase();
        if !env.contains_key(name) && !env.contains_key(&lowercase) {
            env.insert(name.to_owned(), value.to_owned());
            env.insert(lowercase, value.to_owned());
        }
    }
    // Node.js looks at the others only where this is set.
    env.entry("NODE_USE_ENV_PROXY".to_owned()).or_insert_with(|| "1".to_owned());
}

/// By which programs find whom to trust, beside what they bring: what the user has set stays.
///
/// Node.js adds what it is told to its own list, all others use it instead of theirs.
pub(crate) fn extend_trust(env: &mut BTreeMap<String, String>) {
    let all = [
        "AWS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "PIP_CERT",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_FILE",
    ];
    let all = all.into_iter().map(|name| (name, AUTHORITIES_PATH));
    for (name, path) in
        [("NODE_EXTRA_CA_CERTS", AUTHORITY_PATH), ("DENO_CERT", AUTHORITY_PATH)].into_iter().chain(all)
    {
        env.entry(name.to_owned()).or_insert_with(|| path.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_has_set_stays_in_either_case() {
        let mut env = BTreeMap::from([("https_proxy".to_owned(), String::new())]);
        extend(&mut env);
        assert_eq!(env["HTTP_PROXY"], "http://127.0.0.1:5254");
        assert_eq!(env["http_proxy"], env["HTTP_PROXY"]);
        assert_eq!(env["NODE_USE_ENV_PROXY"], "1");
        assert_eq!(env["https_proxy"], "");
        assert!(!env.contains_key("HTTPS_PROXY"));
    }
}
