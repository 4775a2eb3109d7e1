//! Finds the values of secrets, once for a command, before anything is made for its machines.

use super::{Target, check::repeated, processes::children};
use crate::{
    context::Context,
    error::{Error, Kind},
    render::{first_line, progress::Steps},
    secrets::{Placeholder, SecretSource, SecretWish},
};
use casemate_image::progress::Progress;
use casemate_machine::{
    Egress,
    egress::Allow,
    secret::{Holder, InvalidSecret, SECRET_BYTES, SECRETS, Secret, SecretText, Secrets},
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::OpenOptions,
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    pin::pin,
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::timeout,
};
use zeroize::Zeroizing;

/// How long a command may take: it may ask somebody for a password.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the output of a command is read that has ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How deep the tree of processes that a command starts is followed.
const TREE_DEPTH: usize = 16;

/// By which a secret of casemate's is found in the keyring: the attributes that other tools use, too.
const ATTRIBUTES: [&str; 3] = ["service", "casemate", "username"];

/// The program that speaks with the keyring (libsecret).
const KEYRING: &str = "secret-tool";

/// Why a secret cannot be had. Nothing of its value is in it.
#[derive(Debug, thiserror::Error)]
enum SourceError {
    #[error("variable {0} is not set")]
    Unset(String),
    #[error("cannot read {path}")]
    File { path: PathBuf, source: io::Error },
    #[error("{0} is no regular file")]
    NoFile(PathBuf),
    #[error("cannot start {program}")]
    Start { program: String, source: io::Error },
    #[error("{program} cannot be read")]
    Read { program: String, source: io::Error },
    #[error("{program} took longer than {} s", patience.as_secs_f32())]
    Slow { program: String, patience: Duration },
    #[error("{program} ended with {status}")]
    Command { program: String, status: ExitStatus },
    #[error("{} is not installed", KEYRING)]
    NoKeyring,
    #[error("{} says: {words}", KEYRING)]
    Keyring { words: String },
    #[error("the keyring has nothing under {0:?}, or is locked")]
    NotInKeyring(String),
    #[error("its value cannot be used")]
    Value(#[from] InvalidSecret),
}

/// Refuses what cannot be given, or to nobody, whatever the values are.
pub fn check(target: &Target<'_>) -> Result<(), Error> {
    let wishes = &target.secrets;
    if wishes.len() > SECRETS {
        return Err(Error::configuration(format!("more than {SECRETS} secrets")).hint("leave some out"));
    }
    if let Some(name) = repeated(wishes.iter().map(|wish| &wish.name)) {
        return Err(
            Error::configuration(format!("secret {name} is given twice")).hint("say one source of it")
        );
    }
    if let Some(wish) = wishes.iter().find(|wish| target.env.contains_key(&wish.name)) {
        let message = format!("{} is given as a variable and as a secret", wish.name);
        return Err(Error::configuration(message).hint("leave out the variable, whose value is no secret"));
    }
    wishes.iter().try_for_each(|wish| holder(wish, &target.egress).map(|_| ()))
}

/// Finds the value of each secret.
pub async fn find(context: &Context, wishes: &[SecretWish], egress: &Egress) -> Result<Secrets, Error> {
    let holders = wishes.iter().map(|wish| holder(wish, egress)).collect::<Result<Vec<_>, _>>()?;
    let mut secrets = Vec::with_capacity(wishes.len());
    let steps = Steps::new(context.screen);
    for (wish, holder) in wishes.iter().zip(holders) {
        if matches!(wish.source, SecretSource::Command(_) | SecretSource::Keyring(_)) {
            steps.step(&format!("asking for secret {}", wish.name));
        }
        let value = value(context, &wish.source).await.map_err(|error| failed(wish, error))?;
        secrets.push(Secret { name: wish.name.clone(), value, holder });
    }
    Ok(Secrets(secrets))
}

/// Who has the value, if it can be said.
fn holder(wish: &SecretWish, egress: &Egress) -> Result<Holder, Error> {
    let Some(placeholder) = &wish.placeholder else { return Ok(Holder::Server) };
    let name = &wish.name;
    let to = match (placeholder, &*egress.allow) {
        (Placeholder::To(to), allowed) if allowed.contains(to) || is_among(to, allowed) => to.clone(),
        (Placeholder::To(to), _) => {
            let message = format!("secret {name} is to be sent to {to}, which the server may not reach");
            return Err(Error::configuration(message).hint(format!("--allow {to} lets it")));
        }
        (Placeholder::Only, [only]) if only.target().is_some() => only.clone(),
        (Placeholder::Only, []) => {
            let message =
                format!("secret {name} is a placeholder, and the server may reach nobody to send it to");
            return Err(Error::configuration(message)
                .hint("say which host gets it, as in --allow api.example.com:443"));
        }
        (Placeholder::Only, [first, ..]) => {
            let message = format!("secret {name} is a placeholder, and the server may reach several hosts");
            let hint = format!("say which one gets it: {name}={},placeholder={first}", wish.source);
            return Err(Error::configuration(message).hint(hint));
        }
    };
    Ok(Holder::Host { to: vec![to] })
}

/// Whether a single host is one of those below an allowed name.
fn is_among(to: &Allow, allowed: &[Allow]) -> bool {
    to.target().is_some_and(|target| allowed.iter().any(|allow| allow.matches(&target)))
}

fn failed(wish: &SecretWish, error: SourceError) -> Error {
    let hint = match &error {
        SourceError::Unset(name) => format!("set {name}, or name another source"),
        SourceError::NoKeyring => {
            "install it (Debian and Ubuntu: libsecret-tools), or name another source".to_owned()
        }
        SourceError::NotInKeyring(key) => {
            format!("casemate secret set {key} puts it there; on a host without a keyring use file: or cmd:")
        }
        SourceError::Keyring { .. } => {
            "is a keyring running and unlocked? it belongs to the session of a desktop; elsewhere use file: or cmd:"
                .to_owned()
        }
        SourceError::Slow { .. } | SourceError::Command { .. } => {
            "run it by hand: it is to print the secret, and nothing else, on its standard output".to_owned()
        }
        _ => "check its source".to_owned(),
    };
    Error::new(Kind::Configuration, format!("cannot get secret {}", wish.name)).because(error).hint(hint)
}

async fn value(context: &Context, source: &SecretSource) -> Result<SecretText, SourceError> {
    match source {
        SecretSource::Env(name) => {
            let value = std::env::var_os(name).ok_or_else(|| SourceError::Unset(name.clone()))?;
            Ok(SecretText::from_bytes(value.into_encoded_bytes())?)
        }
        SecretSource::File(path) => {
            let path = at_home(path);
            if is_open_to_others(&path) {
                context.screen.warn(&format!("{} can be read by every user of this host", path.display()));
            }
            Ok(SecretText::from_bytes(without_newline(read_file(&path)?))?)
        }
        SecretSource::Command(line) => {
            // It was split when it was read.
            let words = shlex::split(line).unwrap_or_default();
            let program = words.first().map_or("", String::as_str);
            let mut command = Command::new(program);
            command.args(words.iter().skip(1));
            let (value, status) = output(program, command, COMMAND_TIMEOUT).await?;
            if !status.success() {
                return Err(SourceError::Command { program: program.to_owned(), status });
            }
            Ok(SecretText::from_bytes(without_newline(value))?)
        }
        SecretSource::Keyring(key) => from_keyring(key).await,
    }
}

async fn from_keyring(key: &str) -> Result<SecretText, SourceError> {
    let mut command = Command::new(KEYRING);
    command.arg("lookup").args(ATTRIBUTES).arg(key).stderr(Stdio::null());
    let (value, status) = match output(KEYRING, command, COMMAND_TIMEOUT).await {
        Err(SourceError::Start { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(SourceError::NoKeyring);
        }
        output => output?,
    };
    if !status.success() || value.is_empty() {
        // Nothing is said where nothing is under that key.
        answers().await?;
        return Err(SourceError::NotInKeyring(key.to_owned()));
    }
    Ok(SecretText::from_bytes(without_newline(value))?)
}

/// Puts a secret into the keyring, in place of one that is there.
pub async fn store_in_keyring(key: &str, value: &SecretText) -> Result<(), Error> {
    let mut command = Command::new(KEYRING);
    command.args(["store", "--label"]).arg(format!("casemate: {key}")).args(ATTRIBUTES).arg(key);
    ask_keyring(key, command, value.expose()).await
}

/// Finds out whether there is a keyring.
pub async fn check_keyring() -> Result<(), Error> {
    answers().await.map_err(|failure| no_keyring("secrets of servers", failure))
}

/// Whether there is a keyring that answers, by asking for what is not there.
async fn answers() -> Result<(), SourceError> {
    let mut command = Command::new(KEYRING);
    command.arg("lookup").args(ATTRIBUTES).arg("casemate").stdin(Stdio::null()).stdout(Stdio::null());
    match timeout(COMMAND_TIMEOUT, command.kill_on_drop(true).output()).await {
        // It says nothing where there is nothing.
        Ok(Ok(output)) if output.stderr.is_empty() => Ok(()),
        Ok(Ok(output)) => {
            let words = first_line(&String::from_utf8_lossy(&output.stderr));
            Err(SourceError::Keyring { words })
        }
        Ok(Err(source)) => Err(started(source)),
        Err(_) => Err(SourceError::Slow { program: KEYRING.to_owned(), patience: COMMAND_TIMEOUT }),
    }
}

/// Why the keyring's program did not start.
fn started(source: io::Error) -> SourceError {
    match source.kind() {
        io::ErrorKind::NotFound => SourceError::NoKeyring,
        _ => SourceError::Start { program: KEYRING.to_owned(), source },
    }
}

fn no_keyring(what: &str, failure: SourceError) -> Error {
    let hint = match failure {
        SourceError::NoKeyring => "install it (Debian and Ubuntu: libsecret-tools)",
        _ => "is a keyring running and unlocked? it belongs to the session of a desktop",
    };
    Error::unavailable(format!("cannot use the keyring for {what}")).because(failure).hint(hint)
}

/// Removes a secret from the keyring.
pub async fn remove_from_keyring(key: &str) -> Result<(), Error> {
    let mut command = Command::new(KEYRING);
    command.arg("clear").args(ATTRIBUTES).arg(key);
    ask_keyring(key, command, "").await
}

async fn ask_keyring(key: &str, mut command: Command, input: &str) -> Result<(), Error> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true);
    let asked = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait().await
    };
    let ended = timeout(COMMAND_TIMEOUT, asked).await;
    let failure = match ended {
        Ok(Ok(status)) if status.success() => return Ok(()),
        Ok(Err(source)) => started(source),
        Ok(Ok(status)) => SourceError::Command { program: KEYRING.to_owned(), status },
        Err(_) => SourceError::Slow { program: KEYRING.to_owned(), patience: COMMAND_TIMEOUT },
    };
    Err(no_keyring(key, failure))
}

/// Runs a program and takes what it prints, within bounds; whatever it started ends with it.
async fn output(
    program: &str,
    mut command: Command,
    patience: Duration,
) -> Result<(Vec<u8>, ExitStatus), SourceError> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let program = || program.to_owned();
    let mut child = command.spawn().map_err(|source| SourceError::Start { program: program(), source })?;
    let mut printed = Zeroizing::new(Vec::with_capacity(SECRET_BYTES + 4));
    let reading = async {
        let Some(stdout) = child.stdout.take() else { return child.wait().await.map(Some) };
        // With a line's end it may be this long; more is too long, whatever comes.
        let mut stdout = stdout.take(SECRET_BYTES as u64 + 3);
        let status = {
            let mut reading = pin!(stdout.read_to_end(&mut printed));
            tokio::select! {
                biased;
                read = reading.as_mut() => read.map(|_| None)?,
                status = child.wait() => {
                    // What it left running may keep its output open, and has no part in this.
                    if let Ok(read) = timeout(LAST_WORDS, reading).await {
                        read?;
                    }
                    Some(status?)
                }
            }
        };
        match status {
            _ if printed.len() > SECRET_BYTES + 2 => Ok(None),
            Some(status) => Ok(Some(status)),
            None => child.wait().await.map(Some),
        }
    };
    let read = timeout(patience, reading).await;
    match read {
        Ok(Ok(Some(status))) => Ok((std::mem::take(&mut *printed), status)),
        Ok(Ok(None)) => {
            end(&mut child).await;
            Err(InvalidSecret::Long.into())
        }
        Ok(Err(source)) => {
            end(&mut child).await;
            Err(SourceError::Read { program: program(), source })
        }
        Err(_) => {
            end(&mut child).await;
            Err(SourceError::Slow { program: program(), patience })
        }
    }
}

/// Ends a program and what it started. It shares this command's group of processes, so that it can ask for a
/// password at the terminal.
async fn end(child: &mut Child) {
    if let Some(pid) = child.id() {
        end_tree(pid, TREE_DEPTH);
    }
    // It was ended: it is waited for, and a failure says that it is gone.
    let _ = child.wait().await;
}

fn end_tree(pid: u32, depth: usize) {
    // What is stopped starts nothing more.
    signal(pid, Signal::STOP);
    let children = children(pid);
    if depth > 0 {
        children.into_iter().for_each(|child| end_tree(child, depth - 1));
    }
    signal(pid, Signal::KILL);
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        // One that is gone needs none.
        let _ = kill_process(pid, signal);
    }
}

fn at_home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), std::env::home_dir()) {
        (Ok(below), Some(home)) => home.join(below),
        _ => path.to_owned(),
    }
}

fn is_open_to_others(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.mode() & 0o007 != 0)
}

/// Reads a file that is one, within bounds. A pipe or a device is not waited for.
fn read_file(path: &Path) -> Result<Vec<u8>, SourceError> {
    let error = |source| SourceError::File { path: path.to_owned(), source };
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(error)?;
    if !file.metadata().map_err(error)?.is_file() {
        return Err(SourceError::NoFile(path.to_owned()));
    }
    let mut content = Zeroizing::new(Vec::with_capacity(SECRET_BYTES + 4));
    file.take(SECRET_BYTES as u64 + 3).read_to_end(&mut content).map_err(error)?;
    Ok(std::mem::take(&mut *content))
}

/// Without the end of its line, which editors and commands put there.
fn without_newline(mut bytes: Vec<u8>) -> Vec<u8> {
    for end in [b'\n', b'\r'] {
        if bytes.last() == Some(&end) {
            bytes.pop();
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(text: &str) -> SecretWish {
        SecretWish::here(text).unwrap()
    }

    fn egress(allow: &[&str]) -> Egress {
        Egress { allow: allow.iter().map(|text| text.parse().unwrap()).collect(), ..Egress::default() }
    }

    fn to(text: &str, allow: &[&str]) -> Result<String, String> {
        match holder(&wish(text), &egress(allow)) {
            Ok(Holder::Host { to }) => Ok(to.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
            Ok(Holder::Server) => Ok("server".to_owned()),
            Err(error) => Err(error.report().to_string()),
        }
    }

    #[test]
    fn a_placeholder_goes_to_one_host_that_may_be_reached() {
        let (a, b) = ("a.example:443", "b.example:443");
        assert_eq!(to("T=env:A", &[a, b]).unwrap(), "server");
        assert_eq!(to("T=env:A,placeholder", &[a]).unwrap(), a);
        assert_eq!(to("T=env:A,placeholder=b.example:443", &[a, b]).unwrap(), b);
        assert_eq!(
            to("T=env:A,placeholder=b.x.example:443", &["*.x.example:443"]).unwrap(),
            "b.x.example:443"
        );
        assert!(to("T=env:A,placeholder", &[]).unwrap_err().contains("nobody"));
        // Whoever has the names below it would choose.
        assert!(to("T=env:A,placeholder", &["*.x.example:443"]).unwrap_err().contains("several hosts"));
        assert_eq!(
            to("T=env:A,placeholder=*.x.example:443", &["*.x.example:443"]).unwrap(),
            "*.x.example:443"
        );
        assert!(
            to("T=env:A,placeholder", &[a, b]).unwrap_err().contains("T=env:A,placeholder=a.example:443")
        );
        assert!(to("T=env:A,placeholder=c.example:443", &[a]).unwrap_err().contains("--allow c.example:443"));
    }

    async fn printed(line: &str, patience: Duration) -> Result<String, SourceError> {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        let (bytes, status) = output("sh", command, patience).await?;
        assert!(status.success());
        Ok(String::from_utf8(without_newline(bytes)).unwrap())
    }

    #[tokio::test]
    async fn what_a_command_prints_is_taken_without_the_end_of_its_line() {
        assert_eq!(printed("echo hunter2", COMMAND_TIMEOUT).await.unwrap(), "hunter2");
        assert_eq!(printed("printf 'a\\nb\\r\\n'", COMMAND_TIMEOUT).await.unwrap(), "a\nb");
    }

    #[tokio::test]
    async fn a_command_that_prints_without_end_is_ended_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let line = format!("sleep 1000 & echo $! > {}; cat /dev/zero", pid.display());
        let error = printed(&line, COMMAND_TIMEOUT).await.unwrap_err();
        assert!(matches!(error, SourceError::Value(InvalidSecret::Long)), "{error}");
        ended(&pid).await;
    }

    #[tokio::test]
    async fn a_command_that_leaves_something_running_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let line = format!("sleep 1000 & echo $! > {}; echo hunter2", pid.display());
        assert_eq!(printed(&line, Duration::from_secs(30)).await.unwrap(), "hunter2");
        signal(std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap(), Signal::KILL);
        ended(&pid).await;
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_ended_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let line = format!("sleep 1000 & echo $! > {}; wait", pid.display());
        let error = printed(&line, Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(error.to_string(), "sh took longer than 1 s");
        ended(&pid).await;
    }

    /// Waits for the process whose number is in a file: it was sent a signal, and ends a moment later.
    async fn ended(file: &Path) {
        let pid: u32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        for _ in 0..1000 {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if state.is_empty() || state.contains(") Z ") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{pid} goes on");
    }

    #[test]
    fn only_files_are_read_and_no_more_of_them_than_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "hunter2\r\n").unwrap();
        assert_eq!(without_newline(read_file(&path).unwrap()), b"hunter2");
        std::fs::write(&path, vec![b'x'; SECRET_BYTES * 2]).unwrap();
        assert_eq!(SecretText::from_bytes(read_file(&path).unwrap()).unwrap_err(), InvalidSecret::Long);
        assert!(matches!(read_file(Path::new("/dev/zero")), Err(SourceError::NoFile(_))));
        assert!(matches!(read_file(dir.path()), Err(SourceError::NoFile(_))));
        assert!(matches!(read_file(&dir.path().join("none")), Err(SourceError::File { .. })));
    }
}
