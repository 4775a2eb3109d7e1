//! A machine that is ready: who asks for what, until something ends it.

use super::{
    attach,
    ending::{self, Ending},
    health,
    owner::Owner,
    phases::Ready,
    shared::{Shared, Wish},
    sleep::{self, Machine},
};
use crate::{
    backend::{BackendError, Hosting, Instance},
    control::ControlError,
    leash::Report,
    record::State,
    spec::{Conversation, Spec},
    sys,
};
use casemate_proto::{
    control::Request,
    limits::{FLUSH, POWER_OFF, STOP_GRACE, WAKE},
};
use std::{collections::VecDeque, fs::File, io, path::Path, process::ExitStatus, rc::Rc, time::Duration};
use tokio::{sync::mpsc, time::timeout};

/// How the word begins that somebody's data may be lost.
const UNWRITTEN: &str = "what its server wrote last to its volumes may be lost";

/// Serves the machine's socket until the machine is to end, then ends it.
pub(super) async fn until_the_end(mut ready: Ready<'_>, owner: &mut Owner) -> Ending {
    let ending = serve(&mut ready, owner).await;
    let Ready { spec, hosting, mut machine, shared, listener, .. } = ready;
    // From here on a program that connects is told at once that nobody is there.
    drop(listener);
    if has_volume(spec)
        && is_well(&ending)
        && let Machine::Asleep(asleep) = &machine
    {
        // What its server wrote last may be in its memory alone.
        let woken = async {
            sleep::admit(spec, &shared).await.map_err(|refusal| ending::chain(&refusal))?;
            sleep::resume(spec, &hosting, &shared, asleep).await.map_err(|ending| ending.to_string())
        };
        match timeout(WAKE, woken).await.unwrap_or_else(|_| Err(format!("not within {} s", WAKE.as_secs()))) {
            Ok(instance) => machine = Machine::Awake(instance),
            Err(reason) => shared.note(&format!("{UNWRITTEN}: it could not be resumed: {reason}")),
        }
    }
    if let Some(instance) = machine.instance() {
        if is_well(&ending) {
            shut_down(spec, instance, &shared).await;
        }
        instance.kill().await;
    }
    ending
}

/// Whether something of it stays when it ends.
pub(super) fn has_volume(spec: &Spec) -> bool {
    spec.workload.as_ref().is_some_and(|workload| !workload.volumes.is_empty())
}

/// Whether a machine that ends so can still be told to.
pub(super) fn is_well(ending: &Ending) -> bool {
    match ending {
        Ending::VmmEnded { .. } | Ending::Killed | Ending::Resume(_) | Ending::Built(_) => false,
        Ending::Hung { what, .. } => *what != health::AGENT,
        _ => true,
    }
}

async fn serve(ready: &mut Ready<'_>, owner: &mut Owner) -> Ending {
    let Ready { spec, hosting, machine, shared, listener, wished } = ready;
    let logs = hosting.dir.join("logs");
    let mut server_exits = shared.server_exit.subscribe();
    let mut breaks = shared.broken.subscribe();
    let reports = owner.reports();
    let held = shared.recorder.get().conversation == Some(Conversation::Held);
    let conversation = shared.conversation.borrow().clone();
    let conversation_ended = async {
        match &conversation {
            Some(conversation) => conversation.closed().await,
            None => std::future::pending().await,
        }
    };
    let hopeless = health::watch(spec, shared);
    tokio::pin!(conversation_ended, hopeless);
    let mut later = VecDeque::new();
    loop {
        let awake = matches!(machine, Machine::Awake(_));
        tokio::select! {
            status = exited(machine) => return vmm_ended(status, &logs),
            ending = owner.interrupted() => return ending,
            ending = &mut hopeless => return ending,
            turn = idle(spec, hosting, shared, awake) => {
                let Machine::Awake(instance) = machine else { continue };
                let suspended = tokio::select! {
                    biased;
                    // As with a wish. The stop that follows is bounded, whatever the machine does.
                    ending = owner.interrupted() => return ending,
                    ending = told_to_end(wished, &mut later) => return ending,
                    suspended = sleep::suspend(spec, hosting, shared, &mut **instance, turn) => suspended,
                };
                // A failure is in the server's log; it is tried again after another while.
                if let Ok(asleep) = suspended {
                    instance.kill().await;
                    shared.recorder.update(|record| {
                        record.state = State::Suspended;
                        record.pid = None;
                        record.suspend_bytes = Some(asleep.bytes());
                    });
                    *machine = Machine::Asleep(asleep);
                    // An older kernel, or a file of another user: it stays as large as it is.
                    let _ = sys::page_out_program();
                } else {
                    // Not before it was idle for as long again.
                    drop(shared.in_use());
                }
            }
            Some(wish) = next_wish(wished, &mut later) => {
                let fulfilled = tokio::select! {
                    biased;
                    // A VMM that hangs must not keep its machine from being ended. What is given up half-way
                    // is not asked again.
                    ending = owner.interrupted() => return ending,
                    ending = told_to_end(wished, &mut later) => return ending,
                    fulfilled = fulfil(wish, spec, hosting, shared, machine) => fulfilled,
                };
                if let Some(ending) = fulfilled {
                    return ending;
                }
            }
            Ok(()) = server_exits.changed() => {
                let exit = server_exits.borrow_and_update().clone();
                match exit {
                    Some(exit) if held => return Ending::ServerExited(exit),
                    Some(exit) => reports.send(Report::ServerExited { exit }),
                    None => {}
                }
            }
            Ok(()) = breaks.changed() => {
                if let Some(reason) = breaks.borrow_and_update().clone() {
                    reports.send(Report::ConversationBroken { reason: shared.clean(&reason) });
                }
            }
            reason = &mut conversation_ended => {
                if ending::is_to_blame(&reason) {
                    return Ending::ConversationEnded(reason.to_string());
                }
                let broken = shared.broken.borrow().clone();
                if let Some(reason) = broken {
                    return Ending::ConversationEnded(reason);
                }
                // Most often the server ended, or the VMM under it: that says more.
                return tokio::select! {
                    biased;
                    status = exited(machine) => vmm_ended(status, &logs),
                    news = shared.exit_news() => match news {
                        Some(exit) => Ending::ServerExited(exit),
                        None => Ending::ConversationEnded(reason.to_string()),
                    },
                };
            }
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    tokio::task::spawn_local(attach::handle(stream, Rc::clone(shared)));
                } else {
                    // Out of descriptors, most likely: those who hold them will let go.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

fn vmm_ended(status: io::Result<ExitStatus>, logs: &Path) -> Ending {
    match status {
        Ok(status) => Ending::VmmEnded { status, tail: ending::tails(logs) },
        Err(error) => Ending::Unrecorded(error),
    }
}

/// The next wish, those first that came while another was being fulfilled. May be cancelled.
async fn next_wish(wished: &mut mpsc::Receiver<Wish>, later: &mut VecDeque<Wish>) -> Option<Wish> {
    match later.pop_front() {
        Some(wish) => Some(wish),
        None => wished.recv().await,
    }
}

/// Resolves when somebody wishes the machine's end; other wishes are kept for later. May be cancelled.
async fn told_to_end(wished: &mut mpsc::Receiver<Wish>, later: &mut VecDeque<Wish>) -> Ending {
    loop {
        match wished.recv().await {
            Some(Wish::Stop { reason }) => return Ending::Asked(reason),
            Some(Wish::Kill) => return Ending::Killed,
            Some(wish) => later.push_back(wish),
            // Never: the machine's own state holds a sender.
            None => std::future::pending().await,
        }
    }
}

/// Resolves when a machine that is not suspended has lost its VMM. May be cancelled.
async fn exited(machine: &mut Machine) -> io::Result<ExitStatus> {
    match machine.instance() {
        Some(instance) => instance.exited().await,
        None => std::future::pending().await,
    }
}

/// Resolves when the machine has been idle for long enough to be suspended, and it is its turn. May be
/// cancelled.
async fn idle(spec: &Spec, hosting: &Hosting, shared: &Shared, awake: bool) -> File {
    let (Some(idle_ms), true, true) = (spec.idle_ms, shared.may_be_suspended, awake) else {
        return std::future::pending().await;
    };
    let patience = Duration::from_millis(idle_ms);
    loop {
        match shared.usage.idle_since().filter(|_| !shared.paused.get()) {
            Some(since) if since.elapsed() >= patience => {
                let turn = sleep::turn(hosting).await;
                // Others may have taken their time, and somebody may have used it meanwhile.
                if shared.usage.idle_since() == Some(since) && !shared.paused.get() {
                    return turn;
                }
            }
            Some(since) => tokio::time::sleep_until(since + patience).await,
            None => tokio::time::sleep(patience).await,
        }
    }
}

async fn fulfil(
    wish: Wish,
    spec: &Spec,
    hosting: &Hosting,
    shared: &Rc<Shared>,
    machine: &mut Machine,
) -> Option<Ending> {
    // Whoever asked may be gone; the wish was fulfilled all the same.
    match (wish, machine) {
        (Wish::Stop { reason }, _) => return Some(Ending::Asked(reason)),
        (Wish::Kill, _) => return Some(Ending::Killed),
        (Wish::Pause(done), Machine::Awake(instance)) => {
            shared.paused.set(true);
            let paused = instance.pause().await;
            shared.paused.set(paused.is_ok());
            let _ = done.send(paused);
        }
        (Wish::Resume(done), Machine::Awake(instance)) => {
            let resumed = instance.resume().await;
            shared.paused.set(shared.paused.get() && resumed.is_err());
            let _ = done.send(resumed);
        }
        (Wish::CutLink(done), Machine::Awake(instance)) => {
            instance.cut_link();
            let _ = done.send(());
        }
        (Wish::Wake(done), Machine::Awake(_)) => drop(done.send(Ok(()))),
        (Wish::Wake(done), machine @ Machine::Asleep(_)) => {
            let Machine::Asleep(asleep) = &*machine else { return None };
            if let Err(refusal) = sleep::admit(spec, shared).await {
                // It stays as it is; whoever asks later may find more memory.
                let _ = done.send(Err(ControlError::NotAdmitted(refusal)));
                return None;
            }
            match sleep::resume(spec, hosting, shared, asleep).await {
                Ok(instance) => {
                    *machine = Machine::Awake(instance);
                    let _ = done.send(Ok(()));
                }
                Err(ending) => {
                    let _ = done.send(Err(ControlError::Resume(ending.to_string())));
                    return Some(ending);
                }
            }
        }
        (Wish::Pause(done) | Wish::Resume(done), Machine::Asleep(_)) => {
            let refused =
                BackendError::Incapable { backend: "machine", what: "do that while it is suspended" };
            let _ = done.send(Err(refused));
        }
        // There is none.
        (Wish::CutLink(done), Machine::Asleep(_)) => drop(done.send(())),
    }
    None
}

/// Lets the server end; after that the machine is killed. One with a disk that outlives it powers itself off
/// first: of another nothing stays, and in emulation that takes longer than all the rest.
pub(super) async fn shut_down(spec: &Spec, instance: &mut dyn Instance, shared: &Shared) {
    let grace = STOP_GRACE / 2;
    let has_volume = has_volume(spec);
    let has_disk = has_volume || spec.workload.as_ref().is_some_and(|workload| workload.overlay);
    let conversation = shared.conversation.take();
    let orderly = async {
        // Without processors it could not answer; a machine that is not paused refuses, which is no harm. A
        // VMM that hangs answers nothing: the bound below is for that too.
        let _ = instance.resume().await;
        // The end of its input is what a server ends by; one that does not is signalled by the agent.
        if let Some(conversation) = conversation {
            conversation.close(grace).await;
        }
        let powered_off = async {
            let request = Request::Shutdown { grace_ms: grace.as_millis() as u64 };
            let patience = if has_volume { FLUSH } else { grace };
            let answer = shared.ask::<serde_json::Value>("shutdown", request, patience).await;
            // An agent that does not answer is not waited for, unless data could be lost: it may have heard.
            if answer.is_ok() || has_volume {
                let _ = instance.exited().await;
            }
        };
        let mut exits = shared.server_exit.subscribe();
        tokio::select! {
            biased;
            Ok(_) = exits.wait_for(Option::is_some), if !has_disk => {}
            () = powered_off => {}
        }
    };
    let patience = STOP_GRACE + POWER_OFF + if has_volume { FLUSH } else { Duration::ZERO };
    if timeout(patience, orderly).await.is_err() && has_volume {
        shared.note(&format!("{UNWRITTEN}: it did not power itself off within {} s", patience.as_secs_f32()));
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::played::{Order, Orders, Played, Vmm, asked, at_rest, reply, within_a_minute},
        *,
    };
    use crate::{jsonl::Jsonl, supervise::MESSAGE_BYTES};
    use casemate_proto::{control::Reply, port};
    use serde_json::json;
    use tokio::{
        join,
        net::{UnixListener, UnixStream},
        sync::oneshot,
    };

    /// Long enough for what else is to be done meanwhile.
    const IDLE_MS: u64 = 100;

    #[tokio::test]
    async fn a_wish_for_the_end_overtakes_and_the_others_keep_their_turn() {
        let (wishes, mut wished) = mpsc::channel(4);
        let (done, _told) = oneshot::channel();
        wishes.send(Wish::CutLink(done)).await.unwrap();
        wishes.send(Wish::Stop { reason: "enough".to_owned() }).await.unwrap();
        wishes.send(Wish::Kill).await.unwrap();
        let mut later = VecDeque::new();
        let ending = told_to_end(&mut wished, &mut later).await;
        assert!(matches!(ending, Ending::Asked(reason) if reason == "enough"));
        assert!(matches!(next_wish(&mut wished, &mut later).await, Some(Wish::CutLink(_))));
        assert!(matches!(next_wish(&mut wished, &mut later).await, Some(Wish::Kill)));
    }

    /// Serves a machine that falls asleep; `then` is what happens once its VMM is asked for its state. With
    /// how that ended comes what is to be kept until then.
    async fn falling_asleep<T>(
        then: impl AsyncFnOnce(&Shared, &mut Orders, oneshot::Sender<bool>, UnixStream) -> T,
    ) -> Ending {
        let mut played = Played::idle_for(Some(IDLE_MS));
        let control = played.listen(port::CONTROL);
        let hosting = played.hosting();
        let listener = UnixListener::bind(hosting.dir.join("socket")).unwrap();
        let (vmm, mut orders) = Vmm::new();
        let (leash, command) = UnixStream::pair().unwrap();
        let mut owner = Owner::new(Jsonl::new(leash, MESSAGE_BYTES)).unwrap();
        let mut ready = Ready {
            spec: &played.spec,
            hosting,
            machine: Machine::Awake(Box::new(vmm)),
            shared: Rc::clone(&played.shared),
            listener,
            wished: std::mem::replace(&mut played.wished, mpsc::channel(1).1),
        };
        let agent = async {
            let (mut stream, park) = asked(&control).await;
            reply(&mut stream, &Reply::done(park.id, &json!({}))).await;
            let save = orders.expect(Order::Save).await;
            then(&played.shared, &mut orders, save, command).await
        };
        join!(serve(&mut ready, &mut owner), agent).0
    }

    #[test]
    fn a_machine_that_is_falling_asleep_can_be_stopped() {
        let ending = within_a_minute(falling_asleep(async |shared, _, save, command| {
            shared.wishes.send(Wish::Stop { reason: "enough".to_owned() }).await.unwrap();
            (save, command)
        }));
        assert!(matches!(ending, Ending::Asked(reason) if reason == "enough"));
    }

    #[test]
    fn a_machine_that_is_falling_asleep_ends_with_its_owner() {
        let ending = within_a_minute(falling_asleep(async |_, _, save, command| {
            drop(command);
            save
        }));
        assert!(matches!(ending, Ending::OwnerGone));
    }

    #[test]
    fn who_asks_while_a_machine_falls_asleep_is_served_when_it_stays_awake() {
        let ending = within_a_minute(falling_asleep(async |shared, orders, save, command| {
            let asks = async {
                assert!(shared.link.borrow().is_none());
                shared.link().await.unwrap()
            };
            let stays_awake = async {
                at_rest().await;
                save.send(false).unwrap();
                orders.expect(Order::Resume).await.send(true).unwrap();
            };
            let (link, ()) = join!(asks, stays_awake);
            assert_eq!(link.epoch, "one");
            shared.wishes.send(Wish::Kill).await.unwrap();
            command
        }));
        assert!(matches!(ending, Ending::Killed));
    }

    /// On a busy host an agent takes seconds to hear of the end, and the volumes are not written before.
    #[test]
    fn a_machine_with_a_volume_is_not_killed_before_its_agent_had_time_to_hear() {
        within_a_minute(async {
            let mut played = Played::new();
            let control = played.listen(port::CONTROL);
            played.spec.workload = serde_json::from_value(json!({
                "rootfs": "/r", "image": "i", "command": ["c"], "env": {}, "cwd": "/", "reseed": null,
                "transport": {"kind": "stdio"}, "limits": casemate_proto::control::Limits::default(),
                "conversation": "held", "overlay": false,
                "volumes": [{"name": "notes", "bytes": 1, "target": "/data"}],
            }))
            .unwrap();
            let (mut vmm, mut orders) = Vmm::new();
            let silent = async {
                orders.expect(Order::Resume).await.send(false).unwrap();
                let asked = asked(&control).await;
                assert!(matches!(asked.1.request, Request::Shutdown { .. }));
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = shut_down(&played.spec, &mut vmm, &played.shared) => panic!("it was given up"),
                () = silent => {}
                () = tokio::time::sleep(STOP_GRACE * 2) => {}
            }
        });
    }

    #[test]
    fn a_machine_counts_as_paused_from_a_pause_that_succeeded_to_a_resumption_that_did() {
        within_a_minute(async {
            let played = Played::new();
            let (hosting, shared) = (played.hosting(), &played.shared);
            let (vmm, mut orders) = Vmm::new();
            let mut machine = Machine::Awake(Box::new(vmm));
            let steps = [
                (Order::Resume, true, false),
                (Order::Pause, false, false),
                (Order::Pause, true, true),
                (Order::Resume, false, true),
                (Order::Resume, true, false),
                (Order::Resume, false, false),
            ];
            for (order, succeeds, paused) in steps {
                let (done, told) = oneshot::channel();
                let wish = if order == Order::Pause { Wish::Pause(done) } else { Wish::Resume(done) };
                let obey = async { orders.expect(order).await.send(succeeds).unwrap() };
                let fulfilled = fulfil(wish, &played.spec, &hosting, shared, &mut machine);
                let (ending, ()) = join!(fulfilled, obey);
                assert!(ending.is_none());
                assert_eq!(told.await.unwrap().is_ok(), succeeds);
                assert_eq!(shared.paused.get(), paused, "after {order:?}, which was to give {succeeds}");
            }
        });
    }
}
