//! A machine that is ready: who asks for what, until something ends it.

use super::{
    attach,
    ending::{self, Ending},
    owner::Owner,
    phases::Ready,
    shared::{Shared, Wish},
};
use crate::{backend::Instance, leash::Report, spec::Conversation};
use casemate_proto::{control::Request, limits::STOP_GRACE};
use std::{io, path::Path, process::ExitStatus, rc::Rc, time::Duration};

/// How long a machine may take to power itself off, beyond what its server is given to end.
const POWER_OFF: Duration = Duration::from_millis(500);

/// Serves the machine's socket until the machine is to end, then ends it.
pub(super) async fn until_the_end(mut ready: Ready, owner: &mut Owner) -> Ending {
    let ending = serve(&mut ready, owner).await;
    let Ready { mut instance, shared, listener, .. } = ready;
    // From here on a program that connects is told at once that nobody is there.
    drop(listener);
    if !matches!(ending, Ending::VmmEnded { .. } | Ending::Killed) {
        shut_down(&mut *instance, &shared).await;
    }
    instance.kill().await;
    ending
}

async fn serve(ready: &mut Ready, owner: &mut Owner) -> Ending {
    let Ready { instance, shared, logs, listener, wished } = ready;
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
    tokio::pin!(conversation_ended);
    loop {
        tokio::select! {
            status = instance.exited() => return vmm_ended(status, logs),
            ending = owner.interrupted() => return ending,
            Some(wish) = wished.recv() => {
                if let Some(ending) = fulfil(wish, &mut **instance).await {
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
                    reports.send(Report::ConversationBroken { reason });
                }
            }
            reason = &mut conversation_ended => {
                if ending::is_to_blame(&reason) {
                    return Ending::ConversationEnded(reason.to_string());
                }
                // Most often the server ended, or the VMM under it: that says more.
                return tokio::select! {
                    biased;
                    status = instance.exited() => vmm_ended(status, logs),
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

async fn fulfil(wish: Wish, instance: &mut dyn Instance) -> Option<Ending> {
    match wish {
        Wish::Stop { reason } => return Some(Ending::Asked(reason)),
        Wish::Kill => return Some(Ending::Killed),
        // Whoever asked may be gone; the wish was fulfilled all the same.
        Wish::Pause(done) => drop(done.send(instance.pause().await)),
        Wish::Resume(done) => drop(done.send(instance.resume().await)),
        Wish::CutLink(done) => {
            instance.cut_link();
            let _ = done.send(());
        }
    }
    None
}

/// Lets the server end, and the machine power itself off; after that it is killed anyway.
async fn shut_down(instance: &mut dyn Instance, shared: &Shared) {
    // Without processors it could not answer; a machine that is not paused refuses, which is no harm.
    let _ = instance.resume().await;
    let request = Request::Shutdown { grace_ms: STOP_GRACE.as_millis() as u64 };
    let orderly = async {
        shared.ask::<serde_json::Value>("shutdown", request, STOP_GRACE + POWER_OFF).await.ok()?;
        tokio::time::timeout(POWER_OFF, instance.exited()).await.ok()
    };
    let _ = tokio::time::timeout(STOP_GRACE + POWER_OFF, orderly).await;
}
