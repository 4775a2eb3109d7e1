//! How many sessions wait for their machines: all together, and those of one server, so that one whose machines
//! take long to start takes no place from the others.

use crate::{Limits, refusal::Refusal};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
};
use tokio::sync::{Semaphore, SemaphorePermit};

/// The sessions whose machine has not started, in a line for each server.
#[derive(Debug, Default)]
pub struct Queue(Lines);

type Lines = Rc<RefCell<HashMap<String, Rc<Line>>>>;

#[derive(Debug)]
struct Line {
    places: Cell<usize>,
    plans: Semaphore,
}

/// A place in a server's line, until this is dropped.
#[derive(Debug)]
pub struct Place {
    lines: Lines,
    line: Rc<Line>,
    server: String,
}

impl Queue {
    /// Takes a place, if there is one.
    pub fn enter(&self, server: &str, limits: &Limits) -> Result<Place, Refusal> {
        let mut lines = self.0.borrow_mut();
        let all = lines.values().map(|line| line.places.get()).sum::<usize>();
        if all >= limits.starts + limits.queue {
            return Err(Refusal::TooManyStarts(all));
        }
        let of_server = lines.get(server).map_or(0, |line| line.places.get());
        if of_server >= limits.queue_of_server {
            return Err(Refusal::TooManyStarts(of_server));
        }
        let new = || Rc::new(Line { places: Cell::new(0), plans: Semaphore::new(limits.starts) });
        let line = Rc::clone(lines.entry(server.to_owned()).or_insert_with(new));
        line.places.set(of_server + 1);
        Ok(Place { lines: Rc::clone(&self.0), line, server: server.to_owned() })
    }
}

impl Place {
    /// Waits until few enough sessions of the server get what they need, while this is held. May be cancelled.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // Never closed.
        self.line.plans.acquire().await.ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let left = self.line.places.get() - 1;
        self.line.places.set(left);
        if left == 0 {
            self.lines.borrow_mut().remove(&self.server);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_for_each_server_and_for_all_and_come_back() {
        let limits = Limits { starts: 1, queue: 2, queue_of_server: 2, ..Limits::default() };
        let queue = Queue::default();
        let first = queue.enter("a", &limits).unwrap();
        let _second = queue.enter("a", &limits).unwrap();
        assert!(matches!(queue.enter("a", &limits), Err(Refusal::TooManyStarts(2))));
        let _third = queue.enter("b", &limits).unwrap();
        assert!(matches!(queue.enter("b", &limits), Err(Refusal::TooManyStarts(3))));
        drop(first);
        let _fourth = queue.enter("a", &limits).unwrap();
        drop((_second, _third, _fourth));
        assert!(queue.0.borrow().is_empty());
    }
}
