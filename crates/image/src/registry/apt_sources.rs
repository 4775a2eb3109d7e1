//! Finds the mirror of Debian's main archive in apt's source lists (`sources.list(5)`).

/// The releases whose entries name the main archive. `stable` and the like are left out: derivatives of
/// Debian use those names for their own archives.
const CODENAMES: &[&str] = &["bookworm", "trixie", "forky", "sid"];
/// What may follow a codename without leaving the main archive. Security updates have their own.
const POCKETS: &[&str] = &["", "-updates", "-backports", "-proposed-updates"];

/// The mirror of the first fitting entry of a one-line-style `.list` file.
pub(super) fn main_mirror_of_list(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let entry = line.split('#').next().unwrap_or_default();
        let entry = entry.trim().strip_prefix("deb")?;
        let entry = entry.strip_prefix([' ', '\t'])?.trim_start();
        let entry = match entry.strip_prefix('[') {
            Some(options) => options.split_once(']')?.1,
            None => entry,
        };
        let mut words = entry.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        fits([uri].into_iter(), [suite].into_iter(), words)
    })
}

/// The mirror of the first fitting stanza of a deb822-style `.sources` file.
pub(super) fn main_mirror_of_deb822(text: &str) -> Option<String> {
    let without_comments: String =
        text.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
    super::control::stanzas(&without_comments).find_map(|stanza| {
        let words = |name| stanza.field(name).unwrap_or_default().split_whitespace();
        let enabled = !stanza.field("Enabled").is_some_and(|v| v.trim().eq_ignore_ascii_case("no"));
        if !enabled || !words("Types").any(|kind| kind == "deb") {
            return None;
        }
        fits(words("URIs"), words("Suites"), words("Components"))
    })
}

fn fits<'a>(
    mut uris: impl Iterator<Item = &'a str>,
    mut suites: impl Iterator<Item = &'a str>,
    mut components: impl Iterator<Item = &'a str>,
) -> Option<String> {
    let general = suites.any(is_main_archive) && components.any(|name| name == "main");
    let is_http = |uri: &&str| uri.starts_with("http://") || uri.starts_with("https://");
    uris.find(is_http).filter(|_| general).map(str::to_owned)
}

fn is_main_archive(suite: &str) -> bool {
    CODENAMES.iter().any(|name| suite.strip_prefix(name).is_some_and(|pocket| POCKETS.contains(&pocket)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_entries() {
        let cases = [
            ("deb http://m.test/debian bookworm main", Some("http://m.test/debian")),
            ("deb\thttps://m.test/d/  trixie-backports contrib main # x", Some("https://m.test/d/")),
            ("deb [arch=amd64 signed-by=/k] http://m.test/d trixie main", Some("http://m.test/d")),
            ("# deb http://m.test/debian bookworm main", None),
            ("deb-src http://m.test/debian bookworm main", None),
            ("deb http://m.test/debian-security bookworm-security main", None),
            ("deb https://v.test/apt cloud-sdk-bookworm main", None),
            ("deb http://m.test/debian bookworm contrib", None),
            ("deb cdrom:[Debian] bookworm main", None),
            ("deb [unclosed http://m.test bookworm main", None),
            ("deb", None),
            ("", None),
        ];
        for (line, expected) in cases {
            assert_eq!(main_mirror_of_list(line).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn stanzas() {
        let text = "# c\nTypes: deb\nURIs: http://v.test\nSuites: nodistro\nComponents: main\n\n\
                    Types: deb deb-src\n# http://snapshot.test\nURIs: http://m.test/debian\n\
                    Suites: bookworm bookworm-updates\nComponents: main\n";
        assert_eq!(main_mirror_of_deb822(text).as_deref(), Some("http://m.test/debian"));
        let off = "Enabled: no\nTypes: deb\nURIs: http://m.test/debian\nSuites: trixie\nComponents: main\n";
        assert_eq!(main_mirror_of_deb822(off), None);
        assert_eq!(main_mirror_of_deb822(""), None);
    }
}
