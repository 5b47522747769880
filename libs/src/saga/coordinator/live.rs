//! The sagas that are under way, and how to reach the task of each.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use parking_lot::Mutex;
use proto::saga::v1::Saga;
use tokio::sync::{Notify, oneshot};

use super::not_driven;
use crate::{refusal::Refusal, saga::machine::Command};

/// What a saga's task is told.
#[derive(Debug)]
pub(super) enum Mail {
    /// An operator asks for something.
    Operator(Command, oneshot::Sender<Result<Saga, Refusal>>),
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

#[derive(Debug)]
enum Place {
    Driven(Arc<Mailbox>),
    /// Not driven, and why.
    Parked(String),
}

/// The sagas that are under way, by id.
#[derive(Debug, Default)]
pub(super) struct Live(Mutex<HashMap<Arc<str>, Place>>);

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
            Self::Parked(why, _) => {
                let message = format!("saga {saga_id} is parked: {why}; mend that, then retry the saga or restart");
                Refusal::precondition("SAGA_PARKED", message)
            }
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
            Entry::Occupied(mut parked) if matches!(parked.get(), Place::Parked(_)) => {
                parked.insert(Place::Driven(Arc::clone(&mailbox)));
            }
            Entry::Occupied(_) => return None,
            Entry::Vacant(place) => {
                place.insert(Place::Driven(Arc::clone(&mailbox)));
            }
        }
        Some(mailbox)
    }

    /// Takes a task's place away. Who posts from now on gets the mail back; what was posted before is in the mailbox.
    pub(super) fn leave(&self, saga_id: &str) {
        self.0.lock().remove(saga_id);
    }

    pub(super) fn park(&self, saga_id: Arc<str>, why: String) {
        self.0.lock().insert(saga_id, Place::Parked(why));
    }

    /// At most so many of those that have a task, by id, after one of them.
    pub(super) fn driven_after(&self, after: &str, most: usize) -> Vec<(Arc<str>, Arc<Mailbox>)> {
        let live = self.0.lock();
        let driven = |(saga_id, place): (&Arc<str>, &Place)| match place {
            Place::Driven(mailbox) if **saga_id > *after => Some((Arc::clone(saga_id), Arc::clone(mailbox))),
            Place::Driven(_) | Place::Parked(_) => None,
        };
        let mut page: Vec<_> = live.iter().filter_map(driven).collect();
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

    /// Tells a saga's task something.
    pub(super) fn post(&self, saga_id: &str, mail: Mail) -> Result<(), Unreachable> {
        // Posted under the lock, so that a task that leaves has seen it.
        match self.0.lock().get(saga_id) {
            Some(Place::Driven(mailbox)) => {
                mailbox.post(mail);
                Ok(())
            }
            Some(Place::Parked(why)) => Err(Unreachable::Parked(why.clone(), mail)),
            None => Err(Unreachable::NotLive(mail)),
        }
    }

    /// How many have a task.
    pub(super) fn driven(&self) -> usize {
        self.0.lock().values().filter(|place| matches!(place, Place::Driven(_))).count()
    }

    /// How many are left as they are.
    pub(super) fn parked(&self) -> usize {
        self.0.lock().values().filter(|place| matches!(place, Place::Parked(_))).count()
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

    #[test]
    fn those_that_have_a_task_come_in_pages_by_id() {
        let live = Live::default();
        for id in ["c", "a", "e", "b", "d"] {
            live.enter(&id.into()).unwrap();
        }
        live.park("bb".into(), "a test".to_owned());
        let page = |after| live.driven_after(after, 2).iter().map(|(id, _)| id.to_string()).collect::<Vec<_>>();
        assert_eq!([page(""), page("b"), page("d")].concat(), ["a", "b", "c", "d", "e"]);
    }
}
