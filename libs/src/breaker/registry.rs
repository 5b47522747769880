//! All breakers of a process, by name.

use std::{collections::BTreeMap, fmt, sync::Arc};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{broadcast, watch};

use super::{
    Breaker, Cause, Change, ChangeKind, Clock, Config, Fallback, State, TokioClock, Transition,
    changes::{InOrder, KEPT},
};

/// All breakers of a process, and its fallbacks. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    breakers: RwLock<BTreeMap<Arc<str>, Entry>>,
    fallbacks: RwLock<BTreeMap<Arc<str>, Fallback>>,
    changes: broadcast::Sender<Change>,
    clock: Arc<dyn Clock>,
}

#[derive(Clone)]
struct Entry {
    breaker: Arc<Breaker>,
    state: watch::Sender<State>,
}

impl Registry {
    /// An empty registry on tokio's clock.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(Arc::new(TokioClock::new()))
    }

    /// An empty registry on a clock of your choice.
    #[must_use]
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        let (changes, _) = broadcast::channel(KEPT);
        Self(Arc::new(Inner { breakers: RwLock::default(), fallbacks: RwLock::default(), changes, clock }))
    }

    /// The breaker of that name, made now if there was none.
    pub fn breaker(&self, name: &str, config: &Config) -> Arc<Breaker> {
        if let Some(breaker) = self.get(name) {
            return breaker;
        }
        let mut breakers = self.0.breakers.write();
        let make = || {
            let breaker = Breaker::with_clock(name, config.clone(), Arc::clone(&self.0.clock));
            let (changes, state) = (self.0.changes.clone(), watch::Sender::new(breaker.state()));
            // Whoever looks it up now waits for this lock, so nothing that happens to it is told before.
            tell(&changes, breaker.name(), ChangeKind::New);
            let (shown, in_order) = (state.clone(), Mutex::new(InOrder::default()));
            breaker.watch(Box::new(move |breaker, transition| {
                // Two transitions may be announced in either order: what stands is the breaker's own word.
                shown.send_if_modified(|shown| std::mem::replace(shown, breaker.state()) != *shown);
                log(breaker, transition);
                in_order.lock().tell(transition, |transition| {
                    tell(&changes, breaker.name(), ChangeKind::Changed(transition));
                });
            }));
            Entry { breaker: Arc::new(breaker), state }
        };
        Arc::clone(&breakers.entry(name.into()).or_insert_with(make).breaker)
    }

    /// The state of the breaker of that name, whenever it changes. Changes that follow each other closely may be seen as one.
    #[must_use]
    pub fn watch(&self, name: &str) -> Option<watch::Receiver<State>> {
        self.0.breakers.read().get(name).map(|entry| entry.state.subscribe())
    }

    /// The breaker of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Breaker>> {
        self.0.breakers.read().get(name).map(|entry| Arc::clone(&entry.breaker))
    }

    /// Forgets the breakers whose name begins so that are [idle](Breaker::is_idle) and that nobody holds, and answers how many.
    /// One that has seen a call of late, is not closed, was reconfigured, or has a call under way stays.
    pub fn evict(&self, prefix: &str) -> usize {
        let mut breakers = self.0.breakers.write();
        let before = breakers.len();
        // Whoever would take one up again waits for this lock, so one that is held by nobody stays so.
        breakers.retain(|name, Entry { breaker, .. }| {
            let gone = name.starts_with(prefix) && Arc::strong_count(breaker) == 1 && breaker.is_idle();
            if gone {
                tell(&self.0.changes, name, ChangeKind::Gone);
            }
            !gone
        });
        before - breakers.len()
    }

    /// Forgets a breaker whatever it has seen, unless anybody holds it or an operator has overridden it, and answers whether it is gone.
    #[cfg(feature = "rpc")]
    pub(crate) fn forget(&self, name: &str) -> bool {
        let mut breakers = self.0.breakers.write();
        let is_held =
            |breaker: &Arc<Breaker>| Arc::strong_count(breaker) > 1 || breaker.snapshot().over != super::Override::None;
        let held = breakers.get(name).is_some_and(|entry| is_held(&entry.breaker));
        if !held && let Some((name, _)) = breakers.remove_entry(name) {
            tell(&self.0.changes, &name, ChangeKind::Gone);
        }
        !held
    }

    /// All breakers whose name begins so, by name.
    #[must_use]
    pub fn list(&self, prefix: &str) -> Vec<Arc<Breaker>> {
        let breakers = self.0.breakers.read();
        let named = breakers.iter().filter(|(name, _)| name.starts_with(prefix));
        named.map(|(_, entry)| Arc::clone(&entry.breaker)).collect()
    }

    /// A fallback of that name, which answers when a circuit is open. It is counted in the metrics, together with those of the same name.
    pub fn fallback(&self, name: &str) -> Fallback {
        self.0.fallbacks.write().entry(name.into()).or_insert_with(Fallback::on_open).clone()
    }

    /// All fallbacks by name.
    #[must_use]
    pub fn fallbacks(&self) -> Vec<(Arc<str>, Fallback)> {
        self.0.fallbacks.read().iter().map(|(name, fallback)| (Arc::clone(name), fallback.clone())).collect()
    }

    /// Every change from now on: of one breaker in the order in which they happened. Who is more than 256 behind is told how many
    /// it has missed.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.0.changes.subscribe()
    }
}

fn tell(changes: &broadcast::Sender<Change>, breaker: &Arc<str>, kind: ChangeKind) {
    // Nobody watching is no error.
    let _ = changes.send(Change { breaker: Arc::clone(breaker), kind });
}

fn log(breaker: &Breaker, transition: Transition) {
    let Transition { from, to, generation, cause, .. } = transition;
    if from != to {
        let cause = cause.map(Cause::as_str);
        tracing::info!(breaker = %breaker.name(), ?from, ?to, generation, cause, "circuit changed");
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.breakers.read().values().map(|entry| &entry.breaker)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breaker::Class;

    #[tokio::test]
    async fn whoever_waits_for_a_state_is_told() {
        let registry = Registry::new();
        let config = Config::builder().consecutive_failures(1).build().expect("makes sense");
        let payment = registry.breaker("payment", &config);
        let mut state = registry.watch("payment").expect("known");
        let opened = tokio::spawn(async move { *state.wait_for(|state| *state == State::Open).await.expect("kept") });
        tokio::task::yield_now().await;
        payment.admit().expect("closed").finish(Class::Failure);
        assert_eq!(opened.await.expect("no panic"), State::Open);
        assert!(registry.watch("nobody").is_none());
    }
}
