//! What every generated query surface does: wait for the caller's token, answer from the views, say how fresh they were.

use std::{borrow::Cow, future::Future, time::Duration};

use futures::{Stream, StreamExt as _, TryStreamExt as _, stream::BoxStream};
use tokio::time::Instant;
use tonic::{
    Request, Response, Status,
    metadata::{AsciiMetadataValue, MetadataMap},
};

use super::{ReadSide, token::READ_POSITION};
use crate::refusal::Refusal;

/// How long a caller may leave a change untaken.
const PATIENCE: Duration = Duration::from_secs(30);

/// A stream of changes, as a query answers it.
pub type Changes<T> = BoxStream<'static, Result<T, Refusal>>;

/// A stream of changes, as tonic sends it.
pub type Outgoing<T> = BoxStream<'static, Result<T, Status>>;

impl ReadSide {
    /// Answers a unary query, which is handed the read side for the request: see [`wait_for_token`](Self::wait_for_token).
    ///
    /// # Errors
    /// The refusal of the token or of the query.
    pub async fn answer<'r, Q, R, F>(
        &'r self,
        request: Request<Q>,
        query: impl FnOnce(Cow<'r, Self>, Q) -> F + Send,
    ) -> Result<Response<R>, Status>
    where
        Q: Send,
        F: Future<Output = Result<R, Refusal>> + Send,
    {
        let (metadata, _, message) = request.into_parts();
        let answered = async {
            let read = self.wait_for_token(&metadata).await?;
            // Before the query reads: what is folded meanwhile it may have missed.
            let position = self.position();
            Ok((query(read, message).await?, position))
        };
        let (reply, position) = answered.await.map_err(|refusal: Refusal| refusal.into_status(self.service()))?;
        let mut response = Response::new(reply);
        stamp(position, response.metadata_mut());
        Ok(response)
    }

    /// Answers a query with a stream.
    ///
    /// # Errors
    /// The refusal of the token or of the query; later ones end the stream, and so does RESOURCE_EXHAUSTED, SLOW_WATCHER for a caller who
    /// leaves a change untaken for half a minute, once it takes it.
    pub async fn stream<Q, R: Send + 'static>(
        &self,
        request: Request<Q>,
        query: impl FnOnce(&Self, Q) -> Result<Changes<R>, Refusal> + Send,
    ) -> Result<Response<Outgoing<R>>, Status>
    where
        Q: Send,
    {
        let (metadata, _, message) = request.into_parts();
        let service = self.service();
        let waited = self.wait_for_token(&metadata).await;
        let position = self.position();
        let changes = waited.and_then(|read| query(&read, message)).map_err(|refusal| refusal.into_status(service))?;
        let changes = while_taken(changes).map_err(move |refusal| refusal.into_status(service));
        let mut response = Response::new(changes.boxed());
        stamp(position, response.metadata_mut());
        Ok(response)
    }
}

/// Notes in a reply's metadata how far the views had come.
fn stamp(position: i64, metadata: &mut MetadataMap) {
    metadata.insert(READ_POSITION, AsciiMetadataValue::from(position));
}

/// The changes for as long as they are taken. Nothing grows for a slow caller, whose next look finds what is true then; but who was stuck
/// should know that it is behind. Nobody asks for the next change of one who never reads again: it goes with its connection.
fn while_taken<R: Send + 'static>(mut changes: Changes<R>) -> impl Stream<Item = Result<R, Refusal>> + Send {
    async_stream::try_stream! {
        while let Some(change) = changes.try_next().await? {
            let handed = Instant::now();
            yield change;
            // Whoever sends it asks for the next once there is room for it.
            let left = handed.elapsed();
            if left > PATIENCE {
                let message = format!("a change was left for {} s: watch again after the last position", left.as_secs());
                Err(Refusal::exhausted("SLOW_WATCHER", message, Duration::ZERO))?;
            }
        }
    }
}
