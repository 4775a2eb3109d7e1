//! How many sessions wait for their machines: all together, and those of one server, so that one whose machines
//! take long to start takes no place from the others.

use crate::{Limits, refusal::Refusal};
use std::{cell::RefCell, collections::HashMap, rc::Rc};

/// The sessions whose machine has not started, counted by their servers.
#[derive(Debug, Default)]
pub struct Queue(Rc<RefCell<HashMap<String, usize>>>);

/// One of them, until this is dropped.
#[derive(Debug)]
pub struct Place {
    queue: Rc<RefCell<HashMap<String, usize>>>,
    server: String,
}

impl Queue {
    /// Counts one more, if there may be.
    pub fn enter(&self, server: &str, limits: &Limits) -> Result<Place, Refusal> {
        let mut queue = self.0.borrow_mut();
        let all = queue.values().sum::<usize>();
        if all >= limits.starts + limits.queue {
            return Err(Refusal::TooManyStarts(all));
        }
        let of_server = queue.get(server).copied().unwrap_or_default();
        if of_server >= limits.queue_of_server {
            return Err(Refusal::TooManyStarts(of_server));
        }
        queue.insert(server.to_owned(), of_server + 1);
        Ok(Place { queue: Rc::clone(&self.0), server: server.to_owned() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queue = self.queue.borrow_mut();
        if let Some(count) = queue.get_mut(&self.server) {
            *count -= 1;
            if *count == 0 {
                queue.remove(&self.server);
            }
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
