//! A saga's timeline: what happened, when, and how long it took, each line once and as it comes.

use std::time::Duration;

use proto::saga::v1::{HistoryEntry, Operation, Saga, SagaPhase, Step};

use crate::screen::{Screen, Tone};

/// The lines of one saga that were not shown yet.
#[derive(Debug, Default)]
pub struct Timeline {
    /// All up to this version was shown.
    shown: u64,
}

impl Timeline {
    /// What is new since the last look. Looks may come late: the saga carries its own history.
    pub fn news(&mut self, saga: &Saga, screen: Screen) -> Vec<String> {
        let news = saga.history.iter().filter(|entry| entry.version > self.shown);
        let lines = news.map(|entry| line(saga, entry, screen)).collect();
        self.shown = self.shown.max(saga.version);
        lines
    }
}

/// True once nothing can happen to the saga any more.
#[must_use]
pub fn is_over(saga: &Saga) -> bool {
    matches!(saga.phase(), SagaPhase::Completed | SagaPhase::Compensated | SagaPhase::ForceClosed)
}

/// `+2.1 ms  charge_customer    action done in 1.3 ms`
fn line(saga: &Saga, entry: &HistoryEntry, screen: Screen) -> String {
    let HistoryEntry { what, step, attempt, detail, actor, .. } = entry;
    let since = since(saga, entry).map(|since| format!("+{}", brief(since))).unwrap_or_default();
    let subject = if step.is_empty() { "saga" } else { step };
    let mut text = what.clone();
    if *attempt > 0 && what.contains("started") {
        text.push_str(&format!(", attempt {attempt}"));
    }
    if what.contains("done")
        && let Some(took) = took(saga, entry)
    {
        text.push_str(&format!(" in {}", brief(took)));
    }
    if !detail.is_empty() {
        text.push_str(&format!(": {detail}"));
    }
    if !actor.is_empty() {
        text.push_str(&format!(" (by {actor})"));
    }
    let (since, subject) = (format!("{since:>11}"), format!("{subject:<18}"));
    format!("{}  {subject} {}", screen.paint(Tone::Faint, since), screen.paint(tone(entry), text))
}

fn tone(entry: &HistoryEntry) -> Tone {
    let says = |words: &[&str]| words.iter().any(|word| entry.what.contains(word));
    if says(&["reject", "fail", "abandon", "stuck", "refus"]) {
        Tone::Bad
    } else if entry.operation() == Operation::Compensation || says(&["compensat", "cancel", "turn"]) {
        Tone::Undo
    } else if says(&["done", "complete"]) {
        Tone::Good
    } else {
        Tone::Plain
    }
}

/// From the saga's start to the entry.
fn since(saga: &Saga, entry: &HistoryEntry) -> Option<Duration> {
    let (start, end) = (saga.create_time?, entry.time?);
    let nanos = (end.seconds - start.seconds) * 1_000_000_000 + i64::from(end.nanos) - i64::from(start.nanos);
    Some(Duration::from_nanos(nanos.max(0).unsigned_abs()))
}

/// How long the operation that an entry is about took.
fn took(saga: &Saga, entry: &HistoryEntry) -> Option<Duration> {
    let Step { action_duration, compensation_duration, .. } = saga.steps.iter().find(|step| step.name == entry.step)?;
    let took = match entry.operation() {
        Operation::Compensation => compensation_duration,
        Operation::Action | Operation::Unspecified => action_duration,
    };
    Duration::try_from((*took)?).ok()
}

/// `850 µs`, `12.3 ms`, `1.2 s`.
#[must_use]
pub fn brief(duration: Duration) -> String {
    let micros = duration.as_secs_f64() * 1e6;
    if micros < 1_000.0 {
        format!("{micros:.0} µs")
    } else if micros < 1e6 {
        format!("{:.1} ms", micros / 1e3)
    } else {
        format!("{:.1} s", micros / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use prost_types::{Duration as Took, Timestamp};

    use super::*;

    fn at(nanos: i32) -> Option<Timestamp> {
        Some(Timestamp { seconds: 1_700_000_000, nanos })
    }

    fn entry(version: u64, nanos: i32, what: &str) -> HistoryEntry {
        let operation = Operation::Action.into();
        let (what, step) = (what.to_owned(), "charge_customer".to_owned());
        HistoryEntry { time: at(nanos), version, what, step, operation, attempt: 1, ..HistoryEntry::default() }
    }

    fn saga(history: Vec<HistoryEntry>) -> Saga {
        let version = history.last().map_or(0, |entry| entry.version);
        let took = Took { seconds: 0, nanos: 1_300_000 };
        let step = Step { name: "charge_customer".to_owned(), action_duration: Some(took), ..Step::default() };
        Saga { version, history, steps: vec![step], create_time: at(0), ..Saga::default() }
    }

    #[test]
    fn every_line_is_shown_once_however_many_come_together() {
        let mut timeline = Timeline::default();
        let mut history = vec![entry(1, 100_000, "action started")];
        let lines = timeline.news(&saga(history.clone()), Screen::plain());
        assert_eq!(lines, ["    +100 µs  charge_customer    action started, attempt 1"]);

        history.extend([entry(2, 1_400_000, "action failed"), entry(3, 2_700_000, "action done")]);
        let lines = timeline.news(&saga(history.clone()), Screen::plain());
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1], "    +2.7 ms  charge_customer    action done in 1.3 ms");
        assert_eq!(timeline.news(&saga(history), Screen::plain()), [""; 0]);
    }

    #[test]
    fn a_strangers_words_are_no_line_of_their_own_move_no_cursor_and_turn_no_text_round() {
        let obeyed = "\n\u{1b}\u{7}\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2066}\u{2069}";
        let mut asked = entry(1, 100_000, "cancel asked");
        asked.detail = format!("nice{obeyed}   +1.0 ms  saga  completed\n\u{1b}[2J");
        let lines = Timeline::default().news(&saga(vec![asked]), Screen::plain());
        assert!(lines.len() == 1 && !lines[0].contains(|letter| obeyed.contains(letter)), "{lines:?}");
    }

    #[test]
    fn durations_are_short_to_read() {
        let brief = |micros| brief(Duration::from_micros(micros));
        assert_eq!([brief(850), brief(12_340), brief(1_250_000)], ["850 µs", "12.3 ms", "1.2 s"]);
    }
}
