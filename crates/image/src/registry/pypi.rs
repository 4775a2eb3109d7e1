//! The Python package index: which files a project has (PEP 503, the simple repository API in HTML, which
//! every index and mirror speaks).

use super::address::Base;
use super::digest::Digest;
use super::http::{Http, HttpError};

const ACCEPT: &str = "application/vnd.pypi.simple.v1+html, text/html;q=0.9";
const PAGE_BYTES: u64 = 64 << 20;

/// Why the index's answer is of no use.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the Python package index named by {origin}")]
pub struct PypiError {
    /// Where the index's address was configured.
    pub origin: String,
    #[source]
    source: Box<HttpError>,
}

/// The files of one project.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Project {
    /// In the index's order.
    pub files: Vec<ProjectFile>,
}

/// One file: a wheel or a source distribution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectFile {
    /// Its name, which states version and platform.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// Its SHA-256, if the index states one.
    pub digest: Option<Digest>,
    /// Whether its release was withdrawn.
    pub yanked: bool,
}

impl Project {
    /// Asks the index for a project; nothing if it has none of this name.
    pub fn fetch(http: &Http, index: &Base, name: &str) -> Result<Option<Project>, PypiError> {
        let url = index.join(&format!("{}/", normalised(name)));
        match http.get(&url, Some(ACCEPT), PAGE_BYTES) {
            Ok(page) => Ok(Some(Project::parse(&String::from_utf8_lossy(&page), &url))),
            Err(HttpError::Status { status: 404 | 410, .. }) => Ok(None),
            Err(source) => Err(PypiError { origin: index.origin().to_owned(), source: Box::new(source) }),
        }
    }

    /// Reads the anchors of a page that came from `page_url`.
    fn parse(page: &str, page_url: &str) -> Project {
        let anchors = page.split("<a ").skip(1).filter_map(|rest| rest.split_once('>'));
        let file = |(attributes, rest): (&str, &str)| {
            let name = unescape(rest.split('<').next()?.trim());
            let (address, fragment) = match attribute(attributes, "href")? {
                href if href.contains('#') => {
                    href.split_once('#').map(|(a, f)| (a.to_owned(), f.to_owned()))?
                }
                href => (href, String::new()),
            };
            let digest = fragment.strip_prefix("sha256=").and_then(Digest::from_hex);
            let yanked = attributes.contains("data-yanked");
            Some(ProjectFile { name, url: absolute(&address, page_url)?, digest, yanked })
        };
        Project { files: anchors.filter_map(file).collect() }
    }

    /// The versions of its wheels, in the index's order, once each.
    pub fn wheel_versions(&self) -> Vec<&str> {
        let wheels = self.files.iter().filter(|file| !file.yanked && file.name.ends_with(".whl"));
        let mut versions: Vec<&str> = wheels.filter_map(|file| file.name.split('-').nth(1)).collect();
        versions.dedup();
        versions
    }

    /// Whether the index has a file of this version, be it a wheel or not.
    pub fn has(&self, version: &str) -> bool {
        let wanted = release(version);
        self.files.iter().filter_map(ProjectFile::version).any(|known| release(known) == wanted)
    }
}

impl ProjectFile {
    /// The version that the name states.
    pub fn version(&self) -> Option<&str> {
        if self.name.ends_with(".whl") {
            return self.name.split('-').nth(1);
        }
        let stem = self.name.strip_suffix(".tar.gz").or_else(|| self.name.strip_suffix(".zip"))?;
        stem.rsplit_once('-').map(|(_, version)| version)
    }
}

/// A project's name as the index compares it (PEP 503), without extras.
pub fn normalised(name: &str) -> String {
    let name = name.split('[').next().unwrap_or_default().to_ascii_lowercase();
    name.split(['-', '_', '.']).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
}

/// A version as far as it decides equality here: lower case, without a `v` and trailing zeros.
fn release(version: &str) -> String {
    let version = version.trim_start_matches('v').to_ascii_lowercase();
    let mut version = version.as_str();
    while let Some(shorter) = version.strip_suffix(".0") {
        version = shorter;
    }
    version.to_owned()
}

fn attribute(attributes: &str, name: &str) -> Option<String> {
    let (_, rest) = attributes.split_once(&format!("{name}="))?;
    let quote = rest.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
    rest[1..].split(quote).next().map(unescape)
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&#x27;", "'")
        .replace("&amp;", "&")
}

/// An address of a page that may be relative to it (RFC 3986, section 5.2, without query and fragment).
fn absolute(address: &str, page: &str) -> Option<String> {
    if address.starts_with("https://") || address.starts_with("http://") {
        return Some(address.to_owned());
    }
    let (scheme, rest) = page.split_once("://")?;
    if let Some(rest) = address.strip_prefix("//") {
        return Some(format!("{scheme}://{rest}"));
    }
    let (host, path) = rest.split_once('/')?;
    if let Some(address) = address.strip_prefix('/') {
        return Some(format!("{scheme}://{host}/{address}"));
    }
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in address.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(format!("{scheme}://{host}/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_page_gives_files_with_addresses_and_digests() {
        let digest = "a".repeat(64);
        let page = format!(
            "<!DOCTYPE html><body><h1>Links</h1>\n\
             <a href=\"https://files.test/x/uv-0.1.0-py3-none-any.whl#sha256={digest}\" data-requires-python=\"&gt;=3.8\">\
             uv-0.1.0-py3-none-any.whl</a><br/>\n\
             <a href='../../packages/uv-0.2.0.tar.gz' data-yanked=\"bad\">uv-0.2.0.tar.gz</a></body>"
        );
        let project = Project::parse(&page, "https://index.test/root/simple/uv/");
        assert_eq!(
            project.files[0],
            ProjectFile {
                name: "uv-0.1.0-py3-none-any.whl".into(),
                url: "https://files.test/x/uv-0.1.0-py3-none-any.whl".into(),
                digest: Digest::from_hex(&digest),
                yanked: false,
            }
        );
        assert_eq!(project.files[1].url, "https://index.test/root/packages/uv-0.2.0.tar.gz");
        assert_eq!((project.files[1].yanked, project.files[1].digest), (true, None));
        assert_eq!(project.wheel_versions(), ["0.1.0"]);
        assert!(project.has("0.2") && project.has("v0.1.0") && !project.has("0.3"));
    }

    #[test]
    fn names_are_compared_as_the_index_does() {
        assert_eq!(normalised("MCP_Server.time[x]"), "mcp-server-time");
    }

    proptest! {
        #[test]
        fn any_page_is_read(page in "(<a |href=|[\"'>#<]|sha256=|\\PC){0,60}") {
            Project::parse(&page, "https://index.test/simple/x/");
        }
    }
}
