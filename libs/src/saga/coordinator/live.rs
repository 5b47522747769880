//! The sagas that are under way, and how to reach the task of each.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::Arc,
};

use parking_lot::Mutex;
use proto::saga::v1::Saga;
use tokio::sync::{Notify, oneshot};

use super::{asker::Asker, not_driven, parked::parked};
use crate::{
    refusal::Refusal,
    saga::{ids, machine::Command},
};

/// What a saga's task is told.
#[derive(Debug)]
pub(super) enum Mail {
    /// An operator asks for something.
    Operator(Command, Asker),
    /// Somebody waits for the end.
    Finished(oneshot::Sender<Saga>),
    /// What it waits for may have come.
    Woken,
    /// Another process owns the saga.
    Taken,
    /// The saga that it is a step of waits until it is done or undone; dropped then.
    Settled(oneshot::Sender<()>),
}

/// A saga task's letter box. It takes no memory to speak of while it is empty, and a hundred thousand of them mostly are.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    mail: Mutex<Vec<Mail>>,
    bell: Notify,
}

impl Mailbox {
    /// Waits for mail, or for a shutdown.
    pub(super) async fn rung(&self) {
        self.bell.notified().await;
    }

    pub(super) fn post(&self, mail: Mail) {
        self.mail.lock().push(mail);
        self.bell.notify_one();
    }

    pub(super) fn take(&self) -> Vec<Mail> {
        std::mem::take(&mut *self.mail.lock())
    }
}

/// Where a saga is here. Clones are the same place, and a later one of that saga is another.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Driven(Arc<Mailbox>),
    /// Somebody is about to read it and to set a task on it.
    Reserved(Arc<Mailbox>),
    /// This process's and not driven.
    Parked(Arc<Parked>),
    /// Nobody's, and not driven here either.
    Orphan(Arc<Parked>),
}

/// What is known of a saga that is not driven.
#[derive(Debug)]
pub(super) struct Parked {
    /// Why it is not.
    pub(super) why: String,
    /// Since when that is known here, in microseconds since 1970.
    pub(super) since_micros: i64,
}

impl Place {
    fn is_parked(&self) -> bool {
        matches!(self, Self::Parked(_) | Self::Orphan(_))
    }
}

/// The sagas that are under way, by id.
#[derive(Debug, Default)]
pub(super) struct Live(Mutex<HashMap<Arc<str>, Place>>);

/// A place that is taken before the saga's record is read, so that no task goes on with the saga in between: what is read stays the newest
/// there is. Given up, the place is as it was.
#[derive(Debug)]
pub(super) struct Reservation<'a> {
    live: &'a Live,
    saga_id: Arc<str>,
    mailbox: Arc<Mailbox>,
    /// What to put back.
    before: Option<Place>,
}

impl Reservation<'_> {
    /// What was in the place is not to come back.
    pub(super) fn forget(&mut self) {
        self.before = None;
    }

    /// Leaves the place to a task.
    pub(super) fn drive(self) -> Arc<Mailbox> {
        let (mailbox, saga_id) = (Arc::clone(&self.mailbox), Arc::clone(&self.saga_id));
        self.live.0.lock().insert(saga_id, Place::Driven(Arc::clone(&mailbox)));
        mailbox
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut live = self.live.0.lock();
        // Else it is driven, or parked.
        if matches!(live.get(&self.saga_id), Some(Place::Reserved(_))) {
            match self.before.take() {
                Some(before) => drop(live.insert(Arc::clone(&self.saga_id), before)),
                None => drop(live.remove(&self.saga_id)),
            }
        }
    }
}

/// Why a saga can't be told anything.
#[derive(Debug)]
pub(super) enum Unreachable {
    /// It is over, or drained, or another process's, or never was: its row knows. The mail comes back.
    NotLive(Mail),
    /// It is parked, and why; the mail comes back.
    Parked(String, Mail),
}

impl Unreachable {
    /// For a saga that is stored and open.
    pub(super) fn into_refusal(self, saga_id: &str) -> Refusal {
        match self {
            Self::NotLive(_) => not_driven(saga_id),
            Self::Parked(why, _) => parked(saga_id, &why),
        }
    }
}

impl Live {
    pub(super) fn contains(&self, saga_id: &str) -> bool {
        self.0.lock().contains_key(saga_id)
    }

    /// Makes a place for a task. None if the saga has one already.
    pub(super) fn enter(&self, saga_id: &Arc<str>) -> Option<Arc<Mailbox>> {
        let mailbox = Arc::<Mailbox>::default();
        match self.0.lock().entry(Arc::clone(saga_id)) {
            Entry::Occupied(taken) if matches!(taken.get(), Place::Driven(_) | Place::Reserved(_)) => return None,
            Entry::Occupied(mut parked) => drop(parked.insert(Place::Driven(Arc::clone(&mailbox)))),
            Entry::Vacant(place) => {
                place.insert(Place::Driven(Arc::clone(&mailbox)));
            }
        }
        Some(mailbox)
    }

    /// Takes a place for whoever is to read the saga and set a task on it. None if somebody else has.
    pub(super) fn reserve(&self, saga_id: &str) -> Option<Reservation<'_>> {
        let (saga_id, mailbox) = (Arc::<str>::from(saga_id), Arc::<Mailbox>::default());
        let mut live = self.0.lock();
        if matches!(live.get(&saga_id), Some(Place::Driven(_) | Place::Reserved(_))) {
            return None;
        }
        let before = live.insert(Arc::clone(&saga_id), Place::Reserved(Arc::clone(&mailbox)));
        Some(Reservation { live: self, saga_id, mailbox, before })
    }

    /// Whether a saga has a task.
    pub(super) fn is_driven(&self, saga_id: &str) -> bool {
        matches!(self.0.lock().get(saga_id), Some(Place::Driven(_)))
    }

    /// The ids of the sagas above those that have a task.
    pub(super) fn above(&self) -> HashSet<String> {
        let live = self.0.lock();
        let driven = live.iter().filter(|(_, place)| matches!(place, Place::Driven(_)));
        driven.filter_map(|(saga_id, _)| ids::above(saga_id)).map(str::to_owned).collect()
    }

    /// Takes a task's place away. Who posts from now on gets the mail back; what was posted before is in the mailbox.
    pub(super) fn leave(&self, saga_id: &str) {
        self.0.lock().remove(saga_id);
    }

    pub(super) fn park(&self, saga_id: Arc<str>, parked: Parked) {
        self.0.lock().insert(saga_id, Place::Parked(parked.into()));
    }

    /// Keeps in mind that nobody drives a saga, this process neither. Answers whether that is news.
    pub(super) fn pass_by(&self, saga_id: &str, parked: Parked) -> bool {
        let mut live = self.0.lock();
        let news = !live.contains_key(saga_id);
        if news {
            live.insert(saga_id.into(), Place::Orphan(parked.into()));
        }
        news
    }

    /// Of those that were nobody's, only these are still.
    pub(super) fn keep_orphans(&self, orphans: &HashSet<String>) {
        self.0.lock().retain(|saga_id, place| !matches!(place, Place::Orphan(_)) || orphans.contains(&**saga_id));
    }

    /// At most so many of those that are this process's, by id, after one of them. What is reserved is yet to become so.
    pub(super) fn owned_after(&self, after: &str, most: usize) -> Vec<(Arc<str>, Place)> {
        self.page(after, most, |place| matches!(place, Place::Driven(_) | Place::Parked(_)))
    }

    /// At most so many of those that are left as they are, by id, after one of them.
    pub(super) fn parked_after(&self, after: &str, most: usize) -> Vec<(Arc<str>, Place)> {
        self.page(after, most, Place::is_parked)
    }

    /// At most so many places of a kind, by id, after one of them.
    fn page(&self, after: &str, most: usize, wanted: impl Fn(&Place) -> bool) -> Vec<(Arc<str>, Place)> {
        let live = self.0.lock();
        let page = live.iter().filter(|(saga_id, place)| ***saga_id > *after && wanted(place));
        let mut page: Vec<_> = page.map(|(saga_id, place)| (Arc::clone(saga_id), place.clone())).collect();
        drop(live);
        let by_id = |(one, _): &(Arc<str>, _), (other, _): &(Arc<str>, _)| one.cmp(other);
        if page.len() > most {
            page.select_nth_unstable_by(most, by_id);
            page.truncate(most);
        }
        // Sorted, so that they are told in one order: a simulation can be repeated.
        page.sort_unstable_by(by_id);
        page
    }

    /// How a saga is parked, if it is.
    pub(super) fn parked_as(&self, saga_id: &str) -> Option<Place> {
        self.0.lock().get(saga_id).filter(|place| place.is_parked()).cloned()
    }

    /// Another process owned a saga after it was seen in this place, as one of this process's. What came into its place since knows better.
    pub(super) fn taken(&self, saga_id: &str, seen: &Place) {
        let mut live = self.0.lock();
        match (live.get(saga_id), seen) {
            (Some(Place::Driven(mailbox)), Place::Driven(seen)) if Arc::ptr_eq(mailbox, seen) => {
                mailbox.post(Mail::Taken);
            }
            (Some(Place::Parked(parked)), Place::Parked(seen)) if Arc::ptr_eq(parked, seen) => {
                live.remove(saga_id);
            }
            _ => {}
        }
    }

    /// Tells a saga's task something.
    pub(super) fn post(&self, saga_id: &str, mail: Mail) -> Result<(), Unreachable> {
        // Posted under the lock, so that a task that leaves has seen it.
        match self.0.lock().get(saga_id) {
            Some(Place::Driven(mailbox) | Place::Reserved(mailbox)) => {
                mailbox.post(mail);
                Ok(())
            }
            Some(Place::Parked(parked) | Place::Orphan(parked)) => Err(Unreachable::Parked(parked.why.clone(), mail)),
            None => Err(Unreachable::NotLive(mail)),
        }
    }

    /// How many have a task.
    pub(super) fn driven(&self) -> usize {
        self.0.lock().values().filter(|place| matches!(place, Place::Driven(_))).count()
    }

    /// How many are left as they are.
    pub(super) fn parked(&self) -> usize {
        self.0.lock().values().filter(|place| place.is_parked()).count()
    }

    /// Wakes every task, to have it look around.
    pub(super) fn ring_all(&self) {
        let live = self.0.lock();
        // Sorted, so that they wake in one order: a simulation can be repeated.
        let mut places: Vec<_> = live.iter().collect();
        places.sort_unstable_by_key(|(saga_id, _)| Arc::clone(saga_id));
        for (_, place) in places {
            if let Place::Driven(mailbox) = place {
                mailbox.bell.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parked(why: &str) -> Parked {
        Parked { why: why.to_owned(), since_micros: 1 }
    }

    #[test]
    fn what_is_owned_comes_in_pages_by_id() {
        let live = Live::default();
        for id in ["c", "a", "e", "b"] {
            live.enter(&id.into()).unwrap();
        }
        live.park("d".into(), parked("a test"));
        assert!(live.pass_by("bb", parked("nobody's")));
        let page = |after| live.owned_after(after, 2).iter().map(|(id, _)| id.to_string()).collect::<Vec<_>>();
        assert_eq!([page(""), page("b"), page("d")].concat(), ["a", "b", "c", "d", "e"]);
        let page = |after| live.parked_after(after, 1).iter().map(|(id, _)| id.to_string()).collect::<Vec<_>>();
        assert_eq!([page(""), page("bb"), page("d")].concat(), ["bb", "d"]);
        assert!(live.parked_as("a").is_none(), "it is driven");
    }

    #[test]
    fn what_is_in_a_sagas_place_by_now_is_not_taken() {
        let live = Live::default();
        let seen = |live: &Live| live.owned_after("", 1).remove(0).1;
        live.enter(&"a".into()).unwrap();
        let driven = seen(&live);
        live.leave("a");
        live.park("a".into(), parked("once"));
        let parked = seen(&live);
        live.taken("a", &driven);
        assert_eq!(live.parked(), 1, "parked since");
        let again = live.enter(&"a".into()).unwrap();
        live.taken("a", &driven);
        live.taken("a", &parked);
        assert!(again.take().is_empty(), "driven since, by another task");
        live.taken("a", &seen(&live));
        assert!(matches!(*again.take(), [Mail::Taken]));
    }
}
