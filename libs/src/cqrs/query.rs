//! What every generated query surface does: wait for the caller's token, answer from the views, say how fresh they were.

use std::future::Future;

use futures::{StreamExt as _, stream::BoxStream};
use tonic::{Request, Response, Status};

use super::ReadSide;
use crate::refusal::Refusal;

/// A stream of changes, as a query answers it.
pub type Changes<T> = BoxStream<'static, Result<T, Refusal>>;

/// A stream of changes, as tonic sends it.
pub type Outgoing<T> = BoxStream<'static, Result<T, Status>>;

impl ReadSide {
    /// Answers a unary query.
    ///
    /// # Errors
    /// The refusal of the token or of the query.
    pub async fn answer<Q, R, F>(
        &self,
        request: Request<Q>,
        query: impl FnOnce(Q) -> F + Send,
    ) -> Result<Response<R>, Status>
    where
        Q: Send,
        F: Future<Output = Result<R, Refusal>> + Send,
    {
        let (metadata, _, message) = request.into_parts();
        let answered = async {
            self.wait_for_token(&metadata).await?;
            query(message).await
        };
        let reply = answered.await.map_err(|refusal| refusal.into_status(self.service()))?;
        let mut response = Response::new(reply);
        self.stamp(response.metadata_mut());
        Ok(response)
    }

    /// Answers a query with a stream.
    ///
    /// # Errors
    /// The refusal of the token or of the query; later ones end the stream.
    pub async fn stream<Q, R: 'static>(
        &self,
        request: Request<Q>,
        query: impl FnOnce(Q) -> Result<Changes<R>, Refusal> + Send,
    ) -> Result<Response<Outgoing<R>>, Status>
    where
        Q: Send,
    {
        let (metadata, _, message) = request.into_parts();
        let service = self.service();
        let waited = self.wait_for_token(&metadata).await;
        let changes = waited.and_then(|()| query(message)).map_err(|refusal| refusal.into_status(service))?;
        let changes = changes.map(move |change| change.map_err(|refusal| refusal.into_status(service)));
        let mut response = Response::new(changes.boxed());
        self.stamp(response.metadata_mut());
        Ok(response)
    }
}
