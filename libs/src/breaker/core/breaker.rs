//! The breaker: its parts, its transitions, what operators may do.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use super::{
    clock::{Clock, nanos},
    config::{Config, ConfigError},
    half_open::HalfOpen,
    open_time::OpenTime,
    recent::Windows,
    rules::{Counts, Rules},
    state::{Cause, Override, State, Transition, Word},
    sync::{AtomicU32, AtomicU64, Mutex, Ordering::SeqCst, lock},
    totals::{Counters, Totals},
};

/// Told of every transition, reset, override and new window, after it, outside every lock.
pub(crate) type Watcher = dyn Fn(&Breaker, Transition) + Send + Sync;

/// A circuit breaker. Ask [`Breaker::admit`] before a call and tell the [`super::Permit`] how it went.
///
/// ```
/// use libs::breaker::{Breaker, Class, Config};
///
/// let config = Config::builder().consecutive_failures(2).build()?;
/// let payment = Breaker::new("payment", config);
/// for _ in 0..2 {
///     let permit = payment.admit().expect("closed");
///     permit.finish(Class::Failure);
/// }
/// let refusal = payment.admit().expect_err("two failures in a row opened it");
/// assert!(refusal.retry_after.as_secs() >= 4);
/// # Ok::<_, libs::breaker::ConfigError>(())
/// ```
pub struct Breaker {
    pub(super) hot: Hot,
    pub(super) counters: Counters,
    pub(super) cold: Mutex<Cold>,
    pub(super) clock: Arc<dyn Clock>,
    name: Arc<str>,
    watcher: OnceLock<Box<Watcher>>,
}

/// What calls read, and seldom write, on cache lines of their own.
#[repr(align(128))]
pub(super) struct Hot {
    pub(super) word: AtomicU64,
    /// While open: until when.
    pub(super) open_until: AtomicU64,
    /// While half-open: until when no permit can be had, unless a probe comes back.
    pub(super) full_until: AtomicU64,
    /// While recovering: since when.
    pub(super) ramp_from: AtomicU64,
    pub(super) ramp_nanos: AtomicU64,
    /// How many have asked where a share of calls passes: of a ramp or a throttle.
    pub(super) asked: AtomicU32,
    /// The latest moment that the peer asked callers to wait for.
    pub(super) pause_until: AtomicU64,
    /// Generation and failures in a row.
    pub(super) consecutive: AtomicU64,
    /// Generation and epoch in which the window held enough calls and broke no rule: more clean calls cannot break one.
    pub(super) settled: AtomicU64,
    pub(super) abandon_nanos: AtomicU64,
    pub(super) min_blame_nanos: AtomicU64,
    pub(super) rules: Rules,
    pub(super) windows: Windows,
}

/// What changes only at transitions.
pub(super) struct Cold {
    pub(super) config: Config,
    pub(super) open_time: OpenTime,
    pub(super) half_open: HalfOpen,
    pub(super) last_opening: Option<(Cause, Counts)>,
    pub(super) changed: u64,
    /// How long it was open, up to the last change.
    pub(super) was_open: u64,
    /// Whether it was told other rules than it was made with.
    reconfigured: bool,
}

impl Cold {
    /// How long the circuit was open, until now.
    fn open_time_until(&self, now: u64, word: Word) -> u64 {
        let open = if word.state() == State::Open { now.saturating_sub(self.changed) } else { 0 };
        self.was_open.saturating_add(open)
    }
}

/// A breaker as it stands.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The state.
    pub state: State,
    /// The override in force.
    pub over: Override,
    /// The generation.
    pub generation: u32,
    /// Calls recorded in the window; while half-open, probes that came back.
    pub window_total: u64,
    /// Failures and overloads among them.
    pub window_failures: u64,
    /// Slow calls among them.
    pub window_slow: u64,
    /// Failures in a row.
    pub consecutive_failures: u32,
    /// Probes under way.
    pub probes_out: u64,
    /// While open: until the first probe may pass.
    pub retry_after: Option<Duration>,
    /// Why it last opened.
    pub last_cause: Option<Cause>,
    /// How long ago the generation began.
    pub since_change: Duration,
    /// Counts since the start.
    pub totals: Totals,
}

impl Breaker {
    /// A closed breaker on the operating system's clock.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, config: Config) -> Self {
        Self::with_clock(name, config, Arc::new(super::MonotonicClock::new()))
    }

    /// A closed breaker on a clock of your choice.
    #[must_use]
    pub fn with_clock(name: impl Into<Arc<str>>, config: Config, clock: Arc<dyn Clock>) -> Self {
        let name = name.into();
        // A seed of its own for each process and breaker.
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), &name);
        Self::with_seed(name, config, clock, seed)
    }

    /// A closed breaker whose jitter can be foretold, for tests and simulations.
    #[must_use]
    pub fn with_seed(name: impl Into<Arc<str>>, config: Config, clock: Arc<dyn Clock>, seed: u64) -> Self {
        let now = clock.now();
        Self {
            hot: Hot {
                word: AtomicU64::new(
                    Word::new(State::Closed, Override::None, 0, 0).throttling(config.throttle.is_some()).bits(),
                ),
                open_until: AtomicU64::new(0),
                full_until: AtomicU64::new(0),
                ramp_from: AtomicU64::new(0),
                ramp_nanos: AtomicU64::new(nanos(config.ramp)),
                asked: AtomicU32::new(0),
                pause_until: AtomicU64::new(0),
                consecutive: AtomicU64::new(0),
                settled: AtomicU64::new(u64::MAX),
                abandon_nanos: AtomicU64::new(nanos(config.abandon_after)),
                min_blame_nanos: AtomicU64::new(nanos(config.min_blame)),
                rules: Rules::new(&config),
                windows: Windows::new(config.window),
            },
            counters: Counters::new(),
            cold: Mutex::new(Cold {
                config,
                open_time: OpenTime::new(now, seed),
                half_open: HalfOpen::default(),
                last_opening: None,
                changed: now,
                was_open: 0,
                reconfigured: false,
            }),
            clock,
            name: name.into(),
            watcher: OnceLock::new(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its state, as of the last call: an open circuit turns half-open when a call asks, not when its time is over.
    #[must_use]
    pub fn state(&self) -> State {
        self.word().state()
    }

    /// Has the watcher told of every transition from now on. Only the first one given is.
    pub(crate) fn watch(&self, watcher: Box<Watcher>) {
        // A second watcher would be a mistake of ours, and forgetting it is harmless.
        drop(self.watcher.set(watcher));
    }

    /// Sets or lifts an override. The state stays, its window begins anew.
    pub fn set_override(&self, over: Override) {
        let transition = {
            let mut cold = lock(&self.cold);
            let word = self.word();
            if word.over() == over {
                return;
            }
            let now = self.clock.now();
            self.begin(&mut cold, word.state(), over, now)
        };
        self.announce(transition);
    }

    /// Changes what it is told to do. State, window and earlier trips stay, and the new rules hold from the next record on.
    /// A window of another shape begins empty, a half-open circuit sends its probes anew, and a throttle that comes or goes starts from
    /// nothing: each begins a generation.
    ///
    /// # Errors
    /// When the window would be of one more shape than a breaker can have had.
    pub fn reconfigure(&self, config: Config) -> Result<(), ConfigError> {
        let transition = {
            let mut cold = lock(&self.cold);
            let word = self.word();
            let window = self.hot.windows.number(config.window, word.generation())?;
            self.hot.rules.set(&config);
            self.hot.ramp_nanos.store(nanos(config.ramp), SeqCst);
            self.hot.abandon_nanos.store(nanos(config.abandon_after), SeqCst);
            self.hot.min_blame_nanos.store(nanos(config.min_blame), SeqCst);
            // What broke no rule before may break one now.
            self.hot.settled.store(u64::MAX, SeqCst);
            (cold.config, cold.reconfigured) = (config, true);
            let throttles = cold.config.throttle.is_some();
            let anew = window != word.window() || word.state() == State::HalfOpen || throttles != word.throttles();
            anew.then(|| {
                let now = self.clock.now();
                self.begin_with(&mut cold, word.state(), word.over(), window, now)
            })
        };
        transition.into_iter().for_each(|transition| self.announce(transition));
        Ok(())
    }

    /// What it is told to do.
    #[must_use]
    pub fn config(&self) -> Config {
        lock(&self.cold).config.clone()
    }

    /// Closes the circuit, empties the window and forgets earlier trips. An override stays.
    pub fn reset(&self) {
        let transition = {
            let mut cold = lock(&self.cold);
            let now = self.clock.now();
            cold.open_time.forget();
            self.close(&mut cold, now)
        };
        self.announce(transition);
    }

    /// Ends an open circuit's rest: who asks next is its probe. For whoever knows that it is time, though the breaker can't.
    pub fn end_rest(&self) {
        let _cold = lock(&self.cold);
        if self.word().state() == State::Open {
            self.hot.open_until.store(self.clock.now(), SeqCst);
        }
    }

    /// Whether forgetting it would lose nothing but its totals: it is closed by itself, its window is empty, no earlier trip is remembered
    /// and it goes by the rules that it was made with. A count window is as full as it was however long nobody calls, so only a time
    /// window empties; and where failures in a row open the circuit, its last call did not fail.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let cold = lock(&self.cold);
        let (word, now) = (self.word(), self.clock.now());
        let window = self.hot.windows.get(word.window());
        let refused = || window.requests(word.generation(), now).is_some_and(|(requests, _)| requests > 0);
        (word.state(), word.over()) == (State::Closed, Override::None)
            && (cold.config.consecutive_failures.is_none() || self.consecutive(word.generation()) == 0)
            && cold.open_time.remembered(&cold.config, now) == 0
            && window.counts_now(word.generation(), now).total == 0
            && !refused()
            && !cold.reconfigured
    }

    /// How it stands. Numbers may be one record behind each thread that is recording.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let cold = lock(&self.cold);
        let (word, now) = (self.word(), self.clock.now());
        let counts = match word.state() {
            State::HalfOpen => {
                let (_, ok, bad) = cold.half_open.counts();
                Counts { total: ok + bad, failures: bad, slow: 0 }
            }
            State::Open => cold.last_opening.map_or_else(Counts::default, |(_, counts)| counts),
            State::Closed | State::Recovering => self.hot.windows.get(word.window()).counts_now(word.generation(), now),
        };
        let open = word.state() == State::Open;
        Snapshot {
            state: word.state(),
            over: word.over(),
            generation: word.generation(),
            window_total: counts.total,
            window_failures: counts.failures,
            window_slow: counts.slow,
            consecutive_failures: self.consecutive(word.generation()),
            probes_out: cold.half_open.counts().0,
            retry_after: open.then(|| Duration::from_nanos(self.hot.open_until.load(SeqCst).saturating_sub(now))),
            last_cause: cold.last_opening.map(|(cause, _)| cause),
            since_change: Duration::from_nanos(now.saturating_sub(cold.changed)),
            totals: self
                .counters
                .totals(self.hot.windows.successes(), Duration::from_nanos(cold.open_time_until(now, word))),
        }
    }

    /// Why it last opened.
    #[must_use]
    pub fn last_cause(&self) -> Option<Cause> {
        lock(&self.cold).last_opening.map(|(cause, _)| cause)
    }

    pub(super) fn word(&self) -> Word {
        Word::from_bits(self.hot.word.load(SeqCst))
    }

    pub(super) fn consecutive(&self, generation: u32) -> u32 {
        let held = self.hot.consecutive.load(SeqCst);
        if (held >> 32) as u32 == generation { held as u32 } else { 0 }
    }

    // === transitions: under the lock, announced after it ===

    /// Opens the circuit.
    pub(super) fn open(&self, cold: &mut Cold, cause: Cause, counts: Counts, now: u64) -> Transition {
        let word = self.word();
        let Cold { config, open_time, .. } = &mut *cold;
        let time = open_time.next(config, now, word.state() == State::Closed);
        let longest = now.saturating_add(nanos(config.open_cap));
        let asked = self.hot.pause_until.load(SeqCst).min(longest);
        self.hot.open_until.store(now.saturating_add(time).max(asked), SeqCst);
        cold.last_opening = Some((cause, counts));
        self.counters.opened.add(1);
        let transition = self.begin(cold, State::Open, word.over(), now);
        Transition { cause: Some(cause), ..transition }
    }

    /// Lets probes out.
    pub(super) fn half_open(&self, cold: &mut Cold, now: u64) -> Transition {
        let over = self.word().over();
        self.begin(cold, State::HalfOpen, over, now)
    }

    /// Lets calls back in: over a while if there is a ramp.
    pub(super) fn recover(&self, cold: &mut Cold, now: u64) -> Transition {
        if cold.config.ramp.is_zero() {
            return self.close(cold, now);
        }
        self.hot.ramp_from.store(now, SeqCst);
        self.hot.asked.store(0, SeqCst);
        let over = self.word().over();
        self.begin(cold, State::Recovering, over, now)
    }

    pub(super) fn close(&self, cold: &mut Cold, now: u64) -> Transition {
        cold.open_time.closed(now);
        let over = self.word().over();
        self.begin(cold, State::Closed, over, now)
    }

    /// Begins a generation. The window goes first: a call that sees the new word finds it ready.
    fn begin(&self, cold: &mut Cold, to: State, over: Override, now: u64) -> Transition {
        let window = self.word().window();
        self.begin_with(cold, to, over, window, now)
    }

    fn begin_with(&self, cold: &mut Cold, to: State, over: Override, window: u8, now: u64) -> Transition {
        let word = self.word();
        let generation = word.generation().wrapping_add(1);
        self.hot.windows.get(window).begin(generation, window != word.window());
        self.counters.probes_overtaken.add(cold.half_open.clear());
        self.hot.full_until.store(0, SeqCst);
        self.hot.pause_until.store(0, SeqCst);
        let throttles = cold.config.throttle.is_some();
        self.hot.word.store(Word::new(to, over, window, generation).throttling(throttles).bits(), SeqCst);
        cold.was_open = cold.open_time_until(now, word);
        cold.changed = now;
        Transition { from: word.state(), to, generation, cause: None, over }
    }

    pub(super) fn announce(&self, transition: Transition) {
        if let Some(watcher) = self.watcher.get() {
            watcher(self, transition);
        }
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.word();
        f.debug_struct("Breaker")
            .field("name", &self.name)
            .field("state", &word.state())
            .field("override", &word.over())
            .field("generation", &word.generation())
            .finish_non_exhaustive()
    }
}
