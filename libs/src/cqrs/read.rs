//! All that a query is ever handed: the views, read-only, and how far they have come.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc, time::Duration};

use futures::Stream;
use prost::Message;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tonic::metadata::MetadataMap;

use super::{
    board::Standing,
    page::{Page, PageQuery, that_fit},
    token::{CONSISTENCY_TOKEN, Token},
};
use crate::{
    journal::{
        RefusedReads, Table, head_of_primary,
        sql::{self, Reader, Record, Value},
    },
    refusal::Refusal,
    rpc::{client::NOT_CAUGHT_UP, deadline},
};

/// How many changes a watcher is read at a time.
const MOST_CHANGES: usize = 256;
/// The most bytes of documents that are kept for a watcher who may be slow, unless one is larger.
const MOST_CHANGED: usize = 256 << 10;
/// The most bytes of documents on a page that holds more than one: half of what a client takes who says nothing.
const PAGE_BYTES: usize = 2 << 20;
/// When to ask a view again that is parked, which somebody has to mend, or that catches up with the others.
const BEHIND: Duration = Duration::from_secs(5);

/// The read side of one service.
#[derive(Clone, Debug)]
pub struct ReadSide {
    service: &'static str,
    reader: Reader,
    /// Reads the log behind the views; None where another service keeps it.
    log: Option<Reader>,
    caught_up: watch::Receiver<i64>,
    /// Tells the projector that somebody waits.
    wanted: Arc<Notify>,
    most_wait: Duration,
    page_bytes: usize,
    kept: Arc<[Kept]>,
    refused: Arc<RefusedReads>,
    /// Up to where the caller's token asks of every view; 0 where none stands still before that.
    asked: i64,
}

/// The tables of one projection, and how it stands.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) tables: &'static [&'static Table],
    pub(super) standing: Arc<Standing>,
}

impl ReadSide {
    pub(super) fn new(
        service: &'static str,
        reader: Reader,
        log: Option<Reader>,
        caught_up: watch::Receiver<i64>,
        wanted: Arc<Notify>,
        most_wait: Duration,
        kept: Arc<[Kept]>,
    ) -> Self {
        let (page_bytes, refused, asked) = (PAGE_BYTES, Arc::default(), 0);
        Self { service, reader, log, caught_up, wanted, most_wait, page_bytes, kept, refused, asked }
    }

    /// The same, for answers of at most so many bytes: pages end in time.
    #[must_use]
    pub fn answering_at_most(self, bytes: usize) -> Self {
        Self { page_bytes: self.page_bytes.min(bytes / 2), ..self }
    }

    /// The service whose views these are, for the domain of its errors.
    #[must_use]
    pub fn service(&self) -> &'static str {
        self.service
    }

    /// The position that every view has passed, but for those that are parked or far behind the others.
    #[must_use]
    pub fn position(&self) -> i64 {
        *self.caught_up.borrow()
    }

    /// The position that every view has passed as [`position`](Self::position) says, and this one too: what comes into it from now on comes
    /// after that.
    #[must_use]
    pub fn position_of(&self, table: &Table) -> i64 {
        let position = self.position();
        self.standing_of(table).map_or(position, |standing| standing.checkpoint().min(position))
    }

    fn standing_of(&self, table: &Table) -> Option<&Standing> {
        let of_it = |kept: &&Kept| kept.tables.iter().any(|kept| kept.name == table.name);
        self.kept.iter().find(of_it).map(|kept| &*kept.standing)
    }

    /// Waits for the write that the request's consistency token names, and answers the read side for that request: a view that is parked
    /// before that write, or far behind the others, refuses with UNAVAILABLE, NOT_CAUGHT_UP, and the others answer. Without a token it never waits.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for what is not a token of this service; UNAVAILABLE, NOT_CAUGHT_UP when the wait is over.
    pub async fn wait_for_token(&self, metadata: &MetadataMap) -> Result<Cow<'_, Self>, Refusal> {
        let Some(text) = metadata.get(CONSISTENCY_TOKEN) else { return Ok(Cow::Borrowed(self)) };
        let Token { position, .. } = Token::parse(text.to_str().unwrap_or_default(), self.service)?;
        if !self.pass(position).await {
            return Err(self.behind(&format!("the token is at {position}: try again")));
        }
        let all_passed = self.kept.iter().all(|kept| kept.standing.checkpoint() >= position);
        Ok(if all_passed { Cow::Borrowed(self) } else { Cow::Owned(Self { asked: position, ..self.clone() }) })
    }

    /// Refuses a view that is parked or catching up before what the caller's token asks for.
    fn has_passed(&self, table: &Table) -> Result<(), Refusal> {
        let (name, asked) = (table.name, self.asked);
        if asked == 0 {
            return Ok(());
        }
        let Some(standing) = self.standing_of(table) else { return Ok(()) };
        let at = standing.checkpoint();
        if at >= asked {
            return Ok(());
        }
        let stands = if standing.parked().is_some() { "parked" } else { "catching up" };
        let message = format!(
            "the view {name} is {stands} at {at} and the token is at {asked}: ask without a token for what it showed then, and see \
             ListProjections for how it stands"
        );
        Err(Refusal::unavailable(NOT_CAUGHT_UP, message, BEHIND))
    }

    /// Waits, as for a token, until the views have passed the position after which a caller goes on: another replica, whose
    /// caller it was, may be ahead of this one.
    ///
    /// # Errors
    /// FAILED_PRECONDITION, AHEAD_OF_LOG when the wait is over and the log doesn't go so far; UNAVAILABLE, NOT_CAUGHT_UP when it does, or
    /// when that isn't known: another service keeps it, or a standby may have the rest to replay yet.
    pub async fn wait_for_position(&self, after_position: i64) -> Result<(), Refusal> {
        if self.pass(after_position).await {
            return Ok(());
        }
        if let Some(log) = &self.log {
            let head = head_of_primary(log).await.map_err(|error| {
                self.refused.refusal("the log", &error, || tracing::error!(%error, "the log can't be read"))
            })?;
            if let Some(head) = head.filter(|head| after_position > *head) {
                let message = format!(
                    "the log ends at {head}: it is not the one that was watched to {after_position}: watch from 0"
                );
                return Err(Refusal::precondition("AHEAD_OF_LOG", message).with("head", head.to_string()));
            }
        }
        Err(self.behind(&format!(
            "the watch is to go on after {after_position}: try again, or watch from 0 if it stays so"
        )))
    }

    /// Waits for as long as a query may and its caller does. True once the views have passed the position.
    async fn pass(&self, position: i64) -> bool {
        if self.position() >= position {
            return true;
        }
        self.wanted.notify_one();
        let mut caught_up = self.caught_up.clone();
        let passed = caught_up.wait_for(|now| *now >= position);
        let most = Instant::now().checked_add(self.most_wait);
        let until = deadline::earliest(most, deadline::while_there_is_time_to_answer());
        match until {
            Some(until) => matches!(tokio::time::timeout_at(until, passed).await, Ok(Ok(_))),
            None => passed.await.is_ok(),
        }
    }

    /// How many times views went back.
    fn times_back(&self) -> u64 {
        self.kept.iter().map(|kept| kept.standing.times_back()).sum()
    }

    /// Refuses to go on with a watch if views went back since they were counted: what it was told of is another log's.
    fn has_not_gone_back(&self, times: u64, watched: i64) -> Result<(), Refusal> {
        if self.times_back() == times {
            return Ok(());
        }
        let at = self.position();
        let message = format!(
            "the views were made anew to {at}: their log is not the one that was watched to {watched}: watch from 0"
        );
        Err(Refusal::precondition("AHEAD_OF_LOG", message).with("head", at.to_string()))
    }

    fn behind(&self, wanted: &str) -> Refusal {
        let message = format!("the views are at {} and {wanted}", self.position());
        Refusal::unavailable(NOT_CAUGHT_UP, message, Duration::from_millis(100))
    }

    /// One document.
    ///
    /// # Errors
    /// UNAVAILABLE when the database can't be reached, or the view is parked before the caller's token; INTERNAL when the views can't be
    /// read.
    pub async fn document<M: Message + Default>(&self, table: &'static Table, id: &str) -> Result<Option<M>, Refusal> {
        self.has_passed(table)?;
        let found = self
            .reader
            .fetch_keys(table, vec![vec![id.into()]])
            .await
            .map_err(|error| self.unreadable(table, &error))?;
        found.first().map(|record| self.decode(table, record, 2)).transpose()
    }

    /// The documents with these ids, by id; one that isn't there is simply missing.
    ///
    /// # Errors
    /// As [`document`](Self::document).
    pub async fn documents<M: Message + Default>(
        &self,
        table: &'static Table,
        ids: impl IntoIterator<Item = &str>,
    ) -> Result<BTreeMap<String, M>, Refusal> {
        self.has_passed(table)?;
        let keys: Vec<Vec<Value>> = ids.into_iter().map(|id| vec![id.into()]).collect();
        let found = self.reader.fetch_keys(table, keys).await.map_err(|error| self.unreadable(table, &error))?;
        let document = |record: &Record| {
            let id = record.text(0).map_err(|error| self.unreadable(table, &error))?;
            Ok((id, self.decode(table, record, 2)?))
        };
        found.iter().map(document).collect()
    }

    /// A page of documents. It ends early where they are large, so that it goes into one message.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a bad size or token; UNAVAILABLE and INTERNAL as [`document`](Self::document) does.
    pub async fn page<M: Message + Default>(
        &self,
        table: &'static Table,
        query: PageQuery<'_>,
    ) -> Result<Page<M>, Refusal> {
        self.has_passed(table)?;
        let size = query.size()?;
        let (by_text, column) = (query.order.column().is_text(), query.order.column().name());
        let (compare, direction) = query.order.direction();
        let mut conditions = Conditions::default();
        conditions.filter(&query.filter);
        if let Some(after) = query.after(table.name)? {
            conditions.add(column, compare, after);
        }
        let sql = format!(
            "SELECT {column},document FROM {}{} ORDER BY {column} {direction} LIMIT {}",
            table.name,
            conditions.sql(),
            size + 1
        );
        let read = self.reader.fetch(&sql, conditions.values).await;
        let mut records = read.map_err(|error| self.unreadable(table, &error))?;
        let found = records.len();
        records.truncate(usize::try_from(size).unwrap_or_default());
        let documents = records.iter().map(|record| record.blob(1).map_or(0, |document| document.len()));
        records.truncate(that_fit(documents, self.page_bytes));
        let more = records.len() < found;
        let next_page_token = match records.last() {
            Some(last) if more => {
                let value = if by_text { last.text(0).map(Value::from) } else { last.int(0).map(Value::from) };
                query.token(table.name, &value.map_err(|error| self.unreadable(table, &error))?)
            }
            _ => String::new(),
        };
        let items = records.iter().map(|record| self.decode(table, record, 1)).collect::<Result<_, _>>()?;
        Ok(Page { items, next_page_token })
    }

    /// Every document that changes after a position, in the order of the changes, for ever. Changes between two looks are
    /// one: a slow watcher gets fewer of them and never makes anything grow. Each comes with the position after which to go on: of several
    /// documents that one event changes, all but the last come with the one before. A position that the views don't come to is refused as
    /// [`wait_for_position`](Self::wait_for_position) does. It ends with FAILED_PRECONDITION, AHEAD_OF_LOG when the views go back: made anew
    /// of another log, or after a failover that lost what came last.
    pub fn follow<M: Message + Default + 'static>(
        &self,
        table: &'static Table,
        filter: Vec<(&'static str, Value)>,
        after_position: i64,
    ) -> impl Stream<Item = Result<(i64, M), Refusal>> + Send + use<M> {
        let read = self.clone();
        async_stream::try_stream! {
            read.has_passed(table)?;
            let times_back = read.times_back();
            read.wait_for_position(after_position).await?;
            let mut caught_up = read.caught_up.clone();
            // After which to go on, and after which document of the next event what comes is yet to be told.
            let (mut position, mut told) = (after_position, None::<(i64, String)>);
            loop {
                // Look at how far the views are before reading them: what comes between is read again, never missed.
                caught_up.mark_unchanged();
                read.has_not_gone_back(times_back, position)?;
                loop {
                    let mut conditions = Conditions::default();
                    conditions.filter(&filter);
                    match told.take() {
                        None => conditions.add("position", ">", position.into()),
                        Some((event, id)) => conditions.add_after(["position", "id"], [event.into(), id.into()]),
                    }
                    let sql = format!(
                        "SELECT position,document,id FROM {}{} ORDER BY position,id LIMIT {}",
                        table.name,
                        conditions.sql(),
                        MOST_CHANGES + 1
                    );
                    let found = read.reader.fetch(&sql, conditions.values).await;
                    let mut records = found.map_err(|error| read.unreadable(table, &error))?;
                    let positions = records.iter().map(|record| record.int(0)).collect::<Result<Vec<_>, _>>();
                    let positions = positions.map_err(|error| read.unreadable(table, &error))?;
                    let documents = records.iter().map(|record| record.blob(1).map_or(0, |document| document.len()));
                    // Those that don't fit are looked at again; the first of them says whether the event before is told to its end.
                    let fit = that_fit(documents, MOST_CHANGED).min(MOST_CHANGES);
                    let more = fit < records.len();
                    records.truncate(fit);
                    if more && positions.get(fit) == positions.get(fit - 1) {
                        let last = records.last().map_or_else(|| Ok(String::new()), |record| record.text(2));
                        let last = last.map_err(|error| read.unreadable(table, &error))?;
                        told = Some((positions[fit], last));
                    }
                    // What is told is let go of: whoever takes it may be slow.
                    for (at, record) in records.into_iter().enumerate() {
                        if positions.get(at + 1) != Some(&positions[at]) {
                            position = positions[at];
                        }
                        yield (position, read.decode(table, &record, 1)?);
                    }
                    if !more {
                        break;
                    }
                }
                // Every fold is news, also one that a parked view caught up by: the views are then together where they were without it.
                if caught_up.changed().await.is_err() {
                    break;
                }
            }
        }
    }

    fn decode<M: Message + Default>(&self, table: &Table, record: &Record, column: usize) -> Result<M, Refusal> {
        let document = record.blob(column).map_err(|error| self.unreadable(table, &error))?;
        M::decode(document).map_err(|error| {
            tracing::error!(table = table.name, %error, "a view holds what can't be read: rebuild it");
            Refusal::internal()
        })
    }

    fn unreadable(&self, table: &Table, error: &sql::Error) -> Refusal {
        let tell = || tracing::error!(table = table.name, %error, "a view can't be read");
        self.refused.refusal(table.name, error, tell)
    }
}

/// The conditions of a SELECT.
#[derive(Default)]
struct Conditions {
    texts: Vec<String>,
    values: Vec<Value>,
}

impl Conditions {
    /// Columns that must hold a value; one that is named more than once, any of its values.
    fn filter(&mut self, filter: &[(&'static str, Value)]) {
        for (at, (column, _)) in filter.iter().enumerate() {
            if filter[..at].iter().any(|(before, _)| before == column) {
                continue;
            }
            let wanted: Vec<String> = filter
                .iter()
                .filter(|(other, _)| other == column)
                .map(|(_, value)| {
                    self.values.push(value.clone());
                    format!("{column} = ${}", self.values.len())
                })
                .collect();
            self.texts.push(format!("({})", wanted.join(" OR ")));
        }
    }

    fn add(&mut self, column: &str, compare: &str, value: Value) {
        self.values.push(value);
        self.texts.push(format!("{column} {compare} ${}", self.values.len()));
    }

    /// What comes after this in the order of two columns.
    fn add_after(&mut self, [first, second]: [&str; 2], values: [Value; 2]) {
        self.values.extend(values);
        let last = self.values.len();
        self.texts.push(format!("({first}, {second}) > (${}, ${last})", last - 1));
    }

    fn sql(&self) -> String {
        if self.texts.is_empty() { String::new() } else { format!(" WHERE {}", self.texts.join(" AND ")) }
    }
}
