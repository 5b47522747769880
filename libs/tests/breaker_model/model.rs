//! A breaker written for being read: a list of what happened, counted from scratch each time. One thread, no cleverness.

use std::time::Duration;

use libs::breaker::{
    Cause, Class, Config, Override, ProbeTimeout, Rate, Reason, Rejections, State, Totals, Undecided, Window,
};

/// The settings, as drawn.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) window: Window,
    pub(crate) min_calls: u32,
    pub(crate) failure_percent: Option<u32>,
    pub(crate) consecutive: Option<u32>,
    pub(crate) slow: Option<(u64, u32)>,
    pub(crate) throttle_percent: Option<u32>,
    pub(crate) open_base: u64,
    pub(crate) open_multiplier: u32,
    pub(crate) open_cap: u64,
    pub(crate) decay: u64,
    pub(crate) permits: u32,
    pub(crate) required: u32,
    pub(crate) probe_timeout: u64,
    pub(crate) on_probe_timeout: ProbeTimeout,
    pub(crate) on_undecided: Undecided,
    pub(crate) ramp: u64,
    pub(crate) abandon_after: u64,
    pub(crate) min_blame: u64,
}

impl Settings {
    pub(crate) fn config(&self) -> Config {
        let nanos = Duration::from_nanos;
        let builder = match self.window {
            Window::Count { calls } => Config::builder().count_window(calls),
            Window::Time { length, buckets } => Config::builder().time_window(length, buckets),
        };
        let slow = self.slow.map(|(threshold, percent)| libs::breaker::SlowCalls {
            threshold: nanos(threshold),
            rate: Rate::percent(percent),
        });
        builder
            .min_calls(self.min_calls)
            .failure_rate(self.failure_percent.map(Rate::percent))
            .consecutive_failures(self.consecutive)
            .slow_calls(slow)
            .throttle(self.throttle_percent.map(Rate::percent))
            .open_for(nanos(self.open_base), self.open_multiplier, nanos(self.open_cap))
            .jitter(Rate::percent(0))
            .decay(nanos(self.decay))
            .probes(self.permits, self.required)
            .probe_timeout(nanos(self.probe_timeout))
            .on_probe_timeout(self.on_probe_timeout)
            .on_undecided(self.on_undecided)
            .ramp(nanos(self.ramp))
            .abandon_after(nanos(self.abandon_after))
            .min_blame(nanos(self.min_blame))
            .build()
            .expect("drawn to make sense")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Counted,
    Probe(u64),
    Shadow,
    Unseen,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) role: Role,
    pub(crate) generation: u32,
    pub(crate) started: u64,
    pub(crate) deadline: Option<u64>,
    /// Nothing that it ends badly with counts.
    excused: bool,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    id: u64,
    ends: u64,
    blames: bool,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    at: u64,
    failed: bool,
    slow: bool,
}

/// How a call ended, as its caller tells it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Class(Class),
    Pause(Class, u64),
    Late,
    Cancelled,
    Left,
    Dropped,
}

pub(crate) struct Model {
    pub(crate) settings: Settings,
    pub(crate) now: u64,
    pub(crate) state: State,
    pub(crate) over: Override,
    pub(crate) generation: u32,
    pub(crate) open_until: u64,
    totals: Totals,
    opened_at: u64,
    pub(crate) last_cause: Option<Cause>,
    records: Vec<Record>,
    refused: Vec<u64>,
    run: u32,
    at_opening: (u64, u64, u64),
    leases: Vec<Lease>,
    next_lease: u64,
    probes: (u32, u32, u32),
    level: u32,
    closed_since: u64,
    pause_until: u64,
    ramp_from: u64,
    asked: u32,
}

const SECOND: u64 = 1_000_000_000;

/// How far apart two clocks may be about a deadline, with so much time for the call.
fn margin(budget: u64) -> u64 {
    (budget / 20).max(5_000_000).min(budget / 2)
}

impl Model {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            now: 0,
            state: State::Closed,
            over: Override::None,
            generation: 0,
            open_until: 0,
            totals: Totals::default(),
            opened_at: 0,
            last_cause: None,
            records: Vec::new(),
            refused: Vec::new(),
            run: 0,
            at_opening: (0, 0, 0),
            leases: Vec::new(),
            next_lease: 0,
            probes: (0, 0, 0),
            level: 0,
            closed_since: 0,
            pause_until: 0,
            ramp_from: 0,
            asked: 0,
        }
    }

    pub(crate) fn run_of_failures(&self) -> u32 {
        self.run
    }

    /// Counts since the start, as of now.
    pub(crate) fn totals(&self) -> Totals {
        let open = if self.state == State::Open { self.now - self.opened_at } else { 0 };
        Totals { open_time: self.totals.open_time + Duration::from_nanos(open), ..self.totals }
    }

    /// Calls, failed and slow ones in the window as of now.
    fn window(&self) -> (u64, u64, u64) {
        let within: Vec<&Record> = match self.settings.window {
            Window::Count { calls } => self.records.iter().rev().take(calls as usize).collect(),
            Window::Time { length, buckets } => {
                self.records.iter().filter(|record| self.is_recent(record.at, length, buckets)).collect()
            }
        };
        let failed = within.iter().filter(|record| record.failed).count() as u64;
        let slow = within.iter().filter(|record| record.slow).count() as u64;
        (within.len() as u64, failed, slow)
    }

    fn is_recent(&self, at: u64, length: Duration, buckets: u32) -> bool {
        let width = length.as_nanos() as u64 / u64::from(buckets);
        at / width + u64::from(buckets) > self.now / width
    }

    /// Whether a throttle refuses one more request.
    fn throttled(&mut self) -> bool {
        let (Some(percent), Window::Time { length, buckets }) = (self.settings.throttle_percent, self.settings.window)
        else {
            return false;
        };
        let (calls, failed, _) = self.window();
        let refused = self.refused.iter().filter(|at| self.is_recent(**at, length, buckets)).count() as u64;
        let requests = calls + refused;
        let beyond = (u128::from(requests) * 100).saturating_sub(u128::from(calls - failed) * u128::from(percent));
        if requests < u64::from(self.settings.min_calls) || beyond == 0 {
            return false;
        }
        let refuses = u128::from(self.draw()) * (u128::from(requests) + 1) * 100 < beyond << 32;
        if refuses {
            self.refused.push(self.now);
        }
        refuses
    }

    fn draw(&mut self) -> u32 {
        let draw = self.asked.wrapping_mul(0x9e37_79b9);
        self.asked = self.asked.wrapping_add(1);
        draw
    }

    /// What a snapshot shows of the window.
    pub(crate) fn shown(&self) -> (u64, u64, u64) {
        match self.state {
            State::Closed | State::Recovering => self.window(),
            State::Open => self.at_opening,
            State::HalfOpen => (u64::from(self.probes.0 + self.probes.1), u64::from(self.probes.1), 0),
        }
    }

    fn begin(&mut self, state: State) {
        self.totals = self.totals();
        self.opened_at = self.now;
        self.state = state;
        self.generation += 1;
        self.records.clear();
        self.refused.clear();
        self.run = 0;
        self.pause_until = 0;
        self.totals.probes.overtaken += self.leases.len() as u64;
        self.leases.clear();
        self.probes = (0, 0, 0);
    }

    fn open(&mut self, cause: Cause, counts: (u64, u64, u64)) {
        let settings = &self.settings;
        if self.state == State::Closed {
            let forgotten = (self.now - self.closed_since) / settings.decay;
            self.level = self.level.saturating_sub(forgotten.try_into().unwrap_or(u32::MAX));
        }
        let grown = settings.open_base.saturating_mul(u64::from(settings.open_multiplier).saturating_pow(self.level));
        if grown < settings.open_cap {
            self.level += 1;
        }
        let own = self.now + grown.min(settings.open_cap);
        self.open_until = own.max(self.pause_until.min(self.now + settings.open_cap));
        self.last_cause = Some(cause);
        self.at_opening = counts;
        self.totals.opened += 1;
        self.begin(State::Open);
    }

    fn close(&mut self) {
        self.closed_since = self.now;
        self.begin(State::Closed);
    }

    pub(crate) fn reset(&mut self) {
        self.level = 0;
        self.close();
    }

    pub(crate) fn reconfigure(&mut self, settings: Settings) {
        let throttle_changes = settings.throttle_percent.is_some() != self.settings.throttle_percent.is_some();
        let anew = settings.window != self.settings.window || self.state == State::HalfOpen || throttle_changes;
        self.settings = settings;
        if anew {
            self.begin(self.state);
        }
    }

    pub(crate) fn set_override(&mut self, over: Override) {
        if self.over != over {
            self.over = over;
            self.begin(self.state);
        }
    }

    pub(crate) fn admit(&mut self, budget: Option<u64>) -> Result<Call, (Reason, u64)> {
        let deadline = budget.map(|budget| self.now + budget);
        let call = |model: &Self, role| {
            Ok(Call { role, generation: model.generation, started: model.now, deadline, excused: false })
        };
        match self.over {
            Override::ForcedOpen => {
                return Err(self.reject((Reason::ForcedOpen, SECOND)));
            }
            Override::ForcedClosed => return call(self, Role::Unseen),
            Override::MetricsOnly => return call(self, Role::Counted),
            Override::None | Override::Shadow => {}
        }
        if self.state == State::Open && self.now >= self.open_until {
            self.begin(State::HalfOpen);
        }
        if self.state == State::Recovering && self.now - self.ramp_from >= self.settings.ramp {
            self.close();
        }
        if self.state == State::HalfOpen {
            self.expire();
        }
        let throttled = self.state == State::Closed && self.throttled();
        let refused = match self.state {
            State::Closed if throttled => (Reason::Throttled, SECOND),
            State::Closed => return call(self, Role::Counted),
            State::Open => (Reason::Open, self.open_until - self.now),
            State::HalfOpen => {
                let taken = self.leases.len() as u32 + self.probes.0 + self.probes.1;
                if taken < self.settings.permits {
                    self.next_lease += 1;
                    let ends = match budget {
                        Some(budget) if budget <= self.settings.probe_timeout => self.now + budget + margin(budget),
                        _ => self.now + self.settings.probe_timeout,
                    };
                    let blames = budget.is_none_or(|budget| budget >= self.settings.min_blame);
                    self.totals.probes.lent += 1;
                    self.leases.push(Lease { id: self.next_lease, ends: ends.max(self.now + 1), blames });
                    return call(self, Role::Probe(self.next_lease));
                }
                let first = self.leases.iter().map(|lease| lease.ends).min().expect("all permits are out");
                (Reason::HalfOpenSaturated, (first - self.now).min(SECOND))
            }
            State::Recovering => {
                let share = ((u128::from(self.now - self.ramp_from) << 32) / u128::from(self.settings.ramp)) as u64;
                if u64::from(self.draw()) < share.max((1 << 32) / 10) {
                    return call(self, Role::Counted);
                }
                (Reason::Recovering, SECOND)
            }
        };
        if self.over == Override::Shadow {
            self.totals.would_reject += 1;
            return call(self, Role::Shadow);
        }
        Err(self.reject(refused))
    }

    fn reject(&mut self, refused: (Reason, u64)) -> (Reason, u64) {
        let Rejections { open, half_open_saturated, recovering, forced_open, throttled } = &mut self.totals.rejected;
        *match refused.0 {
            Reason::Open => open,
            Reason::HalfOpenSaturated => half_open_saturated,
            Reason::Recovering => recovering,
            Reason::ForcedOpen => forced_open,
            Reason::Throttled => throttled,
        } += 1;
        refused
    }

    fn expire(&mut self) {
        let now = self.now;
        let (out, expired): (Vec<_>, Vec<_>) = self.leases.iter().partition(|lease| lease.ends > now);
        self.leases = out;
        self.totals.probe_timeouts += expired.len() as u64;
        if expired.is_empty() {
            return;
        }
        let hung = expired.iter().any(|lease| lease.blames);
        if hung && self.settings.on_probe_timeout == ProbeTimeout::Failure {
            let (ok, bad, _) = self.probes;
            return self.open(Cause::ProbeTimeout, (u64::from(ok + bad), u64::from(bad), 0));
        }
        self.probes.2 += expired.len() as u32;
        self.verdict();
    }

    fn verdict(&mut self) {
        let (ok, bad, unsaid) = self.probes;
        let settings = &self.settings;
        let hopeful = ok > 0 && bad == 0 && settings.on_undecided == Undecided::CloseOnSuccess;
        let undecided = unsaid >= 3 * settings.permits;
        if ok >= settings.required || (settings.permits - bad >= settings.required && undecided && hopeful) {
            if settings.ramp > 0 {
                self.ramp_from = self.now;
                self.asked = 0;
                self.begin(State::Recovering);
            } else {
                self.close();
            }
        } else if settings.permits - bad < settings.required || undecided {
            self.open(Cause::Probes, (u64::from(ok + bad), u64::from(bad), 0));
        }
    }

    pub(crate) fn excuse(&mut self, call: &mut Call) {
        call.excused = matches!(call.role, Role::Counted | Role::Probe(_));
        let probe = self.leases.iter_mut().find(|lease| call.role == Role::Probe(lease.id));
        probe.into_iter().for_each(|lease| lease.blames = false);
    }

    pub(crate) fn finish(&mut self, call: Call, end: End) {
        let budget = call.deadline.map(|deadline| deadline - call.started);
        let blameless = budget.is_some_and(|budget| budget < self.settings.min_blame);
        let outlived = budget.is_some_and(|budget| self.now >= call.started + budget - margin(budget));
        let failure_if = |failed| if failed { Class::Failure } else { Class::Neutral };
        let (class, pause) = match end {
            End::Class(class) => (class, 0),
            End::Pause(class, pause) => (class, pause),
            End::Late => (failure_if(!blameless), 0),
            End::Cancelled => (failure_if(outlived && !blameless), 0),
            End::Left | End::Dropped => {
                if call.role == Role::Unseen {
                    return;
                }
                let hung = matches!(end, End::Dropped) && self.now - call.started >= self.settings.abandon_after;
                let failed = !blameless && !call.excused && (outlived || hung);
                *if failed { &mut self.totals.abandoned_failure } else { &mut self.totals.abandoned_neutral } += 1;
                (failure_if(failed), 0)
            }
        };
        let (class, pause) = match class {
            Class::Failure | Class::Overload if call.excused => (Class::Neutral, 0),
            Class::Neutral if call.excused => (class, 0),
            class => (class, pause),
        };
        match call.role {
            Role::Unseen => {}
            Role::Shadow => self.count(class),
            Role::Counted | Role::Probe(_) if call.generation != self.generation => self.totals.stale += 1,
            Role::Counted => self.finish_counted(call, class, pause),
            Role::Probe(lease) => self.finish_probe(call, lease, class, pause),
        }
    }

    fn finish_counted(&mut self, call: Call, class: Class, pause: u64) {
        self.count(class);
        let failed = match class {
            Class::Neutral => return,
            Class::Success => false,
            Class::Failure | Class::Overload => true,
        };
        self.records.push(Record { at: self.now, failed, slow: self.is_slow(call) });
        match class {
            Class::Failure => self.run += 1,
            Class::Success => self.run = 0,
            _ => {}
        }
        self.ask_to_pause(failed, pause);
        let counts @ (calls, failures, slow) = self.window();
        let minimum = u64::from(self.settings.min_calls);
        let enough = calls >= if self.state == State::Recovering { minimum.div_ceil(2) } else { minimum };
        let reached = |part: u64, percent: Option<u32>| {
            enough && percent.is_some_and(|percent| part * 100 >= calls * u64::from(percent))
        };
        let cause = if self.settings.consecutive.is_some_and(|limit| self.run >= limit) {
            Cause::Consecutive
        } else if reached(failures, self.settings.failure_percent) {
            Cause::FailureRate
        } else if reached(slow, self.settings.slow.map(|(_, percent)| percent)) {
            Cause::SlowRate
        } else {
            return;
        };
        if self.over != Override::MetricsOnly {
            self.open(cause, counts);
        }
    }

    fn finish_probe(&mut self, call: Call, lease: u64, class: Class, pause: u64) {
        let Some(at) = self.leases.iter().position(|held| held.id == lease) else {
            self.totals.stale += 1;
            return;
        };
        self.leases.remove(at);
        self.count(class);
        let slow = self.is_slow(call);
        let ended = &mut self.totals.probes;
        match class {
            Class::Success if !slow => (self.probes.0, ended.success) = (self.probes.0 + 1, ended.success + 1),
            Class::Neutral => (self.probes.2, ended.neutral) = (self.probes.2 + 1, ended.neutral + 1),
            _ => (self.probes.1, ended.failure) = (self.probes.1 + 1, ended.failure + 1),
        }
        self.ask_to_pause(true, pause);
        self.verdict();
    }

    fn ask_to_pause(&mut self, listens: bool, pause: u64) {
        if listens && pause > 0 {
            self.pause_until = self.pause_until.max(self.now + pause);
        }
    }

    fn is_slow(&self, call: Call) -> bool {
        !call.excused && self.settings.slow.is_some_and(|(threshold, _)| self.now - call.started >= threshold)
    }

    fn count(&mut self, class: Class) {
        match class {
            Class::Success => self.totals.success += 1,
            Class::Failure => self.totals.failure += 1,
            Class::Overload => self.totals.overload += 1,
            Class::Neutral => self.totals.neutral += 1,
        }
    }
}
