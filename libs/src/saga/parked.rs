//! `saga.v1.ParkedSagaQueryService`: the sagas that a coordinator can't drive, and why.

use proto::saga::v1::{
    ListParkedSagasRequest, ListParkedSagasResponse,
    parked_saga_query_service_server::{ParkedSagaQueryService, ParkedSagaQueryServiceServer},
};
use tonic::{Request, Response, Status};

use super::coordinator::Coordinator;
use crate::{
    cqrs::{Column, PageOrder, PageQuery},
    journal::sql::Value,
    refusal::Refusal,
};

/// What a page token of this listing is bound to.
const LISTING: &str = "parked_sagas";

/// What a coordinator has parked. It knows that from memory, so it is asked for where sagas are driven, beside
/// [`SagaCommands`](super::SagaCommands).
#[derive(Clone, Debug)]
pub struct ParkedSagas {
    service: &'static str,
    coordinator: Coordinator,
}

impl ParkedSagas {
    /// What this coordinator has parked. `service` is the bare name of the service it is part of, for the domain of errors.
    #[must_use]
    pub fn new(service: &'static str, coordinator: Coordinator) -> Self {
        Self { service, coordinator }
    }

    /// The tonic server.
    #[must_use]
    pub fn into_server(self) -> ParkedSagaQueryServiceServer<Self> {
        ParkedSagaQueryServiceServer::new(self)
    }

    fn list(&self, request: &ListParkedSagasRequest) -> Result<ListParkedSagasResponse, Refusal> {
        let ListParkedSagasRequest { page_size, page_token } = request;
        let (order, filter) = (PageOrder::Ascending(Column::Text("saga_id")), Vec::new());
        let query = PageQuery { page_size: *page_size, page_token, filter, order };
        let most = usize::try_from(query.size()?).unwrap_or_default();
        let after = match query.after(LISTING)? {
            Some(Value::Text(after)) => after.to_string(),
            _ => String::new(),
        };
        // One more tells whether there is another page.
        let mut parked_sagas = self.coordinator.parked_after(&after, most + 1);
        let more = parked_sagas.len() > most;
        parked_sagas.truncate(most);
        let last = parked_sagas.last().filter(|_| more);
        let next_page_token = last.map(|last| query.token(LISTING, &last.saga_id.as_str().into()));
        Ok(ListParkedSagasResponse { parked_sagas, next_page_token: next_page_token.unwrap_or_default() })
    }
}

#[tonic::async_trait]
impl ParkedSagaQueryService for ParkedSagas {
    async fn list_parked_sagas(
        &self,
        request: Request<ListParkedSagasRequest>,
    ) -> Result<Response<ListParkedSagasResponse>, Status> {
        let listed = self.list(request.get_ref()).map_err(|refusal| refusal.into_status(self.service));
        Ok(Response::new(listed?))
    }
}
