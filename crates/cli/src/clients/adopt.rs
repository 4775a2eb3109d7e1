//! Decides what becomes of each server of a client: which server of casemate it is or will be, or why it
//! stays as it is. Decides only; nothing is built or written here.

use super::{Document, Entry, Launcher, Mistake, Obstacle};
use crate::{
    command::options::check_variable,
    config::Server,
    engine::{Source, source_of_command},
    mounts::FolderWish,
    secrets::{SecretSource, SecretWish},
};
use casemate_machine::secret::SecretText;
use casemate_proto::ids::Name;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path},
};

/// Programs that are of no use without files that no client names.
const INTERPRETERS: [&str; 14] = [
    "bun", "bunx", "deno", "java", "node", "nodejs", "npm", "perl", "pipx", "pnpm", "python", "python3",
    "ruby", "uv",
];

/// The longest name.
const NAME_BYTES: usize = 63;

/// What becomes of a client's server.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    /// Its name in the client's file.
    pub entry: String,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Names of the variables that it is given.
    pub variables: Vec<String>,
    /// What its user should know before it runs in a machine.
    pub notes: Vec<String>,
}

/// What becomes of a client's server.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It runs in casemate already.
    Own,
    /// A server of that name is defined like it.
    Known(Name),
    /// It becomes a server of that name.
    New(Name, Box<Taken>),
    /// It stays as it is.
    Left(Obstacle),
}

/// The definition of a server that is taken over.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// What its image is made from, as it will be written.
    pub source: String,
    /// The same, as it is understood.
    pub meaning: Source,
    /// The arguments behind the source as it will be written.
    pub args: Vec<String>,
    /// The arguments behind the source as it is understood.
    pub meant_args: Vec<String>,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Folders of this host that it may read.
    pub folders: Vec<FolderWish>,
    /// Something in clear of it is probably a secret.
    pub secret: bool,
    /// Variables that go into the keyring.
    pub secrets: BTreeMap<String, SecretText>,
}

/// What is done with secrets of a client's servers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SecretsTo {
    /// Servers with secrets are left alone.
    #[default]
    Nowhere,
    /// They are written into `config.toml`.
    Clear,
    /// Those of environments go into the system's keyring.
    Keyring,
}

/// What becomes of servers whose arguments name files or folders of this host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum HostPaths {
    /// They are left alone.
    #[default]
    Leave,
    /// They may read those folders, at the same place in their machines
    Mount,
    /// They are taken over all the same, and have what is in their images there
    Ignore,
}

/// What is done with what only this host has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terms {
    /// With secrets.
    pub secrets: SecretsTo,
    /// With paths.
    pub paths: HostPaths,
}

/// The servers that casemate has already.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Their definitions.
    pub servers: BTreeMap<Name, Server>,
    /// What the keyring holds of those of them that [`resembling`] names.
    pub stored: BTreeMap<Name, BTreeMap<String, SecretText>>,
}

/// The key of a server's variable in the keyring.
pub fn keyring_key(server: &Name, variable: &str) -> String {
    format!("{server}/{variable}")
}

/// The servers that some server of a client is like, if what the keyring holds of them is what the client says.
pub fn resembling<'a>(
    document: &Document,
    servers: &'a BTreeMap<Name, Server>,
    terms: Terms,
) -> Result<Vec<&'a Server>, Mistake> {
    let entries = document.entries()?;
    let taken = entries
        .values()
        .filter_map(|written| take(&Entry::read(written, document.shape()).ok()?, terms.secrets).ok());
    let wanted: Vec<Taken> = taken.filter(|taken| !taken.secrets.is_empty()).collect();
    let resembles = |server: &&Server| {
        wanted.iter().any(|wanted| is_defined_like(server, wanted) && has_variables(server, wanted))
    };
    Ok(servers.values().filter(resembles).collect())
}

/// Looks at every server of a client, in the order of their names.
pub fn propose(
    document: &Document,
    launcher: &Launcher,
    known: &Known,
    terms: Terms,
) -> Result<Vec<Proposal>, Mistake> {
    let mut taken: BTreeSet<Name> = known.servers.keys().cloned().collect();
    let mut proposals = Vec::new();
    for (name, written) in document.entries()? {
        let entry = Entry::read(&written, document.shape());
        let variables = entry.iter().flat_map(|entry| entry.env.keys().cloned()).collect();
        let mut notes = Vec::new();
        let verdict = match entry {
            _ if launcher.is_own(&written) => Verdict::Own,
            Err(obstacle) => Verdict::Left(obstacle),
            Ok(entry) => match take(&entry, terms.secrets) {
                Err(obstacle) => Verdict::Left(obstacle),
                Ok(wanted) if let Some(server) = known.like(&wanted) => {
                    notes = self::notes(&written);
                    Verdict::Known(server.name.clone())
                }
                Ok(wanted) => match folders(&entry, terms.paths) {
                    Err(obstacle) => Verdict::Left(obstacle),
                    Ok(folders) => {
                        notes = self::notes(&written);
                        let name = unique(&name, &taken);
                        taken.insert(name.clone());
                        Verdict::New(name, Box::new(Taken { folders, ..wanted }))
                    }
                },
            },
        };
        proposals.push(Proposal { entry: name, verdict, variables, notes });
    }
    Ok(proposals)
}

impl Known {
    fn like(&self, wanted: &Taken) -> Option<&Server> {
        let none = BTreeMap::new();
        // Two accounts are two servers.
        let stored = |server: &Server| self.stored.get(&server.name).unwrap_or(&none) == &wanted.secrets;
        self.servers
            .values()
            .find(|server| is_defined_like(server, wanted) && has_variables(server, wanted) && stored(server))
    }
}

impl Taken {
    /// Its source as people may see it: without arguments, which may be secret.
    pub fn source_text(&self) -> String {
        self.meaning.to_string()
    }
}

fn take(entry: &Entry, to: SecretsTo) -> Result<Taken, Obstacle> {
    let words = entry.words();
    // What people copy from instructions for Windows.
    let words = match words.as_slice() {
        [shell, option, rest @ ..] if shell == "cmd" && option.eq_ignore_ascii_case("/c") => rest.to_vec(),
        _ => words,
    };
    let secrets = entry.secrets();
    let (meaning, meant_args) = source_of_command(&words).map_err(|error| {
        // The error quotes what it does not understand.
        Obstacle::Source(match secrets.is_empty() {
            true => told(&error.to_string()),
            false => "its command is none that casemate understands".to_owned(),
        })
    })?;
    if let Source::Command(program) = &meaning {
        check_program(program.first().map_or("", String::as_str))?;
    }
    for (name, value) in &entry.env {
        check_variable(name, value).map_err(|_| Obstacle::VariableName(name.clone()))?;
    }
    let hidden = match to {
        SecretsTo::Nowhere if !secrets.is_empty() => return Err(Obstacle::Secret(secrets)),
        // Arguments are words on a command line, wherever they come from.
        SecretsTo::Keyring if secrets.iter().any(|secret| !entry.env.contains_key(secret)) => {
            return Err(Obstacle::SecretArgument);
        }
        SecretsTo::Keyring => hidden(&secrets, &entry.env)?,
        SecretsTo::Nowhere | SecretsTo::Clear => BTreeMap::new(),
    };
    let env = entry.env.clone().into_iter().filter(|(name, _)| !hidden.contains_key(name)).collect();
    let text = meaning.to_string();
    // A program of a package, or further packages beside it, are said by the whole command only.
    let (source, args) = match Source::parse(&text) {
        Ok((read, rest)) if read == meaning && rest.is_empty() => (text, meant_args.clone()),
        _ => {
            let line = shlex::try_join(words.iter().map(String::as_str));
            (line.map_err(|_| Obstacle::Type("args"))?, Vec::new())
        }
    };
    let secret = !secrets.is_empty() && hidden.is_empty();
    Ok(Taken { source, meaning, args, meant_args, env, folders: Vec::new(), secret, secrets: hidden })
}

/// The values of variables that are secret.
fn hidden(
    secrets: &[String],
    env: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, SecretText>, Obstacle> {
    let of = |name: &String| {
        let value = env.get(name).cloned().unwrap_or_default();
        let value = SecretText::new(value).map_err(|_| Obstacle::VariableName(name.clone()))?;
        Ok((name.clone(), value))
    };
    secrets.iter().map(of).collect()
}

fn check_program(program: &str) -> Result<(), Obstacle> {
    let path = Path::new(program);
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or(program);
    match name {
        "docker" | "podman" | "nerdctl" => Err(Obstacle::Container),
        _ if INTERPRETERS.contains(&name) => Err(Obstacle::Interpreter(name.to_owned())),
        _ if program.contains('/') && !path.is_absolute() => Err(Obstacle::Relative(program.to_owned())),
        _ => Ok(()),
    }
}

/// An error about a command without what may be secret in the words that it quotes: the value of an option, what
/// follows the scheme of an address.
fn told(message: &str) -> String {
    let shown = message.split('"').map(|part| {
        let signs = ["=", "://"].into_iter().filter_map(|sign| Some(part.find(sign)? + sign.len()));
        signs.min().map_or(part.to_owned(), |end| format!("{}...", &part[..end]))
    });
    shown.collect::<Vec<_>>().join("\"")
}

fn is_defined_like(server: &Server, wanted: &Taken) -> bool {
    let is_plain = server.command.is_none() && server.unbuilt.is_empty();
    let source = server.source.as_ref() == Some(&wanted.meaning);
    is_plain && source && server.args == wanted.meant_args && server.env == wanted.env
}

/// Whether the keyring holds variables for a server, and which are those that are wanted.
fn has_variables(server: &Server, wanted: &Taken) -> bool {
    let in_keyring = |wish: &SecretWish| {
        matches!(wish.source, SecretSource::Keyring(_))
            && wish.placeholder.is_none()
            && wanted.secrets.contains_key(&wish.name)
    };
    server.secrets.len() == wanted.secrets.len() && server.secrets.iter().all(in_keyring)
}

fn notes(written: &serde_json::Value) -> Vec<String> {
    let cwd = written.get("cwd").filter(|cwd| cwd.is_string());
    cwd.map(|_| "its working folder (cwd) does not hold inside the machine".to_owned()).into_iter().collect()
}

/// The folders that arguments name and a machine is to have, the outer ones of those that lie in each other.
fn folders(entry: &Entry, paths: HostPaths) -> Result<Vec<FolderWish>, Obstacle> {
    let named: BTreeSet<&str> = entry.args.iter().filter_map(|arg| host_path(arg)).collect();
    match paths {
        _ if named.is_empty() => return Ok(Vec::new()),
        HostPaths::Ignore => return Ok(Vec::new()),
        HostPaths::Leave => {
            return Err(Obstacle::HostPaths(named.into_iter().map(str::to_owned).collect()));
        }
        HostPaths::Mount => {}
    }
    let mut folders: Vec<FolderWish> = Vec::new();
    for path in named {
        let obstacle = |reason: String| Obstacle::Unmountable { path: path.to_owned(), reason };
        if !Path::new(path).is_dir() {
            return Err(obstacle("it is no folder".to_owned()));
        }
        let wish = FolderWish::new(path, path, false).map_err(|error| obstacle(error.to_string()))?;
        // In their order an outer one comes first.
        if !folders.iter().any(|outer| wish.target.is_below(outer.target.as_str())) {
            folders.push(wish);
        }
    }
    Ok(folders)
}

/// The path of this host that an argument is, or gives an option (`--root=/srv`).
fn host_path(arg: &str) -> Option<&str> {
    let value = match arg.split_once('=') {
        Some((option, value)) if option.starts_with('-') => value,
        _ => arg,
    };
    let path = Path::new(value);
    let names_something = path.components().any(|part| matches!(part, Component::Normal(_)));
    (path.is_absolute() && names_something && path.exists()).then_some(value)
}

/// The valid name that is nearest to a client's and free.
fn unique(wanted: &str, taken: &BTreeSet<Name>) -> Name {
    let mut clean = String::new();
    for c in wanted.chars() {
        match c {
            _ if c.is_ascii_alphanumeric() || (matches!(c, '.' | '_' | '-') && !clean.is_empty()) => {
                clean.push(c)
            }
            _ if !clean.is_empty() && !clean.ends_with('-') => clean.push('-'),
            _ => {}
        }
    }
    let clean = clean.trim_end_matches('-');
    let clean = if clean.is_empty() { "server" } else { clean };
    let numbered = (1_u32..).filter_map(|number| {
        let end = if number == 1 { String::new() } else { format!("-{number}") };
        let begin = &clean[..clean.len().min(NAME_BYTES - end.len())];
        format!("{begin}{end}").parse::<Name>().ok()
    });
    let mut free = numbered.filter(|name| !taken.contains(name));
    free.next().unwrap_or_else(|| unreachable!("there are more numbers than names that are taken"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_valid_and_stay_unique() {
        let mut taken = BTreeSet::new();
        for (wanted, expected) in [
            ("files", "files"),
            ("files", "files-2"),
            ("files!", "files-3"),
            ("My Server (2)", "My-Server-2"),
            ("../../etc", "etc"),
            ("-x", "x"),
            ("äöü", "server"),
            ("", "server-2"),
            ("@scope/name", "scope-name"),
        ] {
            let name = unique(wanted, &taken);
            assert_eq!(name.as_str(), expected, "{wanted}");
            taken.insert(name);
        }
        let long = "x".repeat(100);
        let first = unique(&long, &taken);
        taken.insert(first.clone());
        assert_eq!((first.as_str().len(), unique(&long, &taken).as_str().len()), (63, 63));
    }

    #[test]
    fn paths_of_this_host_are_left_mounted_or_ignored() {
        let host = tempfile::tempdir().unwrap();
        let path = |name: &str| host.path().join(name).display().to_string();
        for folder in ["docs", "docs/below", "docs-2"] {
            std::fs::create_dir(path(folder)).unwrap();
        }
        std::fs::write(path("file"), "").unwrap();
        let entry = |args: &[String]| Entry { args: args.to_vec(), ..Entry::default() };
        let mounted = |args: &[String]| -> Result<Vec<String>, String> {
            let folders = folders(&entry(args), HostPaths::Mount).map_err(|obstacle| obstacle.to_string())?;
            Ok(folders.iter().map(ToString::to_string).collect())
        };
        let same = |folder: &str| format!("{0}:{0}:ro", path(folder));
        let args = [path("docs/below"), format!("--root={}", path("docs-2")), path("docs"), path("absent")];
        assert_eq!(mounted(&args).unwrap(), [same("docs"), same("docs-2")]);
        assert!(mounted(&[path("file")]).unwrap_err().contains("no folder"));
        assert!(mounted(&["/proc".to_owned()]).unwrap_err().contains("is taken"));
        let left = folders(&entry(&args[..2]), HostPaths::Leave).unwrap_err();
        assert_eq!(left, Obstacle::HostPaths(vec![path("docs-2"), path("docs/below")]));
        assert_eq!(folders(&entry(&args), HostPaths::Ignore), Ok(Vec::new()));
        // No path, or none that is there.
        for arg in ["/", "docs", "-v", "K=V", "https://h/tmp", "/casemate-is-not-there"] {
            assert_eq!(folders(&entry(&[arg.to_owned()]), HostPaths::Leave), Ok(Vec::new()), "{arg}");
        }
    }

    #[test]
    fn a_server_with_secrets_is_known_by_what_the_keyring_holds() {
        let home = tempfile::tempdir().unwrap();
        let config = "[[servers]]\nid = \"github\"\nsource = \"npm:github\"\nenv = { LEVEL = \"1\" }\n\
                      secrets = { TOKEN = \"keyring:github/TOKEN\" }\n";
        std::fs::write(home.path().join("config.toml"), config).unwrap();
        let text = r#"{"mcpServers": {"github": {"command": "npx", "args": ["-y", "github"],
                       "env": {"TOKEN": "hunter2", "LEVEL": "1"}}}}"#;
        let document = Document::new(crate::clients::Client::Cursor.shape(), text.to_owned()).unwrap();
        let launcher = Launcher { program: "/bin/casemate".to_owned(), home: None, config: None };
        let terms = Terms { secrets: SecretsTo::Keyring, ..Terms::default() };
        let servers = crate::config::load(home.path(), None).unwrap().servers;
        let asked = resembling(&document, &servers, terms).unwrap();
        assert_eq!(asked.iter().map(|server| server.name.as_str()).collect::<Vec<_>>(), ["github"]);
        let secret = |value: &str| SecretText::new(value.to_owned()).unwrap();
        for (stored, is_known) in [(Some("hunter2"), true), (Some("another account's"), false), (None, false)]
        {
            let values = stored.map(|value| BTreeMap::from([("TOKEN".to_owned(), secret(value))]));
            let stored = values.map(|values| ("github".parse().unwrap(), values)).into_iter().collect();
            let known = Known { servers: servers.clone(), stored };
            let proposals = propose(&document, &launcher, &known, terms).unwrap();
            match &proposals[0].verdict {
                Verdict::Known(name) => assert!(is_known && name.as_str() == "github"),
                Verdict::New(name, _) => assert!(!is_known && name.as_str() == "github-2"),
                other => panic!("{other:?}"),
            }
        }
        // In clear, and with a placeholder, it is another one.
        for other in ["TOKEN = \"env:TOKEN\"", "TOKEN = \"keyring:a,placeholder=a.example:443\"", ""] {
            let config = config.replace("TOKEN = \"keyring:github/TOKEN\"", other);
            let config = config.replace("env =", "allow = [\"a.example:443\"]\nenv =");
            std::fs::write(home.path().join("config.toml"), config).unwrap();
            let servers = crate::config::load(home.path(), None).unwrap().servers;
            assert!(resembling(&document, &servers, terms).unwrap().is_empty(), "{other}");
        }
    }

    #[test]
    fn errors_about_words_keep_what_may_be_secret_to_themselves() {
        for (words, shown) in [
            (["npx", "--registry=https://u:hunter2@h/", "x"], "--registry=..."),
            (["npx", "--header=X: hunter2 and more", "x"], "--header=..."),
            (["npx", "https://h/hunter2", "x"], "https://..."),
            (["npx", "x@y\"=hunter2", "x"], "=..."),
        ] {
            let words = words.map(str::to_owned);
            let error = source_of_command(&words).unwrap_err().to_string();
            let message = told(&error);
            assert!(error.contains("hunter2"), "{error}");
            assert!(message.contains(shown) && !message.contains("hunter2"), "{message}");
        }
        let harmless = "\"a\" is no kind of source; known are npm:, pypi: and dir:";
        assert_eq!(told(harmless), harmless);
    }
}
