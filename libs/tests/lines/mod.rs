//! What a test's own thread writes to the log.

use std::{
    fmt::{self, Write as _},
    sync::{Arc, Mutex},
};

use tracing::{
    Dispatch, Event, Level, Subscriber,
    field::{Field, Visit},
    subscriber::{DefaultGuard, NoSubscriber},
};
use tracing_subscriber::layer::{self, SubscriberExt as _};

const ROOMS: [&str; 5] = ["libs::journal", "libs::cqrs", "libs::saga", "libs::rpc", "libs::service"];

/// The lines of the journal, of the read side, of sagas, of calls and of what a service opens, from INFO on, or of whom it is told to
/// hear: the level, and all that is said.
#[derive(Clone)]
pub(crate) struct Lines {
    kept: Arc<Mutex<Vec<String>>>,
    whose: &'static [&'static str],
    least: Level,
}

/// As long as it is held, lines are kept.
pub(crate) struct Keeping {
    _guard: DefaultGuard,
    /// With a single one a line that another thread is the first to come to is asked of that thread's, which has none, and is off for all.
    _second: Dispatch,
}

impl Lines {
    /// Keeps what this thread writes.
    pub(crate) fn keep() -> (Self, Keeping) {
        Self::keep_of(&ROOMS, Level::INFO)
    }

    /// Keeps what this thread writes of these crates or rooms, from that level on.
    pub(crate) fn keep_of(whose: &'static [&'static str], least: Level) -> (Self, Keeping) {
        let (lines, second) = (Self { kept: Arc::default(), whose, least }, Dispatch::new(NoSubscriber::new()));
        let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines.clone()));
        (lines, Keeping { _guard: guard, _second: second })
    }

    /// Those that say this.
    pub(crate) fn that_say(&self, this: &str) -> Vec<String> {
        self.kept.lock().expect("no panic").iter().filter(|line| line.contains(this)).cloned().collect()
    }
}

impl<S: Subscriber> layer::Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, S>) {
        let metadata = event.metadata();
        let is_theirs = self.whose.iter().any(|room| metadata.target().starts_with(room));
        if *metadata.level() <= self.least && is_theirs {
            let mut line = Line(metadata.level().to_string());
            event.record(&mut line);
            self.kept.lock().expect("no panic").push(line.0);
        }
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {field}={value:?}").expect("a String takes all");
    }
}
