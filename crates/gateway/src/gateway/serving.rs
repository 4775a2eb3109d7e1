//! From the first connection to the end of the last: what is accepted, and how all of it ends.

use super::Gateway;
use crate::{
    Backend, connection,
    session::{Over, Session},
    socket,
};
use std::{cell::Cell, collections::HashMap, rc::Rc, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

/// How long nothing is accepted where that failed: descriptors have run out.
const PAUSE: Duration = Duration::from_millis(100);

/// How long connections may take to end once all is answered.
const LAST_BYTES: Duration = Duration::from_secs(1);

impl<B: Backend> Gateway<B> {
    /// Serves a listener until `stop` resolves; then takes no more requests, waits until those that are open
    /// are answered or [`drain`](crate::Limits::drain) has passed, and ends all sessions. Nothing of their
    /// machines is left when this returns, but for those that did not end within [`stop`](crate::Limits::stop)
    /// more: they were dropped, and end by themselves. Needs a [`LocalSet`](tokio::task::LocalSet).
    pub async fn serve(self: Rc<Self>, listener: TcpListener, stop: impl Future<Output = ()>) {
        let (close, closing) = watch::channel(false);
        let mut connections = JoinSet::new();
        let deadline = Cell::new(Instant::now());
        let stopped = async {
            stop.await;
            deadline.set(Instant::now() + self.limits.drain);
            self.drain(deadline.get()).await;
        };
        tokio::select! {
            () = self.accept(&listener, &mut connections, &closing) => {}
            () = stopped => {}
        }
        drop(listener);
        close.send_replace(true);
        self.end_sessions(deadline.get() + self.limits.stop).await;
        // Who reads slowly has the time that was promised.
        let until = deadline.get().max(Instant::now() + LAST_BYTES);
        while let Ok(Some(_)) = timeout_at(until, connections.join_next()).await {}
    }

    async fn accept(
        self: &Rc<Self>,
        listener: &TcpListener,
        connections: &mut JoinSet<()>,
        closing: &watch::Receiver<bool>,
    ) {
        let room = Arc::new(Semaphore::new(self.limits.connections));
        loop {
            // Never closed.
            let permit = Arc::clone(&room).acquire_owned().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    socket::prepare(&stream);
                    let served = connection::serve(Rc::clone(self), stream, closing.clone());
                    connections.spawn_local(async move {
                        served.await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    self.backend.note(&format!("cannot accept a connection: {error}"));
                    sleep(PAUSE).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
    }

    /// Takes no more requests, and waits for the answers to those that are open. What servers ask their clients
    /// meanwhile can still be answered, and answers be asked for again.
    async fn drain(&self, until: Instant) {
        self.draining.set(true);
        let is_open = || self.sessions.borrow().values().any(|session| session.open_requests() > 0);
        while is_open() && Instant::now() < until {
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends all sessions, and waits until they are gone; those that are not in time are dropped.
    async fn end_sessions(&self, until: Instant) {
        let sessions: Vec<Rc<Session>> = self.sessions.borrow().values().cloned().collect();
        sessions.into_iter().for_each(|session| session.finish(Over::Shutdown));
        if timeout_at(until, self.until(|sessions| sessions.is_empty())).await.is_err() {
            let mut led = std::mem::take(&mut *self.led.borrow_mut());
            led.shutdown().await;
        }
    }

    /// Waits until the sessions are as wished, which they become by some of them going.
    pub(super) async fn until(&self, wished: impl Fn(&HashMap<String, Rc<Session>>) -> bool) {
        loop {
            let gone = self.gone.notified();
            tokio::pin!(gone);
            gone.as_mut().enable();
            if wished(&self.sessions.borrow()) {
                return;
            }
            gone.await;
        }
    }
}
