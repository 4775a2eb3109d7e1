//! `kill -9` of anything at any moment: nothing of casemate remains after the next `casemate status`, no
//! template is used that is not whole, and the next start and call work.
//!
//! The schedule (who is killed in which phase, after which delay) is drawn from a seed, which is printed and
//! can be given as `CASEMATE_KILL_SEED`: the kills are the same ones then, and what they meet is not. The phase in which a kill really hit is what was seen just before
//! it; rounds are added until there were enough in each. `CASEMATE_KILL_POINTS` says how many kills there
//! have to be in all; `make kill-test` asks for 300.

mod aftermath;
mod scene;
mod schedule;

use crate::{
    home::{Home, casemate},
    support::{number, seed},
};
use aftermath::assert_works;
use scene::Scene;
use schedule::{PHASES, Schedule};
use std::{sync::Mutex, thread};

/// Kills in all, unless something else is said: as many as a run of all tests has time for.
const POINTS: u64 = 3 * PHASES.len() as u64;

/// Homes in which rounds run at once: a guest in emulation waits for little but its processor.
const HOMES: usize = 3;

#[test]
fn a_kill_of_anything_at_any_moment_leaves_nothing() {
    let (seed, points) = (seed("CASEMATE_KILL_SEED"), number("CASEMATE_KILL_POINTS").unwrap_or(POINTS));
    println!("CASEMATE_KILL_POINTS={points}");
    let homes: Vec<Home> = (0..HOMES).map(|_| Home::new()).collect();
    // Fetches and builds what all machines share, so that a phase is a phase of a machine.
    assert_works(&homes[0], "before the first kill");
    let schedule = Mutex::new(Schedule::new(seed, points));
    thread::scope(|scope| {
        for home in &homes {
            scope.spawn(|| rounds(home, &schedule));
        }
    });
    let schedule = schedule.into_inner().unwrap();
    println!("{schedule}");
    schedule.assert_enough();
    for home in &homes {
        assert_eq!(casemate(home, &["template", "prune", "--all"]).code, 0);
        assert_eq!(crate::live::templates(home), crate::live::NONE);
    }
}

fn rounds(home: &Home, schedule: &Mutex<Schedule>) {
    loop {
        let Some(plan) = schedule.lock().unwrap().next() else { break };
        let mut scene = Scene::set(home, plan);
        let hit = scene.strike();
        let context = format!("{plan:?}, hit {hit:?}");
        scene.settle(hit, &context);
        assert_works(home, &context);
        schedule.lock().unwrap().note(plan, hit);
    }
}
