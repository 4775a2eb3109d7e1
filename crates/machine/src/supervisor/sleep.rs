//! A machine is suspended while nobody uses it, and goes on with its state when somebody does.
//!
//! Kept are the pages that are not as in its template, on disk, and the state of its devices, in this process.
//! What speaks with the server does not notice: its stream is [carried](super::carrier).

use super::{
    ending::{Ending, chain},
    phases::{self, Woken},
    shared::{Link, Shared},
};
use crate::{
    backend::{Beginning, Hosting, Instance, Suspended},
    control::{Control, ControlError},
    home::open_lock,
    record::State,
    registry::{ClaimError, Registry},
    spec::Spec,
    template::pages::{Digest, PAGE},
};
use casemate_proto::{control::Request, port};
use rustix::fs::{Mode, OFlags};
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::PathBuf,
    rc::Rc,
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// The file of a suspended machine, in its folder.
pub(crate) const FILE: &str = "suspended";

/// How long the agent may take to let go of the conversation.
const PARK_TIMEOUT: Duration = Duration::from_secs(5);

/// How often it is looked whether another machine is still being suspended.
const TURN_POLL: Duration = Duration::from_millis(20);

/// How long others may take to be admitted before this one.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(5);

/// How often it is asked meanwhile: this process has other things to do.
const ADMISSION_POLL: Duration = Duration::from_millis(10);

/// What is read and written at once: larger ones stay with the process, which is to be small meanwhile.
const BUFFER_BYTES: usize = 64 << 10;

/// Free space that is left to others.
const SPARE_BYTES: u64 = 64 << 20;

/// With a VMM, or without one.
pub(super) enum Machine {
    Awake(Box<dyn Instance>),
    Asleep(Asleep),
}

impl Machine {
    pub(super) fn instance(&mut self) -> Option<&mut (dyn Instance + 'static)> {
        match self {
            Self::Awake(instance) => Some(&mut **instance),
            Self::Asleep(_) => None,
        }
    }
}

/// A machine without a VMM.
pub(super) struct Asleep {
    path: PathBuf,
    digest: String,
    bytes: u64,
    base: Option<File>,
    state: Vec<u8>,
}

/// Why a machine stays awake.
#[derive(Debug, thiserror::Error)]
pub(super) enum Restless {
    /// Somebody uses it after all.
    #[error("it is used")]
    Used,
    /// The agent did not let go of the conversation.
    #[error("cannot let go of its conversation")]
    Park(#[source] ControlError),
    /// The conversation is over, or its client does not read.
    #[error("its conversation does not rest")]
    Conversation,
    /// The VMM failed.
    #[error("cannot save its devices")]
    Devices(#[source] crate::backend::BackendError),
    /// Suspended machines take all the space that they may.
    #[error("suspended machines take {taken} MiB and it needs {needed} more, of {allowed} (suspend_disk)")]
    Allowance {
        /// MiB.
        taken: u64,
        /// MiB.
        needed: u64,
        /// MiB.
        allowed: u64,
    },
    /// It cannot be written.
    #[error("cannot write its memory")]
    Write(#[source] io::Error),
}

/// Suspends a machine whose [turn] it is. On failure it goes on as it was.
pub(super) async fn suspend(
    spec: &Spec,
    hosting: &Hosting,
    shared: &Rc<Shared>,
    instance: &mut dyn Instance,
    _turn: File,
) -> Result<Asleep, Restless> {
    // From here on whoever wants to use the machine waits.
    if shared.usage.idle_since().is_none() {
        return Err(Restless::Used);
    }
    let mut link = Taken::from(shared)?;
    let result = fall_asleep(spec, hosting, shared, instance, link.get()).await;
    if let Err(error) = &result {
        shared.note(&format!("stays awake: {}", chain(error)));
        let _ = fs::remove_file(hosting.dir.join(FILE));
        // A VMM that does not go on is seen by the watch on its health.
        let _ = instance.resume().await;
        if let Err(lost) = go_on_talking(shared, link.get()).await {
            let carrier = shared.carrier.borrow().clone();
            match (error, carrier) {
                // It was not parked: the stream that there is goes on.
                (Restless::Park(_), Some(carrier)) => carrier.release(),
                // Its end ends the conversation, and that the machine.
                (_, Some(_)) => {
                    shared.note(&format!("lost its conversation: {}", chain(&lost)));
                    drop(shared.carrier.take());
                }
                (_, None) => {}
            }
        }
    } else {
        link.keep();
    }
    result
}

/// The link to an agent, taken so that nobody else uses it. It is put back when this is dropped, also where a
/// suspension is given up for the machine's end, which the agent is to be told of.
struct Taken<'a> {
    shared: &'a Shared,
    link: Link,
    put_back: bool,
}

impl<'a> Taken<'a> {
    fn from(shared: &'a Shared) -> Result<Self, Restless> {
        let link = shared.link.take().ok_or(Restless::Used)?;
        Ok(Self { shared, link, put_back: true })
    }

    fn get(&self) -> &Link {
        &self.link
    }

    /// There is no agent any more.
    fn keep(&mut self) {
        self.put_back = false;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.put_back {
            *self.shared.link.borrow_mut() = Some(self.link.clone());
        }
    }
}

async fn fall_asleep(
    spec: &Spec,
    hosting: &Hosting,
    shared: &Shared,
    instance: &mut dyn Instance,
    link: &Link,
) -> Result<Asleep, Restless> {
    let carrier = shared.carrier.borrow().clone();
    if let Some(carrier) = &carrier {
        carrier.hold();
    }
    let park = async {
        let mut control = Control::open(&link.connector, &link.epoch, PARK_TIMEOUT).await?;
        control.request::<serde_json::Value>("park", Request::Park, PARK_TIMEOUT).await
    };
    park.await.map_err(Restless::Park)?;
    if let Some(carrier) = &carrier
        && timeout(PARK_TIMEOUT, carrier.parked()).await != Ok(true)
    {
        return Err(Restless::Conversation);
    }
    let state = instance.save().await.map_err(Restless::Devices)?;
    let (path, memory) = (hosting.dir.join(FILE), instance.memory());
    let needed = count(memory).map_err(Restless::Write)?;
    let taken = taken(hosting);
    if taken + needed > spec.suspend_disk_bytes {
        let (taken, needed, allowed) = (taken >> 20, needed >> 20, spec.suspend_disk_bytes >> 20);
        return Err(Restless::Allowance { taken, needed, allowed });
    }
    let free = rustix::fs::statvfs(&hosting.dir).map_err(|errno| Restless::Write(errno.into()))?;
    if free.f_bavail * free.f_frsize < needed + SPARE_BYTES {
        return Err(Restless::Write(io::ErrorKind::StorageFull.into()));
    }
    let (digest, bytes) = write(memory, &path).map_err(Restless::Write)?;
    let base = memory.base().map(File::try_clone).transpose().map_err(Restless::Write)?;
    Ok(Asleep { path, digest, bytes, base, state })
}

/// Waits until no other machine is being suspended: each reads and writes as fast as it can. Dropping the file
/// ends the turn. May be cancelled.
pub(super) async fn turn(hosting: &Hosting) -> File {
    let path = hosting.home.machines().join("suspend.lock");
    loop {
        // Out of descriptors, most likely: those who hold them will let go.
        if let Ok(file) = open_lock(&path) {
            while file.try_lock().is_err() {
                tokio::time::sleep(TURN_POLL).await;
            }
            return file;
        }
        tokio::time::sleep(TURN_POLL).await;
    }
}

fn count(memory: &crate::backend::GuestMemory) -> io::Result<u64> {
    let mut bytes = 0;
    memory.each_own_page(|_, page| {
        bytes += (8 + page.len()) as u64;
        Ok(())
    })?;
    Ok(bytes)
}

/// What suspended machines of this home take on disk.
fn taken(hosting: &Hosting) -> u64 {
    let folders = fs::read_dir(hosting.home.machines()).into_iter().flatten().flatten();
    folders.filter_map(|folder| Some(fs::metadata(folder.path().join(FILE)).ok()?.len())).sum()
}

fn write(memory: &crate::backend::GuestMemory, path: &std::path::Path) -> io::Result<(String, u64)> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = File::from(rustix::fs::open(path, flags, Mode::from(0o600))?);
    let (mut out, mut digest, mut bytes) =
        (BufWriter::with_capacity(BUFFER_BYTES, file), Digest::default(), 0);
    memory.each_own_page(|index, page| {
        digest.add(index, page);
        bytes += (8 + PAGE) as u64;
        out.write_all(&index.to_le_bytes())?;
        out.write_all(page)
    })?;
    out.flush()?;
    Ok((digest.finish(), bytes))
}

impl Asleep {
    /// What it takes on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What a VMM begins with; the file is compared with its digest.
    fn open(&self) -> io::Result<Suspended> {
        let pages = File::open(&self.path)?;
        // All of the file is given back.
        if pages.metadata()?.len() != self.bytes || self.verify(&pages)? != self.digest {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its memory on disk has changed"));
        }
        let base = self.base.as_ref().map(File::try_clone).transpose()?;
        Ok(Suspended { base, pages, state: self.state.clone() })
    }

    fn verify(&self, pages: &File) -> io::Result<String> {
        use std::os::unix::fs::FileExt;
        const RECORD: usize = 8 + PAGE;
        let (mut digest, mut chunk) = (Digest::default(), vec![0; BUFFER_BYTES / RECORD * RECORD]);
        let mut offset = 0;
        while offset < self.bytes {
            let length = chunk.len().min((self.bytes - offset) as usize);
            pages.read_exact_at(&mut chunk[..length], offset)?;
            for record in chunk[..length].chunks_exact(RECORD) {
                let (index, page) = record.split_at(8);
                digest.add(u64::from_le_bytes(index.try_into().unwrap_or_default()), page);
            }
            offset += length as u64;
        }
        Ok(digest.finish())
    }
}

/// Asks for memory for a suspended machine, and writes down that it is suspended no longer.
pub(super) async fn admit(spec: &Spec, shared: &Shared) -> Result<(), ClaimError> {
    let recorder = &shared.recorder;
    let registry = Registry::new(&recorder.home).limited_to(spec.memory_limit_mb);
    let record = recorder.get();
    let until = Instant::now() + ADMISSION_TIMEOUT;
    let admitted = loop {
        let mark = || recorder.update(|record| record.state = State::Prepared);
        match registry.try_admit_resume(&record, mark) {
            Ok(Some(())) => break Ok(()),
            Ok(None) if Instant::now() < until => tokio::time::sleep(ADMISSION_POLL).await,
            Ok(None) => break Err(ClaimError::Busy),
            Err(error) => break Err(error),
        }
    };
    if let Err(refusal) = &admitted {
        let reason = format!("stays suspended: {}", chain(refusal));
        shared.note(&reason);
        recorder.update(|record| record.reason = Some(reason));
    }
    admitted
}

/// Starts a VMM for a suspended machine that was [admitted](admit), and joins everything to it that was there before.
pub(super) async fn resume(
    spec: &Spec,
    hosting: &Hosting,
    shared: &Rc<Shared>,
    asleep: &Asleep,
) -> Result<Box<dyn Instance>, Ending> {
    let suspended = asleep.open().map_err(|error| Ending::Resume(chain(&error)))?;
    let deadline = Instant::now() + Duration::from_millis(spec.deadline_ms);
    let recorder = &shared.recorder;
    let woken = phases::wake(spec, hosting, Beginning::Suspended(suspended), deadline, |pid| {
        recorder.update(|record| record.pid = Some(pid));
    });
    let Woken { instance, link, .. } = woken.await.map_err(|ending| Ending::Resume(ending.to_string()))?;
    rejoin(shared, link).await?;
    recorder.update(|record| {
        record.state = State::Ready;
        record.reason = None;
        record.suspend_bytes = None;
    });
    // Left behind, it would be removed with the machine.
    let _ = fs::remove_file(&asleep.path);
    Ok(instance)
}

/// Joins to the agent of a VMM that was just started what was joined to it before.
async fn rejoin(shared: &Rc<Shared>, link: Link) -> Result<(), Ending> {
    // From now on it is idle, and not since it was suspended.
    drop(shared.in_use());
    *shared.link.borrow_mut() = Some(link.clone());
    phases::follow_server(shared).await?;
    go_on_talking(shared, &link).await.map_err(|error| Ending::Resume(chain(&error)))
}

/// Joins the conversation to the agent again.
async fn go_on_talking(shared: &Shared, link: &Link) -> Result<(), ControlError> {
    let carrier = shared.carrier.borrow().clone();
    let Some(carrier) = carrier else { return Ok(()) };
    let stream = link.connector.connect(port::CONVERSATION).await?;
    match carrier.go_on(stream) {
        true => Ok(()),
        false => Err(ControlError::Resume("its client does not read".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::played::{Order, Played, Vmm, asked, reply, within_a_minute},
        *,
    };
    use casemate_proto::control::{Failure, FailureCode, Reply};
    use serde_json::json;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        join,
    };

    const IDLE: Option<u64> = Some(60_000);

    async fn falls_asleep(played: &Played, vmm: &mut Vmm) -> Result<Asleep, Restless> {
        let hosting = played.hosting();
        let turn = turn(&hosting).await;
        suspend(&played.spec, &hosting, &played.shared, vmm, turn).await
    }

    #[test]
    fn a_conversation_that_was_parked_and_cannot_be_joined_again_ends() {
        within_a_minute(async {
            let played = Played::idle_for(IDLE);
            let (control, conversation) = (played.listen(port::CONTROL), played.listen(port::CONVERSATION));
            let mut client = played.shared.converse().await.unwrap();
            let (stream, _) = conversation.accept().await.unwrap();
            let (mut vmm, mut orders) = Vmm::new();
            let agent = async {
                let (mut control, park) = asked(&control).await;
                assert!(matches!(park.request, Request::Park));
                drop((stream, conversation));
                reply(&mut control, &Reply::done(park.id, &json!({}))).await;
                orders.expect(Order::Save).await.send(false).unwrap();
                orders.expect(Order::Resume).await.send(true).unwrap();
            };
            let (fell, ()) = join!(falls_asleep(&played, &mut vmm), agent);
            assert!(matches!(fell, Err(Restless::Devices(_))));
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
            assert!(played.shared.link.borrow().is_some());
            assert!(
                played.log().contains("lost its conversation: cannot reach the agent"),
                "{}",
                played.log()
            );
        });
    }

    #[test]
    fn a_conversation_that_was_not_parked_goes_on_over_the_stream_that_there_is() {
        within_a_minute(async {
            let played = Played::idle_for(IDLE);
            let (control, conversation) = (played.listen(port::CONTROL), played.listen(port::CONVERSATION));
            let mut client = played.shared.converse().await.unwrap();
            let (mut stream, _) = conversation.accept().await.unwrap();
            drop(conversation);
            let (mut vmm, mut orders) = Vmm::new();
            let agent = async {
                let (mut control, park) = asked(&control).await;
                let busy = Failure { code: FailureCode::State, message: "not now".to_owned() };
                reply(&mut control, &Reply::failed(Some(park.id), busy)).await;
                orders.expect(Order::Resume).await.send(true).unwrap();
            };
            let (fell, ()) = join!(falls_asleep(&played, &mut vmm), agent);
            assert!(matches!(fell, Err(Restless::Park(_))));
            let mut heard = [0; 5];
            client.write_all(b"asked").await.unwrap();
            stream.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"asked");
            stream.write_all(b"told.").await.unwrap();
            client.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"told.");
        });
    }

    #[test]
    fn a_conversation_that_cannot_go_on_is_told_of() {
        within_a_minute(async {
            let played = Played::idle_for(IDLE);
            let shared = &played.shared;
            let link = played.link("two");
            go_on_talking(shared, &link).await.expect("there is no conversation");

            let conversation = played.listen(port::CONVERSATION);
            let _client = shared.converse().await.unwrap();
            go_on_talking(shared, &link).await.unwrap();
            // The stream before is still read.
            let error = go_on_talking(shared, &link).await.unwrap_err();
            assert!(error.to_string().contains("its client does not read"), "{error}");
            drop(conversation);
            let error = go_on_talking(shared, &link).await.unwrap_err();
            assert!(matches!(error, ControlError::Connect(_)), "{error}");
        });
    }

    #[test]
    fn a_machine_whose_conversation_cannot_be_joined_again_is_not_resumed() {
        within_a_minute(async {
            let played = Played::idle_for(IDLE);
            let (control, conversation) = (played.listen(port::CONTROL), played.listen(port::CONVERSATION));
            let _client = played.shared.converse().await.unwrap();
            drop(conversation);
            played.shared.link.take();
            let agent = async {
                let (mut stream, watch) = asked(&control).await;
                reply(&mut stream, &Reply::done(watch.id, &json!({}))).await;
            };
            let (joined, ()) = join!(rejoin(&played.shared, played.link("two")), agent);
            assert!(matches!(joined, Err(Ending::Resume(_))), "{joined:?}");
        });
    }
}
