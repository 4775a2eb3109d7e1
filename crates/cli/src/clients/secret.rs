//! Tells what is probably a secret, by its name or by how it begins.
//!
//! A guess on the safe side: what is taken for a secret by mistake costs its user an option, what is missed
//! ends up in a file in clear.

/// Words that name secrets; a name is compared word by word, so that `KEYBOARD` is none.
const WORDS: [&str; 22] = [
    "ACCESSKEY",
    "APIKEY",
    "AUTH",
    "AUTHORIZATION",
    "AUTHTOKEN",
    "BEARER",
    "COOKIE",
    "CREDENTIAL",
    "CREDENTIALS",
    "CREDS",
    "DSN",
    "JWT",
    "KEY",
    "PASS",
    "PASSPHRASE",
    "PASSWD",
    "PASSWORD",
    "PAT",
    "PRIVATEKEY",
    "PWD",
    "SECRET",
    "TOKEN",
];

/// What words end in that name secrets: `PGPASSWORD`.
const ENDS: [&str; 5] = ["APIKEY", "PASSWD", "PASSWORD", "SECRET", "TOKEN"];

/// How tokens of well-known issuers begin.
const PREFIXES: &[&str] = &[
    "AIza",
    "AKIA",
    "ASIA",
    "ATATT",
    "Basic ",
    "Bearer ",
    "EAAC",
    "SG.",
    "dckr_pat_",
    "dop_v1_",
    "figd_",
    "ghp_",
    "gho_",
    "ghr_",
    "ghs_",
    "ghu_",
    "github_pat_",
    "glpat-",
    "gsk_",
    "hf_",
    "lin_api_",
    "npm_",
    "ntn_",
    "pat-",
    "pypi-",
    "rk_live_",
    "secret_",
    "shpat_",
    "sk-",
    "sk_live_",
    "sk_test_",
    "tvly-",
    "xai-",
    "xapp-",
    "xoxa-",
    "xoxb-",
    "xoxp-",
];

/// Whether a variable probably holds a secret.
pub fn is_secret(name: &str, value: &str) -> bool {
    !value.is_empty() && (is_name(name) || is_value(value))
}

/// Whether a variable or an option of that name probably holds a secret.
pub fn is_name(name: &str) -> bool {
    // `apiKey` and `api-key` are `API_KEY` written otherwise.
    let mut words = String::new();
    let mut before = '_';
    for c in name.chars() {
        if c.is_ascii_uppercase() && before.is_ascii_lowercase() {
            words.push('_');
        }
        words.push(if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
        before = c;
    }
    words.split('_').any(|word| WORDS.contains(&word) || ENDS.iter().any(|end| word.ends_with(end)))
}

/// Whether a value is probably a secret, whatever it is called, or an address that holds one.
pub fn is_value(value: &str) -> bool {
    is_alone(value) || in_query(value)
}

fn is_alone(value: &str) -> bool {
    let value = value.trim();
    // JSON web tokens are base64 of `{"` in each of their first two parts.
    let is_jwt = value.starts_with("eyJ") && value.matches('.').count() >= 2;
    is_token(value) || is_jwt || value.contains("PRIVATE KEY-----") || has_password(value)
}

/// `scheme://host/path?name=value&name=value#name=value`.
fn in_query(value: &str) -> bool {
    let pairs = value.split(['?', '&', '#']).skip(1).filter_map(|pair| pair.split_once('='));
    pairs.filter(|(_, value)| !value.is_empty()).any(|(name, value)| is_name(name) || is_alone(value))
}

fn is_token(text: &str) -> bool {
    PREFIXES.iter().any(|prefix| text.len() > prefix.len() && text.starts_with(prefix))
}

/// Whether some argument is probably a secret, or holds one: `--token X`, `--api-key=X`, `K=V`, a header.
pub fn in_arguments(args: &[String]) -> bool {
    let mut named = false;
    for arg in args {
        let option = arg.starts_with('-');
        if named && !option && !arg.is_empty() {
            return true;
        }
        named = false;
        let split = arg
            .split_once(['=', ':'])
            .filter(|(name, value)| !value.is_empty() && !name.contains('/') && !value.starts_with("//"));
        match split {
            Some((name, value)) if is_name(name) || is_value(value) => return true,
            Some(_) => {}
            None => named = option && is_name(arg),
        }
        if is_value(arg) {
            return true;
        }
    }
    false
}

/// `scheme://user:password@host`, `scheme://token@host`.
fn has_password(value: &str) -> bool {
    let Some((_, rest)) = value.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let Some((user, _)) = authority.rsplit_once('@') else { return false };
    is_token(user) || user.split_once(':').is_some_and(|(_, password)| !password.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets_are_recognised() {
        for name in [
            "GITHUB_PERSONAL_ACCESS_TOKEN",
            "OPENAI_API_KEY",
            "CLIENT_SECRET",
            "PASSWORD",
            "DB_PASSWORD",
            "PGPASSWORD",
            "apiKey",
            "api-key",
            "--token",
            "GITLAB_PAT",
            "aws.secret",
            "SENTRY_DSN",
        ] {
            assert!(is_name(name), "{name}");
        }
        for name in
            ["PATH", "KEYBOARD", "MAX_TOKENS", "TOKENIZERS_PARALLELISM", "HOME", "DEBUG", "AUTHOR", "--port"]
        {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn values_of_secrets_are_recognised() {
        for value in [
            "ghp_0123456789",
            "sk-ant-x",
            "xoxb-1",
            "eyJhbGciOi.eyJzdWIi.c2ln",
            "Bearer abc",
            "postgres://me:pw@db/x",
            "git+https://ghp_1@example.com/x",
            "https://example.com/sse?api_key=x",
            "https://example.com/?user=me&access_token=x",
            "https://example.com/?q=ghp_0123456789",
            "https://example.com/#token=x",
            "postgres://db/x?sslmode=require&password=pw",
            "-----BEGIN PRIVATE KEY-----\nx",
        ] {
            assert!(is_value(value), "{value}");
        }
        for value in [
            "",
            "1",
            "https://example.com/a:b@c",
            "postgres://db/x",
            "postgres://db/x?sslmode=require&connect_timeout=3",
            "https://example.com/?token=&page=2",
            "me@example.com",
            "sk-",
            "UTC",
            "is it?",
        ] {
            assert!(!is_value(value), "{value}");
        }
    }

    #[test]
    fn secrets_among_arguments_are_recognised() {
        let found = |line: &str| in_arguments(&shlex::split(line).unwrap());
        for line in [
            "--api-key x",
            "--api-key=x",
            "-y pkg --token abc",
            "--header 'Authorization: Bearer x'",
            "API_KEY=x",
            "postgresql://u:p@localhost/db",
            "x ghp_1",
            "--url=https://example.com/?api_key=x",
            "https://example.com/?api_key=x",
            "--url 'https://example.com/?a=b&secret=x'",
        ] {
            assert!(found(line), "{line}");
        }
        for line in [
            "-y pkg /data",
            "--token",
            "--auth --port 3",
            "--url http://localhost:3000",
            "--local-timezone UTC",
        ] {
            assert!(!found(line), "{line}");
        }
    }
}
