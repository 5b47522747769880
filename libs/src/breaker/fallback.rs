//! Another answer, when a peer has none: the last one known, a default, somebody else's.
//!
//! It stands outside everything else: what it answers is not recorded by the breaker, and the caller is told that it is not
//! the peer's own word.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::Future,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::Instant};
use tonic::{Code, Status};

use super::CircuitOpen;

/// When to answer in a peer's place, and how often at once.
///
/// ```
/// # use libs::breaker::{Answer, Fallback, LastKnown};
/// # use tonic::{Code, Status};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Status> {
/// let fallback = Fallback::on_open().or_on(&[Code::Unavailable]);
/// let known = LastKnown::new(1000);
/// # async fn shipment_status() -> Result<&'static str, Status> { Ok("on its way") }
/// # async fn shipping_is_out() -> Result<&'static str, Status> { Err(Status::unavailable("away")) }
/// let fresh = fallback.or_last_known(&known, "order-1", shipment_status()).await?;
/// let known = fallback.or_last_known(&known, "order-1", shipping_is_out()).await?;
/// assert!(matches!(known, Answer::Fallback { value: "on its way", .. }));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Fallback {
    codes: u32,
    places: Arc<Semaphore>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    served: AtomicU64,
    missed: AtomicU64,
}

/// An answer, and whose it is.
#[derive(Clone, Debug)]
pub enum Answer<T> {
    /// The peer's.
    Fresh(T),
    /// Ours, in its place.
    Fallback {
        /// The answer.
        value: T,
        /// How old it is, if it was the peer's once.
        age: Option<Duration>,
        /// Why the peer gave none.
        because: Status,
    },
}

impl<T> Answer<T> {
    /// The answer, whosever it is.
    pub fn into_inner(self) -> T {
        match self {
            Self::Fresh(value) | Self::Fallback { value, .. } => value,
        }
    }

    /// The answer as a reply, which says `x-fallback: 1` in its headers if it is not the peer's own.
    pub fn into_response(self) -> tonic::Response<T> {
        let tag = !self.is_fresh();
        let mut response = tonic::Response::new(self.into_inner());
        if tag {
            response.metadata_mut().insert("x-fallback", tonic::metadata::MetadataValue::from_static("1"));
        }
        response
    }

    /// Whether it is the peer's own.
    pub const fn is_fresh(&self) -> bool {
        matches!(self, Self::Fresh(_))
    }
}

impl Fallback {
    /// So many fallbacks may be under way at once: one that calls elsewhere must not become the next bottleneck.
    const AT_ONCE: usize = 10;

    /// Answers when a circuit is open.
    pub fn on_open() -> Self {
        Self { codes: 0, places: Arc::new(Semaphore::new(Self::AT_ONCE)), counts: Arc::default() }
    }

    /// Answers when a call ended with one of these codes too.
    pub fn or_on(mut self, codes: &[Code]) -> Self {
        self.codes |= codes.iter().fold(0, |set, code| set | 1 << *code as u32);
        self
    }

    /// Answers whatever a call ended with.
    pub fn or_on_any(mut self) -> Self {
        self.codes = u32::MAX;
        self
    }

    /// Lets so many fallbacks be under way at once.
    pub fn at_once(mut self, calls: usize) -> Self {
        self.places = Arc::new(Semaphore::new(calls.clamp(1, Semaphore::MAX_PERMITS)));
        self
    }

    /// How often it answered.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.counts.served.load(Ordering::Relaxed)
    }

    /// How often it applied and had no answer, or too many were under way.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.counts.missed.load(Ordering::Relaxed)
    }

    /// Whether it answers after this.
    #[must_use]
    pub fn applies_to(&self, status: &Status) -> bool {
        self.codes >> status.code() as u32 & 1 == 1 || CircuitOpen::from_status(status).is_some()
    }

    /// The call's answer, or another one where this fallback applies and has one.
    ///
    /// # Errors
    /// The call's own, where it does not apply, has none, or too many are under way.
    pub async fn or_else<T, F, O>(
        &self,
        call: impl Future<Output = Result<T, Status>>,
        other: F,
    ) -> Result<Answer<T>, Status>
    where
        F: FnOnce(&Status) -> O,
        O: Future<Output = Option<T>>,
    {
        let status = match call.await {
            Ok(value) => return Ok(Answer::Fresh(value)),
            Err(status) => status,
        };
        if !self.applies_to(&status) {
            return Err(status);
        }
        let value = match self.places.try_acquire() {
            Ok(_place) => other(&status).await,
            Err(_) => None,
        };
        self.answer(value, None, status)
    }

    /// The call's answer, or the type's default where this fallback applies: an empty list of recommendations, for one.
    ///
    /// # Errors
    /// The call's own, where it does not apply.
    pub async fn or_default<T: Default>(
        &self,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<Answer<T>, Status> {
        match call.await {
            Ok(value) => Ok(Answer::Fresh(value)),
            Err(status) if self.applies_to(&status) => self.answer(Some(T::default()), None, status),
            Err(status) => Err(status),
        }
    }

    fn answer<T>(&self, value: Option<T>, age: Option<Duration>, because: Status) -> Result<Answer<T>, Status> {
        let counts = &*self.counts;
        let (count, answer) = match value {
            Some(value) => (&counts.served, Ok(Answer::Fallback { value, age, because })),
            None => (&counts.missed, Err(because)),
        };
        count.fetch_add(1, Ordering::Relaxed);
        answer
    }

    /// The call's answer, which is remembered, or the last one remembered for this key.
    ///
    /// # Errors
    /// The call's own, where this does not apply or nothing is remembered.
    pub async fn or_last_known<K: Eq + Hash + Clone, V: Clone>(
        &self,
        known: &LastKnown<K, V>,
        key: K,
        call: impl Future<Output = Result<V, Status>>,
    ) -> Result<Answer<V>, Status> {
        match call.await {
            Ok(value) => {
                known.remember(key, value.clone());
                Ok(Answer::Fresh(value))
            }
            Err(status) if self.applies_to(&status) => {
                let (value, age) = known.recall(&key).unzip();
                self.answer(value, age, status)
            }
            Err(status) => Err(status),
        }
    }
}

/// The last answers of a peer, by key, up to so many: the one remembered first goes first.
#[derive(Clone)]
pub struct LastKnown<K, V> {
    most: usize,
    inner: Arc<Mutex<Inner<K, V>>>,
}

struct Inner<K, V> {
    answers: HashMap<K, (V, Instant)>,
    order: VecDeque<K>,
}

impl<K: Eq + Hash + Clone, V: Clone> LastKnown<K, V> {
    /// Remembers up to so many answers, at least one.
    #[must_use]
    pub fn new(most: usize) -> Self {
        let inner = Inner { answers: HashMap::new(), order: VecDeque::new() };
        Self { most: most.max(1), inner: Arc::new(Mutex::new(inner)) }
    }

    /// Remembers an answer.
    pub fn remember(&self, key: K, value: V) {
        let mut inner = self.inner.lock();
        if inner.answers.insert(key.clone(), (value, Instant::now())).is_some() {
            return;
        }
        inner.order.push_back(key);
        if inner.order.len() > self.most
            && let Some(first) = inner.order.pop_front()
        {
            inner.answers.remove(&first);
        }
    }

    /// The last answer, and how old it is.
    #[must_use]
    pub fn recall(&self, key: &K) -> Option<(V, Duration)> {
        self.inner.lock().answers.get(key).map(|(value, then)| (value.clone(), then.elapsed()))
    }
}

impl<K, V> fmt::Debug for LastKnown<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LastKnown").field("most", &self.most).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;
    use crate::breaker::Reason;

    fn open() -> Status {
        let open = CircuitOpen {
            breaker: "shipping".into(),
            reason: Reason::Open,
            cause: None,
            retry_after: Duration::ZERO,
            generation: 1,
        };
        open.into_status()
    }

    #[tokio::test]
    async fn it_answers_an_open_circuit_and_chosen_codes_alone() {
        let fallback = Fallback::on_open().or_on(&[Code::DeadlineExceeded]);
        let answer = |status: Status| fallback.or_else(ready(Err(status)), |_| ready(Some(7)));
        assert!(!answer(open()).await.expect("applies").is_fresh());
        assert_eq!(answer(Status::deadline_exceeded("late")).await.expect("applies").into_inner(), 7);
        assert_eq!(answer(Status::not_found("no such order")).await.expect_err("an answer").code(), Code::NotFound);
        assert_eq!(answer(Status::unavailable("away")).await.expect_err("not chosen").code(), Code::Unavailable);
        assert_eq!(fallback.served(), 2);
    }

    #[tokio::test]
    async fn a_default_stands_in_and_is_marked_as_such() {
        let fallback = Fallback::on_open();
        let fresh = fallback.or_default(ready(Ok(vec![1]))).await.expect("fresh").into_response();
        assert!(fresh.metadata().get("x-fallback").is_none());
        assert_eq!(fresh.into_inner(), [1]);
        let other = fallback.or_default(ready(Err::<Vec<u8>, _>(open()))).await.expect("applies").into_response();
        assert_eq!(other.metadata().get("x-fallback").map(|value| value.as_bytes()), Some(&b"1"[..]));
        assert!(other.into_inner().is_empty());
        let refused = fallback.or_default(ready(Err::<u8, _>(Status::not_found("no such order")))).await;
        assert_eq!(refused.expect_err("an answer").code(), Code::NotFound);
    }

    #[tokio::test]
    async fn too_many_at_once_are_not_answered() {
        let fallback = Fallback::on_open().at_once(1);
        let slow = fallback.or_else(ready(Err(open())), |_| std::future::pending::<Option<u8>>());
        let mut slow = std::pin::pin!(slow);
        assert!(futures::poll!(&mut slow).is_pending());
        let second = fallback.or_else(ready(Err(open())), |_| ready(Some(1))).await;
        assert_eq!(second.expect_err("no place").code(), Code::Unavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_answer_known_says_how_old_it_is() {
        let (fallback, known) = (Fallback::on_open(), LastKnown::new(2));
        for key in ["a", "b", "c"] {
            fallback.or_last_known(&known, key, ready(Ok(key))).await.expect("fresh");
        }
        tokio::time::advance(Duration::from_secs(3)).await;
        let answer = fallback.or_last_known(&known, "c", ready(Err(open()))).await.expect("known");
        assert!(matches!(answer, Answer::Fallback { value: "c", age: Some(age), .. } if age.as_secs() == 3));
        let forgotten = fallback.or_last_known(&known, "a", ready(Err(open()))).await;
        assert_eq!(forgotten.expect_err("the oldest goes first").code(), Code::Unavailable);
    }
}
