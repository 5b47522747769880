//! How did it go?

use super::{
    super::window::{Mark, Place},
    admission::NEVER,
    breaker::Breaker,
    class::Class,
    permit::{Role, Ticket},
    recent::Recent,
    rules::Counts,
    state::{Cause, Override, State, Word},
    sync::{Ordering::SeqCst, lock},
};

impl Breaker {
    /// Takes a result to where its role belongs.
    #[inline]
    pub(super) fn record(&self, role: Role, ticket: &Ticket, class: Class, pause: u64) {
        // Nearly every call, in a straight line.
        if role == Role::Counted && class == Class::Success {
            self.record_counted(ticket, class, pause);
        } else {
            self.record_unusual(role, ticket, class, pause);
        }
    }

    #[cold]
    fn record_unusual(&self, role: Role, ticket: &Ticket, class: Class, pause: u64) {
        match role {
            Role::Counted if class != Class::Neutral => self.record_counted(ticket, class, pause),
            Role::Committed if class != Class::Neutral => self.record_counted(&ticket.untimed(), class, pause),
            Role::Excused if class == Class::Success => self.record_counted(&ticket.untimed(), class, pause),
            Role::Counted | Role::Excused | Role::Committed if self.word().generation() == ticket.generation => {
                self.counters.neutral.add(1);
            }
            Role::Counted | Role::Excused | Role::Committed => self.counters.stale.add(1),
            Role::Probe => self.record_probe(ticket, class, pause),
            Role::ExcusedProbe => self.record_probe(&ticket.untimed(), class.excused(), 0),
            Role::Shadow => self.count(class, true),
            Role::Unseen | Role::Spent => {}
        }
    }

    #[inline(always)]
    fn record_counted(&self, ticket: &Ticket, class: Class, pause: u64) {
        let word = Word::from_bits(self.hot.word.load(SeqCst));
        if word.generation() != ticket.generation {
            self.counters.stale.add(1);
            return;
        }
        let window = self.hot.windows.get(word.window());
        let now = self.now_if_needed(ticket, window);
        let slow = ticket.started != NEVER && self.hot.rules.is_slow(now.saturating_sub(ticket.started));
        let mark = Mark { failed: class.counts_against(), slow };
        match window.record(ticket.generation, now, mark) {
            None => self.counters.stale.add(1),
            Some(place) if class == Class::Success => {
                self.end_run_of_failures(ticket.generation);
                if slow || window.suspect(ticket.generation, place) {
                    self.judge_success(word, place, slow);
                }
            }
            Some(place) => self.record_bad(word, place, class, pause),
        }
    }

    #[cold]
    fn record_bad(&self, word: Word, place: Place, class: Class, pause: u64) {
        self.count(class, false);
        self.note_pause(pause);
        let run = match class {
            Class::Failure => self.lengthen_run_of_failures(word.generation()),
            _ => self.consecutive(word.generation()),
        };
        self.judge(word, place, run);
    }

    #[inline]
    fn now_if_needed(&self, ticket: &Ticket, window: &Recent) -> u64 {
        let timed = ticket.started != NEVER && self.hot.rules.times_calls();
        if timed || window.is_timed() { self.clock.now() } else { 0 }
    }

    /// Judges a success that was slow, or that has company in the window that did not go well.
    #[cold]
    fn judge_success(&self, word: Word, place: Place, slow: bool) {
        if slow {
            self.judge(word, place, 0);
        } else {
            self.judge_clean(word, place);
        }
    }

    /// A clean call can break a rule too: by being the one that makes the window full enough to judge, or by coming when
    /// older clean calls have left it. Once judged, more clean calls in the same bucket cannot.
    fn judge_clean(&self, word: Word, place: Place) {
        let settled = u64::from(word.generation()) << 32 | place.epoch & 0xffff_ffff;
        if self.hot.settled.load(SeqCst) == settled {
            return;
        }
        let counts = self.judge(word, place, 0);
        if counts.total >= self.hot.rules.min_calls(word.state() == State::Recovering) {
            self.hot.settled.store(settled, SeqCst);
        }
    }

    /// Opens the circuit if a rule is broken.
    fn judge(&self, word: Word, place: Place, run: u32) -> Counts {
        let counts = self.hot.windows.get(word.window()).counts_at(word.generation(), place);
        let recovering = word.state() == State::Recovering;
        if let Some(cause) = self.hot.rules.broken(counts, run, recovering) {
            self.trip(word, cause, counts);
        }
        counts
    }

    #[cold]
    fn trip(&self, seen: Word, cause: Cause, counts: Counts) {
        if seen.over() == Override::MetricsOnly {
            return;
        }
        let transition = {
            let mut cold = lock(&self.cold);
            // Of several callers that broke a rule at once, one opens it.
            if self.word() != seen {
                return;
            }
            let now = self.clock.now();
            self.open(&mut cold, cause, counts, now)
        };
        self.announce(transition);
    }

    #[cold]
    fn record_probe(&self, ticket: &Ticket, class: Class, pause: u64) {
        let transition = {
            let mut cold = lock(&self.cold);
            if self.word().generation() != ticket.generation {
                self.counters.stale.add(1);
                return;
            }
            let now = self.clock.now();
            let slow = self.hot.rules.is_slow(now.saturating_sub(ticket.started));
            let went_well = match class {
                Class::Success => Some(!slow),
                Class::Failure | Class::Overload => Some(false),
                Class::Neutral => None,
            };
            let config = cold.config.clone();
            let Some(verdict) = cold.half_open.give_back(&config, ticket.lease, went_well) else {
                // Its lease ran out, and that was counted.
                self.counters.stale.add(1);
                return;
            };
            self.hot.full_until.store(0, SeqCst);
            self.counters.probe_came_back(went_well);
            self.count(class, true);
            self.note_pause(pause);
            self.obey(&mut cold, verdict, now)
        };
        transition.into_iter().for_each(|transition| self.announce(transition));
    }

    /// Has nobody blamed if a probe never comes back.
    #[cold]
    pub(super) fn excuse(&self, ticket: &Ticket) {
        let mut cold = lock(&self.cold);
        if self.word().generation() == ticket.generation {
            cold.half_open.excuse(ticket.lease);
        }
    }

    /// Counts a result for the totals. Successes in a window are counted there.
    fn count(&self, class: Class, outside_window: bool) {
        match class {
            Class::Success if outside_window => self.counters.success_outside.add(1),
            Class::Success => {}
            Class::Failure => self.counters.failure.add(1),
            Class::Overload => self.counters.overload.add(1),
            Class::Neutral => self.counters.neutral.add(1),
        }
    }

    pub(super) fn count_abandoned(&self, class: Class) {
        match class {
            Class::Failure => self.counters.abandoned_failure.add(1),
            _ => self.counters.abandoned_neutral.add(1),
        }
    }

    fn note_pause(&self, pause: u64) {
        if pause > 0 {
            self.hot.pause_until.fetch_max(self.clock.now().saturating_add(pause), SeqCst);
        }
    }

    fn lengthen_run_of_failures(&self, generation: u32) -> u32 {
        let mut seen = self.hot.consecutive.load(SeqCst);
        loop {
            let run = if (seen >> 32) as u32 == generation { (seen as u32).saturating_add(1) } else { 1 };
            let next = u64::from(generation) << 32 | u64::from(run);
            match self.hot.consecutive.compare_exchange_weak(seen, next, SeqCst, SeqCst) {
                Ok(_) => return run,
                Err(now) => seen = now,
            }
        }
    }

    #[inline]
    fn end_run_of_failures(&self, generation: u32) {
        let run = self.hot.consecutive.load(SeqCst);
        if run as u32 != 0 {
            self.end_run(run, generation);
        }
    }

    #[cold]
    fn end_run(&self, run: u64, generation: u32) {
        if (run >> 32) as u32 == generation {
            // If this loses to a failure at the same moment, that failure came after this success.
            let _ = self.hot.consecutive.compare_exchange(run, u64::from(generation) << 32, SeqCst, SeqCst);
        }
    }

    pub(super) fn abandon_nanos(&self) -> u64 {
        self.hot.abandon_nanos.load(SeqCst)
    }

    pub(super) fn min_blame_nanos(&self) -> u64 {
        self.hot.min_blame_nanos.load(SeqCst)
    }
}
