//! Where the package registries are.
//!
//! An address comes from the first of: casemate's own configuration, the environment variables that the
//! registries' own tools read, those tools' configuration files on this host, and a built-in default.
//!
//! The built-in defaults are assembled from labels, on purpose: a registry's host name is spelled nowhere in
//! this repository, so that a search for one finds every place that could reach out. This is the only place.

use std::fmt;
use std::path::{Path, PathBuf};

use super::apt_sources;

struct BuiltIn {
    scheme: &'static str,
    labels: &'static [&'static str],
    path: &'static str,
}

const NPM: BuiltIn = BuiltIn { scheme: "https", labels: &["registry", "npmjs", "org"], path: "/" };
const PYPI: BuiltIn = BuiltIn { scheme: "https", labels: &["pypi", "org"], path: "/simple/" };
const DEBIAN: BuiltIn = BuiltIn { scheme: "https", labels: &["deb", "debian", "org"], path: "/debian/" };

/// The variables that name a registry, most specific first.
const NPM_VARIABLES: &[&str] = &["npm_config_registry", "NPM_CONFIG_REGISTRY"];
const PYPI_VARIABLES: &[&str] = &["PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"];
const DEBIAN_VARIABLES: &[&str] = &["CASEMATE_DEBIAN_MIRROR"];

/// Configuration files larger than this are not read.
const CONFIG_LIMIT: u64 = 1024 * 1024;

/// Why a configured address is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the registry address {text:?} of {origin} is no http or https address")]
pub struct AddressError {
    /// What was configured.
    pub text: String,
    /// Where it was configured.
    pub origin: String,
}

/// The base address of a registry: `http` or `https`, a host, a path that ends in `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    url: String,
    origin: String,
}

impl Base {
    /// Checks an address; `origin` says where it was configured.
    pub fn parse(text: &str, origin: &str) -> Result<Base, AddressError> {
        let refused = || AddressError { text: text.to_owned(), origin: origin.to_owned() };
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let host = rest.and_then(|rest| rest.split('/').next()).unwrap_or_default();
        let clean = text.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '"' | '<' | '>'));
        if host.is_empty() || !clean {
            return Err(refused());
        }
        let slash = if text.ends_with('/') { "" } else { "/" };
        Ok(Base { url: format!("{text}{slash}"), origin: origin.to_owned() })
    }

    /// The address, with its final `/`.
    pub fn as_str(&self) -> &str {
        &self.url
    }

    /// Where the address was configured, for messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Whether the transport itself authenticates the server.
    pub fn is_encrypted(&self) -> bool {
        self.url.starts_with("https://")
    }

    /// The address of `path`, relative to the base.
    pub fn join(&self, path: &str) -> String {
        format!("{}{}", self.url, path.trim_start_matches('/'))
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// The addresses that casemate's own configuration names; what is `None` is looked up on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registries {
    /// The npm registry.
    pub npm: Option<String>,
    /// The Python package index, with the path of its simple API.
    pub pypi: Option<String>,
    /// The mirror of Debian's main archive: the folder that holds `dists/` and `pool/`.
    pub debian: Option<String>,
}

impl Registries {
    /// The base address of the npm registry.
    pub fn npm(&self) -> Result<Base, AddressError> {
        self.npm_on(&Host::this())
    }

    /// The base address of the Python package index's simple API.
    pub fn pypi(&self) -> Result<Base, AddressError> {
        self.pypi_on(&Host::this())
    }

    /// The base address of Debian's main archive.
    pub fn debian(&self) -> Result<Base, AddressError> {
        self.debian_on(&Host::this())
    }

    fn npm_on(&self, host: &Host<'_>) -> Result<Base, AddressError> {
        choose(self.npm.as_deref(), host, NPM_VARIABLES, npmrc_registry, &NPM)
    }

    fn pypi_on(&self, host: &Host<'_>) -> Result<Base, AddressError> {
        choose(self.pypi.as_deref(), host, PYPI_VARIABLES, pip_index, &PYPI)
    }

    fn debian_on(&self, host: &Host<'_>) -> Result<Base, AddressError> {
        choose(self.debian.as_deref(), host, DEBIAN_VARIABLES, apt_mirror, &DEBIAN)
    }
}

/// What of this host decides; an argument, so that tests can state it.
struct Host<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    home: Option<PathBuf>,
    etc: PathBuf,
}

impl Host<'_> {
    fn this() -> Host<'static> {
        Host {
            variable: &|name| std::env::var(name).ok(),
            home: std::env::home_dir(),
            etc: PathBuf::from("/etc"),
        }
    }
}

/// An address found on the host and the file that it stands in.
type Found = (String, PathBuf);

fn choose(
    configured: Option<&str>,
    host: &Host<'_>,
    variables: &[&str],
    in_files: fn(&Host<'_>) -> Option<Found>,
    default: &BuiltIn,
) -> Result<Base, AddressError> {
    if let Some(text) = configured {
        return Base::parse(text, "casemate's configuration");
    }
    for name in variables {
        if let Some(text) = (host.variable)(name).filter(|text| !text.trim().is_empty()) {
            return Base::parse(text.trim(), &format!("the environment variable {name}"));
        }
    }
    if let Some((text, file)) = in_files(host) {
        return Base::parse(&text, &file.display().to_string());
    }
    let BuiltIn { scheme, labels, path } = default;
    Base::parse(&format!("{scheme}://{}{path}", labels.join(".")), "the built-in default")
}

fn npmrc_registry(host: &Host<'_>) -> Option<Found> {
    let file = host.home.as_ref()?.join(".npmrc");
    Some((ini_value(&read_config(&file)?, "registry")?, file))
}

fn pip_index(host: &Host<'_>) -> Option<Found> {
    let personal = [".config/pip/pip.conf", ".pip/pip.conf"];
    let personal = personal.iter().filter_map(|name| Some(host.home.as_ref()?.join(name)));
    personal.chain([host.etc.join("pip.conf")]).find_map(|file| {
        let text = read_config(&file)?;
        Some((ini_value(&text, "index-url").or_else(|| ini_value(&text, "index_url"))?, file))
    })
}

fn apt_mirror(host: &Host<'_>) -> Option<Found> {
    let apt = host.etc.join("apt");
    let mut files: Vec<PathBuf> = std::fs::read_dir(apt.join("sources.list.d"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    files.sort();
    files.insert(0, apt.join("sources.list"));
    files.into_iter().find_map(|file| {
        let text = read_config(&file)?;
        let mirror = match file.extension()?.to_str()? {
            "list" => apt_sources::main_mirror_of_list(&text),
            "sources" => apt_sources::main_mirror_of_deb822(&text),
            _ => None,
        };
        Some((mirror?, file))
    })
}

fn read_config(file: &Path) -> Option<String> {
    let metadata = std::fs::metadata(file).ok()?;
    if !metadata.is_file() || metadata.len() > CONFIG_LIMIT {
        return None;
    }
    std::fs::read_to_string(file).ok()
}

/// The value of the first `key = value` line of an ini file, whatever its section.
///
/// An address that is to be put together from the environment (`${NAME}`) counts as absent.
fn ini_value(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        let value = value.trim().trim_matches(['"', '\'']);
        (name.trim() == key && !value.is_empty() && !value.contains("${")).then(|| value.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files {
        folder: tempfile::TempDir,
    }

    impl Files {
        fn new(files: &[(&str, &str)]) -> Files {
            let folder = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = folder.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            Files { folder }
        }

        fn host<'a>(&self, variable: &'a dyn Fn(&str) -> Option<String>) -> Host<'a> {
            let root = self.folder.path();
            Host { variable, home: Some(root.join("home")), etc: root.join("etc") }
        }
    }

    const NONE: &dyn Fn(&str) -> Option<String> = &|_| None;

    #[test]
    fn configuration_beats_environment_beats_files_beats_default() {
        let files = Files::new(&[("home/.npmrc", "fund=false\nregistry = http://files.test/npm\n")]);
        let env = |name: &str| (name == "NPM_CONFIG_REGISTRY").then(|| "http://env.test".to_owned());
        let configured = Registries { npm: Some("http://own.test/x".to_owned()), ..Registries::default() };
        let plain = Registries::default();
        assert_eq!(configured.npm_on(&files.host(&env)).unwrap().as_str(), "http://own.test/x/");
        assert_eq!(plain.npm_on(&files.host(&env)).unwrap().as_str(), "http://env.test/");
        assert_eq!(plain.npm_on(&files.host(NONE)).unwrap().as_str(), "http://files.test/npm/");
        let default = plain.npm_on(&Files::new(&[]).host(NONE)).unwrap();
        assert!(default.is_encrypted());
        assert_eq!(default.origin(), "the built-in default");
    }

    #[test]
    fn pip_files_are_read_in_order() {
        let files = Files::new(&[
            ("home/.pip/pip.conf", "[global]\nindex-url = https://second.test/simple\n"),
            ("etc/pip.conf", "[global]\nindex-url = https://third.test/simple\n"),
        ]);
        let base = Registries::default().pypi_on(&files.host(NONE)).unwrap();
        assert_eq!(base.as_str(), "https://second.test/simple/");
        assert!(base.origin().ends_with("home/.pip/pip.conf"));
    }

    #[test]
    fn the_mirror_of_apt_is_used_and_not_its_security_archive() {
        let files = Files::new(&[
            ("etc/apt/sources.list", "deb http://vendor.test/apt cloud main\n"),
            (
                "etc/apt/sources.list.d/a.sources",
                "Types: deb\nURIs: http://s.test/security\nSuites: x-security\nComponents: main\n",
            ),
            (
                "etc/apt/sources.list.d/b.sources",
                "Types: deb\nURIs: http://mirror.test/debian\nSuites: trixie\nComponents: main\n",
            ),
            ("etc/apt/sources.list.d/c.save", "deb http://old.test/debian trixie main\n"),
        ]);
        let base = Registries::default().debian_on(&files.host(NONE)).unwrap();
        assert_eq!(base.as_str(), "http://mirror.test/debian/");
        assert!(!base.is_encrypted());
    }

    #[test]
    fn what_is_no_address_is_an_error_that_names_its_origin() {
        for text in
            ["", "ftp://x/", "http://", "https:///path", "http://h/a b", "http://h/?q", "h/x", "http://h/\n"]
        {
            assert!(Base::parse(text, "here").is_err(), "{text:?}");
        }
        let configured = Registries { debian: Some("nonsense".to_owned()), ..Registries::default() };
        let error = configured.debian().unwrap_err();
        assert_eq!(
            error.to_string(),
            "the registry address \"nonsense\" of casemate's configuration is no http or https address"
        );
    }

    #[test]
    fn defaults_are_well_formed() {
        let host = Files::new(&[]);
        let plain = Registries::default();
        for base in [
            plain.npm_on(&host.host(NONE)),
            plain.pypi_on(&host.host(NONE)),
            plain.debian_on(&host.host(NONE)),
        ] {
            let base = base.unwrap();
            assert!(base.is_encrypted() && base.as_str().ends_with('/'));
        }
        assert_eq!(plain.debian_on(&host.host(NONE)).unwrap().join("/dists/x").matches("//").count(), 1);
    }
}
