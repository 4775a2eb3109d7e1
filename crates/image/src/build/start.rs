//! What starts a server: its package's program, or what the request says instead.

use std::collections::BTreeMap;

use super::{BuildError, BuildRequest};
use crate::source::Source;

/// The command of a request, without its arguments. `programs` and `default` are the image's.
pub(super) fn command(
    request: &BuildRequest<'_>,
    programs: &BTreeMap<String, Vec<String>>,
    default: &[String],
    cwd: &str,
) -> Result<Vec<String>, BuildError> {
    let unknown = |wanted: &str| BuildError::UnknownProgram {
        package: request.source.to_string(),
        wanted: wanted.to_owned(),
        known: programs.keys().cloned().collect(),
    };
    if let Some((program, rest)) = request.command.as_deref().and_then(<[String]>::split_first) {
        let mut command = match programs.get(program) {
            Some(command) => command.clone(),
            None => vec![in_folder(program, cwd)],
        };
        command.extend_from_slice(rest);
        return Ok(command);
    }
    let (name, program) = match &request.source {
        Source::Npm { name, program, .. } | Source::Pypi { name, program, .. } => {
            (name.as_str(), program.as_deref())
        }
        _ => ("", None),
    };
    match program {
        Some(program) => programs.get(program).cloned().ok_or_else(|| unknown(program)),
        None if default.is_empty() => Err(unknown(name)),
        None => Ok(default.to_vec()),
    }
}

/// `./server` and `bin/server` are meant in the folder that the server starts in; a bare name is searched in
/// the image's `PATH`.
pub(super) fn in_folder(program: &str, cwd: &str) -> String {
    if !program.contains('/') || program.starts_with('/') {
        return program.to_owned();
    }
    format!("{}/{}", cwd.trim_end_matches('/'), program.trim_start_matches("./"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn start(source: &str, command_option: Option<&str>, default: &str) -> Result<String, BuildError> {
        let (source, _) = Source::parse(source).unwrap();
        let request = BuildRequest { command: command_option.map(words), ..BuildRequest::new(source, &[]) };
        let programs = BTreeMap::from([("tool".to_owned(), words("/usr/bin/node /app/tool.js"))]);
        command(&request, &programs, &words(default), "/app").map(|words| words.join(" "))
    }

    #[test]
    fn a_request_may_name_another_program() {
        assert_eq!(start("npm:x", None, "/x").unwrap(), "/x");
        assert_eq!(start("npx -p x tool", None, "/x").unwrap(), "/usr/bin/node /app/tool.js");
        assert_eq!(start("npm:x", Some("tool -v"), "/x").unwrap(), "/usr/bin/node /app/tool.js -v");
        assert_eq!(start("npm:x", Some("./bin/y a"), "").unwrap(), "/app/bin/y a");
        assert_eq!(start("npm:x", Some("node y"), "").unwrap(), "node y");
    }

    #[test]
    fn what_is_not_there_is_named_with_what_is() {
        for error in [start("npx -p x other", None, "/x"), start("npm:x", None, "")] {
            assert!(error.unwrap_err().to_string().contains("it brings tool"));
        }
    }
}
