//! Progress of long work: bars that are drawn over on a terminal, plain lines otherwise.

use super::Screen;
use crate::engine::Progress;
use console::Style;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

/// Shows the steps of one piece of work.
#[derive(Debug)]
pub struct Steps {
    screen: Screen,
    bar: Mutex<Option<ProgressBar>>,
    step: Mutex<String>,
}

impl Steps {
    /// Shows nothing yet.
    pub fn new(screen: Screen) -> Self {
        Self { screen, bar: Mutex::new(None), step: Mutex::default() }
    }

    fn with_bar(&self, act: impl FnOnce(&mut Option<ProgressBar>)) {
        // A panic while drawing leaves a bar that can still be drawn.
        act(&mut self.bar.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    }

    fn current(&self) -> MutexGuard<'_, String> {
        self.step.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Removes what is drawn over.
    fn clear(&self) {
        self.with_bar(|bar| {
            if let Some(bar) = bar.take() {
                bar.finish_and_clear();
            }
        });
    }
}

impl Progress for Steps {
    fn step(&self, what: &str) {
        if !self.screen.live {
            self.screen.note(what);
            return;
        }
        self.with_bar(|bar| {
            if let Some(done) = bar.take() {
                done.finish_and_clear();
            }
            let fresh = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            fresh.set_style(spinner());
            fresh.set_message(what.to_owned());
            // Work that is over at once should not flicker, and work without bytes should not look dead.
            fresh.enable_steady_tick(Duration::from_millis(120));
            *bar = Some(fresh);
        });
        what.clone_into(&mut self.current());
    }

    fn detail(&self, text: &str) {
        let message = format!("{}: {text}", self.current());
        self.with_bar(|bar| {
            if let Some(bar) = bar {
                bar.set_message(message);
            }
        });
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        self.with_bar(|bar| {
            let Some(bar) = bar else { return };
            if bar.length() != total {
                bar.set_style(if total.is_some() { download() } else { spinner() });
                match total {
                    Some(total) => bar.set_length(total),
                    None => bar.unset_length(),
                }
            }
            bar.set_position(done);
        });
    }

    fn note(&self, message: &str) {
        self.with_bar(|bar| match bar {
            Some(bar) => {
                let word = Style::new().for_stderr().yellow().bold().apply_to("note:");
                bar.suspend(|| eprintln!("{word} {message}"));
            }
            None => self.screen.warn(message),
        });
    }
}

/// Counts what many pieces of work have come to, in a line that is drawn over on a terminal.
#[derive(Debug)]
pub struct Tally {
    bar: Option<ProgressBar>,
}

impl Tally {
    /// Nothing of `total` is done yet; `done` is what it is then, such as `ready`.
    pub fn new(screen: Screen, total: usize, done: &str) -> Self {
        if !screen.live {
            return Self { bar: None };
        }
        let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
        bar.set_style(style(&format!(
            "{{spinner}} {{bar:24}} {{pos}} of {{len}} {done}{{msg}} ({{elapsed}})"
        )));
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar: Some(bar) }
    }

    /// So many are done, and this is to be said of the others.
    pub fn show(&self, done: usize, others: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
            bar.set_message(others.to_owned());
        }
    }

    /// Prints something where the line would be in the way.
    pub fn beside<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.clear();
    }
}

fn spinner() -> ProgressStyle {
    style("{spinner} {wide_msg}")
}

fn download() -> ProgressStyle {
    style("{spinner} {msg:40!} {bar:24} {bytes:>10}/{total_bytes} {eta:>4}")
}

fn style(template: &str) -> ProgressStyle {
    // A template that does not parse would only lose its looks.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
