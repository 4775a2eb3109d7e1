//! A client of QEMU's machine protocol: one command at a time, JSON lines, events passed over.
//!
//! Source: QEMU's `docs/interop/qmp-spec.rst`. The VMM may be in the hands of its guest: answers are
//! bounded in length and time.

use super::probe::Version;
use crate::backend::BackendError;
use casemate_proto::line::LineBuffer;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

const ANSWER_BYTES: usize = 1 << 20;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A monitor connection in command mode.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: UnixStream,
    lines: LineBuffer,
    /// Of the last command; answers to earlier ones, which were given up, are passed over.
    id: u64,
}

impl Qmp {
    /// Reads the greeting and enters command mode. QEMU answers once its machine is made.
    pub(crate) async fn connect(stream: UnixStream, patience: Duration) -> Result<Self, BackendError> {
        let mut qmp = Self { stream, lines: LineBuffer::new(ANSWER_BYTES), id: 0 };
        let greeting = timeout(patience, qmp.next_message("greeting"));
        let greeting = greeting.await.map_err(|_| failed("greeting", "no answer in time"))??;
        let number =
            |name: &str| greeting.pointer(&format!("/QMP/version/qemu/{name}")).and_then(Value::as_u64);
        let (Some(major), Some(minor)) = (number("major"), number("minor")) else {
            return Err(failed("greeting", "it is no QMP monitor"));
        };
        Version { major: major as u32, minor: minor as u32 }.check()?;
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs a command and returns what it answers. May be cancelled before the machine's end only: half a
    /// command could be left on the way.
    pub(crate) async fn execute(
        &mut self,
        command: &'static str,
        arguments: Value,
    ) -> Result<Value, BackendError> {
        self.id += 1;
        let id = self.id;
        let mut line = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
        line.push('\n');
        timeout(ANSWER_TIMEOUT, async {
            let written = self.stream.write_all(line.as_bytes()).await;
            written.map_err(|error| failed(command, &error.to_string()))?;
            loop {
                let mut message = self.next_message(command).await?;
                // Without an id: an event, or an error in what could not even be read as a command.
                if message.get("id").is_some_and(|answered| *answered != id) {
                    continue;
                }
                if let Some(error) = message.get("error") {
                    let reason = error.get("desc").and_then(Value::as_str).unwrap_or("no description");
                    return Err(failed(command, reason));
                }
                if let Some(result) = message.get_mut("return") {
                    return Ok(result.take());
                }
                // An event: what it tells is seen by other means.
            }
        })
        .await
        .unwrap_or_else(|_| Err(failed(command, "no answer in time")))
    }

    async fn next_message(&mut self, command: &'static str) -> Result<Value, BackendError> {
        loop {
            match self.lines.next_line() {
                Ok(Some(line)) => {
                    return serde_json::from_slice(line).map_err(|error| failed(command, &error.to_string()));
                }
                Ok(None) => {}
                Err(error) => return Err(failed(command, &error.to_string())),
            }
            let mut chunk = [0; 4096];
            let read =
                self.stream.read(&mut chunk).await.map_err(|error| failed(command, &error.to_string()))?;
            if read == 0 {
                return Err(failed(command, "the VMM closed its monitor"));
            }
            self.lines.push(&chunk[..read]);
        }
    }
}

fn failed(command: &'static str, reason: &str) -> BackendError {
    BackendError::Monitor { command, reason: reason.chars().take(400).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays a monitor that sends `script` and then keeps quiet.
    async fn monitor(script: &'static str) -> Result<Qmp, BackendError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(script.as_bytes()).await.unwrap();
        let result = Qmp::connect(ours, Duration::from_millis(300)).await;
        drop(theirs);
        result
    }

    #[tokio::test]
    async fn events_before_an_answer_are_passed_over() {
        let script = "{\"QMP\":{\"version\":{\"qemu\":{\"major\":10,\"minor\":0}}}}\r\n{\"event\":\"RESUME\"}\r\n{\"return\":{}}\r\n";
        assert!(monitor(script).await.is_ok());
    }

    #[tokio::test]
    async fn an_answer_to_what_was_given_up_is_not_the_next_commands() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut qmp = Qmp { stream: ours, lines: LineBuffer::new(ANSWER_BYTES), id: 0 };
        let given_up = timeout(Duration::from_millis(10), qmp.execute("stop", json!({}))).await;
        assert!(given_up.is_err());
        let late =
            b"{\"error\":{\"desc\":\"late\"},\"id\":1}\n{\"event\":\"STOP\"}\n{\"return\":7,\"id\":2}\n";
        theirs.write_all(late).await.unwrap();
        assert_eq!(qmp.execute("cont", json!({})).await.unwrap(), json!(7));
    }

    #[tokio::test]
    async fn errors_nonsense_and_silence_are_errors() {
        for script in [
            "",
            "nonsense\n",
            "{}\n",
            "{\"QMP\":{\"version\":{\"qemu\":{\"major\":10,\"minor\":0}}}}\n{\"error\":{\"desc\":\"not now\"}}\n",
        ] {
            let error = monitor(script).await.unwrap_err();
            assert!(matches!(error, BackendError::Monitor { .. }), "{script:?} gave {error}");
        }
    }
}
